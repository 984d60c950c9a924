"""Contributions in columns of time against the score table, row by row."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kdjax.data.series import Series
from kdjax.data.splits import cover_starts
from kdjax.detection.detector import entity_index
from kdjax.detection.tables import CONTRIBUTION, score_table
from kdjax.experiment import write
from kdjax.experiment.write import contribution_bins, fewer_windows
from kdjax.models.residual import ResidualModel


@pytest.fixture
def stepping(small):
    """A detector whose contributions depend on the window that a row lies in."""
    return small._replace(model=ResidualModel("difference", {}))


def expected(detector, series, bins):
    table = score_table(detector, series, entity="a", contributions=True)
    parts = table[[name for name in table if name.startswith(CONTRIBUTION)]]
    return parts.groupby(bins).max().to_numpy()


@pytest.mark.parametrize("block", [1, 3, 10, 1000])
def test_the_largest_part_of_each_bin(stepping, rows, block):
    series = rows(40)
    starts = cover_starts(np.array([[0, 40]]), window=4, stride=3)
    bins = np.arange(40) * 7 // 40
    found = contribution_bins(stepping, 0, series.values, starts, bins, block=block)
    assert found.shape == (7, 2)
    assert found == pytest.approx(expected(stepping, series, bins), rel=1e-5)


def test_the_normal_of_the_entity_is_used(stepping, rows):
    series, bins = rows(12), np.arange(12)
    starts = np.array([0, 3, 6, 8])
    own = contribution_bins(
        stepping, entity_index(stepping, "a"), series.values, starts, bins
    )
    pooled = contribution_bins(stepping, 1, series.values, starts, bins)
    assert own == pytest.approx(expected(stepping, series, bins), rel=1e-5)
    assert not np.allclose(own, pooled)


@pytest.mark.parametrize("block", [2, 1000])
def test_rows_without_a_score_are_unknown(stepping, rows, block):
    """No window holds rows 8 to 11, 16 and 17; row 2 has no value; a missing cell has no part."""
    values = rows(18).values
    values[2] = np.nan
    values[5, 1] = np.nan
    starts, bins = np.array([0, 3, 4, 12]), np.arange(18)
    found = contribution_bins(stepping, 0, values, starts, bins, block=block)
    unknown = np.isnan(found).all(axis=1)
    assert np.flatnonzero(unknown).tolist() == [2, 8, 9, 10, 11, 16, 17]
    assert not np.isnan(found[~unknown]).any()
    # A known row beside unknown ones speaks for their bin.
    together = contribution_bins(stepping, 0, values, starts, bins // 9, block=block)
    assert together == pytest.approx(
        pd.DataFrame(found).groupby(bins // 9).max().to_numpy()
    )


def test_nothing_to_score(stepping, rows):
    none = np.empty(0, np.int64)
    values = rows(6).values
    found = contribution_bins(stepping, 0, values, none, np.arange(6) // 2)
    assert found.shape == (3, 2) and np.isnan(found).all()
    assert contribution_bins(stepping, 0, values[:0], none, none).shape == (0, 2)


@pytest.mark.parametrize(("window", "stride"), [(40, 10), (100, 10), (10, 10), (9, 2)])
def test_fewer_windows_hold_each_row_and_all_of_them_those_of_alarms(window, stride):
    """Two spans of windows with a gap between; an alarm in rows 1100 to 1119."""
    first, second = np.arange(0, 611, stride), np.arange(750, 1600, stride)
    starts, spans = np.concatenate([first, second]), np.array([[1100, 1120]])
    kept = fewer_windows(starts, spans, window=window, stride=stride)

    def cover(windows):
        rows = np.arange(1700)[:, None]
        return ((windows <= rows) & (rows < windows + window)).sum(axis=1)

    before, after = cover(starts), cover(kept)
    assert ((after > 0) == (before > 0)).all()
    near = slice(1100 - window, 1120)  # what led to the alarm
    assert (after[near] == before[near]).all()
    inside = np.r_[window:610, 750 + window : 1590]
    assert (after[inside] >= np.minimum(2, before[inside])).all()
    if window == 100:
        assert len(kept) < len(starts) / 2 and after[1230:1590].max() <= 3


def test_measures_of_a_run_are_of_first_and_last_rows():
    """Rows an hour apart: the first event lasts for 24 hours, the second for 25."""
    clock = np.datetime64("2024-05-01", "ns") + np.arange(100) * np.timedelta64(1, "h")
    test = Series("a", np.zeros((100, 1), np.float32), ("x",), clock)
    found = pd.DataFrame({"first": [0, 60], "stop": [25, 86], "start": "", "end": ""})
    plant = SimpleNamespace(entities=[SimpleNamespace(test=test)])
    measures = write._measures([found.astype(object)], plant, 0.0)
    assert (measures.standing, measures.per_day) == (1, 2 / (99 / 24))
    rows = SimpleNamespace(entities=[SimpleNamespace(test=test._replace(time=None))])
    assert write._measures([found], rows, 0.0).standing is None
    assert write._measures([found], rows, 3600.0).standing == 1
    none = SimpleNamespace(entities=[SimpleNamespace(test=None)])
    assert write._measures([found], none, 0.0) is None
