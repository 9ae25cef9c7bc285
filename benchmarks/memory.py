"""Measures the peak memory of each mode at 550 million parameters, against diffusers' modes.

    python -m benchmarks.memory build/memory [--size 512] [-o FILE]

Makes a checkpoint in SDXL's layout with random weights and a VAE of SDXL's size, exports it twice
(whole attention, and one head at a time; 9 GB of disk in total), and runs each subject in its own
process, one after the other. RSS is the kernel's peak. PSS, which divides shared pages among the
processes that map them, is sampled. `sharing` compares four concurrent processes on one bundle with
`low_memory` to one such process.

The figures are of one run on one machine. Seconds are of one step with guidance, loading included,
and show what a mode costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layouts import unet, vae
from benchmarks.memory_subjects import CONFIGS, SWITCHES
from eri_runtime.bench.environment import cores, processor, versions
from eri_runtime.bench.process_memory import pss_of
from eri_runtime.memory import TILE

RESULTS = Path(__file__).parent / "results"
UNET = unet(192, (1, 2, 6))
# the size of diffusers' tiles, which is also that of ours
VAE = vae(128) | {"sample_size": TILE}
SIZES = "256:512:1024"
SHARED = (256, 4)  # pixels, processes
EVERY = 0.05  # seconds between two samples of a process


def main() -> None:
    """Makes missing bundles, measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--large", type=int, default=1024, help="size of the VAE tiling rows")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "memory.json")
    options = parser.parse_args()
    make(options.folder)
    results: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()}
    results["sharing"] = sharing(options.folder)
    results["modes"] = dict(modes(options.folder, options.size, options.large))
    results["load_after"] = os.getloadavg()
    options.output.write_text(json.dumps(results, indent=1) + "\n")


def make(folder: Path) -> None:
    """Makes the checkpoint and its two bundles, unless they exist; gates are not its subject."""
    from benchmarks.checkpoints import make_checkpoint
    from eri_export import export
    from eri_export.choices.ranges import make_ranges

    checkpoint, ranges = folder / "checkpoint", make_ranges(size=SIZES)
    if not checkpoint.exists():
        make_checkpoint("sdxl", checkpoint, {"unet": UNET, "vae": VAE})
    for name, slices in (("whole", None), ("sliced", "max")):
        if not (folder / name).exists():
            export(checkpoint, folder / name, ranges=ranges, attention_slice=slices, gate="quick")


def modes(folder: Path, size: int, large: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measures each mode of ours and of diffusers, and the difference of their pictures."""
    for mode in [*CONFIGS, "disk offload"]:
        side, images = (large if "tiling" in mode else size), (2 if "VAE sl" in mode else 1)
        bundle = folder / ("sliced" if mode == "attention slicing" else "whole")
        rows, pictures = {}, {}
        for whose, known, root in (
            ("ours", CONFIGS, bundle),
            ("diffusers", SWITCHES, folder / "checkpoint"),
        ):
            if mode in known:
                rows[whose], pictures[whose] = measured(whose, mode, root, side, images)
        if all(picture is not None for picture in pictures.values()) and len(rows) == 2:
            difference = np.abs(pictures["ours"] - pictures["diffusers"])
            rows["parity"] = {"max": float(difference.max()), "mean": float(difference.mean())}
            rows["rss_ratio"] = round(rows["ours"]["rss"] / rows["diffusers"]["rss"], 3)
        yield mode, {"size": side, "images": images, **rows}
        sys.stdout.write(f"{mode}: {json.dumps(rows)}\n")
        sys.stdout.flush()


def measured(
    whose: str, mode: str, root: Path, size: int, images: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Returns a subject's figures and pictures; if it fails, its last line of output."""
    out = root.parent / "out.npy"
    child = start(whose, mode, root, size, images, out)
    watch = Watch([child.pid])
    output, errors = child.communicate()
    pss = watch.stop()
    if child.returncode:
        return {"failed": errors.strip().splitlines()[-1]}, None
    return {**json.loads(output.splitlines()[-1]), "pss": pss}, np.load(out)


def sharing(folder: Path) -> dict[str, Any]:
    """Measures PSS of one process and of several at once, with `low_memory` on one bundle."""
    size, count = SHARED
    pss = {}
    for processes in (1, count):
        outs = [folder / f"out-{i}.npy" for i in range(processes)]
        children = [start("ours", "low memory", folder / "whole", size, 1, out) for out in outs]
        watch = Watch([child.pid for child in children])
        for child in children:
            if child.wait():
                raise RuntimeError(child.communicate()[1])
        pss[str(processes)] = watch.stop()
    return {"size": size, "pss": pss, "ratio": round(pss[str(count)] / pss["1"], 3)}


def start(
    whose: str, mode: str, root: Path, size: int, images: int, out: Path
) -> subprocess.Popen[str]:
    """Starts a subject's process."""
    arguments = [whose, mode, str(root), str(size), str(images), str(out)]
    return subprocess.Popen(  # noqa: S603 -- our own module
        [sys.executable, "-m", "benchmarks.memory_subjects", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Watch:
    """Samples the total PSS of some processes until `stop`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids, self._most, self._done = pids, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stops and returns the largest total in bytes."""
        self._done.set()
        self._thread.join()
        return self._most

    def _sample(self) -> None:
        while not self._done.wait(EVERY):
            self._most = max(self._most, sum(pss_of(pid) or 0 for pid in self._pids))


def machine() -> Mapping[str, Any]:
    """Returns the machine and versions of the measurement."""
    packages = versions(("numpy", "onnxruntime", "torch", "diffusers", "accelerate"))
    return {"cpu": processor(), "cores": cores(), "python": platform.python_version(), **packages}


if __name__ == "__main__":
    main()
