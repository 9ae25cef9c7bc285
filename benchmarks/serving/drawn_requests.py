"""Random small requests, and the bits of the pictures that they make alone."""

from __future__ import annotations

import random
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

import eri_runtime as eri
from eri_runtime.serve import PictureRequest

PROMPTS = ("a red heart", "a pizza", "a cat face", "")
SAMPLERS = ("flow_euler", "flow_heun", "dpmpp_2m", "unipc")
RANDOM = random.Random(0)  # noqa: S311

Words = dict[str, Any]


def words_of(seed: int, most: int = 12) -> Words:
    """Draws the arguments of a small request of up to `most` steps."""
    return {
        "prompt": RANDOM.choice(PROMPTS),
        "num_inference_steps": RANDOM.randint(1, most),
        "sampler": RANDOM.choice(SAMPLERS),
        "guidance_scale": RANDOM.choice([1.0, 3.0, 7.0]),
        "height": RANDOM.choice([48, 64]),
        "width": 64,
        "seed": seed,
    }


def request_of(words: Words, **more: Any) -> PictureRequest:
    """Returns the request of these arguments."""
    rest = {name: value for name, value in words.items() if name != "prompt"}
    return PictureRequest(prompt=words["prompt"], words=rest, **more)


def digest(image: Any) -> str:
    """Returns a name for a picture's bits."""
    return sha256(np.asarray(image).tobytes()).hexdigest()


@cache
def _pipe(bundle: Path) -> eri.Pipeline:
    return eri.load(bundle, "cpu", threads=1)


def alone(bundle: Path, words: Words) -> str:
    """Returns the bits of a picture made by a call of its own."""
    return digest(_pipe(bundle)(**words).images[0])
