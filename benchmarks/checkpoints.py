"""Checkpoints of random weights that are larger than the tests' tiny ones, in a family's layout.

The tiny pipeline of the family is saved first, with its scheduler and tokenizers; then each part
that is named is made anew, of its class, with some fields of its config changed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import checkpoints as tiny

Config = Mapping[str, Any]


def make_checkpoint(family: str, root: Path, parts: Mapping[str, Config]) -> Path:
    """A diffusers folder at `root`, with these changes to the configs of its parts."""
    getattr(tiny, f"tiny_{family}")(root)
    index = json.loads((root / "model_index.json").read_text(encoding="utf-8"))
    for name, changes in parts.items():
        library, class_name = index[name]
        kind = getattr(importlib.import_module(library), class_name)
        module = _made(kind, root / name, changes)
        tiny.randomised(module, 0).save_pretrained(root / name)
    return root


def _made(kind: Any, folder: Path, changes: Config) -> Any:
    """A network of the config in a folder, changed."""
    if hasattr(kind, "load_config"):  # diffusers
        return kind(**{**kind.load_config(folder), **changes})
    return kind(kind.config_class.from_pretrained(folder, **changes))
