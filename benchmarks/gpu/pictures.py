"""Whole pictures from a prompt, and the VAE's decoder alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.gpu import parity
from benchmarks.gpu.latency import milliseconds, spread
from benchmarks.gpu.memory import watched
from benchmarks.gpu.record import failure
from benchmarks.gpu.settings import Model, Settings
from benchmarks.gpu.subjects import pipeline

PROMPT = "a red heart on a blue ground"
DECODER = "vae_decoder"
STEPS = {"cpu/numpy": 4, "torch/eager": 20}  # of a picture, by the reference of its model
PICTURES, DECODES = 3, 5


def picture(settings: Settings, name: str, subjects: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields a row for each subject: the times of whole pictures, text encoders and VAE included.

    Every picture has another seed and prompt, so that nothing is taken from a cache. Those of a
    tiny bundle are compared with the CPU's; at full size there is nothing to compare with.
    """
    model = settings.model(name)
    precision = model.bundle.components["denoiser"].precision
    steps = 2 if settings.rehearsal else STEPS[model.reference]
    for subject in subjects:
        with watched(settings.device) as memory, pipeline(settings, model, subject) as pipe:
            pairs = [milliseconds(lambda n=n: _make(pipe, steps, n)) for n in range(PICTURES)]
        row = {
            "part": "picture",
            "subject": subject,
            "precision": precision,
            "steps": steps,
            "total_ms": spread([each for each, _ in pairs[1:]]),  # the first one opens everything
            "first_ms": round(pairs[0][0], 1),
            "device_mb": memory.peak_mb,
        }
        yield row | _judged(settings, model, [made for _, made in pairs], steps)


def _make(pipe: eri.Pipeline, steps: int, number: int) -> np.ndarray:
    """Returns one picture, (H, W, 3) in [0, 1]."""
    result = pipe(f"{PROMPT} {number}", num_inference_steps=steps, seed=number)
    return np.asarray(result.images[0], np.float32) / 255


def _judged(settings: Settings, model: Model, made: list[np.ndarray], steps: int) -> dict[str, Any]:
    """Returns the verdict on the pictures of a tiny bundle, or that they are no single colour."""
    if model.networks:
        varied = all(float(each.std()) > 0 for each in made)
        return {"parity": None, "counts": varied}
    with pipeline(settings, model, model.reference) as pipe:
        expected = [_make(pipe, steps, number) for number in range(len(made))]
    worst = max(float(np.abs(a - b).max()) for a, b in zip(made, expected, strict=True))
    precision = model.bundle.components["denoiser"].precision
    verdict = {"against": model.reference, **parity.verdict(worst, "picture", precision)}
    return {"parity": verdict, "counts": verdict["passed"]}


def decode(settings: Settings, name: str, subjects: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields a row for each subject: the decoder's times, from array to array."""
    model = settings.model(name)
    spec = model.bundle.components[DECODER]
    inputs = parity.drawn(spec)
    with pipeline(settings, model, model.reference) as pipe:
        expected = pipe.run(DECODER, inputs)
    for subject in subjects:
        try:
            with watched(settings.device) as memory, pipeline(settings, model, subject) as pipe:
                runs = [milliseconds(lambda: pipe.run(DECODER, inputs)) for _ in range(DECODES + 1)]
        except Exception as error:
            yield {"part": "component", "what": DECODER, **failure(subject, error)}
            continue
        errors = [parity.output_error(found, expected) for _, found in runs]
        # TF32 has float16's 11 bits
        precision = "fp16" if "tf32" in subject else spec.precision
        verdict = parity.verdict(float(np.max(errors)), "component", precision)
        yield {
            "part": "component",
            "what": DECODER,
            "subject": subject,
            "precision": spec.precision,
            "parity": {"against": model.reference, **verdict},
            "counts": verdict["passed"],
            "total_ms": spread([each for each, _ in runs[1:]]),
            "device_mb": memory.peak_mb,
        }
