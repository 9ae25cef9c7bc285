"""The result of a comparison: an error for each output and case, and its tolerance."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eri_export.gate.cases import Kind, NotRun
from eri_export.graphs.recipes.base import Sizes
from eri_runtime.bundle import GateKind, Precision
from eri_runtime.errors import ParityError

Subject = Literal["graph", "float32 twin"]

# Largest difference over largest reference value. Float32: another order of summation through a
# hundred layers. Float16: 11 bits, so 5e-4 per rounding, with some cancellation. A twin differs
# from float32 only where a constant was rounded to 8 or 11 bits, such as quick-GELU's 1.702.
TOLERANCES: Mapping[tuple[Precision, Subject], float] = {
    ("fp32", "graph"): 1e-4,
    ("fp16", "graph"): 3e-2,
    ("fp16", "float32 twin"): 1e-3,
    ("bf16", "float32 twin"): 5e-3,
}
# A step graph runs the same network on the same numbers; a dozen operations differ in their order.
# In float16 an engine may fuse the two graphs' networks differently, as in segments, and each
# rounding that moves is 5e-4. A bfloat16 graph is compared as its float32 twin.
STEP_TOLERANCES: Mapping[tuple[Precision, Subject], float] = {
    ("fp32", "graph"): 1e-5,
    ("fp16", "graph"): 3e-2,
    ("fp16", "float32 twin"): 1e-5,
    ("bf16", "float32 twin"): 1e-5,
}
# segments have the same nodes, but a cut can split nodes that an engine fuses and add a rounding
SEGMENTS_TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-6, "fp16": 3e-2}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The error of one output in one case; NaN and Inf count as an infinite error.

    Attributes:
        component: The component's name.
        output: The output's name.
        precision: The component's precision.
        subject: "graph" for the exported graph, "float32 twin" for its copy in float32.
        case: The kind of inputs: "drawn", "real", "smallest", "largest", "one largest" (one
            dimension at its largest), "step", "segments", "form" (that for a CPU) or "loras".
        network: "whole", or which blocks a smaller copy of the network has.
        sizes: The size of each dynamic dimension.
        max_abs: The largest absolute difference.
        max_rel: The largest absolute difference over the largest reference value.
        tolerance: The largest `max_rel` that passes.
    """

    component: str
    output: str
    precision: Precision
    subject: Subject
    case: Kind
    network: str
    sizes: Sizes
    max_abs: float
    max_rel: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_rel <= self.tolerance


@dataclass(frozen=True)
class Report:
    """All comparisons of an export with PyTorch; true if all passed.

    Reports are added with `+`.

    Attributes:
        metrics: The comparisons.
        not_run: Ends of the ranges that take too many operations to run.
        gate: "full" if every other case was compared, "quick" if one of each component was.
    """

    metrics: tuple[Metric, ...]
    not_run: tuple[NotRun, ...] = ()
    gate: GateKind = "full"

    @property
    def passed(self) -> bool:
        """Whether there is a comparison and all of them passed."""
        return bool(self.metrics) and all(metric.passed for metric in self.metrics)

    def __bool__(self) -> bool:
        return self.passed

    def __add__(self, other: Report) -> Report:
        gate: GateKind = "quick" if "quick" in (self.gate, other.gate) else "full"
        return Report(self.metrics + other.metrics, self.not_run + other.not_run, gate)

    def worst(self, component: str) -> float:
        """Returns a component's largest relative error.

        Args:
            component: The component's name.

        Returns:
            The error of the exported graph, or of its float32 twin if the graph could not be run.
        """
        own = [metric for metric in self.metrics if metric.component == component]
        ran = [metric for metric in own if metric.subject == "graph"]
        return max(metric.max_rel for metric in ran or own)

    def check(self) -> None:
        """Raises an error for the worst output unless everything passed.

        Raises:
            ParityError: If a comparison failed.
        """
        if self:
            return
        worst = max(self.metrics, key=lambda metric: metric.max_rel / metric.tolerance)
        raise ParityError(
            f"{worst.component}.{worst.output} at {dict(worst.sizes)}",
            got=f"a relative error of {worst.max_rel:.2g} ({worst.subject})",
            expected=f"at most {worst.tolerance:g}",
            fix=f"nothing was published{_way_out(worst)}",
        )

    def to_json(self) -> str:
        """Returns the report as JSON.

        Returns:
            The JSON text; infinite errors are null, as JSON has no number for them.
        """
        metrics = [
            {
                name: None if isinstance(value, float) and math.isinf(value) else value
                for name, value in dataclasses.asdict(metric).items()
            }
            for metric in self.metrics
        ]
        not_run = [dataclasses.asdict(each) for each in self.not_run]
        report = {"passed": self.passed, "gate": self.gate, "metrics": metrics, "not_run": not_run}
        return json.dumps(report, indent=1, sort_keys=True)


def _way_out(worst: Metric) -> str:
    """Returns advice for a float16 graph that overflowed; "" for every other failure."""
    if (worst.precision, worst.subject) != ("fp16", "graph") or not math.isinf(worst.max_rel):
        return ""
    return f"; where float16 overflows, `--precision fp16,{worst.component}=fp32` does not"
