"""The summary that `eri export` prints: the bundle, its time and memory, and its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from eri_export.gate.graph_runs import WHOLE
from eri_export.machine import peak_memory
from eri_export.progress import Stage, Stopwatch
from eri_export.publishing.export_bundle import REPORT
from eri_runtime.bundle import Bundle
from eri_runtime.commands.describe_bundle import component_facts
from eri_runtime.units import megabytes

STAGES: tuple[Stage, ...] = ("trace", "write", "compare", "publish")


def summary_facts(bundle: Bundle) -> dict[str, Any]:
    """Returns what `eri export --json` says about a bundle, as values of JSON."""
    return {
        "bundle": str(bundle.root),
        "family": bundle.family,
        "bytes": bundle.size,
        "peak_memory": peak_memory(),
        "files": [str(bundle.path(name)) for name in sorted(bundle.files)],
        "components": {name: component_facts(each) for name, each in bundle.components.items()},
    }


def summary_lines(bundle: Bundle, watch: Stopwatch, seconds: float) -> Iterator[str]:
    """Yields three lines: the bundle, its time and memory, and its errors against PyTorch."""
    report = json.loads(bundle.path(REPORT).read_text(encoding="utf-8"))
    parts = len(bundle.components)
    count = f"{parts} component{'s' * (parts > 1)}, {len(bundle.files)} files"
    yield f"{bundle.root}  {bundle.family}, {count}, {megabytes(bundle.size)}"
    stages = ", ".join(f"{name} {watch.of(name):.1f} s" for name in STAGES)
    yield f"  {seconds:.1f} s: {stages}; peak memory {megabytes(peak_memory())}"
    yield f"  {_compared(bundle, report)}"


def _compared(bundle: Bundle, report: dict[str, Any]) -> str:
    """Returns the worst error, the networks compared as copies, and the number of ends not run."""
    components = bundle.components
    name = max(components, key=lambda name: components[name].parity)
    error = f"worst error against PyTorch {components[name].parity:.1e}, of {name}"
    copies = {
        f"{metric['component']} ({metric['network']})": None
        for metric in report["metrics"]
        if metric["network"] != WHOLE
    }
    compared = f"compared as copies: {', '.join(copies)}" if copies else "all compared whole"
    ends = len(report["not_run"])
    skipped = f"; {ends} ends of ranges were too long to run" if ends else ""
    one = ", one case of each" if bundle.gate == "quick" else ""
    return f"{error}; {compared}{one}{skipped}"
