"""Everything a checkpoint may be, opened: one module for each layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eri_export.checkpoint import Checkpoint
from eri_export.sources.extras import with_extras, with_tokenizers
from eri_export.sources.folder import INDEX, open_folder
from eri_export.sources.found import PICKLES, pickle_error
from eri_export.sources.hub import resolve
from eri_export.sources.single import open_file
from eri_runtime.errors import NotACheckpointError, UsageError


def open_checkpoint(
    path: str | Path,
    *,
    config: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoders: Sequence[str | Path] = (),
    variant: str | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """Open a checkpoint without reading a weight: a folder, a single file, or an id of the Hub.

    `config` is a folder of configs and tokenizers in diffusers' layout for a single file; `vae`
    and `text_encoders` are files or folders, or files of the Hub as OWNER/NAME:FILE, that replace
    or supply what the checkpoint has or lacks; `variant` and `revision` choose among what a
    folder or the Hub holds. Raises `NotACheckpointError`, `PickleError` or `CheckpointError`, each
    naming the offender, and `UsageError` for an argument that does not go with the layout.
    """
    if Path(path).suffix.lower() in PICKLES:
        raise pickle_error(Path(path))
    root = resolve(path, revision=revision, variant=variant)
    file = _single_file(root)
    if file is None:
        if config is not None:
            got = f"{config}, with a folder that has configs of its own"
            raise UsageError("config", got=got, expected="a single file to go with it")
        opened = open_folder(root, variant=variant)
    else:
        if variant is not None:
            raise UsageError("variant", got=variant, expected="a folder, which may have variants")
        opened = open_file(file, config=Path(config) if config else None)
    supplied = with_extras(
        opened,
        vae=resolve(vae) if vae else None,
        text_encoders=[resolve(each) for each in text_encoders],
    )
    return with_tokenizers(supplied)


def _single_file(root: Path) -> Path | None:
    """`root`, or the only safetensors file of a folder that is no pipeline."""
    if not root.is_dir():
        return root
    if (root / INDEX).is_file():
        return None
    files = sorted(root.glob("*.safetensors"))
    if len(files) > 1:
        raise NotACheckpointError(
            root,
            got=f"a folder holding {[file.name for file in files[:8]]}",
            expected=f"a diffusers folder with {INDEX}, or one safetensors file",
            fix="name one of the files",
        )
    return files[0] if files else None
