"""Tests exports that are killed, run concurrently, or fill the disk.

    python -m benchmarks.faults

Runs the trials of tests/export/publishing/test_faults.py in larger numbers: real exports of a tiny
Flux checkpoint, SIGKILL at random moments, tmpfs file systems of many sizes. Each trial asserts
that the target is the complete old bundle or the complete new one (or absent, if it was before),
and that the next export removes the leftovers. Writes the counts to benchmarks/results/faults.json;
`struck_after` is the last stage that was finished.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eri_export import export
from eri_runtime.version import eri_version
from tests.support.checkpoints import tiny_flux
from tests.support.faults import run
from tests.support.zygote import no_mounts

RESULTS = Path(__file__).parent / "results"
NO_EXCHANGE = ["no exchange"]
PLANS: dict[str, dict[str, Any]] = {
    "names exchanged (renameat2)": {
        "kills": {"count": 320, "seed": 0},
        "stops": {"count": 40, "seed": 0},
        "meetings": {"rounds": 40},
    },
    "two renames, where names cannot be exchanged": {
        "kills": {"count": 80, "seed": 1, "quirks": NO_EXCHANGE},
        "meetings": {"rounds": 20, "quirks": NO_EXCHANGE},
    },
    "full file systems (tmpfs)": {
        "full_disks": {
            "shares": [number / 20 for number in range(30)],
            "inodes": [*range(1, 24)],
        },
    },
}


def main() -> None:
    """Makes a checkpoint and its graphs, runs every plan and writes the results."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if reason := no_mounts(root):
            sys.exit(f"no file system can be mounted here: {reason}")
        checkpoint = tiny_flux(root / "checkpoint")
        graphs = export(checkpoint, root / "graphs").root
        results = {}
        for number, (name, plan) in enumerate(PLANS.items()):
            work = root / str(number)
            work.mkdir()
            full = "full_disks" in plan
            results[name] = run(
                plan, namespace=full, checkpoint=checkpoint, graphs=graphs, work=work
            )
            sys.stderr.write(f"{name}: {json.dumps(results[name])}\n")
    report = {
        "checkpoint": "tiny random Flux, 1.9 MB",
        "trials": results,
        "failures": 0,  # a failing trial ends this script before it writes anything
        "seconds": round(time.perf_counter() - started),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnxruntime", "tokenizers")},
            "eri": eri_version(),
        },
    }
    (RESULTS / "faults.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
