"""A worker: runs requests that come from a queue, until it is told to stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic

from eri_runtime.errors import EriError
from eri_runtime.serve.open_bundles import OpenBundles, OpenPipeline
from eri_runtime.serve.options import EngineOptions
from eri_runtime.serve.protocol import Alive, Cancel, Run, Stop, ToWorker, Unable
from eri_runtime.serve.scheduler import IDLE, Scheduler, Send

SIGN = 0.5  # seconds between signs of life


class Worker:
    """Runs requests on the bundles of one process.

    Args:
        paths: The bundles' folders by name.
        options: The engine's options.
        send: Sends a message to the engine. Called from several threads.
        open_pipeline: Opens a bundle. Default: `eri_runtime.load` with the options.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        options: EngineOptions,
        send: Send,
        open_pipeline: OpenPipeline | None = None,
    ) -> None:
        self._inbox: SimpleQueue[ToWorker | None] = SimpleQueue()
        self._send, self._heartbeat, self._models = send, options.heartbeat, tuple(paths)
        bundles = OpenBundles(paths, options, open_pipeline)
        self._scheduler = Scheduler(bundles, options.running, send, self._wake)
        self._alive = 0.0

    def take(self, message: ToWorker) -> None:
        """Gives the worker a message. May be called from any thread."""
        self._inbox.put(message)

    def run(self) -> None:
        """Runs requests until `Stop` comes."""
        try:
            if not self._open():
                return
            idle = IDLE
            while self._read(idle):
                idle = self._scheduler.advance()
                self._sign()
        finally:
            self._scheduler.close()

    def _open(self) -> bool:
        """Opens the bundles; returns whether the engine can run them."""
        try:
            self._scheduler.open(self._models)
        except EriError as error:
            self._send(Unable(error))
            return False
        self._sign()
        return True

    def _wake(self) -> None:
        self._inbox.put(None)

    def _read(self, timeout: float) -> bool:
        """Takes over all messages, after waiting for one; returns False after `Stop`."""
        while True:
            try:
                message = self._inbox.get(timeout=timeout) if timeout else self._inbox.get_nowait()
            except Empty:
                return True
            timeout = 0.0
            if isinstance(message, Stop):
                return False
            if isinstance(message, Run):
                self._scheduler.add(message)
            elif isinstance(message, Cancel):
                self._scheduler.cancel(message.id)

    def _sign(self) -> None:
        """Sends a sign of life now and then, unless one of the threads hangs."""
        now = monotonic()
        if now - self._alive >= SIGN and self._scheduler.oldest() < self._heartbeat:
            self._alive = now
            self._send(Alive())
