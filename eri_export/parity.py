"""An exported graph beside PyTorch in float32, on the same rounded weights.

The reference reads the checkpoint, the graph reads the bundle: a weight that went wrong on the
way shows. What does not fit this machine's memory is compared as a copy of few blocks, which the
report says: traced as the whole is, and bound to the bundle's own weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from eri_export.machine import available_memory
from eri_export.passes.widen import widen
from eri_export.recipes.base import Arrays, Recipe, Sizes
from eri_export.reduced import Copy, reduced
from eri_export.reference import flops, reference, run
from eri_export.stored import read_headers
from eri_export.trace import trace
from eri_export.weights import bind
from eri_runtime.errors import ParityError
from eri_runtime.executors.ort import OrtExecutor
from eri_runtime.spec import ComponentSpec, Precision

log = logging.getLogger(__name__)

Subject = Literal["graph", "float32 twin"]
Kind = Literal["drawn", "real", "smallest", "largest", "one largest"]

WHOLE = "whole"
SMALL = "traced at small sizes"  # of a static graph that would take too long
COSTLY = 2e13  # operations of one run: some minutes of a CPU
BYTES_PER_PARAMETER = 8  # float32 in PyTorch, or in an engine beside its own copy
SHARE = 0.8  # of the memory that is available
AFFORDABLE = 2e11  # operations of a run at the end of a range: some seconds of a CPU

# Largest difference over largest reference value. Float32: another order of summation, a hundred
# layers deep. Float16: 11 bits, so 5e-4 a rounding, with some cancellation. A twin differs from
# float32 only where a constant was rounded to 8 or 11 bits, such as quick-GELU's 1.702.
TOLERANCES: Mapping[tuple[Precision, Subject], float] = {
    ("fp32", "graph"): 1e-4,
    ("fp16", "graph"): 3e-2,
    ("fp16", "float32 twin"): 1e-3,
    ("bf16", "float32 twin"): 5e-3,
}
SEED = 0


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


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The error of one output on one case; NaN and Inf count as an infinite error.

    `network` is the whole one, or says of which blocks a smaller copy was made.
    """

    component: str
    output: str
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
            fix="nothing was published",
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


@dataclass(frozen=True)
class Compared:
    """What came of a comparison: the report, and PyTorch's outputs for the real inputs."""

    report: Report
    made: Arrays | None


def compare(
    recipe: Recipe, graph: Path, spec: ComponentSpec, real: Arrays | None, *, anew: bool = False
) -> Compared:
    """Run the published `graph` and PyTorch on every case of `recipe`, and on `real` inputs.

    `anew`: `recipe` is not the one that `graph` was made by, and is traced for the comparison.
    Raises `ParityError` where they do not agree.
    """
    with _runnable(recipe, graph, anew) as (smaller, own, network):
        cases, not_run = _cases(smaller, real)
        wrapper = reference(smaller)
        expected = [run(smaller, wrapper, case.inputs) for case in cases]
        del wrapper  # its memory is the engine's now
        served = dataclasses.replace(spec, precision="fp32", ranges=smaller.ranges)
        metrics: list[Metric] = []
        with _subjects(own, spec) as subjects:
            for subject, path in subjects:
                with OrtExecutor(path, served) as executor:
                    for case, outputs in zip(cases, expected, strict=True):
                        ours = executor.run(case.inputs)
                        metrics += _measure(smaller, subject, network, case, ours, outputs)
    report = Report(tuple(metrics), not_run)
    report.check()
    return Compared(report, expected[-1] if real is not None else None)


@contextlib.contextmanager
def _runnable(recipe: Recipe, graph: Path, anew: bool) -> Iterator[tuple[Recipe, Path, str]]:
    """The recipe and graph as they are, or those of a copy that fits the machine, and its name."""
    copy = shallower(recipe)
    if copy is None and not anew:
        yield recipe, graph, WHOLE
        return
    name = ", ".join([*(copy.depth for copy in [copy] if copy), *([SMALL] if anew else [])])
    log.info("%s: too large for this machine; compared with %s", recipe.name, name)
    smaller = recipe if copy is None else dataclasses.replace(recipe, source=copy.source)
    model = trace(smaller)
    written = read_headers([graph.with_name("weights.safetensors")])
    bind(model, written if copy is None else copy.tensors(written))
    with _temporary(model, graph.with_name(".copy.onnx")) as path:
        yield smaller, path, name


@contextlib.contextmanager
def _subjects(graph: Path, spec: ComponentSpec) -> Iterator[list[tuple[Subject, Path]]]:
    """The graph itself where a CPU has its kernels, and its float32 twin where it is 16-bit."""
    subjects: list[tuple[Subject, Path]] = [] if spec.precision == "bf16" else [("graph", graph)]
    if spec.precision == "fp32":
        yield subjects
        return
    model = ir.load(graph)
    widen(model)
    with _temporary(model, graph.with_name(".twin.onnx")) as twin:
        yield [*subjects, ("float32 twin", twin)]


@contextlib.contextmanager
def _temporary(model: ir.Model, path: Path) -> Iterator[Path]:
    """`model` saved beside the weights it points at, for as long as the block lasts."""
    try:
        ir.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _cases(recipe: Recipe, real: Arrays | None) -> tuple[list[Case], tuple[NotRun, ...]]:
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
    parameters = sum(math.prod(tensor.shape) for tensor in recipe.source.tensors.values())
    fits = BYTES_PER_PARAMETER * parameters <= SHARE * available_memory()
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


def _measure(
    recipe: Recipe, subject: Subject, network: str, case: Case, outputs: Arrays, expected: Arrays
) -> Iterator[Metric]:
    for name, reference_value in expected.items():
        max_abs = float(np.abs(outputs[name] - reference_value).max())
        largest = float(np.abs(reference_value).max())
        # a network that is still all zeros has no scale: then nothing but zeros will do
        max_rel = max_abs / largest if largest else max_abs * math.inf if max_abs else 0.0
        yield Metric(
            component=recipe.name,
            output=name,
            subject=subject,
            case=case.kind,
            network=network,
            sizes=dict(case.sizes),
            max_abs=max_abs if math.isfinite(max_rel) else math.inf,
            max_rel=max_rel if math.isfinite(max_rel) else math.inf,
            tolerance=TOLERANCES[recipe.precision, subject],
        )
