"""Samplers and schedulers by AUTOMATIC1111's names, in any case, and by eri's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from eri_runtime.bundle import ScheduleKind
from eri_runtime.errors import UnknownNameError, short
from eri_runtime.sampling import SAMPLERS, Sampler, find_sampler

# k-diffusion's names, which AUTOMATIC1111 has as aliases
ALIASES: Mapping[str, tuple[str, ...]] = {
    "Euler": ("k_euler",),
    "Euler a": ("k_euler_a", "k_euler_ancestral"),
    "Heun": ("k_heun",),
    "LMS": ("k_lms",),
    "DPM2": ("k_dpm_2",),
    "DPM2 a": ("k_dpm_2_a",),
    "DPM++ 2M": ("k_dpmpp_2m",),
    "DPM++ 2S a": ("k_dpmpp_2s_a",),
    "DPM++ SDE": ("k_dpmpp_sde",),
    "DPM++ 2M SDE": ("k_dpmpp_2m_sde",),
    "DPM++ 3M SDE": ("k_dpmpp_3m_sde",),
}


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of AUTOMATIC1111: how the noise levels are spaced.

    Attributes:
        name: Its name in requests.
        label: Its name for users.
        keywords: The keywords of a call of `Pipeline` that it sets.
    """

    name: str
    label: str
    keywords: Mapping[str, str]


SCHEDULERS = (
    Scheduler("automatic", "Automatic", {}),
    Scheduler("uniform", "Uniform", {"spacing": "linspace"}),
    Scheduler("karras", "Karras", {"sigmas": "karras"}),
    Scheduler("exponential", "Exponential", {"sigmas": "exponential"}),
    Scheduler("sgm_uniform", "SGM Uniform", {"spacing": "trailing"}),
    Scheduler("simple", "Simple", {"sigmas": "simple"}),
    Scheduler("normal", "Normal", {"spacing": "linspace"}),
    Scheduler("beta", "Beta", {"sigmas": "beta"}),
)


def samplers_for(kind: ScheduleKind) -> Iterator[Sampler]:
    """Yields the samplers that are defined on a kind of schedule."""
    for name in SAMPLERS:
        with suppress(UnknownNameError):
            yield find_sampler(name, kind)


def choose_sampler(name: str, kind: ScheduleKind) -> Sampler:
    """Returns a sampler by AUTOMATIC1111's label or alias, or by eri's name.

    Raises `UnknownNameError` if there is none, or none for this kind of schedule.
    """
    fitting = list(samplers_for(kind))
    for sampler in fitting:
        if _key(name) in map(_key, (sampler.label, *aliases_of(sampler))):
            return sampler
    expected = f"one of {', '.join(sampler.label for sampler in fitting)}"
    raise UnknownNameError("sampler_name", got=short(name), expected=expected)


def choose_scheduler(name: str) -> Scheduler:
    """Returns a scheduler by its name or label; raises `UnknownNameError` if there is none."""
    for scheduler in SCHEDULERS:
        if _key(name) in (_key(scheduler.name), _key(scheduler.label)):
            return scheduler
    expected = f"one of {', '.join(scheduler.name for scheduler in SCHEDULERS)}"
    raise UnknownNameError("scheduler", got=short(name), expected=expected)


def split_label(label: str) -> tuple[str, str | None]:
    """Splits an old label such as `DPM++ 2M Karras` into sampler and scheduler, if it has one."""
    for scheduler in sorted(SCHEDULERS, key=lambda each: -len(each.label)):
        sampler = label.strip()[: -len(scheduler.label)].rstrip()
        if sampler and _key(label).endswith(f" {_key(scheduler.label)}"):
            return sampler, scheduler.name
    return label, None


def aliases_of(sampler: Sampler) -> list[str]:
    """Returns the names of a sampler beside its label."""
    return [sampler.name, *ALIASES.get(sampler.label, ())]


def _key(name: str) -> str:
    """Returns what is compared of a name: its letters in one case, without outer spaces."""
    return name.strip().lower()
