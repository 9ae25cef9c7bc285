"""How much memory this process may still take, and which limit is the closest.

Linux only. Reads the machine's available memory, the limits of the process's control groups (v1 and
v2) and of their ancestors, and the limits of `ulimit`. A control group's file cache counts as free,
because the kernel reclaims it before it refuses memory.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.control_groups import control_groups, text_lines

ROOT = Path("/")
UNLIMITED = 1 << 60  # v1 stores a huge number for "no limit"


@dataclass(frozen=True, kw_only=True)
class AvailableMemory:
    """How much memory is left.

    Attributes:
        bytes: Bytes left under the closest limit.
        limit: The name of that limit, such as `memory of the machine` or `ulimit -v`.
    """

    bytes: int
    limit: str


def available_memory(root: Path = ROOT) -> AvailableMemory | None:
    """Returns how much memory this process may still take.

    Args:
        root: The folder that contains `proc` and `sys`. Default: `/`.

    Returns:
        The least of all limits that can be read, or None if none can, as on systems other than
        Linux.
    """
    if root == ROOT and not sys.platform.startswith("linux"):
        return None
    limits = [*_machine(root), *_groups(root), *_process(root)]
    return min(limits, key=lambda limit: limit.bytes, default=None)


def _machine(root: Path) -> Iterator[AvailableMemory]:
    """Yields the machine's available memory."""
    available = _fields(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield AvailableMemory(bytes=available * 1024, limit="memory of the machine")


def _process(root: Path) -> Iterator[AvailableMemory]:
    """Yields what `ulimit -v` and `ulimit -d` leave."""
    limits, status = text_lines(root / "proc/self/limits"), _fields(root / "proc/self/status")
    for title, used, name in (
        ("Max address space", "VmSize", "ulimit -v"),
        ("Max data size", "VmData", "ulimit -d"),
    ):
        rows = (line.removeprefix(title).split() for line in limits if line.startswith(title))
        soft = next(rows, ["unlimited"])[0]
        if soft.isdigit() and used in status:
            yield AvailableMemory(bytes=max(0, int(soft) - 1024 * status[used]), limit=name)


def _groups(root: Path) -> Iterator[AvailableMemory]:
    """Yields what is left in every control group of the process that has a limit, and ancestors."""
    for group in control_groups("memory", root):
        yield from (_v2 if group.is_v2 else _v1)(group.folder, group.name)


def _v2(folder: Path, group: str) -> Iterator[AvailableMemory]:
    """Yields what is left under the limits of a cgroup v2."""
    for name in ("memory.max", "memory.high"):
        limit = _number(folder / name)
        if limit is None:
            continue  # before its other files are read, which takes longer
        used, stat = _number(folder / "memory.current"), _fields(folder / "memory.stat")
        if used is not None:
            cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
            yield _group(limit, used, cache, f"{name} of cgroup /{group}")


def _v1(folder: Path, group: str) -> Iterator[AvailableMemory]:
    """Yields what is left under the limit of a cgroup v1."""
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is None or limit >= UNLIMITED:
        return
    used, stat = _number(folder / "memory.usage_in_bytes"), _fields(folder / "memory.stat")
    if used is not None:
        cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        yield _group(limit, used, cache, f"memory.limit_in_bytes of cgroup /{group}")


def _group(limit: int, used: int, cache: int, name: str) -> AvailableMemory:
    """Returns what a limit leaves, with the file cache counted as free."""
    return AvailableMemory(bytes=max(0, limit - max(0, used - cache)), limit=name)


def _number(file: Path) -> int | None:
    """Reads a file that contains one number. Returns None for `max` and for an unreadable file."""
    text = " ".join(text_lines(file)).strip()
    return int(text) if text.isdigit() else None


def _fields(file: Path) -> dict[str, int]:
    """Reads lines such as `name: 12 kB` or `name 12`: numbers by name, in the file's units."""
    rows = (line.replace(":", " ").split() for line in text_lines(file))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
