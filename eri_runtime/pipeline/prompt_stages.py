"""The texts of a request's conditions at each evaluation, as its prompt syntax reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.errors import SizeError, UsageError, short
from eri_runtime.request import Request, request_schedule
from eri_runtime.sampling import SamplerTable
from eri_runtime.text import (
    Encode,
    Text,
    check_encoders,
    compose,
    for_encoders,
    parse_emphasis,
    parse_schedule,
    prompt_columns,
    take_loras,
    text_at,
    text_of,
)

Column = tuple[Text, ...]  # one condition's text for each prompt


Columns = tuple[tuple[str, ...], ...]  # the texts of each condition, the negative ones first


@dataclass(frozen=True)
class PromptStages:
    """The texts of each phase, and the phase of each evaluation.

    Attributes:
        texts: For each phase one column per condition, the negative one first; all texts take
            equally many windows.
        phases: The phase of each evaluation; empty if there is only one.
    """

    texts: tuple[tuple[Column, ...], ...]
    phases: tuple[int, ...] = ()


def prompt_stages(
    bundle: Bundle, encode: Encode, request: Request, table: SamplerTable
) -> PromptStages:
    """Returns the texts of a request.

    Raises `SizeError` if a text takes more windows of tokens than the denoiser reads.
    """
    if _is_plain(request):
        return plain_stages(request)
    at = _columns_at(request, len(table), _evaluations(bundle, request, table))
    distinct = [*dict.fromkeys(at)]
    read = {text for columns in distinct for text in _read(request, columns)}
    windows = _windows(bundle, encode, read, request.max_sequence_length)
    texts = tuple(
        tuple(tuple(_weighted(text, windows) for text in column) for column in columns)
        for columns in distinct
    )
    return PromptStages(texts, tuple(map(distinct.index, at)))


def plain_stages(request: Request) -> PromptStages:
    """Returns the texts of a request as they were written."""
    negatives = request.negative_prompts or ("",) * len(request.prompts)
    others = request.negative_others or ((),) * len(negatives)
    positives = (texts for texts, _ in prompt_columns(request.prompts))
    return PromptStages(((tuple(map(for_encoders, negatives, others)), *positives),))


def prompt_windows(bundle: Bundle, encode: Encode, request: Request) -> int:
    """Returns how many windows the texts of a request take; raises as `prompt_stages` does."""
    if _is_plain(request):
        return 1
    at = _columns_at(request, request.steps, request.steps)
    read = {text for columns in at for text in _read(request, columns)}
    return _windows(bundle, encode, read, request.max_sequence_length)


def weighted_texts(
    bundle: Bundle, encode: Encode, texts: Sequence[str], length: int
) -> tuple[Text, ...]:
    """Returns texts with their weights, all with as many windows as the longest one.

    Raises `UsageError` for a text with `AND`, a schedule or a LoRA, and `SizeError` for one of too
    many windows.
    """
    for text in texts:
        parts, (_, loras) = compose(text), take_loras(text)
        if len(parts) > 1 or loras or len({stage.text for stage in parse_schedule(text, 2)}) > 1:
            expected = "one text for all steps: no AND, no [a:b:0.4], no [a|b], no <lora:...>"
            raise UsageError("prompt", got=short(text), expected=expected, fix="pass it to a call")
    windows = _windows(bundle, encode, set(texts), length)
    return tuple(_weighted(text, windows) for text in texts)


def _is_plain(request: Request) -> bool:
    """Returns whether the texts are read as they are, or none is read."""
    given = request.positive is not None and request.negative is not None
    return request.syntax == "plain" or given


def _columns(request: Request) -> Columns:
    """Returns the texts of each condition as they were written."""
    negatives = request.negative_prompts or ("",) * len(request.prompts)
    columns = (texts for texts, _ in prompt_columns(request.prompts))
    return (negatives, *(tuple(text_of(text, 1) for text in texts) for texts in columns))


def _columns_at(request: Request, count: int, total: int) -> list[Columns]:
    """Returns the texts of each condition at `count` evaluations, of `total` for a share."""
    columns = _columns(request)
    stages = {text: parse_schedule(text, total) for column in columns for text in column}
    return [
        tuple(tuple(text_at(stages[text], k) for text in column) for column in columns)
        for k in range(count)
    ]


def _read(request: Request, columns: Columns) -> Iterator[str]:
    """Yields the texts that are encoded: no negative ones without CFG, none beside embeddings.

    Missing negative prompts are left out too, as an empty text takes one window.
    """
    if request.negative_prompts is not None and (request.guidance.scale > 1).any():
        yield from columns[0]
    if request.positive is None:
        yield from (text for column in columns[1:] for text in column)


def _evaluations(bundle: Bundle, request: Request, table: SamplerTable) -> int:
    """Returns the evaluations of which a schedule's `when` is a share.

    As in AUTOMATIC1111 they are twice the steps for a sampler that evaluates twice a step, though
    its last step makes one.
    """
    steps = len(request_schedule(bundle, request))
    return steps * max(1, round(len(table) / steps))


def _weighted(text: str, windows: int) -> Text:
    """Returns a text with its weights and so many windows.

    One window without weights is a string, as a file of embeddings may have it.
    """
    parsed = parse_emphasis(text)
    if windows == 1 and all(piece.weight == 1 for piece in parsed.pieces):
        return str(parsed)
    return replace(parsed, windows=windows)


def _windows(bundle: Bundle, encode: Encode, texts: Set[str], length: int) -> int:
    """Returns the most windows that a text takes.

    Raises `SizeError` if the denoiser does not read so many.
    """
    if not texts:
        return 1
    check_encoders(bundle)
    counts = {text: encode.windows(parse_emphasis(text)) for text in texts}
    longest = max(counts, key=counts.__getitem__)
    most = _most_windows(bundle, length)
    if most is not None and counts[longest] > most:
        fix = "shorten it" if bundle.family == "sdxl" else "shorten it or max_sequence_length"
        raise SizeError(
            f"prompt {short(longest)}",
            got=f"{counts[longest]} windows of CLIP's tokens",
            expected=f"at most {most}",
            fix=fix,
        )
    return counts[longest]


def _most_windows(bundle: Bundle, length: int) -> int | None:
    """Returns how many windows the denoiser reads; None for Flux's, which reads T5's tokens only.

    `length` is the number of T5's tokens behind them in SD3.5.
    """
    if bundle.family == "flux":
        return None
    tokens = bundle.components[DENOISER].ranges.get("tokens")
    clip = bundle.tokenizers["tokenizer"].max_length
    return (
        1 if tokens is None else (tokens.max - (length if bundle.family == "sd35" else 0)) // clip
    )
