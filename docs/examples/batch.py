"""A batch: a table of prompts, as many at once as you like, each picture saved when it is done.

`eri generate engines/demo --prompts docs/examples/prompts.csv -o images` does the same, and resumes
a run that was stopped.
"""

import csv
from pathlib import Path

import eri_runtime as eri

folder = Path("out/examples/batch")
folder.mkdir(parents=True, exist_ok=True)

with Path("docs/examples/prompts.csv").open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
jobs = [eri.Job(row["prompt"], seed=int(row["seed"]) if row["seed"] else None) for row in rows]


def save(sample):
    """Saves a picture; its number in the file's name is that of its line."""
    sample.image.save(folder / f"{sample.index:03}-seed{sample.seed}.png")


with eri.load("engines/demo") as pipe:
    side = {"height": pipe.bundle.defaults.height, "width": pipe.bundle.defaults.width}
    config = eri.SamplingConfig(num_inference_steps=20, guidance_scale=4.0, seed=0, **side)
    eri.batch_sample(jobs, config, 2, pipe=pipe, output_type="pil", on_sample=save)
