"""Checkpoints by their id on the Hugging Face Hub, and the folders of its cache.

`huggingface_hub` heeds HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN by itself.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eri_export.checkpoint import PARTS
from eri_export.shipped import TOKENIZERS
from eri_export.sources.found import PICKLES, pickle_error
from eri_export.sources.weight_files import check_variant, choose
from eri_runtime.errors import HubError, NotACheckpointError, UsageError, short

log = logging.getLogger(__name__)

ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[^:]+))?", re.ASCII)
FORMS = "a path, or OWNER/NAME or OWNER/NAME:FILE.safetensors of the Hugging Face Hub"
TIMEOUT = 30.0  # seconds to wait for the list of a repository's files

INDEX = "model_index.json"
COMPONENTS = {name for parts in PARTS.values() for name in parts}
TOKENIZER_FOLDERS = {name for names in TOKENIZERS.values() for name in names}
TOKENIZER_FILES = (".json", ".txt", ".model")
SHOWN = 8  # files listed in an error


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, one `file` of it or all, at a branch, tag or commit."""

    name: str
    file: str | None
    revision: str | None

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        return f"{self.name}{file}" + (f" at {self.revision!r}" if self.revision else "")


def resolve(text: str | Path, *, revision: str | None = None, variant: str | None = None) -> Path:
    """The local path of what `text` names: a path, or an id of the Hub, which is downloaded.

    Only what an export reads is downloaded: the configs, the tokenizers, and the safetensors
    weights of `variant`. A folder `models--OWNER--NAME` of the Hub's cache gives its snapshot of
    `revision`, or of `main`, or its only one; any other path is returned as it is. Raises
    `HubError` for a repository that cannot be had, `NotACheckpointError` for neither path nor id,
    `PickleError` for pickled weights, `UsageError` for a revision of what has none.
    """
    path = Path(text)
    if _exists(path):
        if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
            return _snapshot(path, revision)
        if revision is not None:
            raise UsageError(
                "revision", got=short(revision), expected=f"none for a path, as {path}"
            )
        return path
    match = ID.fullmatch(path.as_posix())
    if match is None:
        raise NotACheckpointError(text, got="no such path, and no id of the Hub", expected=FORMS)
    repository = Repository(match["repo"], match["file"], revision)
    if Path(match["file"] or "").suffix.lower() in PICKLES:
        raise pickle_error(Path(str(repository)))
    root = _download(repository, variant)
    return root if repository.file is None else root / repository.file


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or not one
        return False


def _snapshot(folder: Path, revision: str | None) -> Path:
    """The snapshot of a revision in a cache folder; `NotACheckpointError` where it is not there."""
    held = sorted(child.name for child in (folder / "snapshots").iterdir())
    ref = folder / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    if commit is None and len(held) == 1:
        commit = held[0]
    if commit not in held:
        raise NotACheckpointError(
            folder,
            got=f"snapshots {held}",
            expected=f"one of {revision or 'main'}",
            fix="name a commit as the revision, or download the repository again",
        )
    return folder / "snapshots" / commit


def _download(repository: Repository, variant: str | None) -> Path:
    """The repository's snapshot with every needed file in it; from the cache where offline."""
    from huggingface_hub import HfApi, snapshot_download

    name, revision = repository.name, repository.revision
    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    except Exception as error:  # which ones depends on the HTTP library of the Hub's version
        cached = _cached(repository, error)
        log.warning("%s: the Hub is out of reach, using %s", repository, cached)
        return cached
    files = needed_files(repository, [each.rfilename for each in info.siblings or ()], variant)
    try:
        patterns = [glob.escape(file) for file in files]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _hub_error(repository, error) from error


def _cached(repository: Repository, error: Exception) -> Path:
    """What the cache holds of a repository that the Hub did not list; `HubError` for nothing."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 500
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.name.replace('/', '--')}"
    if status >= 500 and (folder / "snapshots").is_dir():
        with contextlib.suppress(NotACheckpointError):
            root = _snapshot(folder, repository.revision)
            if (root / (repository.file or INDEX)).is_file():
                return root
    raise _hub_error(repository, error) from error


def needed_files(repository: Repository, names: Iterable[str], variant: str | None) -> list[str]:
    """Those of a repository's files that an export reads.

    Raises `HubError` where there is no such file or no pipeline, and the errors of `choose`.
    """
    names = sorted(names)
    wanted = repository.file or INDEX
    if wanted not in names:
        weights = [name for name in names if name.endswith(".safetensors")][:SHOWN]
        raise HubError(
            repository,
            got=f"no {wanted}; its weights are {', '.join(weights) or 'none'}",
            expected="a diffusers pipeline, or a file of the repository",
            fix=f"to export one file, name it as {repository.name}:FILE.safetensors",
        )
    if repository.file is not None:
        return [repository.file]
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.partition("/")
        if file and "/" not in file:
            folders[folder].append(file)
    held = [files for folder, files in folders.items() if folder in COMPONENTS]
    check_variant(repository, held, variant)
    return [INDEX] + [
        f"{folder}/{file}"
        for folder, files in folders.items()
        for file in _needed(repository, folder, files, variant)
    ]


def _needed(
    repository: Repository, folder: str, files: list[str], variant: str | None
) -> list[str]:
    if folder == "scheduler":
        return [file for file in files if file.endswith(".json")]
    if folder in TOKENIZER_FOLDERS:
        return [file for file in files if file.endswith(TOKENIZER_FILES)]
    if folder in COMPONENTS:
        weights = choose(Path(repository.name) / folder, files, variant)
        return [*(file for file in files if file == "config.json"), *weights]
    return []


def _hub_error(repository: Repository, error: Exception) -> HubError:
    """What `huggingface_hub` raised, by the first row that fits."""
    from huggingface_hub import constants, errors

    page, cache = f"{constants.ENDPOINT}/{repository.name}", constants.HF_HUB_CACHE
    said = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    rows: tuple[tuple[bool | type[Exception], str, str, str | None], ...] = (
        (
            _is_full(error),
            f"a full disk at {cache}",
            "room for the weights",
            "make room there, or set HF_HOME to a folder of another disk",
        ),
        (
            errors.GatedRepoError,
            "a gated repository",
            "one that this account may read",
            f"accept its licence at {page} and set HF_TOKEN to a token of the account that did",
        ),
        (
            errors.RepositoryNotFoundError,
            "no such path, and no such repository of the Hub",
            FORMS,
            "check the spelling; for a private repository, set HF_TOKEN",
        ),
        (
            errors.RevisionNotFoundError,
            "no such revision",
            "a branch, tag or commit of the repository",
            f"see {page}/tree/main",
        ),
        (errors.HFValidationError, "no such path, and no id of the Hub", FORMS, None),
        (
            errors.OfflineModeIsEnabled,
            f"no such path, and no copy in {cache} while HF_HUB_OFFLINE is set",
            FORMS,
            "unset HF_HUB_OFFLINE, or name a folder that holds a copy",
        ),
        (errors.HfHubHTTPError, f"a refusal ({said})", "its files", "try again later"),
        (
            Exception,
            f"no such path, and no answer from {constants.ENDPOINT} ({said})",
            FORMS,
            "check the network, or name a folder that holds a copy",
        ),
    )
    got, expected, fix = next(
        row for case, *row in rows if (case if isinstance(case, bool) else isinstance(error, case))
    )
    return HubError(repository, got=got, expected=expected, fix=fix)


def _is_full(error: Exception) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error)  # as the downloader written in Rust says it
