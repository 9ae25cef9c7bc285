"""Checks that the segments of a graph compute the same as the whole graph, and runs them.

The check is a proof, so it also holds for networks that this machine cannot run. Every value of a
graph has one name and one node that computes it. Suppose each node of a segment is the whole
graph's node of the same name, and reads only constants of the whole graph, inputs of the whole
graph, and values that earlier nodes computed. Then, by induction over the nodes, every value equals
the whole graph's value of the same name, and the whole graph's outputs are among them.

The parts for step caching have a few nodes more: casts to float32 and back, and the residual.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from eri_export.graphs.load_graph import load_graph
from eri_export.graphs.passes.cpu import cpu_form
from eri_export.graphs.passes.first_block import TO_FLOAT32
from eri_export.graphs.passes.split_segments import read_by
from eri_export.graphs.passes.values import name_of
from eri_export.graphs.recipes.base import Arrays
from eri_export.graphs.step_graph import compose
from eri_runtime.bundle import (
    CACHED_HIDDEN,
    CACHED_REST,
    RESIDUAL,
    ComponentSpec,
    SegmentSpec,
)
from eri_runtime.errors import ParityError
from eri_runtime.executors import CPU, SegmentedExecutor, Settings

FIX = "nothing was published"


@dataclasses.dataclass(frozen=True)
class Whole:
    """The whole graph: nodes by the values they compute, constants, and operator versions."""

    nodes: Mapping[str, bytes]
    constants: Mapping[str, object]
    opsets: Mapping[str, int]


def check_segments(graph: Path, spec: ComponentSpec) -> None:
    """Raises `ParityError` unless the published segments of `graph` equal that graph.

    So must its parts for step caching. It may have neither.
    """
    for segments in filter(None, (spec.segments, spec.step_cache)):
        check_parts(graph, segments)


def check_parts(graph: Path, segments: Sequence[SegmentSpec]) -> None:
    """Raises `ParityError` unless these parts equal the whole `graph`, beside which they are."""
    model = ir.load(graph)
    whole = Whole(_nodes(model), _constants(model), dict(model.opset_imports))
    available = {name_of(value): value.dtype for value in model.graph.inputs}
    for path, segment in zip(part_paths(graph, segments), segments, strict=True):
        part = ir.load(path)
        _check_interface(path, part, segment, available)
        _check_nodes(path, part, whole)
        _check_types(path)
        available |= {name_of(value): value.dtype for value in part.graph.outputs}
    for output in model.graph.outputs:
        _expect(available.get(name_of(output)) == output.dtype, graph, "segments", name_of(output))


def check_step_graph(graph: Path, step: Path) -> None:
    """Raises `ParityError` unless `step` is `graph` with the sampler's nodes around it."""
    model = ir.load(graph)
    compose(model)
    _expect_same(step, model, f"{graph.name} in a step")


def check_cpu_form(graph: Path, form: Path) -> None:
    """Raises `ParityError` unless `form` is what the passes for the CPU make of `graph`."""
    _expect_same(form, cpu_form(load_graph(graph)), f"{graph.name} for a CPU")


def run_segments(graph: Path, spec: ComponentSpec, inputs: Arrays) -> Arrays:
    """Runs the published segments of `graph` in order, with ONNX Runtime on the CPU."""
    with SegmentedExecutor(
        part_paths(graph, spec.segments), spec, CPU.parts(spec, Settings())
    ) as executor:
        return executor.run(inputs)


def part_paths(graph: Path, segments: Sequence[SegmentSpec]) -> list[Path]:
    """Returns the files of segments, which lie beside `graph`."""
    return [graph.with_name(each.graph.rpartition("/")[2]) for each in segments]


def _check_interface(
    path: Path, part: ir.Model, segment: SegmentSpec, available: Mapping[str, object]
) -> None:
    """Checks that a segment's inputs are available in their types, and its names as stated."""
    inputs, outputs = part.graph.inputs, part.graph.outputs
    weights = tuple(name for name, each in part.graph.initializers.items() if _is_external(each))
    stated = (segment.inputs, segment.outputs, segment.weights)
    actual = (tuple(map(name_of, inputs)), tuple(map(name_of, outputs)), weights)
    _expect(actual == stated, path, actual, stated)
    for value in inputs:
        known = available.get(name_of(value))
        _expect(
            known == value.dtype, path, f"{value.name} {value.dtype}", f"what was made, {known}"
        )


def _check_nodes(path: Path, part: ir.Model, whole: Whole) -> None:
    """Checks that nodes and constants are the whole graph's, and that nodes read known values."""
    constants = _constants(part)
    _expect(dict(part.opset_imports) == whole.opsets, path, part.opset_imports, whole.opsets)
    for name, constant in constants.items():
        _expect(
            constant == whole.constants.get(name), path, f"constant {name}", "that of the whole"
        )
    known = {*constants, *map(name_of, part.graph.inputs)}
    for node in part.graph:
        for name in read_by(node):
            _expect(name in known, path, f"{node.name}, which reads {name}", "what was made before")
        for output in node.outputs:
            same = whole.nodes.get(name_of(output)) == _signature(node) or _is_added(node)
            _expect(same, path, f"node {node.name}", "that of the whole")
        known |= {name_of(output) for output in node.outputs}
    for name in map(name_of, part.graph.outputs):
        _expect(name in known, path, f"no {name}", "every output it states")


def _is_added(node: ir.Node) -> bool:
    """Returns whether step caching has added a node: it makes or reads what the runtime handles."""
    (output,) = node.outputs if len(node.outputs) == 1 else (None,)
    made = "" if output is None else name_of(output)
    own = made in (RESIDUAL, CACHED_HIDDEN, CACHED_REST) or made.endswith(TO_FLOAT32)
    returned = [*read_by(node)] == [CACHED_REST]
    return node.op_type in ("Cast", "Identity", "Sub") and (own or returned)


def _check_types(path: Path) -> None:
    """Checks that the types a segment states follow from its inputs, by ONNX's inference."""
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # of several types, none of them public
        raise ParityError(path, got=error, expected="types that agree", fix=FIX) from error


def _nodes(model: ir.Model) -> dict[str, bytes]:
    return {name_of(output): _signature(node) for node in model.graph for output in node.outputs}


def _interface(model: ir.Model) -> list[object]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(each.name, each.dtype, str(each.shape)) for each in values]


def _signature(node: ir.Node) -> bytes:
    """Returns a node's operator, attributes, inputs and outputs as bytes to compare."""
    proto = ir.to_proto(node)
    return bytes(proto.SerializeToString(deterministic=True))


def _constants(model: ir.Model) -> dict[str, object]:
    """Returns each constant's type and shape, with its bytes or the place of a weight's bytes."""
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


def _expect_same(published: Path, made: ir.Model, expected: str) -> None:
    model = ir.load(published)
    for read in (_nodes, _constants, _interface):
        _expect(read(model) == read(made), published, "another graph", expected)


def _expect(holds: bool, path: Path, got: object, expected: object) -> None:
    if not holds:
        raise ParityError(path, got=got, expected=expected, fix=FIX)
