"""The lock of generating and changing weights: who waits for whom, and nobody forever."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from eri_runtime.errors import UsageError
from eri_runtime.weights.read_write_lock import ReadWriteLock

LONG = 20  # seconds until a test gives up
SHORT = 0.05  # in which a thread that need not wait has long come through


class Entering:
    """Another thread that enters a context of the lock, says so, and leaves when it is told."""

    def __init__(self, context):
        self.inside, self._leave = threading.Event(), threading.Event()
        self._context = context
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with self._context:
            self.inside.set()
            self._leave.wait(LONG)

    def leave(self):
        self._leave.set()
        self._thread.join(LONG)
        assert not self._thread.is_alive()


@pytest.fixture
def lock():
    return ReadWriteLock()


def waiting(lock, count):
    """Blocks until so many threads queue."""
    for _ in range(int(LONG / SHORT)):
        if len(lock._queue) >= count:
            return
        threading.Event().wait(SHORT)
    raise AssertionError(f"{len(lock._queue)} threads wait, not {count}")


def test_readers_are_inside_together_and_a_writer_waits_for_all(lock):
    first, second = Entering(lock.read()), Entering(lock.read())
    assert first.inside.wait(LONG)
    assert second.inside.wait(LONG)
    writer = Entering(lock.write())
    waiting(lock, 1)
    first.leave()
    assert not writer.inside.wait(SHORT)
    second.leave()
    assert writer.inside.wait(LONG)
    writer.leave()


def test_a_waiting_writer_holds_back_new_readers_and_not_those_inside(lock):
    with lock.read():
        writer = Entering(lock.write())
        waiting(lock, 1)
        reader = Entering(lock.read())
        waiting(lock, 2)
        with lock.read():
            assert not writer.inside.is_set()
    assert writer.inside.wait(LONG)
    assert not reader.inside.wait(SHORT)
    writer.leave()
    assert reader.inside.wait(LONG)
    reader.leave()


def test_writers_do_not_starve_readers(lock):
    with ExitStack() as inside:
        inside.enter_context(lock.write())
        reader = Entering(lock.read())
        waiting(lock, 1)
        writer = Entering(lock.write())
        waiting(lock, 2)
    assert reader.inside.wait(LONG)
    assert not writer.inside.wait(SHORT)
    reader.leave()
    assert writer.inside.wait(LONG)
    writer.leave()


def test_every_change_is_served_while_threads_read_without_pause(lock):
    """Two threads whose reads overlap never leave a gap for a writer who would wait for one."""
    stop, served = threading.Event(), 0

    def read_on():
        while not stop.is_set():
            with lock.read():
                threading.Event().wait(0.002)

    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for each in readers:
        each.start()
    for _ in range(50):
        with lock.write():
            served += 1
    stop.set()
    for each in readers:
        each.join(LONG)
        assert not each.is_alive()
    assert served == 50


def test_the_only_reader_may_write_even_while_another_thread_waits_to(lock):
    with lock.read():
        writer = Entering(lock.write())
        waiting(lock, 1)
        with lock.write(), lock.write(), lock.read():
            assert not writer.inside.is_set()
    assert writer.inside.wait(LONG)
    writer.leave()


def test_a_reader_among_readers_may_not_write(lock):
    other = Entering(lock.read())
    assert other.inside.wait(LONG)
    refused = pytest.raises(UsageError, match="closing: got a call from within one image")
    with lock.read(), refused, lock.write("closing"):
        pass
    other.leave()


def test_trying_to_write_never_waits(lock):
    for context in (lock.read, lock.write):
        other = Entering(context())
        assert other.inside.wait(LONG)
        with lock.try_write() as alone:
            assert not alone
        other.leave()
    with lock.read(), lock.try_write() as alone:
        assert alone
        reader = Entering(lock.read())
        assert not reader.inside.wait(SHORT)
    assert reader.inside.wait(LONG)
    reader.leave()


def test_an_interrupted_wait_leaves_the_queue(lock, monkeypatch):
    other = Entering(lock.write())
    assert other.inside.wait(LONG)

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lock._condition, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt), lock.read():
            pass
    assert lock._queue == []
    other.leave()
    with lock.write():
        pass
