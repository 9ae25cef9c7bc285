"""Estimates how long an export will take, by a simple model with measured rates.

The time of tracing depends on the number of weights, that of writing on bytes, and that of
comparing on the bytes that PyTorch and the engine load and on the operations of all runs. The rates
were measured on two shared CPU cores with one thread each; a faster machine takes less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eri_export.gate.cases import reduced_for_machine, too_costly, work
from eri_export.graphs.recipes.base import Recipe
from eri_export.plan.plan import Plan
from eri_runtime.bundle import GateKind, Precision

# Fitted to `MEASURED` of tests/export/plan/test_export_time.py, from tiny networks to SDXL base and
# Flux-dev's transformer.
TRACE = (4.0, 0.012)  # seconds per network, and per weight of it
WRITE = (0.3, 4e8)  # seconds per network, and bytes a second, converted, checked and hashed
COMPARE = 2.0  # seconds per network, however small
LOAD = 5e8  # bytes of float32 a second, into PyTorch or an engine
RUN = 1e11  # operations a second

# runs of each case: PyTorch, and the engine on the graph, on its float32 twin, or on both
RUNS: Mapping[Precision, int] = {"fp32": 2, "fp16": 3, "bf16": 2}
QUICK_RUNS = 2


@dataclass(frozen=True)
class Estimate:
    """Seconds of each stage, of all components together."""

    trace: float
    write: float
    compare: float

    @property
    def total(self) -> float:
        """The seconds of all stages."""
        return self.trace + self.write + self.compare


def estimate_export_time(plan: Plan, gate: GateKind = "full") -> Estimate:
    """Returns the estimate; a network too large to run here is compared as its smaller copy."""
    costly = too_costly(plan.recipes, gate)
    return Estimate(
        trace=sum(map(_trace, plan.recipes)),
        write=WRITE[0] * len(plan.recipes) + plan.nbytes / WRITE[1],
        compare=sum(_compare(recipe, costly, gate) for recipe in plan.recipes),
    )


def _trace(recipe: Recipe) -> float:
    per_network, per_weight = TRACE
    return per_network + per_weight * len(recipe.source.tensors)


def _compare(recipe: Recipe, costly: bool, gate: GateKind) -> float:
    subject = recipe.loose if costly and recipe.loose is not None else recipe
    copy = reduced_for_machine(subject)
    if copy is not None:
        subject = dataclasses.replace(subject, source=copy.source)
    retrace = _trace(subject) if subject is not recipe else 0.0
    nbytes = 4 * subject.source.parameters
    runs = QUICK_RUNS if gate == "quick" else RUNS[recipe.precision]
    return COMPARE + retrace + runs * (nbytes / LOAD + work(subject, gate) / RUN)


def approximate_times(parts: Sequence[float]) -> list[str]:
    """Returns the sum of some seconds and each of them as text, rounded so that the parts add up.

    All have the unit that suits the sum: seconds, tenths of a minute or tenths of an hour.
    """
    total = sum(parts)
    unit, name, digits = (1.0, "s", 0) if total < 120 else (60.0, "min", 1)
    if total >= 5400:
        unit, name = 3600.0, "h"
    rounded = [round(part / unit, digits) for part in parts]
    return [f"{number:.{digits}f} {name}" for number in (sum(rounded), *rounded)]
