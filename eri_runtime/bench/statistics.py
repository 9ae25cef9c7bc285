"""Figures of repeated measurements: medians with their spread, and ratios within rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eri_runtime.bench.record import STAGES, Row, Sample

PERCENTILES = (50, 10, 90)
WHOLE = "total"
STEP = "step"
FIGURES = (STEP, *STAGES, WHOLE)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median, the 10th and the 90th percentile (linear between samples) of `count` values."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of some values, or None of none."""
    if not len(values):
        return None
    median, low, high = (float(each) for each in np.percentile(values, PERCENTILES))
    return Spread(median=median, low=low, high=high, count=len(values))


def figure(sample: Sample, name: str) -> list[float]:
    """The values of one figure in one call.

    Of steps, all but the first, which also prepares the loop, unless there is no other.
    """
    if name == STEP:
        return list(sample.steps[1:] or sample.steps)
    return [getattr(sample, name)]


def values(row: Row, name: str) -> list[float]:
    """A figure's values in all rounds."""
    return [each for sample in row.samples for each in figure(sample, name)]


def ratio(row: Row, reference: Row, name: str) -> Spread | None:
    """A figure over the reference's in the same round: the median and spread over the rounds."""
    pairs = zip(row.samples, reference.samples, strict=False)
    found = [
        float(np.median(figure(mine, name)) / np.median(figure(theirs, name)))
        for mine, theirs in pairs
        if np.median(figure(theirs, name)) > 0
    ]
    return spread(found)
