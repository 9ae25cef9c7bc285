"""Who may generate and who may change weights, among the threads of one pipeline."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from eri_runtime.errors import UsageError


class Turns:
    """Many may generate at a time, and who changes weights is alone.

    Who generates may change weights from within, but not while another thread generates as well:
    two that wait for each other would wait for ever.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._generating: Counter[int] = Counter()
        self._changing: int | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait until nobody else changes weights."""
        me = threading.get_ident()
        with self._condition:
            self._condition.wait_for(lambda: self._changing in (None, me))
            self._generating[me] += 1
        try:
            yield
        finally:
            with self._condition:
                self._generating[me] -= 1
                self._generating += Counter()  # which drops those that are done
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else generates; raises `UsageError` from within an image beside one."""
        me = threading.get_ident()
        with self._condition:
            if me in self._generating and self._others(me):
                raise UsageError(
                    "new weights",
                    got="a call from within one image while another thread makes one",
                    expected="a call between images",
                )
            self._condition.wait_for(lambda: self._changing is None and not self._others(me))
            self._changing = me
        try:
            yield
        finally:
            with self._condition:
                self._changing = None
                self._condition.notify_all()

    def others(self) -> bool:
        """Whether another thread generates."""
        with self._condition:
            return self._others(threading.get_ident())

    def _others(self, me: int) -> bool:
        return bool(self._generating.keys() - {me})
