"""Attention of a few heads at a time is the same attention."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import eri_runtime as eri
from eri_export.graphs.passes.shape_inference import inferred
from eri_export.graphs.passes.slice_attention import slice_attention, slices_of, with_slices
from eri_export.graphs.step_graph import compose
from eri_export.plan.plan import make_plan, slice_of
from eri_runtime.errors import ExportError, UsageError

FAMILIES = ["sdxl", "sd35", "flux"]
BATCH, QUERIES, KEYS, SIZE = 2, 5, 7, 3


def layer(heads, key_heads, mask):
    """A graph of one Attention whose sizes but the heads are open."""
    masked = "" if mask is None else f", float[{mask}] mask"
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        layer (float[b, {heads}, s, {SIZE}] q, float[b, {key_heads}, t, {SIZE}] k,
               float[b, {key_heads}, t, {SIZE}] v{masked}) => (float[b, {heads}, s, {SIZE}] y)
        {{ y = Attention <scale = 0.7> (q, k, v{"" if mask is None else ", mask"}) }}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def run(model, inputs):
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    (made,) = session.run(None, inputs)
    return made


def attention(q, k, v, mask=0.0):
    """The formula, in float64."""
    k, v = (np.repeat(each, q.shape[1] // each.shape[1], axis=1) for each in (k, v))
    scores = 0.7 * (q @ k.swapaxes(2, 3)) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def heads_at_once(model):
    """The heads of each layer, in the order of the graph."""
    table = inferred(model)
    layers = [node for node in model.graph if node.op_type == "Attention"]
    return [table[node.inputs[0].name].shape[1] for node in layers]


@pytest.mark.parametrize(
    ("heads", "key_heads", "mask", "most", "expected"),
    [
        (4, 4, None, 2, [2, 2]),
        (5, 5, None, 2, [2, 2, 1]),  # the last has what is left
        (5, 5, "s, t", 3, [3, 2]),
        (3, 3, "b, 1, s, t", 1, [1, 1, 1]),
        (5, 5, "b, 5, s, t", 2, [2, 2, 1]),  # a mask of each head
        (6, 6, "6, s, t", 4, [4, 2]),
        (6, 2, None, 4, [3, 3]),  # whole groups that share a key
        (6, 2, "b, 6, s, t", 2, [2, 1, 2, 1]),  # within a group
        (4, 1, None, 3, [3, 1]),
        (4, 4, None, 4, [4]),  # as it was
    ],
)
def test_a_layer(heads, key_heads, mask, most, expected):
    whole, sliced = (layer(heads, key_heads, mask) for _ in range(2))
    assert slice_attention(sliced, most) == (len(expected) > 1)
    assert heads_at_once(sliced) == expected
    rng = np.random.default_rng(0)
    shapes = {"q": (heads, QUERIES), "k": (key_heads, KEYS), "v": (key_heads, KEYS)}
    inputs = {k: rng.standard_normal((BATCH, *v, SIZE), np.float32) for k, v in shapes.items()}
    if mask is not None:
        sizes = {"b": BATCH, "s": QUERIES, "t": KEYS}
        shape = [sizes.get(each) or int(each) for each in mask.split(", ")]
        inputs["mask"] = rng.standard_normal(shape, np.float32)
    made = run(sliced, inputs)
    np.testing.assert_allclose(made, run(whole, inputs), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(made, attention(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 5, 6, 24])
@pytest.mark.parametrize("most", [1, 2, 4, 7])
def test_every_head_once_and_none_too_many(heads, most):
    for key_heads in (each for each in range(1, heads + 1) if heads % each == 0):
        slices = slices_of(heads, key_heads, most)
        assert sum(slices.queries) == heads
        assert max(slices.queries) <= most
        assert sum(slices.keys) == key_heads
        owners = [head * key_heads // heads for head in range(heads)]
        starts = np.cumsum([0, *slices.keys])
        for first, count, part in zip(
            np.cumsum([0, *slices.queries]), slices.queries, slices.part, strict=False
        ):
            own = range(starts[part], starts[part + 1])
            assert set(owners[first : first + count]) == set(own)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_denoiser(family, request):
    """Its graph and its step graph, over the same weights."""
    bundle = eri.read_bundle(request.getfixturevalue(f"{family}_bundle"))
    spec = bundle.components["denoiser"]
    graph = bundle.path(spec.graph)
    model = ir.load(graph)
    most = 1 if family == "flux" else 3  # of two, and of four
    assert slice_attention(model, most) > 0
    assert set(heads_at_once(model)) == {1, most}
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    plan = make_plan(request.getfixturevalue(f"{family}_checkpoint"))
    (recipe,) = (each for each in plan.recipes if each.name == "denoiser")
    smallest = {name: each.min for name, each in recipe.ranges.items()}
    inputs = recipe.sample({**smallest, "batch": 3}, seed=1)
    (expected,) = ort.InferenceSession(str(graph)).run(None, inputs)
    assert np.abs(run(model, inputs) - expected).max() <= 1e-6 * np.abs(expected).max()
    compose(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_is_not_sliced_says_so(sd35_bundle):
    bundle = eri.read_bundle(sd35_bundle)
    spec = bundle.components["vae_decoder"]
    model = ir.load(bundle.path(spec.graph))
    assert with_slices(model, spec) is spec
    wanted = dataclasses.replace(spec, attention_slice=1)
    assert with_slices(model, wanted).attention_slice is None  # it has one head


def test_a_form_that_no_recipe_makes():
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        flat (float[b, s, 8] q, float[b, s, 8] k, float[b, s, 8] v) => (float[b, s, 8] y)
        { y = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v) }
    """
    with pytest.raises(ExportError, match="heads"):
        slice_attention(ir.from_proto(onnx.parser.parse_model(text)), 2)


@pytest.mark.parametrize(
    ("wanted", "heads", "expected"),
    [
        (None, (4,), None),
        (3, (4,), 3),
        ("max", (10, 20), 1),
        ("auto", (10, 20), 5),
        ("auto", (1, 3), 1),
        (15, (10, 20), 15),
    ],
)
def test_words(wanted, heads, expected):
    assert slice_of(wanted, heads) == expected


@pytest.mark.parametrize("wanted", [0, -1, 4, True, 1.5, "half", ""])
def test_other_words(wanted):
    with pytest.raises(UsageError, match="attention_slice"):
        slice_of(wanted, (4, 2))


def test_nothing_slices_one_head():
    with pytest.raises(UsageError, match="no layer has more than one head"):
        slice_of("max", (1,))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan(family, request):
    plan = make_plan(request.getfixturevalue(f"{family}_checkpoint"), attention_slice="auto")
    found = {name: spec.attention_slice for name, spec in plan.bundle.components.items()}
    expected = 1 if family == "flux" else 2
    assert found == {name: None if name.startswith("text_encoder") else expected for name in found}
