"""Validation images: the same prompts and seeds at every training step, for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eri_runtime.checks import float32, integer, items, string, to_numpy
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.latents import check_size, images_at_once
from eri_runtime.pipeline import Pipeline
from eri_runtime.request import SamplingConfig
from eri_runtime.sampling import MAX_SEED
from eri_runtime.text import Condition, check_encoders
from eri_runtime.training.image_files import MOST_STEPS, file_name, slug, training_step, write_image
from eri_runtime.training.loggers import Sample, log_pictures, logger_adapter

Keywords = Mapping[str, Any]
NEGATIVE_EMBEDS = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
SHARED_KEYWORDS = frozenset(  # keywords of a call that may be shared by all images
    {
        "bypass_guidance",
        "dynamic_thresholding",
        "eta",
        "guidance_interval",
        "guidance_rescale",
        "max_sequence_length",
        *NEGATIVE_EMBEDS,
        "sampler",
        "sampler_options",
        "sigmas",
        "spacing",
    }
)


def generate_validation_samples(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    config: SamplingConfig,
    step: int,
    *,
    text_embeddings: Any = None,
    pooled_embeddings: Any = None,
    model_type: str | None = None,
    name: str | None = None,
    loggers: Sequence[Any] = (),
    **words: Any,
) -> list[Path]:
    """Generates one image per prompt, saves it and sends it to loggers.

    Image i has seed `config.seed` + i at every training step (seed i if `config.seed` is None), so
    the images of different steps can be compared. Batches are as large as the bundle allows.
    Prompts are encoded once, unless the weights of a text encoder change. The PNGs carry
    `parameters` like those of `Result.save`, with the training step.

    The Rust function of this name takes the VAE's weights and a device; here both belong to `pipe`.

    Args:
        pipe: An open pipeline. Update its weights first, with `pipe.update_weights`.
        prompts: A prompt, or a list of B prompts.
        config: Steps, guidance, size, seed, and the folder `output_dir`.
        step: Training step, 0 or more.
        text_embeddings: Embeddings of the prompts (B, T, D), arrays or tensors, used instead of the
            bundle's text encoders. Default: encode the prompts. SD3.5 with CFG then needs
            `negative_prompt_embeds` too, or text encoders for the empty negative prompt.
        pooled_embeddings: Pooled embeddings (B, P), required with `text_embeddings`.
        model_type: `"sdxl"`, `"sd35"` or `"flux"`, which must be the bundle's family. Default: not
            checked.
        name: Start of file names and tags. Default: the bundle's family. Use two names if raw and
            averaged (EMA) weights share a folder.
        loggers: Objects with a method `log_image(path, step)`, TensorBoard `SummaryWriter`s, or
            Weights & Biases runs.
        **words: Keywords of a call that are the same for all images, such as `sampler`, `sigmas`,
            `guidance_rescale` or `negative_prompt_embeds` (1 or B, T, D); see `Words`.

    Returns:
        The paths of the files, one per prompt, in `config.output_dir`.

    Raises:
        UsageError: If an argument is invalid; no image has been generated then.
        NonFiniteError: If the latents or images contain NaN or Inf, because training diverged.

    Example:
            config = eri.SamplingConfig(20, 4.0, 512, 512, seed=0, output_dir="samples")
            with eri.load("engines/sd35") as pipe:
                for step, state_dict in training():
                    pipe.update_weights(state_dict)
                    eri.generate_validation_samples(
                        pipe, ["a red heart", "a pizza"], config, step, loggers=[writer]
                    )
    """
    texts = _check_arguments(pipe, prompts, config, model_type, words)
    integer("step", step, 0, MOST_STEPS)
    name = pipe.bundle.family if name is None else string("name", name)
    for logger in items("loggers", loggers, "a list of loggers"):
        logger_adapter(logger)
    pair = (text_embeddings, pooled_embeddings)
    embeddings = _check_embeddings(("text_embeddings", "pooled_embeddings"), pair, {len(texts)})
    positive = embeddings or pipe.encode_prompt(texts, words.get("max_sequence_length"))
    negative = _negative_condition(pipe, config, words, len(texts))
    samples: list[Sample] = []
    for rows in _batches(pipe, len(texts)):
        images, parameters = _generate(pipe, config, rows, positive, negative, words)
        for i, image, text in zip(rows, images, parameters, strict=True):
            path = config.output_dir / file_name(name, step, f"{i:03d}", texts[i])
            training = ", ".join(f"{key}: {value}" for key, value in training_step(step).items())
            write_image(image, path, f"{texts[i]}{text}, {training}")
            samples.append(Sample(f"{slug(name)}/{i:03d}_{slug(texts[i])}", path, texts[i]))
    for logger in loggers:
        log_pictures(logger, samples, step)
    return [sample.path for sample in samples]


def _generate(
    pipe: Pipeline,
    config: SamplingConfig,
    rows: range,
    positive: Condition,
    negative: Condition | None,
    words: Keywords,
) -> tuple[Sequence[Any], Sequence[str]]:
    """Returns PIL images of the prompts in `rows`, and their `parameters` without the prompt."""
    first = config.seed or 0
    part = slice(rows.start, rows.stop)
    embeds: dict[str, Any] = {
        "prompt_embeds": positive.embeds[part],
        "pooled_prompt_embeds": positive.pooled[part],
    }
    if negative is not None:
        embeds |= zip(NEGATIVE_EMBEDS, (negative.embeds[part], negative.pooled[part]), strict=True)
    seeds = [(first + i) % (MAX_SEED + 1) for i in rows]
    keywords: Any = {**words, **embeds, "config": config, "seed": seeds}
    result = pipe(**keywords)
    return result.images, result.parameters


def _batches(pipe: Pipeline, count: int) -> Iterator[range]:
    """Yields the indices of the prompts in batches of the largest size the bundle allows."""
    most = images_at_once(pipe.bundle).max
    for begin in range(0, count, most):
        yield range(begin, min(begin + most, count))


# conditions


def _check_embeddings(
    names: tuple[str, str], pair: tuple[Any, Any], counts: set[int]
) -> Condition | None:
    """Returns the embeddings in `pair`, or None if both are None; checks their shapes.

    Both must have the same number of rows, one of `counts`.
    """
    if pair[0] is None and pair[1] is None:
        return None
    for name, value in zip(names, pair, strict=True):
        if value is None:
            raise UsageError(name, got="None", expected=f"{' and '.join(names)}, or neither")
    embeds, pooled = (
        float32(name, to_numpy(name, value)) for name, value in zip(names, pair, strict=True)
    )
    for name, array, rank in zip(names, (embeds, pooled), (3, 2), strict=True):
        if array.ndim != rank or len(array) not in counts or len(array) != len(embeds):
            shape = "(B, T, D)" if rank == 3 else "(B, P)"
            many = " or ".join(map(str, sorted(counts)))
            raise SizeError(name, got=array.shape, expected=f"{shape} with B {many}")
    return Condition(embeds, pooled)


def _negative_condition(
    pipe: Pipeline, config: SamplingConfig, words: Keywords, count: int
) -> Condition | None:
    """Returns the negative condition, or None if CFG is off or the pipeline uses zeros."""
    pair = (words.get(NEGATIVE_EMBEDS[0]), words.get(NEGATIVE_EMBEDS[1]))
    negative = _check_embeddings(NEGATIVE_EMBEDS, pair, {1, count})
    if negative is not None:
        return negative if len(negative.embeds) == count else negative.repeat(count)
    bundle = pipe.bundle
    unguided = bundle.family == "flux" or config.guidance_scale <= 1
    if unguided or bundle.zero_empty_negative:
        return None
    check_encoders(bundle, "negative_prompt")
    return pipe.encode_prompt("", words.get("max_sequence_length")).repeat(count)


# arguments


def _is(value: object, name: str) -> bool:
    """Whether a value is this text; an array would be compared element by element."""
    return isinstance(value, str) and value == name


def _check_arguments(
    pipe: object, prompts: object, config: object, model_type: object, words: Keywords
) -> tuple[str, ...]:
    """Returns the prompts; raises `UsageError` if any argument is invalid."""
    if not isinstance(pipe, Pipeline):
        fix = "open the bundle with `eri_runtime.load`"
        raise UsageError("pipe", got=short(pipe), expected="an open Pipeline", fix=fix)
    if not isinstance(config, SamplingConfig):
        raise UsageError("config", got=short(config), expected="a SamplingConfig")
    if model_type is not None and not _is(model_type, pipe.bundle.family):
        expected = f"{pipe.bundle.family!r}, the bundle's family"
        raise UsageError("model_type", got=short(model_type), expected=expected)
    for word in words:
        if word not in SHARED_KEYWORDS:
            expected = f"one of {', '.join(sorted(SHARED_KEYWORDS))}"
            raise UnknownNameError("keyword", got=short(word), expected=expected)
    listed = (prompts,) if isinstance(prompts, str) else prompts
    texts = tuple(listed) if isinstance(listed, Sequence) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("prompts", got=short(prompts), expected="one string or more")
    check_size(pipe.bundle, config.height, config.width)
    return texts
