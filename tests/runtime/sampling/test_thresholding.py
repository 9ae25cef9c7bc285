"""Dynamic thresholding against diffusers', and what it must always do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eri_runtime.errors import NonFiniteError, SizeError, UsageError
from eri_runtime.sampling.thresholding import dynamic_thresholding

FLOATS = [np.float16, np.float32, np.float64]
normal = np.random.default_rng(0).standard_normal
samples = arrays.arrays(
    st.sampled_from(FLOATS),
    arrays.array_shapes(min_dims=2, max_dims=5, max_side=4),
    elements=st.floats(-1000, 1000, width=16),
)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_it_is_diffusers(percentile, dtype):
    """Of images whose largest values are below, at and above the threshold."""
    x = (np.array([0.1, 0.4, 1, 10]).reshape(4, 1, 1, 1) * normal((4, 4, 9, 7))).astype(dtype)
    scheduler = DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e9
    )
    reference = scheduler._threshold_sample(torch.from_numpy(x)).numpy()
    mine = dynamic_thresholding(x, percentile=percentile)
    assert mine.dtype == reference.dtype == dtype
    error = np.abs(mine.astype(np.float64) - reference).max()
    assert error <= (1e-3 if dtype == np.float16 else 1e-6)
    assert not np.array_equal(mine, x)


def test_the_threshold_is_a_unit():
    x = 5 * normal((2, 4, 6, 6))
    scaled = 3 * dynamic_thresholding(x / 3, 1.0, 0.9)
    np.testing.assert_allclose(dynamic_thresholding(x, 3.0, 0.9), scaled, rtol=1e-14)


@given(sample=samples, threshold=st.floats(1e-3, 100), percentile=st.floats(0.01, 1))
def test_nothing_is_left_out_of_range_and_nothing_in_range_is_moved(sample, threshold, percentile):
    x = dynamic_thresholding(sample, threshold, percentile)
    assert (x.shape, x.dtype) == (sample.shape, sample.dtype)
    assert np.abs(x).max() <= sample.dtype.type(threshold)
    assert (np.sign(x) * np.sign(sample) >= 0).all()
    within = np.abs(sample.astype(np.float64)).reshape(len(sample), -1).max(axis=1) <= threshold
    np.testing.assert_array_equal(x[within], sample[within])


@given(sample=samples, percentile=st.floats(0.01, 1))
def test_an_image_does_not_depend_on_its_batch(sample, percentile):
    batch = dynamic_thresholding(sample, 1.0, percentile)
    for image, alone in zip(batch, sample, strict=True):
        np.testing.assert_array_equal(dynamic_thresholding(alone[None], 1.0, percentile)[0], image)


def test_the_sample_is_not_written_to():
    x = np.full((1, 4), 9.0)
    x.flags.writeable = False
    np.testing.assert_array_equal(dynamic_thresholding(x), np.ones((1, 4)))


@pytest.mark.parametrize("threshold", [5e-324, 1e-200, 1e300])
def test_a_threshold_beyond_float32(threshold):
    x = normal((2, 8)).astype(np.float32)
    assert np.abs(dynamic_thresholding(x, threshold).astype(np.float64)).max() <= threshold * 1.001


@pytest.mark.parametrize("threshold", [0, -1.0, float("nan"), float("inf"), None, "1", True])
def test_a_bad_threshold_is_refused(threshold):
    with pytest.raises(UsageError, match=r"^threshold: got .* above 0"):
        dynamic_thresholding(np.zeros((1, 2)), threshold)


@pytest.mark.parametrize("percentile", [0, -0.5, 1.001, 101, float("nan"), None, "0.5"])
def test_a_bad_percentile_is_refused(percentile):
    with pytest.raises(UsageError, match=r"^percentile: got .* at most 1"):
        dynamic_thresholding(np.zeros((1, 2)), 1.0, percentile)


def test_a_percentile_in_percent_is_told_apart():
    with pytest.raises(UsageError, match=r"percentile: got 99\.5.*write 0\.995"):
        dynamic_thresholding(np.zeros((1, 2)), 1.0, 99.5)


@pytest.mark.parametrize("sample", [1.0, [1.0], [[]], np.zeros((0, 4)), np.zeros((2, 0, 3))])
def test_what_is_no_batch_is_refused(sample):
    with pytest.raises(SizeError, match=r"^sample: got \("):
        dynamic_thresholding(sample)


NO_FLOATS = [np.zeros((1, 2), int), [["x"]], None, [[1j]], [[1.0], [1.0, 2.0]], [[object()]]]


@pytest.mark.parametrize("sample", NO_FLOATS)
def test_what_holds_no_floats_is_refused(sample):
    with pytest.raises(UsageError, match=r"^sample: got .* expected an array of floats"):
        dynamic_thresholding(sample)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_not_passed_on(bad):
    with pytest.raises(NonFiniteError, match=r"^sample"):
        dynamic_thresholding(np.array([[1.0, bad]]))
