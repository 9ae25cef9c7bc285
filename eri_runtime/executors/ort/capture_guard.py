"""Keeps other threads off CUDA while ONNX Runtime captures a CUDA graph.

ONNX Runtime captures in CUDA's global mode: until the capture ends, an allocation or a blocking
copy of any thread of the process fails and spoils the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class CaptureGuard:
    """Lets calls that use CUDA run side by side, and a capture alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0
        self._capturing = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Returns a context for a call that uses CUDA. Waits until no graph is being captured."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1

    @contextmanager
    def try_capture(self) -> Iterator[bool]:
        """Returns a context for a run that would be captured, and whether it may be.

        It may not be captured while another thread uses CUDA; then it is a call as any other. So a
        capture never waits for another thread, and a second thread waits only for a capture.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            alone = self._calls == 0
            self._capturing = alone
            self._calls += 1
        try:
            yield alone
        finally:
            with self._changed:
                self._calls -= 1
                if alone:
                    self._capturing = False
                    self._changed.notify_all()


CAPTURES = CaptureGuard()
_UNGUARDED = nullcontext()


def device_call(device: str) -> AbstractContextManager[None]:
    """Returns a context for a call on this device: `CAPTURES.call()` on CUDA, none on the CPU."""
    return CAPTURES.call() if device == "cuda" else _UNGUARDED
