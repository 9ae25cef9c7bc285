"""What every layout asks of the files it finds, and what it says of those it cannot use."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from eri_runtime.errors import NotACheckpointError, PickleError
from eri_runtime.foreign import PICKLED, SAVE

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; raises `NotACheckpointError` for anything else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NotACheckpointError(file, got=error, expected="a JSON file") from error
    if not isinstance(value, dict):
        raise NotACheckpointError(file, got=type(value).__name__, expected="a JSON object")
    return value


def with_defaults(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what it leaves out, by the arguments of diffusers' class of that name."""
    kind = getattr(diffusers, class_name, None)
    if kind is None:  # transformers' configs fill in their own
        return dict(config)
    arguments = inspect.signature(kind).parameters.values()
    given = {each.name: each.default for each in arguments if each.default is not each.empty}
    return {**given, **config}


def existing(path: Path, what: str) -> Path:
    """`path`; raises `NotACheckpointError` where it does not exist."""
    if not path.exists():
        raise NotACheckpointError(path, got="no such path", expected=what)
    return path


def pickle_error(path: Path) -> PickleError:
    """The refusal of a pickle, which is never opened."""
    return PickleError(
        path,
        got=PICKLED,
        expected="safetensors",
        fix=SAVE,
    )
