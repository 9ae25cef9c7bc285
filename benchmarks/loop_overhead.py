"""Measures the time of a step outside the network: NumPy's loops, the step graph, diffusers.

    python -m benchmarks.loop_overhead [BUNDLE]

BUNDLE is the embedded checkpoint's, which `eri demo` writes to engines/demo. Every loop runs with
the real network and with one that returns its input; with the latter, the whole step is time
outside the network, including the engine's call and the checks of the bundle's files. Each loop has
one thread; the loops take turns within a round. Writes benchmarks/results/loop_overhead.json, which
also compares the loops' final latents.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from diffusers import StableDiffusion3Pipeline

import eri_runtime as eri
from eri_export.embedded import checkpoint
from eri_export.graphs.step_graph import compose
from eri_runtime import executors
from eri_runtime.bundle import Bundle
from eri_runtime.bundle.hashes import FileRecord, sha256
from eri_runtime.bundle.pinned_files import Pins, file_state
from eri_runtime.loop import Loop

RESULTS = Path(__file__).parent / "results"
PROMPT, GUIDANCE, STEPS, SKIPPED, ROUNDS = "a red heart", 4.0, 40, 5, 12
# backend and loop: OpenVINO has no step graph
OUR_LOOPS: dict[str, tuple[str, Loop]] = {
    "numpy": ("cpu", "numpy"),
    "step": ("cpu", "step"),
    "openvino": ("openvino", "numpy"),
}
LOOPS = (*OUR_LOOPS, "diffusers")
GOAL_US, GOAL_SHARE = 100.0, 0.01
PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "diffusers")
LATENTS = (16, 12, 12)
Trajectory = Callable[[int], tuple[list[float], float, np.ndarray]]
Times = dict[tuple[str, str], list[float]]  # by loop and network


def main() -> None:
    """Measures every loop with both networks, for one image and for four."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("engines/demo"))
    bundle = eri.read_bundle(parser.parse_args().bundle)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bundles = {"real": bundle, "identity": identity_bundle(bundle, Path(folder))}
        results = [measured(bundles, batch) for batch in (1, 4)]
    record = {
        "checkpoint": "embedded sd35, 96x96 pixels, CFG (2 conditions an image), euler",
        "precision": bundle.components["denoiser"].precision,
        "results": results,
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    text = json.dumps(record, indent=2) + "\n"
    (RESULTS / "loop_overhead.json").write_text(text, encoding="utf-8")


def identity_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Returns the bundle with a denoiser that returns its sample, and a step graph around it."""
    spec = bundle.components["denoiser"]
    inputs = [
        ir.Value(name=each.name, shape=ir.Shape(each.shape), type=ir.TensorType(ir.DataType.FLOAT))
        for each in spec.inputs
    ]
    node = ir.node("Identity", inputs[:1])
    (output,) = node.outputs
    output.name, output.shape, output.type = "output", inputs[0].shape, inputs[0].type
    graph = ir.Graph(inputs, [output], nodes=[node], opset_imports={"": 23}, name="identity")
    model = ir.Model(graph, ir_version=10)
    paths = [folder / name for name in ("model.onnx", "step.onnx")]
    ir.save(model, paths[0])
    compose(model)
    ir.save(model, paths[1])
    names = [os.path.relpath(path, bundle.root) for path in paths]
    spec = replace(spec, graph=names[0], step=names[1], step_per_image=True)
    records = {
        name: FileRecord(size=path.stat().st_size, sha256=sha256(path))
        for name, path in zip(names, paths, strict=True)
    }
    files = {**bundle.files, **records}
    pins = Pins({name: file_state(bundle.root / name) for name in files})
    components = {**bundle.components, "denoiser": spec}
    return replace(bundle, pins=pins, files=files, components=components)


def measured(bundles: dict[str, Bundle], batch: int) -> dict[str, object]:
    """Times all loops in one interleaved run; returns medians and ratios."""
    loops = {
        (loop, network): run
        for network in bundles
        for loop, run in (
            *((loop, eri_loop(bundles[network], loop, batch)) for loop in OUR_LOOPS),
            ("diffusers", diffusers_loop(network, batch)),
        )
    }
    walls: Times = {key: [] for key in loops}
    users: Times = {key: [] for key in loops}
    finals: dict[tuple[str, str], np.ndarray] = {}
    for _ in range(ROUNDS):
        for key, run in loops.items():
            steps, user, finals[key] = run(STEPS)
            walls[key] += steps[SKIPPED:]
            users[key].append(user)
    network = float(np.median(walls["step", "real"]))
    return {
        "images": batch,
        **{loop: row(loop, walls, users) for loop in LOOPS},
        "goal_us": max(GOAL_US, GOAL_SHARE * network),
        "outside_over_step_graph": {
            loop: _ratio(walls, (loop, "identity"), ("step", "identity")) for loop in LOOPS
        },
        "whole_step_over_step_graph": {
            loop: _ratio(walls, (loop, "real"), ("step", "real")) for loop in LOOPS
        },
        "final_latents_relative_error": {
            loop: _error(finals[loop, "real"], finals["numpy", "real"]) for loop in LOOPS
        },
        "peak_bytes_allocated_in_a_step": {
            loop: peak(bundles["identity"], loop, batch) for loop in OUR_LOOPS
        },
        "bytes_of_latents": int(finals["step", "real"].nbytes),
    }


def row(loop: str, walls: Times, users: Times) -> dict[str, object]:
    """Returns microseconds outside the network and of the whole step: median, p10, p90."""
    outside, whole = (walls[loop, network] for network in ("identity", "real"))
    return {
        "outside_us": _spread(outside),
        "whole_step_us": _spread(whole),
        "outside_user_cpu_us": round(float(np.median(users[loop, "identity"])), 1),
        "outside_share": round(float(np.median(outside) / np.median(whole)), 5),
    }


def eri_loop(bundle: Bundle, name: str, batch: int) -> Trajectory:
    """Returns our trajectory, which gives microseconds per step, user CPU and final latents."""
    backend, loop = OUR_LOOPS[name]
    engine = executors.choose(bundle, backend, threads=1, cache=False)
    pipe = eri.Pipeline(bundle, engine, engine.stepper, loop)

    def run(steps: int) -> tuple[list[float], float, np.ndarray]:
        request = pipe.request(PROMPT, **call_arguments(steps, batch))
        iterator = pipe.denoise(request)
        step = next(iterator)  # opens components
        started = user_seconds()
        stamps = [time.perf_counter_ns()]
        for step in iterator:  # noqa: B007
            stamps.append(time.perf_counter_ns())
        user = (user_seconds() - started) * 1e6 / (steps - 1)
        return list(np.diff(stamps) / 1e3), user, step.x

    return run


def diffusers_loop(network: str, batch: int) -> Trajectory:
    """Returns a trajectory of diffusers' pipeline, timed between the network's calls."""
    pipe = StableDiffusion3Pipeline.from_pretrained(checkpoint(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    stamps: list[int] = []
    users: list[float] = []
    forward = pipe.transformer.forward

    def stamped(hidden_states: torch.Tensor, **rest: object) -> tuple[torch.Tensor]:
        stamps.append(time.perf_counter_ns())
        users.append(user_seconds())
        if network == "identity":
            return (hidden_states,)
        return tuple(forward(hidden_states=hidden_states, **rest))

    pipe.transformer.forward = stamped

    def run(steps: int) -> tuple[list[float], float, np.ndarray]:
        stamps.clear()
        users.clear()
        arguments = call_arguments(steps, batch)
        arguments["latents"] = torch.from_numpy(arguments["latents"])
        final = pipe(PROMPT, **arguments).images.numpy()
        user = (users[-1] - users[0]) * 1e6 / (steps - 1)
        return list(np.diff(stamps) / 1e3), user, final

    return run


def call_arguments(steps: int, batch: int) -> dict[str, Any]:
    """Returns the arguments of the call, the same for every loop."""
    latents = np.random.default_rng(0).standard_normal((batch, *LATENTS), np.float32)
    return {
        "num_inference_steps": steps,
        "num_images_per_prompt": batch,
        "guidance_scale": GUIDANCE,
        "latents": latents,
        "max_sequence_length": 16,
        "output_type": "latent",
    }


def peak(bundle: Bundle, name: str, batch: int) -> int:
    """Returns the peak bytes that Python and NumPy allocate in one step after the first ones."""
    backend, loop = OUR_LOOPS[name]
    engine = executors.choose(bundle, backend, threads=1, cache=False)
    with eri.Pipeline(bundle, engine, engine.stepper, loop) as pipe:
        peaks, before = [], 0
        tracemalloc.start()
        for step in pipe.denoise(pipe.request(PROMPT, **call_arguments(STEPS, batch))):
            if step.index > SKIPPED:
                peaks.append(tracemalloc.get_traced_memory()[1] - before)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return max(peaks)


def user_seconds() -> float:
    """Returns the user CPU time of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def _spread(values: list[float]) -> list[float]:
    """Returns the median, the 10th and the 90th percentile."""
    return [round(float(each), 1) for each in np.percentile(values, [50, 10, 90])]


def _ratio(walls: Times, one: tuple[str, str], other: tuple[str, str]) -> float:
    """Returns the ratio of the medians of two loops."""
    return round(float(np.median(walls[one]) / np.median(walls[other])), 3)


def _error(mine: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest difference over the largest value."""
    return float(np.abs(mine - reference).max() / np.abs(reference).max())


if __name__ == "__main__":
    main()
