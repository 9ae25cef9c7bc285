"""Samplers by the names that people write: eri's, AUTOMATIC1111's, ComfyUI's and diffusers'.

AUTOMATIC1111 names the noise levels behind the sampler (`DPM++ 2M Karras`), or beside it as a
"scheduler"; `SCHEDULERS` maps those to keywords of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

from eri_runtime.bundle import ScheduleKind
from eri_runtime.errors import UnknownNameError, nearest, short
from eri_runtime.sampling.samplers import SAMPLERS, Sampler

# k-diffusion's names, which AUTOMATIC1111 and ComfyUI list, by sampler
ALIASES: Mapping[str, tuple[str, ...]] = {
    "euler": ("k_euler",),
    "flow_euler": ("k_euler",),
    "euler_a": ("k_euler_a", "k_euler_ancestral"),
    "heun": ("k_heun",),
    "flow_heun": ("k_heun",),
    "lms": ("k_lms",),
    "dpm2": ("k_dpm_2",),
    "dpm2_a": ("k_dpm_2_a", "k_dpm_2_ancestral"),
    "dpmpp_2m": ("k_dpmpp_2m",),
    "dpmpp_2s_a": ("k_dpmpp_2s_a", "k_dpmpp_2s_ancestral"),
    "dpmpp_sde": ("k_dpmpp_sde", "dpmpp_sde_gpu"),
    "dpmpp_2m_sde": ("k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    "dpmpp_3m_sde": ("k_dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
    "unipc": ("uni_pc",),
    "pndm": ("plms",),
}

# diffusers' scheduler classes with their default arguments
CLASSES: Mapping[str, str] = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_singlestep",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "SASolverScheduler": "sa_solver",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
    "FlowMatchEulerDiscreteScheduler": "flow_euler",
    "FlowMatchHeunDiscreteScheduler": "flow_heun",
    "FlowMatchLCMScheduler": "lcm",
}

EDM = ("dpmpp_multistep", "dpmpp_singlestep", "dpm_multistep", "dpm_singlestep", "deis", "unipc")
LONGEST = 64  # characters of a name that are compared with others
ADAPTIVE = "its step sizes depend on the image, so it has no table"
REFUSED = {
    "dpm_adaptive": ADAPTIVE,
    "dpm_fast": "it alternates orders 1 to 3 over noise levels of its own, and has no table",
    "ddpm_learned_range": "its variance is a second output of the network, so it has no table",
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
    keywords: Mapping[str, str] = field(default_factory=dict)


SCHEDULERS = (
    Scheduler("automatic", "Automatic"),
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
    return (sampler for sampler in SAMPLERS.values() if _fits(sampler, kind))


def names_of(sampler: Sampler) -> tuple[str, ...]:
    """Returns the other names of a sampler: its label, k-diffusion's and diffusers' classes."""
    classes = (name for name, own in CLASSES.items() if own == sampler.name)
    return sampler.label, *ALIASES.get(sampler.name, ()), *classes


def find_sampler(name: object, kind: ScheduleKind, what: str = "sampler") -> Sampler:
    """Returns the sampler of a name, in any case and with any of `_`, `-` and space in it.

    A name of both kinds of schedules, such as `euler` or `flow_euler`, means the sampler of the
    kind at hand.

    Args:
        name: Any of a sampler's names.
        kind: The kind of the model's schedule.
        what: The argument, for the error.

    Raises:
        UnknownNameError: If there is no such sampler, or none for this kind of schedule.
    """
    if isinstance(name, str) and (found := _found(name, kind)):
        return found
    raise _unknown(name, kind, what)


def choose_sampler(
    name: object, kind: ScheduleKind, what: str = "sampler"
) -> tuple[Sampler, Scheduler | None]:
    """Returns the sampler of a name, and the scheduler that AUTOMATIC1111 writes behind it.

    Takes what `find_sampler` takes, and the same followed by one of `SCHEDULERS`, such as
    `DPM++ 2M Karras`. Without it the second is None. Raises as `find_sampler` does.
    """
    if isinstance(name, str):
        if found := _found(name, kind):
            return found, None
        for scheduler in sorted(SCHEDULERS, key=lambda each: -len(each.name)):
            front = _key(name).removesuffix(_key(scheduler.name))
            if front != _key(name) and (found := _found(front, kind)):
                return found, scheduler
    raise _unknown(name, kind, what)


def full_name(name: object, kind: ScheduleKind) -> str:
    """Returns eri's name of a sampler, with the scheduler behind it if `name` has one.

    `DPM++ 2M Karras` is `dpmpp_2m_karras`. Raises as `find_sampler` does.
    """
    sampler, scheduler = choose_sampler(name, kind)
    return sampler.name if scheduler is None else f"{sampler.name}_{scheduler.name}"


def choose_scheduler(name: str, what: str = "scheduler") -> Scheduler:
    """Returns a scheduler by its name or label; raises `UnknownNameError` if there is none."""
    for scheduler in SCHEDULERS:
        if _key(name) == _key(scheduler.name):
            return scheduler
    near = _nearest(name, {scheduler.name: scheduler.name for scheduler in SCHEDULERS})
    expected = "noise levels of AUTOMATIC1111, such as 'karras' or 'sgm_uniform'"
    raise UnknownNameError(what, got=short(name), expected=expected, fix=near)


def _found(name: str, kind: ScheduleKind) -> Sampler | None:
    """Returns the sampler of a name on a kind of schedule, or the other kind's twin, or None."""
    named = _by_key().get(_key(name), ())
    labels = [sampler.label for sampler in named]
    fitting = (sampler for sampler in named if _fits(sampler, kind))
    twins = (sampler for sampler in samplers_for(kind) if sampler.label in labels)
    return next(chain(fitting, twins), None)


def _unknown(name: object, kind: ScheduleKind, what: str) -> UnknownNameError:
    """Returns the error for a name of no sampler, or of none for this kind of schedule."""
    others = [other for other in ("vp", "flow", "edm") if other != kind]
    expected = f"a sampler of {kind} schedules, such as {next(samplers_for(kind)).name!r}"
    fix = "`eri samplers` lists them"
    if not isinstance(name, str):
        return UnknownNameError(what, got=short(name), expected=expected, fix=fix)
    reason = next((why for each, why in REFUSED.items() if _key(each) == _key(name)), None)
    if any(_found(name, other) for other in others):  # type: ignore[arg-type]
        got = f"{short(name)}, which is for another kind of schedule"
        return UnknownNameError(what, got=got, expected=expected, fix=fix)
    names = {each: own.name for own in samplers_for(kind) for each in (own.name, *names_of(own))}
    near = _nearest(name, names)
    fix = reason or (f"{near} {fix}" if near else fix)
    return UnknownNameError(what, got=short(name), expected=expected, fix=fix)


def _nearest(name: str, names: Mapping[str, str]) -> str | None:
    """Returns a question for the nearest of the names, by its value, or None if none is near."""
    keys = {_key(each): value for each, value in names.items()}
    near = nearest(_key(name[:LONGEST]), keys)
    return None if near is None else f"did you mean {keys[near]!r}?"


def _fits(sampler: Sampler, kind: ScheduleKind) -> bool:
    """Returns whether a sampler is defined on a kind of schedule.

    EDM's takes those of `vp` that need neither training timesteps nor a first alpha below 1.
    """
    if kind == "edm":
        return "vp" in sampler.kinds and (sampler.name in EDM or not sampler.whole_t)
    return kind in sampler.kinds


@cache
def _by_key() -> Mapping[str, Sequence[Sampler]]:
    """Returns the samplers of each name, by what names are compared by."""
    found: dict[str, list[Sampler]] = {}
    for sampler in SAMPLERS.values():
        for key in {_key(name) for name in (sampler.name, *names_of(sampler))}:
            found.setdefault(key, []).append(sampler)
    return found


def _key(name: str) -> str:
    """Returns what is compared of a name: letters in one case, without `_`, `-` and spaces.

    `++` is `pp`, and `ancestral` is `a`, as some write it.
    """
    letters = "".join(name.split()).lower().replace("++", "pp").translate({95: None, 45: None})
    return letters.replace("ancestral", "a")
