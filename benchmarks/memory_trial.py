"""Runs one trial of `benchmarks.memory_limits`: a picture under a limit, between two small ones.

    python -m benchmarks.memory_trial BUNDLE SIZE IMAGES LIMIT_MB OUT.npy

Draws the smallest picture, limits the address space to LIMIT_MB more than the process has then (0:
no limit), draws the picture of SIZE, and draws the smallest picture again. Prints one line of JSON.
Exit status 0: drawn and saved; 3: `OutOfMemoryError`.
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
    """Collects the logged messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message."""
        self.lines.append(record.getMessage())


def main() -> int:
    """Runs one trial and returns the exit status."""
    bundle, size, images, limit, out = sys.argv[1:]
    log = Lines()
    logging.getLogger("eri_runtime").addHandler(log)
    result: dict[str, Any] = {}
    with eri.load(bundle, "cpu", threads=2) as pipe:
        before = _draw(pipe, SMALLEST, 1)
        if int(limit):
            most = _address_space() + (int(limit) << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        started = time.perf_counter()
        try:
            np.save(out, _draw(pipe, int(size), int(images)))
            status = 0
        except OutOfMemoryError as error:
            result |= {"error": str(error), "needed": error.needed}
            status = 3
        result["seconds"] = round(time.perf_counter() - started, 2)
        result["lines"] = list(log.lines)
        result["same_after"] = bool(np.array_equal(before, _draw(pipe, SMALLEST, 1)))
    sys.stdout.write(json.dumps(result) + "\n")
    return status


def _draw(pipe: eri.Pipeline, size: int, images: int) -> np.ndarray:
    """Draws square pictures, (B, size, size, 3) float32."""
    result = pipe(height=size, width=size, num_images_per_prompt=images, **WORDS)
    pixels: np.ndarray = result.images
    return pixels


def _address_space() -> int:
    """Returns the bytes of address space of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))


if __name__ == "__main__":
    sys.exit(main())
