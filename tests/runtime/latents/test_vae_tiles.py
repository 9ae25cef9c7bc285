"""The VAE in pieces: whole pictures to the bit, tiles against a blend that is written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import NonFiniteError, SizeError, UsageError
from eri_runtime.latents import vae
from eri_runtime.latents.geometry import from_vae, to_vae
from eri_runtime.latents.tiling import tile_side
from eri_runtime.latents.vae import DECODER, ENCODER, VaeMode

normal = np.random.default_rng(0).standard_normal
# float32 sums of at most nine tiles of about unit values, beside float64
ROUNDING = 1e-5


@pytest.fixture(scope="module", params=["sdxl", "sd35", "flux"])
def pipe(request):
    with eri.load(request.getfixturevalue(f"{request.param}_bundle")) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def sd35(sd35_bundle):
    with eri.load(sd35_bundle) as pipe:
        yield pipe


def drawn(pipe, batch, height, width):
    """Latents in the denoiser's layout, and the pixels they stand for."""
    spec = pipe.bundle.latents
    x = normal((batch, spec.channels, height, width), dtype=np.float32)
    return vae.pack(pipe.bundle, x), (height * spec.factor, width * spec.factor)


def pixels(pipe, batch, height, width):
    side = pipe.bundle.latents.factor
    return np.clip(normal((batch, 3, height * side, width * side), dtype=np.float32) / 2, -1, 1)


def counted(run):
    """A `run` that writes down the shapes it is given."""
    shapes = []

    def counting(name, inputs):
        shapes.extend(each.shape for each in inputs.values())
        return run(name, inputs)

    return counting, shapes


def blended(run, whole, lengths, scale):
    """Tiles in float64: the sum of weight·tile over the sum of weights, at every point.

    `scale` is how many values of the output stand for one of `whole`, or one over that.
    """
    sides = [
        tile_side(total, length) for total, length in zip(whole.shape[2:], lengths, strict=True)
    ]
    total = weight = 0.0
    for top, left in product(*(side.starts for side in sides)):
        tile = run(whole[:, :, top : top + sides[0].length, left : left + sides[1].length])
        shares = [
            peaks(begin, side, tile.shape[2 + axis], scale)
            for axis, (begin, side) in enumerate(zip((top, left), sides, strict=True))
        ]
        share = np.multiply.outer(*shares)
        full = np.zeros((*tile.shape[:2], *(int(side.total * scale) for side in sides)))
        place = (
            slice(int(top * scale), int(top * scale) + tile.shape[2]),
            slice(int(left * scale), int(left * scale) + tile.shape[3]),
        )
        full[:, :, *place] = share * tile
        total = total + full
        full = np.zeros(full.shape[2:])
        full[place] = share
        weight = weight + full
    return total / weight


def peaks(begin, side, length, scale):
    """A tile's weight along a side: the distance into the overlaps with its neighbours."""
    place, share = np.arange(length) + 0.5, np.ones(length)
    for other in side.starts:
        if other in neighbours(begin, side):
            overlap = (side.length - abs(begin - other)) * scale
            inside = place if other < begin else length - place
            share *= np.minimum(inside / overlap, 1)
    return share


def neighbours(begin, side):
    at = side.starts.index(begin)
    return side.starts[max(at - 1, 0) : at] + side.starts[at + 1 : at + 2]


# whole


@pytest.mark.parametrize("tile", [64, 10_000])
def test_a_picture_no_larger_than_a_tile_has_the_same_bits(pipe, tile):
    side = 64 // pipe.bundle.latents.factor
    latents, size = drawn(pipe, 2, side, side // 2)
    image = vae.decode(pipe.bundle, pipe.run, latents, *size, VaeMode(tile=tile))
    assert image.tobytes() == pipe.decode(latents, *size).tobytes()
    picture = pixels(pipe, 2, side, side // 2)
    encoded = vae.encode(pipe.bundle, pipe.run, picture, mode=VaeMode(tile=tile))
    assert encoded.tobytes() == vae.encode(pipe.bundle, pipe.run, picture).tobytes()


@pytest.mark.parametrize(("images", "calls"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (99, [3])])
def test_so_many_images_at_once(pipe, images, calls):
    latents, size = drawn(pipe, 3, 8, 12)
    run, shapes = counted(pipe.run)
    mode = VaeMode(images=images)
    image = vae.decode(pipe.bundle, run, latents, *size, mode)
    assert [shape[0] for shape in shapes] == calls
    whole = pipe.decode(latents, *size)
    np.testing.assert_allclose(image, whole, rtol=0, atol=ROUNDING)
    if images == 1:
        alone = [pipe.decode(each[None], *size) for each in latents]
        assert image.tobytes() == np.concatenate(alone).tobytes()
    shapes.clear()
    picture, unit = pixels(pipe, 3, 8, 12), normal((3, pipe.bundle.latents.channels, 8, 12))
    unit = unit.astype(np.float32)
    encoded = vae.encode(pipe.bundle, run, picture, unit, mode)
    assert [shape[0] for shape in shapes] == calls
    expected = vae.encode(pipe.bundle, pipe.run, picture, unit)
    np.testing.assert_allclose(encoded, expected, rtol=0, atol=ROUNDING)


# tiles


@pytest.mark.parametrize(("height", "width"), [(22, 14), (8, 26)])
def test_a_decoded_picture_is_the_blend_of_its_tiles(pipe, height, width):
    bundle, factor = pipe.bundle, pipe.bundle.latents.factor
    latents, size = drawn(pipe, 2, height, width)
    run, shapes = counted(pipe.run)
    image = vae.decode(bundle, run, latents, *size, VaeMode(images=2, tile=8 * factor))
    assert {shape[0] for shape in shapes} == {1}
    assert {shape[2:] for shape in shapes} == {(8, 8)}
    z = to_vae(bundle.latents, vae.unpack(bundle, latents, *size))

    def alone(tile):
        rows = [np.ascontiguousarray(row[None]) for row in tile]
        return np.concatenate([pipe.run(DECODER, {"latents": row})["image"] for row in rows])

    expected = blended(alone, z, (8, 8), factor)
    np.testing.assert_allclose(image, expected, rtol=0, atol=ROUNDING)
    again = vae.decode(bundle, pipe.run, latents, *size, VaeMode(tile=8 * factor))
    assert image.tobytes() == again.tobytes()


def test_a_picture_is_encoded_as_the_blend_of_its_tiles(pipe):
    bundle, factor = pipe.bundle, pipe.bundle.latents.factor
    picture = pixels(pipe, 2, 14, 20)
    unit = normal((2, bundle.latents.channels, 14, 20), dtype=np.float32)
    encoded = vae.encode(bundle, pipe.run, picture, unit, VaeMode(tile=8 * factor))

    def alone(tile, name):
        tile = np.ascontiguousarray(tile)
        return np.concatenate([pipe.run(ENCODER, {"image": row[None]})[name] for row in tile])

    grid = picture[:, :, ::factor, ::factor]  # of latents, so that the oracle counts in them

    def moments(name):
        left = [(top, side) for top in tile_side(14, 8).starts for side in tile_side(20, 8).starts]
        places = iter(left)

        def run(_):
            top, side = (factor * each for each in next(places))
            return alone(picture[:, :, top : top + 8 * factor, side : side + 8 * factor], name)

        return blended(run, grid, (8, 8), 1)

    z = moments("mean") + np.exp(np.clip(moments("logvar"), -30, 20) / 2) * unit
    expected = from_vae(bundle.latents, z)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(encoded, expected, rtol=0, atol=ROUNDING * scale)
    assert encoded.dtype == np.float32
    mean = vae.encode(bundle, pipe.run, picture, mode=VaeMode(tile=8 * factor))
    np.testing.assert_allclose(
        mean, from_vae(bundle.latents, moments("mean")), atol=ROUNDING * scale
    )


def test_a_tile_is_moved_into_the_sizes_that_the_decoder_takes(sd35):
    factor = sd35.bundle.latents.factor
    sizes = sd35.bundle.components[DECODER].ranges["height"]
    latents, size = drawn(sd35, 1, sizes.max + 10, sizes.max)
    run, shapes = counted(sd35.run)
    image = vae.decode(sd35.bundle, run, latents, *size, VaeMode(tile=10_000))
    assert image.shape == (1, 3, *size)  # larger than the decoder takes at once
    assert {shape[2:] for shape in shapes} == {(sizes.max, sizes.max)}
    with pytest.raises(SizeError):
        sd35.decode(latents, *size)
    shapes.clear()
    small, size = drawn(sd35, 1, 6, 6)
    image = vae.decode(sd35.bundle, run, small, *size, VaeMode(tile=1))
    assert image.shape == (1, 3, 6 * factor, 6 * factor)
    assert {shape[2:] for shape in shapes} == {(sizes.min, sizes.min)}


def test_blended_seams_are_smaller_than_butted_ones(sd35):
    """The error of a tiled decode jumps less where two tiles meet than without the blend."""
    factor = sd35.bundle.latents.factor
    latents, size = drawn(sd35, 1, 12, 24)
    whole = sd35.decode(latents, *size)
    image = vae.decode(sd35.bundle, sd35.run, latents, *size, VaeMode(tile=12 * factor))
    halves = [sd35.decode(latents[..., i : i + 12].copy(), size[0], size[1] // 2) for i in (0, 12)]
    butted = np.concatenate(halves, axis=-1)
    jump = lambda made: np.abs(np.diff(made - whole, axis=-1))  # noqa: E731
    assert jump(image).max() < jump(butted)[..., 12 * factor - 1].max() / 2
    assert np.abs(image - whole).mean() < np.abs(butted - whole).mean()


# one size only


def fixed(pipe, name, **sides):
    """The bundle with a component of one size."""
    spec = pipe.bundle.components[name]
    ranges = {key: eri.ShapeRange(min=side, opt=side, max=side) for key, side in sides.items()}
    components = {**pipe.bundle.components, name: replace(spec, ranges={**spec.ranges, **ranges})}
    return replace(pipe.bundle, components=components)


def test_a_decoder_of_one_size_has_tiles_of_that_size_only(sd35):
    factor = sd35.bundle.latents.factor
    bundle = fixed(sd35, DECODER, batch=2, height=16, width=16)
    latents, size = drawn(sd35, 3, 16, 16)
    run, shapes = counted(sd35.run)
    whole = vae.decode(bundle, run, latents, *size, VaeMode(images=1, tile=16 * factor))
    assert [shape[0] for shape in shapes] == [2, 2]  # the last is filled up
    np.testing.assert_allclose(whole, sd35.decode(latents, *size), rtol=0, atol=ROUNDING)
    large, twice = drawn(sd35, 1, 32, 16)
    image = vae.decode(bundle, run, large, *twice, VaeMode(tile=16 * factor))
    assert image.shape == (1, 3, *twice)
    with pytest.raises(
        UsageError, match=rf"^VAE tile: got {8 * factor} pixels.*{16 * factor}, the one"
    ):
        vae.decode(bundle, run, latents, *size, VaeMode(tile=8 * factor))


def test_an_encoder_of_one_size_says_so_in_pixels(sd35):
    factor = sd35.bundle.latents.factor
    bundle = fixed(sd35, ENCODER, image_height=16 * factor, image_width=16 * factor)
    picture = pixels(sd35, 1, 16, 16)
    assert vae.encode(bundle, sd35.run, picture, mode=VaeMode(tile=16 * factor)).shape[2:] == (
        16,
        16,
    )
    with pytest.raises(UsageError, match=rf"expected {16 * factor}, the one size"):
        vae.encode(bundle, sd35.run, picture, mode=VaeMode(tile=16))


# what is refused


def test_what_is_not_finite_in_a_tile_is_an_error(sd35):
    def run(name, inputs):
        outputs = sd35.run(name, inputs)
        return {
            key: np.where(value == value.max(), np.nan, value) for key, value in outputs.items()
        }

    latents, size = drawn(sd35, 1, 12, 20)
    mode = VaeMode(tile=8 * sd35.bundle.latents.factor)
    with pytest.raises(NonFiniteError, match="decoded image"):
        vae.decode(sd35.bundle, run, latents, *size, mode)
    with pytest.raises(NonFiniteError, match="encoded image"):
        vae.encode(sd35.bundle, run, pixels(sd35, 1, 12, 20), mode=mode)


@pytest.mark.parametrize("field", ["images", "tile"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_a_mode_has_numbers_of_one_or_more(field, value):
    with pytest.raises(UsageError, match=f"^{field}"):
        VaeMode(**{field: value})
