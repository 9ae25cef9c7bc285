"""Components that open in threads of their own, while others are at work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from eri_runtime.executors.base import Weighted

log = logging.getLogger(__name__)


class Opening:
    """What is being opened, by name, until it is taken."""

    def __init__(self) -> None:
        self._begun: dict[str, Future[Weighted]] = {}

    def begin(self, name: str, opened: Callable[[], Weighted]) -> None:
        """Call `opened` in a thread, unless that is under way."""
        if name not in self._begun:
            thread = ThreadPoolExecutor(1, thread_name_prefix=f"eri-open-{name}")
            self._begun[name] = thread.submit(opened)
            thread.shutdown(wait=False)

    def take(self, name: str) -> Weighted | None:
        """What was begun, waited for; None where nothing was, or where it failed.

        Who needs it opens it then, and hears why it cannot be.
        """
        future = self._begun.get(name)
        if future is None:
            return None
        try:
            return future.result()
        except Exception as error:
            log.debug("%s could not be opened ahead: %s", name, error)
            return None
        finally:
            self._begun.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """All that was begun and not taken."""
        return tuple(self._begun)
