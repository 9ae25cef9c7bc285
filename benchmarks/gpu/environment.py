"""What the figures were measured on, and with what."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import Settings
from eri_export.machine import available_memory
from eri_runtime.executors.gpu import compute_capability

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt_rtx",
    "cuda-bindings",
    "torch",
    "triton",
    "diffusers",
    "transformers",
)
GPU = ("name", "driver_version", "memory.total", "memory.used", "power.limit", "clocks.max.sm")
PRECISION = {
    "tf32": "off in ONNX Runtime's CUDA provider and in PyTorch",
    "fp16": "PyTorch's reductions as it has them by default",
    "bundles": "the precision of each is in its row",
}


def environment(settings: Settings, command: list[str]) -> dict[str, Any]:
    """Device, versions, commit and what was free at the start."""
    return {
        "device": _device(settings),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "free_memory_mb": round(available_memory() / 1e6),
        "free_disk_mb": round(shutil.disk_usage(_existing(settings.folder)).free / 1e6),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "command": " ".join(["python", "-m", "benchmarks.gpu", *command]),
        "precision": PRECISION,
    }


def _device(settings: Settings) -> dict[str, Any]:
    if settings.device == "cpu":
        return {"kind": "cpu"}
    return {"kind": "cuda", "capability": compute_capability(), **_smi()}


def _smi() -> dict[str, str]:
    """What `nvidia-smi` says of the first GPU; nothing where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = [command, f"--query-gpu={','.join(GPU)}", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603
    rows = list(csv.reader(found.stdout.splitlines(), skipinitialspace=True))
    return dict(zip(GPU, rows[0], strict=False)) if found.returncode == 0 and rows else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit, with `+` where files differ from it; `unknown` outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    root = Path(__file__).parent
    found = subprocess.run(  # noqa: S603
        [git, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(found, sys.platform)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.resolve().parents) if each.is_dir())
