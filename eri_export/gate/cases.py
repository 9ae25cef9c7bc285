"""What is compared: drawn inputs, the ends of the ranges and real inputs; the whole or a copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from eri_export.gate.reduced import Copy, reduced
from eri_export.gate.reference import flops
from eri_export.machine import available_memory
from eri_export.recipes.base import Arrays, Recipe, Sizes

Kind = Literal["drawn", "real", "smallest", "largest", "one largest", "step", "segments", "loras"]

AFFORDABLE = 2e11  # operations of a run at the end of a range: some seconds of a CPU
COSTLY = 2e13  # operations of a run at the only sizes of a static graph: some minutes
SEED = 0

BYTES_PER_PARAMETER = 8  # float32 in PyTorch, or in an engine beside its own copy
SHARE = 0.8  # of the memory that is available


@dataclass(frozen=True)
class Case:
    """Inputs to compare on, and why these."""

    kind: Kind
    sizes: Sizes
    inputs: Arrays


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """An end of a component's ranges that takes more operations than a gate should."""

    component: str
    sizes: Sizes
    flops: float


def cases_of(recipe: Recipe, real: Arrays | None) -> tuple[list[Case], tuple[NotRun, ...]]:
    """Drawn inputs at the parity sizes and at the ends of the ranges, and the real ones last."""
    different = {tuple(sizes.items()): sizes for sizes in recipe.sizes[1:]}
    run_at: list[tuple[Kind, Sizes]] = [("drawn", sizes) for sizes in different.values()]
    ends, not_run = _ends(recipe)
    cases = [Case(kind, sizes, recipe.sample(sizes, SEED)) for kind, sizes in [*run_at, *ends]]
    if real is not None:
        cases.append(Case("real", recipe.sizes_of(real), real))
    return cases, not_run


def shallower(recipe: Recipe) -> Copy | None:
    """The copy of few blocks by which a network is compared that this machine's memory cannot hold.

    None where it can, or where there are no more than those few.
    """
    fits = BYTES_PER_PARAMETER * recipe.source.parameters <= SHARE * available_memory()
    return None if fits else reduced(recipe.source)


def work(recipe: Recipe) -> int:
    """Operations of one pass over every case; the real one is about as large as the traced."""
    ends, _ = _ends(recipe)
    return sum(flops(recipe, [*recipe.sizes, *(sizes for _, sizes in ends)]))


def too_costly(recipes: Iterable[Recipe]) -> bool:
    """Whether static graphs are so large that to run one of them would take too long."""
    static = (recipe for recipe in recipes if recipe.loose is not None)
    return any(flops(recipe, [recipe.sizes[0]])[0] > COSTLY for recipe in static)


def _ends(recipe: Recipe) -> tuple[list[tuple[Kind, Sizes]], tuple[NotRun, ...]]:
    """All smallest and all largest; or, where that takes too long, one dimension at its largest."""
    smallest = {name: each.min for name, each in recipe.ranges.items()}
    largest = {name: each.max for name, each in recipe.ranges.items()}
    if smallest == largest:
        return [], ()  # the sizes it is drawn at
    ends: list[tuple[Kind, Sizes]] = [("smallest", smallest), ("largest", largest)]
    ends += [("one largest", {**smallest, name: size}) for name, size in largest.items()]
    cost = flops(recipe, [sizes for _, sizes in ends])
    wanted = ends[:2] if cost[1] <= AFFORDABLE else ends
    paired = list(zip(wanted, cost, strict=False))
    not_run = (
        NotRun(component=recipe.name, sizes=sizes, flops=each)
        for (_, sizes), each in paired
        if each > AFFORDABLE
    )
    return [end for end, each in paired if each <= AFFORDABLE], tuple(not_run)
