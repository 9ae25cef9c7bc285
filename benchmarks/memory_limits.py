"""Checks that out of memory ends in a correct picture or a typed error, and in nothing else.

    python -m benchmarks.memory_limits build/limits [-o FILE]

A bundle in SDXL's layout with random weights (34 million parameters in the UNet, a VAE of half
SDXL's width) draws pictures of five sizes in processes with little memory: a limited address space
(RLIMIT_AS), which refuses memory, or a memory cgroup, which kills the process. The cgroup needs
root and cgroup v1 or v2; without it the results say so.

A trial passes if it ends with a picture within `TOLERANCE` of the unlimited one (which allows for
the seams of a tiled VAE) or with `OutOfMemoryError`, and if the same pipeline then draws the
smallest picture bit-identically.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layouts import unet, vae
from benchmarks.memory import RESULTS, machine

UNET = unet(64, (1, 1, 4))
VAE = vae(64)
SIZES = "128:512:1024"
TRIALS = ((256, 1), (384, 2), (512, 1), (768, 1), (1024, 1))  # pixels, images
ADDRESS_SPACE = (40, 250, 700, 2000)  # MB beyond what an open pipeline has
CGROUP = (200, 350, 700, 1800)  # MB in total
TOLERANCE = 0.25  # of 1: tiles of a random VAE differ in their statistics
TIMEOUT = 300  # seconds; a longer trial counts as a hang
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


def main() -> None:
    """Makes the bundle, runs all trials and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "memory_limits.json")
    options = parser.parse_args()
    make(options.folder)
    rows = []
    for row in trials(options.folder):
        rows.append(row)
        options.output.write_text(json.dumps(summary(rows)) + "\n")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows so far, counted by outcome."""
    limited = [row for row in rows if row["limit"] is not None]
    names = sorted({row["end"] for row in limited})
    return {
        "machine": machine(),
        "trials": len(limited),
        "ends": {end: sum(row["end"] == end for row in limited) for end in names},
        "same_after": sum(row.get("same_after", False) for row in limited),
        "cgroup": group_root() is not None,
        "rows": rows,
    }


def make(folder: Path) -> None:
    """Makes the checkpoint and its bundle, unless they exist."""
    if (folder / "bundle").exists():
        return
    from benchmarks.checkpoints import make_checkpoint
    from eri_export import export
    from eri_export.choices.ranges import make_ranges

    checkpoint = make_checkpoint("sdxl", folder / "checkpoint", {"unet": UNET, "vae": VAE})
    export(checkpoint, folder / "bundle", ranges=make_ranges(size=SIZES))


def trials(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields every size under every limit, compared with the unlimited picture."""
    root = group_root()
    for size, images in TRIALS:
        free = folder / "free.npy"
        unlimited = trial(folder, size, images, 0, free)
        expected = np.load(free)
        yield {"limit": None, **unlimited, **verdict(unlimited, free, expected)}
        kinds: list[tuple[str, int, int, Callable[[], object] | None]]
        kinds = [("address space", limit, limit, None) for limit in ADDRESS_SPACE]
        if root is not None:
            kinds += [("cgroup", limit, 0, Group(root, limit << 20).enter) for limit in CGROUP]
        for kind, limit, space, enter in kinds:
            out = folder / "limited.npy"
            out.unlink(missing_ok=True)
            row = trial(folder, size, images, space, out, enter)
            row = {"kind": kind, "limit": limit, **row, **verdict(row, out, expected)}
            sys.stdout.write(f"{size} x{images} {kind} {limit} MB: {row['end']}\n")
            sys.stdout.flush()
            yield row
    if root is not None:
        Group(root, 0).folder.rmdir()


def trial(
    folder: Path,
    size: int,
    images: int,
    space: int,
    out: Path,
    enter: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Runs one process; returns its output and exit status."""
    arguments = [str(folder / "bundle"), str(size), str(images), str(space), str(out)]
    row: dict[str, Any] = {"size": size, "images": images}
    try:
        done = subprocess.run(  # noqa: S603 -- our own module
            [sys.executable, "-m", "benchmarks.memory_trial", *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            preexec_fn=enter,
        )
    except subprocess.TimeoutExpired:
        return {**row, "status": "hang"}
    row["status"] = done.returncode
    if done.returncode in (0, 3):
        return {**row, **json.loads(done.stdout.splitlines()[-1])}
    return {**row, "complaint": (done.stderr.strip().splitlines() or [""])[-1]}


def verdict(row: dict[str, Any], out: Path, expected: np.ndarray) -> dict[str, Any]:
    """Returns how a trial ended."""
    if row["status"] == 3:
        return {"end": "typed error"}
    if row["status"] != 0:
        return {"end": "hang" if row["status"] == "hang" else "crash"}
    difference = float(np.abs(np.load(out) - expected).max())
    right = "right picture" if difference < 1e-4 else "right picture, tiled"
    return {"apart": difference, "end": right if difference < TOLERANCE else "wrong picture"}


class Group:
    """A memory cgroup with a limit in bytes, which a child process enters before it starts."""

    def __init__(self, root: Path, limit: int) -> None:
        self.folder, self._limit = root / f"eri-limit-{os.getpid()}", limit

    def enter(self) -> None:
        """Makes the group, limits it and enters it; runs in the child."""
        self.folder.mkdir(exist_ok=True)
        old = self.folder / "memory.limit_in_bytes"
        (old if old.exists() else self.folder / "memory.max").write_text(str(self._limit))
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))


def group_root() -> Path | None:
    """Returns where a memory cgroup can be made, or None."""
    for root in GROUPS:
        probe = root / f"eri-probe-{os.getpid()}"
        try:
            probe.mkdir()
        except OSError:
            continue
        limited = any((probe / n).exists() for n in ("memory.limit_in_bytes", "memory.max"))
        probe.rmdir()
        if limited:
            return root
    return None


if __name__ == "__main__":
    main()
