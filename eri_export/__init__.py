"""Exports checkpoints of diffusion models to bundles that `eri_runtime` runs.

Each name is imported on first use: the command line imports this package to register its commands,
and must neither wait for torch nor fail where torch is not installed.

The package is made of rooms: folders that import only from those below them. From the top:
`commands`, `bench` and `embedded`, `tensorrt`, `publishing`, `gate`, `plan`, `weights` and
`pickles`, `graphs`, `checkpoints`, `choices`, then the files `disk`, `machine` and `progress`. Each
folder's docstring says what is in it and where to start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eri_export.checkpoints.checkpoint import Checkpoint
    from eri_export.checkpoints.sources import open_checkpoint
    from eri_export.gate.report import Metric, Report
    from eri_export.plan.plan import Plan, make_plan
    from eri_export.progress import Progress, Stopwatch
    from eri_export.publishing.export_bundle import export

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

_MODULES = {
    "Checkpoint": "checkpoints.checkpoint",
    "Metric": "gate.report",
    "Plan": "plan.plan",
    "Progress": "progress",
    "Report": "gate.report",
    "Stopwatch": "progress",
    "export": "publishing.export_bundle",
    "make_plan": "plan.plan",
    "open_checkpoint": "checkpoints.sources",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
