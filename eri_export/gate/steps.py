"""The step graph beside the row it stands for: NumPy's arithmetic over the bare graph's output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from eri_export.gate.loras import drawn_loras
from eri_export.recipes.base import Arrays, Recipe, Sizes
from eri_export.step import compose
from eri_runtime.executors.base import Settings
from eri_runtime.executors.ort import CPU
from eri_runtime.executors.stepper import Array, Row
from eri_runtime.spec import ComponentSpec, LoraSpec
from eri_runtime.table import COLUMNS, MAX_V, MAX_W

STEP = "step.onnx"
SEED = 0
# both graphs are run so: a weight that is packed is multiplied in another order, which 16 bits show
PAGED = Settings(low_memory=True)
T = 500.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The inputs of one row for a step graph, and the x that the row leads to."""

    sizes: Sizes
    x: Array
    history: Array
    noise: Array
    row: Array
    mix: Array
    conditions: Arrays
    expected: Array


def draw_probe(recipe: Recipe, run: Callable[[Arrays], Arrays], lora: LoraSpec | None) -> Probe:
    """A row of made-up numbers at the smallest sizes, two conditions to an image where they fit.

    `run` is the bare graph, and `lora` what it takes besides.
    """
    rows = recipe.ranges["batch"]
    batch = min(max(2, rows.min), rows.max)
    count = 2 if batch % 2 == 0 else 1
    sizes = {**{name: each.min for name, each in recipe.ranges.items()}, "batch": batch}
    inputs = {**recipe.sample(sizes, SEED), **drawn_loras(lora, 1, batch)}
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
    with np.errstate(all="ignore"):  # a network that overflows is the comparison's to report
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
    """The x that the step graph of `bare` makes of it; its weights stay in their file."""
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
    """The published step graph where `bare` is, or one composed around another `bare` graph."""
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
