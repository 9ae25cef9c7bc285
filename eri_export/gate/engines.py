"""Other engines beside PyTorch: how far each is off decides whether `auto` may take it.

One that is too far off, or fails, stops no export; it is left out of the manifest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eri_export.gate.cases import Case
from eri_export.gate.report import TOLERANCES
from eri_export.recipes.base import Arrays
from eri_runtime.errors import EriError
from eri_runtime.executors.base import Backend, Settings
from eri_runtime.executors.openvino import OPENVINO
from eri_runtime.spec import ComponentSpec, Precision

log = logging.getLogger(__name__)

OTHERS: dict[str, Backend] = {"openvino": OPENVINO}
# bfloat16 has 8 bits, so 4e-3 a rounding; nothing else runs such a graph on a CPU
GRAPH_TOLERANCES: Mapping[Precision, float] = {
    "fp32": TOLERANCES["fp32", "graph"],
    "fp16": TOLERANCES["fp16", "graph"],
    "bf16": 5e-2,
}


def close_enough(
    graph: Path, spec: ComponentSpec, cases: Sequence[Case], expected: Sequence[Arrays]
) -> dict[str, float]:
    """The worst relative error of each other engine that is installed and within tolerance."""
    found = {}
    for name, backend in OTHERS.items():
        if backend.refusal(spec) is not None:
            continue
        error, allowed = _worst(backend, graph, spec, cases, expected), GRAPH_TOLERANCES
        if error <= allowed[spec.precision]:
            found[name] = error
        else:
            log.warning("%s: %s is off by %.1e and left out", graph.parent.name, name, error)
    return found


def _worst(
    backend: Backend,
    graph: Path,
    spec: ComponentSpec,
    cases: Sequence[Case],
    expected: Sequence[Arrays],
) -> float:
    """Over all outputs and cases; infinite for what cannot be run, and for NaN."""
    errors = [0.0]
    try:
        with backend.executor(graph, spec, Settings()) as executor:
            for case, outputs in zip(cases, expected, strict=True):
                ours = executor.run(case.inputs)
                errors += [_error(ours[name], value) for name, value in outputs.items()]
    except EriError as error:
        log.info("%s", error)
        return math.inf
    return max(errors)


def _error(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over largest reference value; 0 for equal zeros."""
    with np.errstate(invalid="ignore"):  # what is not finite is infinitely far off
        difference = float(np.abs(ours - expected).max())
    largest = float(np.abs(expected).max())
    relative = difference / largest if largest else difference and math.inf
    return relative if math.isfinite(relative) else math.inf
