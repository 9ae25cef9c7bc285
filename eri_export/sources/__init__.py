"""Everything a checkpoint may be, opened: one module for each layout."""

from __future__ import annotations

from pathlib import Path

from eri_export.checkpoint import Checkpoint
from eri_export.sources.folder import open_folder
from eri_export.sources.found import PICKLES, pickle_error
from eri_runtime.errors import NotACheckpointError


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint without reading a weight.

    Raises `NotACheckpointError`, `PickleError` or `CheckpointError`, each naming the offender.
    """
    root = Path(path)
    if root.suffix.lower() in PICKLES:
        raise pickle_error(root)
    if not root.exists():
        raise NotACheckpointError(root, got="no such path", expected="a diffusers folder")
    if root.is_file():
        raise NotACheckpointError(
            root,
            got="a single file",
            expected="a diffusers folder",
            fix="save it with `pipeline.save_pretrained`; single files come in a later version",
        )
    return open_folder(root)
