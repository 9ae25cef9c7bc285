"""What is measured side by side: each backend with each of its loops, and PyTorch twice.

A subject is named `backend/loop`: `cuda/numpy` runs the bare denoiser from NumPy's loop,
`cuda/step` the step graph, `cuda/captured` the step graph as a CUDA graph; on TensorRT a whole
trajectory becomes one by itself when it is run again. `torch/eager` and `torch/compile` are
PyTorch. All are an `eri.Pipeline` with the same request, so all take the same steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.gpu.settings import GUIDANCE, Case, Settings
from eri_runtime import executors, manifest
from eri_runtime.denoise import Step
from eri_runtime.errors import BackendError
from eri_runtime.executors.base import Arrays
from eri_runtime.executors.stepper import Stepper
from eri_runtime.spec import Bundle

Trajectory = Iterator[Step]
TORCH = "torch"
RUNS = {"tensorrt-rtx": "tensorrt"}  # one backend runs both kinds of plans
LOOPS = {"cuda": ("numpy", "step", "captured"), "openvino": ("numpy",), "openvino:bf16": ("numpy",)}


def subjects_of(settings: Settings) -> tuple[str, ...]:
    """The names of all subjects, PyTorch's last."""
    engines = (f"{name}/{loop}" for name in settings.backends for loop in loops_of(name))
    return (*engines, *(f"{TORCH}/{mode}" for mode in settings.torch))


def loops_of(backend: str) -> tuple[str, ...]:
    """What the runtime can do on a backend."""
    return LOOPS.get(backend, ("numpy", "step"))


@contextmanager
def pipeline(settings: Settings, case: Case, subject: str) -> Iterator[eri.Pipeline]:
    """The open subject; its memory is free again afterwards, as far as its engine gives it back."""
    backend, loop = subject.split("/")
    bundle = manifest.read(case.bundle(settings.folder))
    make = _torch if backend == TORCH else partial(_engine, backend)
    pipe = make(settings, case, bundle, loop)
    try:
        with pipe:
            yield pipe
    finally:
        del pipe
        gc.collect()
        if backend == TORCH and settings.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def _engine(
    backend: str, _settings: Settings, _case: Case, bundle: Bundle, loop: str
) -> eri.Pipeline:
    if loop != "captured":
        bundle = uncaptured(bundle)
    engine = executors.choose(bundle, RUNS.get(backend, backend))
    return eri.Pipeline(bundle, engine, engine.stepper, "numpy" if loop == "numpy" else "step")


def uncaptured(bundle: Bundle) -> Bundle:
    """The bundle as if its denoiser took one row more: an engine captures a static graph only."""
    spec = bundle.components["denoiser"]
    rows = spec.ranges["batch"]
    ranges = {**spec.ranges, "batch": replace(rows, max=rows.max + 1)}
    components = {**bundle.components, "denoiser": replace(spec, ranges=ranges)}
    return replace(bundle, components=components)


def _torch(settings: Settings, case: Case, bundle: Bundle, mode: str) -> eri.Pipeline:
    import torch

    from benchmarks.gpu.torch_loop import TorchExecutor, TorchStepper, load_network

    device = settings.device
    recipe, network = load_network(bundle, case.checkpoint(settings.folder), device)
    run: Callable[..., Any] = torch.compile(network) if mode == "compile" else network

    def step(_: Arrays) -> Stepper:
        return TorchStepper(recipe, run, device)

    def component(name: str, _: Arrays) -> TorchExecutor:
        if name != "denoiser":
            raise BackendError(name, got="PyTorch", expected="the denoiser, and no other")
        return TorchExecutor(bundle, recipe, run, device)

    return eri.Pipeline(bundle, component, step, "step")


def begin(pipe: eri.Pipeline, steps: int) -> Trajectory:
    """A trajectory of one image from drawn embeddings, with CFG where the family has it."""
    return pipe.denoise(pipe.request(**words(pipe.bundle, steps)))


def words(bundle: Bundle, steps: int) -> dict[str, Any]:
    """The call that every subject gets."""
    rng = np.random.default_rng(0)
    shapes = {each.name: each.shape for each in bundle.components["denoiser"].inputs}
    tokens = bundle.components["denoiser"].ranges["tokens"].opt
    pooled = "text_embeds" if bundle.family == "sdxl" else "pooled_projections"

    def drawn(*shape: Any) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    width, narrow = shapes["encoder_hidden_states"][-1], shapes[pooled][-1]
    prompts = {"prompt_embeds": drawn(1, tokens, width), "pooled_prompt_embeds": drawn(1, narrow)}
    if bundle.family != "flux":
        prompts["negative_prompt_embeds"] = drawn(1, tokens, width)
        prompts["negative_pooled_prompt_embeds"] = drawn(1, narrow)
    return {
        **prompts,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "seed": 0,
        "output_type": "latent",
    }
