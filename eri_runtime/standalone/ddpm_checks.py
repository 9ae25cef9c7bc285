"""Checks of the arguments of `DDPMScheduler`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from eri_runtime.checks import floats, real
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.loop import Array
from eri_runtime.sampling import Float64, NoiseSource

MIN_BETA = 1e-10  # with smaller betas, 1 − beta would round to 1
MIN_ALPHA_BAR = 1e-30  # with a smaller alpha-bar, x_0 = (x − sigma·eps)/alpha overflows float32
GENERATOR = "an np.random.Generator, or an object with its `standard_normal(size, dtype)`"
GENERATOR_FIX = "np.random.default_rng(seed), or TorchNormal(seed) for torch's noise"


class NormalGenerator(Protocol):
    """A generator of unit normals: `np.random.Generator`, or `TorchNormal` for torch's noise."""

    @property
    def standard_normal(self) -> Callable[..., Any]:
        """A method `standard_normal(size=(…), dtype=…)` that returns unit normals."""
        ...


def check_betas(beta_start: float, beta_end: float) -> tuple[float, float]:
    """Checks both betas; raises `UsageError` unless 0 < beta_start ≤ beta_end < 1."""
    expected = f"a number from {MIN_BETA:g} to below 1"
    start = real("beta_start", beta_start, expected, lambda n: MIN_BETA <= n < 1)
    expected = f"a number from beta_start, {start:g}, to below 1"
    return start, real("beta_end", beta_end, expected, lambda n: start <= n < 1)


def check_signal(alpha_bar: Float64) -> Float64:
    """Returns `alpha_bar`; raises `UsageError` if it vanishes at the last timestep."""
    least = float(alpha_bar.min())
    if not least >= MIN_ALPHA_BAR:
        raise UsageError(
            "beta_end",
            got=f"an alpha-bar of {least:.3g} after {len(alpha_bar)} training steps",
            expected=f"at least {MIN_ALPHA_BAR:g}",
            fix="take smaller betas or fewer training steps",
        )
    return alpha_bar


def check_name(name: str, value: object, names: Iterable[Any]) -> Any:
    """Returns `value`; raises `UnknownNameError` if it is not one of `names`."""
    if not isinstance(value, str) or value not in names:
        raise UnknownNameError(name, got=short(value), expected=f"one of {', '.join(names)}")
    return value


def check_batch(name: str, value: ArrayLike) -> Array:
    """Returns a batch (B, …) of finite float32 or float64.

    Raises `UsageError` for another dtype, `SizeError` for a scalar.
    """
    x = floats(name, value)
    if x.dtype not in (np.float32, np.float64):
        raise UsageError(name, got=f"an array of {x.dtype}", expected="float32 or float64")
    if x.ndim == 0:
        raise SizeError(name, got=x.shape, expected="(B, …)")
    return x


def cast_like(name: str, value: ArrayLike, like: Array) -> Array:
    """Returns finite floats in the dtype of `like`; raises `SizeError` for another shape."""
    array = floats(name, value)
    if array.shape != like.shape:
        raise SizeError(name, got=array.shape, expected=like.shape)
    with np.errstate(over="ignore"):
        return floats(name, array.astype(like.dtype, copy=False))


def noise_source(generator: NormalGenerator | None, like: Array) -> NoiseSource:
    """Wraps a generator as a noise source in the shape and dtype of `like`.

    Raises `UsageError` if it has no `standard_normal(size, dtype)`.
    """
    if generator is None:
        generator = np.random.default_rng()
    draw_from = getattr(generator, "standard_normal", None)
    if not callable(draw_from):
        raise UsageError("generator", got=short(generator), expected=GENERATOR, fix=GENERATOR_FIX)

    def noise(draw: int, shape: tuple[int, ...]) -> Array:
        del draw, shape
        try:
            values = np.asarray(draw_from(size=like.shape, dtype=like.dtype.type))
        except TypeError as error:  # RandomState.standard_normal has no dtype
            raise UsageError(
                "generator", got=error, expected=GENERATOR, fix=GENERATOR_FIX
            ) from error
        return cast_like("generator's noise", values, like)

    return noise
