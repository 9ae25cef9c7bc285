"""What a case is: a sampler on a schedule, its reference, and how far off it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eri_runtime.bundle.spec import ScheduleSpec
from tests.support.oracles import network
from tests.support.references.schedulers import Diffusers

STEPS = (1, 2, 7, 20)
TOLERANCE32, TOLERANCE64 = 1e-5, 1e-10


def timeless(x, t):
    """A network for schedulers that round the clock: it cannot tell."""
    return network(x, 300.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A sampler with its options on a schedule, and what it is compared with.

    `sigmas` is a spacing's name, a function of the steps to a list, or "reference" for the levels
    of the scheduler. `timeless`: the network does not see t. `reason` is why float32 has
    fewer digits, and `tolerance` larger than usual.
    """

    sampler: str
    spec: ScheduleSpec
    reference: Diffusers | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    sigmas: Any = "default"
    tokens: int = 64
    steps: Sequence[int] = STEPS
    timeless: bool = False
    tolerance: float = TOLERANCE32
    reason: str = ""

    @property
    def network(self) -> Any:
        return timeless if self.timeless else network

    def __str__(self) -> str:
        return " ".join(self.columns())

    def columns(self) -> tuple[str, str, str, str]:
        """The sampler with its options, the schedule, the prediction, the reference."""
        options = ",".join(f"{name}={value:g}" for name, value in self.options.items())
        reference = "k-diffusion's formula" if self.reference is None else self.reference.name
        return f"{self.sampler} {options}".strip(), self.schedule(), self.spec.prediction, reference

    def schedule(self) -> str:
        """The curve or shift, the spacing and the levels."""
        spec = self.spec
        words = [spec.kind, spec.beta_curve if spec.kind == "vp" else f"shift {spec.shift:g}"]
        if spec.dynamic_shift:
            words[1] = f"shift of {self.tokens} tokens"
        words.append(spec.spacing)
        words += ["zero-SNR"] * spec.zero_terminal_snr + ["to sigma_min"] * (spec.final != "zero")
        if spec.num_train_timesteps != 1000:
            words.append(f"T {spec.num_train_timesteps}")
        if spec.beta_end != ScheduleSpec.beta_end:
            words.append(f"beta {spec.beta_start:g} to {spec.beta_end:g}")
        if self.sigmas != "default":
            named = {"reference": "the reference's levels"}
            words.append("listed" if callable(self.sigmas) else named.get(self.sigmas, self.sigmas))
        return " ".join(words)


class Errors(NamedTuple):
    """The worst over every x of a run, relative to the largest value of that x.

    `float32`: ours and the reference; `ours32`, `theirs32`: each and the float64 oracle, both run
    in float32; `float64`: ours and the oracle.
    """

    float32: float
    ours32: float
    theirs32: float
    float64: float
    oracle: str


def outside(case: Case, errors: Errors) -> str:
    """Which bound a run breaks, or nothing."""
    if not errors.float64 <= TOLERANCE64:
        return "float64"
    if errors.float32 <= case.tolerance:
        return ""
    excused = case.reference is not None and case.reference.rounds
    if excused and errors.ours32 <= TOLERANCE32 < 2 * errors.theirs32:
        return ""
    return "float32"
