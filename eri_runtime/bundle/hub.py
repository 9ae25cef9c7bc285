"""Repositories of the Hugging Face Hub: their ids, their files and its cache of them.

`huggingface_hub` itself reads HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.errors import HubError, NotACheckpointError

log = logging.getLogger(__name__)

ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[^:]+))?", re.ASCII)
FORMS = "a path, or OWNER/NAME or OWNER/NAME:FILE.safetensors of the Hugging Face Hub"
WEIGHTS_SUFFIXES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
TIMEOUT = 30.0  # seconds, for the list of a repository's files

Choose = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, or one `file` of it, at a branch, tag or commit."""

    name: str
    file: str | None
    revision: str | None

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        return f"{self.name}{file}" + (f" at {self.revision!r}" if self.revision else "")


def path_exists(path: Path) -> bool:
    """Returns whether a path exists; False for a text that cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or no valid path
        return False


def repository_of(text: str | Path, revision: str | None = None) -> Repository | None:
    """Returns the repository that OWNER/NAME or OWNER/NAME:FILE names, or None for other texts.

    ./OWNER/NAME and OWNER/NAME/ are paths.
    """
    match = ID.fullmatch(text.as_posix() if isinstance(text, Path) else text)
    return Repository(match["repo"], match["file"], revision) if match else None


def named_repository(text: str | Path, revision: str | None = None) -> Repository:
    """Returns the repository that a text names which is no path that exists.

    Raises `NotACheckpointError` for a text that is no id of the Hub either, and for the name of a
    weights file: models/NAME.safetensors is a path.
    """
    repository = repository_of(text, revision)
    if repository is None or (
        repository.file is None and repository.name.endswith(WEIGHTS_SUFFIXES)
    ):
        raise NotACheckpointError(text, got="no such path, and no id of the Hub", expected=FORMS)
    return repository


def download(repository: Repository, choose: Choose, is_complete: Callable[[Path], bool]) -> Path:
    """Downloads files of a repository to the Hub's cache.

    Args:
        repository: The repository.
        choose: Returns the files to download, given the names of all.
        is_complete: Whether a snapshot in the cache will do, if the Hub is out of reach.

    Returns:
        The folder of the snapshot.

    Raises:
        HubError: If the download fails, or `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise HubError(
            repository,
            got="no such path, and no package huggingface_hub to download it with",
            expected=FORMS,
            fix="pip install huggingface_hub, or download the file yourself and name its path",
        ) from error
    name, revision = repository.name, repository.revision
    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    except Exception as error:  # its types depend on the HTTP library of the Hub's version
        cached = _cached(repository, error, is_complete)
        log.warning("%s: the Hub is out of reach, using %s", repository, cached)
        return cached
    files = choose([each.rfilename for each in info.siblings or ()])
    try:
        patterns = [glob.escape(file) for file in files]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _hub_error(repository, error) from error


def snapshot_of(folder: Path, revision: str | None) -> Path:
    """Returns the snapshot of a revision in a cache folder; `NotACheckpointError` for none."""
    snapshots = sorted(child.name for child in (folder / "snapshots").iterdir())
    ref = folder / "refs" / (revision or "main")
    commit = (
        ref.read_text(encoding="utf-8", errors="replace").strip() if ref.is_file() else revision
    )
    if commit is None and len(snapshots) == 1:
        commit = snapshots[0]
    if commit not in snapshots:
        raise NotACheckpointError(
            folder,
            got=f"snapshots {snapshots}",
            expected=f"one of {revision or 'main'}",
            fix="name a commit as the revision, or download the repository again",
        )
    return folder / "snapshots" / commit


def _cached(repository: Repository, error: Exception, is_complete: Callable[[Path], bool]) -> Path:
    """Returns the cached snapshot of a repository that could not be listed; `HubError` if none."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 500
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.name.replace('/', '--')}"
    if status >= 500 and (folder / "snapshots").is_dir():
        with contextlib.suppress(NotACheckpointError):
            root = snapshot_of(folder, repository.revision)
            if is_complete(root):
                return root
    raise _hub_error(repository, error) from error


def _hub_error(repository: Repository, error: Exception) -> HubError:
    """Returns the `HubError` for an error of `huggingface_hub`: the first row that fits."""
    from huggingface_hub import constants, errors

    page, cache = f"{constants.ENDPOINT}/{repository.name}", constants.HF_HUB_CACHE
    message = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
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
        (errors.HfHubHTTPError, f"a refusal ({message})", "its files", "try again later"),
        (
            Exception,
            f"no such path, and no answer from {constants.ENDPOINT} ({message})",
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
    return full or "No space left" in str(error)  # the message of the downloader written in Rust
