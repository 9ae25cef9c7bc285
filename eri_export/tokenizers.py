"""Tokenizer folders of any age to one `tokenizer.json` the runtime reads without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from eri_export.checkpoint import Checkpoint
from eri_runtime.errors import CheckpointError
from eri_runtime.spec import TokenizerSpec

FILE = "tokenizer.json"
UNLIMITED = 512  # tokens where neither tokenizer nor encoder sets a limit; T5's usual one


@dataclass(frozen=True)
class ReadTokenizer:
    """What the manifest says of a tokenizer, and the text of its file."""

    spec: TokenizerSpec
    text: str


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, ReadTokenizer]:
    """The tokenizer of each text encoder by its name, with truncation and padding off.

    Raises `CheckpointError` for one that is missing or that transformers cannot read.
    """
    read = {}
    for encoder, component in checkpoint.components.items():
        if not encoder.startswith("text_encoder"):
            continue
        name = encoder.replace("text_encoder", "tokenizer")
        if name not in checkpoint.tokenizers:
            raise CheckpointError(checkpoint.root, got=f"no {name}", expected=f"one for {encoder}")
        limit = int(component.config.get("max_position_embeddings", UNLIMITED))
        read[name] = _read(checkpoint.tokenizers[name], f"{name}/{FILE}", limit)
    return read


def write_tokenizers(tokenizers: Mapping[str, ReadTokenizer], folder: Path) -> None:
    """Write each to its file below `folder`."""
    for each in tokenizers.values():
        file = folder / each.spec.file
        file.parent.mkdir()
        file.write_text(each.text, encoding="utf-8")


def _read(source: Path, file: str, limit: int) -> ReadTokenizer:
    try:
        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True, use_fast=True)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises what each file format's reader does
        raise CheckpointError(
            source, got=error, expected="a tokenizer that transformers reads"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    spec = TokenizerSpec(
        file=file,
        max_length=min(int(loaded.model_max_length), limit),
        pad_id=int(loaded.pad_token_id),
    )
    return ReadTokenizer(spec, tokenizer.to_str(pretty=True))
