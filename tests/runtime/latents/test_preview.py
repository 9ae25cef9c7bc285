"""Live previews: colours fitted to the bundle's own VAE, in every family's layout of latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.executors import choice
from eri_runtime.executors.base import Executor
from eri_runtime.images.convert import to_unit
from eri_runtime.latents import vae
from eri_runtime.latents.geometry import from_vae
from eri_runtime.latents.preview import (
    LATENTS,
    block_means,
    enlarge,
    fit_rgb,
    fitting_pictures,
    to_rgb,
)
from eri_runtime.loop.numpy_loop import HostLatents

FAMILIES = ("sdxl", "sd35", "flux")
HEIGHT, WIDTH = 48, 80


class LinearEncoder(Executor):
    """A VAE's encoder that mixes the means of its squares into C channels, which can be undone."""

    def __init__(self, bundle):
        self.latents, self.ranges = bundle.latents, bundle.components["vae_encoder"].ranges
        self.mix = np.random.default_rng(1).standard_normal((3, self.latents.channels))
        self.sizes = []

    def run(self, inputs):
        pixels = inputs["image"]
        names = ("batch", None, "image_height", "image_width")
        for name, size in zip(names, pixels.shape, strict=True):
            assert name is None or size in self.ranges[name]
        self.sizes.append(pixels.shape)
        mean = np.einsum("bchw,cd->bdhw", block_means(pixels, self.latents.factor), self.mix)
        return {"mean": (mean + 0.5).astype(np.float32)}

    def close(self):
        pass


def step_of(denoised):
    """A step that has seen `denoised`."""
    return eri.Step(
        index=0,
        total=1,
        sigma=1.0,
        latents=HostLatents(x=np.zeros_like(denoised), denoised=denoised),
        noises=(),
        draw=1,
    )


def opened(path):
    """A pipeline that writes down which components it opened."""
    contents = eri.read_bundle(path)
    opening, names = choice.choose(contents, "auto"), []

    def record(name, overrides):
        names.append(name)
        return opening(name, overrides)

    return eri.Pipeline(contents, record), names


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_encoded_is_seen(request, family):
    """Where a linear function is all there is to find, it is found, in place and in colour."""
    bundle = eri.read_bundle(request.getfixturevalue(f"{family}_bundle"))
    encoder, factor = LinearEncoder(bundle), bundle.latents.factor
    pixels = fitting_pictures(4, HEIGHT, WIDTH, factor)[2:]
    z = from_vae(bundle.latents, encoder.run({"image": pixels})["mean"])
    words = {"height": HEIGHT, "width": WIDTH, "num_images_per_prompt": 2, "seed": 0}
    with eri.Pipeline(bundle, lambda name, overrides: encoder) as pipe:
        seen = pipe.preview(pipe.request("x", **words), step_of(vae.pack(bundle, z)))
    expected = enlarge(to_unit(block_means(pixels, factor)), factor)
    assert [image.size for image in seen] == [(WIDTH, HEIGHT)] * 2
    for mine, right in zip(seen, expected, strict=True):
        # one of 255 where the two roundings to bytes differ
        assert np.abs(np.asarray(mine, int) - np.asarray(right, int)).max() <= 1
    assert np.abs(np.asarray(seen[0], int) - np.asarray(seen[1], int)).max() > 50


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_can_be_looked_at_without_the_decoder(request, family):
    pipe, names = opened(request.getfixturevalue(f"{family}_bundle"))
    words = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": 3, "seed": 3}
    with pipe:
        asked = pipe.request(["a red heart", "two black cats"], **words)
        steps = list(pipe.denoise(asked))
        seen = [pipe.preview(asked, step) for step in steps]
        again = pipe.preview(asked, steps[0])
    assert names.count("vae_encoder") == 1
    assert "vae_decoder" not in names
    assert all(
        (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB") for two in seen for image in two
    )
    assert [len(two) for two in seen] == [2, 2, 2]
    assert [image.tobytes() for image in again] == [image.tobytes() for image in seen[0]]


def test_the_fit_is_made_once(sd35_bundle):
    bundle = eri.read_bundle(sd35_bundle)
    encoder, c = LinearEncoder(bundle), bundle.latents.channels
    with eri.Pipeline(bundle, lambda name, overrides: encoder) as pipe:
        asked = pipe.request("x", height=32, width=32, seed=0)
        grey = step_of(np.zeros((1, c, 32 // bundle.latents.factor, 32 // bundle.latents.factor)))
        pipe.preview(asked, grey)
        calls = len(encoder.sizes)
        pipe.preview(asked, grey)
    assert 0 < calls == len(encoder.sizes)


@pytest.mark.parametrize(("height", "width", "batch"), [(48, 80, 1), (8, 8, 3), (96, 128, 16)])
def test_a_bundle_of_one_size_is_fitted_at_that_size(sdxl_bundle, height, width, batch):
    bundle = eri.read_bundle(sdxl_bundle)
    spec, factor = bundle.components["vae_encoder"], bundle.latents.factor
    height, width = height // 8 * factor, width // 8 * factor
    sides = {"batch": batch, "image_height": height, "image_width": width}
    fixed = {name: eri.ShapeRange(min=side, opt=side, max=side) for name, side in sides.items()}
    components = {**bundle.components, "vae_encoder": replace(spec, ranges=fixed)}
    bundle = replace(bundle, components=components)
    encoder = LinearEncoder(bundle)
    factors = fit_rgb(bundle, lambda name, inputs: encoder.run(inputs))
    assert factors.shape == (bundle.latents.channels + 1, 3)
    assert factors.dtype == np.float32
    assert sum(b * h * w for b, _, h, w in encoder.sizes) >= LATENTS * factor**2
    pixels = fitting_pictures(1, height, width, factor)
    z = from_vae(bundle.latents, encoder.run({"image": pixels.repeat(batch, 0)})["mean"])
    wanted = to_unit(block_means(pixels.repeat(batch, 0), factor))
    np.testing.assert_allclose(to_rgb(factors, z), wanted, atol=1e-4)


def test_colours_stay_colours(sd35_bundle):
    bundle = eri.read_bundle(sd35_bundle)
    factors = fit_rgb(bundle, eri.Pipeline(bundle, choice.choose(bundle, "auto")).run)
    wild = 100 * np.random.default_rng(0).standard_normal((2, bundle.latents.channels, 5, 3))
    rgb = to_rgb(factors, wild.astype(np.float32))
    assert rgb.shape == (2, 5, 3, 3)
    assert (rgb.min(), rgb.max()) == (0, 1)


def test_without_the_encoder_there_is_a_way_out(sd35_bundle):
    bundle = eri.read_bundle(sd35_bundle)
    left = {name: spec for name, spec in bundle.components.items() if name != "vae_encoder"}
    bundle = replace(bundle, components=left)
    with eri.Pipeline(bundle, choice.choose(bundle, "auto")) as pipe:
        asked = pipe.request("x", height=32, width=32, num_inference_steps=1, seed=0)
        (step,) = pipe.denoise(asked)
        with pytest.raises(UsageError, match=r"preview.*without vae_encoder.*finish.*--vae"):
            pipe.preview(asked, step)
        assert len(pipe.finish(asked, step.denoised).images) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_another_size_is_refused(request, family):
    with eri.load(request.getfixturevalue(f"{family}_bundle")) as pipe:
        words = {"num_inference_steps": 1, "seed": 0}
        small = pipe.request("x", height=32, width=32, **words)
        (step,) = pipe.denoise(small)
        with pytest.raises(SizeError, match="latents"):
            pipe.preview(pipe.request("x", height=32, width=64, **words), step)
