"""Compares a step graph with the same rows computed in NumPy from the bare graph's output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from eri_export.gate.lora_inputs import random_loras
from eri_export.graphs.recipes.base import Arrays, Recipe, Sizes
from eri_export.graphs.step_graph import compose
from eri_runtime.bundle import ComponentSpec, LoraSpec, ShapeRange
from eri_runtime.executors import CPU, Array, Layout, Row, Settings
from eri_runtime.sampling import COLUMNS, MAX_V, MAX_W

STEP = "step.onnx"
SEED = 0
# for both graphs: a packed weight is multiplied in another order, which shows in 16 bits
PAGED = Settings(low_memory=True)
T = 500.0
ROWS = 3  # of the batch: two conditions of one image, and one of another


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The inputs of a step graph for one row per image, and the x after those rows."""

    sizes: Sizes
    x: Array
    history: Array
    noise: Array
    rows: Array
    mix: Array
    layout: Layout
    conditions: Arrays
    expected: Array


def draw_probe(recipe: Recipe, run: Callable[[Arrays], Arrays], lora: LoraSpec | None) -> Probe:
    """Draws rows at the smallest sizes: of two images, if the batch allows.

    `run` runs the bare graph; `lora` describes its LoRA inputs.
    """
    batch = probe_batch(recipe.ranges["batch"])
    sizes = {**{name: each.min for name, each in recipe.ranges.items()}, "batch": batch}
    return make_probe(recipe.sample(sizes, SEED), run, random_loras(lora, 1, batch), sizes)


def probe_batch(rows: ShapeRange) -> int:
    """Returns the number of rows to compare with: three, or the nearest to it."""
    return min(max(ROWS, rows.min), rows.max)


def make_probe(
    inputs: Arrays, run: Callable[[Arrays], Arrays], loras: Arrays, sizes: Sizes
) -> Probe:
    """Draws rows, mix and states for the inputs of a bare graph, and computes the x after them.

    Args:
        inputs: The bare graph's inputs, without those of LoRAs.
        run: Runs the bare graph.
        loras: The inputs of LoRAs.
        sizes: The size of each dynamic dimension in `inputs`.
    """
    conditions = {**inputs, **loras}
    sample = np.asarray(conditions.pop("sample"), np.float32)
    layout = uneven_layout(len(conditions.pop("timestep")))
    count, images = layout.index.shape
    x = sample[:images]

    rng = np.random.default_rng(SEED)
    history, noise = (rng.standard_normal((n, *x.shape), np.float32) for n in (MAX_W, MAX_V))
    mix = rng.standard_normal((count, images), np.float32)
    mix[1:][layout.index[1:] == layout.index[:-1]] = 0  # an image with one condition
    rows = rng.standard_normal((images, sum(COLUMNS.values())), np.float32)
    rows[:, 0] = T - np.arange(images)
    _, c_in, *_ = _columns(rows, x.ndim)
    sample, t = (c_in * x)[layout.owner], rows[layout.owner, 0]
    predicted = run({"sample": sample, "timestep": t, **conditions})["output"]
    expected = _formula(rows, x, history, noise, mix, predicted[layout.index])
    return Probe(
        sizes=sizes,
        x=x,
        history=history,
        noise=noise,
        rows=rows,
        mix=mix,
        layout=layout,
        conditions=conditions,
        expected=expected,
    )


def uneven_layout(rows: int) -> Layout:
    """Returns the layout of so many rows: two for each image, and one for the last if odd."""
    owner = np.arange(rows, dtype=np.int64) // 2
    first = 2 * np.arange(owner[-1] + 1, dtype=np.int64)
    index = np.stack([first, np.minimum(first + 1, rows - 1)])
    return Layout(owner=owner, index=index[: min(rows, 2)])


def _columns(rows: Array, rank: int) -> list[Array]:
    """Returns each column of the rows, (B, 1, …) for latents of so many axes."""
    return [column.reshape(-1, *(1,) * (rank - 1)) for column in rows.T]


def _formula(
    rows: Array, x: Array, history: Array, noise: Array, mix: Array, predicted: Array
) -> Array:
    """Returns the x after a row of each image, from its predictions (K, B, …)."""
    _, _, c_skip, c_out, p, q, A, *weights = _columns(rows, x.ndim)
    with np.errstate(all="ignore"):  # the comparison reports a network that overflows
        mixed = np.einsum("kb,kb...->b...", mix, predicted)
        memory = p * x + q * (c_skip * x + c_out * mixed)
        states = [memory, *history[:-1], *noise]
        terms = [weight * state for weight, state in zip(weights, states, strict=True)]
        after: Array = (A * x + np.sum(terms, axis=0)).astype(np.float32)
    return after


def run_probe(bare: Path, published: Path, spec: ComponentSpec, probe: Probe) -> Array:
    """Returns the x that the step graph of `bare` computes; the weights stay in their file."""
    with (
        _step_graph(bare, published) as graph,
        CPU.stepper(graph, spec, PAGED) as stepper,
    ):
        loop = stepper.loop(probe.x.shape, MAX_W)
        loop.bind("probe", probe.mix, probe.conditions, probe.layout)
        state = loop.begin(probe.x, tuple(probe.history))
        return next(loop.run([Row("probe", probe.rows, tuple(probe.noise))], state)).x


@contextlib.contextmanager
def _step_graph(bare: Path, published: Path) -> Iterator[Path]:
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
