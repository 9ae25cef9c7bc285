"""The denoising loop: a generator of `Step`, so progress, preview and cancelling are the caller's.

This NumPy loop is the oracle for every faster one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eri_runtime.executors.base import check_finite
from eri_runtime.noise import NoiseSource
from eri_runtime.table import SamplerTable

Array = NDArray[np.float32]
Network = Callable[[Array, float], Array]


@dataclass(frozen=True)
class Step:
    """Row `index` of `total`, taken: `denoised` is x_0 as seen at `sigma`, `x` the state after."""

    index: int
    total: int
    sigma: float
    x: Array
    denoised: Array


def denoise(
    network: Network,
    table: SamplerTable,
    x: Array,
    noise: NoiseSource,
    hook: Callable[[Array], Array] = lambda denoised: denoised,
) -> Iterator[Step]:
    """Run the table from the initial latents `x` (B, …), which is already scaled.

    `network(c_in·x, t)` is the guided prediction, `noise` is asked from draw 1 on, and `hook` may
    change x_0 (clip, threshold). Raises `NonFiniteError` naming the step that made NaN or Inf.
    """
    remembered: list[Array] = []  # newest first
    noises: list[Array] = []
    draw = 1
    if table.C0:
        x = table.A0 * x + table.C0 * noise(draw, x.shape[1:])
        draw += 1
    for k in range(len(table)):
        predicted = network(float(table.c_in[k]) * x, float(table.t[k]))
        denoised = hook(float(table.c_skip[k]) * x + float(table.c_out[k]) * predicted)
        memory = float(table.p[k]) * x + float(table.q[k]) * denoised
        remembered = [memory, *remembered[: max(table.B.shape[1] - 1, 0)]]
        if table.C.shape[1]:
            noises = [np.zeros_like(x), *noises[: table.C.shape[1] - 1]]
        if table.draws_noise(k):
            noises[0] = noise(draw, x.shape[1:])
            draw += 1
        x = float(table.A[k]) * x
        x = _accumulate(x, table.B[k], remembered)
        x = _accumulate(x, table.C[k], noises)
        check_finite(f"latents after step {k + 1} of {len(table)}", x)
        yield Step(k, len(table), float(table.sigma[k]), x, denoised)


def _accumulate(x: Array, coefficients: NDArray[np.float64], history: list[Array]) -> Array:
    for coefficient, value in zip(coefficients, history, strict=False):
        if coefficient:
            x = x + float(coefficient) * value
    return x
