"""The parent's end of a worker: a process that answers lines of JSON with lines of JSON.

An answer is `{"ok": …}` or `{"error": "…"}`. A worker that ends, answers anything else or takes too
long raises `WorkerError`, and is killed with all processes that it started.
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

from eri_runtime.bench.process_memory import peak_of
from eri_runtime.errors import WorkerError
from eri_runtime.executors import Closeable
from eri_runtime.unfinished import on_stop, stops_wait

QUOTED = 300  # characters of a worker's output in an error
PATIENCE = 10.0  # seconds that a worker has to stop before it is killed


class Worker(Closeable):
    """A process that runs `PYTHON -m MODULE`.

    It leads a process group, so that the processes it starts can be ended with it.

    Attributes:
        name: Name of the subject, for errors.
        started: Time (`perf_counter`) just before the process was started.
    """

    def __init__(
        self,
        name: str,
        module: str,
        env: Mapping[str, str],
        timeout: float,
        python: str | None = None,
    ) -> None:
        self.name, self._timeout = name, timeout
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 closed with the worker
        self._buffer = b""
        self.started = time.perf_counter()
        with stops_wait():
            self._process = subprocess.Popen(  # noqa: S603
                [python or sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, **env},
                process_group=0,
            )
            self._forget = on_stop(self._signal_group)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def peak(self) -> int | None:
        """Its peak resident bytes so far."""
        return peak_of(self.pid)

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return time.perf_counter() - self.started

    def ask(self, do: str, **arguments: Any) -> Any:
        """Sends a request and returns the answer; raises WorkerError for an error or no answer."""
        line = json.dumps({"do": do, **arguments}) + "\n"
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
        """Stops it, as threads of some engines keep spinning after a call."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it continue."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Asks it to stop, and kills it if it does not."""
        if self._process.poll() is None:
            self.resume()
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None  # noqa: S101 asked for
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _answer(self, do: str) -> Mapping[str, Any]:
        """Reads an answer; raises WorkerError if it is not of the protocol."""
        line = self._line(do)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not answer.keys() & {"ok", "error"}:
            self._kill()
            got = f"{line[:QUOTED]!r}, which is no answer"
            raise WorkerError(self.name, got=got, expected=f"an answer to {do!r}")
        return answer

    def _line(self, do: str) -> bytes:
        """Reads a line; raises WorkerError on a timeout or if the process has ended."""
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
        """Returns the error for a process that has ended: its exit status and its last line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._kill()
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        last = self._last_line()
        got = f"a process that ended with {how}" + (f": {last}" if last else "")
        return WorkerError(self.name, got=got, expected=f"an answer to {do!r}")

    def _last_line(self) -> str:
        """Returns the end of the last line on its standard error."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1][-QUOTED:] if lines else ""

    def _kill(self) -> None:
        """Kills its process group and waits for it."""
        self._signal_group()
        self._process.wait()
        self._forget()

    def _signal_group(self) -> None:
        """Kills its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
