"""What a run of a graph takes beside its weights, as polynomials in the sizes of its inputs.

They are noted while a network is traced, where the shapes of all values are still known, and
reduced to a few for the manifest.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence, Set

import onnx_ir as ir

from eri_export.liveness import HEADS, Blocks, Peaks, Walk, undominated
from eri_export.passes.values import name_of
from eri_export.polynomials import Polynomial, plus, value_at, variable
from eri_runtime.memory.estimate import COPIES, SCORES
from eri_runtime.spec import ShapeRange, TensorSpec

log = logging.getLogger(__name__)

META = "activations"  # where a graph keeps its peaks
STEPS = 4  # of each range that are looked at, in equal ratios


def note_peaks(
    model: ir.Model, weights: Set[str], inputs: Sequence[TensorSpec], blocks: Blocks
) -> None:
    """Keep the peaks of a traced `model` in its graph's `meta`, for `envelope`.

    `weights` are the inputs that are weights, `inputs` name the axes of the others; `blocks` are
    the graphs behind the stand-ins, by path, and their weights. Where a size is no polynomial the
    peaks stay unknown.
    """
    given = [value for value in model.graph.inputs if name_of(value) not in weights]
    symbols: dict[str, Polynomial] = {}
    for value, spec in zip(given, inputs, strict=True):
        for size, name in zip(value.shape or (), spec.shape, strict=True):
            if not isinstance(size, int):
                symbols[str(size.value)] = variable(str(name))
    walk = Walk(blocks)
    try:
        model.graph.meta[META] = walk.peaks(model.graph, weights, symbols, frozenset())
    except ValueError as error:
        log.info("the memory of a run stays unknown: %s", error)


def envelope(
    model: ir.Model, ranges: Mapping[str, ShapeRange], heads: int | None = None
) -> tuple[Mapping[str, float], ...]:
    """The polynomials whose largest is the peak within `ranges`, as a manifest has them.

    A monomial is written `batch*height*width`, a constant `1`. `heads` is how many heads of a layer
    are computed at once, None for all. Empty where the peaks are unknown.
    """
    peaks = undominated(_with_heads(each, heads) for each in model.graph.meta.get(META, ()))
    kept = {_highest(peaks, at) for at in _samples(peaks, ranges)}
    return tuple(
        {"*".join(monomial) or "1": value for monomial, value in sorted(peaks[i].items())}
        for i in sorted(kept)
    )


def _highest(peaks: Peaks, at: Mapping[str, float]) -> int:
    values = [value_at(each, at) for each in peaks]
    return values.index(max(values))


def _samples(peaks: Peaks, ranges: Mapping[str, ShapeRange]) -> Iterator[Mapping[str, float]]:
    """The corners of the ranges, their best sizes and the squares between, each engine's way."""
    names = sorted({name for each in peaks for monomial in each for name in monomial})
    points = [
        (0.0, 1.0)
        if name in (SCORES, COPIES)
        else tuple({float(round(r.min * (r.max / r.min) ** (i / STEPS))) for i in range(STEPS + 1)})
        for name in names
        for r in [ranges.get(name, ShapeRange(min=1, opt=1, max=1))]
    ]
    if peaks:
        yield from (dict(zip(names, at, strict=True)) for at in itertools.product(*points))


def _with_heads(peak: Polynomial, heads: int | None) -> Polynomial:
    """The heads of each layer as a number: those computed at once."""
    total: Polynomial = {}
    for monomial, value in peak.items():
        rest = tuple(name for name in monomial if not name.startswith(HEADS))
        for name in monomial:
            if name.startswith(HEADS):
                own = int(name.removeprefix(HEADS))
                value *= own if heads is None else min(own, heads)
        total = plus(total, {rest: value})
    return total
