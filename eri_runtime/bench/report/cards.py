"""The cards at the top of a report: what is how many times as fast as what.

The first cards compare equal precision. What compares two precisions stands in a card of its own,
after them, and its label is as large as the claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eri_runtime.bench.record import Record
from eri_runtime.bench.statistics import STEP, WHOLE
from eri_runtime.bench.summary import COLD, Best, best_comparisons
from eri_runtime.bench.table import ratio_text

HEADINGS = {STEP: "One denoising step", WHOLE: "A picture, end to end", COLD: "A cold start"}
IN_WORDS = {STEP: "a step", WHOLE: "a picture", COLD: "a cold start"}
EQUAL, MIXED = "equal precision", "Mixed precision"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A comparison in words.

    Attributes:
        times: How many times as fast, such as `1.92`.
        than: Compared with what.
        label: The precisions of both.
        pair: The names of both subjects.
        ratio: The ratio of the times, with its spread.
    """

    times: str
    than: str
    label: str
    pair: str
    ratio: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card: its heading and its claims."""

    heading: str
    claims: tuple[Claim, ...]


def cards(record: Record) -> tuple[Card, ...]:
    """Returns the cards of the first size: equal precision by figure, then mixed precision."""
    first = [each for each in best_comparisons(record) if each.size == record.workload.sizes[0]]
    found = [
        Card(heading=f"{heading}, {EQUAL}", claims=_claims(first, figure, mixed=False))
        for figure, heading in HEADINGS.items()
    ]
    mixed = tuple(each for figure in HEADINGS for each in _claims(first, figure, mixed=True))
    return tuple(card for card in (*found, Card(heading=MIXED, claims=mixed)) if card.claims)


def _claims(comparisons: Sequence[Best], figure: str, *, mixed: bool) -> tuple[Claim, ...]:
    """Returns the claims of one figure, of equal or of mixed precision."""
    return tuple(
        claim(each) for each in comparisons if each.figure == figure and each.mixed is mixed
    )


def claim(best: Best) -> Claim:
    """Returns a comparison in words; one of mixed precision also names its figure."""
    figure = f" in {IN_WORDS[best.figure]}" if best.mixed else ""
    return Claim(
        times=times_text(1 / best.ratio.median),
        than=f"{best.claim}{figure}",
        label=best.label,
        pair=f"{best.ours} against {best.theirs}",
        ratio=ratio_text(best.ratio),
    )


def times_text(times: float) -> str:
    """Formats a factor with two or three figures."""
    return f"{times:.{0 if times >= 10 else 1 if times >= 2 else 2}f}"
