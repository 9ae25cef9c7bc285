"""Compares ONNX Runtime with OpenVINO on a CPU: components, denoising steps, cold starts.

    python -m benchmarks.backends engines/demo engines/mid
    python -m benchmarks.backends --make-mid engines/mid

Within a round every engine runs once, so that other load affects all of them alike. Ratios are to
ONNX Runtime's time in the same round; `low` and `high` are quartiles. `error` is the largest
difference from ONNX Runtime's outputs over their largest value. The middle-sized bundle has SDXL's
layout, random weights and a UNet of 188 million parameters: its latencies are those of a real
model, its rounding errors are not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.layouts import unet
from eri_runtime.bench.environment import cores, processor, versions
from eri_runtime.bundle import Bundle, ComponentSpec
from eri_runtime.executors import BACKENDS, Arrays, Settings, refusals

RESULTS = Path(__file__).parent / "results"
ENGINES = ("cpu", "openvino", "openvino:bf16")
LARGEST = 64  # maximum latents per side
STEPS = 4
UNET = unet(128, (1, 2, 4))
COLD = """
import json, sys, time
started = time.perf_counter()
import eri_runtime as eri
with eri.load(sys.argv[1], sys.argv[2]) as pipe:
    pipe("a red heart", num_inference_steps=1, seed=0, **json.loads(sys.argv[3]))
print(time.perf_counter() - started)
"""


def main() -> None:
    """Measures the bundles and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--make-mid", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60, help="maximum time of each comparison")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "backends.json")
    options = parser.parse_args()
    if options.make_mid:
        make_mid(options.make_mid)
        return
    bundles = [eri.read_bundle(path) for path in options.bundles]
    results: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()}
    for bundle in bundles:
        results[bundle.root.name] = _bundle(bundle, options.rounds, options.seconds)
        results["load_after"] = os.getloadavg()
        options.output.write_text(json.dumps(results) + "\n")


def make_mid(folder: Path) -> None:
    """Exports SDXL's layout with random weights: a middle-sized UNet, small encoders and VAE."""
    from benchmarks.checkpoints import make_checkpoint
    from eri_export import export

    root = folder.with_name(folder.name + "-checkpoint")
    export(make_checkpoint("sdxl", root, {"unet": UNET}), folder)


def machine() -> dict[str, Any]:
    """Returns the machine and versions of the measurement."""
    packages = versions(("numpy", "onnxruntime", "openvino"))
    return {"cpu": processor(), "cores": cores(), "python": platform.python_version(), **packages}


def _bundle(bundle: Bundle, rounds: int, seconds: float) -> dict[str, Any]:
    """Measures the components, the steps and the cold starts of a bundle."""
    engines = [name for name in ENGINES if not refusals(bundle, name)]
    size = min(bundle.defaults.height, LARGEST * bundle.latents.factor)
    sides = {"height": size, "width": size}
    return {
        "words": sides,
        "components": {
            name: _component(bundle, name, engines, rounds, seconds) for name in bundle.components
        },
        "step": _steps(bundle, engines, sides, rounds, seconds),
        "cold_start": _cold(bundle, engines, sides),
    }


def _component(
    bundle: Bundle, name: str, engines: list[str], rounds: int, seconds: float
) -> dict[str, Any]:
    """Measures one component on all engines."""
    spec = bundle.components[name]
    inputs = random_inputs(spec)
    with ExitStack() as stack:
        opened = {
            each: stack.enter_context(
                BACKENDS[each].executor(bundle.path(spec.graph), spec, Settings())
            )
            for each in engines
        }
        outputs = {each: executor.run(inputs) for each, executor in opened.items()}
        runs = {each: lambda e=executor: e.run(inputs) for each, executor in opened.items()}
        times = _in_turn(runs, rounds, seconds)
    shapes = {key: list(value.shape) for key, value in inputs.items()}
    errors = {each: _error(output, outputs["cpu"]) for each, output in outputs.items()}
    return {"precision": spec.precision, "inputs": shapes, "engines": _summary(times, errors)}


def _steps(
    bundle: Bundle, engines: list[str], sides: Mapping[str, int], rounds: int, seconds: float
) -> dict[str, Any]:
    """Measures a step of the whole loop with guidance, after the text encoding."""
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(eri.load(bundle.root, name)) for name in engines}
        latents, runs = {}, {}
        for name, pipe in pipes.items():
            request = pipe.request(
                "a red heart",
                num_inference_steps=STEPS,
                guidance_scale=4.0,
                seed=0,
                height=sides["height"],
                width=sides["width"],
            )
            latents[name] = {"latents": list(pipe.denoise(request))[-1].x}
            runs[name] = lambda p=pipe, r=request: list(p.denoise(r))
        times = {k: v / STEPS for k, v in _in_turn(runs, rounds, seconds).items()}
    errors = {name: _error(final, latents["cpu"]) for name, final in latents.items()}
    return {"steps": STEPS, "guidance": 4.0, "engines": _summary(times, errors)}


def _cold(bundle: Bundle, engines: list[str], sides: Mapping[str, int]) -> dict[str, Any]:
    """Measures the seconds of a fresh process from its first import to a one-step picture."""
    arguments = [str(bundle.root), json.dumps(sides)]
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(3):
        for name in engines:
            command = [sys.executable, "-c", COLD, arguments[0], name, arguments[1]]
            times[name].append(float(subprocess.check_output(command, text=True)))  # noqa: S603
    return {name: {"median": statistics.median(v), "all": v} for name, v in times.items()}


def random_inputs(spec: ComponentSpec) -> Arrays:
    """Draws inputs of a component at its usual sizes, the same in every process."""
    rng = np.random.default_rng(0)
    sizes = {name: min(each.opt, LARGEST) for name, each in spec.ranges.items()}
    sizes["batch"] = min(2, spec.ranges["batch"].max)
    inputs: dict[str, Any] = {}
    for tensor in spec.inputs:
        shape = tuple(each if isinstance(each, int) else sizes[each] for each in tensor.shape)
        normal = tensor.dtype == "float32"
        inputs[tensor.name] = (
            rng.standard_normal(shape, np.float32) if normal else rng.integers(0, 100, shape)
        )
    return inputs


def _in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, np.ndarray]:
    """Returns the seconds of every run in every round but the first."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for done in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
        if done > 2 and time.perf_counter() > end:
            break
    return {name: np.array(each[1:]) for name, each in times.items()}


def _summary(times: Mapping[str, np.ndarray], errors: Mapping[str, float]) -> dict[str, Any]:
    """Returns times, ratios to ONNX Runtime and errors of each engine."""

    def spread(values: np.ndarray) -> dict[str, float]:
        low, median, high = np.percentile(values, (25, 50, 75))
        return {"median": float(median), "low": float(low), "high": float(high)}

    return {
        name: {
            "ms": {**spread(each * 1e3), "best": float(each.min() * 1e3), "rounds": len(each)},
            "ratio": spread(each / times["cpu"]),
            "error": errors[name],
        }
        for name, each in times.items()
    }


def _error(ours: Arrays, expected: Arrays) -> float:
    """Returns the largest difference over the largest value of each output."""
    return max(float(np.abs(ours[k] - v).max() / np.abs(v).max()) for k, v in expected.items())


if __name__ == "__main__":
    main()
