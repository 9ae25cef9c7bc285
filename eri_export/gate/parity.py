"""Compares an exported graph with PyTorch in float32, on the same rounded weights.

The reference reads the checkpoint and the graph reads the bundle, so a weight that was written
wrong shows. A network too large for this machine's memory is compared as a copy of few blocks,
traced like the whole and bound to the bundle's own weights; the report says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eri_export.checkpoints import read_headers
from eri_export.gate.cases import Case, cases_of, reduced_for_machine
from eri_export.gate.lora_inputs import filled_with_zeros, lora_cases, run_with_loras
from eri_export.gate.other_engines import engine_errors
from eri_export.gate.pytorch_reference import reference
from eri_export.gate.report import (
    SEGMENTS_TOLERANCES,
    STEP_TOLERANCES,
    TOLERANCES,
    Metric,
    Report,
    Subject,
)
from eri_export.gate.segments import check_segments, run_segments
from eri_export.gate.step_graph import PAGED, STEP, draw_probe, expected_x, run_probe
from eri_export.gate.subjects import subjects, temporary
from eri_export.graphs.passes.lora_inputs import with_loras
from eri_export.graphs.passes.slice_attention import with_slices
from eri_export.graphs.recipes.base import Arrays, Recipe
from eri_export.graphs.trace import trace
from eri_export.weights.weights_file import bind
from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors import OrtExecutor

log = logging.getLogger(__name__)

WHOLE = "whole"
SMALL = "traced at small sizes"  # how a static graph is compared that would run too long


@dataclass(frozen=True)
class Compared:
    """The result of a comparison: the report, and PyTorch's outputs for the real inputs.

    `others` are the errors of the installed engines, except ONNX Runtime, that are within
    tolerance.
    """

    report: Report
    outputs: Arrays | None
    others: Mapping[str, float] = field(default_factory=dict)


def compare(
    recipe: Recipe, graph: Path, spec: ComponentSpec, real: Arrays | None, *, anew: bool = False
) -> Compared:
    """Runs the published `graph` and PyTorch on every case of `recipe`, and on `real` inputs.

    `anew` says that `recipe` is not the one of `graph` and must be traced for the comparison.
    Segments are proved equal to the whole graph, and run too if the whole graph itself is run.
    Raises `ParityError` if the results do not agree.
    """
    check_segments(graph, spec)
    with _runnable(recipe, graph, spec, anew) as (smaller, own, network, served):
        cases, not_run = cases_of(smaller, real)
        cases = [*lora_cases(smaller, served.lora), *cases]
        wrapper = reference(smaller)
        expected = [run_with_loras(smaller, wrapper, case.inputs) for case in cases]
        del wrapper  # frees its memory for the engine
        cases = [filled_with_zeros(case, served.lora) for case in cases]
        served = dataclasses.replace(served, precision="fp32")
        metrics: list[Metric] = []
        with subjects(own, spec) as chosen:
            for subject, path in chosen:
                with OrtExecutor(path, served) as executor:
                    for case, outputs in zip(cases, expected, strict=True):
                        ours = executor.run(case.inputs)
                        metrics += _measure(smaller, subject, network, case, ours, outputs)
                if spec.segments and path == graph:
                    metrics += _segments(smaller, spec, graph, cases[0])
                if spec.step is not None:
                    with OrtExecutor(path, served, settings=PAGED) as executor:
                        probe = draw_probe(smaller, served.lora)
                        by_formula = {"x_next": expected_x(probe, executor.run)}
                    stepped = {"x_next": run_probe(path, graph.with_name(STEP), served, probe)}
                    case = Case("step", probe.sizes, {})
                    metrics += _measure(smaller, subject, network, case, stepped, by_formula)
        report = Report(tuple(metrics), not_run)
        report.check()
        served = dataclasses.replace(served, precision=spec.precision)
        others = engine_errors(own, served, cases, expected)
    return Compared(report, expected[-1] if real is not None else None, others)


def _segments(recipe: Recipe, spec: ComponentSpec, graph: Path, case: Case) -> Iterator[Metric]:
    """Compares the segments with the whole graph on one case, both without packed weights."""
    with OrtExecutor(graph, spec, settings=PAGED) as executor:
        expected = executor.run(case.inputs)
    outputs = run_segments(graph, spec, case.inputs)
    segments = Case("segments", case.sizes, {})
    yield from _measure(recipe, "graph", WHOLE, segments, outputs, expected)


@contextlib.contextmanager
def _runnable(
    recipe: Recipe, graph: Path, spec: ComponentSpec, anew: bool
) -> Iterator[tuple[Recipe, Path, str, ComponentSpec]]:
    """Yields what to compare: recipe, graph, the network's name in the report, and spec.

    They are the arguments themselves, or those of a copy that fits this machine.
    """
    copy = reduced_for_machine(recipe)
    if copy is None and not anew:
        yield recipe, graph, WHOLE, spec
        return
    depth = [] if copy is None else [copy.depth]
    name = ", ".join([*depth, SMALL] if anew else depth)
    log.info("%s: too large for this machine; compared with %s", recipe.name, name)
    smaller = recipe if copy is None else dataclasses.replace(recipe, source=copy.source)
    model = trace(smaller)
    served = with_loras(model, smaller, dataclasses.replace(spec, ranges=smaller.ranges))
    served = with_slices(model, served)
    written = read_headers([graph.with_name("weights.safetensors")])
    bind(model, written if copy is None else copy.tensors(written))
    with temporary(model, graph.with_name(".copy.onnx")) as path:
        yield smaller, path, name, served


def _measure(
    recipe: Recipe, subject: Subject, network: str, case: Case, outputs: Arrays, expected: Arrays
) -> Iterator[Metric]:
    tolerances = {
        "step": STEP_TOLERANCES[recipe.precision, subject],
        "segments": SEGMENTS_TOLERANCES.get(recipe.precision),
    }
    for name, reference_value in expected.items():
        max_abs = float(np.abs(outputs[name] - reference_value).max())
        largest = float(np.abs(reference_value).max())
        # an output of zeros has no scale: then only zeros agree with it
        max_rel = max_abs / largest if largest else max_abs * math.inf if max_abs else 0.0
        yield Metric(
            component=recipe.name,
            output=name,
            precision=recipe.precision,
            subject=subject,
            case=case.kind,
            network=network,
            sizes=dict(case.sizes),
            max_abs=max_abs if math.isfinite(max_rel) else math.inf,
            max_rel=max_rel if math.isfinite(max_rel) else math.inf,
            tolerance=tolerances.get(case.kind) or TOLERANCES[recipe.precision, subject],
        )
