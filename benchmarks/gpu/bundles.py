"""The bundles that are measured, each made once: by its digest, which its folder's name ends in."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from benchmarks.gpu.checkpoints import hollow, make_checkpoint
from benchmarks.gpu.settings import ENGINES, Case, Model, Settings
from eri_export import export
from eri_export.gate import cases
from eri_export.ranges import Ranges, make_ranges
from eri_export.trt import BuildOptions, add_plans
from eri_runtime import manifest
from eri_runtime.spec import EngineName

GATE_MEMORY = 8 << 30  # bytes that the export's comparison may think it has


def ranges_of(model: Model) -> Ranges:
    """One size, so that an engine can capture the graph."""
    return make_ranges(size=str(model.size), static=True)


def make_bundle(settings: Settings, case: Case, subject: str) -> Iterator[dict[str, Any]]:
    """Make checkpoint and bundle, unless they are there: one row."""
    started, place = time.perf_counter(), case.bundle(settings.folder)
    there = (place / "manifest.json").is_file()
    if not there:
        _make(settings, case, place)
    bundle = manifest.read(place)
    yield {
        "subject": subject,
        "digest": case.digest,
        "made": "before" if there else "now",
        "precision": case.spec.precision,
        "bytes": sum(each.size for each in bundle.files.values()),
        "parameters": sum(each.parameters for each in bundle.components.values()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _make(settings: Settings, case: Case, place: Path) -> None:
    model, checkpoint = case.spec, case.checkpoint(settings.folder)
    if not checkpoint.is_dir():
        partial = checkpoint.with_name(f"{checkpoint.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_checkpoint(model, partial).rename(checkpoint)
    # the whole network is compared on the device afterwards; a copy of few blocks is enough here
    with patch.object(cases, "available_memory", return_value=GATE_MEMORY):
        export(checkpoint, place, precision=model.precision, ranges=ranges_of(model))
    if model.scale == "full":
        hollow(checkpoint)


def make_plans(settings: Settings, case: Case, subject: str) -> Iterator[dict[str, Any]]:
    """Build the plans of engine `subject`, unless they are there: a row for each."""
    started, bundle = time.perf_counter(), manifest.read(case.bundle(settings.folder))
    assert subject in ENGINES  # noqa: S101 no other backend has plans
    engine = cast(EngineName, subject)
    there = [plan for plan in bundle.plans.values() if plan.engine == engine]
    if not there:
        bundle = add_plans(bundle.root, BuildOptions(engine=engine, profiles=("best",)))
    seconds = round(time.perf_counter() - started, 1)
    for file, plan in bundle.plans.items():
        if plan.engine == engine:
            yield {
                "subject": subject,
                "file": file,
                "made": "before" if there else "now",
                "bytes": bundle.files[file].size,
                "version": plan.version,
                "attention": plan.attention,
                "fused": plan.fused,
                "seconds": seconds,
            }
