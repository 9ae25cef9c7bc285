"""Compares a step graph with the same rows computed in NumPy from the bare graph's output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from eri_export.gate.lora_inputs import random_loras
from eri_export.graphs.recipes.base import Arrays, Recipe, Sizes
from eri_export.graphs.step_graph import compose
from eri_runtime.bundle import ComponentSpec, LoraSpec, ShapeRange
from eri_runtime.executors import CPU, Array, Layout, Row, Settings, even_layout
from eri_runtime.executors.step_form import StepForm
from eri_runtime.sampling import COLUMNS, MAX_V, MAX_W

STEP = "step.onnx"
SEED = 0
# for both graphs: a packed weight is multiplied in another order, which shows in 16 bits
PAGED = Settings(low_memory=True)
T = 500.0
ROWS = 3  # of the batch: two conditions of one image, and one of another


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The inputs of a step graph for one row per image."""

    sizes: Sizes
    x: Array
    history: Array
    noise: Array
    rows: Array
    mix: Array
    layout: Layout
    conditions: Arrays


def draw_probe(recipe: Recipe, lora: LoraSpec | None) -> Probe:
    """Draws rows at the smallest sizes: of two images, if the batch allows.

    `lora` describes the LoRA inputs of the graph.
    """
    sizes = probe_sizes(recipe.ranges)
    loras = random_loras(lora, 1, sizes["batch"])
    return make_probe({**recipe.sample(sizes, SEED), **loras}, sizes)


def probe_sizes(ranges: Mapping[str, ShapeRange]) -> dict[str, int]:
    """Returns the smallest sizes, with a batch of three rows or the nearest to it."""
    rows = ranges["batch"]
    smallest = {name: each.min for name, each in ranges.items()}
    return {**smallest, "batch": min(max(ROWS, rows.min), rows.max)}


def make_probe(inputs: Arrays, sizes: Sizes, *, even: bool = False) -> Probe:
    """Draws rows, mix and states for the inputs of a bare graph.

    Args:
        inputs: The bare graph's inputs.
        sizes: The size of each dynamic dimension in `inputs`.
        even: One row for all images, which have as many conditions, as older step graphs take.
    """
    conditions = dict(inputs)
    sample = np.asarray(conditions.pop("sample"), np.float32)
    batch = len(conditions.pop("timestep"))
    pairs = 2 if batch % 2 == 0 else 1
    layout = even_layout(pairs, batch // pairs) if even else uneven_layout(batch)
    count, images = layout.index.shape
    x = sample[:images]

    rng = np.random.default_rng(SEED)
    history, noise = (rng.standard_normal((n, *x.shape), np.float32) for n in (MAX_W, MAX_V))
    mix = rng.standard_normal((count, images), np.float32)
    mix[1:][layout.index[1:] == layout.index[:-1]] = 0  # an image with one condition
    rows = rng.standard_normal((images, sum(COLUMNS.values())), np.float32)
    rows[:, 0] = T - np.arange(images)
    return Probe(
        sizes=sizes,
        x=x,
        history=history,
        noise=noise,
        rows=np.broadcast_to(rows[0], rows.shape) if even else rows,
        mix=mix,
        layout=layout,
        conditions=conditions,
    )


def bare_inputs(probe: Probe) -> Arrays:
    """Returns the inputs of the bare graph: those that the step graph makes of its own."""
    c_in, owner = _columns(probe)[1], probe.layout.owner
    sample, timestep = (c_in * probe.x)[owner], probe.rows[owner, 0]
    return {"sample": sample, "timestep": timestep, **probe.conditions}


def step_inputs(probe: Probe) -> Arrays:
    """Returns the inputs of the step graph."""
    bound = StepForm(per_image=True).bound(probe.mix, probe.conditions, probe.layout)
    states = {"x": probe.x, "history": probe.history, "noise": probe.noise}
    return {**states, "row": probe.rows, **bound}


def expected_x(probe: Probe, output: Array) -> Array:
    """Returns the x after the rows by the formula, from the `output` of the bare graph."""
    _, _, c_skip, c_out, p, q, A, *weights = _columns(probe)
    x, predicted = probe.x, output[probe.layout.index]
    with np.errstate(all="ignore"):  # the comparison reports a network that overflows
        mixed = np.einsum("kb,kb...->b...", probe.mix, predicted)
        memory = p * x + q * (c_skip * x + c_out * mixed)
        states = [memory, *probe.history[:-1], *probe.noise]
        terms = [weight * state for weight, state in zip(weights, states, strict=True)]
        after: Array = (A * x + np.sum(terms, axis=0)).astype(np.float32)
    return after


def _columns(probe: Probe) -> list[Array]:
    """Returns the columns of the rows, each with the axes of the latents."""
    return [column.reshape(-1, *(1,) * (probe.x.ndim - 1)) for column in probe.rows.T]


def uneven_layout(rows: int) -> Layout:
    """Returns the layout of so many rows: two for each image, and one for the last if odd."""
    owner = np.arange(rows, dtype=np.int64) // 2
    first = 2 * np.arange(owner[-1] + 1, dtype=np.int64)
    index = np.stack([first, np.minimum(first + 1, rows - 1)])
    return Layout(owner=owner, index=index[: min(rows, 2)])


def run_probe(bare: Path, published: Path, spec: ComponentSpec, probe: Probe) -> Array:
    """Returns the x that the step graph of `bare` computes; the weights stay in their file."""
    with step_graph_of(bare, published) as graph:
        return run_step(graph, spec, probe)


def run_step(graph: Path, spec: ComponentSpec, probe: Probe) -> Array:
    """Returns the x that a step graph computes; the weights stay in their file."""
    with CPU.stepper(graph, spec, PAGED) as stepper:
        loop = stepper.loop(probe.x.shape, MAX_W)
        loop.bind("probe", probe.mix, probe.conditions, probe.layout)
        state = loop.begin(probe.x, tuple(probe.history))
        return next(loop.run([Row("probe", probe.rows, tuple(probe.noise))], state)).x


@contextlib.contextmanager
def step_graph_of(bare: Path, published: Path) -> Iterator[Path]:
    """Yields the published step graph if `bare` is published too, else composes one around it."""
    if bare == published.with_name("model.onnx"):
        yield published
        return
    path = bare.with_suffix(".step.onnx")
    model = ir.load(bare)
    compose(model)
    try:
        ir.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
