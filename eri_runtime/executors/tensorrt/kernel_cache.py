"""Kernels that TensorRT for RTX compiled on this machine, kept in a file between processes.

A plan of TensorRT for RTX holds no machine code for a GPU: each process compiles it at first use,
unless it finds the kernels in a runtime cache.
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path, PurePosixPath
from typing import Any

from eri_runtime.bundle import cache_folder
from eri_runtime.executors.tensorrt.plans import Machine
from eri_runtime.partial_files import write_whole

log = logging.getLogger(__name__)


def kernel_file(plan: str, sha256: str, machine: Machine) -> Path:
    """Returns the file in the user's cache folder for the kernels of one plan on this machine.

    Its name changes with the plan's bytes (`sha256`, hex), the library, its version and the GPU's
    compute capability. The library itself refuses a cache of another driver or GPU model.
    """
    parts = sha256, machine.engine, machine.version, machine.capability
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return cache_folder() / "kernels" / f"{PurePosixPath(plan).stem}-{digest}.cache"


class KernelCache:
    """A runtime cache of the library and its file. All contexts of an engine share one.

    It is only a cache, so its failures never stop a request: a file that cannot be read, or that
    the library refuses, is replaced; one that cannot be written is left out. Both are logged.

    Attributes:
        native: The library's `IRuntimeCache`.
    """

    def __init__(self, native: Any, file: Path) -> None:
        """Loads what the file holds into `native`, if the library accepts it."""
        self.native = native
        self._file = file
        self._stored = b""  # sha256 of what the file holds
        self._write_failed = False
        try:
            data = file.read_bytes() if file.exists() else b""
        except OSError as error:
            log.warning("%s is not read, kernels are compiled again: %s", file, error)
            return
        if data and native.deserialize(data):
            self._stored = hashlib.sha256(data).digest()
        elif data:
            log.info("%s is of another driver or GPU: kernels are compiled again", file)

    def save(self) -> None:
        """Writes the kernels atomically if there are new ones; only the first failure is logged."""
        try:
            serialized = self.native.serialize()
        except Exception as error:  # after a failed call of CUDA; types are the binding's
            log.warning("compiled kernels are not kept: %s", error)
            return
        data = b"" if serialized is None else bytes(serialized)
        digest = hashlib.sha256(data).digest()
        if not data or digest == self._stored or self._write_failed:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._file, data)
        except OSError as error:
            log.warning("compiled kernels are not kept in %s: %s", self._file, error)
            self._write_failed = True
            return
        self._stored = digest
