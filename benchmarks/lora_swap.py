"""How long a LoRA takes to be served, and how much memory: eri beside diffusers' load and fuse.

    python -m benchmarks.backends --make-mid engines/mid
    python -m benchmarks.lora_swap engines/mid engines/mid-checkpoint --full build/sdxl-weights

Two sizes, a LoRA of rank 32 at every linear layer of the UNet, its factors in float16:

- `mid`: the engine included. A pipeline of a bundle goes from one LoRA to another, merged into the
  weights (ONNX Runtime's session is opened anew), and diffusers unfuses, deletes, loads and fuses,
  in turn. `error` is of the UNet's output with the LoRA, over its largest value.
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
import subprocess
import sys
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
WAYS = ("diffusers", "merged", "inputs")
PROBES = (
    "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.transformer_blocks.5.ff.net.0.proj.weight",
    "up_blocks.0.attentions.2.proj_out.weight",
)


def main() -> None:
    """Measure, print a table, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--full", type=Path, metavar="FOLDER", help="where 10 GB may be written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "lora_swap.json")
    options = parser.parse_args()
    if options.way:
        sys.stdout.write(json.dumps(full_way(options.way, options.full)))
        return
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


def mid(bundle: Path, checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Swaps of a pipeline and of diffusers' UNet, in turn."""
    import torch
    from diffusers import UNet2DConditionModel

    import eri_runtime as eri

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    shapes = {name: tuple(each.shape) for name, each in unet.state_dict().items()}
    inputs = _inputs(unet)
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder, eri.load(bundle, "cpu") as pipe:
        pipe.run("denoiser", inputs)
        files = [make_lora(shapes, Path(folder) / f"lora{i}.safetensors", i) for i in range(2)]
        for turn in range(rounds + 1):
            file = files[turn % 2]
            theirs.append(timed(lambda file=file: _fuse(unet, file)))
            ours.append(timed(lambda file=file: _swap(pipe, file)))
        made = pipe.run("denoiser", inputs)["output"]
        with torch.no_grad():
            expected = _forward(unet, inputs).numpy()
    error = float(np.abs(made - expected).max() / np.abs(expected).max())
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    parameters = sum(int(np.prod(shape)) for shape in shapes.values())
    return {
        "diffusers": {"seconds": statistics.median(theirs[1:]), "all": theirs},
        "merged": {
            "seconds": statistics.median(ours[1:]),
            "ratio": statistics.median(ratios),
            "all": ours,
            "error": error,
            "parameters": parameters,
        },
    }


def _swap(pipe: Any, file: Path) -> None:
    """From whatever works to this LoRA; the one before is forgotten, so nothing is read twice."""
    before = list(pipe.loras)
    pipe.set_loras({file: 1.0})
    if before:
        pipe.unload_loras(*before)


def _fuse(unet: Any, file: Path) -> None:
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


# SDXL's UNet at full size


def full(folder: Path, rounds: int) -> dict[str, Any]:
    """Each way in processes of its own, one after the other in every round."""
    make_full(folder)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.lora_swap", "--full", str(folder)]
            output = subprocess.check_output([*command, "--way", way], text=True)  # noqa: S603
            found[way].append(json.loads(output.splitlines()[-1]))
    return {way: _row(found[way], found["diffusers"]) for way in WAYS}


def _row(runs: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = list(zip(runs, reference, strict=True))
    row = {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "ratio": statistics.median(run["seconds"] / other["seconds"] for run, other in pairs),
        "memory": statistics.median(run["memory"] for run in runs),
        "all": [run["seconds"] for run in runs],
    }
    if runs[0]["probes"]:
        row["error"] = max(_probe_error(run["probes"], other["probes"]) for run, other in pairs)
    return row


def _probe_error(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> float:
    return max(
        float(np.abs(np.subtract(ours[name], theirs[name])).max() / np.abs(theirs[name]).max())
        for name in PROBES
    )


def make_full(folder: Path) -> None:
    """A UNet with random weights in one file, and a LoRA for it, made once."""
    from benchmarks.gpu.checkpoints import write_shards
    from eri_export import shipped
    from tests.single_files import full_size

    if (folder / "lora.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    import torch

    shapes = {k: tuple(v.shape) for k, v in full_size("sdxl-base", "unet").items()}
    write_shards(folder, shapes, torch.float32)
    config = json.dumps(shipped.configs("sdxl-base")["unet"])
    (folder / "config.json").write_text(config, encoding="utf-8")
    make_lora(shapes, folder / "lora.safetensors", 0)


def full_way(way: str, folder: Path) -> dict[str, Any]:
    """Seconds, memory, and a row of each probed weight."""
    run = {"diffusers": full_diffusers, "merged": full_merged, "inputs": full_inputs}[way]
    return run(folder)


def full_diffusers(folder: Path) -> dict[str, Any]:
    """Load and fuse into a UNet that is in memory."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder)
    before = peak()
    seconds = timed(lambda: _fuse(unet, folder / "lora.safetensors"))
    state = {n.replace(".base_layer", ""): p for n, p in unet.state_dict().items()}
    probes = {name: state[name][0].tolist() for name in PROBES}
    return {"seconds": seconds, "memory": peak() - before, "probes": probes}


def full_merged(folder: Path) -> dict[str, Any]:
    """Match and merge every weight of files that were read before."""
    from eri_runtime.lora import adapters, merged_weights
    from eri_runtime.tensors import read_tensors

    base = _base(folder)
    for values in base.values():
        values.max()
    before, merged = _private(), {}

    def swap() -> None:
        shapes = {"denoiser": {name: each.shape for name, each in base.items()}}
        found = adapters(read_tensors(folder / "lora.safetensors"), "sdxl", shapes)
        changes = {k: [(each, 1.0) for each in own] for k, own in found["denoiser"].items()}
        merged.update(merged_weights(base, changes))

    seconds = timed(swap)
    probes = {name: merged[name][0].tolist() for name in PROBES}
    return {"seconds": seconds, "memory": _private() - before, "probes": probes}


def full_inputs(folder: Path) -> dict[str, Any]:
    """Match, and make the inputs that a graph of rank 32 takes."""
    from eri_runtime.lora import adapters
    from eri_runtime.lora_inputs import LoraInputs
    from eri_runtime.spec import ComponentSpec
    from eri_runtime.tensors import read_tensors

    shapes = {name: each.shape for name, each in _base(folder).items()}
    inputs = LoraInputs(_spec_of(shapes, ComponentSpec))
    before, made = _private(), []

    def swap() -> None:
        tensors = read_tensors(folder / "lora.safetensors")
        loaded = {"style": adapters(tensors, "sdxl", {"denoiser": shapes})}
        made.append(inputs.products([{"style": 1.0}], loaded))

    seconds = timed(swap)
    return {"seconds": seconds, "memory": _private() - before, "probes": {}}


def _spec_of(shapes: Mapping[str, tuple[int, ...]], kind: Any) -> Any:
    """The denoiser of a bundle that was exported with `--lora-rank 32`, as far as it matters."""
    from eri_runtime.spec import LORA_A, LORA_B, LORAS, ShapeRange, TensorSpec
    from eri_runtime.spec import RANK as RANKS

    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    inputs = [
        TensorSpec(name=prefix + name, dtype="float32", shape=sides)
        for name, (out, width) in matrices.items()
        for prefix, sides in ((LORA_A, (LORAS, width, RANKS)), (LORA_B, (LORAS, RANKS, out)))
    ]
    one = ShapeRange(min=1, opt=1, max=8)
    return kind(
        graph="",
        weights="",
        precision="fp32",
        inputs=tuple(inputs),
        outputs=(),
        ranges={LORAS: one, RANKS: ShapeRange(min=1, opt=RANK, max=RANK)},
        parameters=0,
        parity=0.0,
    )


def _base(folder: Path) -> dict[str, np.ndarray]:
    from eri_runtime.tensors import read_tensors

    files = [read_tensors(file) for file in sorted(folder.glob("diffusion*.safetensors"))]
    return {name: each[name] for each in files for name in each}


def _private() -> float:
    """Memory that no file stands for, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6


if __name__ == "__main__":
    main()
