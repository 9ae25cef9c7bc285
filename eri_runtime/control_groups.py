"""The control groups of this process, v1 and v2, and their ancestors. Linux only.

https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """A control group that limits this process.

    Attributes:
        folder: The folder of its files.
        name: Its path in its tree; empty for the root.
        is_v2: Whether it is of the second version, whose files have other names.
    """

    folder: Path
    name: str
    is_v2: bool


def control_groups(controller: str, root: Path) -> Iterator[ControlGroup]:
    """Yields every control group of the process that a controller limits, and its ancestors.

    Args:
        controller: The controller, such as `memory` or `cpu`.
        root: The folder that contains `proc` and `sys`.
    """
    for line in text_lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        for mount in _mounts(root, controller, "cgroup" if controllers else "cgroup2"):
            for group in _with_ancestors(path):
                yield ControlGroup(root / mount.lstrip("/") / group, group, not controllers)


def text_lines(file: Path) -> list[str]:
    """Returns the lines of a file, or none if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _mounts(root: Path, controller: str, kind: str) -> Iterator[str]:
    """Yields where the tree of a controller's groups of this kind is mounted."""
    for line in text_lines(root / "proc/self/mounts"):
        parts = line.split()
        if len(parts) < 4 or parts[2] != kind:
            continue
        if kind == "cgroup2" or controller in parts[3].split(","):
            yield parts[1]


def _with_ancestors(path: str) -> Iterator[str]:
    """Yields a group and its ancestors, relative to the root of the tree.

    In a container the path may be the one outside the container; groups that do not exist there
    have no readable limit and are skipped.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield "/".join(parts[:count])
