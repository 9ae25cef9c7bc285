"""Measures ways to swap the weights of an open denoiser on ONNX Runtime's CPU provider.

    python -m benchmarks.swap_routes engines/demo engines/mid

`session` is what the runtime does: a new session whose overrides replace the file's tensors before
the graph is optimised. `session, low memory` does so without prepacking, constant folding and
blocked convolutions, so that weights stay pages of their file. `live` writes into the memory of
weights that were passed with `add_initializer` to a low-memory session, and `live, blocked` does so
with ONNX Runtime's blocked convolutions enabled. `error` is the difference from a session of the
same kind over a file with the new weights, relative to the largest value. Each route runs in its
own process with one thread; times are medians; memory is the process's anonymous pages without the
new weights. `attention` are the 2-D weights of attention layers, which most LoRAs change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import eri_runtime as eri
from benchmarks.backends import RESULTS, machine, random_inputs
from eri_runtime.bundle import read_header, read_tensors

COPYING = ["ConstantFolding", "NchwcTransformer"]
ROUTES: Mapping[str, tuple[bool, list[str]]] = {  # low memory, disabled optimizers
    "session": (False, []),
    "session, low memory": (True, COPYING),
    "live": (True, COPYING),
    "live, blocked": (True, COPYING[:1]),
}
TOUCHED = ("attention", "all")
ROUNDS = 5
SWAPS = 3
Tensors = Mapping[str, np.ndarray]


def main() -> None:
    """Measures every route on every bundle and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("ROUTE", "TOUCHED"))
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measured(options.bundles[0], *options.one)))
        return
    about = {k: v for k, v in machine().items() if k != "openvino"}
    results: dict[str, Any] = {"machine": about, "threads": 1, "load_before": os.getloadavg()}
    for root in options.bundles:
        denoiser = eri.read_bundle(root).components["denoiser"]
        about = {"parameters": denoiser.parameters, "precision": denoiser.precision}
        results[root.name] = about | {
            touched: {route: _in_process(root, route, touched) for route in ROUTES}
            for touched in TOUCHED
        }
    results["load_after"] = os.getloadavg()
    (RESULTS / "swap_routes.json").write_text(json.dumps(results, indent=1) + "\n")


def _in_process(root: Path, route: str, touched: str) -> Any:
    """Measures a route in a new process."""
    command = [sys.executable, "-m", "benchmarks.swap_routes", str(root), "--one", route, touched]
    return json.loads(subprocess.check_output(command, text=True))  # noqa: S603


def measured(root: Path, route: str, touched: str) -> dict[str, Any]:
    """Measures one route: seconds to open, per step and per swap; memory; errors."""
    bundle = eri.read_bundle(root)
    spec = bundle.components["denoiser"]
    graph, inputs = bundle.path(spec.graph), random_inputs(spec)
    stored = read_tensors(bundle.path(spec.weights))
    old = {name: stored[name] for name in stored if touched == "all" or _of_attention(name, stored)}
    own = _private(bundle.path(spec.weights)) if route.startswith("live") else {}
    opened, session = _seconds(lambda: _session(graph, route, own, live=bool(own)))
    run = lambda: session.run(None, inputs)[0]  # noqa: E731
    base, before = run(), _steps(run)
    memory = _anonymous()
    new = {name: (each * np.float32(1.01) + 1e-3).astype(each.dtype) for name, each in old.items()}
    new_bytes = sum(each.nbytes for each in new.values())

    def swap(tensors: Tensors) -> Any:
        if not own:
            return _session(graph, route, tensors if tensors is new else {}, live=False)
        for name, values in tensors.items():
            own[name][...] = values
        return session

    there, back = [], []
    for _ in range(SWAPS):
        seconds, session = _seconds(lambda: swap(old))
        back.append(seconds)
        seconds, session = _seconds(lambda: swap(new))
        there.append(seconds)
    output, after = run(), _steps(run)
    grown = _anonymous() - new_bytes
    error = _difference(output, _merged(graph, route, new, inputs))
    session = swap(old)
    return {
        "tensors": len(old),
        "megabytes": new_bytes / 1e6,
        "open_s": opened,
        "swap_s": statistics.median(there),
        "swap_back_s": statistics.median(back),
        "step_before_s": before,
        "step_after_s": after,
        "anonymous_before_mb": memory / 1e6,
        "anonymous_after_mb": grown / 1e6,
        "error": error,
        "there_and_back_is_bit_exact": bool(np.array_equal(run(), base)),
        "changed": _difference(output, base),
    }


def _session(graph: Path, route: str, tensors: Tensors, *, live: bool) -> Any:
    """Opens a session with `tensors` as overrides, or as live initializers."""
    low_memory, without = ROUTES[route]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if low_memory:
        options.add_session_config_entry("session.disable_prepacking", "1")
    values = {name: ort.OrtValue.ortvalue_from_numpy(each) for name, each in tensors.items()}
    if live:
        for name, value in values.items():
            options.add_initializer(name, value)
    elif values:
        options.add_external_initializers(list(values), list(values.values()))
    return ort.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=without
    )


def _merged(graph: Path, route: str, new: Tensors, inputs: Tensors) -> np.ndarray:
    """Returns the output of a session over a file with the new weights."""
    with tempfile.TemporaryDirectory(dir=graph.parent.parent.parent) as folder:
        copied = Path(shutil.copytree(graph.parent, Path(folder) / "merged"))
        private = _private(copied / "weights.safetensors", mode="r+")
        for name, values in new.items():
            private[name][...] = values
        session = _session(copied / graph.name, route, {}, live=False)
        return np.asarray(session.run(None, dict(inputs))[0])


def _private(file: Path, mode: Any = "c") -> dict[str, np.ndarray]:
    """Maps a file's tensors as writable pages; by default changes stay private (copy on write)."""
    header, data, stored = read_header(file), np.memmap(file, np.uint8, mode=mode), {}
    for name, entry in header.entries.items():
        part = data[header.start + entry.begin : header.start + entry.end].view(np.ndarray)
        stored[name] = part.view(read_tensors(file)[name].dtype).reshape(entry.shape)
    return stored


def _of_attention(name: str, stored: Tensors) -> bool:
    """Returns whether a tensor is a 2-D weight of an attention layer."""
    return "attn" in name and stored[name].ndim == 2


def _steps(run: Callable[[], object]) -> float:
    """Returns the median seconds of a step."""
    return statistics.median(_seconds(run)[0] for _ in range(ROUNDS))


def _seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds of an action and its result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def _anonymous() -> int:
    """Returns the bytes of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024


def _difference(output: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference over the largest value."""
    return float(np.abs(output - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
