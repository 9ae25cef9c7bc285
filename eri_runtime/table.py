"""A sampler as a table: one row for each network evaluation.

    F   = mix · net(c_in·x, t, cond)                          guidance
    D   = hook(c_skip·x + c_out·F)                            x_0, clipped or thresholded
    m_k = p·x + q·D                                           remembered
    x'  = A·x + Σ_{j<W} B_j·m_{k−j} + Σ_{j<V} C_j·n_{k−j}

`D` and not the raw output is what the row is linear in, so a non-linear hook stays exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.linear import Linear
from eri_runtime.prediction import precondition
from eri_runtime.samplers import Memory, Sampler
from eri_runtime.schedule import Clock, Float64, Point, Schedule
from eri_runtime.spec import Prediction, ScheduleSpec

Float32 = NDArray[np.float32]
MAX_W, MAX_V = 4, 2
# a row as a step graph takes it, and how many numbers each column is
COLUMNS = {
    **dict.fromkeys(("t", "c_in", "c_skip", "c_out", "p", "q", "A"), 1),
    "B": MAX_W,
    "C": MAX_V,
}
START = "x"
BEFORE = "before"  # the noise drawn before the first evaluation
FADED = 1e-250  # a coefficient near the smallest float has lost the digits a ratio needs


@dataclass(frozen=True)
class SamplerTable:
    """K rows, float64: `B` is (K, W), `C` is (K, V), everything else (K,).

    x starts at `scale`·noise; the loop begins with x = `A0`·x + `C0`·n, which is x itself but for a
    sampler that adds noise before its first evaluation. `points` are the points of the K
    evaluations and the one where the last row ends: x before row k is a sample of `points[k]`.
    """

    scale: float
    points: Schedule
    c_in: Float64
    c_skip: Float64
    c_out: Float64
    p: Float64
    q: Float64
    A: Float64
    B: Float64
    C: Float64
    A0: float = 1.0
    C0: float = 0.0

    def __len__(self) -> int:
        return len(self.points)

    def rows(self) -> Float32:
        """(K, 13) float32: the `COLUMNS` of each row, and zeros where the table is narrower."""
        single = [self.points.t[:-1], self.c_in, self.c_skip, self.c_out, self.p, self.q, self.A]
        wide = ((self.B, MAX_W), (self.C, MAX_V))
        padded = [np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part, most in wide]
        return np.hstack([np.stack(single, axis=1), *padded]).astype(np.float32)

    def level(self, k: int) -> float:
        """The noise before row k in k-diffusion's unit, `Clock.tau`."""
        return self.points.clock.tau(self.points[k])

    def draws_noise(self, k: int) -> bool:
        """Whether n_k is used, in row k or later."""
        return any(self.C[k + j, j] != 0 for j in range(self.C.shape[1]) if k + j < len(self))


class _Recorder:
    """Stands in for the network and the noise, and writes down what the algorithm asks of them."""

    def __init__(self, clock: Clock, memory: Memory) -> None:
        self.clock = clock
        self.memory = memory
        self.points: list[Point] = []
        self.states: list[Linear] = []  # x at each evaluation
        self.drawn: set[int] = set()  # the rows that draw noise

    def denoise(self, x: Linear, point: Point) -> Linear:
        """Begin row k: its x is known, what it remembers is the new symbol m_k."""
        self.states.append(x)
        self.points.append(point)
        memory = Linear.symbol(f"m{len(self.points) - 1}")
        if self.memory == "x0":
            return memory
        return (x - point.sigma * memory) / self.clock.scale(point)

    def remembered(self) -> list[tuple[float, float]]:
        """p and q of every row: m = p·x + q·D."""
        if self.memory == "x0":
            return [(0.0, 1.0)] * len(self.points)
        return [(1 / at.sigma, -self.clock.scale(at) / at.sigma) for at in self.points]

    def noise(self) -> Linear:
        """The draw that belongs to the row begun last, or to the start; each has at most one."""
        row = len(self.points) - 1
        if row in self.drawn:
            got = f"a second draw in row {row}"
            raise UsageError("a sampler's noise", got=got, expected="one draw for each evaluation")
        self.drawn.add(row)
        return Linear.symbol(BEFORE if row < 0 else f"n{row}")


def make_table(
    sampler: Sampler,
    schedule: Schedule,
    spec: ScheduleSpec,
    *,
    options: Mapping[str, float] | None = None,
) -> SamplerTable:
    """Tabulate a named sampler with its own conventions.

    `options` are the algorithm's own, by name. Raises `UsageError` for an option it does not take,
    or out of range.
    """
    algorithm = partial(sampler.algorithm, **sampler.checked(options or {}))
    at_sigma = sampler.starts_at_sigma and spec.spacing != "leading"
    scale = schedule[0].sigma if at_sigma else 1.0
    return tabulate(algorithm, schedule, spec.prediction, scale=scale, memory=sampler.memory)


def tabulate(
    algorithm: Any,
    schedule: Schedule,
    prediction: Prediction,
    *,
    scale: float = 1.0,
    memory: Memory = "x0",
) -> SamplerTable:
    """Run `algorithm` once on symbols and read each row off what it did.

    `memory` is what the rows remember, x_0 or the ODE's slope. Raises `UsageError` for an algorithm
    that is not linear in them, or reaches further back than the table is wide.
    """
    recorder = _Recorder(schedule.clock, memory)
    result = algorithm(recorder.denoise, recorder.noise, Linear.symbol(START), schedule)
    states = [*recorder.states, result]
    rows = [_row(k, here, there) for k, (here, there) in enumerate(pairwise(states))]
    conditioning = np.array([precondition(prediction, point) for point in recorder.points])
    remembered = np.array(recorder.remembered())
    t, alpha, sigma = np.array([*recorder.points, schedule[len(schedule)]]).T
    return SamplerTable(
        scale=scale,
        points=Schedule(t, alpha, sigma, schedule.clock),
        c_in=conditioning[:, 0],
        c_skip=conditioning[:, 1],
        c_out=conditioning[:, 2],
        p=remembered[:, 0],
        q=remembered[:, 1],
        A=np.array([row.A for row in rows]),
        B=_columns([row.B for row in rows], MAX_W, f"history of {memory}"),
        C=_columns([row.C for row in rows], MAX_V, "history of noise"),
        A0=states[0][START],
        C0=states[0][BEFORE],
    )


class _Row(NamedTuple):
    """x' = A·x + Σ B_j·m_{k−j} + Σ C_j·n_{k−j}, with B and C by j."""

    A: float
    B: dict[int, float]
    C: dict[int, float]

    @property
    def reach(self) -> tuple[int, int]:
        """The oldest x_0 and the oldest noise, in evaluations ago."""
        return max(self.B, default=-1), max(self.C, default=-1)


def _row(k: int, here: Linear, there: Linear) -> _Row:
    """What leads from x at evaluation k to x at the next: the row with the shortest reach."""
    rows = []
    for symbol in _oldest(here):
        A = there[symbol] / here[symbol]
        rest = there - A * here
        negligible = 1e-14 * max(map(abs, there.terms.values()), default=1.0)
        B, C = (_by_age(rest, letter, k, negligible) for letter in "mn")
        rows.append(_Row(A, B, C))
    return min(rows, key=lambda row: row.reach)


def _oldest(x: Linear) -> Iterator[str]:
    """What can have reached the next state only through `x`, and so fixes A.

    The initial noise, while any is left in x; else the oldest noise or the oldest x_0 in it.
    """
    names = [name for name, value in x.terms.items() if abs(value) > FADED and name != BEFORE]
    if START in names:
        names = [START]
    seen = set()
    for name in sorted(names, key=lambda name: int(name[1:] or -1)):
        if name[0] not in seen:
            seen.add(name[0])
            yield name


def _by_age(rest: Linear, letter: str, k: int, negligible: float) -> dict[int, float]:
    """The coefficients of m_{k−j} or n_{k−j} by j."""
    return {
        k - int(name[1:]): value
        for name, value in rest.terms.items()
        if name[0] == letter and abs(value) > negligible
    }


def _columns(rows: list[dict[int, float]], widest: int, what: str) -> Float64:
    """Sparse rows as a (K, width) array."""
    width = max((j + 1 for row in rows for j in row), default=0)
    if width > widest:
        raise UsageError(f"a sampler's {what}", got=width, expected=f"at most {widest}")
    columns = np.zeros((len(rows), width))
    for k, row in enumerate(rows):
        for j, value in row.items():
            columns[k, j] = value
    return columns
