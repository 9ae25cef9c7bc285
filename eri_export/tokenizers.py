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
    """Write `folder/NAME/tokenizer.json` for each tokenizer, with truncation and padding off.

    Raises `CheckpointError` for one that transformers cannot read.
    """
    specs = {}
    for name, source in checkpoint.tokenizers.items():
        (folder / name).mkdir()
        config = checkpoint.components[name.replace("tokenizer", "text_encoder")].config
        limit = int(config.get("max_position_embeddings", UNLIMITED))
        specs[name] = _write(source, folder / name / FILE, limit)
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
