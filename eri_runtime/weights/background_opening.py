"""Opens components in background threads, while other components run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from eri_runtime.executors import Refittable

log = logging.getLogger(__name__)


class BackgroundOpening:
    """Components that are being opened, by name, until `take` collects them."""

    def __init__(self) -> None:
        self._futures: dict[str, Future[Refittable]] = {}

    def begin(self, name: str, open_component: Callable[[], Refittable]) -> None:
        """Calls `open_component` in a new thread, unless `name` is already being opened."""
        if name not in self._futures:
            executor = ThreadPoolExecutor(1, thread_name_prefix=f"eri-open-{name}")
            self._futures[name] = executor.submit(open_component)
            executor.shutdown(wait=False)

    def take(self, name: str) -> Refittable | None:
        """Waits for a component and returns it; None if it was not begun, or failed to open.

        A failure is only logged: it occurs again, and is raised, when the component is needed and
        opened in the foreground.
        """
        future = self._futures.get(name)
        if future is None:
            return None
        try:
            return future.result()
        except Exception as error:
            log.debug("%s could not be opened ahead: %s", name, error)
            return None
        finally:
            self._futures.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """The components that were begun and not taken."""
        return tuple(self._futures)
