"""Filled windows against pandas, cell by cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.models.model import fill_missing


def by_pandas(window):
    """`[L, D]`: the last value before, else the first after, else 0."""
    return pd.DataFrame(window).ffill().bfill().fillna(0.0).to_numpy()


def windows_of(seed, shape, share):
    """Windows `[B, L, D]` with about that share of NaN, some channels without a value."""
    rng = np.random.default_rng(seed)
    windows = rng.normal(size=shape).astype(np.float32)
    windows[rng.random(shape) < share] = np.nan
    batch, _, width = shape
    empty = rng.random((batch, width)) < 0.2
    windows[np.broadcast_to(empty[:, None], shape)] = np.nan
    return windows


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 1, 1), (2, 2, 3), (3, 5, 2), (2, 8, 1), (1, 33, 2)]),
    st.sampled_from([0.0, 0.3, 0.9]),
)
def test_cells_are_filled_as_pandas_fills_them(seed, shape, share):
    windows = windows_of(seed, shape, share)
    filled, observed = fill_missing(jnp.asarray(windows))
    wanted = np.stack([by_pandas(window) for window in windows])
    # Copies of values, not results of arithmetic.
    np.testing.assert_array_equal(filled, wanted)
    np.testing.assert_array_equal(observed, ~np.isnan(windows))
    assert filled.dtype == np.float32 and observed.dtype == bool


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 64, 100])
def test_a_value_reaches_both_ends_of_its_window(length):
    for place in {0, length // 2, length - 1}:
        windows = np.full((1, length, 1), np.nan, np.float32)
        windows[0, place] = 5.0
        assert (np.asarray(fill_missing(jnp.asarray(windows))[0]) == 5).all()


def test_windows_and_channels_never_fill_each_other():
    windows = np.full((2, 3, 2), np.nan, np.float32)
    windows[0, 1, 0] = 7.0
    filled = np.asarray(fill_missing(jnp.asarray(windows))[0])
    assert (filled[0, :, 0] == 7).all()
    assert not filled[0, :, 1].any() and not filled[1].any()


def test_the_same_under_jit_and_infinities_are_values():
    windows = windows_of(3, (4, 9, 3), 0.4)
    windows[0, 2, 0], windows[0, 3, 0] = np.inf, np.nan
    plain, jitted = fill_missing(jnp.asarray(windows)), jax.jit(fill_missing)(windows)
    for a, b in zip(plain, jitted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert plain[1][0, 2, 0] and np.isposinf(plain[0][0, 3, 0])


def test_windows_without_a_gap_are_as_they_were():
    windows = windows_of(4, (2, 6, 2), 0.0)
    windows = np.nan_to_num(windows, nan=1.5)
    filled, observed = fill_missing(jnp.asarray(windows))
    np.testing.assert_array_equal(filled, windows)
    assert observed.all()
