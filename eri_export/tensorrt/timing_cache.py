"""TensorRT's timing cache, kept in a file between builds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eri_export.disk import disk_faults
from eri_export.tensorrt.build_options import WITHOUT
from eri_export.tensorrt.library import Engine
from eri_runtime.bundle import cache_folder
from eri_runtime.executors import compute_capability
from eri_runtime.partial_files import write_whole


def usual_file(engine: Engine) -> Path | None:
    """Returns the file in the user's cache folder for this engine and GPU.

    None for an engine without a timing cache.
    """
    if "timing cache" in WITHOUT[engine.name]:
        return None
    return cache_folder() / f"{engine.tag}-{compute_capability()}.timing"


@contextlib.contextmanager
def cache(config: Any, file: Path | None) -> Iterator[None]:
    """Gives the builder the timings in `file`, and saves its timings there after the block.

    A cache of another version or GPU is ignored and replaced. Raises `DiskError` if the file
    cannot be written.
    """
    if file is None:
        yield
        return
    timings = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    yield
    with disk_faults(file.parent):
        write_whole(file, bytes(config.get_timing_cache().serialize()))
