"""Converts tokenizer folders to one `tokenizer.json`, which the runtime reads without transformers.

Old folders hold vocabulary files instead, such as `vocab.json` and `merges.txt`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, CLIPTokenizer, T5Tokenizer

from eri_export.checkpoints.checkpoint import Checkpoint, Component
from eri_export.checkpoints.shipped_configs import TOKENIZERS, VOCABULARIES, TokenizerName
from eri_export.checkpoints.shipped_configs import tokenizer as shipped
from eri_runtime.bundle import TokenizerSpec, hub
from eri_runtime.errors import CheckpointError, short
from eri_runtime.files import parse_json, read_regular_file
from eri_runtime.text import is_library_error

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
VOCABULARY_FILES = (FILE, "vocab.json", "spiece.model")  # any one of them
# everything that transformers may read in a tokenizer's folder
READ_FILES = (
    *VOCABULARY_FILES,
    SETTINGS,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
CLASSES = {"CLIPTokenizer": CLIPTokenizer, "T5Tokenizer": T5Tokenizer}
MERGES = "clip-merges.txt"  # of both CLIPs
END_OF_WORD = "</w>"
MARKS = ("<|startoftext|>", "<|endoftext|>")
SHORTEST = 2  # tokens: the two marks of a prompt without words
UNLIMITED = 512  # tokens, if neither tokenizer nor encoder sets a limit; T5's usual length


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer's entry of the manifest, and the text of its `tokenizer.json`."""

    spec: TokenizerSpec
    text: str


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, ReadTokenizer]:
    """Reads the tokenizer of each text encoder, by name, and turns truncation and padding off.

    Raises `CheckpointError` for one that is missing or that transformers cannot read.
    """
    tokenizers = {}
    for encoder, component in checkpoint.components.items():
        if not encoder.startswith("text_encoder"):
            continue
        name = encoder.replace("text_encoder", "tokenizer")
        if name not in checkpoint.tokenizers:
            raise CheckpointError(checkpoint.root, got=f"no {name}", expected=f"one for {encoder}")
        which = TOKENIZERS[checkpoint.family][name]
        tokenizers[name] = _read(checkpoint.tokenizers[name], f"{name}/{FILE}", component, which)
    return tokenizers


def write_tokenizers(tokenizers: Mapping[str, ReadTokenizer], folder: Path) -> None:
    """Writes each tokenizer to its file below `folder`."""
    for each in tokenizers.values():
        file = folder / each.spec.file
        file.parent.mkdir()
        file.write_text(each.text, encoding="utf-8")


def load_tokenizer(source: Path, which: TokenizerName | None = None) -> Any:
    """Returns transformers' fast tokenizer of a folder, shipped ones included.

    A folder without settings, such as one of T5's `spiece.model` alone, takes those of the
    published tokenizer `which`.
    """
    if source.parent == VOCABULARIES and source.name.startswith("clip"):
        return _shipped_clip(source)
    _check_files(source)
    if which is None or any((source / name).is_file() for name in (FILE, SETTINGS)):
        return AutoTokenizer.from_pretrained(source, local_files_only=True, use_fast=True)
    settings = _settings(which)
    kind = CLASSES[settings.pop("tokenizer_class")]
    return kind.from_pretrained(source, local_files_only=True, **settings)


def _check_files(source: Path) -> None:
    """Raises `CheckpointError`, naming the file, for one that cannot be read or parsed.

    Also raises it for a folder without a vocabulary, which transformers makes up.
    """
    for name in READ_FILES:
        file = source / name
        if not hub.path_exists(file):
            continue
        try:
            content = read_regular_file(file)
            if not content:
                raise ValueError("an empty file")
            if file.suffix == ".txt":
                content.decode()
            if file.suffix == ".json" and not isinstance(_parsed(content), dict):
                raise ValueError("no object")
        except (OSError, ValueError) as error:
            raise _damaged(file, error) from error
    if not any((source / name).is_file() for name in VOCABULARY_FILES):
        raise CheckpointError(
            source,
            got="no vocabulary",
            expected=f"one of {', '.join(VOCABULARY_FILES)}",
            fix="copy or download the folder again",
        )


def _parsed(content: bytes) -> Any:
    """Returns the value of a JSON file of a tokenizer."""
    return parse_json(content.decode(), infinite=True)


def _damaged(file: Path, error: BaseException) -> CheckpointError:
    """Returns the error for a file of a tokenizer that cannot be read."""
    got = error.strerror if isinstance(error, OSError) and error.strerror else short(str(error))
    expected, fix = "a tokenizer that transformers reads", "copy or download it again"
    return CheckpointError(file, got=got, expected=expected, fix=fix)


def _settings(which: TokenizerName) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((shipped(which) / SETTINGS).read_text(encoding="utf-8"))
    return settings


def _shipped_clip(source: Path) -> Any:
    """Returns a shipped CLIP tokenizer, with the vocabulary that its merges define.

    Both CLIPs have the same merges, and token ids follow from them: the 256 bytes, the 256 bytes
    that end a word, the merges in their order, and the two marks.
    """
    lines = (VOCABULARIES / MERGES).read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split()) for line in lines]
    letters = sorted(ByteLevel.alphabet())
    words = [letter + END_OF_WORD for letter in letters]
    tokens = [*letters, *words, *map("".join, merges), *MARKS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    config = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, **config)


def _read(source: Path, file: str, encoder: Component, which: TokenizerName) -> ReadTokenizer:
    try:
        loaded = load_tokenizer(source, which)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except CheckpointError:
        raise
    except BaseException as error:  # each file format's reader raises errors of its own types
        if not is_library_error(error):
            raise
        found = [name for name in VOCABULARY_FILES if (source / name).is_file()]
        raise _damaged(source / found[0] if found else source, error) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    spec = TokenizerSpec(
        file=file,
        max_length=_length(source, loaded.model_max_length, encoder),
        pad_id=_padding(source, loaded, tokenizer, which),
    )
    rows = encoder.config.get("vocab_size")
    if isinstance(rows, int) and spec.pad_id >= rows:
        raise CheckpointError(
            f"{source}: pad_token",
            got=f"token {spec.pad_id}",
            expected=f"one of the {rows} tokens of {encoder.name}",
        )
    return ReadTokenizer(spec, tokenizer.to_str(pretty=True))


def _length(source: Path, own: object, encoder: Component) -> int:
    """Returns the tokens of a prompt: the tokenizer's number, or the encoder's if that is less."""
    limit = encoder.config.get("max_position_embeddings", UNLIMITED)
    for where, key, value in (
        (source / SETTINGS, "model_max_length", own),
        (encoder.origin, "max_position_embeddings", limit),
    ):
        if not isinstance(value, int | float) or not SHORTEST <= value < math.inf:
            raise CheckpointError(
                f"{where}: {key}", got=short(value), expected=f"a number from {SHORTEST}"
            )
    return int(min(own, limit))


def _padding(source: Path, loaded: Any, tokenizer: Tokenizer, which: TokenizerName) -> int:
    """Returns the id of the padding token; default: the published tokenizer's.

    Raises `CheckpointError` for a vocabulary without it.
    """
    if loaded.pad_token_id is not None:
        return int(loaded.pad_token_id)
    token = _settings(which)["pad_token"]
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise CheckpointError(
            f"{source}: pad_token",
            got=f"none, and no {token!r} in the vocabulary",
            expected="the token that fills up short prompts",
            fix=f"add pad_token to {SETTINGS} there",
        )
    return number
