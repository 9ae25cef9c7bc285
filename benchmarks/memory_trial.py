"""One trial of `benchmarks.memory_limits`: a picture under a limit, between two smaller ones.

    python -m benchmarks.memory_trial BUNDLE SIZE IMAGES LIMIT_MB OUT.npy

The smallest picture is drawn first, then memory is limited to LIMIT_MB more of address space than
there is by then (0: not at all), the picture of SIZE is asked for, and at last the smallest again.
Prints one line of JSON. Exit status 0: drawn, and saved; 3: `OutOfMemoryError`.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import eri_runtime as eri
from eri_runtime.errors import OutOfMemoryError

WORDS: dict[str, Any] = {
    "prompt": "a red heart",
    "num_inference_steps": 1,
    "guidance_scale": 5.0,
    "seed": 0,
    "output_type": "np",
}
SMALLEST = 128  # pixels


class Lines(logging.Handler):
    """The messages that were logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> int:
    """Run one trial."""
    bundle, size, images, limit, out = sys.argv[1:]
    heard = Lines()
    logging.getLogger("eri_runtime").addHandler(heard)
    told: dict[str, Any] = {}
    with eri.load(bundle, "cpu", threads=2) as pipe:
        before = _drawn(pipe, SMALLEST, 1)
        if int(limit):
            most = _address_space() + (int(limit) << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        begun = time.perf_counter()
        try:
            np.save(out, _drawn(pipe, int(size), int(images)))
            status = 0
        except OutOfMemoryError as error:
            told |= {"error": str(error), "needed": error.needed}
            status = 3
        told["seconds"] = round(time.perf_counter() - begun, 2)
        told["lines"] = list(heard.lines)
        told["same_after"] = bool(np.array_equal(before, _drawn(pipe, SMALLEST, 1)))
    sys.stdout.write(json.dumps(told) + "\n")
    return status


def _drawn(pipe: eri.Pipeline, size: int, images: int) -> np.ndarray:
    made: np.ndarray = pipe(height=size, width=size, num_images_per_prompt=images, **WORDS).images
    return made


def _address_space() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))


if __name__ == "__main__":
    sys.exit(main())
