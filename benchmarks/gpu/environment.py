"""What the figures were measured on, and with what."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import Settings
from eri_export.machine import available_memory
from eri_runtime.bench.environment import PACKAGES, commit, cores, gpus, processor, versions
from eri_runtime.executors.gpu import compute_capability

PRECISION = {
    "tf32": "off in ONNX Runtime's CUDA provider and in PyTorch",
    "fp16": "PyTorch's reductions as it has them by default",
    "bundles": "the precision of each is in its row",
}


def environment(settings: Settings, command: list[str]) -> dict[str, Any]:
    """Device, versions, commit and what was free at the start."""
    return {
        "device": _device(settings),
        "processor": processor(),
        "cores": cores(),
        "free_memory_mb": round(available_memory() / 1e6),
        "free_disk_mb": round(shutil.disk_usage(_existing(settings.folder)).free / 1e6),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "commit": commit(),
        "command": " ".join(["python", "-m", "benchmarks.gpu", *command]),
        "precision": PRECISION,
    }


def _device(settings: Settings) -> dict[str, Any]:
    if settings.device == "cpu":
        return {"kind": "cpu"}
    return {"kind": "cuda", "capability": compute_capability(), **next(iter(gpus()), {})}


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.resolve().parents) if each.is_dir())
