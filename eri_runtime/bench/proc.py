"""What the kernel says of a process: its memory now and at most."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def rss_of(pid: int) -> int | None:
    """Bytes that are resident, or None of a process that is gone."""
    text = _text(pid, "statm")
    return int(text.split()[1]) * PAGE if text else None


def pss_of(pid: int) -> int | None:
    """Bytes of a process, its share of what it shares; None when it is gone or may not be asked."""
    return _kilobytes(_text(pid, "smaps_rollup"), "Pss:")


def peak_of(pid: int | str) -> int | None:
    """The most bytes that were resident, by the kernel's own count (VmHWM)."""
    return _kilobytes(_text(pid, "status"), "VmHWM:")


def _text(pid: int | str, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def _kilobytes(text: str, name: str) -> int | None:
    lines = (line for line in text.splitlines() if line.startswith(name))
    return next((int(line.split()[1]) << 10 for line in lines), None)
