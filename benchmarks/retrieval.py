"""Checks that the embedded checkpoints draw what their prompts say.

For captions chosen with a fixed seed, the training image nearest to the generated one should be the
caption's own. Needs the training images, which are not in the repository; unpack both:

    npm pack @lobehub/fluent-emoji-3d@1.1.0 unicode-emoji-json@0.9.0
    python benchmarks/retrieval.py BUNDLE --emoji ASSETS --names data-by-emoji.json

Writes benchmarks/results/retrieval.json, retrieval-sdxl.json or retrieval-flux.json, and with
--sheet a sheet of all images.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import eri_runtime as eri
from eri_export.embedded.emoji_data import find_samples, load_pixels
from eri_export.embedded.retrieval import nearest_images, nearest_vectors, shrink
from eri_runtime.images import contact_sheet
from eri_runtime.latents import vae
from eri_runtime.version import eri_version

RESULTS = Path(__file__).parent / "results"
COUNT = 50


def main() -> None:
    """Generates, finds the nearest images and writes the results."""
    options = parse()
    samples = find_samples(options.emoji, options.names)
    chosen = random.Random(0).sample(range(len(samples)), COUNT)  # noqa: S311 a fixed draw
    with eri.load(options.bundle) as pipe:
        height, width = pipe.bundle.defaults.height, pipe.bundle.defaults.width
        images, latents = generate(pipe, [samples[i].caption for i in chosen], options)
        training = np.stack([load_pixels(sample.path, height) for sample in samples])
        encoded = encode(pipe, training)
        bundle = pipe.bundle
    pixel = nearest_images(np.stack([np.asarray(image) for image in images]), training)
    latent = nearest_vectors(vae.unpack(bundle, latents, height, width), encoded)
    report = {
        "captions": COUNT,
        "training_images": len(samples),
        "nearest_in_pixels": pixel.accuracy(chosen),
        "nearest_in_latents": latent.accuracy(chosen),
        "wrong_in_pixels": [
            {"asked": samples[i].caption, "nearest": samples[int(j)].caption}
            for i, j in zip(chosen, pixel.nearest, strict=True)
            if i != j
        ],
        "settings": {
            "steps": options.steps or bundle.defaults.num_inference_steps,
            "guidance": options.guidance or bundle.defaults.guidance_scale,
            "sampler": bundle.defaults.sampler,
            "size": f"{width}x{height}",
            "seeds": f"0 to {COUNT - 1}",
        },
        "source_digest": bundle.source_digest,
        "precision": bundle.components["denoiser"].precision,
        "machine": f"{platform.machine()}, ONNX Runtime CPU",
        "eri": eri_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    name = "retrieval" if bundle.family == "sd35" else f"retrieval-{bundle.family}"
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if options.sheet:
        contact_sheet(images, columns=10).save(options.sheet)
    if options.thumbnails:
        thumbnails(training).save(options.thumbnails, optimize=True)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sheet", type=Path, help="write all images as one picture")
    parser.add_argument("--thumbnails", type=Path, help="write the training images, 24 px high")
    return parser.parse_args()


def generate(
    pipe: eri.Pipeline, captions: list[str], options: argparse.Namespace
) -> tuple[list[Image.Image], np.ndarray]:
    """Draws caption i with seed i; returns PIL images and latents in the VAE's scale."""
    images, latents = [], []
    for start in range(0, len(captions), 5):
        result = pipe(
            captions[start : start + 5],
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            seed=start,
        )
        images += result.images
        latents.append(result.latents)
    spec = pipe.bundle.latents
    return images, np.concatenate(latents) / spec.scale + spec.shift


def thumbnails(training: np.ndarray) -> Image.Image:
    """Returns all training images below one another, reduced to the means of 4 x 4 squares."""
    squares = np.round(shrink("training", training, 4)).astype(np.uint8)
    return Image.fromarray(squares.reshape(-1, squares.shape[2], 3))


def encode(pipe: eri.Pipeline, pixels: np.ndarray) -> np.ndarray:
    """Returns the posterior means of uint8 images (N, H, W, 3)."""
    scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    batches = [scaled[i : i + 4] for i in range(0, len(scaled), 4)]
    return np.concatenate([pipe.run("vae_encoder", {"image": batch})["mean"] for batch in batches])


if __name__ == "__main__":
    main()
