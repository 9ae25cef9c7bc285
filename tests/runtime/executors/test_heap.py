"""Freed memory returns to the system, and every component is opened with that at the end."""

import ctypes
import sys
from pathlib import Path

import pytest

import eri_runtime as eri
from eri_runtime.executors import pinned, trim_heap

BLOCK, COUNT = 64 << 10, 1000  # bytes, below the size from which glibc maps a block of its own


def resident() -> int:
    """Returns the bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_freed_blocks_below_a_used_one_are_returned():
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(library.malloc(BLOCK)) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
        library.free(block)
    before = resident()
    trim_heap()
    assert before - resident() > BLOCK * COUNT / 2
    library.free(blocks[-1])


def test_components_and_step_graphs_are_opened_with_a_trim(sd35_bundle, monkeypatch):
    trims: list[None] = []
    monkeypatch.setattr(pinned, "trim_heap", lambda: trims.append(None))
    with eri.load(sd35_bundle, "cpu") as pipe:
        pipe("a red heart", num_inference_steps=1, seed=0)
        opened = len(pipe.bundle.components) - ("vae_encoder" in pipe.bundle.components)
    assert len(trims) == opened
