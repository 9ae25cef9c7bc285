"""Returns memory that the process no longer needs to the system."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path


def trim_heap() -> None:
    """Makes glibc return free memory to the system; otherwise glibc keeps it.

    Opening a session frees the weights that its optimizers replaced: of an SDXL UNet of 550 million
    parameters 200 MB stayed with glibc, and of a VAE of SDXL's size 150 MB.
    """
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def drop_file_pages(file: Path) -> None:
    """Lets the system take back the pages of a file that is mapped for reading.

    A compiled model has copies of most weights, and the pages they were copied from would stay:
    with OpenVINO in bfloat16 they were a third of the memory. A page that is read again comes back
    from the file, so nothing but time depends on this: 1 ms for 670 MB.
    """
    if sys.platform == "linux":
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, end in _read_only_mappings(file.resolve()):
            madvise(start, end - start, mmap.MADV_DONTNEED)


def _read_only_mappings(file: Path) -> Iterator[tuple[int, int]]:
    """Yields the first address and the end of each mapping of a file without written pages.

    A page that was written to has no other copy. See proc_pid_maps(5) for the format.
    """
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        addresses, permissions, *_, name = line.split(maxsplit=5)
        if name == str(file) and "w" not in permissions:
            start, end = (int(each, 16) for each in addresses.split("-"))
            yield start, end
