"""Reads configs and refuses pickles, for every layout."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from eri_runtime.errors import NotACheckpointError
from eri_runtime.files import parse_json, read_regular_file

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def read_json(file: Path) -> dict[str, Any]:
    """Reads the JSON object in `file`; raises `NotACheckpointError` for anything else."""
    try:
        value = parse_json(read_regular_file(file).decode("utf-8"), infinite=True)
    except (OSError, ValueError) as error:
        raise NotACheckpointError(file, got=error, expected="a JSON file") from error
    if not isinstance(value, dict):
        raise NotACheckpointError(file, got=type(value).__name__, expected="a JSON object")
    return value


def with_defaults(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config` completed by the default arguments of diffusers' class of that name."""
    kind = getattr(diffusers, class_name, None)
    if kind is None:  # a class of transformers, whose configs complete themselves
        return dict(config)
    arguments = inspect.signature(kind).parameters.values()
    defaults = {each.name: each.default for each in arguments if each.default is not each.empty}
    return {**defaults, **config}


def require_exists(path: Path, what: str) -> Path:
    """Returns `path`; raises `NotACheckpointError` if it does not exist."""
    if not path.exists():
        raise NotACheckpointError(path, got="no such path", expected=what)
    return path
