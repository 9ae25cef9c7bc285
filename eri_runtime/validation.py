"""Pictures of fixed prompts and seeds while a network is trained, one set a step to compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eri_runtime.checks import float32, from_anywhere, whole
from eri_runtime.conditioning import Condition, check_encoders
from eri_runtime.configs import SamplingConfig
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.limits import check_size, images_at_once
from eri_runtime.loggers import Sample, show, way_of
from eri_runtime.pipelines import Pipeline
from eri_runtime.randn import MAX_SEED
from eri_runtime.saving import file_name, slug, text_of, training_step, write

Given = Mapping[str, Any]
NEGATIVE = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
WORDS = frozenset(  # those that mean the same for every image
    {
        "bypass_guidance",
        "dynamic_thresholding",
        "eta",
        "guidance_interval",
        "guidance_rescale",
        "max_sequence_length",
        *NEGATIVE,
        "sampler",
        "sampler_options",
        "sigmas",
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
    """Draw one picture a prompt, save each in `config.output_dir`, show them, give the paths.

    `pipe` is an open pipeline (`eri.load`), which stands for the VAE's weights and the device of
    the Rust API; `pipe.update_weights` gives it those of training. Prompt i has seed
    `config.seed + i` at every step (0 + i if that is None), so steps compare; batches are as large
    as the bundle takes. `text_embeddings` (B, T, D) and `pooled_embeddings` (B, P), arrays or
    tensors, B as many as prompts, stand for what the prompts would be encoded to: the bundle's
    text encoders are then not needed, but for the empty negative prompt of SD3.5's guidance, for
    which `negative_prompt_embeds` (1 or B, T, D) and `negative_pooled_prompt_embeds` may stand.
    Else a prompt is encoded once, and the pipeline remembers it until weights of a text encoder
    change.

    `model_type` is checked against the bundle's family if given. `name` (the family) begins file
    names and tags: give two where raw and averaged weights share a folder. `loggers` are objects
    with `log_image(path, step)`, a TensorBoard `SummaryWriter` or a Weights & Biases run. `words`
    are those of a call that mean the same for every image, such as `sampler`. PNGs carry their
    `parameters` as those of `Result.save`, with the training step.

    Raises `UsageError` for a bad argument, before anything is drawn, and `NonFiniteError` where
    training has diverged.
    """
    texts = _checked(pipe, prompts, config, model_type, words)
    whole("step", step, 0)
    name = pipe.bundle.family if name is None else text_of("name", name)
    for logger in loggers:
        way_of(logger)
    pair = (text_embeddings, pooled_embeddings)
    given = _given(("text_embeddings", "pooled_embeddings"), pair, {len(texts)})
    positive = given or pipe.encode_prompt(texts, words.get("max_sequence_length"))
    negative = _negative(pipe, config, words, len(texts))
    samples: list[Sample] = []
    for rows in _batches(pipe, len(texts)):
        images, parameters = _drawn(pipe, config, rows, positive, negative, words)
        for i, image, text in zip(rows, images, parameters, strict=True):
            path = config.output_dir / file_name(name, step, f"{i:03d}", texts[i])
            about = ", ".join(f"{key}: {value}" for key, value in training_step(step).items())
            write(image, path, f"{texts[i]}{text}, {about}")
            samples.append(Sample(f"{slug(name)}/{i:03d}_{slug(texts[i])}", path, texts[i]))
    for logger in loggers:
        show(logger, samples, step)
    return [sample.path for sample in samples]


def _drawn(
    pipe: Pipeline,
    config: SamplingConfig,
    rows: range,
    positive: Condition,
    negative: Condition | None,
    words: Given,
) -> tuple[Sequence[Any], Sequence[str]]:
    """PIL images of some of the prompts, and their `parameters` but for the prompt."""
    first = config.seed or 0
    part = slice(rows.start, rows.stop)
    embeds: dict[str, Any] = {
        "prompt_embeds": positive.embeds[part],
        "pooled_prompt_embeds": positive.pooled[part],
    }
    if negative is not None:
        embeds |= zip(NEGATIVE, (negative.embeds[part], negative.pooled[part]), strict=True)
    seeds = [(first + i) % (MAX_SEED + 1) for i in rows]
    given: Any = {**words, **embeds, "config": config, "seed": seeds}
    result = pipe(**given)
    return result.images, result.parameters


def _batches(pipe: Pipeline, count: int) -> Iterator[range]:
    """The prompts in runs that the bundle takes at once."""
    most = images_at_once(pipe.bundle).max
    for begin in range(0, count, most):
        yield range(begin, min(begin + most, count))


# conditions


def _given(names: tuple[str, str], pair: tuple[Any, Any], counts: set[int]) -> Condition | None:
    """Embeddings that were brought, or None; as many rows as one of `counts`, in both."""
    if pair[0] is None and pair[1] is None:
        return None
    for name, value in zip(names, pair, strict=True):
        if value is None:
            raise UsageError(name, got="None", expected=f"{' and '.join(names)}, or neither")
    embeds, pooled = (
        float32(name, from_anywhere(name, value)) for name, value in zip(names, pair, strict=True)
    )
    for name, array, rank in zip(names, (embeds, pooled), (3, 2), strict=True):
        if array.ndim != rank or len(array) not in counts or len(array) != len(embeds):
            shape = "(B, T, D)" if rank == 3 else "(B, P)"
            many = " or ".join(map(str, sorted(counts)))
            raise SizeError(name, got=array.shape, expected=f"{shape} with B {many}")
    return Condition(embeds, pooled)


def _negative(pipe: Pipeline, config: SamplingConfig, words: Given, count: int) -> Condition | None:
    """What guidance leads away from; None where it is off, or where the pipeline knows it."""
    pair = (words.get(NEGATIVE[0]), words.get(NEGATIVE[1]))
    given = _given(NEGATIVE, pair, {1, count})
    if given is not None:
        return given if len(given.embeds) == count else given.repeat(count)
    bundle = pipe.bundle
    unguided = bundle.family == "flux" or config.guidance_scale <= 1
    if unguided or bundle.zero_empty_negative:
        return None
    check_encoders(bundle, "negative_prompt")
    return pipe.encode_prompt("", words.get("max_sequence_length")).repeat(count)


# arguments


def _checked(
    pipe: object, prompts: object, config: object, model_type: object, words: Given
) -> tuple[str, ...]:
    """The prompts, where all that a call can say wrong is right."""
    if not isinstance(pipe, Pipeline):
        fix = "open the bundle with `eri_runtime.load`"
        raise UsageError("pipe", got=short(pipe), expected="an open Pipeline", fix=fix)
    if not isinstance(config, SamplingConfig):
        raise UsageError("config", got=short(config), expected="a SamplingConfig")
    if model_type not in (None, pipe.bundle.family):
        expected = f"{pipe.bundle.family!r}, the bundle's family"
        raise UsageError("model_type", got=short(model_type), expected=expected)
    for word in words:
        if word not in WORDS:
            expected = f"one of {', '.join(sorted(WORDS))}"
            raise UnknownNameError("keyword", got=repr(word), expected=expected)
    given = (prompts,) if isinstance(prompts, str) else prompts
    texts = tuple(given) if isinstance(given, Sequence) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("prompts", got=short(prompts), expected="one string or more")
    check_size(pipe.bundle, config.height, config.width)
    return texts
