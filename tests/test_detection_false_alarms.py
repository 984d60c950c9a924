"""Measured false-alarm rates and drift against loops and scipy; notes on rows."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import kstest

from kdjax.data import windowing
from kdjax.data.series import Ranges
from kdjax.detection.false_alarms import (
    Drift,
    MeasuredRate,
    cross_rates,
    disjoint,
    drift,
    interval,
    measured_rate,
    p_values,
    score_drift,
    series_notes,
)
from kdjax.detection.tables import score_table
from kdjax.detection.thresholds import Rule, choose_threshold, conformal_threshold
from kdjax.errors import DataError

DOCS = Path(__file__).parent.parent / "docs"


# Windows that share no row.


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 20))
def test_disjoint_takes_the_next_window_that_fits(starts, window):
    expected, free = [], -1
    for start in sorted(starts):
        if start >= free:
            expected.append(start)
            free = start + window
    index = disjoint(np.array(starts, np.int64), window)
    assert [starts[i] for i in index] == expected


@pytest.mark.parametrize(
    ("alarms", "n"), [(0, 36), (1, 36), (17, 40), (36, 36), (3, 200)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_that_of_the_exact_test(alarms, n, level):
    exact = stats.binomtest(alarms, n).proportion_ci(level, "exact")
    assert interval(alarms, n, level=level) == pytest.approx((exact.low, exact.high))


def test_no_window_tells_nothing():
    assert interval(0, 0) == (0.0, 1.0)


# p-values.


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=20),
    st.lists(st.integers(-1, 10), max_size=20),
)
def test_p_values_count_the_scores_that_reach(calibration, scores):
    got = p_values(np.array(calibration, float), np.array(scores, float))
    expected = [
        (1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores
    ]
    assert got.tolist() == expected


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.25])
def test_alarms_are_the_p_values_up_to_the_rate(rate):
    rng = np.random.default_rng(0)
    calibration, scores = rng.integers(0, 500, 399), rng.integers(0, 520, 1000)
    alarms = scores > conformal_threshold(calibration, rate=rate)
    np.testing.assert_array_equal(alarms, p_values(calibration, scores) <= rate)


def test_p_values_of_what_is_no_number_are_refused():
    fine, spoilt = np.arange(3.0), np.array([1.0, np.nan])
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        p_values(fine, spoilt)
    with pytest.raises(DataError, match="1 of 2 calibration scores are NaN"):
        p_values(spoilt, fine)


# Realised rates.


def test_realised_by_hand():
    """Of windows of 20 every 10, 0, 20, 40, … share no row."""
    scores = np.array([5.0, 1, 1, 6, 7, 8, 1, 1])
    got = measured_rate(scores, np.arange(0, 80, 10), 4.0, window=20, wanted=0.1)
    low, high = interval(2, 4)
    assert got == MeasuredRate(0.1, 4 / 8, 2, 4, low, high, "")


def test_realised_without_a_window():
    got = measured_rate(np.empty(0), np.empty(0, int), 4.0, window=20, wanted=0.1)
    assert math.isnan(got.rate)
    assert got[2:] == (0, 0, 0.0, 1.0, "")


def cross_by_hand(scores, starts, rule, window, folds):
    """Each window judged by a τ from the windows of other blocks that don't touch it."""
    alarms = {}
    for block in np.array_split(np.arange(len(scores)), folds):
        rows = set()
        for i in block:
            rows |= set(range(starts[i], starts[i] + window))
        # Rows between the block's windows, if there are gaps, are the block's too.
        rows = set(range(min(rows), max(rows) + 1))
        others = [
            scores[i]
            for i in range(len(scores))
            if not rows & set(range(starts[i], starts[i] + window))
        ]
        tau = choose_threshold(np.array(others), rule).tau
        alarms |= {i: scores[i] > tau for i in block}
    return alarms


@pytest.mark.parametrize("method", ["conformal", "quantile", "pot"])
@pytest.mark.parametrize("folds", [2, 5])
def test_cross_rates_by_a_plain_loop(method, folds):
    rng = np.random.default_rng(folds)
    starts = np.concatenate([np.arange(0, 400, 4), np.arange(600, 1000, 4)])
    scores = rng.exponential(size=200)
    rule = Rule(method, 0.1)
    expected = cross_by_hand(scores, starts, rule, 12, folds)
    shuffled = rng.permutation(200)
    got = cross_rates(scores[shuffled], starts[shuffled], rule, window=12, folds=folds)
    assert got.rate == pytest.approx(np.mean(list(expected.values())))
    apart = disjoint(starts, 12)
    assert got.disjoint_n == len(apart)
    assert got.disjoint_alarms == sum(expected[i] for i in apart)
    assert (got.low, got.high) == interval(got.disjoint_alarms, len(apart))
    assert got.wanted == 0.1
    fallback = f"pot fell back to the quantile in {folds} of {folds} folds"
    assert got.detail == (fallback if method == "pot" else "")


def test_cross_rates_are_the_rate_without_drift_and_not_with():
    rng = np.random.default_rng(0)
    starts, rule = np.arange(0, 20000, 10), Rule("conformal", 0.05)
    scores = rng.normal(size=2000)
    steady = cross_rates(scores, starts, rule, window=10)
    assert steady.rate == pytest.approx(0.05, abs=0.015)
    assert steady.low < 0.05 < steady.high
    climbing = cross_rates(scores + np.arange(2000) / 200, starts, rule, window=10)
    assert climbing.low > 0.1


def test_folds_without_enough_windows_are_left_out_and_named():
    scores, starts = np.arange(120.0), np.arange(0, 1200, 10)
    # 96 windows lie in the other blocks, fewer in those that don't share a row.
    got = cross_rates(scores, starts, Rule("conformal", 0.01), window=100)
    assert math.isnan(got.rate)
    assert got.detail == (
        "5 of 5 folds left out: conformal needs 99 windows that share no row with the "
        "block"
    )
    fixed = cross_rates(scores, starts, Rule("fixed", value=59.0), window=100)
    assert (fixed.rate, fixed.wanted, fixed.detail) == (0.5, 0.0, "")


@pytest.mark.parametrize(("size", "left_out"), [(25, 5), (26, 3), (27, 0)])
def test_windows_that_only_touch_the_block_count(size, left_out):
    """Of windows of 50 every 10, four on each side of a block share a row with it.

    An outer block leaves 4 · size − 4 windows, an inner one 4 · size − 8.
    """
    starts = np.arange(0, 50 * size, 10)
    scores = np.arange(float(len(starts)))
    got = cross_rates(scores, starts, Rule("quantile", 0.01), window=50)
    said = f"{left_out} of 5 folds left out: quantile needs 100 windows"
    assert got.detail.startswith(said) if left_out else got.detail == ""
    assert got.disjoint_n == {5: 0, 3: 12, 0: 27}[left_out]


def test_scores_that_are_no_number_are_refused():
    spoilt, starts = np.array([1.0, np.nan, 2.0]), np.arange(3)
    with pytest.raises(DataError, match="1 of 3 scores are NaN"):
        measured_rate(spoilt, starts, 1.0, window=1, wanted=0.1)
    with pytest.raises(DataError, match="1 of 3 calibration scores are NaN"):
        cross_rates(spoilt, starts, Rule("fixed", value=1.0), window=1)


def test_fewer_windows_than_folds():
    got = cross_rates(np.arange(2.0), np.arange(2), Rule("fixed", value=0.5), window=1)
    assert got.rate == 0.5


# Drift.


def test_drift_is_the_distance_of_kolmogorov_and_smirnov():
    p = np.random.default_rng(0).beta(1, 2, size=80)
    got = drift(p, calibration=1000)
    assert got.n == 80
    assert got.distance == pytest.approx(stats.kstest(p, "uniform").statistic)


def p_of_samples(seed, *, shift, m, n):
    rng = np.random.default_rng(seed)
    return p_values(rng.normal(size=m), shift + rng.normal(size=n))


@pytest.mark.parametrize(("m", "n"), [(35, 220), (200, 50), (20, 20), (1000, 1000)])
def test_drift_is_rarely_reported_where_there_is_none(m, n):
    p = [p_of_samples(seed, shift=0, m=m, n=n) for seed in range(400)]
    assert sum(drift(own, calibration=m).drifted for own in p) <= 2


@pytest.mark.parametrize("shift", [1.5, -1.5])
def test_drift_is_reported_where_scores_rise_or_fall(shift):
    p = [p_of_samples(seed, shift=shift, m=35, n=220) for seed in range(100)]
    found = [drift(own, calibration=35) for own in p]
    assert sum(one.drifted for one in found) >= 98
    assert {one.higher for one in found} == {shift > 0}


def test_a_small_difference_is_no_drift_however_sure():
    p = p_of_samples(0, shift=0.3, m=5000, n=5000)
    assert stats.kstest(p, "uniform").pvalue < 1e-9
    assert not drift(p, calibration=5000).drifted


def test_a_large_difference_by_chance_is_no_drift():
    assert drift(np.array([0.9, 0.95]), calibration=500) == Drift(2, 0.9, False)
    # As many windows on the other side as make it sure.
    assert not drift(np.full(50, 0.9), calibration=2).drifted
    assert drift(np.full(50, 0.9), calibration=50).drifted


def test_drift_of_nothing_is_unknown():
    got = drift(np.empty(0), calibration=5)
    assert (got.n, got.drifted) == (0, False) and math.isnan(got.distance)


# The documents.


def cell(share):
    return "–" if share is None else f"{100 * share:.1f} %"


def test_the_document_has_the_measured_rates():
    found = json.loads((DOCS / "results" / "thresholds.json").read_text("utf-8"))
    document = " ".join((DOCS / "thresholds.md").read_text("utf-8").split())
    assert len(found["machines"]) == 13
    for machine in found["machines"]:
        rule = machine["rules"]["conformal"]
        clean, adaptive = rule["clean"], machine["adaptive"]
        cells = (
            machine["machine"].removeprefix("machine-"),
            cell(rule["calibration"]["rate"]),
            cell(clean["rate"]),
            f"{cell(clean['low'])} – {cell(clean['high'])}",
            f"{machine['drift']['distance']:.2f}",
            "yes" if machine["drift"]["drifted"] else "no",
            cell(rule["worst_day"]),
            cell(adaptive["rate"]),
            cell(adaptive["worst_day"]),
            f"{rule['anomalies_found']} / {adaptive['anomalies_found']}",
            str(machine["anomalies"]),
        )
        assert f"| {' | '.join(cells)} |" in document
    rates = [m["rules"]["conformal"]["clean"]["rate"] for m in found["machines"]]
    assert f"The mean over machines is {cell(np.mean(rates))}." in document
    total = sum(m["anomalies"] for m in found["machines"])
    kept = sum(m["rules"]["conformal"]["anomalies_found"] for m in found["machines"])
    rolling_tau = sum(m["adaptive"]["anomalies_found"] for m in found["machines"])
    assert f"touches {rolling_tau} of {total} anomalies, the fixed τ {kept}" in document
    largest = max(m["adaptive"]["infinite_tau"] for m in found["machines"])
    assert f"infinite for up to {cell(largest)}" in document


# Notes on rows: ranges, steps, gaps and drift.


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


@pytest.mark.parametrize("chunk", [50, 16_000_000])
def test_values_outside_the_range_are_counted_by_row_and_channel(
    watched, rows, chunk, monkeypatch
):
    monkeypatch.setattr(windowing, "CHUNK_BYTES", chunk)
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


def test_missing_cells_and_rows_without_a_score_are_counted(watched, rows):
    series = rows(1500)
    series.values[:] = 2.0
    series.values[100:1200, 1] = np.nan
    series.values[40] = np.nan
    table = blank(1500, score=np.where(np.arange(1500) == 40, np.nan, 1.0))
    absent, counts = series_notes(watched, 0, series, table)
    assert absent == (
        "a: warning: no values for whole windows: y in 73.3% of the rows; scores there "
        "aren't calibrated"
    )
    assert counts == "a: 1,102 missing cells; 1 row without a value or a score, unknown"
    # Rows before the first window have no score either; no cell of them is missing.
    table.loc[:9, "score"] = np.nan
    assert "; 1 row without a value" in series_notes(watched, 0, series, table)[1]
    # Gaps shorter than a window are filled from its other rows.
    series.values[:, 1] = np.where(np.arange(1500) % watched.window, np.nan, 2.0)
    (note,) = series_notes(watched, 0, series, table)
    assert note.startswith("a: 1,126 missing cells")


def test_the_channels_without_values_are_the_three_worst(small, rows):
    wide = small._replace(channels=tuple("abcdef"), ranges=None)
    series = rows(40, channels=tuple("abcdef"))
    for channel, count in enumerate((10, 20, 0, 30, 8, wide.window - 1)):
        series.values[:count, channel] = np.nan
    assert series_notes(wide, 0, series, blank(40))[0] == (
        "a: warning: no values for whole windows: d in 75.0% of the rows, b in 50.0% of "
        "the rows, a in 25.0% of the rows and 1 other channel; scores there aren't "
        "calibrated"
    )


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
    # As under a budget in stream mode, whatever the stride of evaluation.
    each_row = [tau._replace(spacing=1) for tau in apart.thresholds]
    apart = apart._replace(thresholds=each_row)
    assert not score_drift(apart, 0, window_score).drifted


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
        "a: warning: scores are higher than in calibration (distance 1.00 over 100 "
        "separate windows): behaviour changed, so expect more false alarms; run kdjax "
        "calibrate on recent clean rows"
    )
    assert "outside the training range: x 1" in notes[1]
    assert "2 missing cells" in notes[2]
    table["window_score"] = 0.0  # a note, no warning
    assert series_notes(watched, 0, series, table)[-1] == (
        "a: scores are lower than in calibration (distance 1.00 over 100 separate "
        "windows): the rows are quieter, or the detector was trained on them; expect "
        "fewer alarms, and run kdjax calibrate if this lasts on new rows"
    )
