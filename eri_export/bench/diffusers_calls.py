"""Calls a diffusers pipeline and marks the end of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

started = time.perf_counter()
from eri_runtime.bench.worker_server import Drawer, Job, Stopwatch, png_files  # noqa: E402
from eri_runtime.latents import patchify  # noqa: E402

HARNESS_S = time.perf_counter() - started  # diffusers alone would not import the runtime
NOTHING: AbstractContextManager[Any] = nullcontext()


class DiffusersDrawer(Drawer):
    """Runs each job as one call of the pipeline, inside the context `within`."""

    def __init__(
        self, pipe: Any, within: AbstractContextManager[Any] = NOTHING, device: str = "cpu"
    ) -> None:
        self._pipe, self._within, self._device = pipe, within, device

    def draw(self, job: Job, watch: Stopwatch) -> None:
        """Encodes, denoises, decodes and writes, with a mark after each."""
        arguments = self._arguments(job)

        def mark(stage: str) -> None:
            if self._device == "cuda":
                torch.cuda.synchronize()
            watch.mark(stage)

        def on_step(_pipe: Any, _step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            mark("step")
            return tensors

        encode = self._pipe.encode_prompt
        self._pipe.encode_prompt = marked(encode, lambda: mark("encode"))
        try:
            with self._within:
                images = self._pipe(**arguments, callback_on_step_end=on_step).images
        finally:
            self._pipe.encode_prompt = encode
        if job.output is None:
            return
        mark("decode")
        for image, file in zip(images, png_files(job.output, job.images), strict=True):
            image.save(file)
        watch.mark("png")

    def _arguments(self, job: Job) -> dict[str, Any]:
        """Returns the arguments of the pipeline's call."""
        latents = np.load(job.latents)
        if (family := type(self._pipe).__name__).find("Flux") >= 0:
            latents = patchify(latents, 2)
        dtype = getattr(self._pipe, "dtype", torch.float32)  # optimum-intel's pipelines have none
        texts = {} if "XL" in family else {"max_sequence_length": job.tokens}
        return {
            "prompt": job.prompt,
            "width": job.width,
            "height": job.height,
            "num_inference_steps": job.steps,
            "num_images_per_prompt": job.images,
            "guidance_scale": job.guidance,
            "latents": torch.from_numpy(latents).to(self._device, dtype),
            "output_type": "latent" if job.output is None else "pil",
            **texts,
        }


def marked(call: Callable[..., Any], mark: Callable[[], None]) -> Callable[..., Any]:
    """Returns `call` wrapped so that `mark` runs after it."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        mark()
        return result

    return wrapped
