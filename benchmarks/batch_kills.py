"""What becomes of a run over many prompts that is killed again and again, and gone on with.

    python -m benchmarks.batch_kills engines/demo

Runs `eri generate --prompts` over 200 prompts on ONNX Runtime and ends it by SIGKILL at random
moments: while it starts, while it draws, while a file is partly written, right after an image was
renamed into its place. Then it is gone on with to the end, and its images are compared with those
of a run that nothing disturbed. Counts go to benchmarks/results/batch_kills.json: `redone` are the
images that were whole and made again all the same. One that is missing, there twice, damaged or not
what the manifest says ends the benchmark with an error and no results.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from eri_runtime import manifest
from eri_runtime.cli import main as eri
from eri_runtime.result import eri_version
from tests.killed_runs import kill_often, manifest_of

RESULTS = Path(__file__).parent / "results"
COLOURS = ("red", "blue", "green", "yellow", "black")
THINGS = ("heart", "star", "apple", "cat", "tree", "car", "house", "moon")
COUNT = 200


def main() -> None:
    """Kill, go on, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", default="4")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        prompts = Path(root) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(_job(i)) + "\n" for i in range(COUNT)))
        words = ["generate", str(options.bundle), "--prompts", str(prompts), "--seed", "0"]
        words += ["--backend", "cpu", "--steps", options.steps, "--batch", "4"]
        folders = {name: Path(root) / name for name in ("killed", "whole")}
        found = kill_often(
            folders["killed"], [*words, "-o", str(folders["killed"])], options.kills, seed=0
        )
        if eri([*words, "-o", str(folders["whole"])]):
            sys.exit("the undisturbed run failed")
        same = manifest_of(folders["killed"]) == manifest_of(folders["whole"])
    report = {
        "bundle": manifest.read(options.bundle).root.resolve().name,
        "prompts": COUNT,
        "steps": int(options.steps),
        "images_at_once": 4,
        **found,
        "same_bytes_as_undisturbed": same,
        "seconds": round(time.perf_counter() - started),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "onnxruntime", "pillow")},
            "eri": eri_version(),
        },
    }
    (RESULTS / "batch_kills.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stderr.write(json.dumps(report, indent=2) + "\n")


def _job(i: int) -> dict[str, object]:
    """A prompt; one in ten has another size, so that batches are of two kinds."""
    prompt = f"a {COLOURS[i % len(COLOURS)]} {THINGS[i % len(THINGS)]}"
    return {"prompt": prompt, **({"size": "64x64"} if i % 10 == 3 else {})}


if __name__ == "__main__":
    main()
