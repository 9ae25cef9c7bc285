"""The processes of a Ray cluster that a test started."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil


def wait_until_gone(folder: Path, seconds: float = 20) -> list[psutil.Process]:
    """The processes of a cluster that still run after so many seconds."""
    end = time.monotonic() + seconds
    while (left := processes(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def processes(folder: Path) -> list[psutil.Process]:
    """The processes of a cluster: all that were started with its temporary folder."""
    found = []
    for process in psutil.process_iter():
        try:
            started_by_us = process.environ().get("RAY_TMPDIR") == str(folder)
        except psutil.Error:
            continue
        if started_by_us and process.pid != os.getpid() and process.status() != "zombie":
            found.append(process)
    return found
