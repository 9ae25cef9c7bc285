"""Where a denoiser is cut for step caching: at PyTorch's own blocks."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from eri_export.gate.segments import check_segments
from eri_export.graphs.load_graph import load_graph
from eri_export.graphs.passes.first_block import find_cut, write_cache_parts
from eri_export.graphs.recipes.flux import Flux
from eri_export.graphs.recipes.mmdit import MMDiT
from eri_export.graphs.recipes.unet import UNet
from eri_runtime.bundle import manifest
from eri_runtime.errors import ManifestError, ParityError
from eri_runtime.executors import CPU, FROM_FILE, OrtExecutor, Settings

NETWORKS = {
    "sdxl": (UNet2DConditionModel, "unet", UNet),
    "sd35": (SD3Transformer2DModel, "transformer", MMDiT),
    "flux": (FluxTransformer2DModel, "transformer", Flux),
}
# modules whose input or output are h, h' and h''
PLACES = {
    "sdxl": ("conv_in", "down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0"),
    "sd35": ("pos_embed", "transformer_blocks.1", "norm_out"),
    "flux": ("x_embedder", "single_transformer_blocks.0", "norm_out"),
}
SIZES = {"batch": 2, "height": 8, "width": 6, "patches": 12}


@pytest.fixture(params=list(NETWORKS))
def family(request):
    return request.param


@pytest.fixture
def bundle(request, family):
    return manifest.read(request.getfixturevalue(f"{family}_bundle"))


def drawn(spec):
    """Inputs of a denoiser."""
    rng = np.random.default_rng(0)
    sizes = {**SIZES, "tokens": spec.ranges["tokens"].min}
    return {
        each.name: np.abs(
            rng.standard_normal([sizes.get(size, size) for size in each.shape]).astype(np.float32)
        )
        for each in spec.inputs
    }


def opened(bundle):
    spec = bundle.components["denoiser"]
    graphs = [bundle.path(part.graph) for part in spec.step_cache]
    return CPU.parted(graphs, spec, Settings(threads=1), FROM_FILE)


def test_it_is_cut_where_pytorch_has_its_blocks(request, family, bundle):
    kind, folder, wrapper = NETWORKS[family]
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    network = kind.from_pretrained(checkpoint, subfolder=folder).eval()
    seen = {}

    def note(_, inputs, words, output, name):
        read = words.get("hidden_states", inputs[0] if inputs else None)
        seen[name] = [each.numpy() for each in (read, output) if isinstance(each, torch.Tensor)]

    for name in PLACES[family]:
        network.get_submodule(name).register_forward_hook(
            lambda *given, name=name: note(*given, name=name), with_kwargs=True
        )
    inputs, blocks = drawn(bundle.components["denoiser"]), []
    with torch.no_grad():
        wrapper(network, torch.float32)(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    before, after, end = (seen[name] for name in PLACES[family])
    with opened(bundle) as parts:
        parts.run([inputs], lambda found: [blocks.append(found[0]) or found[0].rest()])
        (block,) = blocks
        expected = {
            "residual": (after[0] - before[-1], block.residual),
            "rest": (end[-1] if family == "sdxl" else end[0], block.rest()),
        }
        if block.hidden is not None:
            expected["hidden"] = (after[0], block.hidden)
    assert (block.hidden is None) == (family == "sdxl")
    for name, (theirs, ours) in expected.items():
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max(), err_msg=name)


def test_the_parts_are_the_whole_over_one_weights_file(bundle):
    spec = bundle.components["denoiser"]
    whole = ir.load(bundle.path(spec.graph))
    weights = {weight for part in spec.step_cache for weight in part.weights}
    external = {
        name
        for name, value in whole.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    assert weights == external
    for part in spec.step_cache:
        onnx.checker.check_model(str(bundle.path(part.graph)), full_check=True)
    inputs = drawn(spec)
    with opened(bundle) as parts, OrtExecutor(bundle.path(spec.graph), spec) as executor:
        (output,) = parts.run([inputs], lambda blocks: [blocks[0].rest()])
        np.testing.assert_array_equal(output, executor.run(inputs)["output"])


def test_wrong_parts_are_not_published(bundle, tmp_path):
    spec = bundle.components["denoiser"]
    shutil.copytree(bundle.path("denoiser"), tmp_path / "denoiser")
    graph = tmp_path / "denoiser" / "model.onnx"
    check_segments(graph, spec)
    part = graph.with_name("cache-rest.onnx")
    model = ir.load(part)
    node = next(node for node in model.graph if node.op_type == "Add")
    node.op_type = "Mul"
    ir.save(model, part)
    with pytest.raises(ParityError, match=r"cache-rest\.onnx.*that of the whole"):
        check_segments(graph, spec)


def test_a_manifest_with_other_parts_is_refused(bundle, tmp_path):
    spec = bundle.components["denoiser"]
    first, rest, last = spec.step_cache
    for parts in ((first, rest), (rest, first, last), (first, last, rest)):
        changed = dataclasses.replace(spec, step_cache=parts)
        components = {**bundle.components, "denoiser": changed}
        text = manifest.dump(dataclasses.replace(bundle, components=components))
        with pytest.raises(ManifestError, match="step_cache"):
            manifest.parse(json.loads(text), tmp_path)


def test_a_network_of_one_block_has_no_parts(bundle, tmp_path):
    spec = bundle.components["denoiser"]
    model = load_graph(bundle.path(spec.graph))
    for name in list(model.graph.initializers):
        if "transformer_blocks.1." in name or "upsamplers" in name or "single_transf" in name:
            model.graph.initializers[name].name = f"other.{name}"
    assert find_cut(model) is None
    assert write_cache_parts(model, tmp_path / "model.onnx", spec) is spec
    assert list(tmp_path.iterdir()) == []
