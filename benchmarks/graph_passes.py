"""Measures what each graph pass saves in a denoiser or a VAE decoder on CPU engines.

    python -m benchmarks.graph_passes [sdxl sd35 flux vae_decoder] [--threads 1]

A network is traced once; each pass that changes it is applied alone, and then all together if there
are several. Within a round every graph runs once, so that other load, which the load averages show,
affects all of them alike. Ratios are to the graph without the passes in the same round; `low` and
`high` are quartiles. `cpu_ms` is processor time and not wall time: with one thread it hardly
depends on other load. `error` is the largest difference from PyTorch's float32 outputs over their
largest value. `prompt_share` is the share of a step's operations, in the published model, that
depend only on the prompt and are repeated in every step. Prints a table, and writes
benchmarks/results/graph_passes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.mid_networks import CHANGES, SIZES, prompt_share, recipe_of
from eri_export.gate.pytorch_reference import reference, run
from eri_export.graphs.passes.einsum_transpose import transpose_einsums
from eri_export.graphs.recipes.base import Arrays, Recipe
from eri_export.graphs.trace import PASSES, Pass, rewrite, trace
from eri_export.plan.plan import spec_of
from eri_export.weights.weights_file import bind, conversions, write_weights
from eri_runtime.commands.subcommand import say
from eri_runtime.executors import BACKENDS, Settings

RESULTS = Path(__file__).parent / "results"
ENGINES = ("cpu", "openvino", "openvino:bf16")
WITHOUT, ALL = "without", "all"


def main() -> None:
    """Measures the networks, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(CHANGES))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=8, help="maximum time per engine")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "graph_passes.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(options.threads), "load_before": os.getloadavg()}
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measured(name, Path(folder), options)
        results["load_after"] = os.getloadavg()
        options.output.write_text(json.dumps(results) + "\n", encoding="utf-8")
        for line in table(name, results[name]):
            say(line)


def machine(threads: int | None) -> dict[str, Any]:
    """Returns the cores and versions of the measurement."""
    packages = {name: version(name) for name in ("numpy", "onnxruntime", "openvino", "torch")}
    cores = len(os.sched_getaffinity(0))
    return {"cores": cores, "threads": threads, "python": platform.python_version(), **packages}


def measured(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures a network's graphs on every engine."""
    recipe = recipe_of(name, folder / "checkpoint")
    inputs = recipe.sample(SIZES[name], 0)
    expected = run(recipe, reference(recipe), inputs)
    graphs = dict(written(recipe, folder))
    engines = {
        engine: timed(engine, graphs, recipe, inputs, expected, options)
        for engine in options.engines
        if BACKENDS[engine].refusal(spec_of(recipe)) is None
    }
    return {"sizes": SIZES[name], "prompt_share": prompt_share(name), "engines": engines}


def written(recipe: Recipe, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the graph without passes, with each pass that changes it, and with all of them."""
    base = trace(recipe, passes=(transpose_einsums,))
    items = conversions(base, recipe.source.tensors)
    bind(base, write_weights(folder / "weights.safetensors", items).tensors)
    yield WITHOUT, saved(base, (), folder / f"{WITHOUT}.onnx")
    kinds = Counter(node.op_type for node in base.graph)
    changing = []
    for each in PASSES:
        model = base.clone()
        rewrite(model, (each,))
        if Counter(node.op_type for node in model.graph) != kinds:
            changing.append(each)
            yield each.__name__, saved(base, (each,), folder / f"{each.__name__}.onnx")
    if len(changing) > 1:
        yield ALL, saved(base, PASSES, folder / f"{ALL}.onnx")


def saved(base: ir.Model, passes: Sequence[Pass], path: Path) -> Path:
    """Saves the graph with some passes applied."""
    model = base.clone()
    rewrite(model, passes)
    ir.save(model, path)
    return path


def timed(
    engine: str,
    graphs: Mapping[str, Path],
    recipe: Recipe,
    inputs: Arrays,
    expected: Arrays,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Times all graphs on an engine in turns, and measures their errors."""
    wall: dict[str, list[float]] = {way: [] for way in graphs}
    cpu: dict[str, list[float]] = {way: [] for way in graphs}
    spec, settings = spec_of(recipe), Settings(threads=options.threads)
    with ExitStack() as stack:
        opened = {
            way: stack.enter_context(BACKENDS[engine].executor(graph, spec, settings))
            for way, graph in graphs.items()
        }
        errors = {way: error(each.run(inputs), expected) for way, each in opened.items()}
        end = time.perf_counter() + options.seconds
        for done in range(options.rounds):
            for way, executor in opened.items():
                started, cpu_started = time.perf_counter(), time.process_time()
                executor.run(inputs)
                wall[way].append(time.perf_counter() - started)
                cpu[way].append(time.process_time() - cpu_started)
            if done > 1 and time.perf_counter() > end:
                break
    return {
        way: {
            "wall_ms": spread(np.array(wall[way]) * 1e3),
            "wall_ratio": spread(np.array(wall[way]) / wall[WITHOUT]),
            "cpu_ms": spread(np.array(cpu[way]) * 1e3),
            "cpu_ratio": spread(np.array(cpu[way]) / cpu[WITHOUT]),
            "rounds": len(wall[way]),
            "error": errors[way],
        }
        for way in graphs
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Returns the median, the quartiles and the minimum."""
    low, median, high = np.percentile(values, (25, 50, 75))
    figures = {"median": median, "low": low, "high": high, "best": values.min()}
    return {name: round(float(value), 4) for name, value in figures.items()}


def error(ours: Arrays, expected: Arrays) -> float:
    """Returns the largest difference over the largest value of each output."""
    return max(float(np.abs(ours[k] - v).max() / np.abs(v).max()) for k, v in expected.items())


def table(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the figures of a network as a Markdown table."""
    yield f"{name}: {found['sizes']}, prompt share {found['prompt_share']}"
    yield "| engine | graph | ms | of the graph without | CPU ms | of it | error |"
    yield "|---|---|---|---|---|---|---|"
    for engine, ways in found["engines"].items():
        for way, row in ways.items():
            ratio = row["wall_ratio"]
            yield (
                f"| {engine} | {way} | {row['wall_ms']['median']:.1f} | {ratio['median']:.3f} "
                f"({ratio['low']:.3f} to {ratio['high']:.3f}) | {row['cpu_ms']['median']:.1f} "
                f"| {row['cpu_ratio']['median']:.3f} | {row['error']:.1e} |"
            )


if __name__ == "__main__":
    main()
