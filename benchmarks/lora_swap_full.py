"""The full-size part of `lora_swap`: SDXL's UNet, each way in its own process."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lora_swap_parts import RANK, fuse, make_lora, peak, timed

WAYS = ("diffusers", "merged", "inputs")
PROBES = (
    "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.transformer_blocks.5.ff.net.0.proj.weight",
    "up_blocks.0.attentions.2.proj_out.weight",
)


def main() -> None:
    """Measures one way and prints JSON: seconds, memory, and a row of each probed weight."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    runs = {"diffusers": full_diffusers, "merged": full_merged, "inputs": full_inputs}
    sys.stdout.write(json.dumps(runs[options.way](options.folder)))


def full(folder: Path, rounds: int) -> dict[str, Any]:
    """Measures each way in new processes, in turns."""
    make_full(folder)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.lora_swap_full", way, str(folder)]
            output = subprocess.check_output(command, text=True)  # noqa: S603
            runs[way].append(json.loads(output.splitlines()[-1]))
    return {way: _row(runs[way], runs["diffusers"]) for way in WAYS}


def _row(runs: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns medians and ratios to the reference."""
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
    """Returns the largest error of the probed weights over their largest value."""
    return max(
        float(np.abs(np.subtract(ours[name], theirs[name])).max() / np.abs(theirs[name]).max())
        for name in PROBES
    )


def make_full(folder: Path) -> None:
    """Makes a UNet with random weights and a LoRA for it, unless they exist."""
    from benchmarks.gpu.checkpoints import write_shards
    from eri_export.checkpoints import shipped_configs
    from tests.support.single_files import full_size

    if (folder / "lora.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    import torch

    shapes = {k: tuple(v.shape) for k, v in full_size("sdxl-base", "unet").items()}
    write_shards(folder, shapes, torch.float32)
    config = json.dumps(shipped_configs.configs("sdxl-base")["unet"])
    (folder / "config.json").write_text(config, encoding="utf-8")
    make_lora(shapes, folder / "lora.safetensors", 0)


def full_diffusers(folder: Path) -> dict[str, Any]:
    """Times diffusers' load and fuse into a UNet in memory."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder)
    before = peak()
    seconds = timed(lambda: fuse(unet, folder / "lora.safetensors"))
    state = {n.replace(".base_layer", ""): p for n, p in unet.state_dict().items()}
    probes = {name: state[name][0].tolist() for name in PROBES}
    return {"seconds": seconds, "memory": peak() - before, "probes": probes}


def full_merged(folder: Path) -> dict[str, Any]:
    """Times matching and merging of every weight, with the files in the page cache."""
    from eri_runtime.bundle import read_tensors
    from eri_runtime.weights import adapters, merged_weights

    base = _base(folder)
    for values in base.values():
        values.max()
    before, merged = _private(), {}

    def swap() -> None:
        shapes = {"denoiser": {name: each.shape for name, each in base.items()}}
        matched = adapters(read_tensors(folder / "lora.safetensors"), "sdxl", shapes)
        changes = {k: [(each, 1.0) for each in own] for k, own in matched["denoiser"].items()}
        merged.update(merged_weights(base, changes))

    seconds = timed(swap)
    probes = {name: merged[name][0].tolist() for name in PROBES}
    return {"seconds": seconds, "memory": _private() - before, "probes": probes}


def full_inputs(folder: Path) -> dict[str, Any]:
    """Times matching and computing the inputs of a graph that takes rank 32."""
    from eri_runtime.bundle import ComponentSpec, read_tensors
    from eri_runtime.weights import LoraInputs, adapters

    shapes = {name: each.shape for name, each in _base(folder).items()}
    inputs = LoraInputs(_spec_of(shapes, ComponentSpec))
    before, products = _private(), []

    def swap() -> None:
        tensors = read_tensors(folder / "lora.safetensors")
        loaded = {"style": adapters(tensors, "sdxl", {"denoiser": shapes})}
        products.append(inputs.products([{"style": 1.0}], loaded))

    seconds = timed(swap)
    return {"seconds": seconds, "memory": _private() - before, "probes": {}}


def _spec_of(shapes: Mapping[str, tuple[int, ...]], kind: Any) -> Any:
    """Returns what matters of the denoiser's spec in a bundle exported with `--lora-rank 32`."""
    from eri_runtime.bundle import LORA_A, LORA_B, LORAS, ShapeRange, TensorSpec
    from eri_runtime.bundle import RANK as RANKS

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
    """Maps the UNet's weights."""
    from eri_runtime.bundle import read_tensors

    files = [read_tensors(file) for file in sorted(folder.glob("diffusion*.safetensors"))]
    return {name: each[name] for each in files for name in each}


def _private() -> float:
    """Returns the GB of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6


if __name__ == "__main__":
    main()
