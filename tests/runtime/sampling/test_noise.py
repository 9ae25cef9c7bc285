"""Noise: torch's stream in NumPy, and sources as pure functions of (seed, draw, shape)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.errors import UsageError
from eri_runtime.sampling import torch_math
from eri_runtime.sampling.noise import PhiloxNoise, TorchNoise, check_noise, image_seeds
from eri_runtime.sampling.torch_randn import TorchNormal

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32 + 7, 2**63, 2**64 - 1]
SHAPES = [(), (1,), (2,), (15,), (16,), (17,), (31,), (33,), (100,), (1, 4, 13, 7), (2, 16, 8, 8)]
# to the bit where torch runs the kernel that is copied; its kernel for other CPUs differs by 2e-6
COPIED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
TOLERANCE = {np.float32: 0 if COPIED else 2.5e-6, np.float64: 1e-14}
TORCH = {np.float32: torch.float32, np.float64: torch.float64}
SOURCES = [TorchNoise, PhiloxNoise]


def torch_stream(seed, dtype=np.float32):
    """`draw(shape)` of torch's own CPU generator."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator, dtype=TORCH[dtype]).numpy()


def assert_torchs(mine, theirs):
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=TOLERANCE[theirs.dtype.type])


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_draw_is_torchs(seed, shape, dtype):
    assert_torchs(TorchNormal(seed).standard_normal(shape, dtype), torch_stream(seed, dtype)(shape))


@given(
    seed=st.integers(0, 2**64 - 1),
    draws=st.lists(st.tuples(st.integers(0, 50), st.sampled_from(list(TORCH))), max_size=12),
)
def test_a_sequence_of_draws_is_torchs(seed, draws):
    """Short draws leave half a pair behind, which long ones pass over."""
    generator, stream = torch.Generator("cpu").manual_seed(seed), TorchNormal(seed)
    for size, dtype in draws:
        theirs = torch.randn(size, generator=generator, dtype=TORCH[dtype]).numpy()
        assert_torchs(stream.standard_normal((size,), dtype), theirs)


@pytest.mark.parametrize("dtype", TORCH)
def test_many_values_are_torchs_and_never_infinite(dtype):
    shape = (4, 16, 128, 128)
    mine = TorchNormal(3).standard_normal(shape, dtype)
    assert_torchs(mine, torch_stream(3, dtype)(shape))
    assert np.isfinite(mine).all()
    assert abs(mine.mean()) < 0.01
    assert abs(mine.std() - 1) < 0.01


def test_float32_functions_are_the_functions():
    """Independent of torch's kernel: within one unit of float32 of NumPy's float64 functions."""
    u = np.arange(1, 2**24 + 1, 37, dtype=np.float32) * np.float32(2**-24)
    np.testing.assert_allclose(
        torch_math.log(u), np.log(u.astype(np.float64)), rtol=1.2e-7, atol=1e-9
    )
    angle = np.float32(2 * np.pi) * u
    for mine, function in zip(torch_math.sin_cos(angle), (np.sin, np.cos), strict=True):
        np.testing.assert_allclose(mine, function(angle.astype(np.float64)), rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_diffusers_16_bit_noise_is_this_noise_rounded(half):
    """For whole blocks, which latents are; so a seed means one picture in every precision."""
    theirs = torch.randn(1024, generator=torch.Generator("cpu").manual_seed(5), dtype=half)
    theirs = theirs.float().numpy()
    error = np.abs(TorchNormal(5).standard_normal((1024,)) - theirs)
    assert (error <= torch.finfo(half).eps * np.abs(theirs)).all()


def test_each_image_follows_its_own_torch_generator():
    shape, source = (4, 6, 5), TorchNoise([3, 2**40])
    streams = [torch_stream(3), torch_stream(2**40)]
    for draw in range(3):
        assert_torchs(source(draw, shape), np.stack([stream(shape) for stream in streams]))


@pytest.mark.parametrize("source", SOURCES)
@given(seed=st.integers(0, 2**32 - 3), draw=st.integers(0, 20))
def test_noise_does_not_depend_on_the_batch(source, seed, draw):
    batch = source([seed, seed + 1])(draw, (2, 3))
    np.testing.assert_array_equal(batch[1:], source([seed + 1])(draw, (2, 3)))
    assert not np.array_equal(batch[0], batch[1])
    assert not np.array_equal(batch, source([seed, seed + 1])(draw + 1, (2, 3)))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shape", [(3,), (5, 7)])
@given(asked=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=8))
def test_a_draw_is_the_same_whenever_it_is_asked_for(source, shape, asked):
    noise = source([1, 2])
    for draw, other_shape in asked:
        if other_shape:
            noise(draw, (16,))
        np.testing.assert_array_equal(noise(draw, shape), source([1, 2])(draw, shape))


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_unit_normal(source):
    values = source([0])(0, (200_000,))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01


def test_a_stream_may_begin_with_the_loop():
    noise = TorchNoise([1, 2], first=1)
    np.testing.assert_array_equal(noise(3, (4,)), TorchNoise([1, 2])(2, (4,)))
    with pytest.raises(UsageError, match="draw"):
        noise(0, (4,))


def test_noise_of_a_wrong_shape_or_type_is_refused():
    np.testing.assert_array_equal(
        check_noise(TorchNoise([1]), 1)(2, (4,)), TorchNoise([1])(2, (4,))
    )
    with pytest.raises(UsageError, match=r"\(2, 4\).*\(3, 4\)"):
        check_noise(TorchNoise([1, 2]), 3)(0, (4,))
    with pytest.raises(UsageError, match="noise"):
        check_noise(lambda draw, shape: "noise", 1)(0, (4,))


def test_seeds_count_up_from_the_first():
    assert image_seeds(0, 3) == (0, 1, 2)
    assert image_seeds([7, 7], 2) == (7, 7)
    assert len(set(image_seeds(None, 2) + image_seeds(None, 2))) == 4


@pytest.mark.parametrize("seed", [-1, 2**64, [1, 2, 3], [0.5, 1]])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(UsageError, match="seed"):
        image_seeds(seed, 2)
