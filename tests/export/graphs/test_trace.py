"""Graphs: valid, dynamic, small, and made without reading a weight."""

from __future__ import annotations

import gc
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from eri_export.checkpoints.shipped_configs import configs
from eri_export.checkpoints.sources.folder import open_part
from eri_export.checkpoints.stored_tensors import StoredTensor
from eri_export.graphs.passes.hidden_weights import weights_of
from eri_export.graphs.recipes.text import ClipPooled, clip_recipe, t5_recipe
from eri_export.graphs.trace import _old_objects_frozen, trace
from eri_export.machine import peak_memory
from eri_export.weights.weights_file import bind
from eri_runtime.bundle import manifest
from eri_runtime.executors.ort.session import OrtExecutor
from tests.support.components import up_to
from tests.support.single_files import network, sparse

FAMILIES = ["sdxl", "sd35", "flux"]
MEGABYTE = 1 << 20


def close(ours, theirs):
    """Within float32 rounding of the largest value."""
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture
def run(request):
    """Run a component of a family's bundle on torch tensors."""

    def call(family, name, **inputs):
        bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
        spec = bundle.components[name]
        with OrtExecutor(bundle.path(spec.graph), spec) as executor:
            return executor.run({key: value.numpy() for key, value in inputs.items()})

    return call


def load(request, family, kind, folder):
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    return kind.from_pretrained(checkpoint / folder).eval()


SIZES = [(1, 2, 2, 1), (1, 10, 6, 16), (3, 6, 14, 7), (5, 8, 8, 40)]


@torch.no_grad()
@pytest.mark.parametrize(("batch", "height", "width", "tokens"), SIZES)
def test_unet_is_diffusers_own_at_any_size(request, run, batch, height, width, tokens):
    inputs = {
        "sample": rand(batch, 4, height, width),
        "timestep": torch.linspace(0, 999, batch),
        "encoder_hidden_states": rand(batch, tokens, 64),
    }
    added = {"text_embeds": rand(batch, 32), "time_ids": 100 * rand(batch, 6).abs().round()}
    unet = load(request, "sdxl", UNet2DConditionModel, "unet")
    theirs = unet(**inputs, added_cond_kwargs=added).sample
    close(run("sdxl", "denoiser", **inputs, **added)["output"], theirs)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "height", "width", "tokens"), SIZES)
def test_mmdit_is_diffusers_own_at_any_size(request, run, batch, height, width, tokens):
    inputs = {
        "timestep": torch.linspace(1000, 0, batch),
        "encoder_hidden_states": rand(batch, tokens, 64),
        "pooled_projections": rand(batch, 64),
    }
    sample = rand(batch, 16, height, width)
    mmdit = load(request, "sd35", SD3Transformer2DModel, "transformer")
    theirs = mmdit(hidden_states=sample, **inputs).sample
    close(run("sd35", "denoiser", sample=sample, **inputs)["output"], theirs)


@torch.no_grad()
@pytest.mark.parametrize("family", ["flux", "flux_schnell"])
@pytest.mark.parametrize(("batch", "height", "width", "tokens"), [*SIZES[:3], (5, 8, 8, 32)])
def test_flux_is_diffusers_own_at_any_size(request, run, family, batch, height, width, tokens):
    rows, columns = height // 2, width // 2
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    inputs = {
        "encoder_hidden_states": rand(batch, tokens, 64),
        "pooled_projections": rand(batch, 32),
        "img_ids": torch.cat([torch.zeros(len(grid), 1), grid], dim=1),
        "txt_ids": torch.zeros(tokens, 3),
    }
    if family == "flux":
        inputs["guidance"] = torch.linspace(1, 4, batch)
    sample, timestep = rand(batch, rows * columns, 64), torch.linspace(1000, 0, batch)
    flux = load(request, family, FluxTransformer2DModel, "transformer")
    # the pipeline divides, the network multiplies
    theirs = flux(hidden_states=sample, timestep=timestep / 1000, **inputs).sample
    close(run(family, "denoiser", sample=sample, timestep=timestep, **inputs)["output"], theirs)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 2, 2), (2, 6, 14)])
def test_vae_is_diffusers_own_at_any_size(request, run, family, batch, height, width):
    vae = load(request, family, AutoencoderKL, "vae")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    latents = rand(batch, vae.config.latent_channels, height, width)
    close(run(family, "vae_decoder", latents=latents)["image"], vae.decode(latents).sample)
    image = rand(batch, 3, factor * height, factor * width).clamp(-1, 1)
    encoded, theirs = run(family, "vae_encoder", image=image), vae.encode(image).latent_dist
    close(encoded["mean"], theirs.mean)
    close(encoded["logvar"], theirs.logvar)


@torch.no_grad()
def test_clip_gives_the_penultimate_layer_and_the_projection(request, run):
    ids = torch.tensor([[633, 5, 9, 300, *[634] * 12], [633, *[7] * 14, 634]])
    first = load(request, "sdxl", CLIPTextModel, "text_encoder")
    hidden = first(ids, output_hidden_states=True).hidden_states[-2]
    close(run("sdxl", "text_encoder", input_ids=ids)["hidden_states"], hidden)
    for family, name in (("sdxl", "text_encoder_2"), ("sd35", "text_encoder")):
        theirs = load(request, family, CLIPTextModelWithProjection, name)(
            ids, output_hidden_states=True
        )
        ours = run(family, name, input_ids=ids)
        close(ours["hidden_states"], theirs.hidden_states[-2])
        close(ours["pooled"], theirs.text_embeds)


@torch.no_grad()
def test_flux_clip_gives_the_pooled_state(request, run):
    ids = torch.tensor([[633, 5, 9, 300, *[634] * 12]])
    theirs = load(request, "flux", CLIPTextModel, "text_encoder")(ids).pooler_output
    close(run("flux", "text_encoder", input_ids=ids)["pooled"], theirs)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 5, 24])
def test_t5_takes_any_number_of_tokens(request, run, tokens):
    ids = torch.arange(2 * tokens).reshape(2, tokens) % 100
    theirs = load(request, "sd35", T5EncoderModel, "text_encoder_3")(ids).last_hidden_state
    close(run("sd35", "text_encoder_3", input_ids=ids)["hidden_states"], theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_pass_the_checker_and_hold_no_weight(request, family):
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    for name, spec in bundle.components.items():
        graph = bundle.path(spec.graph)
        onnx.checker.check_model(str(graph), full_check=True)
        model = onnx.load(graph, load_external_data=False)
        inline = sum(len(each.raw_data) for each in model.graph.initializer)
        assert inline < 4096, name
        assert graph.stat().st_size < MEGABYTE // 4, name
        assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_name_inputs_outputs_and_dimensions_as_the_manifest_does(request, family):
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    for spec in bundle.components.values():
        graph = onnx.load(bundle.path(spec.graph), load_external_data=False).graph
        assert [_described(each) for each in graph.input] == [
            (each.name, each.shape) for each in spec.inputs
        ]
        assert [_described(each) for each in graph.output] == [
            (each.name, each.shape) for each in spec.outputs
        ]


def _described(value):
    sizes = (each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim)
    return value.name, tuple(sizes)


def test_no_weight_is_read_while_tracing(flux_checkpoint, monkeypatch):
    def reading(self):
        raise AssertionError(f"{self.name} was read")

    source = open_part(flux_checkpoint / "text_encoder", "text_encoder", "CLIPTextModel")
    monkeypatch.setattr(StoredTensor, "chunks", reading)
    model = trace(clip_recipe(source, "fp32", ClipPooled, 16))
    assert {value.name for value in weights_of(model)} == set(source.tensors)
    assert all(value.const_value is None for value in weights_of(model))


def test_tracing_twice_gives_the_same_bytes(flux_checkpoint):
    source = open_part(flux_checkpoint / "text_encoder", "text_encoder", "CLIPTextModel")
    recipe = clip_recipe(source, "fp32", ClipPooled, 16)
    first, second = (_bound(trace(recipe), source) for _ in range(2))
    assert first == second


def _bound(model, source):
    bind(model, source.tensors)
    return ir.to_proto(model).SerializeToString(deterministic=True)


def test_memory_does_not_grow_with_the_model(tmp_path):
    """A T5 of two of T5-XXL's own layers: 1 GB of weights, as a file with nothing in it."""
    config = {**configs("flux-dev")["text_encoder_2"], "num_layers": 2}
    state = network("T5EncoderModel", config).state_dict()
    del state["encoder.embed_tokens.weight"]
    file = tmp_path / "model.safetensors"
    sparse(file, {name: tuple(value.shape) for name, value in state.items()})
    assert file.stat().st_size > 950 * MEGABYTE
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = open_part(tmp_path, "text_encoder_2", "T5EncoderModel")
    before = peak_memory()
    model = trace(t5_recipe(source, "fp16", up_to(32, 32)))
    assert {value.name for value in weights_of(model)} == set(source.tensors)
    assert peak_memory() - before < 300 * MEGABYTE


def test_old_objects_are_frozen_while_a_network_is_traced():
    """And no longer than that, but for a caller who froze them before."""
    gc.unfreeze()
    try:
        with _old_objects_frozen():
            assert gc.get_freeze_count() > 0
            with _old_objects_frozen():
                pass
            assert gc.get_freeze_count() > 0  # not the same number: frozen objects die as others do
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()
