"""What `benchmarks.memory` measures, each in a process of its own: ours and diffusers, by mode.

    python -m benchmarks.memory_subjects ours MODE BUNDLE SIZE IMAGES OUT.npy
    python -m benchmarks.memory_subjects diffusers MODE CHECKPOINT SIZE IMAGES OUT.npy

Draws one picture or more with one step, and prints a line of JSON: seconds, and the peak of the
resident memory by the kernel's own count (VmHWM). Neither imports what it does not need.
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
    """(B, H, W, 3) by this project."""
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
    made: np.ndarray = result.images
    return made


def theirs(mode: str, checkpoint: Path, size: int, images: int) -> np.ndarray:
    """(B, H, W, 3) by diffusers, in its mode of the same name, on a CPU."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    torch.set_grad_enabled(False)
    pipe = StableDiffusionXLPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    SWITCHES[mode](pipe)
    generators = [torch.Generator("cpu").manual_seed(SEED + i) for i in range(images)]
    made: np.ndarray = pipe(
        height=size,
        width=size,
        num_images_per_prompt=images,
        generator=generators,
        output_type="np",
        **WORDS,
    ).images
    return made


def _disk_offload(pipe: Any) -> None:
    """Accelerate's own: weights lie in a folder, and each module's are read when it runs."""
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
    """Bytes that were resident at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Run one subject."""
    whose, mode, root, size, images, out = sys.argv[1:]
    draw = {"ours": ours, "diffusers": theirs}[whose]
    begun = time.perf_counter()
    made = draw(mode, Path(root), int(size), int(images))
    seconds = time.perf_counter() - begun
    np.save(out, made)
    sys.stdout.write(json.dumps({"seconds": round(seconds, 2), "rss": peak()}) + "\n")


if __name__ == "__main__":
    main()
