"""The most memory that one subject takes, in a process that does nothing else.

The device's is the driver's own count for the whole GPU, less what was in use before: it holds the
engine's context, and whatever another program takes meanwhile.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.settings import WARM_STEPS, Case, Settings
from benchmarks.gpu.subjects import begin, pipeline
from eri_export.machine import peak_memory

MEGABYTE = 1e6
MEBIBYTE = 2**20
EVERY_MS = 50
QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0")


def measure(settings: Settings, case: Case, subject: str) -> Iterator[dict[str, Any]]:
    """One row."""
    with watched(settings.device) as used:
        with pipeline(settings, case, subject) as pipe:
            list(begin(pipe, WARM_STEPS))
        device = None if len(used) < 2 else (max(used) - used[0]) * MEBIBYTE / MEGABYTE
    yield {
        "subject": subject,
        "device_mb": None if device is None else round(device),
        "host_mb": round(peak_memory() / MEGABYTE),
        "steps": WARM_STEPS,
    }


@contextmanager
def watched(device: str) -> Iterator[list[int]]:
    """MiB in use on the GPU, the first before the block and more while it lasts; none on a CPU."""
    used: list[int] = []
    command = shutil.which("nvidia-smi") if device == "cuda" else None
    if command is None:
        yield used
        return
    first = subprocess.run([command, *QUERY], capture_output=True, text=True, check=True)  # noqa: S603
    used.append(int(first.stdout.split()[0]))
    every = [command, *QUERY, f"--loop-ms={EVERY_MS}"]
    with subprocess.Popen(every, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        reader = threading.Thread(target=_read, args=(process.stdout, used), daemon=True)
        reader.start()
        try:
            yield used
        finally:
            process.terminate()
            reader.join()


def _read(lines: Any, used: list[int]) -> None:
    used.extend(int(line) for line in lines if line.strip().isdecimal())
