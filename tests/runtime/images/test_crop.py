"""The crop around a mask and the way back are diffusers' `VaeImageProcessor`'s."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eri_runtime.images import Overlay, crop_box, fit, to_pil
from eri_runtime.images.crop import cover

PROCESSOR = VaeImageProcessor()
SIDES = st.integers(1, 90)


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@given(SIDES, SIDES, st.data())
def test_the_crop_is_that_of_diffusers(width, height, data):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    wide, high = data.draw(SIDES), data.draw(SIDES)
    padding = data.draw(st.integers(0, 40))
    mask = np.zeros((height, width), np.uint8)
    mask[top, left] = mask[bottom - 1, right - 1] = 1
    expected = PROCESSOR.get_crop_region(Image.fromarray(mask), wide, high, padding)
    box = crop_box(mask, wide, high, padding)
    assert box == expected
    assert 0 <= box[0] <= max(0, left - padding)
    assert 0 <= box[1] <= max(0, top - padding)
    assert min(width, right + padding) <= box[2] <= width
    assert min(height, bottom + padding) <= box[3] <= height


SHAPES = [(48, 80), (80, 48), (47, 80), (79, 47), (5, 90), (90, 4), (33, 33), (1, 1)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("target", [(48, 80), (64, 64), (33, 21)])
def test_a_crop_is_fitted_in_and_back_as_in_diffusers(width, height, target):
    picture = noise(width, height)
    inside = PROCESSOR._resize_and_fill(picture, *target)
    np.testing.assert_array_equal(np.asarray(fit(picture, *target)), np.asarray(inside))
    back = PROCESSOR._resize_and_crop(picture, *target)
    np.testing.assert_array_equal(np.asarray(cover(picture, *target)), np.asarray(back))


def test_a_line_of_pixels_is_fitted_in():
    """diffusers would resize it to a width of 0."""
    assert fit(noise(1, 200), 16, 16).size == (16, 16)
    assert fit(noise(200, 1), 16, 16).size == (16, 16)


@pytest.mark.parametrize("box", [None, (9, 4, 33, 28)])
def test_the_overlay_is_that_of_diffusers(box):
    original, seeds = noise(48, 40), (1, 2)
    made = [noise(48, 40, seed) if box is None else noise(32, 32, seed) for seed in seeds]
    mask = np.zeros((40, 48), np.uint8)
    mask[6:26, 11:31] = np.linspace(0, 255, 20, dtype=np.uint8)
    mask[10:20, 15:25] = 255

    def floats(image):
        return np.asarray(image, np.float32)[None] / np.float32(255)

    overlay = Overlay(originals=floats(original), weights=floats(mask)[..., None], box=box)
    ours = to_pil(overlay.apply(np.concatenate([floats(each) for each in made])))
    for mine, generated in zip(ours, made, strict=True):
        theirs = PROCESSOR.apply_overlay(Image.fromarray(mask), original, generated, box)
        mine, theirs = np.asarray(mine, np.int64), np.asarray(theirs, np.int64)
        # Pillow rounds three times on the way: to premultiplied alpha, back, and in the sum
        assert np.abs(mine - theirs).max() <= 2
        np.testing.assert_array_equal(mine[mask == 0], np.asarray(original)[mask == 0])
        assert np.abs(mine - np.asarray(original, np.int64))[mask == 255].max() > 50
