"""Tiles of a side and of a picture: they cover it, count one together, and are seen one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.latents.tiling import OVERLAP, run_in_tiles, tile_side

LENGTHS = st.integers(1, 40)
normal = np.random.default_rng(0).standard_normal


@given(total=st.integers(1, 300), length=LENGTHS)
def test_a_side_is_covered_by_tiles_of_one_length(total, length):
    side = tile_side(total, length)
    starts = np.array(side.starts)
    assert starts[0] == 0
    assert side.total == total
    assert side.length == min(total, length)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert len(steps) == 0 or np.ptp(steps) <= 1  # even
    assert (side.length - steps >= min(OVERLAP * length, length - 1)).all()


@given(total=st.integers(2, 300), length=st.integers(2, 40))
def test_no_tile_is_one_too_many(total, length):
    side = tile_side(total, length)
    without = total - side.length - (len(side.starts) - 2) * (length - np.ceil(OVERLAP * length))
    assert len(side.starts) == 1 or without > 0


@given(total=st.integers(1, 300), length=LENGTHS, scale=st.sampled_from([1, 2, 8]))
def test_tiles_count_one_together(total, length, scale):
    side = tile_side(total, length)
    together = np.zeros(total * scale)
    for begin, weight in zip(side.starts, side.weights(scale), strict=True):
        assert weight.dtype == np.float32
        assert (weight > 0).all()
        assert weight.max() <= 1
        together[begin * scale : (begin + side.length) * scale] += weight
    np.testing.assert_allclose(together, 1, rtol=0, atol=1e-6)  # three float32 roundings


def test_a_seam_is_crossed_in_a_straight_line():
    first, second = tile_side(28, 16).weights(2)  # from 0 and from 12, so 4 of the cut are in both
    falling = (np.arange(8)[::-1] + 0.5) / 8
    np.testing.assert_allclose(first, [1] * 24 + [*falling], rtol=1e-6)
    np.testing.assert_allclose(second, first[::-1], rtol=1e-6)


def enlarged(x):
    """Each value as a square of 2 x 2, and the sum over channels as it is."""
    return {"large": x.repeat(2, 2).repeat(2, 3), "other": 3 * x.repeat(2, 2).repeat(2, 3)}


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    lengths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    batch=st.integers(1, 3),
)
def test_what_sees_a_point_only_is_the_same_in_tiles(size, lengths, batch):
    x = normal((batch, 2, *size), dtype=np.float32)
    rows, columns = (tile_side(total, length) for total, length in zip(size, lengths, strict=True))
    seen = []
    outputs = run_in_tiles(
        lambda tile: seen.append(tile.shape) or enlarged(tile), x, rows, columns, made=2
    )
    assert set(seen) == {(batch, 2, rows.length, columns.length)}
    assert len(seen) == len(rows.starts) * len(columns.starts)
    assert outputs.keys() == {"large", "other"}
    for name, expected in enlarged(x).items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-6)


def test_a_tile_may_be_made_smaller_than_it_is_given():
    x = normal((1, 1, 24, 40), dtype=np.float32)
    halved = lambda tile: {"small": np.ascontiguousarray(tile[:, :, ::2, ::2])}  # noqa: E731
    outputs = run_in_tiles(halved, x, tile_side(12, 5), tile_side(20, 5), given=2)
    np.testing.assert_allclose(outputs["small"], x[:, :, ::2, ::2], rtol=1e-5, atol=1e-6)


def test_the_same_tiles_give_the_same_bits():
    x = normal((1, 2, 23, 31), dtype=np.float32)
    first, again = (
        run_in_tiles(enlarged, x, tile_side(23, 7), tile_side(31, 9), made=2) for _ in range(2)
    )
    assert first["large"].tobytes() == again["large"].tobytes()


@pytest.mark.parametrize("place", [(0, 0), (11, 7), (22, 30)])
def test_what_is_not_finite_in_one_tile_is_seen(place):
    x = normal((1, 1, 23, 31), dtype=np.float32)
    x[0, 0][place] = np.nan
    found = run_in_tiles(enlarged, x, tile_side(23, 7), tile_side(31, 9), made=2)["large"]
    assert np.isnan(found[0, 0, 2 * place[0], 2 * place[1]])
