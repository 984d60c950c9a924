"""Events from window scores against those of the score table."""

import numpy as np
import pytest

from kdjax.detection.alarming import AlarmRule, events, latest_scores, row_alarms
from kdjax.detection.detector import score_windows
from kdjax.detection.scores import window_scores
from kdjax.detection.tables import find_windows, score_events, score_table


@pytest.mark.parametrize("rule", [(1, 0), (4, 0), (1, 7), (3, 5)])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_events_are_those_of_the_score_table(small, rows, rule, gaps):
    duration, rest = rule
    detector = small._replace(min_duration=duration, cooldown=rest, stride=2)
    time = np.arange(400.0)
    if gaps:
        time[57:] += 100
        time[301:] += 100
    series = rows(400, time=time, seed=4)
    starts = find_windows(detector, series, causal=False).starts
    scores = window_scores(score_windows(detector, 0, series.values, starts), count=0)
    detector = detector._replace(
        thresholds=(
            detector.thresholds[0]._replace(tau=float(np.quantile(scores, 0.8))),
            detector.thresholds[1],
        )
    )
    table = score_table(detector, series, entity="a")
    listed = score_events(detector, series, table, entity="a")
    row = {instant: place for place, instant in enumerate(time.tolist())}
    expected = [
        (row[a], row[b] + 1)
        for a, b in zip(listed["start"], listed["end"], strict=True)
    ]
    spans = np.array([[0, 57], [57, 301], [301, 400]] if gaps else [[0, 400]])
    latest = latest_scores(scores, starts, spans, window=detector.window, rows=400)
    np.testing.assert_array_equal(latest, table["window_score"])
    alarm = row_alarms(latest, detector.thresholds[0].tau, AlarmRule(duration, rest))
    found = events(alarm, gap=detector.window)
    assert len(expected) > 3
    assert list(map(tuple, found.tolist())) == expected


def test_windows_without_a_score_raise_no_alarm():
    scores = np.array([np.nan, 9.0, np.inf, np.nan])
    starts = np.array([0, 2, 10, 12])
    options = {"window": 2, "rows": 20}
    found = latest_scores(scores, starts, np.array([[0, 20]]), **options)
    assert np.isnan(found[:3]).all() and (found[3:11] == 9).all()
    assert np.isposinf(found[11:13]).all() and np.isnan(found[13:]).all()
    nothing = latest_scores(scores[:0], starts[:0], np.empty((0, 2), int), **options)
    assert np.isnan(nothing).all() and len(nothing) == 20
