"""Latents, guidance, noise, images: the small parts, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from eri_runtime.bundle.spec import LatentSpec
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.images.convert import contact_sheet, to_pil, to_unit
from eri_runtime.images.png import parameters_text, save_png
from eri_runtime.latents.geometry import (
    image_ids,
    latent_shape,
    patchify,
    to_vae,
    token_count,
    unpatchify,
)
from eri_runtime.sampling.guidance import cfg_mix, mix_predictions, per_image

LATENTS = LatentSpec(channels=16, factor=8, scale=0.3611, shift=0.1159, patch=2)
normal = np.random.default_rng(0).standard_normal


def test_patches_are_diffusers_patches():
    x = normal((3, 16, 6, 10), dtype=np.float32)
    reference = FluxPipeline._pack_latents(torch.from_numpy(x), 3, 16, 6, 10)
    np.testing.assert_array_equal(patchify(x), reference.numpy())
    np.testing.assert_array_equal(unpatchify(patchify(x), 6, 10), x)


def test_position_ids_are_diffusers_position_ids():
    reference = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    np.testing.assert_array_equal(image_ids(6, 10), reference.numpy())


def test_a_size_gives_its_latents_and_tokens():
    assert latent_shape(LATENTS, 96, 160) == (16, 12, 20)
    assert token_count(LATENTS, 96, 160) == 60


@pytest.mark.parametrize(
    ("height", "width", "name", "nearest"),
    [(100, 96, "height", "96 and 112"), (96, 8, "width", "16 and 32"), (0, 96, "height", "16")],
)
def test_a_size_that_does_not_fit_names_the_nearest(height, width, name, nearest):
    with pytest.raises(SizeError, match=f"{name}: got .* multiple of 16; {nearest}"):
        latent_shape(LATENTS, height, width)


def test_the_vae_gets_its_own_scale_back():
    z = normal((1, 16, 2, 2), dtype=np.float32)
    scaled = (z - np.float32(LATENTS.shift)) * np.float32(LATENTS.scale)
    np.testing.assert_allclose(to_vae(LATENTS, scaled), z, rtol=1e-6, atol=1e-6)


def test_cfg_is_the_textbook_formula_for_each_image():
    negative, positive = normal((2, 3, 4, 5)).astype(np.float32)
    scale = np.array([1.0, 4.0, 7.5], dtype=np.float32)
    mixed = mix_predictions(cfg_mix(scale, np.ones((1, 3))), np.concatenate([negative, positive]))
    textbook = negative + scale[:, None, None] * (positive - negative)
    np.testing.assert_allclose(mixed, textbook, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(cfg_mix(0.5, np.ones((1, 3))), [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_guidance_scale_out_of_range_is_refused(scale):
    with pytest.raises(UsageError, match="guidance_scale"):
        per_image("guidance_scale", scale, 1)


def test_pixels_are_diffusers_pixels():
    decoded = 1.5 * normal((2, 3, 8, 6)).astype(np.float32)
    reference = VaeImageProcessor().postprocess(torch.from_numpy(decoded), output_type="pil")
    for mine, theirs in zip(to_pil(to_unit(decoded)), reference, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_parameters_are_written_as_automatic1111_writes_them():
    text = parameters_text("a, b", "ugly", {"Steps": 20, "Model": "x: y", "Sampler": "Euler"})
    assert text == 'a, b\nNegative prompt: ugly\nSteps: 20, Model: "x: y", Sampler: Euler'
    assert parameters_text("a", "", {"Steps": 1}) == "a\nSteps: 1"


@pytest.mark.parametrize("prompt", ["a red heart", "ein rötes Herz ❤", ""])
def test_a_png_carries_its_parameters(tmp_path, prompt):
    path = save_png(Image.new("RGB", (4, 4)), tmp_path / "new" / "x.png", f"{prompt}\nSteps: 1")
    with Image.open(path) as image:
        assert image.text["parameters"] == f"{prompt}\nSteps: 1"
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="cannot write mode"):
        save_png(Image.new("F", (4, 4)), tmp_path / "x.png", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_holds_every_image():
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    sheet = contact_sheet(images, columns=2, scale=2)
    assert sheet.size == (2 * 24 + 8, 2 * 24 + 8)
    centers = [sheet.getpixel(at) for at in ((16, 16), (40, 16), (16, 40))]
    assert centers == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
