"""The checkpoints that ship with eri: small text-to-image models trained on captioned emoji.

`checkpoint` and `lora` return their files; `assemble` completes the SDXL and Flux checkpoints. The
other modules trained them: start with `train`. May import every room of the exporter but `bench`
and `commands`.
"""

from __future__ import annotations

import pathlib

from eri_runtime.errors import NotACheckpointError, UnknownNameError, short

__all__ = ["FAMILIES", "LORAS", "checkpoint", "lora"]

FAMILIES = {"sdxl": "emoji-sdxl", "sd35": "emoji-sd35", "flux": "emoji-flux"}
LORAS = {"blue-ink": "emoji-sd35-blue-ink.safetensors"}


def checkpoint(family: str = "sd35") -> pathlib.Path:
    """Returns the folder of an embedded checkpoint in diffusers' layout.

    The folder of `sd35` is complete. Those of `sdxl` and `flux` lack the components that they share
    with it; `eri_export.embedded.assemble` adds them.

    Args:
        family: `sd35`, `sdxl` or `flux`.

    Returns:
        The folder.

    Raises:
        UnknownNameError: If there is no such family.
        NotACheckpointError: If the folder is missing from the installation.
    """
    if family not in FAMILIES:
        raise UnknownNameError(
            "family", got=short(family), expected=f"one of {', '.join(FAMILIES)}"
        )
    folder = pathlib.Path(__file__).with_name(FAMILIES[family])
    if not (folder / "model_index.json").is_file():
        raise NotACheckpointError(
            folder, got="nothing", expected="a checkpoint", fix="reinstall eri"
        )
    return folder


def lora(name: str = "blue-ink") -> pathlib.Path:
    """Returns the file of an embedded LoRA for the `sd35` checkpoint, in diffusers' format.

    Args:
        name: Name of the LoRA: `blue-ink`.

    Returns:
        The safetensors file.

    Raises:
        UnknownNameError: If there is no such LoRA.
    """
    if name not in LORAS:
        raise UnknownNameError("lora", got=short(name), expected=f"one of {', '.join(LORAS)}")
    return pathlib.Path(__file__).with_name("loras") / LORAS[name]
