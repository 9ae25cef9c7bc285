"""Makes checkpoints with random weights that are larger than the tests' tiny ones.

Saves the family's tiny pipeline first, with its scheduler and tokenizers, then replaces the named
components with networks of the same class and a changed config.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import checkpoints as tiny

Config = Mapping[str, Any]


def make_checkpoint(family: str, root: Path, parts: Mapping[str, Config]) -> Path:
    """Writes a diffusers folder to `root`; `parts` are config changes by component."""
    getattr(tiny, f"tiny_{family}")(root)
    index = json.loads((root / "model_index.json").read_text(encoding="utf-8"))
    for name, changes in parts.items():
        library, class_name = index[name]
        kind = getattr(importlib.import_module(library), class_name)
        module = _network(kind, root / name, changes)
        tiny.randomised(module, 0).save_pretrained(root / name)
    return root


def _network(kind: Any, folder: Path, changes: Config) -> Any:
    """Builds a network with the config in `folder` and these changes."""
    if hasattr(kind, "load_config"):  # diffusers
        return kind(**{**kind.load_config(folder), **changes})
    return kind(kind.config_class.from_pretrained(folder, **changes))
