"""Checkpoints of diffusion models to bundles that `eri_runtime` runs."""

from __future__ import annotations

from eri_export.checkpoint import Checkpoint, open_checkpoint
from eri_export.export import Progress, export
from eri_export.parity import Metric, Report

__all__ = ["Checkpoint", "Metric", "Progress", "Report", "export", "open_checkpoint"]
