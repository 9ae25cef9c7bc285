"""Copies of few blocks, for networks that do not fit the machine that exports them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from eri_export import export
from eri_export.checkpoints.checkpoint import Component
from eri_export.checkpoints.shipped_configs import configs
from eri_export.checkpoints.sources.config_files import with_defaults
from eri_export.checkpoints.stored_tensors import Span, StoredTensor
from eri_export.gate import cases
from eri_export.gate.reduced_copy import reduced
from eri_export.graphs.recipes.flux import flux_recipe
from eri_export.graphs.recipes.mmdit import mmdit_recipe
from eri_export.graphs.recipes.sizes import Frame
from eri_export.graphs.recipes.text import ClipHiddenPooled, clip_recipe, t5_recipe
from eri_export.graphs.recipes.unet import unet_recipe
from eri_export.graphs.weight_names import check_names
from eri_export.publishing import export_bundle as exporter
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.errors import ParityError
from tests.support.checkpoints import randomised
from tests.support.components import STATIC, up_to

SIDE = ShapeRange(min=2, opt=128, max=192)
FRAME = Frame(unit=2, height=SIDE, width=SIDE)
RECIPES = {
    "UNet2DConditionModel": lambda source: unet_recipe(source, "fp16", FRAME, 77, up_to(77, 308)),
    "SD3Transformer2DModel": lambda source: mmdit_recipe(source, "fp16", FRAME, up_to(333, 589)),
    "FluxTransformer2DModel": lambda source: flux_recipe(source, "bf16", FRAME, up_to(512, 512)),
    "T5EncoderModel": lambda source: t5_recipe(source, "bf16", up_to(512, 512)),
    "CLIPTextModelWithProjection": lambda source: clip_recipe(source, "fp16", ClipHiddenPooled, 77),
}
# of a published model: the component, the share of its parameters that the copy has at most
PUBLISHED = [
    ("sdxl-base", "unet", "UNet2DConditionModel", 0.5),
    ("sd3-medium", "transformer", "SD3Transformer2DModel", 0.25),
    ("sd3.5-medium", "transformer", "SD3Transformer2DModel", 0.3),
    ("sd3.5-large", "transformer", "SD3Transformer2DModel", 0.15),
    ("flux-dev", "transformer", "FluxTransformer2DModel", 0.13),
    ("flux-schnell", "text_encoder_2", "T5EncoderModel", 0.18),
    ("sd3.5-large", "text_encoder_2", "CLIPTextModelWithProjection", 0.2),
]


@pytest.mark.parametrize(("model", "name", "class_name", "share"), PUBLISHED)
def test_a_copy_of_a_published_network_is_a_network_with_weights_of_the_whole(
    model, name, class_name, share
):
    config = with_defaults(class_name, configs(model)[name])
    whole = _component(class_name, config)
    copy = reduced(whole)
    check_names(RECIPES[class_name](copy.source))  # every weight there, of its shape, and no other
    sizes = [sum(t.nbytes for t in each.tensors.values()) for each in (whole, copy.source)]
    assert sizes[1] <= share * sizes[0]
    for new, old in copy.names.items():
        assert copy.source.tensors[new] is whole.tensors[old]


def _component(class_name, config):
    """A network of meta tensors as a component whose files do not exist."""
    bare = Component("part", class_name, Path("part"), config, dict)
    with torch.device("meta"):
        state = RECIPES[class_name](bare).build().state_dict()
    tensors = {
        name: StoredTensor(
            name, "BF16", tuple(value.shape), (Span(Path("part"), 0, 2 * value.numel()),)
        )
        for name, value in state.items()
    }
    return Component("part", class_name, Path("part"), config, lambda: tensors)


def test_a_medium_mmdit_keeps_every_kind_of_block():
    config = with_defaults("SD3Transformer2DModel", configs("sd3.5-medium")["transformer"])
    copy = reduced(_component("SD3Transformer2DModel", config))
    assert copy.source.config["num_layers"] == 5
    assert copy.source.config["dual_attention_layers"] == (0, 1)
    assert copy.names["transformer_blocks.1.attn2.to_q.weight"].startswith("transformer_blocks.1.")
    assert copy.names["transformer_blocks.4.attn.to_q.weight"].startswith("transformer_blocks.23.")


def test_a_network_of_few_blocks_has_no_copy(flux_checkpoint):
    config = json.loads((flux_checkpoint / "transformer" / "config.json").read_text())
    config = with_defaults("FluxTransformer2DModel", config)
    assert reduced(_component("FluxTransformer2DModel", config)) is None


@pytest.fixture(scope="module")
def deep(flux_checkpoint, tmp_path_factory):
    """A Flux of more blocks than a copy keeps."""
    root = tmp_path_factory.mktemp("deep") / "flux"
    shutil.copytree(flux_checkpoint, root)
    config = FluxTransformer2DModel.load_config(root / "transformer")
    network = FluxTransformer2DModel.from_config(
        {**config, "num_layers": 4, "num_single_layers": 5}
    )
    randomised(network, 7).save_pretrained(root / "transformer")
    return root


@pytest.fixture
def tight(monkeypatch):
    """A machine with memory for nothing, where every network is large."""
    monkeypatch.setattr(cases, "available_memory", lambda: 0)
    monkeypatch.setattr(cases, "LARGE", 0)


def test_what_does_not_fit_is_compared_as_a_copy_and_the_report_says_so(deep, tmp_path, tight):
    bundle = manifest.read(export(deep, tmp_path / "bundle", ranges=STATIC).root)
    metrics = json.loads(bundle.path("parity.json").read_text())["metrics"]
    networks = {each["component"]: each["network"] for each in metrics}
    assert networks["denoiser"] == (
        "3 of 4 transformer_blocks and 3 of 5 single_transformer_blocks"
    )
    assert networks["vae_decoder"] == "whole"  # has nothing that could be left out
    assert not [file for file in bundle.root.rglob(".*") if file.is_file()]


def test_a_copy_reads_the_bundles_weights(deep, tmp_path, tight, monkeypatch):
    write = exporter.write_weights

    def corrupting(file, *arguments):
        written = write(file, *arguments)
        name = "single_transformer_blocks.4.proj_out.weight"
        if name in written.tensors:
            with file.open("r+b") as stream:
                stream.seek(written.tensors[name].start)
                stream.write(b"\0" * 4096)
        return written

    monkeypatch.setattr(exporter, "write_weights", corrupting)
    with pytest.raises(ParityError, match=r"denoiser\.output"):
        export(deep, tmp_path / "bundle", ranges=STATIC)
