"""A process's memory as the kernel counts it: current and peak."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def rss_of(pid: int) -> int | None:
    """Returns the resident bytes (RSS), or None if the process has ended."""
    text = _text(pid, "statm")
    return int(text.split()[1]) * PAGE if text else None


def pss_of(pid: int) -> int | None:
    """Returns the bytes with shared pages divided among their users (PSS).

    None if the process has ended or this process may not read it.
    """
    return _kilobytes(_text(pid, "smaps_rollup"), "Pss:")


def peak_of(pid: int | str) -> int | None:
    """Returns the peak resident bytes (VmHWM), or None if the process has ended."""
    return _kilobytes(_text(pid, "status"), "VmHWM:")


def _text(pid: int | str, name: str) -> str:
    """Reads a file of /proc/PID; empty if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def _kilobytes(text: str, name: str) -> int | None:
    """Returns the bytes of the line that begins with `name`, which is in KiB."""
    lines = (line for line in text.splitlines() if line.startswith(name))
    return next((int(line.split()[1]) << 10 for line in lines), None)
