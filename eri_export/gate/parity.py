"""Compares an exported graph with PyTorch in float32, on the same rounded weights.

The reference reads the checkpoint and the graph reads the bundle, so a weight that was written
wrong shows. A network that does not fit in the gate's memory is run a part at a time, to the same
outputs. A network too large to run in a few minutes is compared as a copy of few blocks, traced
like the whole and bound to the bundle's own weights; the report says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eri_export.checkpoints import read_headers
from eri_export.choices import USUAL_GATE, Gate
from eri_export.gate.cases import Case, NotRun, cases_of, reduced_for_machine
from eri_export.gate.graph_runs import WHOLE, GraphRuns, measure_graph
from eri_export.gate.lora_inputs import filled_with_zeros, lora_cases, run_with_loras
from eri_export.gate.other_engines import engine_errors
from eri_export.gate.pytorch_reference import reference
from eri_export.gate.report import Report
from eri_export.gate.segments import check_segments, check_step_graph
from eri_export.gate.step_graph import STEP
from eri_export.gate.streamed_reference import run_streamed
from eri_export.gate.subjects import subjects, temporary
from eri_export.gate.window import window_of
from eri_export.graphs.passes.lora_inputs import with_loras
from eri_export.graphs.passes.slice_attention import with_slices
from eri_export.graphs.recipes.base import Arrays, Recipe
from eri_export.graphs.trace import trace
from eri_export.weights.weights_file import bind
from eri_runtime.bundle import ComponentSpec, LoraSpec

log = logging.getLogger(__name__)

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
    recipe: Recipe,
    graph: Path,
    spec: ComponentSpec,
    real: Arrays | None,
    *,
    anew: bool = False,
    gate: Gate = USUAL_GATE,
) -> Compared:
    """Runs the published `graph` and PyTorch on every case of `recipe`, and on `real` inputs.

    `anew` says that `recipe` is not the one of `graph` and must be traced for the comparison. A
    network that does not fit in the memory of `gate` is run a part at a time, by PyTorch and by the
    engines. Segments are proved equal to the whole graph, and run too if the graph itself is run
    in one piece. A quick gate runs one case on the graph, or on its twin if it is bf16, and proves
    the step graph equal too. Raises `ParityError` if the results do not agree.
    """
    check_segments(graph, spec)
    quick = gate.kind == "quick"
    if quick and spec.step is not None:
        check_step_graph(graph, graph.with_name(STEP))
    with _runnable(recipe, graph, spec, anew) as (smaller, own, network, served):
        cases, not_run = _cases(smaller, served.lora, real, gate)
        gc.collect()  # graphs are full of circles
        window, parameters = window_of(gate), smaller.source.parameters
        parts = None if window.holds(parameters) else window.parts(parameters)
        expected = _reference(smaller, cases, parts)
        cases = [filled_with_zeros(case, served.lora) for case in cases]
        served = dataclasses.replace(served, precision="fp32")
        runs = GraphRuns(smaller, graph, spec, served, network, cases, expected, parts, quick)
        with subjects(own, spec, one=quick) as chosen:
            metrics = [metric for each in chosen for metric in measure_graph(runs, *each)]
        report = Report(tuple(metrics), not_run, gate.kind)
        report.check()
        served = dataclasses.replace(served, precision=spec.precision)
        others = engine_errors(own, served, cases, expected, parts)
    return Compared(report, expected[-1] if real is not None else None, others)


def _cases(
    recipe: Recipe, lora: LoraSpec | None, real: Arrays | None, gate: Gate
) -> tuple[list[Case], tuple[NotRun, ...]]:
    """Returns the cases of a gate; the one of a quick gate has LoRAs if the graph takes any."""
    cases, not_run = cases_of(recipe, real, gate.kind)
    loras = lora_cases(recipe, lora)
    return (loras or cases if gate.kind == "quick" else [*loras, *cases]), not_run


def _reference(recipe: Recipe, cases: Sequence[Case], parts: int | None) -> list[Arrays]:
    """Returns PyTorch's outputs; with a number of `parts`, a layer at a time."""
    if parts is not None:
        return run_streamed(recipe, [case.inputs for case in cases])
    wrapper = reference(recipe)
    return [run_with_loras(recipe, wrapper, case.inputs) for case in cases]


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
