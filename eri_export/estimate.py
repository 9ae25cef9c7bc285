"""How long an export will take, by a simple model with rates measured once.

Tracing goes by the number of weights, as every layer has some and repeated blocks are traced once;
writing by bytes; comparing by the bytes that PyTorch and the engine load, and by the operations of
all runs. The rates are those of two shared CPU cores, one thread each; a faster machine takes less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from eri_export.gate.cases import shallower, too_costly, work
from eri_export.plan import Plan
from eri_export.recipes.base import Recipe
from eri_runtime.spec import Precision

# Fitted to traces of ten published networks, each within 40 % (CLIP-G takes half), and to a whole
# export of SDXL base in fp16: 45 s of tracing, 23 s of writing 7.1 GB, 162 s of comparing. Flux-dev
# alone then took 19, 41 and 55 s, where this says 20, 80 and 55.
TRACE = (2.5, 0.015)  # seconds of a network, and of each of its weights
WRITE = 3e8  # bytes a second, converted, checked and hashed
LOAD = 5e8  # bytes of float32 a second, into PyTorch or an engine
RUN = 1e11  # operations a second

# PyTorch, and the engine on the graph, on its float32 twin, or on both
RUNS: Mapping[Precision, int] = {"fp32": 2, "fp16": 3, "bf16": 2}


@dataclass(frozen=True)
class Estimate:
    """Seconds of each stage, of all components together."""

    trace: float
    write: float
    compare: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.trace + self.write + self.compare


def estimate(plan: Plan) -> Estimate:
    """What `plan` will take; a network too large to run here is compared as its smaller copy."""
    costly = too_costly(plan.recipes)
    return Estimate(
        trace=sum(map(_trace, plan.recipes)),
        write=plan.nbytes / WRITE,
        compare=sum(_compare(recipe, costly) for recipe in plan.recipes),
    )


def _trace(recipe: Recipe) -> float:
    first, each = TRACE
    return first + each * len(recipe.source.tensors)


def _compare(recipe: Recipe, costly: bool) -> float:
    gate = recipe.loose if costly and recipe.loose is not None else recipe
    copy = shallower(gate)
    if copy is not None:
        gate = dataclasses.replace(gate, source=copy.source)
    again = _trace(gate) if gate is not recipe else 0.0
    nbytes = 4 * gate.source.parameters
    runs = RUNS[recipe.precision]
    return again + runs * (nbytes / LOAD + work(gate) / RUN)


def about(seconds: float) -> str:
    """A time in words, no finer than it is known."""
    if seconds < 60:
        return f"{5 * max(1, round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
