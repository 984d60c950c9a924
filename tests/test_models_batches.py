"""Batches of one size against plain slices."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdjax.data.scaler import Scaler
from kdjax.training.batching import map_windows, padded_batches, take_windows


@given(st.lists(st.integers(0, 10**6), max_size=40), st.integers(1, 12))
def test_batches_hold_each_item_once_in_order(items, size):
    batches = list(padded_batches(np.array(items, np.int64), size))
    assert len(batches) == -(-len(items) // size)
    held = []
    for number, (batch, weight) in enumerate(batches):
        assert batch.shape == weight.shape == (size,)
        assert weight.dtype == np.float32
        count = min(size, len(items) - number * size)
        assert weight.tolist() == [1.0] * count + [0.0] * (size - count)
        assert set(batch[count:].tolist()) <= {batch[count - 1]}
        held += batch[:count].tolist()
    assert held == items


def test_windows_are_taken_at_their_starts():
    rows = jnp.arange(12.0).reshape(6, 2)
    found = take_windows(rows, jnp.array([3, 0]), 3)
    np.testing.assert_array_equal(found[0], rows[3:6])
    np.testing.assert_array_equal(found[1], rows[0:3])
    assert found.shape == (2, 3, 2)


@pytest.mark.parametrize("far_apart", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_mapped_windows_are_those_of_one_call(count, far_apart):
    rows = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    starts = np.random.default_rng(1).integers(0, 26, count)
    if not far_apart:
        starts = np.sort(starts) // 2
    traces = []

    def function(shift, windows):
        traces.append(windows.shape)
        return jnp.cumsum(windows, axis=1) + shift

    shift = np.float32(0.5)
    parts = list(map_windows(function, shift, rows, starts, window=5, batch_size=4))
    sizes = [4] * (count // 4) + [count % 4] * bool(count % 4)
    assert [len(part) for part in parts] == sizes
    found = np.concatenate([np.empty((0, 5, 2)), *parts])
    expected = np.array([rows[s : s + 5] for s in starts]).reshape(count, 5, 2)
    expected = np.cumsum(expected, axis=1) + shift
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    # One shape for all batches; a short series is padded less.
    assert traces == [(min(4, 1 << (count - 1).bit_length()), 5, 2)] * (count > 0)


def test_a_longer_series_is_no_reason_to_compile_again():
    traces = []

    def function(common, windows):
        traces.append(windows.shape)
        return windows[:, 0]

    for rows in (60, 61, 73, 90):
        values = np.arange(2.0 * rows, dtype=np.float32).reshape(rows, 2)
        starts = np.arange(0, rows - 4, 3)
        parts = map_windows(function, (), values, starts, window=5, batch_size=8)
        np.testing.assert_array_equal(np.concatenate(list(parts)), values[starts])
    assert len(traces) == 1


def test_rows_are_scaled_on_their_way(tmp_path):
    """A memory map in raw units gives what scaled rows in memory give."""
    raw = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    np.save(tmp_path / "rows.npy", raw)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    scaler = Scaler(np.float32([1, 2, 3]), np.float32([2, 4, 8]))
    starts = np.arange(0, 46, 5)
    parts = map_windows(
        _same, (), mapped, starts, window=5, batch_size=4, scaler=scaler
    )
    expected = [((raw - scaler.offset) / scaler.scale)[s : s + 5] for s in starts]
    np.testing.assert_array_equal(np.concatenate(list(parts)), expected)


def test_a_function_may_give_several_arrays():
    """Each is cut to the batch's real windows; NaN cells travel as they are."""
    rows = np.random.default_rng(3).normal(size=(40, 2)).astype(np.float32)
    rows[7:9, 1] = np.nan
    starts = np.arange(0, 36, 3)
    parts = list(map_windows(_two, (), rows, starts, window=5, batch_size=8))
    assert [len(first) for first, _ in parts] == [8, 4]
    first, second = (np.concatenate(side) for side in zip(*parts, strict=True))
    windows = np.stack([rows[s : s + 5] for s in starts])
    np.testing.assert_array_equal(first, windows[:, 0])
    np.testing.assert_array_equal(second, np.isnan(windows))


def _two(common, windows):
    return windows[:, 0], jnp.isnan(windows)


def _same(common, windows):
    return windows
