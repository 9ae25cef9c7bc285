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
    _start_watch(heard, tell)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for each in heeded:
        signal.signal(each, tell)
    try:
        yield
    finally:
        wait_if_stopping()
        for each in heeded:  # silent, while libraries end
            signal.signal(each, signal.SIG_DFL)


def _start_watch(heard: int, handler: object) -> None:
    """Starts a thread that waits for signals, and one that undoes what is unfinished.

    Both start before any signal: a thread cannot start while the main thread, which a signal stops
    where it is, starts another one.
    """
    begin, done = threading.Lock(), threading.Lock()
    begin.acquire()
    done.acquire()

    def undo() -> None:
        begin.acquire()
        undo_all()
        done.release()

    def watch() -> None:
        while number := os.read(heard, 1):
            if signal.getsignal(number[0]) is handler:
                begin.release()
                done.acquire(timeout=UNDONE_WITHIN)
                _end()

    for target in (undo, watch):
        threading.Thread(target=target, name=f"eri-signals-{target.__name__}", daemon=True).start()


def _end() -> None:
    """Ends the process with the line and the status."""
    try:
        os.write(2, LINE)
    finally:  # also if standard error is closed
        os._exit(STATUS)
