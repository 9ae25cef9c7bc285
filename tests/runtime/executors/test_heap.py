"""Freed memory returns to the system, and every component is opened with that at the end."""

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

import eri_runtime as eri
from eri_runtime.executors import heap, pinned, trim_heap
from eri_runtime.executors.openvino import executor

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


def pages_of(file) -> int:
    """Returns the bytes of a mapped file that are in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    return sum(
        next(int(each.split()[1]) << 10 for each in lines if each.startswith("Rss:"))
        for line in lines
        if line.endswith(str(file))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's madvise")
def test_pages_that_were_only_read_are_dropped_and_come_back(tmp_path):
    file, size = tmp_path / "weights of a model", 64 * mmap.PAGESIZE
    file.write_bytes(b"a" * size)
    with (
        file.open("r+b") as stream,
        mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as read,
        mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY) as written,
    ):
        assert read[:] == b"a" * size
        written[:2] = b"bb"  # of this process alone
        assert pages_of(file) > size
        (tmp_path / "link").symlink_to(file)
        heap.drop_file_pages(tmp_path / "link")
        assert pages_of(file) == mmap.PAGESIZE
        assert written[:3] == b"bba"
        assert read[:] == b"a" * size


def test_openvino_drops_the_pages_of_every_model_that_it_opens(sd35_bundle, monkeypatch):
    dropped: list[Path] = []
    monkeypatch.setattr(executor, "drop_file_pages", dropped.append)
    with eri.load(sd35_bundle, "openvino", cache=False) as pipe:
        pipe("a red heart", num_inference_steps=1, seed=0)
        bundle = pipe.bundle
    used = {name: each for name, each in bundle.components.items() if name != "vae_encoder"}
    assert sorted(dropped) == sorted(bundle.path(each.weights) for each in used.values())
