"""A job: one image to generate, as a prompt with settings of its own, and batches of jobs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from eri_runtime.checks import integer, items, not_negative, text
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling import MAX_SEED

Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Job:
    """One image for `batch_sample`: a prompt, and the settings in which it differs from the others.

    A field that is None takes the value of the whole run. Whether the bundle supports the values is
    checked before the first image is generated.

    Attributes:
        prompt: The text.
        negative_prompt: The text that CFG steers away from.
        seed: Seed of the image, 0 to 2⁶⁴ − 1. None: the run's first seed + the job's index.
        guidance_scale: Scale of CFG, or Flux's embedded guidance; a finite number, 0 or more.
        true_cfg_scale: Flux's CFG with a negative prompt; a finite number, 0 or more.
        height: Height in pixels.
        width: Width in pixels.
        num_inference_steps: Number of denoising steps, 1 or more.
        sampler: Name of a sampler, as in a call.

    Raises:
        UsageError: If a value is invalid; the message names the field.

    Example:
        >>> jobs = ["a red heart", eri.Job("a pizza", seed=7, num_inference_steps=3)]
        >>> config = eri.SamplingConfig(2, height=32, width=32, seed=0)
        >>> [image.shape for image in eri.batch_sample(jobs, config, pipe=pipe)]
        [(3, 32, 32), (3, 32, 32)]
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
        """Returns the job with every field that is None taken from `defaults`.

        Example:
            >>> eri.Job("a pizza", seed=7).over(eri.Job("", seed=0, height=64)).height
            64
        """
        names = [field.name for field in fields(self) if getattr(self, field.name) is None]
        return replace(self, **{name: getattr(defaults, name) for name in names})


def assign_seeds(jobs: Iterable[Job], first: int) -> list[Job]:
    """Returns the jobs with seeds: job i gets `first` + i, modulo 2⁶⁴, unless it has its own."""
    return [
        job if job.seed is not None else replace(job, seed=(first + i) % (MAX_SEED + 1))
        for i, job in enumerate(jobs)
    ]


def first_seed(seed: int | None) -> int:
    """Returns `seed`, or a random one for None; raises `UsageError` if it is out of range."""
    return secrets.randbits(32) if seed is None else integer("seed", seed, 0, MAX_SEED)


def group_into_batches(keys: Mapping[int, Any], size: int) -> list[list[int]]:
    """Groups indices of jobs into batches of at most `size` whose jobs have the same key.

    `keys` maps an index to its key. Batches are sorted by their first index.
    """
    alike: dict[Any, list[int]] = {}
    for index, key in keys.items():
        alike.setdefault(key, []).append(index)
    return sorted(
        indices[start : start + size]
        for indices in alike.values()
        for start in range(0, len(indices), size)
    )


def make_jobs(name: str, prompts: Sequence[str | Job]) -> list[Job]:
    """Returns texts and jobs as jobs; raises `UsageError`, naming the first that is neither."""
    jobs = []
    for i, prompt in enumerate(
        (prompts,) if isinstance(prompts, str | Job) else items(name, prompts, "a list of prompts")
    ):
        if not isinstance(prompt, str | Job):
            raise UsageError(f"{name}[{i}]", got=short(prompt), expected="a string or a Job")
        with error_prefix(f"{name}[{i}]"):
            jobs.append(Job(prompt) if isinstance(prompt, str) else prompt)
    return jobs


@contextmanager
def error_prefix(place: str) -> Iterator[None]:
    """Context manager that puts `place` in front of the offender of a `UsageError`."""
    try:
        yield
    except UsageError as error:
        offender = f"{place}: {error.offender}"
        raise type(error)(
            offender, got=error.got, expected=error.expected, fix=error.fix
        ) from error


def _seed(name: str, value: object) -> int:
    """Returns a seed, 0 to 2⁶⁴ − 1; raises `UsageError` for anything else."""
    return integer(name, value, 0, MAX_SEED)


def _count(name: str, value: object) -> int:
    """Returns an integer, 1 or more; raises `UsageError` for anything else."""
    return integer(name, value, 1)


CHECKS: Mapping[str, Check] = {
    "prompt": text,
    "negative_prompt": text,
    "seed": _seed,
    "guidance_scale": not_negative,
    "true_cfg_scale": not_negative,
    "height": _count,
    "width": _count,
    "num_inference_steps": _count,
    "sampler": text,
}
