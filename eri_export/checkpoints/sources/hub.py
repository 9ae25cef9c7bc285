"""Downloads checkpoints by their id on the Hugging Face Hub, and reads its cache folders.

`huggingface_hub` itself reads HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from eri_export.checkpoints.checkpoint import PARTS
from eri_export.checkpoints.shipped_configs import TOKENIZERS
from eri_export.checkpoints.sources.config_files import PICKLES
from eri_export.checkpoints.sources.weight_files import check_variant, choose
from eri_runtime.bundle import hub, pickle_error
from eri_runtime.errors import HubError, UsageError, short

INDEX = "model_index.json"
COMPONENTS = {name for parts in PARTS.values() for name in parts}
TOKENIZER_FOLDERS = {name for names in TOKENIZERS.values() for name in names}
TOKENIZER_FILES = (".json", ".txt", ".model")
SHOWN = 8  # files listed in an error


def resolve(text: str | Path, *, revision: str | None = None, variant: str | None = None) -> Path:
    """Returns the local path of a checkpoint; downloads an id of the Hub to its cache.

    Only what an export reads is downloaded: configs, tokenizers and the safetensors weights of
    `variant`. For a folder `models--OWNER--NAME` of the Hub's cache it returns the snapshot of
    `revision` (default: `main`, or the only one); any other path is returned unchanged. Raises
    `HubError` if the download fails, `NotACheckpointError` if `text` is neither a path nor an id,
    `PickleError` for pickled weights, `UsageError` for a revision of a path.
    """
    path = Path(text)
    if hub.path_exists(path):
        if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
            return hub.snapshot_of(path, revision)
        if revision is not None:
            raise UsageError(
                "revision", got=short(revision), expected=f"none for a path, as {path}"
            )
        return path
    repository = hub.named_repository(text, revision)
    if Path(repository.file or "").suffix.lower() in PICKLES:
        raise pickle_error(repository, Path(str(repository.file)).name)
    root = hub.download(
        repository,
        lambda names: needed_files(repository, names, variant),
        lambda root: (root / (repository.file or INDEX)).is_file(),
    )
    return root if repository.file is None else root / repository.file


def needed_files(
    repository: hub.Repository, names: Iterable[str], variant: str | None
) -> list[str]:
    """Returns the repository's files that an export reads.

    Raises `HubError` if there is no such file or no pipeline, and the errors of `choose`.
    """
    names = sorted(names)
    required = repository.file or INDEX
    if required not in names:
        weights = [name for name in names if name.endswith(".safetensors")][:SHOWN]
        raise HubError(
            repository,
            got=f"no {required}; its weights are {', '.join(weights) or 'none'}",
            expected="a diffusers pipeline, or a file of the repository",
            fix=f"to export one file, name it as {repository.name}:{weights[0]}"
            if weights
            else None,
        )
    if repository.file is not None:
        return [repository.file]
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.partition("/")
        if file and "/" not in file:
            folders[folder].append(file)
    components = [files for folder, files in folders.items() if folder in COMPONENTS]
    check_variant(repository, components, variant)
    return [INDEX] + [
        f"{folder}/{file}"
        for folder, files in folders.items()
        for file in _needed(repository, folder, files, variant)
    ]


def _needed(
    repository: hub.Repository, folder: str, files: list[str], variant: str | None
) -> list[str]:
    if folder == "scheduler":
        return [file for file in files if file.endswith(".json")]
    if folder in TOKENIZER_FOLDERS:
        return [file for file in files if file.endswith(TOKENIZER_FILES)]
    if folder in COMPONENTS:
        weights = choose(Path(repository.name) / folder, files, variant)
        return [*(file for file in files if file == "config.json"), *weights]
    return []
