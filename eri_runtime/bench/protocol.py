"""The parent's side of a worker: a process that answers lines of JSON with lines of JSON.

An answer is `{"ok": …}` or `{"error": "…"}`. A worker that ends, says something else or is silent
for too long is `WorkerError`, and is killed with whatever it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from eri_runtime.bench.proc import peak_of
from eri_runtime.errors import WorkerError
from eri_runtime.executors.base import Closeable

SAID = 300  # characters of a worker's last words
PATIENCE = 10.0  # seconds for a worker that was told to stop


class Worker(Closeable):
    """A process of `python -m MODULE`; `begun` is the time (perf_counter) just before its start.

    It leads a process group, so that what it starts itself can be ended with it.
    """

    def __init__(self, name: str, module: str, env: Mapping[str, str], timeout: float) -> None:
        self.name, self._timeout = name, timeout
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 closed with the worker
        self._buffer = b""
        self.begun = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env={**os.environ, **env},
            process_group=0,
        )

    @property
    def pid(self) -> int:
        """The process's."""
        return self._process.pid

    @property
    def peak(self) -> int | None:
        """The most bytes it has held."""
        return peak_of(self.pid)

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self.begun

    def ask(self, do: str, **words: Any) -> Any:
        """What it answers; raises `WorkerError` where that is an error, or nothing."""
        line = json.dumps({"do": do, **words}) + "\n"
        pipe = self._process.stdin
        assert pipe is not None  # noqa: S101 asked for
        try:
            pipe.write(line.encode())
            pipe.flush()
        except OSError:
            raise self._ended(do) from None
        answer = self._answer(do)
        if "error" in answer:
            raise WorkerError(self.name, got=answer["error"], expected=f"an answer to {do!r}")
        return answer["ok"]

    def pause(self) -> None:
        """Let it use no core: threads of some engines go on spinning after a call."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ask it to stop, and kill what does not."""
        if self._process.poll() is None:
            self.resume()
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None  # noqa: S101 asked for
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout, self._complaints):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _answer(self, do: str) -> Mapping[str, Any]:
        line = self._line(do)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not answer.keys() & {"ok", "error"}:
            self._kill()
            got = f"{line[:SAID]!r}, which is no answer"
            raise WorkerError(self.name, got=got, expected=f"an answer to {do!r}")
        return answer

    def _line(self, do: str) -> bytes:
        stream, end = self._process.stdout, time.monotonic() + self._timeout
        assert stream is not None  # noqa: S101 asked for
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self._kill()
                    got = f"no answer to {do!r} in {self._timeout:g} s"
                    raise WorkerError(self.name, got=got, expected="one", fix="raise --timeout")
                read = os.read(stream.fileno(), 1 << 16)
                if not read:
                    raise self._ended(do)
                self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self, do: str) -> WorkerError:
        """What is told of a process that is gone: how it ended, and its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._kill()
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        said = self._last_words()
        got = f"a process that ended with {how}" + (f": {said}" if said else "")
        return WorkerError(self.name, got=got, expected=f"an answer to {do!r}")

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1][-SAID:] if lines else ""

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
