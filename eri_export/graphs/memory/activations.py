"""The memory of a run without its weights, as polynomials in the sizes of the graph's inputs.

They are computed while a network is traced, when the shapes of all values are known, and reduced
to a few for the manifest.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence, Set

import onnx_ir as ir

from eri_export.graphs.memory.liveness import HEADS, Blocks, Peaks, Walk, undominated
from eri_export.graphs.memory.polynomials import Polynomial, plus, value_at, variable
from eri_export.graphs.passes.values import name_of
from eri_runtime.bundle import COPIES, SCORES, ShapeRange, TensorSpec

log = logging.getLogger(__name__)

META = "activations"  # the key of the peaks in a graph's metadata
STEPS = 4  # into which each range is divided, in equal ratios, for sampling


def note_peaks(
    model: ir.Model, weights: Set[str], inputs: Sequence[TensorSpec], blocks: Blocks
) -> None:
    """Stores the peaks of a traced `model` in its graph's `meta`, for `envelope`.

    `weights` are the graph inputs that are weights, `inputs` name the axes of the others. `blocks`
    has the graphs that the stand-ins replace, by path, with their weights. If a size is no
    polynomial, the peaks stay unknown.
    """
    arguments = [value for value in model.graph.inputs if name_of(value) not in weights]
    symbols: dict[str, Polynomial] = {}
    for value, spec in zip(arguments, inputs, strict=True):
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
    """Returns the polynomials whose maximum is the peak within `ranges`, for the manifest.

    A monomial is written `batch*height*width`, a constant `1`. `heads` is how many heads of a layer
    are computed at once, None for all. Empty if the peaks are unknown.
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
    """Yields points of the ranges on a geometric grid, with and without the engines' factors."""
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
    """Replaces the heads of each layer by the number of those computed at once."""
    total: Polynomial = {}
    for monomial, value in peak.items():
        rest = tuple(name for name in monomial if not name.startswith(HEADS))
        for name in monomial:
            if name.startswith(HEADS):
                count = int(name.removeprefix(HEADS))
                value *= count if heads is None else min(count, heads)
        total = plus(total, {rest: value})
    return total
