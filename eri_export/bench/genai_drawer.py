"""Calls OpenVINO GenAI's text-to-image pipeline with given noise, and marks its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from PIL import Image

from eri_runtime.bench.worker_server import Drawer, Job, Stopwatch, png_files

DEVICE = "CPU"


class GivenNoise(genai.Generator):  # type: ignore[misc]  # it has no types
    """A generator that returns the job's unit noise instead of drawing any."""

    def __init__(self, noise: np.ndarray) -> None:
        super().__init__()
        self._noise = np.ascontiguousarray(noise, np.float32)

    def next(self) -> float:
        """Raises RuntimeError: the pipeline draws whole tensors, and single numbers are none."""
        raise RuntimeError("OpenVINO GenAI asked for a single random number")

    def randn_tensor(self, shape: Any) -> ov.Tensor:
        """Returns the noise; raises RuntimeError if another shape is asked for."""
        if tuple(shape) != self._noise.shape:
            raise RuntimeError(f"noise: got shape {tuple(shape)}, expected {self._noise.shape}")
        return ov.Tensor(self._noise)


class GenaiDrawer(Drawer):
    """Runs each job as one call of `Text2ImagePipeline`.

    The pipeline tells the end of each step and, afterwards, how long the text encoders took, so
    `encode` is that sum, and the first step has what else comes before it.
    """

    def __init__(self, folder: Path, properties: Mapping[str, Any]) -> None:
        self._pipe = genai.Text2ImagePipeline(folder, DEVICE, **properties)

    def draw(self, job: Job, watch: Stopwatch) -> None:
        """Generates and writes the images, and marks the stages; a warm-up stops after its steps.

        Args:
            job: What to draw.
            watch: What is told the end of every stage.
        """
        ends: list[float] = []

        def on_step(_step: int, _steps: int, _latent: ov.Tensor) -> bool:
            ends.append(watch.now())
            return False

        images = self._pipe.generate(
            job.prompt,
            width=job.width,
            height=job.height,
            num_inference_steps=job.steps,
            num_images_per_prompt=job.images,
            guidance_scale=job.guidance,
            max_sequence_length=job.tokens,
            generator=GivenNoise(np.load(job.latents)),
            callback=on_step,
        )
        decoded = watch.now()
        encoders = self._pipe.get_performance_metrics().get_text_encoder_infer_duration()
        watch.mark(
            "encode", watch.started + min(sum(encoders.values()) / 1e3, ends[0] - watch.started)
        )
        for end in ends:
            watch.mark("step", end)
        if job.output is None:
            return
        watch.mark("decode", decoded)
        for pixels, file in zip(images.data, png_files(job.output, job.images), strict=True):
            Image.fromarray(pixels).save(file)
        watch.mark("png")
