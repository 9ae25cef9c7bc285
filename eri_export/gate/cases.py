"""The inputs to compare on: drawn ones, the ends of the ranges, and real ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from eri_export.gate.pytorch_reference import flops
from eri_export.gate.reduced_copy import Copy, reduced
from eri_export.graphs.recipes.base import Arrays, Recipe, Sizes
from eri_export.machine import available_memory
from eri_runtime.bundle import GateKind

Kind = Literal[
    "drawn", "real", "smallest", "largest", "one largest", "step", "segments", "form", "loras"
]

AFFORDABLE = 2e11  # most operations of a run at the end of a range: some seconds on a CPU
# most operations of a run at the only sizes of a static graph: some minutes, or some seconds
COSTLY: Mapping[GateKind, float] = {"full": 2e13, "quick": 1e12}
SEED = 0

BYTES_PER_PARAMETER = 8  # float32 in PyTorch, or in an engine with its own copy
SHARE = 0.8  # of the available memory
LARGE = 4e9  # parameters: reading and converting more takes minutes


@dataclass(frozen=True)
class Case:
    """Inputs to compare on, their sizes and their kind."""

    kind: Kind
    sizes: Sizes
    inputs: Arrays


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """An end of a component's ranges that was not compared, as it takes too many operations.

    Attributes:
        component: The component's name.
        sizes: The sizes that were not run.
        flops: Floating-point operations of one run at these sizes.
    """

    component: str
    sizes: Sizes
    flops: float


def cases_of(
    recipe: Recipe, real: Arrays | None, kind: GateKind = "full"
) -> tuple[list[Case], tuple[NotRun, ...]]:
    """Returns the cases: drawn inputs at the examples' sizes and the ranges' ends, then real ones.

    It also returns the ends that take too long to run. A quick gate has one case, of drawn inputs.
    """
    if kind == "quick":
        return [Case("drawn", recipe.sizes[1], recipe.sample(recipe.sizes[1], SEED))], ()
    different = {tuple(sizes.items()): sizes for sizes in recipe.sizes[1:]}
    run_at: list[tuple[Kind, Sizes]] = [("drawn", sizes) for sizes in different.values()]
    ends, not_run = _ends(recipe)
    cases = [Case(kind, sizes, recipe.sample(sizes, SEED)) for kind, sizes in [*run_at, *ends]]
    if real is not None:
        cases.append(Case("real", recipe.sizes_of(real), real))
    return cases, not_run


def reduced_for_machine(recipe: Recipe) -> Copy | None:
    """Returns a copy of few blocks to compare instead of a network too large for this machine.

    None if the network is not large, or fits in this machine's memory, or has no more blocks than
    the copy.
    """
    parameters = recipe.source.parameters
    fits = BYTES_PER_PARAMETER * parameters <= SHARE * available_memory()
    return None if fits or parameters <= LARGE else reduced(recipe.source)


def work(recipe: Recipe, kind: GateKind = "full") -> int:
    """Returns the operations of one pass over all cases; a real one counts as the traced sizes."""
    if kind == "quick":
        return flops(recipe, recipe.sizes[1:2])[0]
    ends, _ = _ends(recipe)
    return sum(flops(recipe, [*recipe.sizes, *(sizes for _, sizes in ends)]))


def too_costly(recipes: Iterable[Recipe], kind: GateKind = "full") -> bool:
    """Returns whether running a static graph at its only sizes would take too long."""
    static = (recipe for recipe in recipes if recipe.loose is not None)
    return any(flops(recipe, [recipe.sizes[0]])[0] > COSTLY[kind] for recipe in static)


def _ends(recipe: Recipe) -> tuple[list[tuple[Kind, Sizes]], tuple[NotRun, ...]]:
    """Returns the ends of the ranges to run, and those not to run.

    The ends are all sizes at their smallest and all at their largest; if the largest take too
    long, then also one dimension at its largest with the others at their smallest.
    """
    smallest = {name: each.min for name, each in recipe.ranges.items()}
    largest = {name: each.max for name, each in recipe.ranges.items()}
    if smallest == largest:
        return [], ()  # the drawn inputs have these sizes
    ends: list[tuple[Kind, Sizes]] = [("smallest", smallest), ("largest", largest)]
    if flops(recipe, [largest])[0] <= AFFORDABLE:
        return ends, ()
    ends += [("one largest", {**smallest, name: size}) for name, size in largest.items()]
    paired = list(zip(ends, flops(recipe, [sizes for _, sizes in ends]), strict=True))
    not_run = (
        NotRun(component=recipe.name, sizes=sizes, flops=cost)
        for (_, sizes), cost in paired
        if cost > AFFORDABLE
    )
    return [end for end, cost in paired if cost <= AFFORDABLE], tuple(not_run)
