"""Statistics of repeated measurements: medians with their spread, ratios within rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eri_runtime.bench.record import Row, Sample

PERCENTILES = (50, 10, 90, 95, 99)
WHOLE = "total"
STEP = "step"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and spread of repeated values; percentiles interpolate linearly between values.

    Attributes:
        median: The median.
        low: The 10th percentile.
        high: The 90th percentile.
        p95: The 95th percentile.
        p99: The 99th percentile. Of fewer than 100 values it lies between the two largest.
        count: Number of values.
    """

    median: float
    low: float
    high: float
    p95: float
    p99: float
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """Returns the spread of the values, or None if there are none."""
    if not len(values):
        return None
    median, low, high, p95, p99 = (float(each) for each in np.percentile(values, PERCENTILES))
    return Spread(median=median, low=low, high=high, p95=p95, p99=p99, count=len(values))


def figure(sample: Sample, name: str) -> list[float]:
    """Returns the values of one figure in one call.

    For steps these are all but the first, which also sets up the loop, unless it is the only one.
    """
    if name == STEP:
        return list(sample.steps[1:] or sample.steps)
    value: float = getattr(sample, name)
    return [value]


def values(row: Row, name: str) -> list[float]:
    """Returns a figure's values in all rounds."""
    return [each for sample in row.samples for each in figure(sample, name)]


def pictures_per_minute(row: Row, images: int) -> float | None:
    """Returns how many pictures a minute of calls, one after the other, makes.

    Args:
        row: The row whose calls are counted.
        images: Images per call.

    Returns:
        60 000 · images / the mean of the calls' milliseconds; None without samples.
    """
    times = values(row, WHOLE)
    return 60e3 * images / float(np.mean(times)) if times and np.mean(times) > 0 else None


def ratio(row: Row, reference: Row, name: str) -> Spread | None:
    """Returns the spread over the rounds of a figure divided by the reference's in that round."""
    pairs = zip(row.samples, reference.samples, strict=False)
    ratios = [
        float(np.median(figure(mine, name)) / np.median(figure(theirs, name)))
        for mine, theirs in pairs
        if np.median(figure(theirs, name)) > 0
    ]
    return spread(ratios)
