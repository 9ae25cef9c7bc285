"""The segments of a graph beside the whole: the same nodes on the same values, and what they make.

That they compute the same is proved and not only seen, so it holds for networks that this machine
cannot run. Every value of a graph has one name and one node that makes it. So if each node of a
segment is the whole's of that name, reads constants that are the whole's, and reads nothing else
but what the whole is given or what nodes before it made, then by induction over the nodes every
value is the whole's of that name; and the whole's outputs are among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from eri_export.passes.segments import read_by
from eri_export.passes.values import name_of
from eri_export.recipes.base import Arrays
from eri_runtime.errors import ParityError
from eri_runtime.executors.base import Settings
from eri_runtime.executors.ort import CPU
from eri_runtime.executors.segmented import SegmentedExecutor
from eri_runtime.spec import ComponentSpec, SegmentSpec

FIX = "nothing was published"


@dataclasses.dataclass(frozen=True)
class Whole:
    """What a segment may hold: nodes by what they make, constants, versions of operators."""

    nodes: Mapping[str, bytes]
    constants: Mapping[str, object]
    opsets: Mapping[str, int]


def prove_segments(graph: Path, spec: ComponentSpec) -> None:
    """Raise `ParityError` unless the published segments of `graph`, if any, are that graph."""
    if not spec.segments:
        return
    model = ir.load(graph)
    whole = Whole(_nodes(model), _constants(model), dict(model.opset_imports))
    made = {name_of(value): value.dtype for value in model.graph.inputs}
    for segment in spec.segments:
        path = _beside(graph, segment)
        part = ir.load(path)
        _check_interface(path, part, segment, made)
        _check_nodes(path, part, whole)
        _check_types(path)
        made |= {name_of(value): value.dtype for value in part.graph.outputs}
    for output in model.graph.outputs:
        _expect(made.get(name_of(output)) == output.dtype, graph, "segments", name_of(output))


def run_segments(graph: Path, spec: ComponentSpec, inputs: Arrays) -> Arrays:
    """What the published segments of `graph` make, on ONNX Runtime's CPU."""
    paths = [_beside(graph, segment) for segment in spec.segments]
    with SegmentedExecutor(paths, spec, CPU.parts(spec, Settings())) as executor:
        return executor.run(inputs)


def _beside(graph: Path, segment: SegmentSpec) -> Path:
    return graph.with_name(segment.graph.rpartition("/")[2])


def _check_interface(
    path: Path, part: ir.Model, segment: SegmentSpec, made: Mapping[str, object]
) -> None:
    """Its inputs were made before, in the same types; its names are those of the manifest."""
    given, outputs = part.graph.inputs, part.graph.outputs
    weights = tuple(name for name, each in part.graph.initializers.items() if _is_external(each))
    named = (segment.inputs, segment.outputs, segment.weights)
    found = (tuple(map(name_of, given)), tuple(map(name_of, outputs)), weights)
    _expect(found == named, path, found, named)
    for value in given:
        known = made.get(name_of(value))
        _expect(
            known == value.dtype, path, f"{value.name} {value.dtype}", f"what was made, {known}"
        )


def _check_nodes(path: Path, part: ir.Model, whole: Whole) -> None:
    """Its nodes and constants are the whole's, and each node reads what is there."""
    constants = _constants(part)
    _expect(dict(part.opset_imports) == whole.opsets, path, part.opset_imports, whole.opsets)
    for name, constant in constants.items():
        _expect(
            constant == whole.constants.get(name), path, f"constant {name}", "that of the whole"
        )
    there = {*constants, *map(name_of, part.graph.inputs)}
    for node in part.graph:
        for name in read_by(node):
            _expect(name in there, path, f"{node.name}, which reads {name}", "what was made before")
        for output in node.outputs:
            same = whole.nodes.get(name_of(output)) == _signature(node)
            _expect(same, path, f"node {node.name}", "that of the whole")
        there |= {name_of(output) for output in node.outputs}
    for name in map(name_of, part.graph.outputs):
        _expect(name in there, path, f"no {name}", "every output it states")


def _check_types(path: Path) -> None:
    """The types it states are those that follow from its inputs, whatever engine reads them."""
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # onnx has several, none of them public
        raise ParityError(path, got=error, expected="types that agree", fix=FIX) from error


def _nodes(model: ir.Model) -> dict[str, bytes]:
    return {name_of(output): _signature(node) for node in model.graph for output in node.outputs}


def _signature(node: ir.Node) -> bytes:
    """All that a node is: its operator, attributes, and what it reads and makes by name."""
    proto = ir.to_proto(node)
    return bytes(proto.SerializeToString(deterministic=True))


def _constants(model: ir.Model) -> dict[str, object]:
    """Where the bytes of a weight lie, or those of a constant; with its type and shape."""
    return {name: _constant(value) for name, value in model.graph.initializers.items()}


def _constant(value: ir.Value) -> object:
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        where: object = (tensor.location, tensor.offset, tensor.length)
    else:
        where = None if tensor is None else tensor.tobytes()
    return value.dtype, None if value.shape is None else tuple(value.shape), where


def _is_external(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _expect(holds: bool, path: Path, got: object, expected: object) -> None:
    if not holds:
        raise ParityError(path, got=got, expected=expected, fix=FIX)
