"""Splits, segments and window starts against properties and naive loops."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdjax.data.splits import (
    cover_starts,
    intersect,
    kept,
    merge,
    segments,
    split,
    split_rows,
    unfold,
    window_starts,
)
from kdjax.data.times import median_step
from kdjax.errors import ConfigError, DataError

shares = st.floats(0, 0.9)


@st.composite
def span_arrays(draw):
    """Disjoint ascending spans."""
    edges = draw(st.lists(st.integers(0, 120), max_size=8, unique=True))
    edges = sorted(edges)[: len(edges) // 2 * 2]
    return np.array(edges, np.int64).reshape(-1, 2)


def _rows(spans):
    return [row for start, stop in spans for row in range(start, stop)]


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 200), shares, shares)
@example(rows=34, window=2, validation=0.9, calibration=0)  # blocks nearly fill parts
def test_split_holds_each_row_once(rows, window, validation, calibration):
    split = split_rows(
        rows, window=window, validation=validation, calibration=calibration
    )
    held = [row for spans in split for row in _rows(spans)]
    assert sorted(held) == list(range(rows))
    for spans in split:
        assert spans.dtype == np.int64
        assert spans.shape[1:] == (2,)
        assert (spans[:, 0] < spans[:, 1]).all()
        assert (spans[1:, 0] >= spans[:-1, 1]).all()


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 200), shares, shares)
def test_split_has_the_shares_asked_for(rows, window, validation, calibration):
    split = split_rows(
        rows, window=window, validation=validation, calibration=calibration
    )
    last = len(_rows(split.calibration))
    assert last == round(rows * calibration)
    assert _rows(split.calibration) == list(range(rows - last, rows))
    wanted = round((rows - last) * validation)
    assert len(_rows(split.validation)) == wanted
    blocks = max(1, min(5, wanted // (3 * window)))
    assert len(split.validation) == (blocks if wanted else 0)
    lengths = np.diff(split.validation)
    assert not len(lengths) or np.ptp(lengths) <= 1


def test_split_of_an_smd_machine():
    split = split_rows(23694, window=100)
    assert split.calibration.tolist() == [[20140, 23694]]
    np.testing.assert_array_equal(
        np.diff(split.validation)[:, 0], [605, 604, 604, 604, 604]
    )
    centres = split.validation.mean(axis=1)
    np.testing.assert_allclose(centres, (np.arange(5) + 0.5) * 20140 / 5, atol=1)
    assert len(split.fit) == 6


def test_short_series_validates_in_one_centred_block():
    split = split_rows(100, window=50)
    assert split.calibration.tolist() == [[85, 100]]
    assert split.validation.tolist() == [[36, 49]]
    assert split.fit.tolist() == [[0, 36], [49, 85]]


def test_shares_of_nothing_leave_empty_spans():
    split = split_rows(10, window=2, validation=0, calibration=0)
    assert split.fit.tolist() == [[0, 10]]
    assert split.validation.shape == split.calibration.shape == (0, 2)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match=r"data\.validation=.* 0 <= share < 1"):
        split_rows(100, window=5, validation=share)
    with pytest.raises(ConfigError, match=r"data\.calibration=.* 0 <= share < 1"):
        split_rows(100, window=5, calibration=share)


def test_segments_cut_at_long_steps_only():
    time = np.array([0, 1, 2, 7, 8, 14, 15], float)
    assert segments(time, 7, max_gap=5).tolist() == [[0, 5], [5, 7]]
    assert segments(time, 7, max_gap=4).tolist() == [[0, 3], [3, 5], [5, 7]]
    assert segments(time, 7, max_gap=6).tolist() == [[0, 7]]


def test_segments_of_datetimes_and_of_no_time():
    minutes = np.array([0, 1, 2, 60, 61], "datetime64[m]").astype("datetime64[ns]")
    assert segments(minutes, 5, max_gap=5).tolist() == [[0, 3], [3, 5]]
    assert segments(None, 5, max_gap=5).tolist() == [[0, 5]]
    assert segments(None, 0, max_gap=5).shape == (0, 2)
    assert segments(minutes[:1], 1, max_gap=5).tolist() == [[0, 1]]


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=40), st.floats(0.5, 10))
def test_segments_against_a_loop(steps, max_gap):
    time = np.cumsum([0.0, *steps])
    limit = max_gap * np.median(np.diff(time))
    naive, start = [], 0
    for row in range(1, len(time)):
        if time[row] - time[row - 1] > limit:
            naive.append([start, row])
            start = row
    naive.append([start, len(time)])
    assert segments(time, len(time), max_gap=max_gap).tolist() == naive


def test_median_step_is_in_seconds_or_in_the_unit_of_the_numbers():
    assert median_step(None) == median_step(np.array([7.0])) == 0.0
    assert median_step(np.array([0, 2, 4, 100.0])) == 2.0
    tenths = np.datetime64("2024-01-01", "ns") + 100_000_000 * np.arange(5)
    assert median_step(tenths) == 0.1
    hours = np.array(["2024-01-01T00", "2024-01-01T01"], "datetime64[h]")
    assert median_step(hours) == 3600.0


def test_segments_by_a_step_from_elsewhere():
    time = np.array([0, 10, 20, 30, 31, 32, 33, 34, 35.0])
    assert len(segments(time, 9, max_gap=5)) == 4  # its own median is 1
    assert segments(time, 9, max_gap=5, step=10.0).tolist() == [[0, 9]]
    assert segments(time, 9, max_gap=1, step=9.0).tolist()[:2] == [[0, 1], [1, 2]]
    for absent in (None, 0.0):
        own = segments(time, 9, max_gap=5, step=absent)
        assert own.tolist() == segments(time, 9, max_gap=5).tolist()
    # One row alone has no step of its own, and needs none.
    assert segments(time[:1], 1, max_gap=5, step=3.0).tolist() == [[0, 1]]


@settings(deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 30))
def test_a_step_in_seconds_puts_no_gap_where_there_is_none(microseconds, max_gap):
    step = np.timedelta64(1000 * microseconds, "ns")
    start = np.datetime64("2024-01-01", "ns")
    time = start + step * np.array([0, 1, 1 + max_gap, 2 + 2 * max_gap])
    seconds = median_step(time[:2])
    found = segments(time, 4, max_gap=max_gap, step=seconds)
    assert found.tolist() == [[0, 3], [3, 4]]


def test_segments_refuse_nonsense():
    with pytest.raises(ConfigError, match=r"data\.max_gap=0 must be above 0"):
        segments(None, 5, max_gap=0)
    with pytest.raises(ConfigError, match=r"data\.max_gap=nan must be above 0"):
        segments(None, 5, max_gap=float("nan"))
    with pytest.raises(DataError, match=r"3 times for 5 rows: give one time per row"):
        segments(np.arange(3.0), 5, max_gap=5)


@settings(deadline=None)
@given(span_arrays(), span_arrays())
def test_intersect_holds_the_common_rows(spans, cuts):
    common = intersect(spans, cuts)
    assert common.shape[1:] == (2,)
    assert _rows(common) == sorted(set(_rows(spans)) & set(_rows(cuts)))


def test_intersect_keeps_pieces_apart_at_a_cut():
    pieces = intersect(np.array([[0, 10]]), np.array([[0, 4], [4, 10]]))
    assert pieces.tolist() == [[0, 4], [4, 10]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=8))
def test_merge_holds_the_same_rows_once(pairs):
    spans = np.array([(a, a + n) for a, n in pairs], np.int64).reshape(-1, 2)
    merged = merge(spans)
    assert _rows(merged) == sorted(set(_rows(spans)))
    assert (merged[1:, 0] > merged[:-1, 1]).all()
    assert merged.shape[1:] == (2,)


@settings(deadline=None)
@given(span_arrays(), st.integers(120, 140))
def test_kept_rows_are_the_others(excluded, rows):
    remaining = kept(rows, excluded)
    assert sorted(_rows(remaining) + _rows(excluded)) == list(range(rows))
    assert kept(rows, None).tolist() == [[0, rows]]


@settings(deadline=None)
@given(span_arrays(), span_arrays())
def test_unfold_counts_the_remaining_rows(spans, remaining):
    numbers = np.array(_rows(remaining), int)
    inside = [row for row in _rows(spans) if row < len(numbers)]
    found = unfold(spans, remaining)
    assert _rows(found) == numbers[inside].tolist()
    assert found.shape[1:] == (2,)


@settings(deadline=None)
@given(span_arrays(), st.integers(1, 20), st.integers(1, 30))
def test_window_starts_against_a_loop(spans, window, stride):
    naive = []
    for start, stop in spans.tolist():
        first = start
        while first + window <= stop:
            naive.append(first)
            first += stride
    found = window_starts(spans, window=window, stride=stride)
    assert found.dtype == np.int64
    assert found.tolist() == naive


@settings(deadline=None)
@given(span_arrays(), st.integers(1, 20), st.integers(1, 30))
def test_cover_starts_leave_no_row_out(spans, window, stride):
    starts = cover_starts(spans, window=window, stride=stride).tolist()
    assert starts == sorted(set(starts))
    covered = {row for start in starts for row in range(start, start + window)}
    long = [span for span in spans.tolist() if span[1] - span[0] >= window]
    assert covered == set(_rows(long))
    regular = window_starts(spans, window=window, stride=min(stride, window)).tolist()
    assert set(regular) <= set(starts)
    assert len(starts) - len(regular) <= len(long)


def test_empty_spans_have_no_window():
    empty = np.empty((0, 2), np.int64)
    assert window_starts(empty, window=3, stride=1).shape == (0,)
    assert cover_starts(empty, window=3, stride=1).shape == (0,)
    assert intersect(empty, np.array([[0, 5]])).shape == (0, 2)


def test_smd_has_the_published_count_of_windows():
    rows = [23694, 23707, 23689, 23697, 23699, 23694, 23700]
    rows += [23689, 23696, 23703, 23687, 23691, 23693]
    counts = [
        len(window_starts(np.array([[0, n]]), window=100, stride=10)) for n in rows
    ]
    assert sum(counts) == 30680


@pytest.mark.parametrize("function", [window_starts, cover_starts])
def test_window_and_stride_are_checked(function):
    spans = np.array([[0, 5]])
    with pytest.raises(ConfigError, match=r"data\.window=0 must be at least 1 row"):
        function(spans, window=0, stride=1)
    with pytest.raises(ConfigError, match=r"data\.stride=0 must be at least 1 row"):
        function(spans, window=2, stride=0)


def test_split_checks_its_window():
    with pytest.raises(ConfigError, match=r"data\.window=-3 must be at least 1 row"):
        split_rows(100, window=-3)


def test_split_gives_the_blocks_of_hand_made_rows():
    rows = np.stack([np.arange(1000), -np.arange(1000)], axis=1)
    blocks = split(rows, window=10)
    # 850 rows before calibration; 128 of them in four blocks of 32, which leave room for
    # three windows, each in the middle of its quarter of 213, 213, 212 and 212 rows.
    validation = [(90, 122), (303, 335), (516, 548), (728, 760)]
    fit = [(0, 90), (122, 303), (335, 516), (548, 728), (760, 850)]
    for found, expected in (
        (blocks.validation, validation),
        (blocks.fit, fit),
        (blocks.calibration, [(850, 1000)]),
    ):
        assert [(int(b[0, 0]), int(b[-1, 0]) + 1) for b in found] == expected
        assert all(np.shares_memory(block, rows) for block in found)


def test_split_takes_shares_and_gives_each_row_once():
    rows = np.arange(100)[:, None]
    blocks = split(rows, window=5, validation=0.2, calibration=0.1)
    assert [[len(block) for block in part] for part in blocks] == [[36, 36], [18], [10]]
    everything = np.concatenate([block for part in blocks for block in part])
    np.testing.assert_array_equal(np.sort(everything, axis=0), rows)
    none = split(rows, window=5, validation=0, calibration=0)
    assert none.validation == none.calibration == [] and len(none.fit[0]) == 100
    with pytest.raises(ConfigError, match=r"data\.validation=1 must be a share"):
        split(rows, window=5, validation=1)
