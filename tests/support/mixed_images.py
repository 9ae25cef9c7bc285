"""Random images that differ in table, timestep, guidance and number of conditions, in one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eri_runtime.executors import Array, Arrays, Layout, Row
from eri_runtime.sampling import COLUMNS, MAX_V, MAX_W

WIDTH = sum(COLUMNS.values())


@dataclass
class Image:
    """One image: its state, noises, row, and conditions with their weights."""

    x: Array
    history: Array
    noise: Array
    row: Array
    mix: Array
    conditions: Arrays


def draw(spec, counts, seed=0):
    """Draws an image for each number of conditions, and the inputs that all images share."""
    rng = np.random.default_rng(seed)
    sizes = {name: each.min for name, each in spec.ranges.items()}

    def shape(tensor, rows):
        sized = {**sizes, "batch": rows}
        return [sized[size] if isinstance(size, str) else size for size in tensor.shape]

    def normal(*size):
        return rng.standard_normal(size, np.float32)

    network = {each.name: each for each in spec.inputs}
    sample, _ = network.pop("sample"), network.pop("timestep")
    own = {name: each for name, each in network.items() if "batch" in each.shape}
    shared = {name: normal(*shape(each, 0)) for name, each in network.items() if name not in own}
    images = []
    for count in counts:
        x = normal(*shape(sample, 1))
        row = normal(WIDTH)
        row[0] = rng.uniform(0, 999)
        images.append(
            Image(
                x=x,
                history=normal(MAX_W, *x.shape),
                noise=normal(MAX_V, *x.shape),
                row=row,
                mix=normal(count),
                conditions={name: normal(*shape(each, count)) for name, each in own.items()},
            )
        )
    return images, shared


def layout_of(images):
    """Returns the layout of these images' rows, one image after the other, and the mix."""
    counts = [len(each.mix) for each in images]
    starts = np.cumsum([0, *counts])[:-1]
    rank = np.arange(max(counts))[:, None]
    index = starts + np.minimum(rank, np.array(counts) - 1)
    mix = np.zeros(index.shape, np.float32)
    for b, image in enumerate(images):
        mix[: counts[b], b] = image.mix
    owner = np.repeat(np.arange(len(images)), counts)
    return Layout(owner=owner.astype(np.int64), index=index.astype(np.int64)), mix


def run(stepper, images, shared, steps=1):
    """Makes steps of all images in one call each; returns the states, one per step."""
    layout, mix = layout_of(images)
    names = images[0].conditions
    conditions = {
        name: np.concatenate([each.conditions[name] for each in images]) for name in names
    }
    x = np.concatenate([each.x for each in images])
    history = np.concatenate([each.history for each in images], axis=1)
    noise = np.concatenate([each.noise for each in images], axis=1)
    loop = stepper.loop(x.shape, MAX_W)
    loop.bind("all", mix, {**conditions, **shared}, layout)
    rows = [Row("all", np.stack([each.row for each in images]), tuple(noise))] * steps
    return list(loop.run(rows, loop.begin(x, tuple(history))))
