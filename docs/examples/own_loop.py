"""A loop of your own: previews, a stop in the middle, and a resume that ends on the same bits."""

import pickle
from pathlib import Path

import numpy as np

import eri_runtime as eri

folder = Path("out/examples")
folder.mkdir(parents=True, exist_ok=True)

with eri.load("engines/demo") as pipe:
    request = pipe.request("a rocket", num_inference_steps=20, guidance_scale=4.0, seed=0)
    for step in pipe.denoise(request):
        if step.index % 5 == 4:  # a preview costs a few microseconds, a decode milliseconds
            pipe.preview(request, step)[0].save(folder / f"loop-{step.index + 1:02}.png")
        if step.index == 9:
            stopped = pickle.dumps(step)
            break

with eri.load("engines/demo") as pipe:  # later, or in another process
    *_, last = pipe.denoise(request, start=pickle.loads(stopped))
    result = pipe.finish(request, last.x)
    result.save(folder / "loop-resumed.png")
    whole = pipe("a rocket", num_inference_steps=20, guidance_scale=4.0, seed=0)

print("the same bits:", np.array_equal(result.latents, whole.latents))
