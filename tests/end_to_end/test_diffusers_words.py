"""Every word of diffusers' nine pipelines: the same picture here, or refused with its reason."""

from __future__ import annotations

import inspect
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import eri_runtime as eri
from eri_runtime.errors import UsageError
from eri_runtime.request import POSITIONAL
from tests.support import diffusers_words as words
from tests.support.diffusers_pipelines import (
    CALLS,
    LATENT_TOLERANCE,
    PIXEL_TOLERANCE,
    generators,
    load,
)

STEM = {"sdxl": "StableDiffusionXL", "sd35": "StableDiffusion3", "flux": "Flux"}
SUFFIX = {"text": "", "edit": "Img2Img", "paint": "Inpaint"}
RUNS = [
    (case, family, kind) for case in words.CASES for family in case.families for kind in case.kinds
]


def pipeline_class(family, kind):
    """One of diffusers' nine pipelines."""
    return getattr(diffusers, f"{STEM[family]}{SUFFIX[kind]}Pipeline")


def words_of(family, kind):
    """The words of one of diffusers' pipelines."""
    names = inspect.signature(pipeline_class(family, kind).__call__).parameters
    return [name for name in names if name not in ("self", "kwargs")]


@pytest.fixture(scope="module")
def pairs(request):
    """Family and kind -> our pipeline and diffusers', over one tiny checkpoint."""
    made, opened = {}, {}

    def pair(family, kind="text"):
        if family not in opened:
            theirs, bundle = load(request, family)
            opened[family] = eri.load(bundle), theirs.components
        ours, components = opened[family]
        if (family, kind) not in made:
            made[family, kind] = pipeline_class(family, kind)(**components)
            made[family, kind].set_progress_bar_config(disable=True)
        return ours, made[family, kind]

    yield pair
    for ours, _ in opened.values():
        ours.close()


def plain(family, kind):
    """The words of the plain call, which cases change."""
    # SDXL's image to image takes the picture's size, the others the model's
    size = {} if (family, kind) == ("sdxl", "edit") else words.SIZE
    return {**words.BASE, **size, **words.KINDS[kind], **words.FAMILY[family]}


def calls(family, kind, case):
    """The words of our call and of diffusers', without noise.

    diffusers' SD3 forgets the VAE's shift when it paints, so its latents are compared.
    """
    more = words.CFG[family] if "negative_prompt" in case.both else {}
    output = "latent" if (family, kind) == ("sd35", "paint") else "np"
    both = {**plain(family, kind), "output_type": output, **more, **case.both}
    both = {name: value for name, value in both.items() if value is not None}
    return dict(both), both


def as_array(images):
    """Images as floats: of PIL, torch and NumPy."""
    if isinstance(images, list):
        return np.stack([np.asarray(each, np.float32) / 255 for each in images])
    return np.asarray(images, dtype=np.float32)


def assert_close(mine, theirs, *, latents=False):
    mine, theirs = map(as_array, (mine, theirs))
    assert mine.shape == theirs.shape
    limit = LATENT_TOLERANCE * np.abs(theirs).max() if latents else PIXEL_TOLERANCE
    assert np.abs(mine - theirs).max() <= limit


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize(
    ("case", "family", "kind"), RUNS, ids=[f"{c.name}-{f}-{k}" for c, f, k in RUNS]
)
def test_a_word_gives_diffusers_picture(pairs, case, family, kind):
    ours, theirs = pairs(family, kind)
    mine, both = calls(family, kind, case)
    seeds = [words.SEED + i for i in range(case.images)]
    allowed = theirs._callback_tensor_inputs
    named = both.get(words.CALLBACK[1])
    if named is not None:
        both[words.CALLBACK[1]] = [name for name in named if name in allowed]
        mine[words.CALLBACK[1]] = [name for name in named if name != "add_time_ids"]
    final = theirs(**both, generator=generators(seeds))[0]
    result = ours(**mine, seed=words.SEED)
    assert_close(result[0], final, latents=both["output_type"] == "latent")
    if case.changes:
        before = ours(**plain(family, kind), output_type="np", seed=words.SEED)
        other = result.latents.shape != before.latents.shape
        assert other or np.abs(result.latents - before.latents).max() > 1e-3
