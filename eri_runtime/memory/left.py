"""How much memory this process may still take, and what limits it.

Linux only: what is available on the machine, the limits of the process's control groups (v1 and
v2) and of its ancestors', and those of `ulimit`. A control group's cache of files is counted as
free: the kernel takes it back before it refuses.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
UNLIMITED = 1 << 60  # v1 writes its largest number for no limit


@dataclass(frozen=True, kw_only=True)
class Left:
    """Bytes that are left, and the name of the limit that is nearest."""

    bytes: int
    limit: str


def memory_left(root: Path = ROOT) -> Left | None:
    """The least of all limits that can be read, or None where there are none.

    `root` is where `/proc` and `/sys` are.
    """
    if root == ROOT and not sys.platform.startswith("linux"):
        return None
    found = [*_machine(root), *_groups(root), *_process(root)]
    return min(found, key=lambda each: each.bytes, default=None)


def _machine(root: Path) -> Iterator[Left]:
    available = _fields(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield Left(bytes=available * 1024, limit="memory of the machine")


def _process(root: Path) -> Iterator[Left]:
    """What `ulimit -v` and `ulimit -d` leave."""
    limits, status = _lines(root / "proc/self/limits"), _fields(root / "proc/self/status")
    for title, used, name in (
        ("Max address space", "VmSize", "ulimit -v"),
        ("Max data size", "VmData", "ulimit -d"),
    ):
        rows = (line.removeprefix(title).split() for line in limits if line.startswith(title))
        soft = next(rows, ["unlimited"])[0]
        if soft.isdigit() and used in status:
            yield Left(bytes=max(0, int(soft) - 1024 * status[used]), limit=name)


def _groups(root: Path) -> Iterator[Left]:
    """Every control group the process is in that has a limit, up to the root's."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        for mount in _mounts(root, "cgroup" if controllers else "cgroup2"):
            folder = root / mount.lstrip("/")
            for group in _upwards(path):
                yield from (_v1 if controllers else _v2)(folder / group, group)


def _mounts(root: Path, kind: str) -> Iterator[str]:
    """Where the tree of memory groups of this kind is mounted."""
    for line in _lines(root / "proc/self/mounts"):
        parts = line.split()
        if len(parts) < 4 or parts[2] != kind:
            continue
        if kind == "cgroup2" or "memory" in parts[3].split(","):
            yield parts[1]


def _upwards(path: str) -> Iterator[str]:
    """A group and its ancestors, relative to the root of the tree.

    In a container the path may be that outside of it: what is not there is passed over.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield "/".join(parts[:count])


def _v2(folder: Path, group: str) -> Iterator[Left]:
    used, stat = _number(folder / "memory.current"), _fields(folder / "memory.stat")
    for name in ("memory.max", "memory.high"):
        limit = _number(folder / name)
        if limit is not None and used is not None:
            cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
            yield _group(limit, used, cache, f"{name} of cgroup /{group}")


def _v1(folder: Path, group: str) -> Iterator[Left]:
    used, stat = _number(folder / "memory.usage_in_bytes"), _fields(folder / "memory.stat")
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is not None and limit < UNLIMITED and used is not None:
        cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        yield _group(limit, used, cache, f"memory.limit_in_bytes of cgroup /{group}")


def _group(limit: int, used: int, cache: int, name: str) -> Left:
    return Left(bytes=max(0, limit - max(0, used - cache)), limit=name)


def _number(file: Path) -> int | None:
    """What a file of one number says; None for `max`, and for a file that cannot be read."""
    text = " ".join(_lines(file)).strip()
    return int(text) if text.isdigit() else None


def _fields(file: Path) -> dict[str, int]:
    """`name: 12 kB` or `name 12` by name, in the file's own units."""
    rows = (line.replace(":", " ").split() for line in _lines(file))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _lines(file: Path) -> list[str]:
    """The lines of a file, none where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
