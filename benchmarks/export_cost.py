"""Measures an export at full size against plain `torch.onnx.export`: time, memory and bytes.

    python -m benchmarks.export_cost --stages graph write gate plain

The checkpoints are single files with the published headers over sparse data, so every shape is
right and every weight is zero. Each figure comes from a fresh process that does nothing else:

- graph: from the file's header to `model.onnx`, without reading weights
- write: the weights streamed to the bundle's file; reading zeros is faster than reading a disk
- gate: the graph compared with PyTorch, on zeros; only its seconds and memory are meaningful
- plain: `torch.onnx.export` of the same network with its weights in memory, and `save`

`peak_mb` is the peak memory of the process, Python and torch included; `imports_mb` is its memory
before the work. `copies_written` is how many times the bundle's bytes were written to disk, as the
kernel counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eri_export.checkpoints.shipped_configs import Model
from tests.support import quantised, single_files
from tests.support.single_file_keys import bfl_flux, ldm_unet, sd3_mmdit

RESULTS = Path(__file__).parent / "results"
MEGABYTE = 1e6
SHARE = 0.85  # of the free memory; with more, the kernel might kill another process
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "gguf",
)


@dataclass(frozen=True)
class Case:
    """A published component, its stored dtype, the export's precision, the matrices' format."""

    model: Model
    part: str
    component: str
    dtype: str
    precision: str
    quantised: str | None = None


CASES = {
    "Flux-dev transformer": Case("flux-dev", "transformer", "denoiser", "BF16", "bf16"),
    "SD3.5-large transformer": Case("sd3.5-large", "transformer", "denoiser", "F16", "fp16"),
    "SDXL UNet": Case("sdxl-base", "unet", "denoiser", "F16", "fp16"),
    "T5-XXL encoder": Case("flux-dev", "text_encoder_2", "text_encoder_2", "BF16", "bf16"),
    "Flux-dev transformer, scaled fp8": Case(
        "flux-dev", "transformer", "denoiser", "BF16", "bf16", "scaled fp8"
    ),
    "Flux-dev transformer, GGUF Q4_K": Case(
        "flux-dev", "transformer", "denoiser", "F16", "bf16", "Q4_K"
    ),
}
LAYOUTS = {"flux-dev": bfl_flux, "sd3.5-large": sd3_mmdit, "sdxl-base": ldm_unet}


def main() -> None:
    """Makes the files, measures each stage in its own process and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=3, metavar=("CASE", "STAGE", "FOLDER"))
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--stages", nargs="*", default=["graph"], choices=list(STAGES))
    parser.add_argument("--repeat", type=int, default=3, help="runs of the graph stage")
    parser.add_argument("--folder", type=Path, help="folder for temporary files; needs 30 GB")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "export_cost.json")
    options = parser.parse_args()
    if options.measure:
        case, stage, folder = options.measure
        print(json.dumps(_measured(CASES[case], stage, Path(folder))))  # noqa: T201
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = {
            name: _case(name, options.stages, options.repeat, Path(folder))
            for name in options.cases
        }
    _record(options.output, results)


def _case(name: str, stages: list[str], repeat: int, folder: Path) -> dict[str, Any]:
    """Measures the stages of one case."""
    case = CASES[name]
    _make(case, folder)
    results: dict[str, Any] = {}
    for stage in stages:
        runs = [_fresh(name, stage, folder) for _ in range(repeat if stage == "graph" else 1)]
        results[stage] = runs[0] if len(runs) == 1 else _median(runs)
        print(name, stage, results[stage], file=sys.stderr)  # noqa: T201
    return results


def _fresh(name: str, stage: str, folder: Path) -> dict[str, Any]:
    """Measures a stage in a new process; returns its last error line if it fails."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.export_cost",
        "--measure",
        name,
        stage,
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:] or f"status {done.returncode}"}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the median time and the largest peak of several runs."""
    seconds = [run["seconds"] for run in runs]
    peaks = max(run["peak_mb"] for run in runs)
    return {**runs[0], "seconds": statistics.median(seconds), "of": seconds, "peak_mb": peaks}


def _make(case: Case, folder: Path) -> None:
    """Makes the sparse files of a case: the denoiser, and the text encoder if it is one."""
    denoiser = "unet" if case.model == "sdxl-base" else "transformer"
    network = LAYOUTS[case.model](single_files.full_size(case.model, denoiser))
    file, shapes = folder / "model.safetensors", _shapes(network)  # a GGUF shows by its bytes
    if case.quantised is None:
        single_files.sparse(file, shapes, case.dtype)
    elif case.quantised == "scaled fp8":
        quantised.sparse_scaled_fp8(file, shapes)
    else:
        quantised.sparse_gguf(file, shapes, case.quantised)
    if case.part != denoiser:
        encoder = single_files.full_size(case.model, case.part)
        encoder.pop("encoder.embed_tokens.weight")  # tied to `shared`, so files do not contain it
        single_files.sparse(folder / "encoder.safetensors", _shapes(encoder), case.dtype)


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _measured(case: Case, stage: str, folder: Path) -> dict[str, Any]:
    """Measures one stage in this process."""
    warnings.simplefilter("ignore")
    from eri_export.machine import peak_memory

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        figures = STAGES[stage](case, folder, Path(scratch))
    return {**figures, "peak_mb": round(peak_memory() / MEGABYTE)}


def _recipe(case: Case, folder: Path) -> Any:
    """Returns the recipe of a case's component."""
    from eri_export.plan.plan import make_plan

    encoder = folder / "encoder.safetensors"
    encoders = [encoder] if case.component.startswith("text_encoder") else []
    plan = make_plan(folder / "model.safetensors", precision=case.precision, text_encoders=encoders)
    return next(each for each in plan.recipes if each.name == case.component)


def _graph(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    """Measures the stage `graph`."""
    imports, started = _imports(), time.perf_counter()
    recipe = _recipe(case, folder)
    graph = _trace(recipe, scratch)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        "imports_mb": imports,
        "onnx_mb": round(graph.stat().st_size / MEGABYTE, 2),
    }


def _trace(recipe: Any, home: Path) -> Path:
    """Writes `model.onnx` with references to a weights file that does not exist."""
    import onnx_ir as ir

    from eri_export.graphs.trace import trace
    from eri_export.weights.weights_file import bind, conversions

    model = trace(recipe)
    sources = {item.source.name: item.source for item in conversions(model, recipe.source.tensors)}
    bind(model, sources)
    ir.save(model, home / "model.onnx")
    return home / "model.onnx"


def _imports() -> int:
    """Returns the megabytes that Python and its libraries take before any work."""
    import eri_export.publishing.export_bundle  # noqa: F401
    from eri_export.machine import peak_memory

    return round(peak_memory() / MEGABYTE)


def _write(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    """Measures the stage `write`."""
    from eri_export.weights.weights_file import Conversion, write_weights

    recipe = _recipe(case, folder)
    tensors = recipe.source.tensors
    items = [Conversion(tensor, recipe.weight_dtype(name)) for name, tensor in tensors.items()]
    before, started = _bytes_written(), time.perf_counter()
    written = write_weights(scratch / "weights.safetensors", items)
    os.sync()
    seconds = time.perf_counter() - started
    size = written.record.size
    return {
        "seconds": round(seconds, 1),
        "written_mb": round(size / MEGABYTE),
        "mb_per_second": round(size / MEGABYTE / seconds),
        "copies_written": round((_bytes_written() - before) / size, 3),
    }


def _bytes_written() -> int:
    """Returns the bytes that this process has written to disk."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["write_bytes"])


def _gate(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    """Measures the stage `gate`; graph and weights are made before the timer starts."""
    import onnx_ir as ir

    from eri_export.gate.parity import compare
    from eri_export.graphs.trace import trace
    from eri_export.plan.plan import spec_of
    from eri_export.weights.weights_file import bind, conversions, write_weights

    recipe = _recipe(case, folder)
    model = trace(recipe)
    items = conversions(model, recipe.source.tensors)
    bind(model, write_weights(scratch / "weights.safetensors", items).tensors)
    ir.save(model, scratch / "model.onnx")
    started = time.perf_counter()
    report = compare(recipe, scratch / "model.onnx", spec_of(recipe), None).report
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "network": report.metrics[0].network,
        "cases": len({json.dumps([each.case, each.sizes]) for each in report.metrics}),
        "not_run": len(report.not_run),
    }


def _plain(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    """Measures the stage `plain`, limited to the machine's free memory."""
    import resource

    import torch

    from eri_export.graphs.recipes.base import example
    from eri_export.machine import available_memory

    recipe = _recipe(case, folder)
    limit = int(SHARE * available_memory())
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    started = time.perf_counter()
    with torch.device("meta"):
        network = recipe.build()
    network = network.to(recipe.dtype).to_empty(device="cpu")
    for value in network.state_dict().values():
        value.zero_()  # so that the kernel counts its pages
    loaded = time.perf_counter()
    axes = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if isinstance(size, str)}
        for shape in (each.spec.shape for each in recipe.inputs)
    )
    inputs = example(recipe, recipe.traced_at)
    with torch.no_grad():
        program = torch.onnx.export(
            recipe.wrap(network, recipe.dtype),
            inputs,
            dynamic_shapes=axes,
            dynamo=True,
            opset_version=23,
            verbose=False,
        )
    program.save(scratch / "model.onnx", external_data=True)
    graph = scratch / "model.onnx"
    return {
        "seconds": round(time.perf_counter() - loaded, 1),
        "loading_seconds": round(loaded - started, 1),
        "onnx_mb": round(graph.stat().st_size / MEGABYTE, 2),
    }


STAGES = {"graph": _graph, "write": _write, "gate": _gate, "plain": _plain}


def _record(output: Path, results: dict[str, Any]) -> None:
    """Adds the results to the file, if it is of the same machine and versions."""
    old = json.loads(output.read_text()) if output.is_file() else {}
    known = old.get("results", {}) if old.get("about") == about() else {}
    merged = {
        name: {**known.get(name, {}), **results.get(name, {})} for name in {**known, **results}
    }
    output.write_text(json.dumps({"about": about(), "results": merged}, indent=1) + "\n")


def about() -> dict[str, Any]:
    """Returns the machine, and the versions of Python and of all packages that matter."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """Returns the processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return "unknown"


if __name__ == "__main__":
    main()
