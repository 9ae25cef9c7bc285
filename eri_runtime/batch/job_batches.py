"""Generates many prompts in batches; an image does not depend on the batch it is in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from eri_runtime.bundle import Bundle
from eri_runtime.checks import function, integer, one_of
from eri_runtime.errors import (
    EriError,
    NonFiniteError,
    OutOfMemoryError,
    SizeError,
    UnknownNameError,
    UsageError,
    short,
)
from eri_runtime.images import to_signed
from eri_runtime.latents import images_at_once
from eri_runtime.pipeline import Pipeline
from eri_runtime.request import (
    CHECKS,
    Job,
    SamplingConfig,
    assign_seeds,
    error_prefix,
    first_seed,
    group_into_batches,
    list_images,
    make_jobs,
)
from eri_runtime.sampling import NoiseName, full_name
from eri_runtime.training import NEGATIVE_EMBEDS, SHARED_KEYWORDS

Output = Literal["array", "pil"]
JOB_KEYWORDS = frozenset(CHECKS) - {"prompt", "seed"}  # keywords that each job may set
BATCH_WORDS = ("height", "width", "num_inference_steps", "sampler")  # equal within a batch
EDIT_KEYWORDS = frozenset({"image", "mask", "strength", "overlay", "padding_mask_crop"})
SHARED_JOB_KEYWORDS = (SHARED_KEYWORDS - {*NEGATIVE_EMBEDS, "sampler"}) | {
    "loras",
    "noise",
    "prompt_syntax",
    *EDIT_KEYWORDS,
}  # equal for all jobs
Keywords = Mapping[str, Any]
JOB_ERRORS = (NonFiniteError, OutOfMemoryError, SizeError)  # of one job, not of the run
OnFailure = Callable[[int, EriError], object]  # gets the index of a job, and its error


@dataclass(frozen=True, eq=False)
class Sample:
    """A finished image, as `on_sample` gets it.

    Attributes:
        index: Index of its prompt.
        job: Its job, with every field filled in.
        image: (3, H, W) float32 in [−1, 1], or a PIL image.
        seed: Its seed.
        parameters: AUTOMATIC1111's `parameters` text, for its PNG file.
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
    """Generates one image per prompt, for any number of prompts, in batches.

    An image does not depend on its batch: its seed decides its noise. Jobs that share size, sampler
    and number of steps share batches.

    Args:
        prompts: Texts, or `Job`s whose settings override `config` and `words`.
        config: Steps, guidance, size and seed. Image i has seed `config.seed` + i unless its job
            has one. Without a seed the first one is random.
        batch_size: Number of images generated at once. Default: as many as the bundle allows.
        pipe: An open pipeline.
        output_type: `"array"` for arrays, as `save_image` takes them, or `"pil"`.
        on_sample: Function that is called with every `Sample` as soon as it is finished, which may
            be out of order. It has the image, its seed and its `parameters`.
        **words: Keywords of a call that are the same for all images, such as `sigmas`, and defaults
            for the jobs, such as `negative_prompt`; see `Words`.

    Returns:
        The images in the order of the prompts: arrays (3, H, W) float32 in [−1, 1], or PIL images.

    Raises:
        UsageError: If an argument is invalid; no image has been generated then.
        NonFiniteError: If the latents or images contain NaN or Inf.

    Example:
        >>> config = eri.SamplingConfig(2, 4.0, height=32, width=32, seed=0)
        >>> jobs = ["a red heart", eri.Job("a pizza", seed=7, width=48)]
        >>> for image in eri.batch_sample(jobs, config, 4, pipe=pipe):
        ...     print(image.shape, image.dtype)
        (3, 32, 32) float32
        (3, 32, 48) float32
    """
    if not isinstance(config, SamplingConfig):
        raise UsageError("config", got=short(config), expected="a SamplingConfig")
    jobs = make_jobs("prompts", prompts)
    if not jobs:
        raise UsageError("prompts", got="none", expected="one string or Job, or more")
    if on_sample is not None:
        function("on_sample", on_sample, "a function of a sample")
    keywords = {**config.words(), **words, "seed": config.seed}
    images: list[Any] = [None] * len(jobs)
    for sample in samples(pipe, jobs, batch_size, output_type=output_type, **keywords):
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
    """Yields the images of `jobs` as they are finished; arguments as for `batch_sample`.

    Validates everything when it is called, and generates while the caller iterates.

    Raises `UsageError` if an argument is invalid.
    """
    _check_pipe(pipe)
    one_of("output_type", output_type, get_args(Output))
    settings = {name: value for name, value in words.items() if name in JOB_KEYWORDS}
    shared = check_shared_words({name: words[name] for name in words if name not in JOB_KEYWORDS})
    size = check_batch_size(pipe.bundle, batch_size)
    listed = make_jobs("jobs", jobs)
    places = [f"jobs[{i}]" for i in range(len(listed))]
    completed = complete_jobs(pipe, listed, Job("", **settings), shared, places)
    seeded = assign_seeds(completed, first_seed(seed))
    return draw_batches(pipe, seeded, range(len(seeded)), size, shared, output_type)


def _check_pipe(pipe: object) -> None:
    """Raises `UsageError` for anything but a pipeline."""
    if not isinstance(pipe, Pipeline):
        fix = "open the bundle with `eri_runtime.load`"
        raise UsageError("pipe", got=short(pipe), expected="an open Pipeline", fix=fix)


def check_batch_size(bundle: Bundle, size: int | None) -> int:
    """Returns `size`; default: the most images the bundle allows. Raises `SizeError` for more."""
    allowed = images_at_once(bundle)
    if size is None:
        return allowed.max
    if integer("batch_size", size, 1) > allowed.max:
        fix = "ask for less, which makes the same images, or export again with a larger `--batch`"
        raise SizeError(
            "batch_size", got=size, expected=f"1 to {allowed.max}, as it was exported", fix=fix
        )
    return size


def check_shared_words(words: Keywords) -> dict[str, Any]:
    """Returns the keywords that are not None; each must be one that all jobs can share.

    Raises `UsageError` for any other keyword, a noise function, LoRAs per image, or several images
    or masks.
    """
    for word, value in words.items():
        if word not in SHARED_JOB_KEYWORDS:
            expected = f"one of {', '.join(sorted(SHARED_JOB_KEYWORDS | JOB_KEYWORDS))}"
            raise UnknownNameError("keyword", got=short(word), expected=expected)
        if word == "noise" and value is not None and not isinstance(value, str):
            expected = f"one of {', '.join(get_args(NoiseName))}, which know of no batches"
            raise UsageError("noise", got=short(value), expected=expected)
        if word == "loras" and value is not None and not isinstance(value, Mapping):
            raise UsageError("loras", got=short(value), expected="one mapping for all images")
        if word in ("image", "mask") and len(list_images(value)) != 1:
            got = f"{len(list_images(value))} of them"
            raise UsageError(word, got=got, expected="one for all jobs")
    return {word: value for word, value in words.items() if value is not None}


def complete_jobs(
    pipe: Pipeline, jobs: Sequence[Job], defaults: Job, words: Keywords, places: Sequence[str]
) -> list[Job]:
    """Returns the jobs with every field but the seed filled in, validated as a call validates them.

    `places` says where each job comes from, for error messages.
    """
    checked: dict[tuple[Any, ...], tuple[int, int]] = {}
    completed = []
    for job, place in zip(jobs, places, strict=True):
        with error_prefix(place):
            completed.append(_complete_job(pipe, job.over(defaults), words, checked))
    return completed


def _complete_job(
    pipe: Pipeline, job: Job, words: Keywords, checked: dict[tuple[Any, ...], tuple[int, int]]
) -> Job:
    """Returns one completed job.

    `checked` has the size of earlier jobs by what decides their schedules and edits: these are
    known to be valid, and a large picture is fitted to them once and not for every job.
    """
    settings: Any = {name: getattr(job, name) for name in JOB_KEYWORDS - {"negative_prompt"}}
    keywords: Any = {**words, **settings, "output_type": "np"}
    key = tuple(getattr(job, name) for name in BATCH_WORDS)
    if key in checked:
        keywords = {name: value for name, value in keywords.items() if name not in EDIT_KEYWORDS}
        keywords["height"], keywords["width"] = checked[key]
    keywords["negative_prompt"] = job.negative_prompt
    request = pipe.request([job.prompt] * _min_batch(pipe), **keywords)
    if key not in checked:
        pipe.table(request)
        checked[key] = request.height, request.width
    guidance = pipe.bundle.defaults.guidance_scale
    return replace(
        job,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        sampler=full_name(job.sampler or request.sampler.name, pipe.bundle.schedule.kind),
        guidance_scale=guidance if job.guidance_scale is None else job.guidance_scale,
    )


def draw_batches(
    pipe: Pipeline,
    jobs: Sequence[Job],
    pending: Collection[int],
    size: int,
    words: Keywords,
    output_type: Output,
    on_failure: OnFailure | None = None,
) -> Iterator[Sample]:
    """Generates the jobs whose indices are `pending`, at most `size` at once.

    The jobs must be completed and have seeds. Yields samples as they are finished. With
    `on_failure`, a job's own error (`JOB_ERRORS`) is given to it and the others are generated;
    default: the error is raised.
    """
    syntax = words.get("prompt_syntax")
    keys = {
        i: (_batch_key(pipe.bundle, jobs[i]), _prompt_key(pipe, jobs[i], syntax)) for i in pending
    }
    for indices in group_into_batches(keys, size):
        generate = partial(_generate_batch, pipe, words=words, output_type=output_type)
        yield from _batch_samples(generate, jobs, indices, on_failure)


def _prompt_key(pipe: Pipeline, job: Job, syntax: str | None) -> tuple[Any, ...]:
    """Returns what prompts of one batch have in common: merged LoRAs and windows of tokens."""
    if syntax != "a1111":
        return ()
    request = pipe.request(
        job.prompt,
        negative_prompt=job.negative_prompt,
        prompt_syntax=syntax,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        true_cfg_scale=job.true_cfg_scale,
        num_images_per_prompt=_min_batch(pipe),
    )
    return pipe.prompt_windows(request), *sorted(request.merged_loras.items())


def _batch_samples(
    generate: Callable[[Sequence[Job]], tuple[list[Any], Sequence[str]]],
    jobs: Sequence[Job],
    indices: Sequence[int],
    on_failure: OnFailure | None,
) -> Iterator[Sample]:
    """Yields the samples of one batch; one that fails is generated again job by job."""
    batch = [jobs[i] for i in indices]
    try:
        images, parameters = generate(batch)
    except JOB_ERRORS as error:
        if on_failure is None:
            raise
        if len(indices) == 1:
            on_failure(indices[0], error)
            return
        images, parameters = [], []
    if not images:
        for i in indices:
            yield from _batch_samples(generate, jobs, [i], on_failure)
    else:
        for i, job, image, text in zip(indices, batch, images, parameters, strict=True):
            yield Sample(i, job, image, job.seed or 0, text)


def _batch_key(bundle: Bundle, job: Job) -> tuple[Any, ...]:
    """Returns what the jobs of one batch must have in common.

    Without a negative prompt SDXL uses zeros and Flux runs no CFG, so such jobs get their own
    batches.
    """
    no_negative = job.negative_prompt is None and not _defaults_to_empty(bundle)
    return *(getattr(job, name) for name in BATCH_WORDS), no_negative


def _defaults_to_empty(bundle: Bundle) -> bool:
    """Whether the negative prompt defaults to the empty text."""
    return not bundle.zero_empty_negative and bundle.family != "flux"


def _generate_batch(
    pipe: Pipeline, jobs: Sequence[Job], words: Keywords, output_type: Output
) -> tuple[list[Any], Sequence[str]]:
    """Returns the images of a batch and their `parameters`.

    Repeats the last job if the bundle needs a larger batch.
    """
    padded = [*jobs, *[jobs[-1]] * (_min_batch(pipe) - len(jobs))]
    negatives: list[str] | None = [job.negative_prompt or "" for job in padded]
    if jobs[0].negative_prompt is None and not _defaults_to_empty(pipe.bundle):
        negatives = None
    keywords: Any = _call_keywords(padded, words)
    kind = "pil" if output_type == "pil" else "np"
    prompts = [job.prompt for job in padded]
    result = pipe(prompts, negative_prompt=negatives, output_type=kind, **keywords)
    count = len(jobs)
    images = result.images if output_type == "pil" else to_signed(result.images)
    return list(images)[:count], result.parameters[:count]


def _call_keywords(jobs: Sequence[Job], words: Keywords) -> dict[str, Any]:
    """Returns the keywords of the call for one batch: those of its jobs, and the shared `words`."""
    common = {name: getattr(jobs[0], name) for name in BATCH_WORDS}
    true_cfg = [1.0 if job.true_cfg_scale is None else job.true_cfg_scale for job in jobs]
    scales = {"guidance_scale": [job.guidance_scale for job in jobs], "true_cfg_scale": true_cfg}
    return {**words, **common, **scales, "seed": [job.seed for job in jobs]}


def _min_batch(pipe: Pipeline) -> int:
    """Returns the smallest number of images that the bundle allows."""
    return images_at_once(pipe.bundle).min
