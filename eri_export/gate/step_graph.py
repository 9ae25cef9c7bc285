"""Compares a step graph with the same row computed in NumPy from the bare graph's output."""

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
from eri_runtime.bundle import ComponentSpec, LoraSpec
from eri_runtime.executors import CPU, Array, Row, Settings
from eri_runtime.sampling import COLUMNS, MAX_V, MAX_W

STEP = "step.onnx"
SEED = 0
# for both graphs: a packed weight is multiplied in another order, which shows in 16 bits
PAGED = Settings(low_memory=True)
T = 500.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The inputs of a step graph for one row, and the x after that row."""

    sizes: Sizes
    x: Array
    history: Array
    noise: Array
    row: Array
    mix: Array
    conditions: Arrays
    expected: Array


def draw_probe(recipe: Recipe, run: Callable[[Arrays], Arrays], lora: LoraSpec | None) -> Probe:
    """Draws a random row at the smallest sizes, with two conditions per image if the batch allows.

    `run` runs the bare graph; `lora` describes its LoRA inputs.
    """
    rows = recipe.ranges["batch"]
    batch = min(max(2, rows.min), rows.max)
    count = 2 if batch % 2 == 0 else 1
    sizes = {**{name: each.min for name, each in recipe.ranges.items()}, "batch": batch}
    inputs = {**recipe.sample(sizes, SEED), **random_loras(lora, 1, batch)}
    x = np.asarray(inputs.pop("sample"), np.float32)[: batch // count]
    del inputs["timestep"]

    rng = np.random.default_rng(SEED)
    history, noise = (rng.standard_normal((n, *x.shape), np.float32) for n in (MAX_W, MAX_V))
    mix = rng.standard_normal((count, len(x)), np.float32)
    row = rng.standard_normal(sum(COLUMNS.values()), np.float32)
    row[0] = T
    _, c_in, c_skip, c_out, p, q, A, *weights = row
    sample = np.concatenate([c_in * x] * count)
    predicted = run({"sample": sample, "timestep": np.full(batch, T, np.float32), **inputs})
    with np.errstate(all="ignore"):  # the comparison reports a network that overflows
        mixed = np.einsum("kb,kb...->b...", mix, predicted["output"].reshape(count, *x.shape))
        memory = p * x + q * (c_skip * x + c_out * mixed)
        states = np.concatenate([memory[None], history[:-1], noise])
        expected = A * x + np.tensordot(weights, states, 1)
    return Probe(
        sizes=sizes,
        x=x,
        history=history,
        noise=noise,
        row=row,
        mix=mix,
        conditions=inputs,
        expected=expected.astype(np.float32),
    )


def run_probe(bare: Path, published: Path, spec: ComponentSpec, probe: Probe) -> Array:
    """Returns the x that the step graph of `bare` computes; the weights stay in their file."""
    with (
        _step_graph(bare, published) as graph,
        CPU.stepper(graph, spec, PAGED) as stepper,
    ):
        loop = stepper.loop(probe.x.shape, MAX_W)
        loop.bind("probe", probe.mix, probe.conditions)
        state = loop.begin(probe.x, tuple(probe.history))
        return next(loop.run([Row("probe", probe.row, tuple(probe.noise))], state)).x


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
