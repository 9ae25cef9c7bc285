"""Compares the step graph of an upgraded bundle with its formula and with the older step graph.

There is no checkpoint to compare with, and no need for one: the network stays as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eri_export.gate.lora_inputs import random_loras
from eri_export.gate.report import STEP_TOLERANCES, Metric, Report, Subject
from eri_export.gate.step_graph import (
    PAGED,
    SEED,
    Probe,
    bare_inputs,
    expected_x,
    make_probe,
    probe_sizes,
    run_probe,
    run_step,
)
from eri_export.gate.subjects import subjects, temporary
from eri_export.graphs.load_graph import load_graph
from eri_export.graphs.passes.to_float32 import widen
from eri_export.graphs.recipes.base import Sizes, resolved
from eri_runtime.bundle import DENOISER, ComponentSpec, ShapeRange
from eri_runtime.executors import Array, OrtExecutor

FORMULA, OLDER = "x_next", "x_next of the older step graph"


def compare_step_graphs(spec: ComponentSpec, bare: Path, step: Path, older: Path | None) -> Report:
    """Runs both step graphs and the bare graph on random inputs of the smallest sizes.

    Temporary graphs are written beside `bare`.

    Args:
        spec: The denoiser's entry in the manifest.
        bare: The denoiser's graph, beside its weights.
        step: The new step graph, beside it.
        older: The one that it replaces. None: there is none.

    Raises:
        ParityError: If the results do not agree.
        BackendError: If ONNX Runtime refuses a graph.
    """
    served = dataclasses.replace(spec, precision="fp32", step_per_image=True)
    metrics: list[Metric] = []
    with subjects(bare, spec) as chosen:
        for subject, path in chosen:
            metrics.append(_by_formula(served, subject, path, step, spec))
            if older is not None:
                metrics.append(_by_older(served, subject, path, step, spec, older))
    report = Report(tuple(metrics))
    report.check()
    return report


def _by_formula(
    served: ComponentSpec, subject: Subject, bare: Path, step: Path, spec: ComponentSpec
) -> Metric:
    probe = _probe(spec, even=False)
    with OrtExecutor(bare, served, settings=PAGED) as executor:
        expected = expected_x(probe, executor.run(bare_inputs(probe))["output"])
    return _metric(spec, subject, FORMULA, probe, run_probe(bare, step, served, probe), expected)


def _by_older(
    served: ComponentSpec,
    subject: Subject,
    bare: Path,
    step: Path,
    spec: ComponentSpec,
    older: Path,
) -> Metric:
    probe, before = _probe(spec, even=True), dataclasses.replace(served, step_per_image=False)
    with _runnable(older, step, subject) as graph:
        expected = run_step(graph, before, probe)
    return _metric(spec, subject, OLDER, probe, run_probe(bare, step, served, probe), expected)


@contextlib.contextmanager
def _runnable(older: Path, step: Path, subject: Subject) -> Iterator[Path]:
    """Yields the older step graph, or its float32 twin, beside the weights of `step`."""
    model = load_graph(older)
    if subject == "float32 twin":
        widen(model)
    with temporary(model, step.with_suffix(".older.onnx")) as path:
        yield path


def _probe(spec: ComponentSpec, *, even: bool) -> Probe:
    """Draws normal inputs of the denoiser, whatever they stand for: both graphs get the same."""
    first = spec.inputs[0].shape[0]
    rows = ShapeRange(min=first, opt=first, max=first) if isinstance(first, int) else None
    sizes = probe_sizes({"batch": rows, **spec.ranges} if rows else spec.ranges)
    rng = np.random.default_rng(SEED)
    inputs = {
        each.name: rng.standard_normal(resolved(each.shape, sizes), np.float32)
        for each in spec.plain_inputs
    }
    return make_probe({**inputs, **random_loras(spec.lora, 1, sizes["batch"])}, sizes, even=even)


def _metric(
    spec: ComponentSpec, subject: Subject, output: str, probe: Probe, ours: Array, expected: Array
) -> Metric:
    """Returns the error of `ours`; NaN and Inf count as infinite."""
    difference, largest = (float(np.abs(each).max()) for each in (ours - expected, expected))
    relative = difference / largest if largest else math.inf
    finite = math.isfinite(relative)
    sizes: Sizes = dict(probe.sizes)
    return Metric(
        component=DENOISER,
        output=output,
        precision=spec.precision,
        subject=subject,
        case="step",
        network="whole",
        sizes=sizes,
        max_abs=difference if finite else math.inf,
        max_rel=relative if finite else math.inf,
        tolerance=STEP_TOLERANCES[spec.precision, subject],
    )
