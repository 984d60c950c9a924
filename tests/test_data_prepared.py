"""Prepared data sets: who borrows, what is refused, and that no window crosses a line."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data.prepared import (
    channel_notes,
    fit_rows,
    prepare,
    training_ranges,
    training_windows,
)
from kdjax.data.series import Dataset, Series
from kdjax.errors import DataError

PARTS = ("fit", "validation", "calibration")


def series(entity, rows, *, width=2, time=None, seed=0, first=0.0):
    """Noise whose first channel is the row's number, from `first` on."""
    values = np.random.default_rng(seed).normal(size=(rows, width))
    values[:, 0] = first + np.arange(rows)
    names = tuple(f"c{i}" for i in range(width))
    return Series(entity, values.astype(np.float32), names, time)


def ready(*train, test=(), **options):
    options = {
        "window": 5, "stride": 3, "max_gap": 5.0, "validation": 0.2,
        "calibration": 0.2, "scaler": "none",
    } | options  # fmt: skip
    return prepare(Dataset("plant", tuple(train), tuple(test)), **options)


def test_what_it_hands_on():
    train = (series("a", 200), series("b", 100, seed=1))
    test = (series("a", 30), series("b", 40))
    prepared = ready(*train, test=test)
    assert (prepared.name, prepared.channels) == ("plant", ("c0", "c1"))
    assert (prepared.window, prepared.stride) == (5, 3)
    assert [entity.name for entity in prepared.entities] == ["a", "b"]
    for entity, own, other in zip(prepared.entities, train, test, strict=True):
        assert entity.train is own and entity.test is other
        assert entity.test_spans.tolist() == [[0, len(other.values)]]
        assert not entity.pooled


def test_without_test_series_there_are_no_test_spans():
    entity = ready(series("a", 200)).entities[0]
    assert entity.test is None and entity.test_spans.shape == (0, 2)


def test_scalers_know_the_fit_rows_only():
    a, b = series("a", 200), series("b", 200, seed=1, first=1000)
    prepared = ready(a, b, scaler="minmax")
    low, high = [], []
    for entity in prepared.entities:
        fit = np.concatenate([entity.train.values[i:j] for i, j in entity.split.fit])
        low.append(fit.min(axis=0))
        high.append(fit.max(axis=0))
        np.testing.assert_array_equal(entity.scaler.offset, low[-1])
        np.testing.assert_allclose(entity.scaler.scale, high[-1] - low[-1], rtol=1e-6)
    np.testing.assert_array_equal(prepared.pooled_scaler.offset, np.min(low, axis=0))
    np.testing.assert_allclose(
        prepared.pooled_scaler.scale, np.max(high, axis=0) - np.min(low, axis=0)
    )
    # The last fifth calibrates: its larger row numbers lie outside.
    assert high[0][0] < 160


def borrowers(rows, **options):
    """Whether the second of two entities, with so many rows, borrows."""
    prepared = ready(series("a", 400), series("b", rows), scaler="minmax", **options)
    entity = prepared.entities[1]
    assert (entity.scaler is prepared.pooled_scaler) == entity.pooled
    spans = entity.split.validation
    return int((spans[:, 1] - spans[:, 0]).sum()), entity.pooled


def test_the_limit_is_five_validation_rows_a_channel():
    found = [borrowers(rows) for rows in range(40, 90)]
    assert {10, 9} <= {count for count, _ in found}
    assert all(pooled == (count < 10) for count, pooled in found)


def test_an_entity_without_a_validation_window_borrows():
    found = [borrowers(rows, window=15) for rows in range(40, 120)]
    assert {14, 15} <= {count for count, _ in found}
    assert all(pooled == (count < 15) for count, pooled in found)


def test_an_entity_without_fit_rows_borrows_its_scaler():
    # All ten rows before calibration validate, which would do for a Normal of its own.
    prepared = ready(
        series("a", 40_000, width=1),
        series("b", 20, width=1),
        validation=0.99,
        calibration=0.5,
        scaler="minmax",
    )
    assert len(prepared.entities[1].split.fit) == 0
    assert prepared.entities[1].pooled
    assert prepared.entities[1].scaler is prepared.pooled_scaler


@st.composite
def gapped(draw):
    """A series with gaps, and the segments between them."""
    lengths = draw(st.lists(st.integers(1, 80), min_size=1, max_size=8))
    lengths.append(150)
    steps = np.ones(sum(lengths))
    edges = np.cumsum([0, *lengths])
    steps[edges[1:-1]] = draw(st.floats(5.5, 1000))
    return np.cumsum(steps), edges


@settings(deadline=None, max_examples=60)
@given(
    gapped(), gapped(), st.integers(2, 12), st.integers(1, 15),
    st.floats(0.1, 0.5), st.floats(0.05, 0.5),
)  # fmt: skip
def test_no_window_crosses_a_gap_a_split_or_an_entity(
    first, second, window, stride, validation, calibration
):
    train = tuple(
        series(name, len(time), time=time, first=offset)
        for name, (time, _), offset in zip(
            "ab", (first, second), (0, 10_000), strict=True
        )
    )
    test = tuple(one._replace(values=one.values + 50_000) for one in train)
    try:
        prepared = ready(
            *train, test=test, window=window, stride=stride,
            validation=validation, calibration=calibration,
        )  # fmt: skip
    except DataError as error:  # cut to pieces too short, which it says
        assert "no entity has a" in str(error)
        return
    owner = {}
    for (_, edges), offset in zip((first, second), (0, 10_000), strict=True):
        for segment, (low, high) in enumerate(itertools.pairwise(edges)):
            for row in range(low, high):
                owner[offset + row] = (offset, segment)
    parts = {}
    for part in PARTS:
        rows, starts = training_windows(prepared, part, stride=stride)
        assert rows.dtype == np.float32 and starts.dtype == np.int32
        numbers = rows[starts[:, None] + np.arange(window)][:, :, 0].astype(int)
        for window_rows in numbers:
            assert len({owner[row] for row in window_rows}) == 1
            assert (np.diff(window_rows) == 1).all()
        parts[part] = set(numbers.ravel())
    assert not parts["fit"] & parts["validation"]
    assert not parts["calibration"] & (parts["fit"] | parts["validation"])
    for entity, (_, edges) in zip(prepared.entities, (first, second), strict=True):
        wanted = list(itertools.pairwise(edges))
        assert [tuple(span) for span in entity.test_spans.tolist()] == wanted


def test_number_and_place_of_windows():
    prepared = ready(series("a", 100), series("b", 60), stride=3)
    # a: calibration rows 80–99 have windows at 80, 83, …, 95; b: 48–59 at 48, 51, 54.
    starts = training_windows(prepared, "calibration", stride=3)[1]
    assert starts.tolist() == [80, 83, 86, 89, 92, 95, 148, 151, 154]
    validation = prepared.entities[0].split.validation
    assert validation.tolist() == [[32, 48]]
    starts = training_windows(prepared, "validation", stride=10)[1]
    assert starts[:2].tolist() == [32, 42]


def test_rows_are_scaled_each_entity_by_its_own():
    prepared = ready(series("a", 200), series("b", 200, first=500), scaler="minmax")
    rows, _ = training_windows(prepared, "fit", stride=3)
    for entity, part in zip(prepared.entities, np.split(rows, 2), strict=True):
        wanted = (entity.train.values - entity.scaler.offset) / entity.scaler.scale
        np.testing.assert_array_equal(part, wanted)
    (fit,) = fit_rows(prepared)
    assert fit.min() == 0 and fit.max() == 1
    sizes = [(e.split.fit[:, 1] - e.split.fit[:, 0]).sum() for e in prepared.entities]
    assert len(fit) == sum(sizes) == 2 * 128


def test_a_test_series_shorter_than_the_window_is_refused():
    message = "test series 'a' has 4 rows, but not data.window=5 rows without"
    with pytest.raises(DataError, match=message):
        ready(series("a", 200), test=[series("a", 4)])
    ready(series("a", 200), test=[series("a", 5)])


def test_a_test_series_cut_into_short_stretches_is_refused():
    time = np.arange(8.0) + 100 * (np.arange(8) >= 4)
    with pytest.raises(
        DataError,
        match="test series 'a' has 8 rows, but not data.window=5 rows without",
    ):
        ready(series("a", 200), test=[series("a", 8, time=time)])


def test_train_rows_without_a_fit_window_are_refused():
    message = (
        "no entity has a fit window: the longest train series has 6 rows, data.window=5"
    )
    with pytest.raises(DataError, match=message):
        ready(series("a", 6))


def test_train_rows_without_a_validation_window_are_refused():
    message = r"no entity has a validation window.*fewer gaps or excluded rows\.$"
    with pytest.raises(DataError, match=message):
        ready(series("a", 100), validation=0.02)


# Rows that the user excludes.


def rows_of(spans):
    return [row for start, stop in spans for row in range(start, stop)]


def without(one, *spans):
    return one._replace(excluded=np.array(spans, np.int64))


@settings(deadline=None, max_examples=60)
@given(
    gapped(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=5),
    st.integers(2, 12),
    st.floats(0.1, 0.4),
    st.floats(0.05, 0.4),
)
def test_excluded_rows_are_in_no_window_and_no_share(
    gaps, pairs, window, validation, calibration
):
    time, edges = gaps
    total = len(time)
    excluded = np.array([(a, a + n) for a, n in pairs if a + n <= total], np.int64)
    one = series("a", total, time=time)._replace(excluded=excluded.reshape(-1, 2))
    try:
        prepared = ready(
            one, test=[one], window=window, stride=1,
            validation=validation, calibration=calibration,
        )  # fmt: skip
    except DataError as error:
        assert "no entity has a" in str(error) or "rows without a gap" in str(error)
        return
    (entity,) = prepared.entities
    gone = set(rows_of(excluded.tolist()))
    left = [row for row in range(total) if row not in gone]
    held = [row for spans in entity.split for row in rows_of(spans)]
    assert sorted(held) == left  # each once
    last = round(len(left) * calibration)
    assert rows_of(entity.split.calibration) == left[len(left) - last :]
    wanted = round((len(left) - last) * validation)
    assert len(rows_of(entity.split.validation)) == wanted
    assert rows_of(entity.test_spans) == left
    piece = np.searchsorted(edges, np.arange(total), side="right")
    for spans in (*entity.split, entity.test_spans):
        for start, stop in spans:
            assert not gone & set(range(start, stop))
            assert len(set(piece[start:stop])) == 1


def test_excluding_the_end_moves_calibration_forward():
    whole = ready(series("a", 200)).entities[0].split
    ended = ready(without(series("a", 300), [200, 300])).entities[0].split
    for spans, wanted in zip(ended, whole, strict=True):
        assert spans.tolist() == wanted.tolist()


def test_spans_to_exclude_may_overlap_and_come_in_any_order():
    ordered = without(series("a", 300), [20, 50], [100, 110])
    tangled = without(series("a", 300), [100, 110], [30, 50], [20, 40])
    for one, other in zip(
        ready(ordered).entities[0].split, ready(tangled).entities[0].split, strict=True
    ):
        assert one.tolist() == other.tolist()


def test_a_test_series_all_excluded_is_refused():
    with pytest.raises(
        DataError, match="30 rows, but not data.window=5 rows .*exclude fewer"
    ):
        ready(series("a", 200), test=[without(series("a", 30), [3, 30])])


# Values that are missing.


def holes(one, where, channel=1):
    """The series without the values of a channel in the rows `where`."""
    values = one.values.copy()
    values[where, channel] = np.nan
    return one._replace(values=values)


def test_scalers_and_fit_rows_ignore_missing_values():
    one = series("a", 200, seed=3)
    # The split's only validation block is [64, 96), calibration [160, 200).
    prepared = ready(holes(one, slice(0, 40)), scaler="minmax")
    fit = rows_of(prepared.entities[0].split.fit)
    seen = one.values[[row for row in fit if row >= 40]]
    low, high = seen[:, 1].min(), seen[:, 1].max()
    scaler = prepared.entities[0].scaler
    np.testing.assert_array_equal(scaler.offset, [0, low])
    np.testing.assert_allclose(scaler.scale[1], high - low, rtol=1e-6)
    (fit_values,) = fit_rows(prepared)
    assert len(fit_values) == len(seen)
    assert np.isfinite(fit_values).all()
    rows, _ = training_windows(prepared, "fit", stride=3)
    assert np.isnan(rows[:40, 1]).all() and not np.isnan(rows[40:]).any()


def test_complete_validation_rows_decide_who_borrows():
    one = series("b", 200)
    validation = rows_of(ready(one).entities[0].split.validation)
    limit = 5 * 2
    for complete in (limit - 1, limit):
        gappy = holes(one, validation[complete:])
        entity = ready(series("a", 400), gappy).entities[1]
        assert entity.pooled == (complete < limit)


def test_an_entity_that_lacks_a_channel_in_its_fit_rows_borrows():
    one = series("b", 200, seed=1)
    gone = holes(one, rows_of(ready(one).entities[0].split.fit))
    prepared = ready(series("a", 400), gone, scaler="minmax")
    assert prepared.entities[1].pooled
    assert prepared.entities[1].scaler is prepared.pooled_scaler
    assert np.isfinite(prepared.pooled_scaler.scale).all()


@pytest.mark.parametrize("scaler", ["minmax", "none"])
def test_a_channel_that_no_fit_row_has_is_refused(scaler):
    gone = [holes(series(name, 200), slice(0, 160)) for name in "ab"]
    with pytest.raises(DataError, match=r"no value of c1 in the fit rows \(a, b\)"):
        ready(*gone, scaler=scaler)


# What is told about channels.


def test_ranges_are_of_all_train_rows_but_the_excluded():
    a = without(holes(series("a", 200), slice(0, 50)), [190, 200])
    b = series("b", 100, seed=2, first=-30)
    low, high = training_ranges(ready(a, b))
    wanted = [a.values[:190], b.values, np.concatenate([a.values[:190], b.values])]
    np.testing.assert_array_equal(low, [np.nanmin(rows, axis=0) for rows in wanted])
    np.testing.assert_array_equal(high, [np.nanmax(rows, axis=0) for rows in wanted])
    assert low.dtype == high.dtype == np.float32 and low.shape == (3, 2)


def test_channel_notes_name_entity_and_channels():
    a, b = series("a", 200, width=5), series("b", 200, width=5)
    a.values[:190, 1] = 4
    a.values[:, 3] = 4
    for one in (a, b):
        one.values[:, 0] %= 50  # else it only rises
    a.values[:, 4] = 8 - 2 * a.values[:, 2]
    assert channel_notes(ready(without(a, [190, 200]), b)) == [
        "a: constant in the training rows: c1, c3",
        "a: copies of another channel: c4 (of c2)",
    ]
    assert channel_notes(ready(a, b))[0] == "a: constant in the training rows: c3"
    assert channel_notes(ready(b)) == []
