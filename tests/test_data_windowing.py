"""Windows and the way back to rows, against naive loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data import windowing
from kdjax.data.windowing import (
    add_scores,
    empty_sums,
    gather,
    has_missing,
    latest_window,
    mean_of_sums,
    window_labels,
    windows,
)
from kdjax.detection.scores import row_scores
from kdjax.errors import ConfigError, DataError


@st.composite
def layouts(draw):
    """Rows, window and ascending starts that fit."""
    rows = draw(st.integers(1, 60))
    window = draw(st.integers(1, rows))
    last = rows - window
    starts = draw(st.lists(st.integers(0, last), unique=True, max_size=20))
    return rows, window, np.array(sorted(starts), np.int64)


@settings(deadline=None)
@given(layouts())
def test_gather_copies_rows(layout):
    rows, window, starts = layout
    values = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    found = gather(values, starts, window)
    assert found.shape == (len(starts), window, 3)
    assert found.dtype == np.float32
    for index, start in enumerate(starts):
        np.testing.assert_array_equal(found[index], values[start : start + window])


@settings(deadline=None)
@given(layouts(), st.data())
def test_window_labels_against_a_loop(layout, data):
    rows, window, starts = layout
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    least = data.draw(st.integers(1, window))
    found = window_labels(labels, starts, window=window, min_anomalous_points=least)
    naive = [sum(labels[start : start + window].tolist()) >= least for start in starts]
    assert found.dtype == bool
    assert found.tolist() == naive


@pytest.mark.parametrize("least", [0, 6])
def test_window_labels_refuse_a_count_that_cannot_be(least):
    with pytest.raises(ConfigError, match=f"min_anomalous_points={least} must lie"):
        window_labels(np.zeros(9), np.array([0]), window=5, min_anomalous_points=least)


def _naive_row_scores(scores, starts, rows):
    total, count = [0.0] * rows, [0] * rows
    for index, start in enumerate(starts.tolist()):
        for offset, score in enumerate(scores[index].tolist()):
            total[start + offset] += score
            count[start + offset] += 1
    return [t / c if c else np.nan for t, c in zip(total, count, strict=True)]


@settings(deadline=None)
@given(layouts(), st.integers(0, 2**32 - 1), st.sampled_from([3, 8192]))
def test_row_scores_is_exactly_the_loops(layout, seed, chunk):
    rows, window, starts = layout
    scores = np.random.default_rng(seed).lognormal(3, 3, (len(starts), window))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windowing, "_CHUNK", chunk)
        found = row_scores(scores, starts=starts, rows=rows)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, _naive_row_scores(scores, starts, rows))


def test_row_scores_keeps_infinity_and_nan_where_they_belong():
    scores = np.array([[1, np.inf, 3], [5, 6, 7], [np.nan, 1, 1]], np.float32)
    found = row_scores(scores, starts=np.array([0, 2, 6]), rows=10)
    expected = [1, np.inf, 4, 6, 7, np.nan, np.nan, 1, 1, np.nan]
    np.testing.assert_array_equal(found, expected)


def test_row_scores_of_no_window_is_unknown_everywhere():
    found = row_scores(np.empty((0, 4)), starts=np.empty(0, np.int64), rows=3)
    np.testing.assert_array_equal(found, [np.nan] * 3)


@settings(deadline=None)
@given(layouts(), st.sets(st.integers(1, 59)))
def test_latest_window_against_a_loop(layout, cuts):
    """Every second part between the cuts is a gap."""
    rows, window, starts = layout
    edges = sorted({0, *(cut for cut in cuts if cut < rows), rows})
    spans = [*itertools.pairwise(edges)][::2]
    inside = [[*range(first, stop)] for first, stop in spans]
    span_of = {row: number for number, own in enumerate(inside) for row in own}
    windows = [
        start
        for start in starts.tolist()
        if span_of.get(start, -1) == span_of.get(start + window - 1, -2)
    ]
    found = latest_window(
        np.array(windows, np.int64), np.array(spans), window=window, rows=rows
    )
    assert found.dtype == np.int64
    for row in range(rows):
        ended = [
            number
            for number, start in enumerate(windows)
            if start + window - 1 <= row and span_of[start] == span_of.get(row)
        ]
        assert found[row] == max(ended, default=-1)


@settings(deadline=None)
@given(layouts(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_sums_of_many_numbers_a_row_are_those_of_each(layout, width, seed):
    rows, window, starts = layout
    scores = np.random.default_rng(seed).lognormal(size=(len(starts), window, width))
    sums = empty_sums(rows, width)
    for piece in np.array_split(np.arange(len(starts)), 3):
        add_scores(sums, scores[piece], starts[piece])
    found = mean_of_sums(sums)
    assert found.shape == (rows, width) and found.dtype == np.float64
    for column in range(width):
        wanted = _naive_row_scores(scores[..., column], starts, rows)
        np.testing.assert_array_equal(found[:, column], wanted)


@pytest.mark.parametrize("value", [0.0, np.inf, -np.inf, np.nan])
def test_only_nan_is_missing(value):
    values = np.zeros((4, 3), np.float32)
    values[2, 1] = value
    assert has_missing(values) is bool(np.isnan(value))
    assert has_missing(np.empty((0, 3))) is False


def test_windows_of_hand_made_rows():
    rows = np.arange(14.0).reshape(7, 2)
    found = windows(rows, length=3, stride=2)
    expected = [
        [[0, 1], [2, 3], [4, 5]],
        [[4, 5], [6, 7], [8, 9]],
        [[8, 9], [10, 11], [12, 13]],
    ]
    np.testing.assert_array_equal(found, expected)
    assert windows(rows, length=3).shape == (5, 3, 2)
    assert windows(rows, length=7).shape == (1, 7, 2)
    assert windows([[1, 2], [3, 4]], length=1).tolist() == [[[1, 2]], [[3, 4]]]


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9))
def test_windows_are_those_of_gather_without_a_copy(rows, length, stride):
    values = np.random.default_rng(rows).normal(size=(max(rows, length), 2))
    found = windows(values, length=length, stride=stride)
    starts = np.arange(0, len(values) - length + 1, stride)
    np.testing.assert_array_equal(found, gather(values, starts, length))
    assert np.shares_memory(found, values) and not found.flags.writeable


def test_windows_checks_rows_length_and_stride():
    rows = np.ones((4, 2))
    with pytest.raises(DataError, match="4 rows for length=5: give more"):
        windows(rows, length=5)
    for shape in ((4,), (4, 2, 1)):
        with pytest.raises(DataError, match=r"rows have shape .*, expected \[N, D\]"):
            windows(np.ones(shape), length=2)
    with pytest.raises(ConfigError, match="length=0 must be at least 1 row"):
        windows(rows, length=0)
    with pytest.raises(ConfigError, match="stride=-1 must be at least 1 row"):
        windows(rows, length=2, stride=-1)
