"""Draws examples of what a call can do besides text to image, with the embedded checkpoint.

    eri demo && python -m benchmarks.edits engines/demo

Row 1: a drawing, and image to image from it at rising strength. Row 2: a mask, two prompts painted
into its white half, and two prompts combined at three weights. Row 3: previews of x_0 at five of
the steps, and the final picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import eri_runtime as eri
from eri_runtime.images import contact_sheet, write_png

OUTPUT = Path(__file__).parent / "results" / "edits.png"
WORDS = {"guidance_scale": 4.0, "seed": 0}
STRENGTHS = (0.06, 0.1, 0.14, 0.2, 0.5)
WEIGHTS = (0.7, 0.5, 0.3)
COLUMNS = 6


def edited(pipe: eri.Pipeline, drawing: Image.Image, prompt: str) -> list[Image.Image]:
    """Draws image to image at every strength."""
    words = {"image": drawing, "num_inference_steps": 50, **WORDS}
    return [pipe(prompt, strength=share, **words).images[0] for share in STRENGTHS]


def repainted(pipe: eri.Pipeline, drawing: Image.Image, prompts: list[str]) -> list[Image.Image]:
    """Returns the mask, and the picture that each prompt paints into it."""
    white = np.zeros((drawing.height, drawing.width), np.uint8)
    white[:, drawing.width // 2 :] = 255
    mask = Image.fromarray(white)
    words = {"image": drawing, "mask": mask, "strength": 1.0, "num_inference_steps": 50, **WORDS}
    return [mask.convert("RGB"), *(pipe(prompt, **words).images[0] for prompt in prompts)]


def mixed(pipe: eri.Pipeline, one: str, other: str) -> list[Image.Image]:
    """Draws pictures of two combined prompts, from the one to the other."""
    prompts = [{one: weight, other: 1 - weight} for weight in WEIGHTS]
    return [pipe(prompt, num_inference_steps=30, **WORDS).images[0] for prompt in prompts]


def previewed(pipe: eri.Pipeline, prompt: str) -> list[Image.Image]:
    """Returns previews along the trajectory, and the final picture."""
    request = pipe.request(prompt, num_inference_steps=20, **WORDS)
    steps = list(pipe.denoise(request))
    shown = np.linspace(0, len(steps) - 1, COLUMNS - 1).astype(int)
    rough = [pipe.preview(request, steps[i])[0] for i in shown]
    return [*rough, pipe.finish(request, steps[-1].x).images[0]]


def main() -> None:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    with eri.load(options.bundle) as pipe:
        drawing = pipe("a red apple", num_inference_steps=30, **WORDS).images[0]
        rows = [
            [drawing, *edited(pipe, drawing, "a red heart")],
            [*repainted(pipe, drawing, ["a pizza", "a sunflower"])],
            [*mixed(pipe, "a red heart", "a pizza")],
            previewed(pipe, "a rocket"),
        ]
    sheet = contact_sheet([image for row in rows for image in row], COLUMNS)
    write_png(sheet, options.output, optimize=True)


if __name__ == "__main__":
    main()
