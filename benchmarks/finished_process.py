"""Runs a command to its end and tells what it took."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that has ended.

    Attributes:
        status: Its exit status.
        seconds: Wall time from its start to its end.
        cpu_seconds: User and system time, with that of the processes it waited for.
        peak_bytes: Its largest resident memory.
        output: What it wrote to standard output.
        errors: What it wrote to standard error.
    """

    status: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str
    errors: str


def finish(command: Sequence[str], **options: Any) -> Finished:
    """Runs a command; `options` are those of `subprocess.Popen`."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(  # noqa: S603 -- our own commands
            command, stdout=subprocess.PIPE, stderr=errors, text=True, **options
        )
        assert child.stdout is not None  # noqa: S101 asked for
        output = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        return Finished(
            status=child.returncode,
            seconds=time.perf_counter() - started,
            cpu_seconds=used.ru_utime + used.ru_stime,
            peak_bytes=used.ru_maxrss << 10,
            output=output,
            errors=errors.read(),
        )
