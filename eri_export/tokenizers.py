"""Tokenizer folders of any age to one `tokenizer.json` the runtime reads without transformers."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from eri_export.checkpoint import Checkpoint
from eri_runtime.errors import CheckpointError
from eri_runtime.spec import TokenizerSpec

FILE = "tokenizer.json"
UNLIMITED = 512  # tokens where neither tokenizer nor encoder sets a limit; T5's usual one


def write_tokenizers(checkpoint: Checkpoint, folder: Path) -> dict[str, TokenizerSpec]:
    """Write `folder/NAME/tokenizer.json` for each text encoder, with truncation and padding off.

    Raises `CheckpointError` for one that is missing or that transformers cannot read.
    """
    specs = {}
    for encoder, component in checkpoint.components.items():
        if not encoder.startswith("text_encoder"):
            continue
        name = encoder.replace("text_encoder", "tokenizer")
        if name not in checkpoint.tokenizers:
            raise CheckpointError(checkpoint.root, got=f"no {name}", expected=f"one for {encoder}")
        (folder / name).mkdir()
        limit = int(component.config.get("max_position_embeddings", UNLIMITED))
        specs[name] = _write(checkpoint.tokenizers[name], folder / name / FILE, limit)
    return specs


def _write(source: Path, file: Path, limit: int) -> TokenizerSpec:
    try:
        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True, use_fast=True)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises what each file format's reader does
        raise CheckpointError(
            source, got=error, expected="a tokenizer that transformers reads"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(file))
    return TokenizerSpec(
        file=f"{file.parent.name}/{FILE}",
        max_length=min(int(loaded.model_max_length), limit),
        pad_id=int(loaded.pad_token_id),
    )
