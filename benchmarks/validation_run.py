"""Validates during a short training run, and reads the logged images back from its events.

    pip install '.[export,train]' && python -m benchmarks.validation_run

The embedded checkpoint draws a few prompts. Then noise of 0.6 of each tensor's standard deviation
is added to the denoiser's weights, and denoiser and text encoders are trained on these drawings. A
bundle is exported once at the start; every few steps an open pipeline gets the current weights.

`rms` is the root-mean-square distance, in levels of 255, between the images in TensorBoard's event
file and the drawings; `nearest` is how many are closer to their own drawing than to any other;
`validation_seconds` is the median time to update the pipeline with both kinds of weights and draw
with each. Writes validation_run.json and validation_run.webp: the drawings, then the logged images
of the averaged weights, one row per step.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eri_runtime as eri
from eri_export.embedded import checkpoint, models, train_tokenizers
from eri_export.embedded.denoiser import shipped_denoiser
from eri_export.embedded.emoji_data import captions
from eri_export.embedded.train_denoiser import RATE, fit
from eri_export.embedded.training_loop import Run
from eri_export.embedded.training_pictures import GUIDANCE, SEED, STEPS, Watch
from eri_export.publishing.export_bundle import export
from eri_runtime.images import contact_sheet
from eri_runtime.version import eri_version

RESULTS = Path(__file__).parent / "results"
NAMES = ("red heart", "red apple", "pizza", "rocket", "sunflower", "octopus")
NOISE, BATCH = 0.6, 6
Images = NDArray[np.uint8]
Logged = dict[str, dict[int, Images]]


def main() -> None:
    """Trains, validates and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--every", type=int, default=50, metavar="STEPS")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bundle = export(checkpoint(), Path(work) / "bundle").root
        report, images = train_and_validate(
            bundle, Path(work), NAMES, noise=NOISE, minutes=options.minutes, every=options.every
        )
    report = {
        "command": "python -m benchmarks.validation_run",
        "device": f"{platform.machine()}, ONNX Runtime CPU",
        "cores": len(os.sched_getaffinity(0)),
        "eri": eri_version(),
        "torch": torch.__version__,
        **report,
    }
    body = json.dumps(report, indent=1) + "\n"
    (options.output / "validation_run.json").write_text(body)
    sheet = contact_sheet(images, len(NAMES)).quantize(256)
    sheet.save(options.output / "validation_run.webp", lossless=True)
    sys.stdout.write(body)


def train_and_validate(
    bundle: Path, work: Path, names: Sequence[str], *, noise: float, minutes: float, every: int
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Runs the training; returns its figures and the images of the averaged weights."""
    prompts = [captions(name)[0] for name in names]
    torch.manual_seed(0)
    tokenizers = train_tokenizers.build_tokenizers()
    denoiser = shipped_denoiser(checkpoint(), tokenizers)
    add_noise(denoiser.transformer, noise)
    run = Run(work / "denoiser.pt", denoiser, lr=RATE, seed=0)
    with eri.load(bundle) as pipe:
        drawings, latents = draw_targets(pipe, prompts)
    seconds: list[float] = []
    with Watch(bundle, work / "watch", every=every, prompts=prompts) as watch:

        def after(run: Run) -> None:
            started = time.perf_counter()
            watch(run)
            if run.step % every == 0:
                seconds.append(time.perf_counter() - started)

        fit(run, latents, names, tokenizers, minutes=minutes, batch=BATCH, after=after)
        if run.step % every:
            watch.draw(run)
    logged = read_back(work / "watch" / "events")
    report = {
        "prompts": prompts,
        "steps": run.step,
        "minutes": round(run.elapsed / 60, 2),
        "pictures_each_time": 2 * len(prompts),
        "validation_seconds": round(float(np.median(seconds)), 2),
        **{name: compare(images, drawings) for name, images in logged.items()},
    }
    rows = [drawings, *logged["ema"].values()]
    return report, [Image.fromarray(image) for row in rows for image in row]


@torch.no_grad()
def add_noise(module: torch.nn.Module, share: float) -> None:
    """Adds normal noise of `share` times its tensor's standard deviation to every weight."""
    for weight in module.parameters():
        weight.add_(torch.randn_like(weight), alpha=share * float(weight.std()))


def draw_targets(pipe: eri.Pipeline, prompts: Sequence[str]) -> tuple[Images, torch.Tensor]:
    """Draws the prompts with the seeds of `Watch`; returns (N, H, W, 3) uint8 and the latents."""
    words: Any = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    sizes: Any = {"height": models.IMAGE_SIZE, "width": models.IMAGE_SIZE}
    result = pipe(list(prompts), seed=SEED, **words, **sizes)
    return np.round(255 * result.images).astype(np.uint8), torch.from_numpy(result.latents)


def read_back(events: Path) -> Logged:
    """Reads the images of an event file, (N, H, W, 3) uint8, by kind of weights and step."""
    reader = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    logged: dict[str, dict[int, list[Images]]] = {}
    for tag in sorted(reader.Tags()["images"]):
        for event in reader.Images(tag):
            image = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
            logged.setdefault(tag.partition("/")[0], {}).setdefault(event.step, []).append(image)
    return {
        kind: {step: np.stack(images) for step, images in sorted(steps.items())}
        for kind, steps in logged.items()
    }


def compare(logged: dict[int, Images], drawings: Images) -> dict[str, Any]:
    """Returns the distance of each step's images to the drawings, and how many are nearest."""
    rms = {}
    nearest = {}
    for step, images in logged.items():
        errors = images[:, None].astype(np.float64) - drawings[None]
        distance = np.sqrt((errors**2).mean(axis=(2, 3, 4)))
        rms[step] = round(float(distance.diagonal().mean()), 1)
        nearest[step] = int((distance.argmin(axis=1) == np.arange(len(drawings))).sum())
    return {"rms": rms, "nearest": nearest}


if __name__ == "__main__":
    main()
