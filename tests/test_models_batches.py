"""Batches of one size against plain slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdjax.models.batches import map_windows, padded_batches, take_windows


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


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_mapped_windows_are_those_of_one_call(count):
    rows = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    starts = np.random.default_rng(1).integers(0, 26, count)
    traces = []

    @jax.jit
    def function(windows):
        traces.append(windows.shape)
        return jnp.cumsum(windows, axis=1)

    parts = list(map_windows(function, rows, starts, window=5, batch_size=4))
    assert [len(part) for part in parts] == [4] * (count // 4) + [count % 4] * bool(
        count % 4
    )
    found = np.concatenate([np.empty((0, 5, 2)), *parts])
    expected = np.array([rows[s : s + 5] for s in starts]).reshape(count, 5, 2)
    np.testing.assert_allclose(found, np.cumsum(expected, axis=1), rtol=1e-6)
    assert traces == [(4, 5, 2)] * (count > 0)
