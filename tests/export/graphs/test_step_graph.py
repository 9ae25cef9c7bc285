"""The composed graph: what it adds to the denoiser, and what it shares with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import eri_runtime as eri
from eri_export import export
from eri_export.graphs.step_graph import compose
from eri_export.publishing import export_bundle as exporter
from eri_runtime.errors import ExportError, ParityError
from eri_runtime.sampling.table import COLUMNS, MAX_V, MAX_W

FAMILIES = ["sdxl", "sd35", "flux"]
ADDED = 45  # nodes, whatever the network


@pytest.fixture(params=FAMILIES)
def graphs(request):
    """The bare denoiser and its step graph, and the bundle."""
    bundle = eri.read_bundle(request.getfixturevalue(f"{request.param}_bundle"))
    spec = bundle.components["denoiser"]
    return ir.load(bundle.path(spec.graph)), ir.load(bundle.path(spec.step)), bundle


def external(model):
    """Where the bytes of every weight lie."""
    return {
        name: (value.const_value.location, value.const_value.offset, value.const_value.length)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }


def test_the_weights_are_the_denoisers(graphs):
    bare, step, bundle = graphs
    assert external(step) == external(bare) != {}
    assert {location for location, *_ in external(step).values()} == {"weights.safetensors"}
    spec = bundle.components["denoiser"]
    sizes = [bundle.files[name].size for name in (spec.graph, spec.step)]
    assert 0 < sizes[1] - sizes[0] < 10_000


def test_what_is_added_is_small_and_bare(graphs):
    bare, step, _ = graphs
    nodes = [len(list(model.graph.all_nodes())) for model in (bare, step)]
    assert 0 < nodes[1] - nodes[0] < ADDED
    constants = [name for name in step.graph.initializers if name not in bare.graph.initializers]
    assert all(step.graph.initializers[name].const_value.nbytes <= 8 * 13 for name in constants)
    assert step.opset_imports == bare.opset_imports
    assert not any(node.metadata_props or node.doc_string for node in step.graph.all_nodes())
    names = [output.name for node in step.graph for output in node.outputs]
    assert len(set(names)) == len(names)


def test_the_interface(graphs):
    bare, step, bundle = graphs
    shapes = {
        value.name: [size if isinstance(size, int) else size.value for size in value.shape]
        for value in (*step.graph.inputs, *step.graph.outputs)
    }
    x = shapes["x"]
    sample = next(each for each in bundle.components["denoiser"].inputs if each.name == "sample")
    assert x == ["images", *sample.shape[1:]]
    assert shapes["history"] == shapes["history_next"] == [MAX_W, *x]
    assert shapes["noise"] == [MAX_V, *x]
    assert shapes["row"] == ["images", sum(COLUMNS.values())] == ["images", 13]
    assert shapes["mix"] == shapes["index"] == ["conditions", "images"]
    assert shapes["owner"] == [sample.shape[0]]
    assert shapes["x_next"] == shapes["denoised"] == x
    assert shapes["magnitude"] == ["images"]
    own = {value.name for value in bare.graph.inputs} - {"sample", "timestep"}
    given = ["x", "history", "noise", "row", "mix", "owner", "index"]
    assert [value.name for value in step.graph.inputs][7:] == [
        value.name for value in bare.graph.inputs if value.name in own
    ]
    assert [value.name for value in step.graph.inputs][:7] == given


def test_the_graph_is_valid(graphs):
    _, _, bundle = graphs
    path = bundle.path(bundle.components["denoiser"].step)
    onnx.checker.check_model(str(path), full_check=True)


def toy():
    """output = sample + timestep·bias, whose inner names are those of a step graph's interface."""
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        toy (float[batch, 2] sample, float[batch] timestep, float[batch, 2] bias)
            => (float[batch, 2] output)
        {
            one = Constant <value_ints = [1]> ()
            mix = Unsqueeze (timestep, one)
            owner = Mul (mix, bias)
            magnitude = Identity (owner)
            output = Add (sample, magnitude)
        }
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def test_inner_names_give_way():
    model = toy()
    compose(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    rng = np.random.default_rng(0)
    x, history, noise, bias, row, mix = (
        rng.standard_normal(shape, np.float32)
        for shape in ((3, 2), (4, 3, 2), (2, 3, 2), (5, 2), (3, 13), (2, 3))
    )
    owner, index = np.array([2, 0, 1, 2, 0]), np.array([[1, 2, 0], [4, 2, 3]])
    given = {"x": x, "history": history, "noise": noise, "row": row, "mix": mix, "bias": bias}
    given |= {"owner": owner, "index": index}
    made = dict(
        zip([each.name for each in session.get_outputs()], session.run(None, given), strict=True)
    )
    t, c_in, c_skip, c_out, p, q, A, *weights = row.T[..., None]
    predicted = (c_in * x)[owner] + t[owner] * bias
    denoised = c_skip * x + c_out * (predicted[index] * mix[..., None]).sum(0)
    pushed = np.stack([p * x + q * denoised, *history[:3]])
    x_next = A * x + (np.stack(weights) * np.concatenate([pushed, noise])).sum(0)
    np.testing.assert_allclose(made["denoised"], denoised, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made["history_next"], pushed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made["x_next"], x_next, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made["magnitude"], np.abs(x_next).sum(1), rtol=1e-5)


@pytest.mark.parametrize("names", [("sample", "time"), ("x", "timestep")])
def test_what_is_no_denoiser_is_refused(names):
    model = toy()
    for value, name in zip(model.graph.inputs, names, strict=False):
        value.name = name
    with pytest.raises(ExportError, match=f"got the inputs {', '.join(names)}, bias and 1 outputs"):
        compose(model)


def test_a_step_graph_that_is_wrong_is_not_published(sd35_checkpoint, tmp_path, monkeypatch):
    def wrong(model):
        compose(model)
        first, _, second, _ = model.graph.outputs
        first.name, second.name = second.name, first.name

    monkeypatch.setattr(exporter, "compose", wrong)
    with pytest.raises(ParityError, match=r"denoiser\.x_next"):
        export(sd35_checkpoint, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
