"""How an engine reaches a worker: in a thread of its own process, or in another process."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue

from eri_runtime.errors import UsageError, short
from eri_runtime.serve.open_bundles import OpenPipeline
from eri_runtime.serve.options import EngineOptions
from eri_runtime.serve.protocol import Failed, FromWorker, Run, Stop, ToWorker
from eri_runtime.serve.worker import Worker

Hear = Callable[[FromWorker], None]

log = logging.getLogger(__name__)


class Link(ABC):
    """The engine's end of the way to one worker.

    `hear` and `gone` of the constructors are called in a thread of the link.
    """

    @abstractmethod
    def send(self, message: ToWorker) -> None:
        """Sends a message and returns at once; one to a worker that has gone is lost.

        A request that cannot be pickled for another process is answered with `Failed`.
        """

    @abstractmethod
    def kill(self) -> None:
        """Ends the worker, if it can be, and returns at once; `gone` is called then."""

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
        self._connection = Connection(ours.detach())
        self._outbox: SimpleQueue[object] = SimpleQueue()
        with theirs:
            self._process = _start_process(theirs.fileno())
        self.pid = self._process.pid
        self._writer = threading.Thread(target=self._write, name="eri-link-writer", daemon=True)
        self._thread = threading.Thread(target=self._listen, name="eri-link", daemon=True)
        try:
            self._writer.start()
            self._thread.start()
        except RuntimeError:  # no more threads
            self._process.kill()
            self._outbox.put(None)
            raise
        self._outbox.put((dict(paths), options))

    def send(self, message: ToWorker) -> None:
        self._outbox.put(message)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._outbox.put(Stop())
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._thread.join()

    def _write(self) -> None:
        """Writes messages until there are no more.

        In a thread: a large picture takes long to pickle, the pipe may be full, its worker hang.
        """
        while (message := self._outbox.get()) is not None:
            try:
                content = ForkingPickler.dumps(message)
            except Exception as error:  # pickling runs the code of whatever is in it
                self._cannot_send(message, error)
                continue
            with contextlib.suppress(OSError):  # its end is noticed by `_listen`
                self._connection.send_bytes(content)

    def _cannot_send(self, message: object, error: Exception) -> None:
        """Answers a request that cannot be pickled; nothing else has parts of a caller's."""
        assert isinstance(message, Run)  # noqa: S101
        got, expected = short(error), "only what can be pickled, for a worker process"
        self._hear(Failed(message.id, UsageError("request", got=got, expected=expected)))

    def _listen(self) -> None:
        """Hears messages until the process has gone; one that cannot be read ends it."""
        try:
            while True:
                self._hear(self._connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:
            log.exception("worker %d said what cannot be understood", self.pid)
        self._process.kill()
        self._process.wait()
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()
        self._gone()


def _start_process(descriptor: int) -> subprocess.Popen[bytes]:
    """Starts a worker on its end of a connection."""
    command = [sys.executable, "-m", "eri_runtime.serve.worker_process", str(descriptor)]
    return subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,  # Ctrl-C is for the engine, which drains
    )


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
