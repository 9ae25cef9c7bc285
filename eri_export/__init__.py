"""Checkpoints of diffusion models to bundles that `eri_runtime` runs.

The names are loaded when first asked for: the command line reads this package to register its
commands, and must not wait for torch, nor fail where there is none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eri_export.bundle import export
    from eri_export.checkpoint import Checkpoint
    from eri_export.gate.report import Metric, Report
    from eri_export.plan import Plan, make_plan
    from eri_export.progress import Progress, Stopwatch
    from eri_export.sources import open_checkpoint

__all__ = [
    "Checkpoint",
    "Metric",
    "Plan",
    "Progress",
    "Report",
    "Stopwatch",
    "export",
    "make_plan",
    "open_checkpoint",
]

_HOMES = {
    "Checkpoint": "checkpoint",
    "Metric": "gate.report",
    "Plan": "plan",
    "Progress": "progress",
    "Report": "gate.report",
    "Stopwatch": "progress",
    "export": "bundle",
    "make_plan": "plan",
    "open_checkpoint": "sources",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
