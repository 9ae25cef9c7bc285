"""How an engine reaches a worker: in a thread of its own process, or in another process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from eri_runtime.serve.open_bundles import OpenPipeline
from eri_runtime.serve.options import EngineOptions
from eri_runtime.serve.protocol import FromWorker, Stop, ToWorker
from eri_runtime.serve.worker import Worker

Hear = Callable[[FromWorker], None]


class Link(ABC):
    """The engine's end of the way to one worker.

    `hear` and `gone` of the constructors are called in a thread of the link.
    """

    @abstractmethod
    def send(self, message: ToWorker) -> None:
        """Sends a message; one to a worker that has gone is lost."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the worker at once, if it can be; `gone` is called then."""

    @abstractmethod
    def close(self) -> None:
        """Asks the worker to stop and waits for it; a process that does not is killed."""


class ThreadLink(Link):
    """A worker in a thread of this process. It cannot be killed."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        options: EngineOptions,
        hear: Hear,
        gone: Callable[[], None],
        open_pipeline: OpenPipeline | None = None,
    ) -> None:
        self._worker = Worker(paths, options, hear, open_pipeline)
        self._gone = gone
        self._thread = threading.Thread(target=self._run, name="eri-worker", daemon=True)
        self._thread.start()

    def send(self, message: ToWorker) -> None:
        self._worker.take(message)

    def kill(self) -> None:
        self._worker.take(Stop())

    def close(self) -> None:
        self._worker.take(Stop())
        self._thread.join()

    def _run(self) -> None:
        try:
            self._worker.run()
        finally:
            self._gone()


class ProcessLink(Link):
    """A worker in a process of its own.

    Attributes:
        pid: The process.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        options: EngineOptions,
        hear: Hear,
        gone: Callable[[], None],
        patience: float = 10.0,
    ) -> None:
        """Starts the process; `patience` is how many seconds `close` waits for it."""
        self._hear, self._gone, self._patience = hear, gone, patience
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "eri_runtime.serve.worker_process", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the engine, which drains
            )
        self.pid = self._process.pid
        self._connection = Connection(ours.detach())
        self._lock = threading.Lock()
        self._write((dict(paths), options))
        self._thread = threading.Thread(target=self._listen, name="eri-link", daemon=True)
        self._thread.start()

    def send(self, message: ToWorker) -> None:
        self._write(message)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._write(Stop())
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._thread.join()

    def _write(self, message: object) -> None:
        with self._lock, contextlib.suppress(OSError):  # its end is noticed by `_listen`
            self._connection.send(message)

    def _listen(self) -> None:
        """Hears messages until the process has gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._hear(self._connection.recv())
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._connection.close()
        self._gone()


def serve_connection(descriptor: int) -> None:
    """Runs a worker on the other end of a `ProcessLink`, until either end closes."""
    connection = Connection(descriptor)
    paths, options = connection.recv()
    lock = threading.Lock()

    def send(message: FromWorker) -> None:
        with lock:
            try:
                connection.send(message)
            except OSError:
                os._exit(1)  # the engine has gone, and with it everyone who asked

    worker = Worker(paths, options, send)

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                worker.take(connection.recv())
        os._exit(1)

    threading.Thread(target=listen, name="eri-link", daemon=True).start()
    worker.run()
