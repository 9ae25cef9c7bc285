"""TensorRT's timing cache, kept in a file from one build to the next."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eri_export.disk import disk_faults
from eri_export.trt.engine import Engine
from eri_export.trt.options import WITHOUT
from eri_runtime.executors.gpu import compute_capability
from eri_runtime.folders import cache_folder


def usual_file(engine: Engine) -> Path | None:
    """The user's own for this engine and GPU, as XDG says; None for one that times no kernels."""
    if "timing cache" in WITHOUT[engine.name]:
        return None
    return cache_folder() / f"{engine.tag}-{compute_capability()}.timing"


@contextlib.contextmanager
def cache(config: Any, file: Path | None) -> Iterator[None]:
    """Give the builder what `file` holds, and keep there what it has measured in the block.

    A cache of another version or GPU is not used, and replaced. Raises `DiskError`.
    """
    if file is None:
        yield
        return
    made = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(made, ignore_mismatch=False)
    yield
    with disk_faults(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.write_bytes(config.get_timing_cache().serialize())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
