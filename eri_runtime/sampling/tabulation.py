"""Tabulates a sampler: runs it once on symbols and reads the rows of a `SamplerTable` off.

Rows use the denoised D, not the network's output F, so a non-linear hook between the two, such as
thresholding, stays exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np

from eri_runtime.bundle import Prediction, ScheduleSpec
from eri_runtime.checks import finite, function, instance, one_of
from eri_runtime.errors import UsageError
from eri_runtime.sampling.prediction import Preconditioning, precondition, precondition_edm
from eri_runtime.sampling.samplers import KEEP_NOISE, Memory, Sampler
from eri_runtime.sampling.schedule import Clock, Point, Schedule
from eri_runtime.sampling.sigmas import Float64
from eri_runtime.sampling.symbolic import Linear
from eri_runtime.sampling.table import MAX_HISTORY, MAX_V, SamplerTable

# Symbols: the initial x, the noise drawn before the first evaluation, then m0, n0, m1, n1, …
START, INITIAL_NOISE = "x", "initial noise"
TINY = 1e-250  # smaller coefficients have too few digits for a ratio: they are near the least float


class _Recorder:
    """Symbolic network and noise source, which record each evaluation and draw of an algorithm."""

    def __init__(self, clock: Clock, memory: Memory) -> None:
        self.clock = clock
        self.memory = memory
        self.points: list[Point] = []
        self.states: list[Linear] = []  # x at each evaluation
        self.rows_with_noise: set[int] = set()

    def denoise(self, x: Linear, point: Point) -> Linear:
        """Records the x and the point of row k; returns D as a function of the new symbol m_k."""
        self.states.append(x)
        self.points.append(point)
        history = Linear.symbol(f"m{len(self.points) - 1}")
        p, q = self.factors(point)
        return (history - p * x) / q if p else history

    def factors(self, point: Point) -> tuple[float, float]:
        """Returns p and q of what is remembered at a point, m = p·x + q·D.

        Where alpha is 0, the noise does not tell D: D itself is remembered.
        """
        if self.memory == "x0" or (self.memory == "eps" and point.alpha == 0):
            return 0.0, 1.0
        if self.memory == "v":
            return point.alpha / point.sigma, -1 / point.sigma
        scale = point.alpha if self.memory == "eps" else self.clock.scale(point)
        return 1 / point.sigma, -scale / point.sigma

    def noise(self) -> Linear:
        """Returns the noise symbol of the current row, or the initial noise before row 0.

        Raises `UsageError` for a second draw in the same row.
        """
        row = len(self.points) - 1
        if row in self.rows_with_noise:
            got = f"a second draw in row {row}"
            raise UsageError("a sampler's noise", got=got, expected="one draw for each evaluation")
        self.rows_with_noise.add(row)
        return Linear.symbol(INITIAL_NOISE if row < 0 else f"n{row}")


def make_table(
    sampler: Sampler,
    schedule: Schedule,
    spec: ScheduleSpec,
    *,
    options: Mapping[str, float] | None = None,
) -> SamplerTable:
    """Tabulates a named sampler on a schedule.

    Args:
        sampler: The sampler, a value of `SAMPLERS`.
        schedule: The points of the loop, from `Sampler.schedule`.
        spec: The training schedule, for example `pipe.bundle.schedule`.
        options: Options of the sampler by name, such as `eta`. Default: the sampler's own defaults.

    Returns:
        The table, one row per network evaluation.

    Raises:
        UsageError: If the sampler does not have an option, or its value is out of range.

    Example:
        >>> sampler, spec = eri.SAMPLERS["dpmpp_2m"], pipe.bundle.schedule
        >>> schedule = sampler.schedule(spec, steps=4, tokens=64)
        >>> table = eri.make_table(sampler, schedule, spec)
        >>> len(table), table.B.shape, table.C.shape  # 2 denoised x_0 in the history, no noise
        (4, (4, 2), (4, 0))
    """
    instance("sampler", sampler, Sampler, "a value of SAMPLERS")
    instance("schedule", schedule, Schedule)
    instance("spec", spec, ScheduleSpec)
    given = sampler.checked({} if options is None else options)
    keep_noise = given.pop(KEEP_NOISE, 0.0)
    algorithm = partial(sampler.algorithm, **given)
    at_sigma = sampler.starts_at_sigma and spec.spacing != "leading"
    scale = schedule[0].sigma if at_sigma else 1.0
    scale = scale if schedule.start is None else schedule.start
    table = tabulate(algorithm, schedule, spec.prediction, scale=scale, memory=sampler.memory)
    if not keep_noise:
        return table
    # x' = alpha'·(D + d) + A·(x − alpha·D): without E, alpha·A of the hook's d is taken out again
    return replace(table, E=table.points.alpha[:-1] * table.A)


def tabulate(
    algorithm: Any,
    schedule: Schedule,
    prediction: Prediction,
    *,
    scale: float = 1.0,
    memory: Memory = "x0",
) -> SamplerTable:
    """Tabulates your own sampling algorithm, by running it once on symbols instead of arrays.

    Args:
        algorithm: `algorithm(denoise, noise, x, schedule) -> x`, in the style of k-diffusion.
            `denoise(x, point)` returns the denoised x_0, `noise()` a unit normal. It must be
            linear in x, the denoised and the noise: sums, and products with numbers.
        schedule: The points of the loop, from `make_schedule`.
        prediction: What the network predicts: `eps`, `v`, `x0` or `flow`.
        scale: Factor of the initial noise.
        memory: What the table's history holds: `x0`, the denoised; `slope`, the ODE's slope
            (x − scale·x_0)/sigma; `eps`, the noise (x − alpha·x_0)/sigma; or `v`, the velocity
            (alpha·x − x_0)/sigma.

    Returns:
        The table, one row per call of `denoise`.

    Raises:
        UsageError: If the algorithm is not linear, draws noise twice per evaluation, or needs more
            history than 13 denoised and 2 noises. The step graph takes at most 4 denoised.

    Example:
        >>> def euler(denoise, noise, x, schedule):
        ...     for here, there in schedule.steps():
        ...         slope = (x - denoise(x, here)) / here.sigma
        ...         x = x + (there.sigma - here.sigma) * slope
        ...     return x
        >>> schedule = eri.make_schedule(pipe.bundle.schedule, 4, tokens=64, whole_t=False)
        >>> eri.tabulate(euler, schedule, "flow").A.round(3)
        array([0.858, 0.702, 0.015, 0.   ])
    """
    function("algorithm", algorithm, "a function (denoise, noise, x, schedule) -> x")
    instance("schedule", schedule, Schedule)
    one_of("prediction", prediction, get_args(Prediction))
    one_of("memory", memory, get_args(Memory))
    finite("scale", scale)
    recorder = _Recorder(schedule.clock, memory)
    result = algorithm(recorder.denoise, recorder.noise, Linear.symbol(START), schedule)
    states = [*recorder.states, instance("algorithm", result, Linear, "one that returns x")]
    if not recorder.points:
        raise UsageError("algorithm", got="no call of denoise", expected="one or more")
    rows = [_row(k, x, x_next) for k, (x, x_next) in enumerate(pairwise(states))]
    clock = schedule.clock
    conditioning = np.array([_conditioning(prediction, at, clock) for at in recorder.points])
    history = np.array([recorder.factors(at) for at in recorder.points])
    t, alpha, sigma = np.array([*recorder.points, schedule[len(schedule)]]).T
    return SamplerTable(
        scale=scale,
        points=Schedule(t, alpha, sigma, schedule.clock),
        c_in=conditioning[:, 0],
        c_skip=conditioning[:, 1],
        c_out=conditioning[:, 2],
        p=history[:, 0],
        q=history[:, 1],
        A=np.array([row.A for row in rows]),
        B=_columns([row.B for row in rows], MAX_HISTORY, f"history of {memory}"),
        C=_columns([row.C for row in rows], MAX_V, "history of noise"),
        A0=states[0][START],
        C0=states[0][INITIAL_NOISE],
        draws=np.array([k in recorder.rows_with_noise for k in range(len(rows))]),
    )


def _conditioning(prediction: Prediction, point: Point, clock: Clock) -> Preconditioning:
    """Returns the coefficients of D at one point, for any kind of schedule."""
    if clock.kind == "edm":
        return precondition_edm(prediction, point, clock)
    return precondition(prediction, point)


class _Row(NamedTuple):
    """The coefficients of x' = A·x + Σ B_j·m_{k−j} + Σ C_j·n_{k−j}, with B and C by j."""

    A: float
    B: dict[int, float]
    C: dict[int, float]

    @property
    def reach(self) -> tuple[int, int]:
        """The age j of the oldest history and of the oldest noise; −1 for none."""
        return max(self.B, default=-1), max(self.C, default=-1)


def _row(k: int, x: Linear, x_next: Linear) -> _Row:
    """Returns the row that leads from x at evaluation k to the next x.

    Several rows may do so, since x itself contains history; returns the one with the shortest
    reach.
    """
    rows = []
    for symbol in _pivots(x):
        A = x_next[symbol] / x[symbol]
        rest = x_next - A * x
        negligible = 1e-14 * max(map(abs, x_next.terms.values()), default=1.0)
        B, C = (_by_age(rest, letter, k, negligible) for letter in "mn")
        rows.append(_Row(A, B, C))
    return min(rows, key=lambda row: row.reach)


def _pivots(x: Linear) -> Iterator[str]:
    """Yields the symbols that reach the next state through `x` alone, and so determine A.

    This is the initial x, as long as `x` contains it; then the oldest history and the oldest noise.
    """
    names = [name for name, value in x.terms.items() if abs(value) > TINY and name != INITIAL_NOISE]
    if START in names:
        names = [START]
    seen = set()
    for name in sorted(names, key=lambda name: int(name[1:] or -1)):
        if name[0] not in seen:
            seen.add(name[0])
            yield name


def _by_age(rest: Linear, letter: str, k: int, negligible: float) -> dict[int, float]:
    """Returns the coefficients of the symbols m_{k−j} or n_{k−j}, by j, without negligible ones."""
    return {
        k - int(name[1:]): value
        for name, value in rest.terms.items()
        if name[0] == letter and abs(value) > negligible
    }


def _columns(rows: list[dict[int, float]], max_width: int, what: str) -> Float64:
    """Converts sparse rows to a (K, width) array; raises `UsageError` if that is too wide."""
    width = max((j + 1 for row in rows for j in row), default=0)
    if width > max_width:
        raise UsageError(f"a sampler's {what}", got=width, expected=f"at most {max_width}")
    columns = np.zeros((len(rows), width))
    for k, row in enumerate(rows):
        for j, value in row.items():
            columns[k, j] = value
    return columns
