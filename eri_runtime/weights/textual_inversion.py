"""Reads textual inversions: embeddings of new tokens (Gal et al. 2022, arXiv 2208.01618)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Family, read_tensors
from eri_runtime.checks import mapping, path, text
from eri_runtime.errors import LoraError, short
from eri_runtime.weights.lora.bundled_tokens import ALONE, BUNDLED
from eri_runtime.weights.lora.factors import FLOATS, finite_float32
from eri_runtime.weights.lora.targets import ENCODERS

Vectors = NDArray[np.float32]  # (n, width): a token may stand for several positions

CLIPS = {"clip_l": "l", "clip_g": "g"}  # the last word of a key -> a key of `ENCODERS`
BY_WIDTH = ("emb_params", "string_to_param.*")  # the last word of a key that names no encoder
LONGEST = 75  # vectors of a token: CLIP's positions without its two special tokens


@dataclass(frozen=True, eq=False)
class TextualInversion:
    """The embeddings of one token.

    Attributes:
        token: The token, as prompts name it.
        vectors: Its embeddings, (n, width) float32, by text encoder.
    """

    token: str
    vectors: Mapping[str, Vectors]


def read_textual_inversions(
    source: str | Path | Mapping[str, Any],
    token: str | None,
    family: Family,
    widths: Mapping[str, int],
) -> list[TextualInversion]:
    """Reads the embeddings of tokens from a file.

    Args:
        source: A safetensors file, or tensors by key: kohya's `emb_params`; `clip_l` and `clip_g`;
            diffusers' `<token>`; or a LoRA of OneTrainer with `bundle_emb.TOKEN.clip_l`.
        token: The token, if the file has only one. Default: the file's own, or its stem.
        family: The model's family.
        widths: The widths of the embeddings of the CLIPs that can take new ones, by component.

    Returns:
        The tokens with their embeddings.

    Raises:
        UsageError: If the source is neither a path nor a mapping with strings as keys.
        LoraError: If the file has no embeddings of tokens, or they do not fit the text encoders.
        NonFiniteError: If an embedding holds NaN or Inf.
        NotACheckpointError: If there is no such file, or it is text.
        DamagedWeightsError: If the file is damaged.
        PickleError: If the file is a pickle.
    """
    if token is not None:
        _checked_token(token)
    tensors: Mapping[str, Any]
    if isinstance(source, Mapping):
        tensors = mapping("textual inversion", source, "tensors by key")
    else:
        tensors = read_tensors(path("textual inversion", source))
    stem = None if isinstance(source, Mapping) else Path(source).stem
    found: dict[str, dict[str, Vectors]] = {}
    for key, name, word in _embeddings(tensors, stem):
        component = _component(key, word, tensors[key], family, widths)
        own = found.setdefault(name, {})
        if component in own:
            raise LoraError(short(key), got=f"{component} again", expected="each encoder once")
        own[component] = _vectors(key, tensors[key], widths[component])
    if token is not None and len(found) > 1:
        got = f"{short(token)} for {', '.join(map(short, found))}"
        raise LoraError("token", got=got, expected="a file with one token")
    return [
        TextualInversion(_checked_token(token or name), vectors) for name, vectors in found.items()
    ]


def _embeddings(tensors: Mapping[str, Any], stem: str | None) -> Iterator[tuple[str, str, str]]:
    """Yields key, token, and the word that names the encoder, "" for none.

    Raises `LoraError` if there are none.
    """
    bundled = {key: match for key in tensors if (match := BUNDLED.fullmatch(key))}
    if bundled:
        for key, match in bundled.items():
            yield key, match["token"], match["word"]
        return
    if tensors and tensors.keys() <= ALONE:
        for key in tensors:
            yield key, stem or "", key
        return
    if len(tensors) != 1:
        raise LoraError(
            "textual inversion",
            got=f"the keys {', '.join(map(short, list(tensors)[:3]))}, ..."
            if tensors
            else "no keys",
            expected="emb_params, clip_l and clip_g, one token, or bundle_emb",
        )
    (key,) = tensors
    yield key, key, BY_WIDTH[0]


def _component(key: str, word: str, value: Any, family: Family, widths: Mapping[str, int]) -> str:
    """Returns the text encoder of an embedding; raises `LoraError` if there is none."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    if word in CLIPS:
        component = ENCODERS[family].get(CLIPS[word], "")
        if component in widths:
            return component
    elif word in BY_WIDTH:
        width = shape[-1] if shape else 0
        for component, own in widths.items():
            if own == width:
                return component
    expected = ", ".join(f"{name} of width {width}" for name, width in widths.items())
    raise LoraError(
        short(key),
        got=f"an embedding for {word}, of shape {list(shape)}",
        expected=f"one for a CLIP of this {family}: {expected or 'there is none'}",
    )


def _vectors(key: str, value: Any, width: int) -> Vectors:
    """Returns embeddings as (n, width) float32; raises `LoraError` if they do not fit."""
    values = finite_float32(key, value, FLOATS)
    if values.ndim not in (1, 2) or values.shape[-1] != width or not values.size:
        expected = f"(n, {width})"
        raise LoraError(short(key), got=f"shape {list(values.shape)}", expected=expected)
    vectors: Vectors = values.reshape(-1, width)
    if len(vectors) > LONGEST:
        raise LoraError(short(key), got=f"{len(vectors)} vectors", expected=f"at most {LONGEST}")
    return vectors


def _checked_token(token: str) -> str:
    """Returns a token; raises `LoraError` or `UsageError` if no prompt can name it."""
    if not isinstance(token, str) or not token or token != token.strip():
        expected, fix = "a name without spaces around it", "pass token=, or rename the file"
        raise LoraError("token", got=short(token), expected=expected, fix=fix)
    return text("token", token)
