"""A scheduler's config, completed by the defaults of its class in diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers

from eri_runtime.bundle import Family, Spread
from eri_runtime.errors import CheckpointError, short

FIX = (
    "change scheduler_config.json, or give another with `--scheduler`; docs/guides/samplers.md "
    "lists the schedulers that are read"
)
SPREADS: Mapping[str, Spread] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "exponential",  # even in lambda, which is even in log(sigma/alpha)
}
_NO_TRAINED = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
# diffusers hides the arguments of these where SciPy and torchsde are not installed
HIDDEN: Mapping[str, Mapping[str, Any]] = {
    "LMSDiscreteScheduler": _NO_TRAINED,
    "DPMSolverSDEScheduler": {
        **_NO_TRAINED,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "noise_sampler_seed": None,
    },
}


@dataclass(frozen=True)
class Settings:
    """A scheduler's config, completed by its class's defaults.

    Attributes:
        where: Where it is, for messages.
        name: The class.
        config: Its arguments, and keys of the file that are none.
        family: The family of the checkpoint.
    """

    where: Path
    name: str
    config: Mapping[str, Any]
    family: Family

    def get(self, key: str, default: Any = None) -> Any:
        """Returns an argument of the class, or `default` if the class has no such argument."""
        return self.config[key] if key in arguments_of(self.name) else default

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """Returns a number; raises `CheckpointError` if it is none, or out of these limits."""
        value = self.config.get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise self.refuse(key, f"a number from {low:g} to {high:g}")
        return float(value)

    @property
    def spread(self) -> Spread:
        """The name of the curve on which the levels are placed, or `none`."""
        return next((name for key, name in SPREADS.items() if self.get(key)), "none")

    def check_spread(self) -> None:
        """Raises `CheckpointError` for two curves at once, of which one would not be followed."""
        asked = [key for key in SPREADS if self.get(key)]
        if len(asked) > 1:
            raise self.refuse(asked[1], f"False beside {asked[0]}: the levels follow one curve")

    @property
    def flow(self) -> bool:
        """Whether the levels are a flow's."""
        return self.name.startswith("FlowMatch") or bool(self.get("use_flow_sigmas"))

    def refuse(self, key: str, expected: str) -> CheckpointError:
        """Returns the error for the value of a key."""
        got = self.config.get(key)
        return CheckpointError(f"{self.where}: {key}", got=short(got), expected=expected, fix=FIX)


@cache
def arguments_of(name: str) -> Mapping[str, Any]:
    """Returns the arguments of a scheduler's class, with their defaults."""
    if name in HIDDEN:
        return HIDDEN[name]
    parameters = inspect.signature(getattr(diffusers, name)).parameters.values()
    return {each.name: each.default for each in parameters}
