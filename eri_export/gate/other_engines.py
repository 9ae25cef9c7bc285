"""Compares other engines with PyTorch; the error decides whether `backend="auto"` may choose one.

An engine that fails or is too inaccurate does not stop the export; the manifest omits it.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_export.gate.cases import Case
from eri_export.gate.graph_parts import graph_parts
from eri_export.gate.report import TOLERANCES
from eri_export.gate.segments import part_paths
from eri_export.graphs.recipes.base import Arrays
from eri_runtime.bundle import ComponentSpec, Precision
from eri_runtime.errors import EriError
from eri_runtime.executors import OPENVINO, Executor, SegmentedExecutor, Settings
from eri_runtime.executors.openvino.backend import OpenVinoBackend

log = logging.getLogger(__name__)

OTHERS: dict[str, OpenVinoBackend] = {"openvino": OPENVINO}
# bfloat16 has 8 bits: 4e-3 per rounding; no other engine runs such a graph on a CPU
GRAPH_TOLERANCES: Mapping[Precision, float] = {
    "fp32": TOLERANCES["fp32", "graph"],
    "fp16": TOLERANCES["fp16", "graph"],
    "bf16": 5e-2,
}


def engine_errors(
    graph: Path,
    spec: ComponentSpec,
    cases: Sequence[Case],
    expected: Sequence[Arrays],
    parts: int | None = None,
) -> dict[str, float]:
    """Returns the worst relative error of each installed engine that is within tolerance.

    With a number of `parts`, an engine runs the last case only, and compiles as many parts of the
    graph, one after the other.
    """
    if parts is not None:
        cases, expected = cases[-1:], expected[-1:]
    errors = {}
    for name, backend in OTHERS.items():
        if backend.refusal(spec) is not None:
            continue
        error, allowed = _worst(backend, graph, spec, cases, expected, parts), GRAPH_TOLERANCES
        if error <= allowed[spec.precision]:
            errors[name] = error
        else:
            log.warning("%s: %s is off by %.1e and left out", graph.parent.name, name, error)
    return errors


def _worst(
    backend: OpenVinoBackend,
    graph: Path,
    spec: ComponentSpec,
    cases: Sequence[Case],
    expected: Sequence[Arrays],
    parts: int | None,
) -> float:
    """Returns the worst error over all outputs and cases; infinite for NaN or a failed run."""
    errors = [0.0]
    try:
        with _opened(backend, graph, spec, parts) as executor:
            for case, outputs in zip(cases, expected, strict=True):
                ours = executor.run(case.inputs)
                errors += [_error(ours[name], value) for name, value in outputs.items()]
    except EriError as error:
        log.info("%s", error)
        return math.inf
    return max(errors)


@contextlib.contextmanager
def _opened(
    backend: OpenVinoBackend, graph: Path, spec: ComponentSpec, parts: int | None
) -> Iterator[Executor]:
    """Opens the graph whole, or so that it runs in so many parts."""
    if parts is None:
        with backend.executor(graph, spec, Settings()) as executor:
            yield executor
        return
    with graph_parts(graph, spec, parts) as cut:
        runner = backend.parts(cut, Settings())
        with SegmentedExecutor(part_paths(graph, cut.segments), cut, runner) as executor:
            yield executor


def _error(ours: NDArray[Any], expected: NDArray[Any]) -> float:
    """Returns the largest difference over the largest reference value; 0 for equal zeros."""
    with np.errstate(invalid="ignore"):  # NaN and Inf give an infinite error below
        difference = float(np.abs(ours - expected).max())
    largest = float(np.abs(expected).max())
    relative = difference / largest if largest else difference and math.inf
    return relative if math.isfinite(relative) else math.inf
