"""The step graph: a row of a sampler's table for each image, composed around the traced denoiser.

    F_b = Σ_k mix[k, b] · net(c_in·x, t, cond)[index[k, b]]
    D   = c_skip·x + c_out·F
    m   = p·x + q·D
    x'  = A·x + Σ_j B_j·m_{−j} + Σ_j C_j·n_{−j}

Row r of the network's batch gets x and t of image owner[r]. Nothing else joins two images, so those
of one call may differ in sampler, step and number of conditions, and a NaN of one stays its own.
It adds plain ONNX operators in float32 and reads the denoiser's own weights file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from eri_export.graphs.passes.values import name_of
from eri_runtime.errors import ExportError
from eri_runtime.sampling import COLUMNS, MAX_V, MAX_W

PREFIX = "step."


class _Builder:
    """Makes nodes in order and names their outputs with a prefix that no other value has."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        return self._added(node)[0]

    def split(self, value: ir.Value, count: int, axis: int = 0) -> Sequence[ir.Value]:
        """Splits a value into parts of size 1 along an axis."""
        inputs = [value, self.integers(*(1,) * count)]
        return self._added(ir.node("Split", inputs, {"axis": axis}, num_outputs=count))

    def integers(self, *values: int) -> ir.Value:
        """Returns a constant (N,) int64; equal ones are one value."""
        name = PREFIX + "_".join(map(str, values))
        if name not in self.constants:
            tensor = ir.tensor(np.array(values, np.int64), name=name)
            self.constants[name] = ir.Value(
                name=name,
                shape=ir.Shape([len(values)]),
                type=ir.TensorType(ir.DataType.INT64),
                const_value=tensor,
            )
        return self.constants[name]

    def _added(self, node: ir.Node) -> Sequence[ir.Value]:
        for i, output in enumerate(node.outputs):
            output.name = f"{PREFIX}{len(self.nodes)}.{i}"
        node.name = f"{PREFIX}{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs


def compose(model: ir.Model) -> None:
    """Turns the denoiser `model` into its step graph, in place.

    Inputs: `x` (images, …), `history` (W, images, …) and `noise` (V, images, …), newest first,
    `row` (images, 13), the table's `COLUMNS`, `mix` (conditions, images), `owner` (batch,) int64,
    the image of each row of the batch, `index` (conditions, images) int64, the rows that each image
    mixes, and the denoiser's inputs except `sample` and `timestep`. Outputs: `x_next`,
    `history_next`, `denoised` (images, …), and `magnitude` (images,), the sum of an image's
    |x_next|, finite if all of it is.

    Raises `ExportError` if `model` is no denoiser.
    """
    graph = model.graph
    sample, timestep, predicted = _ends(graph)
    shape: Sequence[Any] = tuple(sample.shape or ())
    batch, *rest = shape
    conditions = [each for each in graph.inputs if each not in (sample, timestep)]
    inputs = _inputs(rest, batch)
    shapes = _output_shapes(inputs)
    _free_names(model, {*inputs, *shapes})

    build = _Builder()
    columns = _columns(build, inputs["row"], len(rest))
    replacements = _network_inputs(build, columns, inputs["x"], inputs["owner"], len(rest))
    for old, new in zip((sample, timestep), replacements, strict=True):
        ir.convenience.replace_all_uses_with(old, new)
    graph.insert_before(graph[0], build.nodes)

    before = len(build.nodes)
    outputs = _solver(build, columns, inputs, predicted, len(rest))
    graph.extend(build.nodes[before:])
    for constant in build.constants.values():
        graph.initializers.add(constant)
    graph.inputs[:] = [*inputs.values(), *conditions]
    graph.outputs[:] = [
        _named(outputs[name], name, ir.Shape(shape or ())) for name, shape in shapes.items()
    ]


def _ends(graph: ir.Graph) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Returns `sample`, `timestep` and the output of a denoiser, or raises `ExportError`."""
    named = {each.name: each for each in graph.inputs}
    shape = named["sample"].shape if "sample" in named else None
    if not shape or "timestep" not in named or len(graph.outputs) != 1:
        got = f"the inputs {', '.join(map(str, named))} and {len(graph.outputs)} outputs"
        expected = "a denoiser: sample of a known shape and timestep, and one output"
        raise ExportError(graph.name or "the graph", got=got, expected=expected)
    return named["sample"], named["timestep"], graph.outputs[0]


def _inputs(rest: Sequence[Any], batch: Any) -> dict[str, ir.Value]:
    """Returns the step graph's own inputs, in order, for latents (images, *rest)."""
    integers = ir.DataType.INT64
    made = (
        _input("x", "images", *rest),
        _input("history", MAX_W, "images", *rest),
        _input("noise", MAX_V, "images", *rest),
        _input("row", "images", len(_names())),
        _input("mix", "conditions", "images"),
        _input("owner", batch, dtype=integers),
        _input("index", "conditions", "images", dtype=integers),
    )
    return {name_of(value): value for value in made}


def _output_shapes(inputs: Mapping[str, ir.Value]) -> dict[str, ir.Shape | None]:
    """Returns the shape of each output by name, in order."""
    x, history = inputs["x"].shape, inputs["history"].shape
    magnitude = ir.Shape(["images"])
    return {"x_next": x, "history_next": history, "denoised": x, "magnitude": magnitude}


def _names() -> list[str]:
    """Returns the name of each number in a row: the column `B` is B0, B1, …."""
    return [
        name if count == 1 else f"{name}{j}"
        for name, count in COLUMNS.items()
        for j in range(count)
    ]


def _columns(build: _Builder, row: ir.Value, rank: int) -> dict[str, ir.Value]:
    """Returns each column of `row` by name, (images, 1, …), one axis per axis of the latents."""
    wide = build("Unsqueeze", row, build.integers(*range(2, rank + 1))) if rank > 1 else row
    return dict(zip(_names(), build.split(wide, len(_names()), axis=1), strict=True))


def _network_inputs(
    build: _Builder, columns: Mapping[str, ir.Value], x: ir.Value, owner: ir.Value, rank: int
) -> tuple[ir.Value, ir.Value]:
    """Returns c_in·x (batch, …) and the timestep t (batch,): those of each row's image."""
    scaled = build("Mul", columns["c_in"], x)
    t = build("Squeeze", columns["t"], build.integers(*range(1, rank + 1)))
    return build("Gather", scaled, owner, axis=0), build("Gather", t, owner, axis=0)


def _solver(
    build: _Builder,
    columns: Mapping[str, ir.Value],
    inputs: Mapping[str, ir.Value],
    predicted: ir.Value,
    rank: int,
) -> dict[str, ir.Value]:
    """Computes the state after the row from the predictions (batch, …).

    The operations are in the order of the NumPy loop.
    """

    def plus(total: ir.Value, column: str, value: ir.Value) -> ir.Value:
        return build("Add", total, build("Mul", columns[column], value))

    x = inputs["x"]
    weights = build("Unsqueeze", inputs["mix"], build.integers(*range(2, rank + 2)))
    weighted = build("Mul", weights, build("Gather", predicted, inputs["index"], axis=0))
    mixed = build("ReduceSum", weighted, build.integers(0), keepdims=0)
    denoised = plus(build("Mul", columns["c_skip"], x), "c_out", mixed)
    memory = plus(build("Mul", columns["p"], x), "q", denoised)
    newest = build("Unsqueeze", memory, build.integers(0))
    older = build.split(inputs["history"], MAX_W)[:-1]
    x_next = plus(build("Mul", columns["A"], x), "B0", memory)
    for j, value in enumerate(older, start=1):
        x_next = plus(x_next, f"B{j}", value)
    for j, value in enumerate(build.split(inputs["noise"], MAX_V)):
        x_next = plus(x_next, f"C{j}", value)
    x_next = build("Squeeze", x_next, build.integers(0))
    axes = build.integers(*range(1, rank + 1))
    return {
        "x_next": x_next,
        "history_next": build("Concat", newest, *older, axis=0),
        "denoised": denoised,
        "magnitude": build("ReduceSum", build("Abs", x_next), axes, keepdims=0),
    }


def _input(name: str, *shape: Any, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _named(value: ir.Value, name: str, shape: ir.Shape) -> ir.Value:
    value.name, value.shape, value.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
    return value


def _free_names(model: ir.Model, names: set[str]) -> None:
    """Renames the values that have a name of the interface."""
    for value in _values(model.graph):
        if value.name in names:
            value.name = f"{PREFIX}{name_of(value)}"


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from node.outputs
