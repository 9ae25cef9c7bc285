"""The machine and the software of a measurement; `benchmarks/` uses it too."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from eri_runtime.bench.record import Machine, Software

PACKAGES = (
    "eri-diffusion",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda-bindings",
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "optimum-onnx",
    "optimum-intel",
    "flip-evaluator",
)
GPU = ("name", "driver_version", "memory.total", "memory.used", "power.limit", "clocks.max.sm")


def machine() -> Machine:
    """Returns this machine, with its current load."""
    return Machine(
        processor=processor(),
        cores=cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()}",
        gpus=gpus(),
        load_before=load(),
    )


def software() -> Software:
    """Returns the versions of Python and the installed packages, and the commit."""
    return Software(python=platform.python_version(), versions=versions(PACKAGES), commit=commit())


def load() -> float:
    """Returns the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Returns the model name of the first processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(models, sys.platform)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of the packages that are installed."""
    return {name: installed for name in packages if (installed := _version(name))}


def gpus() -> tuple[Mapping[str, str], ...]:
    """Returns what `nvidia-smi` reports of each GPU; empty if there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, f"--query-gpu={','.join(GPU)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return ()
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return tuple(dict(zip(GPU, row, strict=False)) for row in rows if row)


def commit() -> str:
    """Returns the commit, with `+` if files have changed; `unknown` outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    done = subprocess.run(  # noqa: S603
        [git, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _version(package: str) -> str | None:
    """Returns the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
