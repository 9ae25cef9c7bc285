"""The subjects of `benchmarks.memory`: eri or diffusers in one memory mode, one per process.

    python -m benchmarks.memory_subjects ours MODE BUNDLE SIZE IMAGES OUT.npy
    python -m benchmarks.memory_subjects diffusers MODE CHECKPOINT SIZE IMAGES OUT.npy

Draws images with one step and prints a line of JSON: seconds, and the peak resident memory as the
kernel counts it (VmHWM). Each subject imports only what it needs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

WORDS: Mapping[str, Any] = {
    "prompt": "a red heart",
    "num_inference_steps": 1,
    "guidance_scale": 5.0,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "low memory": {},
    "attention slicing": {"enable_attention_slicing": True},
    "VAE slicing": {"enable_vae_slicing": True},
    "VAE tiling": {"enable_vae_tiling": True},
    "offload": {"enable_cpu_offload": True},
    "sequential offload": {"enable_sequential_cpu_offload": True},
}
SEED = 0


def ours(mode: str, bundle: Path, size: int, images: int) -> np.ndarray:
    """Draws with eri; returns (B, H, W, 3) float32."""
    import eri_runtime as eri

    memory = eri.MemoryEfficientSamplingConfig(**CONFIGS[mode])
    low_memory = mode == "low memory"
    with eri.load(bundle, "cpu", memory=memory, low_memory=low_memory) as pipe:
        result = pipe(
            height=size,
            width=size,
            num_images_per_prompt=images,
            seed=SEED,
            output_type="np",
            **WORDS,
        )
    pixels: np.ndarray = result.images
    return pixels


def theirs(mode: str, checkpoint: Path, size: int, images: int) -> np.ndarray:
    """Draws with diffusers on a CPU in its mode of the same name; returns (B, H, W, 3) float32."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    torch.set_grad_enabled(False)
    pipe = StableDiffusionXLPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    SWITCHES[mode](pipe)
    generators = [torch.Generator("cpu").manual_seed(SEED + i) for i in range(images)]
    pixels: np.ndarray = pipe(
        height=size,
        width=size,
        num_images_per_prompt=images,
        generator=generators,
        output_type="np",
        **WORDS,
    ).images
    return pixels


def _disk_offload(pipe: Any) -> None:
    """Enables Accelerate's offload: each module's weights are read from a folder when it runs."""
    import tempfile

    from accelerate import disk_offload

    folder = tempfile.mkdtemp(dir=Path(sys.argv[-1]).parent)
    disk_offload(pipe.unet, folder, execution_device="cpu")


SWITCHES: Mapping[str, Callable[[Any], Any]] = {
    "plain": lambda _: None,
    "attention slicing": lambda pipe: pipe.enable_attention_slicing("max"),
    "VAE slicing": lambda pipe: pipe.vae.enable_slicing(),
    "VAE tiling": lambda pipe: pipe.vae.enable_tiling(),
    "offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
    "disk offload": _disk_offload,
}


def peak() -> int:
    """Returns the peak resident bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Runs one subject."""
    whose, mode, root, size, images, out = sys.argv[1:]
    draw = {"ours": ours, "diffusers": theirs}[whose]
    started = time.perf_counter()
    pixels = draw(mode, Path(root), int(size), int(images))
    seconds = time.perf_counter() - started
    np.save(out, pixels)
    sys.stdout.write(json.dumps({"seconds": round(seconds, 2), "rss": peak()}) + "\n")


if __name__ == "__main__":
    main()
