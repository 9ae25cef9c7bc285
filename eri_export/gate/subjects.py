"""Which graphs ONNX Runtime's CPU runs to compare one: the graph, and a 16-bit one's twin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from eri_export.gate.report import Subject
from eri_export.graphs.passes.to_float32 import widen
from eri_runtime.bundle import ComponentSpec


@contextlib.contextmanager
def subjects(
    graph: Path, spec: ComponentSpec, *, one: bool = False
) -> Iterator[list[tuple[Subject, Path]]]:
    """Yields the graphs to run: the graph itself unless it is bf16, and a 16-bit graph's twin.

    Only the first of them if `one`.
    """
    found: list[tuple[Subject, Path]] = [] if spec.precision == "bf16" else [("graph", graph)]
    if spec.precision == "fp32" or (one and found):
        yield found
        return
    model = ir.load(graph)
    widen(model)
    with temporary(model, graph.with_name(".twin.onnx")) as twin:
        yield [*found, ("float32 twin", twin)]


@contextlib.contextmanager
def temporary(model: ir.Model, path: Path) -> Iterator[Path]:
    """Saves `model` next to its weights for the duration of the block."""
    try:
        ir.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
