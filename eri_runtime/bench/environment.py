"""What figures were measured on, and with what; other benchmarks use it too."""

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
    """This one, with the load that it has now."""
    return Machine(
        processor=processor(),
        cores=cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()}",
        gpus=gpus(),
        load_before=load(),
    )


def software() -> Software:
    """Python, the packages that matter and are installed, the commit."""
    return Software(python=platform.python_version(), versions=versions(PACKAGES), commit=commit())


def load() -> float:
    """Processes that wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The first processor's model."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(found, sys.platform)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those that are installed."""
    return {name: found for name in packages if (found := _version(name))}


def gpus() -> tuple[Mapping[str, str], ...]:
    """What `nvidia-smi` says of each GPU; nothing where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, f"--query-gpu={','.join(GPU)}", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603
    if found.returncode:
        return ()
    rows = csv.reader(found.stdout.splitlines(), skipinitialspace=True)
    return tuple(dict(zip(GPU, row, strict=False)) for row in rows if row)


def commit() -> str:
    """The commit, with `+` where files differ from it; `unknown` outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    found = subprocess.run(  # noqa: S603
        [git, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
