"""The denoising loop: a generator of `Step`, so progress, preview and cancelling are the caller's.

This NumPy loop is the oracle for every faster one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isclose

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.executors.base import check_finite
from eri_runtime.executors.stepper import Latents
from eri_runtime.noise import NoiseSource
from eri_runtime.schedule import Point
from eri_runtime.table import SamplerTable

Array = NDArray[np.float32]
Network = Callable[[Array, Point], Array]


@dataclass(frozen=True, kw_only=True)
class HostLatents:
    """`Latents` in NumPy's memory."""

    x: Array
    denoised: Array
    remembered: tuple[Array, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """Row `index` of `total`, taken: `denoised` is x_0 as seen at `sigma`, `x` the state after.

    `sigma` is in k-diffusion's unit, `Clock.tau`. The rest is what a loop needs to go on from here:
    what the rows remember and their noises, newest first, and the next `draw` of noise. A step may
    be kept; one of an engine's loop copies its arrays from there when they are first asked for.
    """

    index: int
    total: int
    sigma: float
    latents: Latents
    noises: tuple[Array, ...]
    draw: int

    def __getstate__(self) -> dict[str, object]:
        """What is pickled: the arrays, and nothing of an engine."""
        return vars(self.on_host())

    def on_host(self) -> Step:
        """The same step, with nothing of an engine."""
        latents = HostLatents(x=self.x, denoised=self.denoised, remembered=self.remembered)
        return replace(self, latents=latents)

    @property
    def x(self) -> Array:
        """(B, …) float32, the state after the row."""
        return self.latents.x

    @property
    def denoised(self) -> Array:
        """(B, …) float32, x_0 as seen at `sigma`."""
        return self.latents.denoised

    @property
    def remembered(self) -> tuple[Array, ...]:
        """(B, …) float32 each, newest first."""
        return self.latents.remembered


def unchanged(value: Array, *_: object) -> Array:
    """What a loop does that is not told otherwise."""
    return value


def denoise(
    network: Network,
    table: SamplerTable,
    start: Array | Step,
    noise: NoiseSource,
    *,
    hook: Callable[[Array], Array] = unchanged,
    mend: Callable[[Array, int], Array] = unchanged,
    draw: int = 1,
) -> Iterator[Step]:
    """Run the table from the initial latents `start` (B, …), already scaled, or on from a `Step`.

    `network(c_in·x, point)` is the guided prediction, `noise` is asked from `draw` on, `hook` may
    change x_0 (clip, threshold), and `mend(x, k)` the state after row k, a sample of
    `table.points[k + 1]`. Raises `NonFiniteError` naming the step that made NaN or Inf.
    """
    step = start if isinstance(start, Step) else before_first(table, start, noise, draw)
    for k in range(step.index + 1, len(table)):
        at, x = table.points[k], step.x
        predicted = network(float(table.c_in[k]) * x, at)
        denoised = hook(float(table.c_skip[k]) * x + float(table.c_out[k]) * predicted)
        memory = float(table.p[k]) * x + float(table.q[k]) * denoised
        remembered = _push(memory, step.remembered, table.B.shape[1])
        noises, draw = next_noises(table, k, step.noises, step.draw, noise, x.shape)
        x = float(table.A[k]) * x
        x = _accumulate(x, table.B[k], remembered)
        x = mend(_accumulate(x, table.C[k], noises), k)
        check_state(x, k, table)
        latents = HostLatents(x=x, denoised=denoised, remembered=remembered)
        step = taken(table, k, latents, noises, draw)
        yield step


def check_start(step: Step, table: SamplerTable, shape: tuple[int, ...]) -> None:
    """Raise `UsageError` for a step that no loop over `table` takes with latents of `shape`."""
    kept = min(step.index + 1, table.B.shape[1]), min(step.index + 1, table.C.shape[1])
    found = step.total, step.x.shape, len(step.remembered), len(step.noises)
    if found != (len(table), shape, *kept) or not isclose(step.sigma, table.level(step.index)):
        got = f"a step of {step.total} with latents {step.x.shape}"
        expected = f"one of {len(table)} with {shape}, of the same sampler and levels"
        raise UsageError("start", got=got, expected=expected)


def taken(
    table: SamplerTable, k: int, latents: Latents, noises: tuple[Array, ...], draw: int
) -> Step:
    """Row k, taken."""
    level = table.level(k)
    return Step(index=k, total=len(table), sigma=level, latents=latents, noises=noises, draw=draw)


def next_noises(
    table: SamplerTable,
    k: int,
    noises: tuple[Array, ...],
    draw: int,
    noise: NoiseSource,
    shape: tuple[int, ...],
) -> tuple[tuple[Array, ...], int]:
    """The noises of row k, newest first, and the next draw, after those of the row before."""
    if not table.C.shape[1]:
        return noises, draw
    fresh = table.draws_noise(k)
    newest = noise(draw, shape[1:]) if fresh else np.zeros(shape, np.float32)
    return _push(newest, noises, table.C.shape[1]), draw + fresh


def check_state(x: Array, k: int, table: SamplerTable) -> None:
    """Raise `NonFiniteError` naming the step where x has NaN or Inf."""
    check_finite(f"latents after step {k + 1} of {len(table)}", x)


def before_first(table: SamplerTable, x: Array, noise: NoiseSource, draw: int) -> Step:
    """The state before row 0."""
    if table.C0:
        x = table.A0 * x + table.C0 * noise(draw, x.shape[1:])
        draw += 1
    return Step(
        index=-1,
        total=len(table),
        sigma=table.level(0),
        latents=HostLatents(x=x, denoised=x),
        noises=(),
        draw=draw,
    )


def _push(newest: Array, history: tuple[Array, ...], width: int) -> tuple[Array, ...]:
    """The `width` newest of a history, newest first."""
    return (newest, *history)[:width]


def _accumulate(x: Array, coefficients: NDArray[np.float64], history: tuple[Array, ...]) -> Array:
    for coefficient, value in zip(coefficients, history, strict=False):
        if coefficient:
            x = x + float(coefficient) * value
    return x
