"""Shared by both sizes of `lora_swap`: the LoRA, diffusers' way, time and memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

RANK = 32


def make_lora(shapes: Mapping[str, tuple[int, ...]], path: Path, seed: int) -> Path:
    """Writes a LoRA of every linear layer in diffusers' names, about a tenth of each weight."""
    rng, factors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if len(shape) == 2 and "time_emb" not in name and "embedding" not in name:
            module = "unet." + name.removesuffix(".weight")
            size = 0.3 / (RANK * shape[1]) ** 0.25
            for end, sides in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                values = size * rng.standard_normal(sides, np.float32)
                factors[f"{module}.lora_{end}.weight"] = values.astype(np.float16)
    save_file(factors, path)
    return path


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measured(swap: Callable[[], object], forward: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds and CPU seconds of a swap, and of it with the first forward pass."""
    starts = time.perf_counter(), time.process_time()
    swap()
    swapped = time.perf_counter() - starts[0], time.process_time() - starts[1]
    forward()
    return {
        "seconds": swapped[0],
        "cpu": swapped[1],
        "seconds_with_forward": time.perf_counter() - starts[0],
        "cpu_with_forward": time.process_time() - starts[1],
    }


def peak() -> float:
    """Returns the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def fuse(unet: Any, file: Path) -> None:
    """Loads and fuses a LoRA with diffusers, instead of the previous one."""
    if getattr(unet, "peft_config", None):
        unet.unfuse_lora()
    attach(unet, file)
    unet.fuse_lora()


def attach(unet: Any, file: Path) -> None:
    """Loads a LoRA with diffusers beside the weights, instead of the previous one.

    This is what `load_lora_weights` and `set_adapters` do: every forward pass multiplies by it.
    """
    if getattr(unet, "peft_config", None):
        unet.unload_lora()
    unet.load_lora_adapter(file.parent, weight_name=file.name, prefix="unet", adapter_name="style")
    unet.set_adapters("style")
