"""Configurations that stand for several keywords of a call, under the names of the Rust API.

Each is checked when it is made, and knows the `words` it stands for.
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

from eri_runtime.checks import NOT_NEGATIVE, not_negative, real, whole
from eri_runtime.errors import UsageError, short
from eri_runtime.randn import MAX_SEED
from eri_runtime.samplers import CHURN, ETA

Check = Callable[[str, Any], Any]
LIMITS = {"eta": ETA, **CHURN}  # of every sampler that has the option


@dataclass(frozen=True)
class SamplingConfig:
    """How many steps, how guided, how large, from which seed, and where the images go.

    `num_inference_steps` is 1 or more, `guidance_scale` a finite number of 0 or more (off at 1 or
    less), `height` and `width` pixels; what a bundle can do of these is checked by its call. `seed`
    is 0 to 2⁶⁴ − 1, None draws one. `output_dir` is where `generate_validation_samples` saves.
    Raises `UsageError` naming the field.
    """

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    height: int = 1024
    width: int = 1024
    seed: int | None = None
    output_dir: Path = Path("outputs")

    def __post_init__(self) -> None:
        count = partial(whole, low=1)
        _check(
            self,
            {
                "num_inference_steps": count,
                "guidance_scale": not_negative,
                "height": count,
                "width": count,
                "seed": _optional(partial(whole, low=0, high=MAX_SEED)),
                "output_dir": _path,
            },
        )

    def words(self) -> dict[str, Any]:
        """The keywords of a call: all but `output_dir`, which a call has no use for."""
        return {name: value for name, value in _given(self).items() if name != "output_dir"}


@dataclass(frozen=True)
class GuidanceConfig:
    """Guidance, which a denoiser may embed as Flux's does (Meng et al. 2023, arXiv 2210.03142).

    `guidance_scale` is a finite number of 0 or more: CFG's g, F_neg + g·(F_pos − F_neg) (Ho &
    Salimans 2022, arXiv 2207.12598), or for Flux what is embedded. `guidance_embedding`, a number
    or (B,) of them, one an image, is told to a denoiser that embeds its guidance in place of
    `guidance_scale`; the graph makes the embedding of it. `bypass_guidance` runs one conditional
    pass without CFG and leaves the embedded guidance out.
    Raises `UsageError` naming the field.
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
                "bypass_guidance": _yes_or_no,
            },
        )

    def words(self) -> dict[str, Any]:
        """The keywords of a call; `bypass_guidance` only if it is on."""
        return {name: value for name, value in _given(self).items() if value is not False}


@dataclass(frozen=True)
class AncestralSamplerConfig:
    """The noise of a stochastic sampler; None is the sampler's own default.

    `eta` (0 to 1) is the share of the ancestral noise, sigma_up = eta·sigma'·sqrt(1 −
    (alpha·sigma'/(alpha'·sigma))²) (Song et al. 2021, arXiv 2010.02502, eq. 16), 0 for none. The
    others are Karras et al.'s (2022, arXiv 2206.00364, alg. 2): `s_churn` (0 or more) is shared out
    over the steps whose noise level sigma/alpha is within `s_tmin` to `s_tmax`, and `s_noise` (0 to
    2) scales what is added. A sampler refuses an option that it does not take.
    Raises `UsageError` naming the field.
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
        """The options that were given, by name."""
        return _given(self)

    def words(self) -> dict[str, Any]:
        """The keywords of a call."""
        return {"sampler_options": self.options}


def _check(config: Any, checks: Mapping[str, Check]) -> None:
    """Put what each check makes of its field in the field's place."""
    for name, check in checks.items():
        object.__setattr__(config, name, check(name, getattr(config, name)))


def _given(config: Any) -> dict[str, Any]:
    """The fields that are not None."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None}


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _within_limits(name: str, value: object) -> float:
    _, low, high = LIMITS[name]
    return real(name, value, f"{low:g} to {high:g}", lambda number: low <= number <= high)


def _one_or_many(name: str, value: Any) -> float | tuple[float, ...]:
    """A number, or (B,) as a tuple: two equal configurations then compare and hash as equal."""
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


def _yes_or_no(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool):
        raise UsageError(name, got=short(value), expected="True or False")
    return bool(value)


def _path(name: str, value: object) -> Path:
    if not isinstance(value, str | PathLike):
        raise UsageError(name, got=short(value), expected="a path")
    return Path(value)
