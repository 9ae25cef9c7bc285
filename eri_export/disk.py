"""Disk space and disk errors: which disk an export failed on, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from eri_runtime.errors import DiskError, EriError
from eri_runtime.units import megabytes

FIX = "make room there or choose another output folder; nothing was published"

# reasons for a failed write that are not the program's fault
FAULTS: Mapping[int, str] = {
    errno.ENOSPC: "a full disk",
    errno.EDQUOT: "a used-up quota",
    errno.EFBIG: "a file larger than the file system or the process may write",
    errno.EIO: "an input/output error",
}
RUST = re.compile(r"\(os error (\d+)\)")  # how the tokenizers and safetensors libraries write errno


def require_space(folder: Path, nbytes: int) -> None:
    """Raises `DiskError` unless the disk of `folder` has `nbytes` free for this user."""
    free = free_space(folder)
    if free < nbytes:
        got, expected = f"{megabytes(free)} free", f"{megabytes(nbytes)} for the weights alone"
        raise DiskError(folder, got=got, expected=expected, fix=FIX)


@contextlib.contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Turns the disk errors of a block that writes below `folder` into `DiskError`.

    An `EriError` passes unchanged: it may report another disk, such as the checkpoint's.
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
    """Returns the first of `FAULTS` in an exception and its chain of causes, or None."""
    while error is not None:
        match = RUST.search(str(error))
        code = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
        if code in FAULTS:
            return code
        error = error.__cause__ or error.__context__
    return None


def free_space(folder: Path) -> int:
    """Returns the bytes this user may still write at `folder`, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
