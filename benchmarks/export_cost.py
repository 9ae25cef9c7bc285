"""What an export costs at full size: seconds, memory and bytes, beside plain `torch.onnx.export`.

    python -m benchmarks.export_cost --stages graph write gate plain

The checkpoints are single files with the published headers over sparse data, so every shape is
right and every weight is zero. Each figure is that of a fresh process that does nothing else:

- graph: from the file's header to `model.onnx`, no weight read
- write: the weights streamed to the bundle's own file; reading zeros is faster than reading a disk
- gate: graph and PyTorch beside each other, on zeros; only its seconds and memory mean something
- plain: `torch.onnx.export` of the same network with its weights in memory, and `save`

`peak_mb` is the most the process held, Python and torch included; `imports_mb` is what it held
before the work began. `copies_written` is how often the bundle's bytes went to the disk, by the
kernel's own count.
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

from tests import single_files as made

RESULTS = Path(__file__).parent / "results"
MEGABYTE = 1e6
SHARE = 0.85  # of the free memory: beyond it the kernel would kill another process
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Case:
    """A published component, and the precision it is published and exported in."""

    model: made.Model
    part: str
    component: str
    dtype: str
    precision: str


CASES = {
    "Flux-dev transformer": Case("flux-dev", "transformer", "denoiser", "BF16", "bf16"),
    "SD3.5-large transformer": Case("sd3.5-large", "transformer", "denoiser", "F16", "fp16"),
    "SDXL UNet": Case("sdxl-base", "unet", "denoiser", "F16", "fp16"),
    "T5-XXL encoder": Case("flux-dev", "text_encoder_2", "text_encoder_2", "BF16", "bf16"),
}
LAYOUTS = {"flux-dev": made.bfl_flux, "sd3.5-large": made.sd3_mmdit, "sdxl-base": made.ldm_unet}


def main() -> None:
    """Make the files, measure each stage in its own process, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=3, metavar=("CASE", "STAGE", "FOLDER"))
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--stages", nargs="*", default=["graph"], choices=list(STAGES))
    parser.add_argument("--repeat", type=int, default=3, help="of the graph stage")
    parser.add_argument("--folder", type=Path, help="where the bytes go; needs 30 GB")
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
    case = CASES[name]
    _make(case, folder)
    found: dict[str, Any] = {}
    for stage in stages:
        runs = [_fresh(name, stage, folder) for _ in range(repeat if stage == "graph" else 1)]
        found[stage] = runs[0] if len(runs) == 1 else _median(runs)
        print(name, stage, found[stage], file=sys.stderr)  # noqa: T201
    return found


def _fresh(name: str, stage: str, folder: Path) -> dict[str, Any]:
    """The figures of a process of its own, or what it died of."""
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
    return json.loads(done.stdout.splitlines()[-1])


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    peaks = max(run["peak_mb"] for run in runs)
    return {**runs[0], "seconds": statistics.median(seconds), "of": seconds, "peak_mb": peaks}


def _make(case: Case, folder: Path) -> None:
    """The files of a case, sparse: the denoiser, and for an encoder that beside it."""
    denoiser = "unet" if case.model == "sdxl-base" else "transformer"
    network = LAYOUTS[case.model](made.full_size(case.model, denoiser))
    made.sparse(folder / "model.safetensors", _shapes(network), case.dtype)
    if case.part != denoiser:
        encoder = made.full_size(case.model, case.part)
        encoder.pop("encoder.embed_tokens.weight")  # tied to `shared`: no file has it
        made.sparse(folder / "encoder.safetensors", _shapes(encoder), case.dtype)


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _measured(case: Case, stage: str, folder: Path) -> dict[str, Any]:
    """The figures of one stage, in this process."""
    warnings.simplefilter("ignore")
    from eri_export.machine import peak_memory

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        figures = STAGES[stage](case, folder, Path(scratch))
    return {**figures, "peak_mb": round(peak_memory() / MEGABYTE)}


def _recipe(case: Case, folder: Path) -> Any:
    from eri_export.plan import make_plan

    encoder = folder / "encoder.safetensors"
    encoders = [encoder] if case.component.startswith("text_encoder") else []
    plan = make_plan(folder / "model.safetensors", precision=case.precision, text_encoders=encoders)
    return next(each for each in plan.recipes if each.name == case.component)


def _graph(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    imports, started = _imports(), time.perf_counter()
    recipe = _recipe(case, folder)
    graph = _traced(recipe, scratch)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        "imports_mb": imports,
        "onnx_mb": round(graph.stat().st_size / MEGABYTE, 2),
    }


def _traced(recipe: Any, home: Path) -> Path:
    """`model.onnx`, its weights where a file that is not there would have them."""
    import onnx_ir as ir

    from eri_export.trace import trace
    from eri_export.weights import bind, conversions

    model = trace(recipe)
    sources = {item.source.name: item.source for item in conversions(model, recipe.source.tensors)}
    bind(model, sources)
    ir.save(model, home / "model.onnx")
    return home / "model.onnx"


def _imports() -> int:
    """Megabytes that Python and its libraries take before any work."""
    import eri_export.bundle  # noqa: F401
    from eri_export.machine import peak_memory

    return round(peak_memory() / MEGABYTE)


def _write(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    from eri_export.weights import Conversion, write_weights

    recipe = _recipe(case, folder)
    tensors = recipe.source.tensors
    items = [Conversion(tensor, recipe.weight_dtype(name)) for name, tensor in tensors.items()]
    before, started = _written(), time.perf_counter()
    written = write_weights(scratch / "weights.safetensors", items)
    os.sync()
    seconds = time.perf_counter() - started
    size = written.record.size
    return {
        "seconds": round(seconds, 1),
        "written_mb": round(size / MEGABYTE),
        "mb_per_second": round(size / MEGABYTE / seconds),
        "copies_written": round((_written() - before) / size, 3),
    }


def _written() -> int:
    """Bytes that this process has caused to be written to a disk."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["write_bytes"])


def _gate(case: Case, folder: Path, scratch: Path) -> dict[str, Any]:
    """Comparing alone; the graph and its weights are made before the clock starts."""
    import onnx_ir as ir

    from eri_export.gate.parity import compare
    from eri_export.plan import spec_of
    from eri_export.trace import trace
    from eri_export.weights import bind, conversions, write_weights

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
    """What everyone does, with no more memory than the machine has left."""
    import resource

    import torch

    from eri_export.machine import available_memory
    from eri_export.recipes.base import example

    recipe = _recipe(case, folder)
    limit = int(SHARE * available_memory())
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    started = time.perf_counter()
    with torch.device("meta"):
        network = recipe.build()
    network = network.to(recipe.dtype).to_empty(device="cpu")
    for value in network.state_dict().values():
        value.zero_()  # or the kernel would not count it
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
    """Add to what the file holds of this machine and these versions."""
    about = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    old = json.loads(output.read_text()) if output.is_file() else {}
    known = old.get("results", {}) if old.get("about") == about else {}
    merged = {
        name: {**known.get(name, {}), **results.get(name, {})} for name in {**known, **results}
    }
    output.write_text(json.dumps({"about": about, "results": merged}, indent=1) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return "unknown"


if __name__ == "__main__":
    main()
