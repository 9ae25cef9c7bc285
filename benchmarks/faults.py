"""What is left of an export that is killed, that meets another, or whose disk fills up.

    python -m benchmarks.faults

Runs the trials of tests/export/test_faults.py in larger numbers: real exports of a tiny Flux
checkpoint, SIGKILL at random moments, tmpfs file systems of many sizes. Each trial asserts that
the name holds the old bundle or the new one whole, or none where there was none, and that the
next export removes what was left. The counts go to benchmarks/results/faults.json; `struck_after`
names the last stage that was over.
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
from eri_runtime.result import eri_version
from tests.checkpoints import tiny_flux
from tests.faults import run
from tests.zygote import no_mounts

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
    """Make a checkpoint and its graphs, run every plan, record."""
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
        "failures": 0,  # a trial that does not hold ends this script, and nothing is written
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
