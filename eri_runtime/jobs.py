"""What one image is to be: a prompt with words of its own, checked when it is made."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from eri_runtime.checks import not_negative, whole
from eri_runtime.errors import UsageError, short
from eri_runtime.randn import MAX_SEED
from eri_runtime.saving import text_of

Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Job:
    """One image: its prompt, and the words of a call that are its own; None is the run's default.

    `seed` is 0 to 2⁶⁴ − 1, the scales are finite numbers of 0 or more, sizes (pixels) and
    steps 1 or more; what a bundle can do of these is checked before the first image is made.
    Raises `UsageError` naming the field.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    sampler: str | None = None

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            if name == "prompt" or getattr(self, name) is not None:
                object.__setattr__(self, name, check(name, getattr(self, name)))

    def over(self, defaults: Job) -> Job:
        """The same, where what is None is that of `defaults`."""
        names = [field.name for field in fields(self) if getattr(self, field.name) is None]
        return replace(self, **{name: getattr(defaults, name) for name in names})


def seeded(jobs: Iterable[Job], first: int) -> list[Job]:
    """Job i has seed `first` + i, modulo 2⁶⁴, unless it has its own."""
    return [
        job if job.seed is not None else replace(job, seed=(first + i) % (MAX_SEED + 1))
        for i, job in enumerate(jobs)
    ]


def first_seed(seed: int | None) -> int:
    """`seed`, or one that is drawn for None; raises `UsageError` for one out of range."""
    return secrets.randbits(32) if seed is None else whole("seed", seed, 0, MAX_SEED)


def batches(keys: Mapping[int, Any], size: int) -> list[list[int]]:
    """Indices of jobs in batches of at most `size`, none of two `keys`.

    A batch is the first index that is left with those of its key that follow.
    """
    alike: dict[Any, list[int]] = {}
    for index, key in keys.items():
        alike.setdefault(key, []).append(index)
    runs = [many[at : at + size] for many in alike.values() for at in range(0, len(many), size)]
    return sorted(runs)


def make_jobs(name: str, prompts: Sequence[str | Job]) -> list[Job]:
    """Texts and jobs as jobs; raises `UsageError` naming the first that is neither."""
    jobs = []
    for i, each in enumerate((prompts,) if isinstance(prompts, str | Job) else prompts):
        if not isinstance(each, str | Job):
            raise UsageError(f"{name}[{i}]", got=short(each), expected="a string or a Job")
        with located(f"{name}[{i}]"):
            jobs.append(Job(each) if isinstance(each, str) else each)
    return jobs


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put `place` before the offender of a `UsageError` that is raised inside."""
    try:
        yield
    except UsageError as error:
        offender = f"{place}: {error.offender}"
        raise type(error)(
            offender, got=error.got, expected=error.expected, fix=error.fix
        ) from error


def _text(name: str, value: object) -> str:
    """`value`, if it is a string that UTF-8 can write."""
    text = text_of(name, value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(name, got=short(text), expected="text without lone surrogates") from error
    return text


def _seed(name: str, value: object) -> int:
    return whole(name, value, 0, MAX_SEED)


def _count(name: str, value: object) -> int:
    return whole(name, value, 1)


CHECKS: Mapping[str, Check] = {
    "prompt": _text,
    "negative_prompt": _text,
    "seed": _seed,
    "guidance_scale": not_negative,
    "true_cfg_scale": not_negative,
    "height": _count,
    "width": _count,
    "num_inference_steps": _count,
    "sampler": _text,
}
