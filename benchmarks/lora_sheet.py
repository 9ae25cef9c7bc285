"""Draws a sheet of a LoRA on the embedded checkpoint: one row per scale, one column per prompt.

    eri demo && python -m benchmarks.lora_sheet engines/demo

The LoRA is the embedded one (`python -m eri_export.embedded.style_lora` trains it); between two
rows only `pipe.set_loras` is called. At the end the LoRA is unloaded, and the script fails if the
pictures are not bit-identical to those at scale 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import eri_runtime as eri
from eri_export.embedded import lora
from eri_runtime.images import contact_sheet, write_png

OUTPUT = Path(__file__).parent / "results" / "lora.png"
PROMPTS = ("a red heart", "a red apple", "a pizza", "a cat face", "a rocket", "a sunflower")
SCALES = (0.0, 0.5, 1.0)
WORDS = {"guidance_scale": 4.0, "seed": 0, "num_inference_steps": 20}


def main() -> None:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--lora", type=Path, default=lora("blue-ink"))
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    rows = []
    with eri.load(options.bundle) as pipe:
        for scale in SCALES:
            pipe.set_loras({options.lora: scale})
            rows.append(draw(pipe))
        pipe.unload_loras()
        again = draw(pipe)
    if any(not np.array_equal(a, b) for a, b in zip(rows[0], again, strict=True)):
        raise SystemExit("after unloading the LoRA, pictures differ from those at scale 0")
    images = [image for row in rows for image in row]
    sheet = contact_sheet(images, len(PROMPTS)).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    write_png(sheet, options.output, optimize=True)


def draw(pipe: eri.Pipeline) -> list[Image.Image]:
    """Draws a picture of each prompt, all from the same noise."""
    return [pipe(prompt, **WORDS).images[0] for prompt in PROMPTS]


if __name__ == "__main__":
    main()
