"""A mask: paints a new right half into a picture and keeps the left half's own pixels."""

from PIL import Image, ImageFilter

import eri_runtime as eri

call = {"num_inference_steps": 20, "guidance_scale": 4.0, "seed": 0}

with eri.load("engines/demo") as pipe:
    before = pipe("a red heart", **call)
    before.save("out/examples/mask-before.png")
    picture = before.images[0]

    white_where_to_paint = Image.new("L", picture.size, "black")
    white_where_to_paint.paste(255, (picture.width // 2, 0, picture.width, picture.height))
    soft = white_where_to_paint.filter(ImageFilter.GaussianBlur(4))  # no seam in the middle

    painted = pipe("a pizza", image=picture, mask=soft, strength=1.0, overlay=True, **call)
    painted.save("out/examples/mask-after.png")
