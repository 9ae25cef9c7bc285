"""What a disk can do to an export, said so that the user knows which disk and what to do."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from eri_runtime.errors import DiskError, EriError
from eri_runtime.inspection import megabytes

FIX = "make room there or choose another output folder; nothing was published"

# what a write may fail with through no fault of the program
FAULTS: Mapping[int, str] = {
    errno.ENOSPC: "a full disk",
    errno.EDQUOT: "a used-up quota",
    errno.EFBIG: "a file larger than the file system or the process may write",
    errno.EIO: "an input/output error",
}
RUST = re.compile(r"\(os error (\d+)\)")  # how the tokenizers and safetensors libraries say errno


def require_space(folder: Path, nbytes: int) -> None:
    """Raise `DiskError` unless the disk of `folder` has `nbytes` free for this user."""
    free = free_space(folder)
    if free < nbytes:
        got, expected = f"{megabytes(free)} free", f"{megabytes(nbytes)} for the weights alone"
        raise DiskError(folder, got=got, expected=expected, fix=FIX)


@contextlib.contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Turn what a disk does to the block, which writes below `folder`, into `DiskError`.

    What is already typed passes: it may be the checkpoint's disk that failed.
    """
    try:
        yield
    except EriError:
        raise
    except Exception as error:
        code = _errno(error)
        if code is None:
            raise
        got = f"{FAULTS[code]}, {megabytes(free_space(folder))} free"
        expected = "room to write the whole bundle"
        raise DiskError(folder, got=got, expected=expected, fix=FIX) from error


def _errno(error: BaseException | None) -> int | None:
    """The first of `FAULTS` that an exception, or what led to it, tells of."""
    while error is not None:
        said = RUST.search(str(error))
        code = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if code in FAULTS:
            return code
        error = error.__cause__ or error.__context__
    return None


def free_space(folder: Path) -> int:
    """Bytes this user may still write where `folder` is, or will be."""
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(present).free
