"""Bundles to build plans from, and what a plan's bytes say of itself.

A plan cannot be opened without a GPU, but its text can be read: names, kernels, and the sizes of
its profiles as rows of int64.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest

from eri_export import export
from eri_export.choices import USUAL, Ranges
from eri_export.embedded import checkpoint
from eri_export.gate.report import Report
from eri_export.publishing import export_bundle as module
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import Bundle, PlanSpec
from tests.support.components import STATIC, only

CAPABILITIES = ("8.6", "8.9")
ENDS = ("min", "opt", "max")
EMBEDDED = ("denoiser", "text_encoder")


def bundle_of(request: pytest.FixtureRequest, family: str, precision: str, target: Path) -> Path:
    """A bundle of a tiny family or of the `embedded` checkpoint at `target`, of its own files.

    A tiny one in 16 bits has fixed sizes, which are traced in half the time, and the embedded one
    has two components.
    """
    if family == "embedded":
        with only(EMBEDDED):
            return exported(checkpoint(), target, precision, USUAL)
    if precision == "fp32":
        return Path(shutil.copytree(request.getfixturevalue(f"{family}_bundle"), target))
    return exported(request.getfixturevalue(f"{family}_checkpoint"), target, precision, STATIC)


def exported(source: Path, target: Path, precision: str, ranges: Ranges) -> Path:
    """Export and compare nothing: other tests do, and it takes most of the time."""

    def compare(*_arguments, **_options):
        return SimpleNamespace(report=Report(()), outputs=None, others={})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compare", compare)
        patch.setattr(module, "real_inputs", lambda *_: None)
        patch.setattr(Report, "worst", lambda *_: 0.0)
        return export(source, target, precision=precision, ranges=ranges).root


def inputs(bundle: Bundle, plan: PlanSpec) -> dict[str, tuple[int | str, ...]]:
    """The inputs of the graph that a plan was built from, read from the graph."""
    graph = ir.load(bundle.path(plan.graph)).graph
    return {
        str(value.name): tuple(d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape)
        for value in graph.inputs
    }


def attention_nodes(bundle: Bundle, plan: PlanSpec) -> list[str]:
    """The names of the graph's attention nodes."""
    graph = ir.load(bundle.path(plan.graph)).graph
    return [str(node.name) for node in graph if node.op_type == "Attention"]


def packed(shape: tuple[int | str, ...], profile, end: str) -> bytes:
    """A shape at one end of a profile as a plan holds it."""
    sizes = [d if isinstance(d, int) else getattr(profile[d], end) for d in shape]
    return struct.pack(f"<{len(sizes)}q", *sizes)


def read(root: Path) -> Iterator[tuple[Bundle, PlanSpec, bytes]]:
    """Every plan of a bundle with its bytes."""
    bundle = manifest.read(root)
    for file, plan in bundle.plans.items():
        yield bundle, plan, bundle.path(file).read_bytes()
