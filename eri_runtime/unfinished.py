"""What a process must undo when it is stopped: unfinished files and folders, and processes.

The command line ends the process on Ctrl-C from a thread of its own, whatever the main thread is
doing, because an exception in the main thread can be lost: Python only prints one that a finaliser
or a weak reference's callback raises, and libraries catch others. So whoever makes something
unfinished registers how to undo it, and takes the steps that create or complete it in
`stops_wait`: such a step is taken before the stop, or never.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subprocess import CompletedProcess

ATTEMPTS = 20  # at removing a folder in which the main thread still creates files
PAUSE = 0.02  # seconds between them

_undo: dict[object, Callable[[], object]] = {}
_step = threading.RLock()
_stopping = threading.Event()
_inside = threading.local()  # its `steps` counts the blocks of `stops_wait` a thread is in


def on_stop(undo: Callable[[], object]) -> Callable[[], None]:
    """Registers what a stop must do; returns a function that takes the registration back."""
    key = object()
    _undo[key] = undo

    def forget() -> None:
        _undo.pop(key, None)

    return forget


@contextmanager
def stops_wait() -> Iterator[None]:
    """Context manager for a step that creates or completes a file: a stop waits for its end.

    Never enters the block once the stop has begun.
    """
    _inside.steps = getattr(_inside, "steps", 0) + 1
    try:
        with _step:
            yield
    finally:
        _inside.steps -= 1
    wait_if_stopping()


def wait_if_stopping() -> None:
    """Waits for the end of the process if a stop has begun, and returns at once if not."""
    if _stopping.is_set():
        wait_for_end()


def wait_for_end() -> None:
    """Waits for the end of the process, unless the thread is in a block of `stops_wait`."""
    if not getattr(_inside, "steps", 0):
        threading.Event().wait()


def undo_all() -> None:
    """Undoes all that is registered, the latest first. Only a process that ends then calls it.

    Nothing is created or completed from here on. What cannot be undone is left.
    """
    _stopping.set()
    _step.acquire()
    for undo in reversed(tuple(_undo.copy().values())):
        with suppress(Exception):
            undo()


def remove_folder(folder: Path) -> None:
    """Removes a folder in which another thread may still create files."""
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(PAUSE)


def run_child(command: Sequence[str], **options: Any) -> CompletedProcess[str]:
    """Runs a process to its end, as `subprocess.run` does with text; a stop kills it.

    It leads a process group of its own, so Ctrl-C in a terminal reaches it by the stop alone.
    """
    import subprocess

    with stops_wait():
        child = subprocess.Popen(  # noqa: S603
            command, text=True, process_group=0, **options
        )
        forget = on_stop(child.kill)
    with child:
        try:
            output, errors = child.communicate()
        except BaseException:
            child.kill()
            raise
        finally:
            forget()
    return subprocess.CompletedProcess(command, child.returncode, output, errors)


@contextmanager
def temporary_folder(prefix: str = "eri-") -> Iterator[Path]:
    """Context manager that gives a new folder for temporary files, removed at the end or a stop."""
    with stops_wait():
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        forget = on_stop(lambda: remove_folder(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        forget()
