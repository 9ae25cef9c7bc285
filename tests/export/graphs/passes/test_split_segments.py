"""A graph in parts: what is in each, where it is cut, and that a wrong one is never published."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import eri_runtime as eri
from eri_export import export
from eri_export.gate.segments import check_segments
from eri_export.graphs.passes.split_segments import LEAST, PARTS, cut, write_segments
from eri_export.publishing import export_bundle as exporter
from eri_runtime.bundle import manifest
from eri_runtime.errors import ExportError, ParityError

FAMILIES = ["sdxl", "sd35", "flux"]
BYTES = 4 * 3 * 3  # of a weight of `chain`


@pytest.fixture(params=FAMILIES)
def component(request):
    """The bundle and its denoiser."""
    bundle = eri.read_bundle(request.getfixturevalue(f"{request.param}_bundle"))
    return bundle, bundle.components["denoiser"]


def external(model):
    """Where the bytes of every weight lie."""
    return {
        name: (value.const_value.location, value.const_value.offset, value.const_value.length)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }


def signatures(model):
    return {ir.to_proto(node).SerializeToString(deterministic=True) for node in model.graph}


def test_together_they_are_the_whole(component):
    bundle, spec = component
    whole, nodes, weights = ir.load(bundle.path(spec.graph)), set(), {}
    for segment in spec.segments:
        path = bundle.path(segment.graph)
        part = ir.load(path)
        onnx.checker.check_model(str(path), full_check=True)
        nodes |= signatures(part)
        weights |= external(part)
        assert tuple(external(part)) == segment.weights
        assert tuple(value.name for value in part.graph.inputs) == segment.inputs
        assert tuple(value.name for value in part.graph.outputs) == segment.outputs
        assert part.opset_imports == whole.opset_imports
    assert nodes == signatures(whole)
    assert weights == external(whole) != {}
    assert {location for location, *_ in weights.values()} == {"weights.safetensors"}


def test_they_are_about_as_large(component):
    bundle, spec = component
    nodes = len(ir.load(bundle.path(spec.graph)).graph)
    assert 2 <= len(spec.segments) <= min(PARTS, nodes // LEAST + 1)
    parts = [external(ir.load(bundle.path(each.graph))) for each in spec.segments]
    sizes = [sum(length for *_, length in part.values()) for part in parts]
    largest = max(length for part in parts for *_, length in part.values())
    assert max(sizes) <= 1.25 * sum(sizes) / len(sizes) + largest
    graphs = sum(bundle.files[each.graph].size for each in spec.segments)
    assert graphs < 2 * bundle.files[spec.graph].size


def test_the_manifest_says_so(component):
    bundle, spec = component
    read = manifest.read(bundle.root).components["denoiser"]
    assert read.segments == spec.segments != ()
    assert {each.graph for each in spec.segments} < bundle.files.keys()
    others = {name: each.segments for name, each in bundle.components.items() if each != spec}
    assert set(others.values()) == {()}


def chain(length, narrow=False):
    """y = x·W0ᵀ·W1ᵀ…, with a second use of W0 at the end, and a shape from the beginning there."""
    kind = "float16" if narrow else "float"
    given = f"{kind}[b, 3] h0" if not narrow else "float[b, 3] x"
    lines = ["h0 = Cast <to = 10> (x)"] if narrow else []
    lines += ["shape = Shape (h0)"]
    for i in range(length):
        lines += [f"t{i} = Transpose <perm = [1, 0]> (W{i})", f"h{i + 1} = MatMul (h{i}, t{i})"]
    lines += [f"again = MatMul (h{length}, t0)", "flat = Reshape (again, minus)"]
    lines += ["y = Reshape (flat, shape)"]
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        chain ({given}, {", ".join(f"{kind}[3, 3] W{i}" for i in range(length))}, int64[1] minus)
            => ({kind}[b, 3] y)
        {{ {chr(10).join(lines)} }}
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    for i, value in enumerate(model.graph.inputs[1:]):
        model.graph.inputs.remove(value)
        model.graph.initializers.add(value)
        value.const_value = ir.ExternalTensor(
            "weights.bin", BYTES * i, BYTES, value.dtype, shape=value.shape, name=value.name
        )
    model.graph.initializers["minus"].const_value = ir.tensor(np.array([-1], np.int64))
    return model


def weights_of(part):
    return [name for name in part.graph.initializers if name != "minus"]


def test_a_weight_that_two_parts_read_is_in_both():
    parts = list(cut(chain(3 * LEAST), 3))
    assert len(parts) == 3
    assert "W0" in weights_of(parts[0])
    assert "W0" in weights_of(parts[2])
    assert "W0" not in weights_of(parts[1])
    assert all("minus" not in part.graph.initializers for part in parts[:2])
    assert [len(weights_of(part)) for part in parts] == [LEAST, LEAST, LEAST + 1]
    # what crosses: activations and the shape, and nothing that is made of weights alone
    (first,) = (value.name for value in parts[1].graph.inputs if value.name != "shape")
    assert first == f"h{LEAST}"
    assert {value.name for value in parts[0].graph.outputs} == {first, "shape"}
    assert {value.name for value in parts[2].graph.inputs} == {f"h{2 * LEAST}", "shape"}


@pytest.mark.parametrize("nodes", [1, LEAST - 3])
def test_few_nodes_are_one_part(nodes):
    model = chain(nodes)
    (part,) = cut(model)
    assert signatures(part) == signatures(model)


def test_where_less_crosses():
    """A residual stream crosses anywhere; a second value does not, for a cut beside it."""
    model = chain(2 * LEAST)
    graph, middle = model.graph, LEAST
    nodes = {node.outputs[0].name: node for node in graph}
    early, late = nodes[f"h{middle - 2}"].outputs[0], nodes[f"h{middle + 3}"]
    extra = ir.node("Unsqueeze", [early, graph.initializers["minus"]])
    extra.outputs[0].name = extra.name = "extra"
    squeeze = ir.node("Squeeze", [extra.outputs[0], graph.initializers["minus"]])
    squeeze.outputs[0].name = squeeze.name = "squeezed"
    graph.insert_after(nodes[f"h{middle - 2}"], [extra])
    graph.insert_before(late, [squeeze])
    add = ir.node("Add", [late.inputs[0], squeeze.outputs[0]])
    add.outputs[0].name = add.name = "added"
    graph.insert_before(late, [add])
    late.replace_input_with(0, add.outputs[0])
    first, _ = cut(model, 2)
    assert "extra" not in {value.name for value in first.graph.outputs}


def test_a_cast_of_an_input_waits_for_its_reader():
    """As the LoRAs of a 16-bit graph: in the first part it would be alive in all of them."""
    model = chain(2 * LEAST, narrow=True)
    lora = ir.Value(name="lora", shape=ir.Shape(["b", 3]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(lora)
    cast = ir.node("Cast", [lora], {"to": ir.DataType.FLOAT16})
    cast.outputs[0].name = cast.name = "cast"
    model.graph.insert_before(model.graph[0], cast)
    last = next(node for node in model.graph if node.outputs[0].name == "again")
    add = ir.node("Add", [last.inputs[0], cast.outputs[0]])
    add.outputs[0].name = add.name = "added"
    model.graph.insert_before(last, add)
    last.replace_input_with(0, add.outputs[0])
    first, second = cut(model, 2)
    assert "lora" in {value.name for value in second.graph.inputs}
    assert "lora" not in {value.name for value in first.graph.inputs}
    assert {value.dtype for value in first.graph.outputs} == {
        ir.DataType.FLOAT16,
        ir.DataType.INT64,
    }


def test_a_graph_within_a_node():
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        choice (bool c, float[2] x) => (float[2] y)
        { y = If (c) <then_branch = one () => (float[2] a) { a = Identity (x) },
                      else_branch = two () => (float[2] b) { b = Neg (x) }> }
    """
    with pytest.raises(ExportError, match="If"):
        list(cut(ir.from_proto(onnx.parser.parse_model(text))))


# the gate


@pytest.fixture
def copied(sd35_bundle, tmp_path):
    """A denoiser's folder, to spoil, and its description."""
    bundle = eri.read_bundle(sd35_bundle)
    spec = bundle.components["denoiser"]
    folder = bundle.path(spec.graph).parent
    shutil.copytree(folder, tmp_path / "denoiser")
    return tmp_path / "denoiser" / "model.onnx", spec


def spoil(path, change):
    model = ir.load(path)
    change(model.graph)
    ir.save(model, path)


def another_operator(graph):
    node = next(node for node in graph if node.op_type == "Add")
    node.op_type = "Mul"


def another_operand(graph):
    node = next(node for node in graph if node.op_type == "MatMul")
    node.replace_input_with(0, graph.inputs[0])


def another_attribute(graph):
    node = next(node for node in graph if node.op_type == "Concat")
    node.attributes["axis"] = ir.AttrInt64("axis", node.attributes["axis"].as_int() + 1)


def another_weight(graph):
    one = next(
        each
        for each in graph.initializers.values()
        if isinstance(each.const_value, ir.ExternalTensor)
    )
    old = one.const_value
    one.const_value = ir.ExternalTensor(
        old.location, old.offset + 256, old.length, old.dtype, shape=old.shape, name=old.name
    )


def another_constant(graph):
    one = next(
        each
        for each in graph.initializers.values()
        if not isinstance(each.const_value, ir.ExternalTensor)
    )
    one.const_value = ir.tensor(one.const_value.numpy() + 1, name=one.name)


def another_type(graph):
    value = next(each for each in graph.inputs if each.dtype == ir.DataType.FLOAT)
    value.type = ir.TensorType(ir.DataType.FLOAT16)


def another_output(graph):
    graph.outputs[0] = next(node for node in graph if node.outputs[0] not in graph.outputs).outputs[
        0
    ]


@pytest.mark.parametrize(
    "change",
    [
        another_operator,
        another_operand,
        another_attribute,
        another_weight,
        another_constant,
        another_type,
        another_output,
    ],
)
def test_the_proof_sees_it(copied, change):
    graph, spec = copied
    check_segments(graph, spec)
    spoil(graph.with_name("segment-01.onnx"), change)
    with pytest.raises(ParityError, match=r"segment-01\.onnx"):
        check_segments(graph, spec)


@pytest.mark.parametrize("order", [slice(None, None, -1), slice(None, -1), slice(1, None)])
def test_the_proof_sees_parts_that_are_not_all_or_in_order(copied, order):
    graph, spec = copied
    with pytest.raises(ParityError):
        check_segments(graph, dataclasses.replace(spec, segments=spec.segments[order]))


def test_a_wrong_part_is_not_published(sd35_checkpoint, tmp_path, monkeypatch):
    def wrong(model, graph, spec):
        spec = write_segments(model, graph, spec)
        spoil(graph.with_name("segment-01.onnx"), another_operator)
        return spec

    monkeypatch.setattr(exporter, "write_segments", wrong)
    with pytest.raises(ParityError, match=r"segment-01\.onnx"):
        export(sd35_checkpoint, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_parts_in_a_row_are_the_chain(tmp_path):
    rng, model = np.random.default_rng(0), chain(3 * LEAST)
    count = len(weights_of(model))
    values = np.stack([np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(count)])
    values.astype("<f4").tofile(tmp_path / "weights.bin")
    live = {"h0": rng.standard_normal((4, 3), np.float32)}
    expected = live["h0"].astype(float)
    for each in [*values, values[0]]:
        expected = expected @ each.astype("<f4").T
    for part in cut(model, 3):
        ir.save(part, tmp_path / "part.onnx")
        session = ort.InferenceSession(str(tmp_path / "part.onnx"))
        names = [each.name for each in session.get_outputs()]
        given = {each.name: live[each.name] for each in session.get_inputs()}
        live |= dict(zip(names, session.run(names, given), strict=True))
    np.testing.assert_allclose(live["y"], expected, rtol=1e-5, atol=1e-5)
