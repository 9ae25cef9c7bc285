"""The rows of a record: a subject's samples, and its images compared with the reference's."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from eri_runtime.bench.measured_subject import MeasuredSubject, Size
from eri_runtime.bench.picture_distance import LOSSY, Pixels, distance, within_limit, worst
from eri_runtime.bench.plan import Plan
from eri_runtime.bench.record import Parity, Picture, Row

AMPLIFIED = {"fp32": 64, "fp16": 16, "bf16": 16}
UNCOMPARED = "the reference has no picture to compare with"
MISSED = "its pictures differ from the reference's by more than the limit"


def make_rows(plan: Plan, subjects: Sequence[MeasuredSubject], reference: str) -> tuple[Row, ...]:
    """Returns a row for each subject at each size, failed ones included.

    One that caches steps is compared with the same subject without.
    """
    named = {each.candidate.name: each for each in subjects}
    return tuple(
        _row(plan, each, named[each.candidate.uncached or reference], size)
        for size in plan.workload.sizes
        for each in subjects
    )


def _row(plan: Plan, subject: MeasuredSubject, against: MeasuredSubject, size: Size) -> Row:
    """Returns a subject's row; it counts if the images stay within the limit."""
    parity = None if subject is against else _parity(plan, subject, against, size)
    compared = subject is against or parity is not None
    passed = subject is against or (parity is not None and parity.passed)
    reason = subject.reason or (None if passed else MISSED if compared else UNCOMPARED)
    return Row(
        subject=subject.candidate.name,
        width=size[0],
        height=size[1],
        status=subject.status,
        counts=subject.runs and passed,
        reason=reason,
        samples=tuple(subject.samples.get(size, ())),
        parity=parity,
    )


def _parity(
    plan: Plan, subject: MeasuredSubject, against: MeasuredSubject, size: Size
) -> Parity | None:
    """Compares all cases of a size; None if an image of either subject is missing."""
    cases = [(size, number) for number in range(len(plan.workload.cases))]
    if not all(case in each.files for case in cases for each in (subject, against)):
        return None
    distances = [distance(_read(subject.files[case]), _read(against.files[case])) for case in cases]
    cached = subject.candidate.uncached is not None
    limit = LOSSY if cached else plan.limits[subject.to_subject().precision]
    return Parity(
        against=against.candidate.name,
        limit=limit,
        worst=worst(distances),
        cases=tuple(distances),
        passed=all(within_limit(each, limit) for each in distances),
    )


def pictures_of(
    plan: Plan, subjects: Sequence[MeasuredSubject], reference: str
) -> tuple[Picture, ...]:
    """Returns small copies of every subject's first case at every size."""
    if not plan.pictures:
        return ()
    against = next(each for each in subjects if each.candidate.name == reference)
    return tuple(_pictures(plan, subjects, against))


def _pictures(
    plan: Plan, subjects: Sequence[MeasuredSubject], against: MeasuredSubject
) -> Iterator[Picture]:
    """Yields the pictures, with their differences from the reference `against`."""
    for size in plan.workload.sizes:
        for subject in subjects:
            case = (size, 0)
            if case not in subject.files:
                continue
            pixels, difference = _read(subject.files[case]), None
            factor = AMPLIFIED[subject.to_subject().precision]
            if subject is not against and case in against.files:
                absolute = np.abs(pixels.astype(np.int16) - _read(against.files[case]))
                amplified = np.minimum(absolute * factor, 255).astype(np.uint8)
                difference = _small(amplified, plan.pictures)
            yield Picture(
                subject=subject.candidate.name,
                width=size[0],
                height=size[1],
                png=_small(pixels, plan.pictures),
                difference=difference,
                amplified=factor,
            )


def _read(file: Path) -> Pixels:
    """Reads an image as (H, W, 3) uint8."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _small(pixels: Pixels, side: int) -> str:
    """Returns pixels as PNG in base64, shrunk so that the longer side is at most `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
