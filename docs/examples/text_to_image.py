"""Text to image: one prompt from three seeds, side by side in one picture."""

from PIL import Image

import eri_runtime as eri

with eri.load("engines/demo") as pipe:
    result = pipe(
        "a red heart",
        num_images_per_prompt=3,  # with the seeds 0, 1 and 2
        num_inference_steps=20,
        guidance_scale=4.0,
        seed=0,
    )

print("\n".join(result.parameters))  # what each file carries, as AUTOMATIC1111 writes it
result.save("out/examples/heart.png")  # heart-0.png, heart-1.png, heart-2.png

width, height = result.images[0].size
row = Image.new("RGB", (3 * width, height))
for column, image in enumerate(result.images):
    row.paste(image, (column * width, 0))
row.save("out/examples/hearts.png")
