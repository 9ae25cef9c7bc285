"""Configuration objects that set several keywords of a call, with the names of EriDiffusion's API.

Each validates its fields when it is created; `words()` returns the keywords it sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eri_runtime.checks import NOT_NEGATIVE, integer, not_negative, real
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling import CHURN, ETA, MAX_SEED

Check = Callable[[str, Any], Any]
LIMITS = {"eta": ETA, **CHURN}  # default and range of each option, the same for every sampler


@dataclass(frozen=True)
class SamplingConfig:
    """Steps, guidance, size, seed and output folder of a run.

    Pass it as `config=` to a call of a pipeline, or to `batch_sample` and
    `generate_validation_samples`. A keyword of the call overrides the field of the same name.

    Attributes:
        num_inference_steps: Number of denoising steps, 1 or more.
        guidance_scale: Scale of CFG, or Flux's embedded guidance; a finite number, 0 or more. CFG
            is off at 1 or less.
        height: Height of the images in pixels. The bundle limits the sizes it can generate.
        width: Width of the images in pixels.
        seed: Seed of the first image, 0 to 2⁶⁴ − 1; image i has seed + i. Default: a random seed.
        output_dir: Folder in which `generate_validation_samples` saves its images.

    Raises:
        UsageError: If a value is invalid; the message names the field.

    Example:
        >>> config = eri.SamplingConfig(num_inference_steps=2, height=32, width=32, seed=0)
        >>> pipe("a red heart", config=config, width=48).images[0].size
        (48, 32)
    """

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    height: int = 1024
    width: int = 1024
    seed: int | None = None
    output_dir: Path = Path("outputs")

    def __post_init__(self) -> None:
        count = partial(integer, low=1)
        _check(
            self,
            {
                "num_inference_steps": count,
                "guidance_scale": not_negative,
                "height": count,
                "width": count,
                "seed": _optional(partial(integer, low=0, high=MAX_SEED)),
                "output_dir": _path,
            },
        )

    def words(self) -> dict[str, Any]:
        """Returns the keywords of a call that the config sets: all fields but `output_dir`.

        Example:
            >>> sorted(eri.SamplingConfig().words())
            ['guidance_scale', 'height', 'num_inference_steps', 'width']
        """
        return {name: value for name, value in _set_fields(self).items() if name != "output_dir"}


@dataclass(frozen=True)
class GuidanceConfig:
    """Guidance of a call: CFG, and the guidance that distilled models such as Flux embed.

    Pass it as `guidance=` to a call of a pipeline. CFG is F_neg + g·(F_pos − F_neg) (Ho & Salimans
    2022, arXiv 2207.12598); embedded guidance is an input of the network (Meng et al. 2023, arXiv
    2210.03142).

    Attributes:
        guidance_scale: g of CFG for SDXL and SD3.5, the embedded guidance for Flux; a finite
            number, 0 or more.
        guidance_embedding: Embedded guidance instead of `guidance_scale`, for models that embed it:
            one number, or (B,) for one per image. The graph computes the embedding from it.
        bypass_guidance: Runs one conditional pass, without CFG and without embedded guidance.

    Raises:
        UsageError: If a value is invalid; the message names the field.

    Example:
        >>> guidance = eri.GuidanceConfig(4.5)
        >>> pipe.request("a red heart", guidance=guidance).guidance.scale
        array([4.5], dtype=float32)
    """

    guidance_scale: float
    guidance_embedding: ArrayLike | None = None
    bypass_guidance: bool = False

    def __post_init__(self) -> None:
        _check(
            self,
            {
                "guidance_scale": not_negative,
                "guidance_embedding": _optional(_one_or_many),
                "bypass_guidance": _boolean,
            },
        )

    def words(self) -> dict[str, Any]:
        """Returns the keywords of a call that the config sets; `bypass_guidance` only if True.

        Example:
            >>> eri.GuidanceConfig(4.5).words()
            {'guidance_scale': 4.5}
        """
        return {name: value for name, value in _set_fields(self).items() if value is not False}


@dataclass(frozen=True)
class AncestralSamplerConfig:
    """Noise that a stochastic sampler adds. None is the sampler's own default.

    Pass it as `ancestral=` to a call of a pipeline. `eta` scales the ancestral noise sigma_up =
    eta·sigma'·sqrt(1 − (alpha·sigma'/(alpha'·sigma))²) (Song et al. 2021, arXiv 2010.02502, eq.
    16); the others are those of Karras et al. (2022, arXiv 2206.00364, alg. 2). A sampler refuses
    an option that it does not have.

    Attributes:
        eta: Share of the ancestral noise, 0 (none) to 1.
        s_churn: Amount of noise added over all steps, 0 or more.
        s_tmin: Lowest noise level at which churn adds noise, in sigma/alpha.
        s_tmax: Highest noise level at which churn adds noise, in sigma/alpha.
        s_noise: Scale of the added noise, 0 to 2.

    Raises:
        UsageError: If a value is invalid; the message names the field.

    Example:
        >>> ancestral = eri.AncestralSamplerConfig(eta=0.5)
        >>> pipe.request("a red heart", sampler="euler_a", ancestral=ancestral).options
        {'eta': 0.5, 's_noise': 1.0}
    """

    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None

    def __post_init__(self) -> None:
        _check(self, {name: _optional(_within_limits) for name in LIMITS})
        if self.s_tmin is not None and self.s_tmax is not None and self.s_tmin > self.s_tmax:
            expected = f"at most s_tmax, which is {self.s_tmax:g}"
            raise UsageError("s_tmin", got=f"{self.s_tmin:g}", expected=expected)

    @property
    def options(self) -> dict[str, float]:
        """The options that are not None, by name, as a call's `sampler_options`.

        Example:
            >>> eri.AncestralSamplerConfig(s_churn=10, s_noise=1.01).options
            {'s_churn': 10.0, 's_noise': 1.01}
        """
        return _set_fields(self)

    def words(self) -> dict[str, Any]:
        """Returns the keywords of a call that the config sets.

        Example:
            >>> eri.AncestralSamplerConfig(eta=0.5).words()
            {'sampler_options': {'eta': 0.5}}
        """
        return {"sampler_options": self.options}


def _check(config: Any, checks: Mapping[str, Check]) -> None:
    """Replaces every field by the value that its check returns."""
    for name, check in checks.items():
        object.__setattr__(config, name, check(name, getattr(config, name)))


def _set_fields(config: Any) -> dict[str, Any]:
    """Returns the fields that are not None."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None}


def _optional(check: Check) -> Check:
    """Returns a check that also allows None."""
    return lambda name, value: None if value is None else check(name, value)


def _within_limits(name: str, value: object) -> float:
    """Returns a sampler option as a float; raises `UsageError` if it is out of range."""
    _, low, high = LIMITS[name]
    return real(name, value, f"{low:g} to {high:g}", lambda number: low <= number <= high)


def _one_or_many(name: str, value: Any) -> float | tuple[float, ...]:
    """Returns one number as a float, or (B,) numbers as a tuple.

    A tuple can be hashed and compared, so that equal configs are equal.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            expected = f"{NOT_NEGATIVE}, or (B,) of them"
            fix = "one number an image is enough: the graph makes the embedding of it"
            raise UsageError(
                name, got=f"{value.dtype} of {value.shape}", expected=expected, fix=fix
            )
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return not_negative(name, value)
    if not value:
        raise UsageError(name, got=short(value), expected="one number or more")
    return tuple(not_negative(f"{name}[{i}]", number) for i, number in enumerate(value))


def _boolean(name: str, value: object) -> bool:
    """Returns a Python or NumPy bool as a bool; raises `UsageError` for anything else."""
    if not isinstance(value, bool | np.bool):
        raise UsageError(name, got=short(value), expected="True or False")
    return bool(value)


def _path(name: str, value: object) -> Path:
    """Returns a `Path`; raises `UsageError` for anything but a string or a path."""
    if not isinstance(value, str | PathLike):
        raise UsageError(name, got=short(value), expected="a path")
    return Path(value)
