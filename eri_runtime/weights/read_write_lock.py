"""A lock that lets many threads of a pipeline generate, or one of them change weights."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

from eri_runtime.errors import UsageError


class _Waiting:
    """A thread in the queue; `writes` says what for."""

    def __init__(self, *, writes: bool) -> None:
        self.writes = writes


class Reading:
    """A context in which this thread reads: every step enters one, so it is no generator."""

    __slots__ = ("_lock", "_me")

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock, self._me = lock, 0

    def __enter__(self) -> None:
        self._me = self._lock._begin_reading()

    def __exit__(self, *_: object) -> None:
        self._lock._leave(self._lock._readers, self._me)


class ReadWriteLock:
    """A reentrant, fair lock: many threads may read (generate), or one may write (change weights).

    Threads are served in the order in which they came, so a writer waits only for those who already
    read, and readers wait only for writers who came before them. Who holds the lock gets it again
    at once. A thread that reads may also write, for example from a callback, but only while no
    other thread reads: two readers that both wait to write would deadlock. For the same reason a
    thread that reads must not wait for another one to begin.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queue: list[_Waiting] = []
        self._readers: Counter[int] = Counter()
        self._writers: Counter[int] = Counter()  # one thread at most

    def read(self) -> Reading:
        """Waits for writers who came before, and blocks other writers within the context."""
        return Reading(self)

    def _begin_reading(self) -> int:
        """Enters the context of `read`; returns this thread's number."""
        me = threading.get_ident()
        with self._condition:
            if (self._queue or self._writers) and not self._holds(me):
                self._wait(self._may_read, writes=False)
            self._readers[me] = self._readers.get(me, 0) + 1
        return me

    @contextmanager
    def write(self, what: str = "new weights") -> Iterator[None]:
        """Waits until no other thread reads or writes, and blocks them within the context.

        `what` names the purpose in the error.

        Raises:
            UsageError: If this thread reads while another one reads too.
        """
        me = threading.get_ident()
        with self._condition:
            if me in self._readers and self._others(me):
                raise UsageError(
                    what,
                    got="a call from within one image while another thread makes one",
                    expected="a call between images",
                )
            if not self._holds(me):
                self._wait(self._may_write, writes=True)
            self._writers[me] += 1
        try:
            yield
        finally:
            self._leave(self._writers, me)

    @contextmanager
    def try_write(self) -> Iterator[bool]:
        """The same without waiting: whether this thread may write; no if another one is inside."""
        me = threading.get_ident()
        with self._condition:
            alone = not self._others(me)
            if alone:
                self._writers[me] += 1
        try:
            yield alone
        finally:
            if alone:
                self._leave(self._writers, me)

    def reads_here(self) -> bool:
        """Returns whether this thread reads."""
        with self._condition:
            return threading.get_ident() in self._readers

    def _wait(self, may: Callable[[list[_Waiting]], bool], *, writes: bool) -> None:
        """Queues until `may` agrees, given who came before; needs the condition's lock."""
        mine = _Waiting(writes=writes)
        self._queue.append(mine)
        try:
            self._condition.wait_for(
                lambda: may(list(takewhile(lambda each: each is not mine, self._queue)))
            )
        finally:
            self._queue.remove(mine)
            self._condition.notify_all()

    def _may_read(self, before: list[_Waiting]) -> bool:
        return not self._writers and not any(each.writes for each in before)

    def _may_write(self, before: list[_Waiting]) -> bool:
        return not (self._writers or self._readers or before)

    def _leave(self, inside: Counter[int], me: int) -> None:
        with self._condition:
            inside[me] -= 1
            if not inside[me]:
                del inside[me]
            if self._queue:
                self._condition.notify_all()

    def _holds(self, me: int) -> bool:
        return me in self._readers or me in self._writers

    def _others(self, me: int) -> bool:
        """Returns whether a thread other than `me` reads or writes; needs the condition's lock."""
        return bool((self._readers.keys() | self._writers.keys()) - {me})
