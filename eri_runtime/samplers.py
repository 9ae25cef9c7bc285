"""The samplers, k-diffusion style: `sampler(denoise, noise, x, schedule) -> x`.

`denoise(x, point)` is x_0 as the network sees it and `noise()` a fresh unit normal; x is an array,
or a `Linear` when `table.tabulate` asks what the algorithm does. A sampler is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

from eri_runtime.errors import UnknownNameError
from eri_runtime.schedule import Point, Schedule
from eri_runtime.spec import ScheduleKind

Denoise = Callable[[Any, Point], Any]
Noise = Callable[[], Any]


def ddim(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, eta: float = 0.0) -> Any:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16; eta 1 is ancestral DDPM.

    x' = (sigma_d/sigma)·x + (alpha' − alpha·sigma_d/sigma)·D + sigma_up·n
    """
    for here, there in schedule.steps():
        down, up = split_noise(here, there, eta)
        keep = down / here.sigma
        x = keep * x + (there.alpha - here.alpha * keep) * denoise(x, here)
        if up > 0:
            x = x + up * noise()
    return x


def split_noise(here: Point, there: Point, eta: float) -> tuple[float, float]:
    """sigma_down, sigma_up with sigma_down² + sigma_up² = sigma'² (DDIM eq. 16 in alpha, sigma).

    sigma_up = eta·sigma'·sqrt(1 − (alpha·sigma' / (alpha'·sigma))²)
    """
    ratio = here.alpha * there.sigma / (there.alpha * here.sigma)
    up = min(eta * there.sigma * sqrt(max(0.0, 1 - ratio**2)), there.sigma)
    return sqrt(max(0.0, there.sigma**2 - up**2)), up


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """An algorithm, the schedules it is defined on, and the conventions of its name.

    `whole_t`: the training clock is rounded to integers. `starts_at_sigma`: x starts at
    sigma_0·noise where the schedule ends short of pure noise, k-diffusion's convention; DDIM and
    the `leading` spacing start at unit noise.
    """

    name: str
    label: str  # AUTOMATIC1111's name
    algorithm: Callable[..., Any]
    kinds: tuple[ScheduleKind, ...]
    whole_t: bool = False
    starts_at_sigma: bool = False
    takes_eta: bool = False


# In (alpha, sigma) Euler's step on the probability-flow ODE is DDIM's with eta 0, for `vp` as for
# `flow` (Karras et al. 2022, arXiv 2206.00364, appendix C); the names differ by convention.
SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler(
            name="ddim",
            label="DDIM",
            algorithm=ddim,
            kinds=("vp",),
            whole_t=True,
            takes_eta=True,
        ),
        Sampler(name="euler", label="Euler", algorithm=ddim, kinds=("vp",), starts_at_sigma=True),
        Sampler(name="flow_euler", label="Euler", algorithm=ddim, kinds=("flow",)),
    )
}


def find_sampler(name: str, kind: ScheduleKind) -> Sampler:
    """The sampler called `name`; raises `UnknownNameError` if there is none for this schedule."""
    fitting = [sampler.name for sampler in SAMPLERS.values() if kind in sampler.kinds]
    if name not in fitting:
        got = f"{name!r}, which is for another kind of schedule" if name in SAMPLERS else repr(name)
        raise UnknownNameError("sampler", got=got, expected=f"one of {', '.join(fitting)}")
    return SAMPLERS[name]
