"""Measures the time and memory of switching to another LoRA, against diffusers' load and fuse.

    python -m benchmarks.backends --make-mid engines/mid
    python -m benchmarks.lora_swap engines/mid engines/mid-checkpoint --full build/sdxl-weights

At two sizes, with a LoRA of rank 32 at every linear layer of the UNet and factors in float16:

- `mid`: with the engine. In turns, a pipeline switches from one LoRA to another `merged` into the
  weights, where ONNX Runtime's session is opened from the graph that was optimised once; `anew` is
  the same with a session that starts from the bundle's file; a pipeline whose graph takes LoRAs
  computes the `inputs`; diffusers unfuses, deletes, loads and fuses; and `attached` is diffusers
  without fusing (`load_lora_weights`, `set_adapters`). The first forward pass follows each.
  `error` is the UNet's largest output difference over its largest output. `fresh` says whether the
  output has the bits of a pipeline that never had another LoRA.
- `full`: SDXL's UNet at full size, without an engine, as two sessions of its 10 GB do not fit in
  memory together: matching and merging of every weight, from a file to memory; computing the inputs
  of a graph that takes LoRAs, which is all that such a graph needs; and diffusers' load and fuse,
  each in its own process. `error` compares rows of merged weights with diffusers'.

Ratios are to diffusers. Memory is the peak of the process beyond what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lora_swap_full import full
from benchmarks.lora_swap_parts import RANK, attach, fuse, make_lora, measured
from eri_runtime.commands.subcommand import say
from eri_runtime.weights import LoraInputs

RESULTS = Path(__file__).parent / "results"
SIZE = 64  # latents per side of the middle-sized comparison


def main() -> None:
    """Measures, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--full", type=Path, metavar="FOLDER", help="folder for 10 GB of files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "lora_swap.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "rank": RANK, "load_before": os.getloadavg()}
    if options.bundle:
        results["mid"] = mid(options.bundle, options.checkpoint, options.rounds)
    if options.full:
        results["full"] = full(options.full, options.rounds)
    results["load_after"] = os.getloadavg()
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for size in ("mid", "full"):
        for way, row in results.get(size, {}).items():
            say(f"{size:5} {way:10} {_line(row)}")


def _line(row: Mapping[str, Any]) -> str:
    """Formats a row as a line of text."""
    formats = {
        "seconds": "{:.2f} s",
        "cpu": "CPU {:.2f} s",
        "ratio": "ratio {:.3f}",
        "ratio_cpu": "ratio of CPU {:.3f}",
        "ratio_cpu_with_forward": "with the first pass {:.3f}",
        "memory": "{:.2f} GB",
    }
    parts = [text.format(row[name]) for name, text in formats.items() if row.get(name) is not None]
    return ", ".join([*parts, f"error {row['error']:.1e}" if row.get("error") else ""]).rstrip(", ")


def machine() -> dict[str, Any]:
    """Returns the machine and versions of the measurement."""
    names = ("numpy", "onnxruntime", "torch", "diffusers", "peft")
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    cores = len(os.sched_getaffinity(0))
    versions = {name: version(name) for name in names}
    precision = "float32 weights, float16 factors"
    python = platform.python_version()
    return {"cpu": model, "cores": cores, "precision": precision, "python": python, **versions}


# the middle size, with the engine


def mid(root: Path, checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Times swaps of two pipelines and of diffusers' UNet in turns."""
    from diffusers import UNet2DConditionModel

    import eri_runtime as eri
    from benchmarks.lora_inputs import bundle_with_inputs, opened

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    shapes = {name: tuple(each.shape) for name, each in unet.state_dict().items()}
    arrays = _inputs(unet)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        merged, anew = (stack.enter_context(eri.load(root, "cpu")) for _ in range(2))
        folder = Path(name)
        with_inputs = stack.enter_context(opened(bundle_with_inputs(merged.bundle, folder), "cpu"))
        files = [make_lora(shapes, folder / f"lora{i}.safetensors", i) for i in range(2)]
        for pipe in (merged, anew):
            pipe.run("denoiser", arrays)
        _open_from_the_file(anew)
        attached = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
        ways: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any]]] = {
            "diffusers": (lambda file: fuse(unet, file), lambda _: _forward(unet, arrays)),
            "attached": (lambda file: attach(attached, file), lambda _: _forward(attached, arrays)),
            "merged": (lambda file: _swap(merged, file), lambda _: _run(merged, arrays)),
            "anew": (lambda file: _swap(anew, file), lambda _: _run(anew, arrays)),
            "inputs": (
                lambda file: _products(with_inputs, file),
                lambda products: _run(with_inputs, {**arrays, **products}),
            ),
        }
        times, outputs = _in_turn(ways, files, rounds)
        expected = outputs.pop("diffusers")
        with eri.load(root, "cpu") as fresh:
            _swap(fresh, files[rounds % 2])
            bits = _run(fresh, arrays).tobytes()
    rows = {way: _summary(times[way], times["diffusers"]) for way in times}
    for way, output in outputs.items():
        rows[way]["error"] = float(np.abs(output - expected).max() / np.abs(expected).max())
        rows[way]["fresh"] = np.asarray(output).tobytes() == bits
    rows["merged"]["parameters"] = sum(int(np.prod(shape)) for shape in shapes.values())
    return rows


def _in_turn(
    ways: Mapping[str, tuple[Callable[[Path], Any], Callable[[Any], Any]]],
    files: list[Path],
    rounds: int,
) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """Returns the times of all rounds and the outputs of the last."""
    times: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    outputs: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for way, (swap, forward) in ways.items():
            swapped: list[Any] = []

            def run(swap: Any = swap, swapped: list[Any] = swapped, turn: int = turn) -> None:
                swapped.append(swap(files[turn % 2]))

            def pass_on(
                forward: Any = forward, swapped: list[Any] = swapped, way: str = way
            ) -> None:
                outputs[way] = forward(swapped[0])

            times[way].append(measured(run, pass_on))
    return times, outputs


def _open_from_the_file(pipe: Any) -> None:
    """Makes ONNX Runtime start from the bundle's graph at every swap of the denoiser."""
    pinned: Any = pipe._weights._live.executor("denoiser")
    pinned.executor._source._optimizes = False


def _run(pipe: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Runs the denoiser."""
    return pipe.run("denoiser", inputs)["output"]


def _summary(times: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, Any]:
    """Returns medians without the first round, which reads the files into the page cache."""
    row: dict[str, Any] = {}
    for name in times[0]:
        ratios = [a[name] / b[name] for a, b in zip(times[1:], reference[1:], strict=True)]
        row[name] = statistics.median(each[name] for each in times[1:])
        row[f"ratio_{name}"] = statistics.median(ratios)
    return {**row, "all": {name: [each[name] for each in times] for name in times[0]}}


def _products(pipe: Any, file: Path) -> Mapping[str, np.ndarray]:
    """Computes a graph's LoRA inputs from a file; the previous LoRA is unloaded."""
    pipe.unload_loras()
    name = pipe.load_lora(file, 0.0)
    inputs = LoraInputs(pipe.bundle.components["denoiser"])
    return inputs.products([{name: 1.0}], pipe._weights.loaded).shared


def _swap(pipe: Any, file: Path) -> None:
    """Switches to a LoRA and unloads the previous one, so every swap reads its file."""
    before = list(pipe.loras)
    pipe.set_loras({file: 1.0})
    if before:
        pipe.unload_loras(*before)


def _inputs(unet: Any) -> dict[str, np.ndarray]:
    """Draws inputs of the UNet."""
    rng, config = np.random.default_rng(0), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = {
        "sample": (1, config.in_channels, SIZE, SIZE),
        "encoder_hidden_states": (1, 16, config.cross_attention_dim),
        "text_embeds": (1, pooled),
    }
    normal = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    sizes = np.array([[512, 512, 0, 0, 512, 512]], np.float32)
    return {**normal, "timestep": np.array([500], np.float32), "time_ids": sizes}


def _forward(unet: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    """Runs diffusers' UNet."""
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    conditions = {name: tensors[name] for name in ("text_embeds", "time_ids")}
    sample, timestep, states = (
        tensors[name] for name in ("sample", "timestep", "encoder_hidden_states")
    )
    with torch.no_grad():
        return unet(sample, timestep, states, added_cond_kwargs=conditions).sample.numpy()


if __name__ == "__main__":
    main()
