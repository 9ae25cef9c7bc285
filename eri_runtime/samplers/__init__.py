"""The samplers, k-diffusion style: `sampler(denoise, noise, x, schedule, **options) -> x`.

`denoise(x, point)` is x_0 as the network sees it and `noise()` a fresh unit normal; x is an array,
or a `Linear` when `table.tabulate` asks what the algorithm does. A sampler is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.samplers import distilled, multistep, second_order
from eri_runtime.samplers.euler import ddim
from eri_runtime.schedule import Schedule, make_schedule
from eri_runtime.sigmas import SigmaName
from eri_runtime.spec import ScheduleKind, ScheduleSpec

__all__ = ["REFUSED", "SAMPLERS", "Sampler", "ddim", "find_sampler"]

Memory = Literal["x0", "slope"]


class Option(NamedTuple):
    """A number the algorithm takes: its default, and the range it must lie in."""

    default: float
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """An algorithm, the schedules it is defined on, and the conventions of its name.

    `whole_t`: the training clock is rounded to integers. `starts_at_sigma`: x starts at
    sigma_0·noise where the schedule ends short of pure noise, k-diffusion's convention; DDIM and
    the `leading` spacing start at unit noise. `original_steps`: those a distilled model was
    taught. `memory`: what the table's rows remember, x_0 or the ODE's slope (x − scale·x_0)/sigma.
    """

    name: str
    label: str  # AUTOMATIC1111's name
    algorithm: Callable[..., Any]
    kinds: tuple[ScheduleKind, ...]
    options: Mapping[str, Option] = field(default_factory=dict)
    whole_t: bool = False
    starts_at_sigma: bool = False
    original_steps: int | None = None
    memory: Memory = "x0"

    def schedule(
        self,
        spec: ScheduleSpec,
        steps: int,
        tokens: int,
        sigmas: SigmaName | Sequence[float] = "default",
    ) -> Schedule:
        """`make_schedule` with this sampler's conventions."""
        return make_schedule(
            spec,
            steps,
            tokens,
            whole_t=self.whole_t,
            original_steps=self.original_steps,
            sigmas=sigmas,
        )

    def checked(self, options: Mapping[str, float]) -> dict[str, float]:
        """All options, those not given at their defaults; raises `UsageError` for a bad one."""
        for name, value in options.items():
            if name not in self.options:
                expected = ", ".join(self.options) or "no options"
                raise UsageError(name, got=f"{value} with {self.name}", expected=expected)
            _, low, high = self.options[name]
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UsageError(name, got=repr(value), expected=f"{low:g} to {high:g}")
        return {name: options.get(name, o.default) for name, o in self.options.items()}


NO_ETA, ETA, S_NOISE = Option(0.0, 0.0, 1.0), Option(1.0, 0.0, 1.0), Option(1.0, 0.0, 2.0)
CHURN = {
    "s_churn": Option(0.0),
    "s_tmin": Option(0.0),
    "s_tmax": Option(float("inf")),
    "s_noise": S_NOISE,
}
VP: tuple[ScheduleKind, ...] = ("vp",)
ANY: tuple[ScheduleKind, ...] = ("vp", "flow")
NOISY = {"eta": ETA, "s_noise": S_NOISE}
K_DIFFUSION: Any = {"starts_at_sigma": True}

# In (alpha, sigma) Euler's step on the probability-flow ODE is DDIM's with eta 0, for `vp` as for
# `flow` (Karras et al. 2022, arXiv 2206.00364, appendix C); with eta 1 it is DDPM's and Euler a's.
# The names differ by convention.
SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler(
            name="ddim",
            label="DDIM",
            algorithm=ddim,
            kinds=VP,
            whole_t=True,
            options={"eta": NO_ETA},
        ),
        Sampler(name="euler", label="Euler", algorithm=ddim, kinds=VP, **K_DIFFUSION),
        Sampler(name="flow_euler", label="Euler", algorithm=ddim, kinds=("flow",)),
        Sampler(
            name="euler_a",
            label="Euler a",
            algorithm=ddim,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="ddpm",
            label="DDPM",
            algorithm=ddim,
            kinds=VP,
            whole_t=True,
            options={"eta": Option(1.0, 1.0, 1.0)},
        ),
        Sampler(
            name="heun",
            label="Heun",
            algorithm=second_order.heun,
            kinds=VP,
            options=CHURN,
            **K_DIFFUSION,
        ),
        # churn would add noise to a flow without shrinking its signal, so it has none
        Sampler(name="flow_heun", label="Heun", algorithm=second_order.heun, kinds=("flow",)),
        Sampler(
            name="dpmpp_2m",
            label="DPM++ 2M",
            algorithm=multistep.dpmpp_2m,
            kinds=ANY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_2m_sde",
            label="DPM++ 2M SDE",
            algorithm=multistep.dpmpp_2m,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_sde",
            label="DPM++ SDE",
            algorithm=second_order.dpmpp_sde,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_3m_sde",
            label="DPM++ 3M SDE",
            algorithm=multistep.dpmpp_3m_sde,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="lms",
            label="LMS",
            algorithm=multistep.lms,
            kinds=ANY,
            options={"order": Option(4, 1, 4)},
            memory="slope",
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpm2",
            label="DPM2",
            algorithm=second_order.dpm2,
            kinds=ANY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpm2_a",
            label="DPM2 a",
            algorithm=second_order.dpm2,
            kinds=VP,
            options={"eta": ETA},
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_2s_a",
            label="DPM++ 2S a",
            algorithm=second_order.dpmpp_2s,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="unipc",
            label="UniPC",
            algorithm=multistep.unipc,
            kinds=ANY,
            options={"order": Option(2, 1, 3)},
            whole_t=True,
        ),
        Sampler(
            name="lcm",
            label="LCM",
            algorithm=distilled.lcm,
            kinds=ANY,
            whole_t=True,
            original_steps=50,
        ),
        Sampler(
            name="tcd",
            label="TCD",
            algorithm=distilled.tcd,
            kinds=VP,
            options={"eta": Option(0.3, 0.0, 1.0)},
            whole_t=True,
            original_steps=50,
        ),
    )
}

ADAPTIVE = "its step sizes follow from the images, so it has no table"
REFUSED = {
    "dpm_adaptive": ADAPTIVE,
    "dpm_fast": "its orders 1 to 3 alternate over its own levels, and no table was made of it",
    "ddpm_learned_range": "its variance is a second output of the network, so it has no table",
}


def find_sampler(name: str, kind: ScheduleKind) -> Sampler:
    """The sampler called `name`; raises `UnknownNameError` if there is none for this schedule."""
    fitting = [sampler.name for sampler in SAMPLERS.values() if kind in sampler.kinds]
    if name in fitting:
        return SAMPLERS[name]
    expected = f"one of {', '.join(fitting)}"
    got = f"{name!r}, which is for another kind of schedule" if name in SAMPLERS else repr(name)
    reason = REFUSED.get(name.lower().replace(" ", "_"))
    raise UnknownNameError("sampler", got=got, expected=expected, fix=reason)
