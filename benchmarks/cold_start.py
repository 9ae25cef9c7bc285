"""Starts from nothing to the first picture, with and without what an earlier process compiled.

    python -m benchmarks.cold_start build/vs [--families sdxl sd35 flux] [--rounds 4] [--diffusers]

The bundles and checkpoints are those of `benchmarks.vs_pytorch`. A start is one process: it makes
one picture of one step and writes it. The ways take turns; each way has been started once before,
so files are in the page cache, weights have been verified and models are kept. Writes
benchmarks/results/cold_start.json: CPU time (user and system) and wall time of every start, the
median of each way, and the median of its rounds' ratios to the first way.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.vs_pytorch import PROMPT, SIZES, make
from eri_runtime.bench.environment import machine, software

RESULTS = Path("benchmarks/results/cold_start.json")
BACKENDS = ("openvino:bf16", "openvino", "cpu")
DIFFUSERS = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
size = int(sys.argv[2])
pipe(sys.argv[3], width=size, height=size, num_inference_steps=1).images[0].save(sys.argv[4])
"""

Times = tuple[float, float]  # seconds of CPU time and of wall time


def main() -> None:
    """Times every family and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--families", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--diffusers", action="store_true", help="time diffusers too")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    families = {}
    for family in options.families:
        checkpoint, bundle = make(family, options.folder)
        commands = ways(family, bundle, checkpoint if options.diffusers else None)
        families[family] = summary(measured(commands, options.rounds))
        sys.stdout.write(f"{family}: {json.dumps(families[family]['medians'])}\n")
        sys.stdout.flush()
    facts = {
        "machine": asdict(machine()),
        "software": asdict(software()),
        "load": os.getloadavg(),
        "families": families,
    }
    options.output.write_text(json.dumps(facts, default=str) + "\n", encoding="utf-8")


def ways(family: str, bundle: Path, checkpoint: Path | None) -> dict[str, list[str]]:
    """Returns the command of each way; the last word is missing: the picture's name."""
    size = SIZES[family]
    base = ["-m", "eri_runtime", "generate", str(bundle), PROMPT, "--steps", "1", "-q"]
    base += ["--size", f"{size}x{size}"]
    found: dict[str, list[str]] = {}
    if checkpoint is not None:
        found["diffusers"] = ["-c", DIFFUSERS, str(checkpoint), str(size), PROMPT]
    for backend in BACKENDS:
        words = [*base, "--backend", backend]
        if backend != "cpu":
            found[f"{backend}, compiled"] = [*words, "--no-cache", "-o"]
        found[backend if backend == "cpu" else f"{backend}, kept"] = [*words, "-o"]
    return found


def measured(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Times]]:
    """Starts every way once unmeasured, and then in turns."""
    times: dict[str, list[Times]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        picture = f"{folder}/picture.png"
        for number in range(rounds + 1):
            for name, command in commands.items():
                found = start([*command, picture])
                if number:
                    times[name].append(found)
    return times


def start(command: Sequence[str]) -> Times:
    """Runs one process and returns its times."""
    environment = {key: value for key, value in os.environ.items() if key not in UNUSUAL}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(  # noqa: S603 -- our own commands
        [sys.executable, *command], check=True, capture_output=True, env=environment
    )
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


UNUSUAL = ("PYTHONDONTWRITEBYTECODE",)  # an installation has its bytecode, a clone gets it now


def summary(times: Mapping[str, Sequence[Times]]) -> dict[str, object]:
    """Returns all times, the medians, and the medians of the ratios to the first way."""
    first = next(iter(times.values()))
    medians = {}
    for name, found in times.items():
        pairs = list(zip(found, first, strict=True))
        medians[name] = {
            "cpu_s": round(median(cpu for cpu, _ in found), 2),
            "wall_s": round(median(wall for _, wall in found), 2),
            "cpu_ratio": round(median(one[0] / other[0] for one, other in pairs), 3),
            "wall_ratio": round(median(one[1] / other[1] for one, other in pairs), 3),
        }
    samples = {name: [[round(s, 3) for s in each] for each in got] for name, got in times.items()}
    return {"medians": medians, "starts": samples}


if __name__ == "__main__":
    main()
