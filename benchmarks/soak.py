"""Looks for leaks: resident memory, descriptors and threads over thousands of generations.

    eri demo
    python -m benchmarks.soak engines/demo

One process runs three phases one after the other: images of one open pipeline, LoRAs that are
loaded, used and unloaded, and pipelines that are opened, used and closed (every second one is only
dropped). What the kernel counts is read at 48 moments of each phase, after `malloc_trim`: free
memory that the allocator keeps grows in steps, and is not lost. The last three quarters of the
samples are put into six blocks of neighbours, which are not independent; the slope of the line
through the blocks' means is the growth per cycle, and its standard error is the error.

A fourth phase is the control: it leaks on purpose, bytes and a descriptor per cycle, and the same
arithmetic must find both. A phase leaks if a slope is more than three errors above 0, and above
what matters: `LIMITS`, in bytes, descriptors and threads per cycle.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eri_runtime as eri
from benchmarks.lora_swap import machine
from eri_runtime.bench.process_memory import rss_of
from eri_runtime.bundle import DENOISER, read_tensors
from eri_runtime.commands.subcommand import say
from eri_runtime.errors import BenchmarkError
from eri_runtime.executors import trim_heap

RESULTS = Path(__file__).parent / "results" / "soak.json"
WORDS = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
SAMPLES = 48
BLOCKS = 6
LEAK = 16 << 10  # bytes that the control leaks per cycle, besides a descriptor
ERRORS = 3  # a slope this many errors above 0 is one
LIMITS = {  # growth per cycle that matters: of bytes, descriptors and threads
    "generations": (1 << 10, 0.01, 0.01),
    "swaps": (16 << 10, 0.02, 0.02),
    "opens": (64 << 10, 0.05, 0.05),
    "control": (1 << 10, 0.01, 0.01),
}
QUANTITIES = ("bytes", "descriptors", "threads")
PREFIX = {"sdxl": "unet.", "sd35": "transformer.", "flux": "transformer."}


@dataclass
class Phase:
    """One kind of cycle, repeated.

    Attributes:
        name: Its name in `LIMITS`.
        cycles: How many there are.
        run: One cycle; gets its index.
    """

    name: str
    cycles: int
    run: Callable[[int], object]

    def measure(self) -> dict[str, Any]:
        """Runs all cycles; returns the samples, the slopes and which of them is a leak."""
        moments = np.unique(np.linspace(0, self.cycles, min(SAMPLES, self.cycles + 1), dtype=int))
        begun, samples = time.perf_counter(), []
        for cycle in range(self.cycles + 1):
            if cycle in moments:
                samples.append(counts())
            if cycle < self.cycles:
                self.run(cycle)
        slopes = {}
        for name, values, limit in zip(
            QUANTITIES, np.transpose(samples), LIMITS[self.name], strict=True
        ):
            slope, error = growth(moments, values)
            leaks = slope > max(limit, ERRORS * error)
            slopes[name] = {"per_cycle": slope, "error": error, "limit": limit, "leaks": leaks}
        kept = max(1, len(moments) // 16)  # the file has a third of them
        return {
            "phase": self.name,
            "cycles": self.cycles,
            "seconds": round(time.perf_counter() - begun, 1),
            "slopes": slopes,
            "samples": {"cycle": moments[::kept].tolist(), **_columns(samples[::kept])},
        }


def _columns(samples: Sequence[tuple[int, int, int]]) -> dict[str, list[int]]:
    """Returns the samples by quantity."""
    return {
        name: list(column)
        for name, column in zip(QUANTITIES, zip(*samples, strict=True), strict=True)
    }


def counts() -> tuple[int, int, int]:
    """Returns resident bytes, open descriptors and threads of this process."""
    gc.collect()
    trim_heap()
    descriptors, threads = (len([*Path(f"/proc/self/{name}").iterdir()]) for name in ("fd", "task"))
    return rss_of(os.getpid()) or 0, descriptors, threads  # the listing's own descriptor is one


def growth(cycles: NDArray[Any], values: NDArray[Any]) -> tuple[float, float]:
    """Returns the slope per cycle and its standard error, without the first quarter.

    The line goes through the means of blocks of neighbouring samples, so that the error is that of
    independent values.
    """
    late = slice(len(cycles) // 4, None)
    blocks = min(BLOCKS, len(cycles[late]))
    x, y = (
        np.array([np.mean(block) for block in np.array_split(each[late].astype(float), blocks)])
        for each in (cycles, values)
    )
    x, y = x - x.mean(), y - y.mean()
    slope = (x * y).sum() / (x**2).sum()
    error = np.sqrt(((y - slope * x) ** 2).sum() / max(1, blocks - 2) / (x**2).sum())
    return float(slope), float(error)


def lora(bundle: eri.Bundle, rank: int = 4) -> dict[str, NDArray[np.float32]]:
    """Returns a random LoRA of the denoiser's attention."""
    shapes = read_tensors(bundle.path(bundle.components[DENOISER].weights)).shapes
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and module.endswith(("to_q", "to_v")):
            key = PREFIX[bundle.family] + module
            for side, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                drawn = rng.standard_normal(size, dtype=np.float32)
                tensors[f"{key}.lora_{side}.weight"] = np.float32(0.05) * drawn
    return tensors


@dataclass
class Leak:
    """What the control holds on to."""

    blocks: list[mmap.mmap] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def grow(self) -> None:
        """Leaks once."""
        block = mmap.mmap(-1, LEAK)  # a mapping: an allocator would first use what it has left
        block.write(b"\1" * LEAK)  # pages that nothing has written to are not resident
        self.blocks.append(block)
        self.descriptors.append(os.open(os.devnull, os.O_RDONLY))

    def close(self) -> None:
        """Closes the descriptors and forgets the bytes."""
        for block in self.blocks:
            block.close()
        for each in self.descriptors:
            os.close(each)
        self.descriptors.clear()
        self.blocks.clear()


def soak(bundle: Path, engine: str, generations: int, swaps: int, opens: int) -> list[Any]:
    """Runs the three phases and the control; returns their rows.

    Raises `BenchmarkError` if the control's leak is not found.
    """
    with eri.load(bundle, engine, threads=1) as pipe:
        tensors = lora(pipe.bundle)

        def generate(_: int) -> None:
            pipe("a red heart", **WORDS)

        def swap(_: int) -> None:
            pipe.load_lora(tensors, 0.5, name="style")
            pipe("a red heart", **WORDS)
            pipe.unload_loras()

        rows = [
            _row(Phase("generations", generations, generate)),
            _row(Phase("swaps", swaps, swap)),
        ]

    def reopen(cycle: int) -> None:
        pipe = eri.load(bundle, engine, threads=1)
        pipe("a red heart", **WORDS)
        if cycle % 2:
            pipe.close()

    rows.append(_row(Phase("opens", opens, reopen)))
    leak = Leak()
    try:
        with eri.load(bundle, engine, threads=1) as pipe:

            def leaking(cycle: int) -> None:
                generate(cycle)
                leak.grow()

            rows.append(_row(Phase("control", max(SAMPLES, generations // 8), leaking)))
    finally:
        leak.close()
    missed = [name for name in QUANTITIES[:2] if not rows[-1]["slopes"][name]["leaks"]]
    if missed:
        raise BenchmarkError("soak", got=f"no leak of {missed[0]}", expected="that of the control")
    return rows


def _row(phase: Phase) -> dict[str, Any]:
    """Measures a phase and prints its slopes."""
    row = phase.measure()
    parts = [
        f"{name} {each['per_cycle']:+,.3f} ± {each['error']:,.3f}"
        + (" LEAKS" if each["leaks"] else "")
        for name, each in row["slopes"].items()
    ]
    say(f"{phase.name:11} {phase.cycles:5} cycles, {row['seconds']:.0f} s; {'; '.join(parts)}")
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the soak, prints the slopes and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--opens", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    before, sizes = os.getloadavg()[0], (options.generations, options.swaps, options.opens)
    rows = soak(options.bundle, options.engine, *sizes)
    about: Mapping[str, Any] = {**machine(), "precision": "float32"}
    results = {
        "machine": about,
        "load": [before, os.getloadavg()[0]],
        "bundle": options.bundle.resolve().name,
        "engine": options.engine,
        "control_leak": {"bytes": LEAK, "descriptors": 1},
        "rows": rows,
    }
    options.output.write_text(json.dumps(results, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
