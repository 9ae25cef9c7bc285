"""Compares every trajectory of a subject with its reference's, and components with components.

Each trajectory has its own seed, so what an earlier one left in a buffer is never right: one whose
steps are all kept to the end, three one after the other, and two in turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.gpu.settings import LIMITS, Model
from benchmarks.gpu.subjects import begin
from eri_runtime.bundle import ComponentSpec, Precision
from eri_runtime.errors import NonFiniteError
from eri_runtime.executors import Arrays

SEEDS = (0, 1, 2)
# range of the uniform distribution of inputs for which normal values make no sense
RANGES = {"timestep": (0, 1000), "guidance": (1, 8), "time_ids": (0, 1024), "image": (-1, 1)}
POSITIONS = ("img_ids", "txt_ids")

Latents = Sequence[np.ndarray]  # after each step
Expected = Mapping[int, Latents]  # by seed
Verdict = dict[str, Any]


def expected_of(pipe: eri.Pipeline, steps: int) -> Expected:
    """Returns the reference's latents after each step, by seed."""
    return {seed: [step.x for step in begin(pipe, steps, seed)] for seed in SEEDS}


def save(model: Model, expected: Expected) -> None:
    """Keeps the reference's latents for later stages."""
    model.expected.parent.mkdir(exist_ok=True)
    np.savez(model.expected, **{str(seed): np.stack(each) for seed, each in expected.items()})


def load(model: Model) -> Expected:
    """Returns what `save` kept."""
    with np.load(model.expected) as stored:
        return {seed: list(stored[str(seed)]) for seed in SEEDS}


def trajectories(pipe: eri.Pipeline, steps: int) -> Iterator[tuple[str, int, Latents]]:
    """Yields every trajectory of a subject: what it was, its seed and the latents to compare."""
    kept = list(begin(pipe, steps, SEEDS[0]))
    for number, seed in enumerate(SEEDS, start=1):
        yield f"run {number}", seed, [list(begin(pipe, steps, seed))[-1].x]
    pair = list(zip_longest(*(begin(pipe, steps, seed) for seed in SEEDS[:2])))
    for number, seed in enumerate(SEEDS[:2]):
        yield f"in turns {number + 1}", seed, [pair[-1][number].x]
    yield "kept", SEEDS[0], [step.x for step in kept]


def compare(
    pipe: eri.Pipeline, expected: Expected, precision: Precision
) -> Iterator[tuple[str, Verdict]]:
    """Yields a verdict for every trajectory; latents that are not finite are a failed one."""
    steps = len(expected[SEEDS[0]])
    try:
        for what, seed, found in trajectories(pipe, steps):
            pairs = zip(found, expected[seed][-len(found) :], strict=True)
            yield what, verdict(max(error(*pair) for pair in pairs), "trajectory", precision)
    except NonFiniteError:
        yield "not finite", verdict(float("nan"), "trajectory", precision)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Returns the verdict with the largest error."""
    return max(verdicts, key=lambda each: (not each["passed"], each["error"] or 0.0))


def verdict(found: float, kind: str, precision: Precision) -> Verdict:
    """Returns `error`, `limit` and `passed`; the error is None if it is not finite."""
    finite, limit = bool(np.isfinite(found)), LIMITS[kind][precision]
    return {"error": found if finite else None, "limit": limit, "passed": finite and found <= limit}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference over the largest value; infinite for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    with np.errstate(invalid="ignore", over="ignore"):
        largest, difference = np.abs(expected).max(), np.abs(found - expected).max()
    return float(difference / largest) if largest else float("inf")


def output_error(found: Arrays, expected: Arrays) -> float:
    """Returns the largest error of all outputs of a component; NaN if one has NaN."""
    return float(np.max([error(found[name], value) for name, value in expected.items()]))


def drawn(spec: ComponentSpec) -> dict[str, Any]:
    """Draws inputs of a component at its usual sizes, the same every time."""
    rng = np.random.default_rng(0)
    sizes = {name: each.opt for name, each in spec.ranges.items()}
    inputs: dict[str, Any] = {}
    for tensor in spec.inputs:
        shape = tuple(each if isinstance(each, int) else sizes[each] for each in tensor.shape)
        if tensor.dtype == "int64":
            inputs[tensor.name] = rng.integers(0, 100, shape)
        elif tensor.name in POSITIONS:
            inputs[tensor.name] = rng.integers(0, 64, shape).astype(np.float32)
        elif tensor.name in RANGES:
            inputs[tensor.name] = rng.uniform(*RANGES[tensor.name], shape).astype(np.float32)
        else:
            inputs[tensor.name] = rng.standard_normal(shape, np.float32)
    return inputs
