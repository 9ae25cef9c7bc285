"""The processor that this process may use: its kind and how many cores."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from eri_runtime.control_groups import control_groups, text_lines

ROOT = Path("/")
CPU_FACTS = Path("/proc/cpuinfo")


@cache
def processor() -> tuple[str, ...]:
    """Returns the architecture, and a hash of the processor's instructions."""
    flags = ""
    with suppress(OSError):
        lines = CPU_FACTS.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    instructions = hashlib.sha256(flags.encode()).hexdigest()
    return platform.machine(), instructions


def cores() -> int:
    """Returns the number of cores that this process may use at all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def usable_cores(root: Path = ROOT) -> int:
    """Returns how many cores this process may keep busy.

    Counts those that it may use, or what its control groups give it of them if that is fewer, as in
    a container with a limit.

    Args:
        root: The folder that contains `proc` and `sys`. Default: `/`.
    """
    return max(1, min([cores(), *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yields the limit of every control group that has one, in cores."""
    for group in control_groups("cpu", root):
        if group.is_v2:
            words = " ".join(text_lines(group.folder / "cpu.max")).split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")  # a quota of -1: no limit
            words = [word for name in names for word in text_lines(group.folder / name)]
        if len(words) == 2 and all(map(str.isdigit, words)) and int(words[1]):
            yield int(words[0]) / int(words[1])
