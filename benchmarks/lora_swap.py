"""How long a LoRA takes to be served, and how much memory: eri beside diffusers' load and fuse.

    python -m benchmarks.backends --make-mid engines/mid
    python -m benchmarks.lora_swap engines/mid engines/mid-checkpoint --full build/sdxl-weights

Two sizes, a LoRA of rank 32 at every linear layer of the UNet, its factors in float16:

- `mid`: the engine included. In turn, a pipeline goes from one LoRA to another, `merged` into the
  weights (ONNX Runtime's session is opened anew); one whose graph takes LoRAs makes the `inputs`;
  and diffusers unfuses, deletes, loads and fuses. `error` is of the UNet's output with the LoRA,
  over its largest value.
- `full`: SDXL's UNet at full size, weights only, as two sessions of its 10 GB do not fit beside
  each other here: matching and merging of every weight, from a file to memory; the inputs of a
  graph that takes LoRAs, which is all that such a graph needs for a swap; and diffusers' load and
  fuse, each in a process of its own. `error` is of rows of merged weights against diffusers'.

Ratios are to diffusers. Memory is the most that the process held beyond what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from eri_runtime.command import say

RESULTS = Path(__file__).parent / "results"
RANK = 32
SIZE = 64  # latents a side, where the middle-sized networks are compared


def main() -> None:
    """Measure, print a table, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--full", type=Path, metavar="FOLDER", help="where 10 GB may be written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "lora_swap.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "rank": RANK, "load_before": os.getloadavg()}
    if options.bundle:
        results["mid"] = mid(options.bundle, options.checkpoint, options.rounds)
    if options.full:
        from benchmarks.lora_swap_full import full

        results["full"] = full(options.full, options.rounds)
    results["load_after"] = os.getloadavg()
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for size in ("mid", "full"):
        for way, row in results.get(size, {}).items():
            say(f"{size:5} {way:10} {_line(row)}")


def _line(row: Mapping[str, Any]) -> str:
    shown = {"seconds": "{:.2f} s", "ratio": "ratio {:.3f}", "memory": "{:.2f} GB"}
    parts = [text.format(row[name]) for name, text in shown.items() if row.get(name) is not None]
    return ", ".join([*parts, f"error {row['error']:.1e}" if row.get("error") else ""]).rstrip(", ")


def machine() -> dict[str, Any]:
    """What it was measured on, and with what."""
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


def make_lora(shapes: Mapping[str, tuple[int, ...]], path: Path, seed: int) -> Path:
    """A LoRA of every linear layer, in diffusers' names; an update is a tenth of its weight."""
    rng, made = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if len(shape) == 2 and "time_emb" not in name and "embedding" not in name:
            module = "unet." + name.removesuffix(".weight")
            size = 0.3 / (RANK * shape[1]) ** 0.25
            for end, sides in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                values = size * rng.standard_normal(sides, np.float32)
                made[f"{module}.lora_{end}.weight"] = values.astype(np.float16)
    save_file(made, path)
    return path


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def peak() -> float:
    """The most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


# the middle size, engine included


def mid(root: Path, checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Swaps of two pipelines and of diffusers' UNet, in turn."""
    import torch
    from diffusers import UNet2DConditionModel

    import eri_runtime as eri
    from benchmarks.lora_inputs import bundle_with_inputs, opened

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    shapes = {name: tuple(each.shape) for name, each in unet.state_dict().items()}
    given = _inputs(unet)
    with tempfile.TemporaryDirectory() as name, eri.load(root, "cpu") as merged:
        folder = Path(name)
        with opened(bundle_with_inputs(merged.bundle, folder), "cpu") as taking:
            files = [make_lora(shapes, folder / f"lora{i}.safetensors", i) for i in range(2)]
            merged.run("denoiser", given)
            ways: dict[str, Callable[[Path], Any]] = {
                "diffusers": lambda file: fuse(unet, file),
                "merged": lambda file: _swap(merged, file),
                "inputs": lambda file: _products(taking, file),
            }
            times: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(rounds + 1):
                for way, run in ways.items():
                    times[way].append(timed(lambda run=run, turn=turn: run(files[turn % 2])))
            products = _products(taking, files[rounds % 2])
            made = {
                "merged": merged.run("denoiser", given)["output"],
                "inputs": taking.run("denoiser", {**given, **products})["output"],
            }
        with torch.no_grad():
            expected = _forward(unet, given).numpy()
    rows = {way: _summary(times[way], times["diffusers"]) for way in times}
    for way, output in made.items():
        rows[way]["error"] = float(np.abs(output - expected).max() / np.abs(expected).max())
    rows["merged"]["parameters"] = sum(int(np.prod(shape)) for shape in shapes.values())
    return rows


def _summary(times: list[float], reference: list[float]) -> dict[str, Any]:
    """Without the first round, which reads files for the first time."""
    ratios = [a / b for a, b in zip(times[1:], reference[1:], strict=True)]
    return {
        "seconds": statistics.median(times[1:]),
        "ratio": statistics.median(ratios),
        "all": times,
    }


def _products(pipe: Any, file: Path) -> Mapping[str, np.ndarray]:
    """The inputs that a graph takes for a LoRA, from its file; the one before is forgotten."""
    pipe.unload_loras()
    name = pipe.load_lora(file, 0.0)
    products: Mapping[str, np.ndarray] = pipe._inputs.products(
        [{name: 1.0}], pipe._weights.loaded
    ).shared
    return products


def _swap(pipe: Any, file: Path) -> None:
    """From whatever works to this LoRA; the one before is forgotten, so nothing is read twice."""
    before = list(pipe.loras)
    pipe.set_loras({file: 1.0})
    if before:
        pipe.unload_loras(*before)


def fuse(unet: Any, file: Path) -> None:
    if getattr(unet, "peft_config", None):
        unet.unfuse_lora()
        unet.unload_lora()
    unet.load_lora_adapter(file.parent, weight_name=file.name, prefix="unet")
    unet.fuse_lora()


def _inputs(unet: Any) -> dict[str, np.ndarray]:
    rng, config = np.random.default_rng(0), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = {
        "sample": (1, config.in_channels, SIZE, SIZE),
        "encoder_hidden_states": (1, 16, config.cross_attention_dim),
        "text_embeds": (1, pooled),
    }
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    sizes = np.array([[512, 512, 0, 0, 512, 512]], np.float32)
    return {**drawn, "timestep": np.array([500], np.float32), "time_ids": sizes}


def _forward(unet: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    import torch

    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    conditions = {name: given[name] for name in ("text_embeds", "time_ids")}
    states = given["encoder_hidden_states"]
    return unet(given["sample"], given["timestep"], states, added_cond_kwargs=conditions).sample


if __name__ == "__main__":
    main()
