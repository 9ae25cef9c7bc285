"""The checkpoints that ship with eri: small text-to-image models trained on captioned emoji."""

from __future__ import annotations

import pathlib

from eri_runtime.errors import NotACheckpointError, UnknownNameError

__all__ = ["FAMILIES", "LORAS", "checkpoint", "lora"]

FAMILIES = {"sdxl": "emoji-sdxl", "sd35": "emoji-sd35", "flux": "emoji-flux"}
LORAS = {"blue-ink": "emoji-sd35-blue-ink.safetensors"}


def checkpoint(family: str = "sd35") -> pathlib.Path:
    """The folder of what a family's embedded checkpoint has of its own, in diffusers layout.

    That of `sd35` is whole; `eri_export.embedded.assemble` completes the others.
    """
    if family not in FAMILIES:
        raise UnknownNameError("family", got=repr(family), expected=f"one of {', '.join(FAMILIES)}")
    folder = pathlib.Path(__file__).with_name(FAMILIES[family])
    if not (folder / "model_index.json").is_file():
        raise NotACheckpointError(
            folder, got="nothing", expected="a checkpoint", fix="reinstall eri"
        )
    return folder


def lora(name: str = "blue-ink") -> pathlib.Path:
    """The file of an embedded LoRA for the checkpoint, in diffusers' format."""
    if name not in LORAS:
        raise UnknownNameError("lora", got=repr(name), expected=f"one of {', '.join(LORAS)}")
    return pathlib.Path(__file__).with_name("loras") / LORAS[name]
