"""Opens a LoRA's file, folder or Hub repository, with peft's config if it lies beside the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eri_runtime.bundle import TensorFile, hub, read_tensors
from eri_runtime.errors import LoraError, short
from eri_runtime.files import parse_json, read_regular_file
from eri_runtime.weights.lora.hub_lora import CONFIG, SUFFIX, download_lora, repository_of, usual
from eri_runtime.weights.lora.peft_config import METADATA

PEFT_PREFIX = "base_model.model."
LARGEST_CONFIG = 1_000_000  # bytes


def read_lora(path: str | Path) -> TensorFile:
    """Memory-maps a LoRA.

    Args:
        path: A safetensors file, a folder as diffusers or peft saves one, or OWNER/NAME or
            OWNER/NAME:FILE of the Hugging Face Hub. For a file that peft wrote,
            `adapter_config.json` beside it is read too.

    Returns:
        The tensors; `metadata` has peft's config.

    Raises:
        LoraError: If a folder has no LoRA or several, or the config cannot be read.
        NotACheckpointError: If there is no such file, or it is text.
        DamagedWeightsError: If it is not a valid safetensors file.
        PickleError: If the file is a pickle.
        HubError: If the Hub's repository cannot be downloaded, or has no LoRA or several.
    """
    file = find_lora(path)
    tensors = read_tensors(file)
    config = file.with_name(CONFIG)
    by_peft = any(PEFT_PREFIX in name for name in tensors)
    if METADATA not in tensors.metadata and by_peft and config.is_file():
        tensors.metadata = {**tensors.metadata, METADATA: json.dumps(_read_config(config))}
    return tensors


def lora_name(path: str | Path) -> str:
    """Returns a LoRA's name: its folder's or repository's, or its file's without the suffix."""
    repository = repository_of(path)
    if repository is not None:
        return Path(repository.file).stem if repository.file else Path(repository.name).name
    path = Path(path)
    return path.resolve().name if hub.path_exists(path) and path.is_dir() else path.stem


def is_lora(text: str) -> bool:
    """Returns whether a text says where a LoRA is: a path or an id of the Hub, not a mere name."""
    path = Path(text)
    return path.suffix == SUFFIX or hub.path_exists(path) or repository_of(text) is not None


def find_lora(path: str | Path) -> Path:
    """Returns the file of a path: itself, the one in a folder, or one downloaded from the Hub.

    Raises `LoraError` unless the folder has exactly one, and `HubError` likewise for a repository
    or if it cannot be downloaded.
    """
    repository = repository_of(path)
    if repository is not None:
        return download_lora(repository)
    folder = Path(path)
    if not (hub.path_exists(folder) and folder.is_dir()):
        return folder
    found = usual(sorted(each.name for each in folder.glob(f"*{SUFFIX}")))
    if len(found) != 1:
        raise LoraError(
            folder,
            got=", ".join(map(short, found)) or "no safetensors file",
            expected="one LoRA",
            fix="name the file",
        )
    return folder / found[0]


def lora_files(path: str | Path) -> list[Path]:
    """Returns every file that decides what a LoRA does: its own, and peft's config beside it."""
    file = find_lora(path)
    config = file.with_name(CONFIG)
    return [file, *([config] if config.is_file() else [])]


def _read_config(file: Path) -> Mapping[str, Any]:
    """Returns peft's config; raises `LoraError` if it is not a JSON object."""
    try:
        config = parse_json(read_regular_file(file, LARGEST_CONFIG).decode("utf-8"), infinite=True)
    except (OSError, ValueError) as error:
        raise LoraError(file, got=short(str(error)), expected="a config of peft") from error
    if not isinstance(config, dict):
        raise LoraError(file, got=short(config), expected="a config of peft")
    return config
