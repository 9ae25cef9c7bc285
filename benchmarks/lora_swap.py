"""Measures the time and memory of switching to another LoRA, against diffusers' load and fuse.

    python -m benchmarks.backends --make-mid engines/mid
    python -m benchmarks.lora_swap engines/mid engines/mid-checkpoint --full build/sdxl-weights

At two sizes, with a LoRA of rank 32 at every linear layer of the UNet and factors in float16:

- `mid`: with the engine. In turns, a pipeline switches from one LoRA to another `merged` into the
  weights (ONNX Runtime's session is opened again); a pipeline whose graph takes LoRAs computes the
  `inputs`; and diffusers unfuses, deletes, loads and fuses. `error` is the UNet's largest output
  difference over its largest output.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lora_swap_full import full
from benchmarks.lora_swap_parts import RANK, fuse, make_lora, timed
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
    formats = {"seconds": "{:.2f} s", "ratio": "ratio {:.3f}", "memory": "{:.2f} GB"}
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
    import torch
    from diffusers import UNet2DConditionModel

    import eri_runtime as eri
    from benchmarks.lora_inputs import bundle_with_inputs, opened

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    shapes = {name: tuple(each.shape) for name, each in unet.state_dict().items()}
    arrays = _inputs(unet)
    with tempfile.TemporaryDirectory() as name, eri.load(root, "cpu") as merged:
        folder = Path(name)
        with opened(bundle_with_inputs(merged.bundle, folder), "cpu") as with_inputs:
            files = [make_lora(shapes, folder / f"lora{i}.safetensors", i) for i in range(2)]
            merged.run("denoiser", arrays)
            ways: dict[str, Callable[[Path], Any]] = {
                "diffusers": lambda file: fuse(unet, file),
                "merged": lambda file: _swap(merged, file),
                "inputs": lambda file: _products(with_inputs, file),
            }
            times: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(rounds + 1):
                for way, run in ways.items():
                    times[way].append(timed(lambda run=run, turn=turn: run(files[turn % 2])))
            products = _products(with_inputs, files[rounds % 2])
            outputs = {
                "merged": merged.run("denoiser", arrays)["output"],
                "inputs": with_inputs.run("denoiser", {**arrays, **products})["output"],
            }
        with torch.no_grad():
            expected = _forward(unet, arrays).numpy()
    rows = {way: _summary(times[way], times["diffusers"]) for way in times}
    for way, output in outputs.items():
        rows[way]["error"] = float(np.abs(output - expected).max() / np.abs(expected).max())
    rows["merged"]["parameters"] = sum(int(np.prod(shape)) for shape in shapes.values())
    return rows


def _summary(times: list[float], reference: list[float]) -> dict[str, Any]:
    """Returns medians without the first round, which reads the files into the page cache."""
    ratios = [a / b for a, b in zip(times[1:], reference[1:], strict=True)]
    return {
        "seconds": statistics.median(times[1:]),
        "ratio": statistics.median(ratios),
        "all": times,
    }


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
    states = tensors["encoder_hidden_states"]
    return unet(tensors["sample"], tensors["timestep"], states, added_cond_kwargs=conditions).sample


if __name__ == "__main__":
    main()
