"""Masked cells are missing wherever rows come in; their hidden values never count."""

import numpy as np
import pytest

import kdjax
from kdjax.data.scaler import Scaler
from kdjax.data.series import Series
from kdjax.detection.stream_rules import plan_of
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.detection.tables import score_table

ROWS = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
ROWS[5:8, 0] = ROWS[20] = np.nan
HIDDEN = np.ma.masked_equal(np.where(np.isnan(ROWS), np.float32(-999), ROWS), -999)


def test_windows_and_scalers_see_masked_cells_as_missing():
    windows = kdjax.windows(HIDDEN, length=4, stride=3)
    np.testing.assert_array_equal(windows, kdjax.windows(ROWS, length=4, stride=3))
    assert windows.dtype == np.float32
    for method in ("minmax", "zscore", "robust"):
        own, expected = (
            kdjax.fit_scaler(rows, method=method) for rows in (HIDDEN, ROWS)
        )
        np.testing.assert_array_equal(own, expected)
    scaler = Scaler(np.float32([1, 2]), np.float32([3, 4]))
    np.testing.assert_array_equal(
        kdjax.apply_scaler(scaler, HIDDEN), kdjax.apply_scaler(scaler, ROWS)
    )
    counts = np.ma.masked_equal([[3, -999], [4, 5]], -999)
    assert kdjax.fit_scaler(counts, method="minmax").offset.tolist() == [3, 5]
    np.testing.assert_array_equal(kdjax.windows(counts, length=1)[0], [[3, np.nan]])


def test_batches_mark_masked_cells():
    import jax

    shape = (10, 4, 2)
    masked, plain = HIDDEN.reshape(shape), ROWS.reshape(shape)
    (own,), (expected,) = (
        [*kdjax.batches(x, 10, key=jax.random.key(0))] for x in (masked, plain)
    )
    np.testing.assert_array_equal(own.windows, expected.windows)
    np.testing.assert_array_equal(own.observed, expected.observed)
    with pytest.raises(kdjax.DataError):
        kdjax.fit_gaussian(HIDDEN)


def test_streams_and_tables_see_masked_cells_as_missing(small):
    table = score_table(small, Series("a", HIDDEN, ("x", "y")), entity="a")
    expected = score_table(small, Series("a", ROWS, ("x", "y")), entity="a")
    np.testing.assert_array_equal(table["score"], expected["score"])

    seen = []

    def score(window):
        seen.append(window[0, -1].copy())
        return WindowResult(np.zeros(4), 0.0)

    stream = StreamDetector(plan_of(small, 0), score)
    for row in HIDDEN:
        stream.update(row)
    counts = np.ma.masked_equal([-999, 5], -999)
    stream.update(counts)
    np.testing.assert_array_equal(seen, [*ROWS[3:], [np.nan, 5]])
