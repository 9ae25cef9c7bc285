"""The CUDA form of every image network computes what its plain graph does, from the same weights.

ONNX Runtime's own operators are written out by their documentation, as the CPU has none of them.
Graphs of 16 bits are compared as their float32 twins.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.choices import USUAL
from eri_export.graphs.passes.cuda import cuda_form
from eri_export.graphs.passes.lora_inputs import add_lora_inputs
from eri_export.graphs.passes.slice_attention import slice_attention
from eri_export.graphs.passes.to_float32 import widen
from eri_export.graphs.step_graph import compose
from eri_export.plan.plan import make_plan
from eri_export.publishing import export_bundle as exporter
from eri_export.weights.weights_file import bind, conversions, write_weights
from tests.support.components import STATIC
from tests.support.contrib_operators import write_out

# float32: sums of a norm, a bias and a matrix in another order, through a tiny network
TOLERANCE = 2e-5
# latents of two images, not square; what else is dynamic has 24 elements
SIZES = {"batch": 2, "height": 8, "width": 12, "image_height": 16, "image_width": 24, "rank": 3}
SIZES |= {"images": 1, "conditions": 2, "loras": 2}


@pytest.fixture
def traced(request, tmp_path):
    """Makes a component's finished graph, with its weights bound to a file in `tmp_path`."""

    def make(family, name, precision="fp32", *, static=False):
        checkpoint = request.getfixturevalue(f"{family}_checkpoint")
        precisions = {"*": precision, "vae": precision}
        plan = make_plan(checkpoint, precision=precisions, ranges=STATIC if static else USUAL)
        recipe = next(recipe for recipe in plan.recipes if recipe.name == name)
        model = exporter.trace(recipe)
        items = conversions(model, recipe.source.tensors)
        bind(model, write_weights(tmp_path / "weights.safetensors", items, lambda _: None).tensors)
        return model

    return make


def run(model, folder, name):
    """Runs a graph on drawn inputs in float32; the same inputs whatever the graph."""
    path = folder / f"{name}.onnx"
    ir.save(model, path)
    model = ir.load(path)  # shares no types with another model
    widen(model)
    write_out(model)
    ir.save(model, path)
    session = onnxruntime.InferenceSession(path)
    feeds, sizes = {}, dict(SIZES)
    for each in session.get_inputs():
        if each.name == "encoder_hidden_states" and isinstance(each.shape[0], int):
            sizes["conditions"] = each.shape[0]  # of one image
    for each in session.get_inputs():
        shape = [d if isinstance(d, int) else sizes.get(d, 24) for d in each.shape]
        rng = np.random.default_rng(sum(map(ord, each.name)))
        if each.type == "tensor(int64)":  # of one image: each row is its own, and it mixes all
            count = int(np.prod(shape))
            feeds[each.name] = np.arange(count).reshape(shape) * (each.name == "index")
        else:
            feeds[each.name] = rng.standard_normal(shape, np.float32)
    return session.run(None, feeds)


def agree(model, folder):
    """Compares a graph with its CUDA form; returns the form's operators."""
    form = cuda_form(model)
    operators = Counter(node.op_type for node in form.graph)
    weights = {name for name, each in model.graph.initializers.items() if is_weight(each)}
    assert weights == {name for name, each in form.graph.initializers.items() if is_weight(each)}
    ours, theirs = (run(each, folder, name) for each, name in ((form, "form"), (model, "plain")))
    for made, wanted in zip(ours, theirs, strict=True):
        assert np.abs(wanted).max() > 0
        assert np.abs(made - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    return operators


def is_weight(value):
    return isinstance(value.const_value, ir.ExternalTensor)


@pytest.mark.parametrize(
    ("family", "precision", "static"),
    [
        ("sdxl", "fp32", False),
        ("sdxl", "fp16", True),
        ("sd35", "fp32", False),
        ("sd35", "fp16", True),
        ("flux", "fp32", False),
        ("flux", "fp16", True),
        ("flux", "bf16", True),
    ],
)
def test_a_denoiser_and_its_step_graph_agree(traced, tmp_path, family, precision, static):
    model = traced(family, "denoiser", precision, static=static)
    plain = Counter(node.op_type for node in model.graph)
    operators = agree(model, tmp_path)
    assert operators["Attention"] == plain["Attention"] > 0
    assert operators["GroupNormalization"] == 0
    norms = operators["GroupNorm"] + operators["SkipGroupNorm"]
    assert norms == (21 if family == "sdxl" else 0)
    assert (operators["SkipGroupNorm"] > 0) == (family == "sdxl")
    assert (operators["SkipLayerNormalization"] > 0) == (family == "sdxl")
    assert (operators["FastGelu"] > 0) == (family != "sdxl")
    compose(model)
    agree(model, tmp_path)


@pytest.mark.parametrize(
    ("family", "name", "precision"),
    [
        ("sdxl", "vae_decoder", "fp32"),
        ("sdxl", "vae_encoder", "fp16"),
        ("sd35", "vae_decoder", "fp16"),
        ("flux", "vae_decoder", "bf16"),
    ],
)
def test_a_vae_agrees(traced, tmp_path, family, name, precision):
    operators = agree(traced(family, name, precision, static=precision != "fp32"), tmp_path)
    norms = {"sdxl": 14, "sd35": 18, "flux": 14}[family] if name == "vae_decoder" else 10
    assert (
        operators["GroupNorm"] + operators["SkipGroupNorm"] == norms
    )  # that of attention, of sequences, too
    assert (operators["SkipGroupNorm"] == 0) == (precision == "bf16")
    assert (operators["Resize"] == 0) == (precision == "bf16" or name == "vae_encoder")


@pytest.mark.parametrize("change", ["slices", "loras"])
def test_slices_and_lora_inputs_stay(traced, tmp_path, change):
    model = traced("sd35", "denoiser")
    attentions = sum(node.op_type == "Attention" for node in model.graph)
    if change == "slices":
        assert slice_attention(model, 1) == attentions
        attentions *= 4
    else:
        assert add_lora_inputs(model)
    names = [value.name for value in model.graph.inputs]
    assert [value.name for value in cuda_form(model).graph.inputs] == names
    assert agree(model, tmp_path)["Attention"] == attentions


def test_the_plain_graph_stays_as_it_was(traced):
    model = traced("sdxl", "vae_decoder")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    cuda_form(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
