"""Work for `eri inspect` to do instead of its own, so that a test can stop it in a known place.

    python -m tests.support.stopped_work KIND FOLDER

Prints `ready` when it has begun. Each kind is a way in which an exception in the main thread would
come too late or be lost.
"""

from __future__ import annotations

import hashlib
import sys
import time
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

from eri_runtime import __main__ as command
from eri_runtime.bench.worker_client import Worker
from eri_runtime.commands import inspect
from eri_runtime.partial_files import partial_file, partial_folder, write_whole
from eri_runtime.unfinished import stops_wait, temporary_folder


def say(text: object) -> None:
    """Tells the test."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def in_c(_folder: Path) -> None:
    """One call into C, of minutes."""
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 500_000_000)


def caught(_folder: Path) -> None:
    """A library that goes on after whatever is raised."""
    while True:
        with suppress(BaseException):
            time.sleep(0.001)


class Node:
    """Something to refer to weakly."""


def in_callbacks(_folder: Path) -> None:
    """Weak references' callbacks, where Python prints an exception and goes on."""
    while True:
        node = Node()
        reference = weakref.ref(node, lambda _: [*range(20_000)])
        del node, reference


def starting_threads(_folder: Path) -> None:
    """Threads that start all the time, which Python does with a lock of its own."""
    while True:
        thread = Thread(target=int)
        thread.start()
        thread.join()


def unfinished(folder: Path) -> None:
    """A file, folders and a process that are to be gone."""
    with ExitStack() as stack:
        file, _ = stack.enter_context(partial_file(folder / "a.png"))
        file.write(b"half")
        file.flush()
        (stack.enter_context(partial_folder(folder / "bundle")) / "weights").write_bytes(b"half")
        (stack.enter_context(temporary_folder("eri-test-")) / "noise").write_bytes(b"half")
        worker = Worker("sleeper", "tests.support.stopped_work", {}, 60.0)
        say(worker.pid)
        say("ready")
        time.sleep(60)


def completing(folder: Path) -> None:
    """A step that a stop waits for, and one that never begins."""
    write_whole(folder / "before", b"whole")
    with stops_wait():
        say("ready")
        time.sleep(0.5)
        (folder / "during").write_bytes(b"whole")
    write_whole(folder / "after", b"whole")


WORK = (in_c, caught, in_callbacks, starting_threads, unfinished, completing)
KINDS = {each.__name__: each for each in WORK}
SAYS = (unfinished, completing)  # that they are ready


def main() -> None:
    """Runs the command line with one of `KINDS` as the work of `eri inspect`."""
    if len(sys.argv) == 1:  # the process of `unfinished`
        sys.stdin.read()
        time.sleep(60)
        return
    work, folder = KINDS[sys.argv[1]], Path(sys.argv[2])

    def run(_options: object) -> None:
        if work not in SAYS:
            say("ready")
        work(folder)

    inspect.inspect = run
    sys.argv = ["eri", "inspect", "anything"]
    raise SystemExit(command.main())


if __name__ == "__main__":
    main()
