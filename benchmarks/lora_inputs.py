"""Measures a step with LoRAs as denoiser inputs, against the plain graph and merged weights.

    python -m benchmarks.lora_inputs engines/demo engines/mid

The bundles are plain ones, which `eri demo` and `python -m benchmarks.backends --make-mid` write;
the graph with inputs is built from them, with a copy of the same weights. Two images with CFG; each
LoRA has rank 32 at every linear layer. Each way has its own pipeline, whose shapes never change, as
OpenVINO becomes slower once they do. Within a round every way runs once, so that other load, which
the load averages show, affects all of them alike. Ratios are to the plain graph's time in the same
round; `low` and `high` are quartiles. `error` is of the final latents: zero factors against the
plain graph, the others against merged weights, which take two calls for one LoRA per image. Prints
a table, and writes benchmarks/results/lora_inputs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import eri_runtime as eri
from eri_export.graphs.passes.lora_inputs import add_lora_inputs
from eri_export.graphs.step_graph import compose
from eri_runtime import executors
from eri_runtime.bundle import LORAS, RANK, Bundle, ShapeRange
from eri_runtime.commands.subcommand import say

RESULTS = Path(__file__).parent / "results"
ENGINES = ("cpu", "openvino")
LARGEST = 64  # maximum latents per side
RANKS, STEPS, IMAGES, GAIN = 32, 2, 2, 0.1
PREFIX = {"sdxl": "unet", "sd35": "transformer", "flux": "transformer"}
WAYS: Mapping[str, Any] = {
    "zeros": None,
    "shared": {"a": 1.0},
    "per image": [{"a": 1.0}, {"b": 1.0}],
}
Run = Callable[[], np.ndarray]


def main() -> None:
    """Measures the bundles, prints tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60, help="maximum time of each comparison")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "lora_inputs.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()}
    for path in options.bundles:
        with tempfile.TemporaryDirectory() as folder:
            plain = eri.read_bundle(path)
            with_inputs = bundle_with_inputs(plain, Path(folder))
            found = {
                name: measured(plain, with_inputs, name, options.rounds, options.seconds)
                for name in ENGINES
                if not executors.refusals(plain, name)
            }
        results[path.name] = {**subject(with_inputs), "engines": found}
        results["load_after"] = os.getloadavg()
        options.output.write_text(json.dumps(results) + "\n", encoding="utf-8")
        for line in table(path.name, results[path.name]):
            say(line)


def machine() -> dict[str, Any]:
    """Returns the cores and versions of the measurement."""
    packages = {name: version(name) for name in ("numpy", "onnxruntime", "openvino")}
    cores = len(os.sched_getaffinity(0))
    return {"cores": cores, "threads": 1, "python": platform.python_version(), **packages}


def subject(bundle: Bundle) -> dict[str, Any]:
    """Returns the facts of a bundle and its workload."""
    spec = bundle.components["denoiser"]
    return {
        "family": bundle.family,
        "precision": spec.precision,
        "parameters": spec.parameters,
        "layers": len(spec.lora.targets),
        "rank": RANKS,
        "images": IMAGES,
        "conditions": 2,
        **size(bundle),
    }


def size(bundle: Bundle) -> dict[str, int]:
    """Returns the image size as arguments of a call."""
    side = min(bundle.defaults.height, LARGEST * bundle.latents.factor)
    return {"height": side, "width": side}


def bundle_with_inputs(bundle: Bundle, folder: Path) -> Bundle:
    """Returns the bundle with a denoiser and a step graph in `folder` that take LoRAs as inputs."""
    spec = bundle.components["denoiser"]
    shutil.copy(bundle.path(spec.weights), folder)
    model = ir.load(bundle.path(spec.graph))
    inputs = (*spec.inputs, *add_lora_inputs(model))
    paths = [folder / name for name in ("model.onnx", "step.onnx")]
    ir.save(model, paths[0])
    compose(model)
    ir.save(model, paths[1])
    most = {LORAS: spec.ranges["batch"].max, RANK: RANKS}
    ranges = {name: ShapeRange(min=1, opt=1, max=n) for name, n in most.items()}
    spec = replace(
        spec,
        graph=str(paths[0]),
        step=str(paths[1]),
        step_per_image=True,
        inputs=inputs,
        ranges={**spec.ranges, **ranges},
    )
    return replace(bundle, pins=None, components={**bundle.components, "denoiser": spec})


def lora(bundle: Bundle, seed: int) -> dict[str, np.ndarray]:
    """Returns the tensors of a LoRA at every linear layer, in diffusers' names."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (out, width) in bundle.components["denoiser"].lora.targets.items():
        key = f"{PREFIX[bundle.family]}.{name.removesuffix('.weight')}"
        down = rng.standard_normal((RANKS, width), np.float32) * np.float32(width**-0.5)
        up = rng.standard_normal((out, RANKS), np.float32) * np.float32(GAIN * RANKS**-0.5)
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    return tensors


def measured(
    plain: Bundle, with_inputs: Bundle, backend: str, rounds: int, seconds: float
) -> dict[str, Any]:
    """Times a step of every way in one interleaved run, and measures its error."""
    loras = {name: lora(with_inputs, seed) for seed, name in enumerate("ab")}
    inputs = dict.fromkeys(WAYS, with_inputs)
    with ExitStack() as stack:
        pipes = {
            name: stack.enter_context(opened(bundle, backend))
            for name, bundle in {"plain": plain, "merged": plain, **inputs}.items()
        }
        for way in ("merged", *WAYS):
            for name, tensors in loras.items():
                pipes[way].load_lora(tensors, 0, name=name)
        expected = {"zeros": call(pipes["plain"])()}
        each = []
        for image, name in enumerate(loras):
            pipes["merged"].set_loras({name: 1.0})
            each.append(call(pipes["merged"])()[image])
        expected["per image"] = np.stack(each)
        pipes["merged"].set_loras({"a": 1.0})
        expected["shared"] = call(pipes["merged"])()
        runs: dict[str, Run] = {name: call(pipes[name]) for name in ("plain", "merged")}
        runs |= {name: call(pipes[name], loras=loras) for name, loras in WAYS.items()}
        errors = {name: error(runs[name](), value) for name, value in expected.items()}
        times = in_turn(runs, rounds, seconds)
    return {
        name: {
            "step_ms": spread(walls * 1e3),
            "ratio": spread(walls / times["plain"]),
            "rounds": len(walls),
            "error": errors.get(name),
        }
        for name, walls in times.items()
    }


def opened(bundle: Bundle, backend: str) -> eri.Pipeline:
    """Opens a pipeline with one thread."""
    engine = executors.choose(bundle, backend, threads=1)
    return eri.Pipeline(bundle, engine, engine.stepper)


def call(pipe: eri.Pipeline, **arguments: Any) -> Run:
    """Returns a trajectory from an encoded prompt to the final latents (B, C, h, w)."""
    sides: Any = size(pipe.bundle)
    request = pipe.request(
        "a red heart",
        num_images_per_prompt=IMAGES,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        seed=0,
        **sides,
        **arguments,
    )
    return lambda: list(pipe.denoise(request))[-1].x


def in_turn(runs: Mapping[str, Run], rounds: int, seconds: float) -> dict[str, np.ndarray]:
    """Returns the seconds per step of every way in every round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    for done in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / STEPS)
        if done > 1 and time.perf_counter() > end:
            break
    return {name: np.array(each) for name, each in times.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def error(ours: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference over the largest value."""
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def table(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    """Returns the figures of a bundle as a Markdown table."""
    lines = [
        f"{name}: {found['parameters']:,} parameters, {found['layers']} layers, rank {RANKS}",
        "| engine | way | ms a step | of the plain graph | error |",
        "|---|---|---|---|---|",
    ]
    for engine, ways in found["engines"].items():
        for way, row in ways.items():
            ratio = row["ratio"]
            off = "" if row["error"] is None else f"{row['error']:.1e}"
            lines.append(
                f"| {engine} | {way} | {row['step_ms']['median']:.1f} | {ratio['median']:.2f} "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}) | {off} |"
            )
    return lines


if __name__ == "__main__":
    main()
