"""The worker of PyTorch: diffusers' own pipeline, run in one of several common ways.

`python -m eri_export.bench.torch_worker` reads and writes lines of JSON.

A way is `eager`, or any of `channels-last`, `bf16` (autocast), `bf16-weights` and `compile` joined
with `+`.
"""

from __future__ import annotations

from typing import Any

import torch

from eri_export.bench.diffusers_calls import HARNESS_S, DiffusersDrawer
from eri_runtime.bench.worker_server import Drawer, Opened, Setup, serve
from eri_runtime.errors import UnknownNameError

EAGER = "eager"
PARTS = ("channels-last", "bf16", "bf16-weights", "compile")
NETWORKS = ("unet", "transformer")


def make(setup: Setup) -> tuple[Drawer, Opened]:
    """Loads a checkpoint and applies the parts of the way, such as channels-last or compile."""
    parts = parts_of(setup.variant)
    torch.set_num_threads(setup.threads)
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = torch.bfloat16 if "bf16-weights" in parts else torch.float32
    pipe = load(setup.checkpoint, dtype).to(setup.device)
    if "channels-last" in parts:
        modules: tuple[Any, Any] = (network(pipe), pipe.vae)
        for module in modules:
            module.to(memory_format=torch.channels_last)
    if "compile" in parts:  # one graph per size, the fastest
        network(pipe).compile(dynamic=False)
        pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)
    autocast = torch.autocast(setup.device, torch.bfloat16, enabled="bf16" in parts)
    lower = parts & {"bf16", "bf16-weights"}
    words = f"PyTorch {torch.__version__}, {setup.variant}, threads {setup.threads}"
    return DiffusersDrawer(pipe, autocast, setup.device), Opened(
        words=words, precision="bf16" if lower else "fp32", versions={}, harness_s=HARNESS_S
    )


def parts_of(way: str) -> set[str]:
    """Returns the parts of a way's name; raises UnknownNameError for an unknown part."""
    parts = set(way.split("+")) - {EAGER}
    if unknown := sorted(parts - set(PARTS)):
        expected = f"{EAGER}, or {', '.join(PARTS)} with + between"
        raise UnknownNameError("--torch", got=", ".join(map(repr, unknown)), expected=expected)
    return parts


def load(checkpoint: str | None, dtype: torch.dtype) -> Any:
    """Loads diffusers' pipeline from a folder."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def network(pipe: Any) -> torch.nn.Module:
    """Returns the pipeline's denoiser."""
    names = (name for name in NETWORKS if hasattr(pipe, name))
    denoiser: torch.nn.Module = getattr(pipe, next(names))
    return denoiser


if __name__ == "__main__":
    serve(make)
