"""Ctrl-C and SIGTERM end a command at once, whatever its main thread is doing.

Python raises `KeyboardInterrupt` in the main thread, where it can be late, as a call into an engine
can take minutes, and where it can be lost: in a finaliser or a weak reference's callback it is only
printed, and libraries catch it. So nothing is raised. A thread waits for the signal, which Python
writes to a pipe even while the main thread is in C; it undoes what is unfinished and ends the
process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from eri_runtime.unfinished import undo_all, wait_for_end, wait_if_stopping

STATUS = 130
LINE = b"eri: stopped\n"
UNDONE_WITHIN = 4.0  # seconds, after which the process ends all the same
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Context manager in which SIGINT and SIGTERM end the process with status 130 and a line.

    A signal that the process was started to ignore stays ignored, and one for which the block
    installs a handler of its own is left to that. Enter it once, in the main thread.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)

    def tell(number: int, _frame: FrameType | None) -> None:
        with suppress(OSError):  # also for a library that took the wakeup descriptor
            os.write(told, bytes([number]))
        wait_for_end()

    heeded = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    threading.Thread(target=_watch, args=(heard, tell), name="eri-signals", daemon=True).start()
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for each in heeded:
        signal.signal(each, tell)
    try:
        yield
    finally:
        wait_if_stopping()
        for each in heeded:  # silent, while libraries end
            signal.signal(each, signal.SIG_DFL)


def _watch(heard: int, handler: object) -> None:
    """Ends the process when a signal comes of which `handler` is the handler."""
    while number := os.read(heard, 1):
        if signal.getsignal(number[0]) is handler:
            _stop()


def _stop() -> None:
    """Undoes what is unfinished, and ends the process."""
    undoing = threading.Thread(target=undo_all, daemon=True)
    undoing.start()
    undoing.join(UNDONE_WITHIN)
    try:
        os.write(2, LINE)
    finally:  # also if standard error is closed
        os._exit(STATUS)
