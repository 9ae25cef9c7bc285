"""Samples the memory of another process over time."""

from __future__ import annotations

import threading
import time

from eri_runtime.bench.process_memory import pss_of, rss_of
from eri_runtime.bench.record import Moment

EVERY = 0.05  # seconds between two samples of RSS, which cost some microseconds each
PSS_EVERY = 10  # PSS is read with every tenth sample, as the kernel walks all pages for it
KEPT = 240  # samples of a timeline


class Watch:
    """Samples a process until `stop`; times are seconds since `started` (perf_counter)."""

    def __init__(self, pid: int, started: float) -> None:
        self._pid, self._started = pid, started
        self._moments: list[Moment] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[Moment, ...]:
        """Stops and returns the timeline."""
        self._done.set()
        self._thread.join()
        self._moments += self._sample(pss=True)
        return thin(self._moments)

    def _sample_until_stopped(self) -> None:
        samples = 0
        while not self._done.wait(EVERY):
            self._moments += self._sample(pss=samples % PSS_EVERY == 0)
            samples += 1

    def _sample(self, *, pss: bool) -> list[Moment]:
        """Returns one sample, or none if the process has ended."""
        rss = rss_of(self._pid)
        if rss is None:
            return []
        t = round(time.perf_counter() - self._started, 3)
        return [Moment(t=t, rss=rss, pss=pss_of(self._pid) if pss else None)]


def thin(moments: list[Moment], most: int = KEPT) -> tuple[Moment, ...]:
    """Returns at most about `most` samples.

    Keeps the sample with the largest RSS and the first one with a PSS of each stretch of time.
    """
    if len(moments) <= most:
        return tuple(moments)
    width = -(-len(moments) // (most // 2))
    kept: list[Moment] = []
    for start in range(0, len(moments), width):
        stretch = moments[start : start + width]
        largest = max(stretch, key=lambda each: each.rss)
        with_pss = [each for each in stretch if each.pss is not None][:1]
        pair = {id(each): each for each in (largest, *with_pss)}
        kept += sorted(pair.values(), key=lambda moment: moment.t)
    return tuple(kept)
