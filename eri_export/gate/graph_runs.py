"""Runs an exported graph and its step graph on all cases, and measures their errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eri_export.gate.cases import Case
from eri_export.gate.graph_parts import graph_parts, run_parts
from eri_export.gate.report import (
    SEGMENTS_TOLERANCES,
    STEP_TOLERANCES,
    TOLERANCES,
    Metric,
    Subject,
)
from eri_export.gate.segments import check_cpu_form, run_segments
from eri_export.gate.step_graph import (
    PAGED,
    STEP,
    Probe,
    bare_inputs,
    draw_probe,
    expected_x,
    run_step,
    step_graph_of,
    step_inputs,
)
from eri_export.graphs.recipes.base import Arrays, Recipe
from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors import Array, OrtExecutor
from eri_runtime.executors.ort.provider import form_of

WHOLE = "whole"
Outputs = tuple[Sequence[Arrays], Arrays]  # of the cases, and of the probe


@dataclass(frozen=True)
class GraphRuns:
    """What to run.

    Attributes:
        recipe: The recipe of the graphs that are run.
        graph: The published graph.
        spec: Its entry in the manifest.
        served: The entry to run with: in float32, with the ranges of `recipe`.
        network: The network's name in the report.
        cases: The inputs.
        expected: PyTorch's outputs for them.
        parts: In how many parts to run the graphs. None: in one piece.
        quick: Whether to check the step graph without running it.
    """

    recipe: Recipe
    graph: Path
    spec: ComponentSpec
    served: ComponentSpec
    network: str
    cases: Sequence[Case]
    expected: Sequence[Arrays]
    parts: int | None
    quick: bool


def measure_graph(runs: GraphRuns, subject: Subject, path: Path) -> Iterator[Metric]:
    """Yields the errors of the graph `path`, of its segments and of its step graph."""
    with_step = runs.spec.step is not None and not runs.quick
    probe = draw_probe(runs.recipe, runs.served.lora) if with_step else None
    outputs, bare = (_whole if runs.parts is None else _in_parts)(runs, path, probe)
    for case, ours, expected in zip(runs.cases, outputs, runs.expected, strict=True):
        yield from _measured(runs, subject, case, ours, expected)
    if runs.parts is None and runs.spec.segments and path == runs.graph and not runs.quick:
        yield from _segments(runs, runs.cases[0])
    if path == runs.graph and (form := form_of(path, "cpu")).exists():
        yield from _form(runs, form)
    if probe is not None:
        by_formula = {"x_next": expected_x(probe, bare["output"])}
        stepped = {"x_next": _stepped(runs, path, probe)}
        yield from _measured(runs, subject, Case("step", probe.sizes, {}), stepped, by_formula)


def _whole(runs: GraphRuns, path: Path, probe: Probe | None) -> Outputs:
    """Returns the graph's outputs for each case, and for the probe of the step graph."""
    with OrtExecutor(path, runs.served) as executor:
        outputs = [executor.run(case.inputs) for case in runs.cases]
    if probe is None:
        return outputs, {}
    with OrtExecutor(path, runs.served, settings=PAGED) as executor:
        return outputs, executor.run(bare_inputs(probe))


def _in_parts(runs: GraphRuns, path: Path, probe: Probe | None) -> Outputs:
    """Returns the same as `_whole`, with the weights of one part in memory."""
    inputs = [case.inputs for case in runs.cases]
    inputs += [] if probe is None else [bare_inputs(probe)]
    names = [output.name for output in runs.spec.outputs]
    with graph_parts(path, runs.served, runs.parts or 1) as cut:
        *outputs, last = run_parts(path, cut, inputs, names)
    return ([*outputs, last], {}) if probe is None else (outputs, last)


def _stepped(runs: GraphRuns, path: Path, probe: Probe) -> Array:
    """Returns the x that the step graph of `path` computes."""
    with step_graph_of(path, runs.graph.with_name(STEP)) as step:
        if runs.parts is None:
            return run_step(step, runs.served, probe)
        with graph_parts(step, runs.served, runs.parts) as cut:
            (outputs,) = run_parts(step, cut, [step_inputs(probe)], ["x_next"])
        return outputs["x_next"]


def _form(runs: GraphRuns, form: Path) -> Iterator[Metric]:
    """Compares the CPU form with PyTorch on one case; where memory is short, it proves the form."""
    if runs.quick or runs.parts is not None:
        check_cpu_form(runs.graph, form)
        return
    case = Case("form", runs.cases[0].sizes, {})
    with OrtExecutor(form, runs.served) as executor:
        outputs = executor.run(runs.cases[0].inputs)
    yield from _measured(runs, "graph", case, outputs, runs.expected[0])


def _segments(runs: GraphRuns, case: Case) -> Iterator[Metric]:
    """Compares the segments with the whole graph on one case, both without packed weights."""
    with OrtExecutor(runs.graph, runs.spec, settings=PAGED) as executor:
        expected = executor.run(case.inputs)
    outputs = run_segments(runs.graph, runs.spec, case.inputs)
    segments = Case("segments", case.sizes, {})
    yield from _measured(runs, "graph", segments, outputs, expected)


def _measured(
    runs: GraphRuns, subject: Subject, case: Case, outputs: Arrays, expected: Arrays
) -> Iterator[Metric]:
    precision = runs.recipe.precision
    tolerances = {
        "step": STEP_TOLERANCES[precision, subject],
        "segments": SEGMENTS_TOLERANCES.get(precision),
    }
    for name, reference_value in expected.items():
        max_abs = float(np.abs(outputs[name] - reference_value).max())
        largest = float(np.abs(reference_value).max())
        # an output of zeros has no scale: then only zeros agree with it
        max_rel = max_abs / largest if largest else max_abs * math.inf if max_abs else 0.0
        yield Metric(
            component=runs.recipe.name,
            output=name,
            precision=precision,
            subject=subject,
            case=case.kind,
            network=runs.network,
            sizes=dict(case.sizes),
            max_abs=max_abs if math.isfinite(max_rel) else math.inf,
            max_rel=max_rel if math.isfinite(max_rel) else math.inf,
            tolerance=tolerances.get(case.kind) or TOLERANCES[precision, subject],
        )
