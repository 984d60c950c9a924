"""Moments against numpy in float64: pieces merged are the whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.detection.gaussian import merge, merge_all, moments_of
from kdjax.errors import DataError

ORACLE = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)["scorer"]


@st.composite
def cut_errors(draw):
    """Rows `[N, D]` at some offset, and the same cut in pieces, some of them empty."""
    rows, width = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    offset = draw(st.sampled_from([0.0, 1.0, 1e4, 1e8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    errors = offset + rng.normal(size=(rows, width)) * rng.uniform(0.1, 10, width)
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=5)))
    return errors, np.split(errors, cuts)


def close(moments, errors):
    """Whether moments are numpy's, up to rounding of the errors' own size."""
    offset = np.abs(errors).max()
    deviation = errors - errors.mean(axis=0)
    size = max(1.0, np.abs(deviation).max())
    # A mean of numbers near `offset` is good to its last bits, no better.
    mean_error = 1e-15 * offset * 8
    n = len(errors)
    assert moments.n == n
    np.testing.assert_allclose(
        moments.mean, errors.mean(axis=0), rtol=0, atol=1e-12 + mean_error
    )
    np.testing.assert_allclose(
        moments.scatter,
        deviation.T @ deviation,
        rtol=0,
        atol=n * (1e-12 * size**2 + 4 * size * mean_error),
    )


@settings(deadline=None, max_examples=200)
@given(cut_errors())
def test_pieces_merged_are_the_whole(case):
    errors, pieces = case
    close(moments_of(errors), errors)
    close(merge_all(moments_of(piece) for piece in pieces), errors)


@settings(deadline=None, max_examples=100)
@given(cut_errors())
def test_order_and_grouping_of_pieces_do_not_matter(case):
    errors, pieces = case
    parts = [moments_of(piece) for piece in pieces]
    close(merge_all(parts[::-1]), errors)
    middle = len(parts) // 2
    if middle:
        close(merge(merge_all(parts[:middle]), merge_all(parts[middle:])), errors)


def test_the_published_example():
    rows = np.array(ORACLE["X"])
    merged = merge(moments_of(rows[:1]), moments_of(rows[1:]))
    np.testing.assert_allclose(merged.mean, ORACLE["mean"], rtol=1e-15)
    np.testing.assert_allclose(
        merged.scatter / 3, ORACLE["cov_ddof1"], rtol=1e-15, atol=1e-15
    )


def test_covariance_is_by_maximum_likelihood():
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3))
    moments = moments_of(errors)
    np.testing.assert_allclose(moments.covariance, np.cov(errors.T, ddof=0), rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, errors.std(axis=0), rtol=1e-12)


def test_each_position_of_each_window_is_one_error_vector():
    windows = np.random.default_rng(1).normal(size=(5, 4, 2))
    flat = moments_of(windows.reshape(20, 2))
    for got, wanted in zip(moments_of(windows), flat, strict=True):
        assert np.array_equal(got, wanted)


def test_large_offsets_cost_no_digits_of_float32_errors():
    # E[xx] − μμ in float64 has no digit left here: 1e8² · 1e-16 is 1.
    errors = (1e8 + 8 * np.arange(-50, 50)).astype(np.float32)[:, None]
    moments = merge_all(moments_of(piece) for piece in np.split(errors, 10))
    assert moments.deviation[0] == pytest.approx(8 * np.arange(100).std(), rel=1e-12)


def test_empty_pieces_change_nothing():
    rows = np.random.default_rng(2).normal(size=(7, 2))
    nothing, whole = moments_of(np.empty((0, 2))), moments_of(rows)
    assert nothing.n == 0
    for merged in (merge(nothing, whole), merge(whole, nothing)):
        for got, wanted in zip(merged, whole, strict=True):
            np.testing.assert_array_equal(got, wanted)
    both = merge(nothing, nothing)
    assert both.n == 0 and not both.mean.any() and not both.scatter.any()


def test_one_row_has_a_mean_and_no_scatter():
    moments = moments_of(np.array([[3.0, -1.0]]))
    assert moments.mean.tolist() == [3, -1]
    assert not moments.scatter.any() and not moments.deviation.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_channel(value):
    errors = np.zeros((2, 3, 4), np.float32)
    errors[1, 2, 2] = value
    with pytest.raises(DataError, match="errors of channel 3 are not finite.*scaler"):
        moments_of(errors)
