"""The memory this machine has available, and the most this process has used, in bytes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Returns the bytes that can be allocated without swapping, by machine and container limits."""
    return min(_machine_memory(), _container_memory())


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    if STATUS.is_file():  # getrusage also counts what the process was before `exec`
        return _kilobytes(STATUS, "VmHWM") * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_memory() -> int:
    """Returns the resident memory of this process in bytes; its peak where the system hides it."""
    return _kilobytes(STATUS, "VmRSS") * 1024 if STATUS.is_file() else peak_memory()


def _machine_memory() -> int:
    if MEMINFO.is_file():
        return _kilobytes(MEMINFO, "MemAvailable") * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kilobytes(file: Path, name: str) -> int:
    """Returns the number in a line `name:   number kB`."""
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(lines[name].split()[0])


def _container_memory() -> int:
    limit = CGROUP / "memory.max"
    if not limit.is_file() or (text := limit.read_text().strip()) == "max":
        return sys.maxsize
    return int(text) - int((CGROUP / "memory.current").read_text())
