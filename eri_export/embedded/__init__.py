"""The checkpoint that ships with eri: a small text-to-image model trained on captioned emoji."""

from __future__ import annotations

import pathlib

from eri_runtime.errors import NotACheckpointError, UnknownNameError

__all__ = ["FAMILIES", "checkpoint"]

FAMILIES = {"sd35": "emoji-sd35"}


def checkpoint(family: str = "sd35") -> pathlib.Path:
    """The folder of the embedded checkpoint of a family, in diffusers layout."""
    if family not in FAMILIES:
        raise UnknownNameError("family", got=repr(family), expected=f"one of {', '.join(FAMILIES)}")
    folder = pathlib.Path(__file__).with_name(FAMILIES[family])
    if not (folder / "model_index.json").is_file():
        raise NotACheckpointError(
            folder, got="nothing", expected="a checkpoint", fix="reinstall eri"
        )
    return folder
