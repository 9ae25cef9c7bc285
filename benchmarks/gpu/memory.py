"""Watches the device's memory while a subject is opened and run.

It is the driver's count for the whole GPU minus what was in use before. It includes the engine's
context, and whatever other programs allocate meanwhile.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MEBIBYTE = 2**20
EVERY_MS = 50
QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0")


@dataclass
class Watch:
    """MiB in use on the GPU: first before the block, then during it; none on a CPU."""

    used: list[int] = field(default_factory=list)

    @property
    def peak_mb(self) -> int | None:
        """The most megabytes (10⁶ bytes) that the block added, or None if they were not read."""
        if len(self.used) < 2:
            return None
        return round((max(self.used) - self.used[0]) * MEBIBYTE / 1e6)


@contextmanager
def watched(device: str) -> Iterator[Watch]:
    """Samples the memory in use on the GPU during the block."""
    watch = Watch()
    command = shutil.which("nvidia-smi") if device == "cuda" else None
    if command is None:
        yield watch
        return
    first = subprocess.run([command, *QUERY], capture_output=True, text=True, check=False)  # noqa: S603
    if not first.stdout.strip().isdecimal():  # "[N/A]" of a part of a GPU
        yield watch
        return
    watch.used.append(int(first.stdout))
    loop = [command, *QUERY, f"--loop-ms={EVERY_MS}"]
    with subprocess.Popen(loop, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        reader = threading.Thread(target=_read, args=(process.stdout, watch.used), daemon=True)
        reader.start()
        try:
            yield watch
        finally:
            process.terminate()
            reader.join()


def _read(lines: Any, used: list[int]) -> None:
    """Collects the numbers in the tool's output."""
    used.extend(int(line) for line in lines if line.strip().isdecimal())
