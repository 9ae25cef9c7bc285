"""Image to image: a rough sketch becomes a picture, the more so the higher the strength."""

from PIL import Image, ImageDraw

import eri_runtime as eri

with eri.load("engines/demo") as pipe:
    size = pipe.bundle.defaults.width, pipe.bundle.defaults.height
    sketch = Image.new("RGB", size, "white")
    box = [round(side * share) for share in (0.15, 0.85) for side in size]
    ImageDraw.Draw(sketch).ellipse(box, fill="crimson")

    for strength in (0.3, 0.6, 0.9):
        result = pipe(
            "a red apple",
            image=sketch,
            strength=strength,
            num_inference_steps=20,
            guidance_scale=4.0,
            seed=0,
        )
        result.save(f"out/examples/sketch-{strength}.png")
