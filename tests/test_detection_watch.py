"""What is said of scored rows: ranges, steps, gaps and drift, each alone and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from kdjax.data.series import Ranges
from kdjax.detection import false_alarms
from kdjax.detection.false_alarms import score_drift, series_notes
from kdjax.detection.tables import score_table

CALIBRATION = np.sort(np.random.default_rng(3).exponential(4.0, 400))


@pytest.fixture
def watched(small):
    """`small` with ranges (y never moved for `a`), a step, and calibration scores."""
    return small._replace(
        ranges=Ranges(np.float32([[-9, 2], [-9, -9]]), np.float32([[9, 2], [9, 9]])),
        calibration=(CALIBRATION, CALIBRATION),
        step=60.0,
    )


def blank(rows, score=1.0, window_score=np.nan):
    """A table of so many rows with these scores."""
    return pd.DataFrame({"score": score, "window_score": window_score}, range(rows))


def seconds(rows, step):
    start = np.datetime64("2024-01-01", "ns")
    return start + np.arange(rows) * np.timedelta64(step, "s")


def test_rows_like_those_of_training_need_no_words(watched, rows):
    series = rows(50, time=seconds(50, 60))
    series.values[:, 1] = 2.0
    assert series_notes(watched, 0, series, blank(50)) == []
    assert series_notes(watched, 1, series, blank(50)) == []


def test_a_detector_that_knows_nothing_of_its_training_says_nothing(small, rows):
    series = rows(50, time=seconds(50, 1))
    table = blank(50, window_score=1e9)
    assert series_notes(small, 0, series, table) == []
    assert score_drift(small, 0, table["window_score"].to_numpy()) is None
    empty = small._replace(calibration=(np.empty(0), np.empty(0)))
    assert score_drift(empty, 0, table["window_score"].to_numpy()) is None


@pytest.mark.parametrize("chunk", [7, 100_000])
def test_values_outside_the_range_are_counted_by_row_and_channel(
    watched, rows, chunk, monkeypatch
):
    monkeypatch.setattr(false_alarms, "_CHUNK", chunk)
    series = rows(200)
    series.values[:] = 2.0
    series.values[[3, 50, 120], 0] = [9.5, -10, 1e30]
    series.values[[50, 51], 1] = [2.5, 1.5]
    series.values[60] = np.nan
    notes = series_notes(watched, 0, series._replace(values=series.values), blank(200))
    # Rows 3, 50, 51 and 120: four of two hundred, below a warning.
    assert notes[0] == (
        "a: 4 of 200 rows (2.0%) have values outside the training range: x 3, y 2 "
        "(constant in training)"
    )
    assert len(notes) == 2 and "missing" in notes[1]


def test_a_dead_channel_that_comes_alive_is_a_warning(watched, rows):
    series = rows(100)
    series.values[:, 0] = 0.0
    series.values[:, 1] = np.where(np.arange(100) < 94, 2.0, 3.0)
    (note,) = series_notes(watched, 0, series, blank(100))
    assert note == (
        "a: warning: 6 of 100 rows (6.0%) have values outside the training range: y 6 "
        "(constant in training)"
    )
    # Five in a hundred is not yet one, and the pooled ranges know y as moving.
    series.values[94, 1] = 2.0
    (note,) = series_notes(watched, 0, series, blank(100))
    assert "warning" not in note and "5 of 100" in note
    assert series_notes(watched, 1, series, blank(100)) == []


def test_a_channel_that_training_never_saw_is_outside(watched, rows):
    never = watched._replace(
        ranges=Ranges(*(np.where([[0, 1], [0, 0]], np.nan, s) for s in watched.ranges))
    )
    series = rows(20)
    series.values[:] = 2.0
    (note,) = series_notes(never, 0, series, blank(20))
    assert "20 of 20 rows (100.0%)" in note and "y 20" in note and "x" not in note[40:]


def test_the_channels_named_are_the_three_worst(small, rows):
    wide = small._replace(
        channels=tuple("abcde"),
        ranges=Ranges(np.full((2, 5), -1, "f4"), np.full((2, 5), 1, "f4")),
    )
    series = rows(40, channels=tuple("abcde"))
    series.values[:] = 0.0
    for channel, count in enumerate((3, 9, 0, 5, 1)):
        series.values[:count, channel] = 7.0
    (note,) = series_notes(wide, 0, series, blank(40))
    assert note.endswith("training range: b 9, d 5, a 3") and "9 of 40" in note


@pytest.mark.parametrize(
    ("step", "said"), [(60, False), (45, False), (85, False), (90, True), (40, True)]
)
def test_another_sampling_rate_is_a_warning(watched, rows, step, said):
    series = rows(30, time=seconds(30, step))
    series.values[:] = 2.0
    warning = (
        f"a: warning: a row every {step}, but 60 in training: the model has learned "
        "another sampling rate"
    )
    assert series_notes(watched, 0, series, blank(30)) == [warning] * said
    # Rows without a time, or a detector without a step, have none to compare.
    assert series_notes(watched, 0, series._replace(time=None), blank(30)) == []
    stepless = watched._replace(step=0.0)
    assert series_notes(stepless, 0, series, blank(30)) == []


def test_numeric_times_are_in_their_own_unit(watched, rows):
    series = rows(30, time=np.arange(30) * 0.5)
    series.values[:] = 2.0
    halves = watched._replace(step=0.5)
    assert series_notes(halves, 0, series, blank(30)) == []
    (note,) = series_notes(watched, 0, series, blank(30))
    assert "a row every 0.5, but 60" in note


def test_missing_cells_and_rows_without_a_score_are_counted(watched, rows):
    series = rows(1500)
    series.values[:] = 2.0
    series.values[100:1200, 1] = np.nan
    series.values[40] = np.nan
    table = blank(1500, score=np.where(np.arange(1500) == 40, np.nan, 1.0))
    assert series_notes(watched, 0, series, table) == [
        "a: 1,102 cells are missing; 1 rows have no score and count as unknown"
    ]


# Drift.


def by_hand(calibration, scores, strides):
    """Largest distance of p-values from uniform, by scipy, and what chance gives."""
    p = [(1 + np.sum(calibration >= s)) / (len(calibration) + 1) for s in scores]
    m, n = max(1, round(len(calibration) / strides)), len(p)
    chance = np.sqrt(np.log(2 / 1e-3) / (2 * n * m / (n + m)))
    return kstest(p, "uniform").statistic, chance


@pytest.mark.parametrize(("window", "stride"), [(4, 1), (4, 2), (4, 3), (4, 9)])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_drift_is_looked_for_on_windows_that_share_no_row(
    small, window, stride, factor
):
    detector = small._replace(
        window=window, stride=stride, calibration=(CALIBRATION, CALIBRATION)
    )
    rng = np.random.default_rng(5)
    # Each row has the score of the latest window, as in a table.
    ends = np.arange(window - 1, 900, stride)
    scores = factor * rng.exponential(4.0, len(ends))
    latest = np.searchsorted(ends, np.arange(900), side="right") - 1
    window_score = np.where(latest >= 0, scores[latest], np.nan)
    chosen = [0]
    for place in range(len(ends)):
        if ends[place] - ends[chosen[-1]] >= window:
            chosen.append(place)
    found = score_drift(detector, 0, window_score)
    distance, chance = by_hand(CALIBRATION, scores[chosen], -(-window // stride))
    assert found.n == len(chosen)
    assert found.distance == pytest.approx(distance, rel=1e-9)
    assert found.drifted == (distance > max(0.25, chance)) == (factor > 1)


def test_calibration_windows_that_overlap_are_worth_fewer(small):
    """Forty of them tell a distance of .5 from chance; ten, of four rows each, don't."""
    calibration = np.sort(np.random.default_rng(1).exponential(1.0, 40))
    apart = small._replace(window=4, stride=4, calibration=(calibration, calibration))
    scores = np.random.default_rng(2).exponential(4.0, 225)
    # A score every four rows, so that both detectors look at the same ones.
    window_score = np.full(900, np.nan)
    window_score[3::4] = scores
    for stride, strides, drifted in ((4, 1, True), (1, 4, False)):
        distance, chance = by_hand(calibration, scores, strides)
        assert (0.25 < chance < distance) == drifted
        found = score_drift(apart._replace(stride=stride), 0, window_score)
        assert found.n == 225 and found.drifted == drifted


def test_windows_without_a_score_say_nothing_of_drift(small):
    detector = small._replace(calibration=(CALIBRATION, CALIBRATION))
    window_score = np.full(300, np.nan)
    found = score_drift(detector, 0, window_score)
    assert (found.n, found.drifted) == (0, False)
    window_score[200:] = 1e9
    assert score_drift(detector, 0, window_score).n == 17  # every 6 rows: 2 strides


def test_the_places_calibration_is_used(small):
    far = CALIBRATION * 1e6
    detector = small._replace(calibration=(CALIBRATION, far))
    window_score = np.tile(far[::4], 6)
    assert score_drift(detector, 0, window_score).drifted
    assert not score_drift(detector, 1, window_score).drifted


def test_scores_that_drifted_are_a_warning_and_warnings_come_first(watched, rows):
    series = rows(600, time=seconds(600, 60))
    series.values[:, 1] = 2.0
    series.values[0] = np.nan
    series.values[5, 0] = 20.0
    table = score_table(watched, series, entity="a")
    table["window_score"] = 1e9
    notes = series_notes(watched, 0, series, table)
    assert ["warning" in note for note in notes] == [True, False, False]
    assert notes[0] == (
        "a: warning: scores have drifted from those of calibration (distance 1.00 over "
        "100 separate windows), so the false-alarm rate no longer holds: kdjax "
        "calibrate on recent clean rows makes a new threshold"
    )
    assert "outside the training range: x 1" in notes[1]
    assert "2 cells are missing" in notes[2]
