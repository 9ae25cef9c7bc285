"""What a result shows of itself: two lines of text, and a picture in a notebook."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import eri_runtime as eri

SETTINGS = "Steps: 2, Sampler: Euler, CFG scale: 4, Seed: 7, Size: 32x24"


def result_of(count, images=None, settings=SETTINGS):
    """A result of images of 32 x 24 pixels."""
    if images is None:
        images = [Image.new("RGB", (32, 24), (10 * i, 0, 0)) for i in range(count)]
    text = f"a red heart\nNegative prompt: blurry\n{settings}"
    latents = np.zeros((count, 4, 3, 4), np.float32)
    return eri.Result(images, latents, tuple(range(7, 7 + count)), (text,) * count)


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (1, "Result: 1 image of 32x24, seed 7"),
        (2, "Result: 2 images of 32x24, seeds 7, 8"),
        (6, "Result: 6 images of 32x24, seeds 7, 8, 9, 10, ..."),
    ],
)
def test_the_text_is_two_lines_of_what_and_how(count, first):
    assert repr(result_of(count)).splitlines() == [first, SETTINGS]


def test_the_text_of_arrays_names_their_shape():
    result = result_of(2, np.zeros((2, 24, 32, 3), np.float32))
    assert repr(result).splitlines()[0] == "Result: 2 images of 24 x 32 x 3, seeds 7, 8"


def test_long_settings_are_cut():
    lines = repr(result_of(1, settings="Steps: 2, " + "x" * 5000)).splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize(("count", "size"), [(1, (32, 24)), (3, (112, 32)), (6, (148, 60))])
def test_a_notebook_shows_the_image_or_a_sheet(count, size):
    with Image.open(io.BytesIO(result_of(count)._repr_png_())) as shown:
        assert (shown.format, shown.size) == ("PNG", size)


def test_a_notebook_shows_no_picture_of_arrays():
    assert result_of(2, np.zeros((2, 24, 32, 3), np.float32))._repr_png_() is None
