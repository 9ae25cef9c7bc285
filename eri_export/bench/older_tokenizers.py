"""A checkpoint whose tokenizers transformers 4 can open too, as the peers still need it."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = "tokenizer_config.json"
# transformers 5 keeps a list under the first name, which transformers 4 expects under the second
NEW, OLD = "extra_special_tokens", "additional_special_tokens"


def with_older_tokenizers(checkpoint: Path, target: Path) -> Path:
    """Makes a folder of links to a checkpoint's files, with the tokenizers' configs rewritten.

    Args:
        checkpoint: A diffusers folder.
        target: A folder that does not exist yet.

    Returns:
        `target`.
    """
    for file in sorted(each for each in checkpoint.rglob("*") if each.is_file()):
        copy = target / file.relative_to(checkpoint)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.name == CONFIG:
            copy.write_text(older_config(file.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            copy.symlink_to(file.resolve())
    return target


def older_config(text: str) -> str:
    """Returns the JSON of a tokenizer's config with its list of special tokens under `OLD`."""
    values = json.loads(text)
    if isinstance(values.get(NEW), list):
        values[OLD] = values.pop(NEW)
    return json.dumps(values, indent=2)
