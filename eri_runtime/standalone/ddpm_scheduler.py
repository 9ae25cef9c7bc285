"""`DDPMScheduler`: single denoising steps for your own loop, computed with sampler tables.

Each step tabulates a schedule of two points and runs it with the same loop as a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import inf
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.bundle import BetaCurve, Prediction, ScheduleSpec, Spacing
from eri_runtime.checks import boolean, integer, integers, real
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.loop import Array, denoise, identity
from eri_runtime.sampling import (
    Float64,
    Schedule,
    alphas_cumprod,
    ddim,
    make_schedule,
    tabulate,
)
from eri_runtime.standalone.ddpm_checks import (
    NormalGenerator,
    cast_like,
    check_batch,
    check_betas,
    check_name,
    check_signal,
    noise_source,
)

PredictionType = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: Mapping[PredictionType, Prediction] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
}
MAX_TIMESTEPS = 1_000_000


class DDPMScheduler:
    """DDPM's noise schedule and reverse steps, for your own denoising loop.

    The forward process is x_t = sqrt(alpha-bar_t)·x_0 + sqrt(1 − alpha-bar_t)·eps, with
    alpha-bar_t = Π_{s ≤ t} (1 − beta_s) (Ho et al. 2020, arXiv 2006.11239, eq. 4). Names and values
    of the arguments are those of diffusers' `DDPMScheduler`; the defaults are those of Stable
    Diffusion and SDXL.

    Only `set_timesteps` changes a scheduler. There is no hidden step index: `step` returns the same
    result in any order of calls.

    Args:
        num_train_timesteps: Number of training timesteps T, up to 10⁶.
        beta_start: First beta, above 0.
        beta_end: Last beta, `beta_start` or more, below 1.
        beta_schedule: The curve between them: `linear`, `scaled_linear` (linear in sqrt(beta)) or
            `squaredcos_cap_v2` (a cosine, which ignores both).
        prediction_type: What the model predicts: `epsilon`, `v_prediction` or `sample` (x_0).
        clip_sample: Whether `step` clips the predicted x_0.
        clip_sample_range: Largest absolute value of the clipped x_0, above 0.
        timestep_spacing: How `set_timesteps` chooses timesteps: `leading`, `trailing` or
            `linspace` (Lin et al. 2023, arXiv 2305.08891, table 2).
        steps_offset: Added to the timesteps of the `leading` spacing, 0 or more.
        rescale_betas_zero_snr: Whether to rescale the betas to zero terminal SNR (Lin et al. 2023,
            alg. 1).

    Attributes:
        num_train_timesteps: Number of training timesteps T.

    Raises:
        UsageError: If a number is out of range.
        UnknownNameError: If a name is unknown.

    Example:
        A loop with an `unet` of your own; here it predicts no noise:

        >>> scheduler = eri.DDPMScheduler()
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        array([751, 501, 251,   1])
        >>> unet = lambda x, t: np.zeros_like(x)
        >>> x = np.ones((1, 4, 8, 8), np.float32)
        >>> for t in scheduler.timesteps:
        ...     x = scheduler.step(unet(x, t), t, x, eta=0.0)
        >>> x.shape, x.dtype
        ((1, 4, 8, 8), dtype('float32'))
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
        start, end = check_betas(beta_start, beta_end)
        low = 2 if boolean("rescale_betas_zero_snr", rescale_betas_zero_snr) else 1
        count = integer("num_train_timesteps", num_train_timesteps, low, MAX_TIMESTEPS)
        self.num_train_timesteps = count
        self._spec = ScheduleSpec(
            kind="vp",
            prediction=PREDICTIONS[check_name("prediction_type", prediction_type, PREDICTIONS)],
            num_train_timesteps=count,
            spacing=check_name("timestep_spacing", timestep_spacing, get_args(Spacing)),
            beta_start=start,
            beta_end=end,
            beta_curve=check_name("beta_schedule", beta_schedule, get_args(BetaCurve)),
            steps_offset=integer("steps_offset", steps_offset, 0, count),
            zero_terminal_snr=boolean("rescale_betas_zero_snr", rescale_betas_zero_snr),
        )
        self._alphas_cumprod = check_signal(alphas_cumprod(self._spec))
        positive = "a finite number above 0"
        limit = real("clip_sample_range", clip_sample_range, positive, lambda n: 0 < n < inf)
        self._limit = limit if boolean("clip_sample", clip_sample) else inf
        all_timesteps = replace(self._spec, spacing="leading", steps_offset=0)
        self._schedule = make_schedule(all_timesteps, count, tokens=0, whole_t=True)

    @property
    def alphas_cumprod(self) -> Float64:
        """alpha-bar_t, (num_train_timesteps,) float64. diffusers computes it in float32."""
        return self._alphas_cumprod.copy()

    @property
    def alphas(self) -> Float64:
        """1 − beta_t = alpha-bar_t/alpha-bar_(t−1), (num_train_timesteps,) float64."""
        alphas: Float64 = self._alphas_cumprod / np.append(1.0, self._alphas_cumprod[:-1])
        return alphas

    @property
    def betas(self) -> Float64:
        """beta_t, the variance added at each training step, (num_train_timesteps,) float64."""
        return 1 - self.alphas

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """The timesteps of the loop, (N,) int64, falling. Initially all training timesteps."""
        return self._schedule.t[:-1].astype(np.int64)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Chooses the timesteps of the loop by the scheduler's `timestep_spacing`.

        Args:
            num_inference_steps: Number of denoising steps N, from 1 to `num_train_timesteps`.

        Raises:
            UsageError: If it is out of range, or `steps_offset` moves a timestep past the last
                training timestep.
        """
        steps = integer("num_inference_steps", num_inference_steps, 1, self.num_train_timesteps)
        schedule = make_schedule(self._spec, steps, tokens=0, whole_t=True)
        if (np.diff(schedule.t[:-1]) >= 0).any():
            expected = f"fewer than {steps} with steps_offset {self._spec.steps_offset}"
            fix = "or make the scheduler with steps_offset=0"
            raise UsageError("num_inference_steps", got=steps, expected=expected, fix=fix)
        self._schedule = schedule

    def add_noise(
        self, original_samples: ArrayLike, noise: ArrayLike, timesteps: ArrayLike
    ) -> Array:
        """Adds noise to images or latents, as in training.

        Returns x_t = sqrt(alpha-bar_t)·x_0 + sqrt(1 − alpha-bar_t)·noise (Ho et al. 2020, eq. 4).

        Args:
            original_samples: x_0, (B, …) float32 or float64.
            noise: Unit normals of the same shape.
            timesteps: Integers t in [0, num_train_timesteps), (B,) or one for all.

        Returns:
            x_t, in the shape and dtype of `original_samples`.

        Raises:
            UsageError: If a timestep is out of range, or a dtype is wrong.
            SizeError: If the shapes differ.
            NonFiniteError: If an array contains NaN or Inf.

        Example:
            >>> x_0 = np.zeros((2, 4, 8, 8), np.float32)
            >>> noise = np.ones_like(x_0)
            >>> eri.DDPMScheduler().add_noise(x_0, noise, [0, 999])[:, 0, 0, 0].round(3)
            array([0.029, 0.998], dtype=float32)
        """
        x_0 = check_batch("original_samples", original_samples)
        eps = cast_like("noise", noise, x_0)
        t = integers("timesteps", timesteps, 0, self.num_train_timesteps - 1)
        if t.shape not in [(), x_0.shape[:1]]:
            expected = f"{x_0.shape[:1]}, one for each sample, or one number"
            raise SizeError("timesteps", got=t.shape, expected=expected)
        alpha_bar = self._alphas_cumprod[t].reshape(-1, *(1,) * (x_0.ndim - 1))
        alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        x_t: Array = alpha.astype(x_0.dtype) * x_0 + sigma.astype(x_0.dtype) * eps
        return x_t

    @np.errstate(over="ignore", invalid="ignore")  # `denoise` raises NonFiniteError instead
    def step(
        self,
        model_output: ArrayLike,
        timestep: int,
        sample: ArrayLike,
        eta: float = 1.0,
        use_clipped_model_output: bool = True,
        generator: NormalGenerator | None = None,
    ) -> Array:
        """Denoises one step: from `timestep` to the next one in `timesteps`, or to x_0 at the end.

            x' = sqrt(alpha-bar')·D + sqrt(1 − alpha-bar' − s²)·eps + s·n
            s² = eta²·(1 − alpha-bar')/(1 − alpha-bar)·(1 − alpha-bar/alpha-bar')

        (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16). D is the x_0 that `model_output`
        predicts, clipped if the scheduler clips, and
        eps = (x − sqrt(alpha-bar)·D)/sqrt(1 − alpha-bar).

        Args:
            model_output: The model's prediction, floats of the shape of `sample`.
            timestep: Current timestep t, one of `timesteps`.
            sample: Current x_t, (B, …) float32 or float64.
            eta: Amount of noise, from 0 to 1. 0 is DDIM; 1 is DDPM's posterior with variance
                beta-tilde (Ho et al. 2020, eq. 6 and 7).
            use_clipped_model_output: Whether eps is computed from the clipped D (default) or from
                the unclipped one. Matters only if the scheduler clips.
            generator: Source of the noise: an `np.random.Generator`, or `TorchNormal(seed)` for
                torch's noise. Default: a new unseeded generator. Nothing is drawn with `eta` 0 or
                at the last timestep.

        Returns:
            x at the next timestep, in the shape and dtype of `sample`.

        Raises:
            UsageError: If `timestep` is not one of `timesteps`, `eta` is out of range, a dtype is
                wrong, or `generator` cannot draw normals.
            SizeError: If the shapes differ.
            NonFiniteError: If an array or the result contains NaN or Inf.

        Example:
            >>> scheduler = eri.DDPMScheduler()
            >>> scheduler.set_timesteps(4)
            >>> x, eps = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
            >>> scheduler.step(eps, 751, x, generator=eri.TorchNormal(0)).shape
            (1, 2)
        """
        x = check_batch("sample", sample)
        predicted = cast_like("model_output", model_output, x)
        amount = real("eta", eta, "a number from 0 to 1", lambda number: 0 <= number <= 1)
        schedule = self._one_step(timestep)
        table = tabulate(partial(ddim, eta=amount), schedule, self._spec.prediction)
        boolean("use_clipped_model_output", use_clipped_model_output)
        hook = self._clip if use_clipped_model_output else identity
        noise = noise_source(generator, x)
        (result,) = denoise(lambda *_: predicted, table, x, noise, hook=hook)
        if use_clipped_model_output:
            return result.x
        clipped = self._clip(result.denoised)
        return result.x + float(schedule.alpha[1]) * (clipped - result.denoised)

    def _one_step(self, timestep: int) -> Schedule:
        """Returns the schedule of the single step from `timestep`.

        Raises `UsageError` if it is not one of `timesteps`.
        """
        t = integer("timestep", timestep, 0, self.num_train_timesteps - 1)
        (indices,) = np.nonzero(self._schedule.t[:-1] == t)
        if not indices.size:
            expected = f"one of the {len(self._schedule)} in `timesteps`"
            raise UsageError("timestep", got=t, expected=expected, fix="loop over `timesteps`")
        return self._schedule.part(int(indices[0]), 1)

    def _clip(self, denoised: Array) -> Array:
        """Clips x_0 if the scheduler clips."""
        return denoised if self._limit == inf else np.clip(denoised, -self._limit, self._limit)
