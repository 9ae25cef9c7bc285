"""LoRAs on the Hugging Face Hub, by OWNER/NAME or OWNER/NAME:FILE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from eri_runtime import checks
from eri_runtime.bundle import hub, pickle_error
from eri_runtime.errors import HubError

CONFIG = "adapter_config.json"
NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers', peft's
SUFFIX = ".safetensors"
SHOWN = 8  # files listed in an error


def repository_of(source: str | Path) -> hub.Repository | None:
    """Returns the repository that a text names, or None for a path.

    A path that exists goes before an id, and NAME.safetensors is always a path. Raises `UsageError`
    for anything but a string or a `Path`.
    """
    path = checks.path("LoRA", source)
    if hub.path_exists(path) or (path.suffix == SUFFIX and ":" not in str(source)):
        return None
    return hub.repository_of(source)


def download_lora(repository: hub.Repository) -> Path:
    """Downloads a LoRA's file, and peft's config beside it, to the Hub's cache; returns the file.

    Raises `HubError` if the repository has no LoRA or several, or cannot be downloaded, and
    `PickleError` for a file that is not safetensors.
    """
    if repository.file is not None and not repository.file.endswith(SUFFIX):
        raise pickle_error(repository, PurePosixPath(repository.file).name)
    root = hub.download(
        repository,
        lambda names: lora_files(repository, names),
        lambda root: _is_complete(repository, root),
    )
    return root / lora_files(repository, _names(root))[0]


def lora_files(repository: hub.Repository, names: Sequence[str]) -> list[str]:
    """Returns the file of a repository's LoRA, and peft's config if it lies beside it.

    Raises `HubError` unless there is exactly one.
    """
    weights = [name for name in sorted(names) if name.endswith(SUFFIX)]
    if repository.file is None:
        found = usual([name for name in weights if "/" not in name])
    else:
        found = [name for name in weights if name == repository.file]
    if len(found) != 1:
        more = ", ..." if len(weights) > SHOWN else ""
        listed = ", ".join(weights[:SHOWN]) + more
        raise HubError(
            repository,
            got=f"the safetensors files {listed}" if listed else "no safetensors file",
            expected=repository.file or f"one LoRA, such as {NAMES[0]}",
            fix=f"name the file, as {repository.name}:{weights[0]}" if weights else None,
        )
    config = str(PurePosixPath(found[0]).with_name(CONFIG))
    return [found[0], *(name for name in names if name == config)]


def usual(names: Sequence[str]) -> list[str]:
    """Returns the names that diffusers and peft give a LoRA, or all if none is one of those."""
    return [name for name in NAMES if name in names] or list(names)


def _names(root: Path) -> list[str]:
    """Returns the files of a snapshot, as the Hub names them."""
    return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]


def _is_complete(repository: hub.Repository, root: Path) -> bool:
    """Returns whether a snapshot in the cache has the LoRA.

    The cache has the files that were downloaded, and the repository may have more. Without a file's
    name, raises `HubError` unless the LoRA has the name that goes before all others online.
    """
    names = _names(root)
    if repository.file is not None:
        return repository.file in names
    weights = sorted(name for name in names if name.endswith(SUFFIX))
    at_top = [name for name in weights if "/" not in name]
    if usual(at_top) and usual(at_top)[0] in NAMES:
        return True
    if not weights:
        return False
    raise HubError(
        repository,
        got=f"no answer from the Hub, and only {', '.join(weights[:SHOWN])} in its cache",
        expected="the name of the file, as the repository may have others",
        fix=f"name it, as {repository.name}:{weights[0]}",
    )
