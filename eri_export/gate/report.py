"""What a comparison found: an error for each output and case, and whether it is small enough."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eri_export.gate.cases import Kind, NotRun
from eri_export.recipes.base import Sizes
from eri_runtime.errors import ParityError
from eri_runtime.spec import Precision

Subject = Literal["graph", "float32 twin"]

# Largest difference over largest reference value. Float32: another order of summation, a hundred
# layers deep. Float16: 11 bits, so 5e-4 a rounding, with some cancellation. A twin differs from
# float32 only where a constant was rounded to 8 or 11 bits, such as quick-GELU's 1.702.
TOLERANCES: Mapping[tuple[Precision, Subject], float] = {
    ("fp32", "graph"): 1e-4,
    ("fp16", "graph"): 3e-2,
    ("fp16", "float32 twin"): 1e-3,
    ("bf16", "float32 twin"): 5e-3,
}
# a step graph holds the same network on the same numbers, and a dozen operations in another order
STEP_TOLERANCE = 1e-5
# segments hold the same nodes; what an engine computes as one is cut, so 16 bits are rounded there
SEGMENTS_TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-6, "fp16": 3e-2}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The error of one output on one case; NaN and Inf count as an infinite error.

    `network` is the whole one, or says of which blocks a smaller copy was made.
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
    """Every comparison that was made; true if all of them passed."""

    metrics: tuple[Metric, ...]
    not_run: tuple[NotRun, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it agreed."""
        return bool(self.metrics) and all(metric.passed for metric in self.metrics)

    def __bool__(self) -> bool:
        return self.passed

    def __add__(self, other: Report) -> Report:
        return Report(self.metrics + other.metrics, self.not_run + other.not_run)

    def worst(self, component: str) -> float:
        """The largest relative error of a component, by its own graph where that could be run."""
        own = [metric for metric in self.metrics if metric.component == component]
        ran = [metric for metric in own if metric.subject == "graph"]
        return max(metric.max_rel for metric in ran or own)

    def check(self) -> None:
        """Raise `ParityError` naming the worst output, unless everything passed."""
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
        """The report as JSON; an infinite error, which JSON has no number for, is null."""
        metrics = [
            {
                name: None if isinstance(value, float) and math.isinf(value) else value
                for name, value in dataclasses.asdict(metric).items()
            }
            for metric in self.metrics
        ]
        not_run = [dataclasses.asdict(each) for each in self.not_run]
        report = {"passed": self.passed, "metrics": metrics, "not_run": not_run}
        return json.dumps(report, indent=1, sort_keys=True)


def _way_out(worst: Metric) -> str:
    """What to try where a float16 graph gave NaN or Inf, which its float32 twin did not."""
    if (worst.precision, worst.subject) != ("fp16", "graph") or not math.isinf(worst.max_rel):
        return ""
    return f"; where float16 overflows, `--precision fp16,{worst.component}=fp32` does not"
