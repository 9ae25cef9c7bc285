"""A process's memory over time, looked at from another."""

from __future__ import annotations

import threading
import time

from eri_runtime.bench.proc import pss_of, rss_of
from eri_runtime.bench.record import Moment

EVERY = 0.05  # seconds between two looks at the resident set, which cost some microseconds
SHARES_EVERY = 10  # looks from one at the shares to the next: those walk all of its pages
KEPT = 240  # moments of a timeline


class Watch:
    """Looks at a process until it is stopped; times are seconds since `begun` (perf_counter)."""

    def __init__(self, pid: int, begun: float) -> None:
        self._pid, self._begun = pid, begun
        self._moments: list[Moment] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[Moment, ...]:
        """What was seen."""
        self._done.set()
        self._thread.join()
        self._moments += self._seen(shares=True)
        return thinned(self._moments)

    def _look(self) -> None:
        looks = 0
        while not self._done.wait(EVERY):
            self._moments += self._seen(shares=looks % SHARES_EVERY == 0)
            looks += 1

    def _seen(self, *, shares: bool) -> list[Moment]:
        rss = rss_of(self._pid)
        if rss is None:
            return []
        t = round(time.perf_counter() - self._begun, 3)
        return [Moment(t=t, rss=rss, pss=pss_of(self._pid) if shares else None)]


def thinned(moments: list[Moment], most: int = KEPT) -> tuple[Moment, ...]:
    """At most about `most` moments: of each stretch of time the one with the largest set, and the
    shares that were asked."""
    if len(moments) <= most:
        return tuple(moments)
    width = -(-len(moments) // (most // 2))
    kept: list[Moment] = []
    for start in range(0, len(moments), width):
        stretch = moments[start : start + width]
        largest = max(stretch, key=lambda each: each.rss)
        shared = [each for each in stretch if each.pss is not None][:1]
        kept += sorted({id(each): each for each in (largest, *shared)}.values(), key=lambda m: m.t)
    return tuple(kept)
