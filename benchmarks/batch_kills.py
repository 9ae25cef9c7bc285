"""Kills a run over many prompts again and again, resumes it, and checks the result.

    python -m benchmarks.batch_kills engines/demo

Runs `eri generate --prompts` over 200 prompts on ONNX Runtime and kills it with SIGKILL at random
moments: during start-up, while drawing, in the middle of writing a file, right after renaming an
image. Then the run is resumed to its end, and its images are compared with those of an
uninterrupted run. Writes counts to benchmarks/results/batch_kills.json: `redone` are the images
that were complete and drawn again nevertheless. If an image is missing, duplicated, damaged or
differs from the manifest, the benchmark fails and writes nothing.
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

from eri_runtime.bundle import manifest
from eri_runtime.commands.main import main as eri
from eri_runtime.version import eri_version
from tests.support.killed_runs import kill_often, manifest_of

RESULTS = Path(__file__).parent / "results"
COLOURS = ("red", "blue", "green", "yellow", "black")
THINGS = ("heart", "star", "apple", "cat", "tree", "car", "house", "moon")
COUNT = 200


def main() -> None:
    """Runs both, compares them and writes the results."""
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
        counts = kill_often(
            folders["killed"], [*words, "-o", str(folders["killed"])], options.kills, seed=0
        )
        if eri([*words, "-o", str(folders["whole"])]):
            sys.exit("the uninterrupted run failed")
        same = manifest_of(folders["killed"]) == manifest_of(folders["whole"])
    report = {
        "bundle": manifest.read(options.bundle).root.resolve().name,
        "prompts": COUNT,
        "steps": int(options.steps),
        "images_at_once": 4,
        **counts,
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
    """Returns prompt i; one in ten has another size, so that there are batches of two sizes."""
    prompt = f"a {COLOURS[i % len(COLOURS)]} {THINGS[i % len(THINGS)]}"
    return {"prompt": prompt, **({"size": "64x64"} if i % 10 == 3 else {})}


if __name__ == "__main__":
    main()
