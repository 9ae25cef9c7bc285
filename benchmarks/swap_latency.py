"""Measures how long new weights wait while threads generate without pause.

    eri demo
    python -m benchmarks.swap_latency engines/demo

With 1, 2 and 4 generating threads, on ONNX Runtime and OpenVINO: first images alone, then images
while another thread changes one bias of the denoiser, again and again with a pause. A change is
served when the images that were being made are done, so its latency is compared with the time of
one image. Rates are images a second of all threads together; those with changes include the pauses
of the changes, in which nothing is drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.lora_swap import machine
from eri_runtime.bundle import DENOISER, read_tensors
from eri_runtime.commands.subcommand import say

RESULTS = Path(__file__).parent / "results" / "swap_latency.json"
ENGINES = ("cpu", "openvino")
THREADS = (1, 2, 4)
PAUSE = 0.3  # seconds between changes
WORDS = {"num_inference_steps": 8, "seed": 0, "output_type": "latent"}


class Generating:
    """Threads that draw images until the block ends, and the seconds of each image."""

    def __init__(self, pipe: eri.Pipeline, count: int) -> None:
        self._pipe, self._stop = pipe, threading.Event()
        self.seconds: list[float] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.perf_counter()
            self._pipe("a red heart", **WORDS)
            self.seconds.append(time.perf_counter() - begun)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the threads, and stops them after their last images."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def main() -> None:
    """Measures, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    before = os.getloadavg()[0]
    for engine in ENGINES:
        for count in THREADS:
            with eri.load(options.bundle, engine, threads=1) as pipe:
                row = {"engine": engine, "threads": count, **measured(pipe, count, options.seconds)}
            rows.append(row)
            say(
                f"{engine:9} {count} threads: an image {row['image']:.2f} s, a change "
                f"p50 {row['p50']:.2f} s, p99 {row['p99']:.2f} s, images/s "
                f"{row['rate']:.2f} alone, {row['rate_with_changes']:.2f} with changes"
            )
    about = {**machine(), "precision": "float32"}
    results = {"machine": about, "load": [before, os.getloadavg()[0]], "rows": rows}
    options.output.write_text(json.dumps(results) + "\n", encoding="utf-8")


def measured(pipe: eri.Pipeline, count: int, seconds: float) -> dict[str, Any]:
    """Returns the times of one engine and number of threads."""
    stored = read_tensors(pipe.bundle.path(pipe.bundle.components[DENOISER].weights))
    name = next(name for name, values in stored.items() if values.ndim == 1)
    weights = [{name: stored[name]}, {name: stored[name] * 2}]
    pipe("a red heart", **WORDS)
    alone, latencies = Generating(pipe, count), []
    with alone.running():
        time.sleep(seconds)
    beside = Generating(pipe, count)
    with beside.running():
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            pipe.update_weights(weights[len(latencies) % 2 == 0])
            latencies.append(time.perf_counter() - begun)
            time.sleep(PAUSE)
    return {
        "image": float(np.median(alone.seconds)),
        "p50": float(np.percentile(latencies, 50)),
        "p99": float(np.percentile(latencies, 99)),
        "changes": len(latencies),
        "rate": len(alone.seconds) / seconds,
        "rate_with_changes": len(beside.seconds) / seconds,
    }


if __name__ == "__main__":
    main()
