"""Rows of a run: what was timed of a subject, beside how its pictures differ from the reference."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from eri_runtime.bench.distance import Pixels, distance, keeps, worst
from eri_runtime.bench.live import Live, Size
from eri_runtime.bench.plan import Plan
from eri_runtime.bench.record import Parity, Picture, Row

AMPLIFIED = {"fp32": 64, "fp16": 16, "bf16": 16}
UNCOMPARED = "there is no picture of the reference to compare with"
MISSED = "its pictures are farther from the reference's than the limit"


def rows_of(plan: Plan, lives: Sequence[Live], reference: str) -> tuple[Row, ...]:
    """A row for each subject at each size, failed ones too."""
    against = next(each for each in lives if each.candidate.name == reference)
    return tuple(_row(plan, each, against, size) for size in plan.workload.sizes for each in lives)


def _row(plan: Plan, live: Live, against: Live, size: Size) -> Row:
    parity = None if live is against else _parity(plan, live, against, size)
    compared = live is against or parity is not None
    passed = live is against or (parity is not None and parity.passed)
    reason = live.reason or (None if passed else MISSED if compared else UNCOMPARED)
    return Row(
        subject=live.candidate.name,
        width=size[0],
        height=size[1],
        status=live.status,
        counts=live.runs and passed,
        reason=reason,
        samples=tuple(live.samples.get(size, ())),
        parity=parity,
    )


def _parity(plan: Plan, live: Live, against: Live, size: Size) -> Parity | None:
    cases = [(size, number) for number in range(len(plan.workload.cases))]
    if not all(case in each.files for case in cases for each in (live, against)):
        return None
    found = [distance(_read(live.files[case]), _read(against.files[case])) for case in cases]
    limit = plan.limits[live.subject().precision]
    return Parity(
        against=against.candidate.name,
        limit=limit,
        worst=worst(found),
        cases=tuple(found),
        passed=all(keeps(each, limit) for each in found),
    )


def pictures_of(plan: Plan, lives: Sequence[Live], reference: str) -> tuple[Picture, ...]:
    """The first case of every subject at every size, made small enough to keep."""
    if not plan.pictures:
        return ()
    against = next(each for each in lives if each.candidate.name == reference)
    return tuple(_pictures(plan, lives, against))


def _pictures(plan: Plan, lives: Sequence[Live], against: Live) -> Iterator[Picture]:
    for size in plan.workload.sizes:
        for live in lives:
            case = (size, 0)
            if case not in live.files:
                continue
            mine, difference = _read(live.files[case]), None
            factor = AMPLIFIED[live.subject().precision]
            if live is not against and case in against.files:
                apart = np.abs(mine.astype(np.int16) - _read(against.files[case]))
                amplified = np.minimum(apart * factor, 255).astype(np.uint8)
                difference = _small(amplified, plan.pictures)
            yield Picture(
                subject=live.candidate.name,
                width=size[0],
                height=size[1],
                png=_small(mine, plan.pictures),
                difference=difference,
                amplified=factor,
            )


def _read(file: Path) -> Pixels:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _small(pixels: Pixels, side: int) -> str:
    """PNG in base64, its longer side at most `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
