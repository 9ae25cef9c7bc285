"""Many prompts in batches, where an image is what its job says, whatever batch it was in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import whole
from eri_runtime.configs import SamplingConfig
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.jobs import CHECKS, Job, batches, first_seed, located, make_jobs, seeded
from eri_runtime.limits import images_at_once
from eri_runtime.noise import NoiseName
from eri_runtime.pipelines import Pipeline
from eri_runtime.spec import Bundle
from eri_runtime.validation import NEGATIVE, WORDS

Output = Literal["array", "pil"]
OWN = frozenset(CHECKS) - {"prompt", "seed"}  # words that a job may have of its own
ALIKE = ("height", "width", "num_inference_steps", "sampler")  # in one batch
SHARED = (WORDS - {*NEGATIVE, "sampler"}) | {"loras", "noise"}  # those that it may not
Given = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """A finished image: the `index` of its job among all, and the job with nothing left open.

    `image` is (3, H, W) float32 in [−1, 1], or a PIL image; `parameters` the text for its PNG.
    """

    index: int
    job: Job
    image: Any
    seed: int
    parameters: str


def batch_sample(
    prompts: Sequence[str | Job],
    config: SamplingConfig,
    batch_size: int | None = None,
    *,
    pipe: Pipeline,
    output_type: Output = "array",
    on_sample: Callable[[Sample], object] | None = None,
    **words: Any,
) -> list[Any]:
    """Make one image a prompt, any number of them, and give them in the order of the prompts.

    `prompts` are texts, or `Job`s with words of their own, which count before `config` and `words`.
    An image is a float32 array (3, H, W) in [−1, 1], as `save_image` takes it, or with
    `output_type="pil"` a PIL image. Image i has seed `config.seed` + i unless its job has one;
    without a seed the first is drawn. `on_sample` hears of every `Sample`, with its seed and the
    `parameters` of its PNG, as soon as it is finished: that may be out of order, as jobs of one
    size, sampler and number of steps share batches. `batch_size` is how many images are made at
    once, as many as the bundle takes if None. `words` are those of a call that mean the same for
    every image, such as `sigmas`, and defaults of the jobs, such as `negative_prompt`.

    Raises `UsageError` for a bad argument, before anything is drawn.
    """
    if not isinstance(config, SamplingConfig):
        raise UsageError("config", got=short(config), expected="a SamplingConfig")
    jobs = make_jobs("prompts", prompts)
    if not jobs:
        raise UsageError("prompts", got="none", expected="one string or Job, or more")
    given = {**config.words(), **words, "seed": config.seed}
    images: list[Any] = [None] * len(jobs)
    for sample in samples(pipe, jobs, batch_size, output_type=output_type, **given):
        images[sample.index] = sample.image
        if on_sample is not None:
            on_sample(sample)
    return images


def samples(
    pipe: Pipeline,
    jobs: Sequence[str | Job],
    batch_size: int | None = None,
    *,
    seed: int | None = None,
    output_type: Output = "array",
    **words: Any,
) -> Iterator[Sample]:
    """The images of `jobs`, each as soon as it is finished; arguments as those of `batch_sample`.

    Everything is checked when this is called, and drawn as samples are asked for.
    Raises `UsageError` for a bad argument.
    """
    _check_pipe(pipe)
    if output_type not in get_args(Output):
        raise UnknownNameError("output_type", got=short(output_type), expected="array or pil")
    own = {name: value for name, value in words.items() if name in OWN}
    shared = checked_words({name: words[name] for name in words if name not in OWN})
    size = checked_batch(pipe.bundle, batch_size)
    made = make_jobs("jobs", jobs)
    whole_jobs = seeded(
        complete(pipe, made, Job("", **own), shared, [f"jobs[{i}]" for i in range(len(made))]),
        first_seed(seed),
    )
    return drawn(pipe, whole_jobs, range(len(made)), size, shared, output_type)


def _check_pipe(pipe: object) -> None:
    if not isinstance(pipe, Pipeline):
        fix = "open the bundle with `eri_runtime.load`"
        raise UsageError("pipe", got=short(pipe), expected="an open Pipeline", fix=fix)


def checked_batch(bundle: Bundle, size: int | None) -> int:
    """`size`, or the most images that the bundle takes at once; `SizeError` for more than that."""
    takes = images_at_once(bundle)
    if size is None:
        return takes.max
    if whole("batch_size", size, 1) > takes.max:
        fix = "ask for less, which makes the same images, or export again with a larger `--batch`"
        raise SizeError(
            "batch_size", got=size, expected=f"1 to {takes.max}, as it was exported", fix=fix
        )
    return size


def checked_words(words: Given) -> dict[str, Any]:
    """Those words that are given; each must mean the same for every image."""
    for word, value in words.items():
        if word not in SHARED:
            expected = f"one of {', '.join(sorted(SHARED | OWN))}"
            raise UnknownNameError("keyword", got=repr(word), expected=expected)
        if word == "noise" and value is not None and not isinstance(value, str):
            expected = f"one of {', '.join(get_args(NoiseName))}, which know of no batches"
            raise UsageError("noise", got=short(value), expected=expected)
        if word == "loras" and value is not None and not isinstance(value, Mapping):
            raise UsageError("loras", got=short(value), expected="one mapping for all images")
    return {word: value for word, value in words.items() if value is not None}


def complete(
    pipe: Pipeline, jobs: Sequence[Job], defaults: Job, words: Given, places: Sequence[str]
) -> list[Job]:
    """The jobs with sizes, steps, sampler and scale filled in, all that a call would check checked.

    An error begins with the job's entry of `places`. Seeds are left open.
    """
    known: set[tuple[Any, ...]] = set()
    completed = []
    for job, place in zip(jobs, places, strict=True):
        with located(place):
            full = job.over(defaults)
            completed.append(_completed(pipe, full, words, known))
    return completed


def _completed(pipe: Pipeline, job: Job, words: Given, known: set[tuple[Any, ...]]) -> Job:
    """One job; `known` are the schedules that were found right."""
    own: Any = {name: getattr(job, name) for name in OWN - {"negative_prompt"}}
    given: Any = {**words, **own, "output_type": "np"}
    request = pipe.request([job.prompt] * _least(pipe), job.negative_prompt, **given)
    guidance = pipe.bundle.defaults.guidance_scale
    job = replace(
        job,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        sampler=request.sampler.name,
        guidance_scale=guidance if job.guidance_scale is None else job.guidance_scale,
    )
    key = tuple(getattr(job, name) for name in ALIKE)
    if key not in known:
        pipe.table(request)
        known.add(key)
    return job


def drawn(
    pipe: Pipeline,
    jobs: Sequence[Job],
    pending: Collection[int],
    size: int,
    words: Given,
    output_type: Output,
) -> Iterator[Sample]:
    """Draw the `pending` of jobs that are complete and seeded, at most `size` at once."""
    for rows in batches({i: _key(pipe.bundle, jobs[i]) for i in pending}, size):
        many = [jobs[i] for i in rows]
        images, parameters = _made(pipe, many, words, output_type)
        for i, job, image, text in zip(rows, many, images, parameters, strict=True):
            yield Sample(i, job, image, job.seed or 0, text)


def _key(bundle: Bundle, job: Job) -> tuple[Any, ...]:
    """What jobs of a batch have in common.

    SDXL's missing negative prompt is zeros and Flux's means no CFG, so they stay apart.
    """
    none = job.negative_prompt is None and not _is_empty(bundle)
    return *(getattr(job, name) for name in ALIKE), none


def _is_empty(bundle: Bundle) -> bool:
    """Whether a missing negative prompt is the empty one."""
    return not bundle.zero_empty_negative and bundle.family != "flux"


def _made(
    pipe: Pipeline, jobs: Sequence[Job], words: Given, output_type: Output
) -> tuple[list[Any], Sequence[str]]:
    """The images of a batch and their `parameters`; one that is too small is filled up."""
    filled = [*jobs, *[jobs[-1]] * (_least(pipe) - len(jobs))]
    negatives: list[str] | None = [job.negative_prompt or "" for job in filled]
    if jobs[0].negative_prompt is None and not _is_empty(pipe.bundle):
        negatives = None
    given: Any = _words_of(filled, words)
    kind = "pil" if output_type == "pil" else "np"
    result = pipe([job.prompt for job in filled], negatives, output_type=kind, **given)
    count = len(jobs)
    images = result.images if output_type == "pil" else _signed(result.images)
    return list(images)[:count], result.parameters[:count]


def _signed(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, H, W, 3) in [0, 1] to (B, 3, H, W) in [−1, 1]."""
    return np.ascontiguousarray(np.float32(2) * unit.transpose(0, 3, 1, 2) - np.float32(1))


def _words_of(jobs: Sequence[Job], words: Given) -> dict[str, Any]:
    """The words of a call for complete jobs of one key: theirs, and those that all jobs share."""
    alike = {name: getattr(jobs[0], name) for name in ALIKE}
    true_cfg = [1.0 if job.true_cfg_scale is None else job.true_cfg_scale for job in jobs]
    scales = {"guidance_scale": [job.guidance_scale for job in jobs], "true_cfg_scale": true_cfg}
    return {**words, **alike, **scales, "seed": [job.seed for job in jobs]}


def _least(pipe: Pipeline) -> int:
    return images_at_once(pipe.bundle).min
