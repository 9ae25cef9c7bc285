"""Noise of the caller's generators: their own draws, repeatable, and left advanced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eri_runtime.errors import UsageError
from eri_runtime.sampling import GeneratorNoise, TorchNoise, TorchNormal, make_streams

SHAPE = (4, 5)


def torch_generator(seed):
    return torch.Generator().manual_seed(seed)


MAKERS = {
    "torch": torch_generator,
    "eri": TorchNormal,
    "numpy": np.random.default_rng,
    "seed": int,
}


def noise(generator, count=2, first=0):
    return GeneratorNoise(make_streams(generator, count), count, first)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("is_list", [False, True])
def test_draws_can_be_repeated_in_any_order(make, is_list):
    source = noise([make(1), make(2)] if is_list else make(1))
    draws = [source(k, SHAPE) for k in range(3)]
    assert all(draw.shape == (2, *SHAPE) and draw.dtype == np.float32 for draw in draws)
    for k in (2, 0, 1, 1):
        np.testing.assert_array_equal(source(k, SHAPE), draws[k])
    assert len({draw.tobytes() for draw in draws}) == 3


@pytest.mark.parametrize("make", [torch_generator, TorchNormal, int])
def test_one_generator_draws_a_batch_as_torch(make):
    expected = torch.randn((2, *SHAPE), generator=torch_generator(9)).numpy()
    np.testing.assert_allclose(noise(make(9))(0, SHAPE), expected, atol=2e-6)


def test_a_list_is_a_seed_per_image():
    expected = TorchNoise([9, 4])
    for source in (noise([9, 4]), noise([torch_generator(9), torch_generator(4)])):
        for draw in range(2):
            np.testing.assert_allclose(source(draw, SHAPE), expected(draw, SHAPE), atol=2e-6)


@pytest.mark.parametrize("name", ["torch", "eri", "numpy"])
def test_a_generator_is_left_where_the_draws_end(name):
    generator, other = MAKERS[name](3), MAKERS[name](3)
    noise(generator)(1, SHAPE)
    noise(other)(0, SHAPE)
    np.testing.assert_array_equal(noise(other)(0, SHAPE), noise(MAKERS[name](3))(1, SHAPE))
    assert not np.array_equal(noise(generator)(0, SHAPE), noise(MAKERS[name](3))(0, SHAPE))


def test_a_seed_is_known_until_something_is_drawn():
    generator = torch_generator(5)
    assert [stream.seed for stream in make_streams([generator, 7], 2)] == [5, 7]
    torch.randn(3, generator=generator)
    assert make_streams(generator, 1)[0].seed is None
    assert make_streams(np.random.default_rng(1), 1)[0].seed is None


def test_the_first_draw_is_the_first_that_is_made():
    source = noise(9, first=1)
    np.testing.assert_array_equal(source(1, SHAPE), noise(9)(0, SHAPE))
    with pytest.raises(UsageError, match=r"^draw: got 0"):
        source(0, SHAPE)


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        ("x", "generator: got 'x', expected a torch.Generator, a NumPy Generator, a seed"),
        (True, "generator: got True"),
        (1.5, "generator: got 1.5"),
        (-1, "generator: got -1, expected an integer, 0 to"),
        (np.random.RandomState(0), "generator: got RandomState"),
        ([1, None], r"generator\[1\]: got None"),
        ([], "generator: got 0 of them, expected one, or 2"),
        ([1, 2, 3], "generator: got 3 of them"),
        ([torch.Generator()] * 2, "generator: got one generator twice"),
    ],
)
def test_what_is_no_generator_is_refused(generator, says):
    with pytest.raises(UsageError, match=f"^{says}"):
        make_streams(generator, 2)
