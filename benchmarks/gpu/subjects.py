"""The subjects that are compared: our backends with each of their loops, and PyTorch.

A subject is named `backend/loop`: `cuda/numpy` runs the bare denoiser from NumPy's loop,
`cuda/step` the step graph, `cuda/captured` the step graph as a CUDA graph. What follows a `+`
changes it: `name=value` is an option of ONNX Runtime's CUDA provider, `plain` hides the graph in
the form for CUDA. `torch/eager`, `torch/channels-last`, `torch/tf32` and `torch/compile` are
PyTorch. Every subject is an `eri.Pipeline` with the same request, so all take the same steps.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

import eri_runtime as eri
from benchmarks.gpu.settings import GUIDANCE, Model, Settings
from eri_runtime import executors
from eri_runtime.bundle import Bundle
from eri_runtime.errors import BackendError
from eri_runtime.executors import Arrays, Stepper
from eri_runtime.loop import Step

Trajectory = Iterator[Step]
TORCH = "torch"
PLAIN = "plain"
CUDA = "CUDAExecutionProvider"
UNCHANGED = "unchanged"  # the attribute of a changed class with the library's own


@contextmanager
def pipeline(settings: Settings, model: Model, subject: str) -> Iterator[eri.Pipeline]:
    """Opens a subject for the block; afterwards frees what memory its engine releases."""
    backend, loop, options = parsed(subject)
    if backend == TORCH:
        pipe, options = _torch(settings, model, loop), {}
    else:
        hidden = options.pop(PLAIN, None) is not None
        bundle = model.without_cuda_form() if hidden else model.bundle
        # a full-size bundle has random weights, whose sha256 is not the manifest's; see `pack`
        engine = executors.choose(bundle, backend, verify="never")
        pipe = eri.Pipeline(bundle, engine, engine.stepper, "numpy" if loop == "numpy" else "step")
    try:
        with provider_options(options), pipe:
            yield pipe
    finally:
        del pipe
        gc.collect()
        if backend == TORCH and settings.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def parsed(subject: str) -> tuple[str, str, dict[str, str]]:
    """Returns a subject's backend, loop and changes of the provider's options."""
    name, _, changes = subject.partition("+")
    backend, loop = name.split("/")
    options = {key: value for key, _, value in (each.partition("=") for each in changes.split(","))}
    options.pop("", None)
    if loop != "captured":
        options["enable_cuda_graph"] = "0"
    return backend, loop, options


@contextmanager
def provider_options(changes: Mapping[str, str]) -> Iterator[None]:
    """Changes options of the CUDA provider of every session that the block opens.

    Of nested blocks the innermost alone counts.
    """
    import onnxruntime as ort

    original = getattr(ort.InferenceSession, UNCHANGED, ort.InferenceSession)

    def opened(*arguments: Any, providers: Any, **words: Any) -> Any:
        changed = [
            (name, {**options, **changes} if name == CUDA else options)
            for name, options in providers
        ]
        return original(*arguments, providers=changed, **words)

    setattr(opened, UNCHANGED, original)
    with patch.object(ort, "InferenceSession", opened):
        yield


def _torch(settings: Settings, model: Model, mode: str) -> eri.Pipeline:
    """Opens PyTorch as a pipeline."""
    from benchmarks.gpu import torch_loop

    bundle = model.bundle

    def component(name: str, _: Arrays) -> torch_loop.TorchExecutor:
        if name not in model.networks:
            expected = f"one of {', '.join(model.networks)}"
            raise BackendError(name, got="PyTorch", expected=expected)
        network = torch_loop.load_network(settings, model, name, mode)
        return torch_loop.TorchExecutor(bundle.components[name], network, settings.device)

    def step(_: Arrays) -> Stepper:
        network = torch_loop.load_network(settings, model, "denoiser", mode)
        return torch_loop.TorchStepper(bundle.components["denoiser"], network, settings.device)

    return eri.Pipeline(bundle, component, step, "step")


def begin(pipe: eri.Pipeline, steps: int, seed: int = 0) -> Trajectory:
    """Starts a trajectory of one image from random embeddings, with CFG if the family has it."""
    return pipe.denoise(pipe.request(**words(pipe.bundle, steps, seed)))


def words(bundle: Bundle, steps: int, seed: int = 0) -> dict[str, Any]:
    """Returns the arguments of the call, the same for every subject."""
    rng = np.random.default_rng(0)
    shapes = {each.name: each.shape for each in bundle.components["denoiser"].inputs}
    tokens = bundle.components["denoiser"].ranges["tokens"].opt
    pooled = "text_embeds" if bundle.family == "sdxl" else "pooled_projections"

    def normal(*shape: Any) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    width, narrow = shapes["encoder_hidden_states"][-1], shapes[pooled][-1]
    prompts = {"prompt_embeds": normal(1, tokens, width), "pooled_prompt_embeds": normal(1, narrow)}
    if bundle.family != "flux":
        prompts["negative_prompt_embeds"] = normal(1, tokens, width)
        prompts["negative_pooled_prompt_embeds"] = normal(1, narrow)
    return {
        **prompts,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "seed": seed,
        "output_type": "latent",
    }
