"""`DDPMScheduler`: a denoising loop of one's own, a step at a time, over the sampler tables.

Each step is the table of a schedule of two points, run by the loop that a pipeline runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.checks import floats, integers, real, whole
from eri_runtime.denoise import Array, denoise, unchanged
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.noise import NoiseSource
from eri_runtime.samplers import ddim
from eri_runtime.schedule import Float64, Schedule, alphas_cumprod, make_schedule
from eri_runtime.spec import BetaCurve, Prediction, ScheduleSpec, Spacing
from eri_runtime.table import tabulate

PredictionType = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: Mapping[PredictionType, Prediction] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
}
MOST_TIMESTEPS = 1_000_000
LEAST_BETA = 1e-10  # 1 − beta has to differ from 1
LEAST_SIGNAL = 1e-30  # of alpha-bar: x_0 = (x − sigma·eps)/alpha has to be a float32
GENERATOR = "an np.random.Generator, or an object with its `standard_normal(size, dtype)`"
SEEDED = "np.random.default_rng(seed), or TorchNormal(seed) for torch's noise"


class NormalGenerator(Protocol):
    """What noise is drawn from: `np.random.Generator`, or `randn.TorchNormal` for torch's."""

    @property
    def standard_normal(self) -> Callable[..., Any]:
        """`standard_normal(size=(…), dtype=…)`: unit normals."""
        ...


class DDPMScheduler:
    """DDPM's noise schedule and one step of its reverse process, after the Rust API and diffusers.

    x_t = sqrt(alpha-bar_t)·x_0 + sqrt(1 − alpha-bar_t)·eps, alpha-bar_t = Π_{s ≤ t} (1 − beta_s)
    (Ho et al. 2020, arXiv 2006.11239, eq. 4). The defaults are those of Stable Diffusion and SDXL.

    Only `set_timesteps` changes a scheduler. There is no hidden step index: the same `step` gives
    the same result in any order.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        *,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: BetaCurve = "scaled_linear",
        prediction_type: PredictionType = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: Spacing = "leading",
        steps_offset: int = 1,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        """Make the schedule of `num_train_timesteps`; words and values are diffusers'.

        0 < beta_start ≤ beta_end < 1. `clip_sample` clips x_0 to ± `clip_sample_range`.
        `rescale_betas_zero_snr` is Lin et al.'s (2023, arXiv 2305.08891, alg. 1).
        Raises `UsageError` for a number out of range, `UnknownNameError` for an unknown name.
        """
        start, end = _beta_range(beta_start, beta_end)
        least = 2 if rescale_betas_zero_snr else 1
        count = whole("num_train_timesteps", num_train_timesteps, least, MOST_TIMESTEPS)
        self.num_train_timesteps = count
        self._spec = ScheduleSpec(
            kind="vp",
            prediction=PREDICTIONS[_known("prediction_type", prediction_type, PREDICTIONS)],
            num_train_timesteps=count,
            spacing=_known("timestep_spacing", timestep_spacing, get_args(Spacing)),
            beta_start=start,
            beta_end=end,
            beta_curve=_known("beta_schedule", beta_schedule, get_args(BetaCurve)),
            steps_offset=whole("steps_offset", steps_offset, 0, count),
            zero_terminal_snr=bool(rescale_betas_zero_snr),
        )
        self._alphas_cumprod = _usable(alphas_cumprod(self._spec))
        positive = "a finite number above 0"
        limit = real("clip_sample_range", clip_sample_range, positive, lambda n: 0 < n < inf)
        self._limit = limit if clip_sample else inf
        every = replace(self._spec, spacing="leading", steps_offset=0)
        self._schedule = make_schedule(every, count, tokens=0, whole_t=True)

    @property
    def alphas_cumprod(self) -> Float64:
        """alpha-bar_t, (num_train_timesteps,) float64; diffusers accumulates it in float32."""
        return self._alphas_cumprod.copy()

    @property
    def alphas(self) -> Float64:
        """1 − beta_t = alpha-bar_t/alpha-bar_(t−1), (num_train_timesteps,) float64."""
        return self._alphas_cumprod / np.append(1.0, self._alphas_cumprod[:-1])

    @property
    def betas(self) -> Float64:
        """beta_t, the variance added at each training step, (num_train_timesteps,) float64."""
        return 1 - self.alphas

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """(N,), falling: every training step until `set_timesteps` has chosen some of them."""
        return self._schedule.t[:-1].astype(np.int64)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose N = `num_inference_steps` of the training steps, by the spacing.

        Raises `UsageError` for an N outside 1 … num_train_timesteps, or one with which
        `steps_offset` reaches past the last training step.
        """
        steps = whole("num_inference_steps", num_inference_steps, 1, self.num_train_timesteps)
        schedule = make_schedule(self._spec, steps, tokens=0, whole_t=True)
        if (np.diff(schedule.t[:-1]) >= 0).any():
            expected = f"fewer than {steps} with steps_offset {self._spec.steps_offset}"
            fix = "or make the scheduler with steps_offset=0"
            raise UsageError("num_inference_steps", got=steps, expected=expected, fix=fix)
        self._schedule = schedule

    def add_noise(
        self, original_samples: ArrayLike, noise: ArrayLike, timesteps: ArrayLike
    ) -> Array:
        """x_t = sqrt(alpha-bar_t)·x_0 + sqrt(1 − alpha-bar_t)·noise (Ho et al. 2020, eq. 4).

        `original_samples` (B, …) float32 or float64, `noise` of the same shape, `timesteps` (B,)
        integers in [0, num_train_timesteps) or one for all; gives (B, …) of the samples' dtype.
        Raises `UsageError` for a timestep out of range or a wrong dtype, `SizeError` for shapes
        that differ, `NonFiniteError` for NaN or Inf.
        """
        x_0 = _state("original_samples", original_samples)
        eps = _alike("noise", noise, x_0)
        t = integers("timesteps", timesteps, 0, self.num_train_timesteps - 1)
        if t.shape not in [(), x_0.shape[:1]]:
            expected = f"{x_0.shape[:1]}, one for each sample, or one number"
            raise SizeError("timesteps", got=t.shape, expected=expected)
        alpha_bar = self._alphas_cumprod[t].reshape(-1, *(1,) * (x_0.ndim - 1))
        alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        return alpha.astype(x_0.dtype) * x_0 + sigma.astype(x_0.dtype) * eps

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is an error of its own
    def step(
        self,
        model_output: ArrayLike,
        timestep: int,
        sample: ArrayLike,
        eta: float = 1.0,
        use_clipped_model_output: bool = True,
        generator: NormalGenerator | None = None,
    ) -> Array:
        """x at the timestep that follows `timestep` in `timesteps`; after the last one, x_0.

            x' = sqrt(alpha-bar')·D + sqrt(1 − alpha-bar' − s²)·eps + s·n
            s² = eta²·(1 − alpha-bar')/(1 − alpha-bar)·(1 − alpha-bar/alpha-bar')

        (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), D the x_0 that `model_output` predicts,
        clipped if the scheduler clips, eps = (x − sqrt(alpha-bar)·D)/sqrt(1 − alpha-bar). `eta` in
        [0, 1] is the amount of noise: 0 is DDIM, and 1 the posterior of DDPM with beta-tilde (Ho et
        al. 2020, eq. 6 and 7). With clipping and `use_clipped_model_output` False, eps is taken
        from the D that was not clipped.

        `sample` (B, …) is float32 or float64, `model_output` floats of the same shape; gives (B, …)
        of the sample's dtype. `generator` is an `np.random.Generator`, or `TorchNormal(seed)` for
        torch's noise; None makes a fresh one. Nothing is drawn where no noise is added: with eta 0,
        and after the last timestep.
        Raises `UsageError` for a timestep that is not among `timesteps`, an eta out of range or a
        bad generator, `SizeError` for shapes that differ, `NonFiniteError` for NaN or Inf.
        """
        x = _state("sample", sample)
        predicted = _alike("model_output", model_output, x)
        amount = real("eta", eta, "a number from 0 to 1", lambda number: 0 <= number <= 1)
        schedule = self._one_step(timestep)
        table = tabulate(partial(ddim, eta=amount), schedule, self._spec.prediction)
        hook = self._clip if use_clipped_model_output else unchanged
        noise = _source(generator, x)
        (taken,) = denoise(lambda *_: predicted, table, x, noise, hook=hook)
        if use_clipped_model_output:
            return taken.x
        return taken.x + float(schedule.alpha[1]) * (self._clip(taken.denoised) - taken.denoised)

    def _one_step(self, timestep: int) -> Schedule:
        """The two points of the step from `timestep`."""
        t = whole("timestep", timestep, 0, self.num_train_timesteps - 1)
        (found,) = np.nonzero(self._schedule.t[:-1] == t)
        if not found.size:
            expected = f"one of the {len(self._schedule)} in `timesteps`"
            raise UsageError("timestep", got=t, expected=expected, fix="loop over `timesteps`")
        return self._schedule.part(int(found[0]), 1)

    def _clip(self, denoised: Array) -> Array:
        return denoised if self._limit == inf else np.clip(denoised, -self._limit, self._limit)


def _beta_range(beta_start: float, beta_end: float) -> tuple[float, float]:
    expected = f"a number from {LEAST_BETA:g} to below 1"
    start = real("beta_start", beta_start, expected, lambda n: LEAST_BETA <= n < 1)
    expected = f"a number from beta_start, {start:g}, to below 1"
    return start, real("beta_end", beta_end, expected, lambda n: start <= n < 1)


def _usable(alpha_bar: Float64) -> Float64:
    """`alpha_bar`, if something is left of the image at its end."""
    least = float(alpha_bar.min())
    if not least >= LEAST_SIGNAL:
        raise UsageError(
            "beta_end",
            got=f"an alpha-bar of {least:.3g} after {len(alpha_bar)} training steps",
            expected=f"at least {LEAST_SIGNAL:g}",
            fix="take smaller betas or fewer training steps",
        )
    return alpha_bar


def _known(name: str, value: object, names: Iterable[Any]) -> Any:
    """`value`, if it is one of the `names`."""
    if not isinstance(value, str) or value not in names:
        raise UnknownNameError(name, got=short(value), expected=f"one of {', '.join(names)}")
    return value


def _state(name: str, value: ArrayLike) -> Array:
    """A batch in float32 or float64, the types that a loop is run in."""
    x = floats(name, value)
    if x.dtype not in (np.float32, np.float64):
        raise UsageError(name, got=f"an array of {x.dtype}", expected="float32 or float64")
    if x.ndim == 0:
        raise SizeError(name, got=x.shape, expected="(B, …)")
    return x


def _alike(name: str, value: ArrayLike, like: Array) -> Array:
    """Floats in the shape and the type of `like`."""
    array = floats(name, value)
    if array.shape != like.shape:
        raise SizeError(name, got=array.shape, expected=like.shape)
    with np.errstate(over="ignore"):
        return floats(name, array.astype(like.dtype, copy=False))


def _source(generator: NormalGenerator | None, like: Array) -> NoiseSource:
    """`generator` as a source of noise in the shape and the type of `like`."""
    if generator is None:
        generator = np.random.default_rng()
    draw_from = getattr(generator, "standard_normal", None)
    if not callable(draw_from):
        raise UsageError("generator", got=short(generator), expected=GENERATOR, fix=SEEDED)

    def noise(draw: int, shape: tuple[int, ...]) -> Array:
        del draw, shape
        try:
            values = np.asarray(draw_from(size=like.shape, dtype=like.dtype.type))
        except TypeError as error:  # RandomState's has no dtype
            raise UsageError("generator", got=error, expected=GENERATOR, fix=SEEDED) from error
        return _alike("generator's noise", values, like)

    return noise
