"""Cuts a denoiser's graph in three for first-block caching, over one weights file.

    sample → h → first block → h' → the other blocks → h'' → last layers → output

The runtime compares the residual h' − h of the first block with that of the last step that ran
every block, and may skip the other blocks (`eri_runtime.loop.step_cache`). In a transformer h are
the hidden states of the picture's tokens. In a UNet h is the output of `conv_in`, the first block
is the first down block without its downsampler, and the last layers begin at the last up block,
whose skip connections come from the first part (DeepCache, arXiv:2312.00858): only the features
that enter it are remembered. All nodes, names and types stay the same; what the runtime reads is
float32.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from eri_export.graphs.passes.cpu import cpu_form, has_cpu_form
from eri_export.graphs.passes.split_segments import (
    Uses,
    part_of,
    read_by,
    segment_spec,
    uses_of,
)
from eri_export.graphs.passes.values import dtype_of, name_of
from eri_runtime.bundle import CACHED_HIDDEN, CACHED_REST, RESIDUAL, ComponentSpec
from eri_runtime.executors.ort.provider import form_of

NAMES = ("first", "rest", "last")  # of the parts; their files are cache-NAME.onnx
BLOCKS = ("transformer_blocks", "single_transformer_blocks")
QUERY, PROJECTION = "attn.to_q.weight", "proj_out.weight"
CONV_IN, DOWNSAMPLER = "conv_in.weight", "down_blocks.0.downsamplers.0.conv.weight"
TO_FLOAT32 = ".float32"  # ends the name of a value as float32
UPSAMPLER = re.compile(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.weight")

log = logging.getLogger(__name__)


class Cut(NamedTuple):
    """Where a denoiser is cut.

    Attributes:
        before: Input h of the first block.
        after: Its output h'.
        end: What the last layers read of the other blocks, h''.
        adds: Whether h'' − h' is remembered instead of h'': they have the same shape.
    """

    before: ir.Value
    after: ir.Value
    end: ir.Value
    adds: bool


def write_cache_parts(model: ir.Model, graph: Path, spec: ComponentSpec) -> ComponentSpec:
    """Saves the three parts of `model`, whose weights are bound, and returns `spec` with them.

    They and their forms for the CPU are written next to `graph`. A network without two blocks has
    no parts: `spec` is returned.
    """
    cut = find_cut(model)
    if cut is None:
        log.info("%s: no second block, so its steps cannot be cached", spec.graph)
        return spec
    folder, segments = spec.graph.rpartition("/")[0], []
    for name, part in zip(NAMES, parts(model, cut), strict=True):
        file = f"cache-{name}.onnx"
        ir.save(part, graph.with_name(file))
        if has_cpu_form(spec):
            ir.save(cpu_form(part), form_of(graph.with_name(file), "cpu"))
        segments.append(segment_spec(part, f"{folder}/{file}"))
    return dataclasses.replace(spec, step_cache=tuple(segments))


def find_cut(model: ir.Model) -> Cut | None:
    """Returns where to cut a denoiser, by its weights' names; None if it has no two blocks."""
    weights = model.graph.initializers
    upsamplers = {int(found[1]): name for name in weights if (found := UPSAMPLER.fullmatch(name))}
    if upsamplers and CONV_IN in weights and DOWNSAMPLER in weights:
        whole = _reader(weights[DOWNSAMPLER]).inputs[0]
        names = CONV_IN, upsamplers[max(upsamplers)]
        start, features = (_reader(weights[name]).outputs[0] for name in names)
        return None if whole is None else Cut(start, whole, features, adds=False)
    queries = [name for name in _queries() if name in weights]
    if len(queries) < 2 or PROJECTION not in weights:
        return None
    reads = [_normalised(weights[name]) for name in (*queries[:2], PROJECTION)]
    if None in reads:
        return None
    before, after, end = filter(None, reads)
    return Cut(before, after, end, adds=True)


def parts(model: ir.Model, cut: Cut) -> Iterator[ir.Model]:
    """Yields the first block, the other blocks and the last layers as models."""
    uses = uses_of(model)
    end = name_of(cut.end)
    first = _needed(uses, [name_of(cut.before), name_of(cut.after)], set())
    made = {name_of(output) for node in first for output in node.outputs if output.name}
    # each part computes its sizes itself: as inputs they would leave its shapes unknown
    known = {name for name in made if uses.table[name].dtype != ir.DataType.INT64}
    rest = _needed(uses, [end], known)
    outputs = [name_of(output) for output in model.graph.outputs]
    last = _needed(uses, outputs, known | {end})
    read = {name for node in (*rest, *last) for name in read_by(node)}
    crossing = [name for name in known if name in read and name != end]
    sizes = uses.table[name_of(cut.after)].shape
    shape = None if sizes is None else ir.Shape(list(sizes))
    yield _with_residual(part_of(uses, first, sorted(crossing)), cut, shape)
    yield _with_float32(part_of(uses, rest, [end]))
    yield _from_float32(part_of(uses, last, outputs), end)


def _queries() -> Iterator[str]:
    """Yields names of query weights, in the order of the blocks that may be the first two."""
    return (f"{kind}.{index}.{QUERY}" for kind in BLOCKS for index in range(2))


def _reader(weight: ir.Value) -> ir.Node:
    """Returns the node that multiplies by a weight."""
    node: ir.Node = next(iter(weight.uses())).node
    return _reader(node.outputs[0]) if node.op_type == "Transpose" else node


def _normalised(weight: ir.Value) -> ir.Value | None:
    """Returns the hidden states that are normalised, modulated and then multiplied by a weight.

    A single-stream block reads the text's tokens and then the picture's, of which it returns those
    of the picture. None if there is no LayerNormalization.
    """
    value = _reader(weight).inputs[0]
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0]
        if node.op_type == "LayerNormalization":
            source = None if value is None else value.producer()
            joined = source is not None and source.op_type == "Concat"
            return source.inputs[-1] if joined and source is not None else value
    return None


def _needed(uses: Uses, results: Iterable[str], known: set[str]) -> list[ir.Node]:
    """Returns the nodes that lead to `results` from the inputs and the values `known`, in order."""
    makers = {output.name: node for node in uses.nodes for output in node.outputs if output.name}
    waiting, found = list(results), set[ir.Node]()
    while waiting:
        name = waiting.pop()
        if name in makers and name not in known and makers[name] not in found:
            found.add(makers[name])
            waiting += read_by(makers[name])
    return [node for node in uses.nodes if node in found]


def _with_residual(part: ir.Model, cut: Cut, shape: ir.Shape | None) -> ir.Model:
    """Adds the residual of the first block to its outputs, and h' if it `adds`; both of `shape`."""
    made = {output.name: output for node in part.graph for output in node.outputs}
    after = _to_float32(part, made[cut.after.name])
    residual = ir.node("Sub", [after, _to_float32(part, made[cut.before.name])])
    part.graph.append(residual)
    _output(part, residual.outputs[0], RESIDUAL, shape)
    if cut.adds:
        hidden = ir.node("Identity", [after])
        part.graph.append(hidden)
        _output(part, hidden.outputs[0], CACHED_HIDDEN, shape)
    return part


def _with_float32(part: ir.Model) -> ir.Model:
    """Makes the only output float32, under the runtime's name."""
    (value,) = part.graph.outputs
    part.graph.outputs.clear()
    _output(part, _to_float32(part, value), CACHED_REST, value.shape)
    return part


def _from_float32(part: ir.Model, name: str) -> ir.Model:
    """Makes the input `name` float32, under the runtime's name."""
    (old,) = (value for value in part.graph.inputs if value.name == name)
    new = ir.Value(name=CACHED_REST, shape=old.shape, type=ir.TensorType(ir.DataType.FLOAT))
    cast = ir.node("Cast", [new], {"to": dtype_of(old)})
    cast.outputs[0].name = name
    ir.convenience.replace_all_uses_with(old, cast.outputs[0])
    part.graph.insert_before(part.graph[0], cast)
    part.graph.inputs[:] = [new if value is old else value for value in part.graph.inputs]
    return part


def _to_float32(part: ir.Model, value: ir.Value) -> ir.Value:
    """Returns a value as float32."""
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    cast.outputs[0].name = name_of(value) + TO_FLOAT32
    part.graph.append(cast)
    return cast.outputs[0]


def _output(part: ir.Model, value: ir.Value, name: str, shape: ir.Shape | None) -> None:
    """Makes a value an output with a name."""
    value.name, value.shape, value.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
    part.graph.outputs.append(value)
