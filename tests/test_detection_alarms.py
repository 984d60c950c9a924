"""Alarms against the rule in words, events and their table against hand calculation."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kdjax
from kdjax.detection.alarming import (
    AlarmRule,
    AlarmState,
    clear_level,
    event_table,
    events,
    next_alarm,
    row_alarms,
)
from kdjax.errors import ConfigError, DataError

# T above τ, h between half of it and τ, f below both, ? unknown.
TAU = 1.0
SCORES = {"T": 2.0, "h": 0.75, "f": 0.5, "?": np.nan}
SIGNS = {sign: score > TAU for sign, score in SCORES.items()}


def streamed(signs, rule):
    state, raised = AlarmState(), []
    for sign in signs:
        state, alarm = next_alarm(state, SCORES[sign], TAU, rule)
        raised.append(alarm)
    return raised


def whole(signs, rule):
    scores = np.array([SCORES[sign] for sign in signs])
    return row_alarms(scores, TAU, rule).tolist()


@pytest.mark.parametrize(
    ("signs", "rule", "expected"),
    [
        ("TTfT", AlarmRule(), "TTfT"),
        ("TfTTfTTT", AlarmRule(min_duration=2), "fffTffTT"),
        # An unknown row breaks a run and ends an alarm.
        ("TT?TT", AlarmRule(min_duration=2), "fTffT"),
        ("TT?T", AlarmRule(), "TTfT"),
        # Row 1 ends the alarm; rows 2 and 3 rest; row 4 may start one.
        ("TfTTTT", AlarmRule(cooldown=2), "TfffTT"),
        ("T?TTTT", AlarmRule(cooldown=2), "TfffTT"),
        # What begins in the cool-down and goes on counts towards the duration.
        ("TTfTTTT", AlarmRule(min_duration=2, cooldown=2), "fTfffTT"),
        ("TTfffTT", AlarmRule(min_duration=2, cooldown=2), "fTffffT"),
        # A run that ends inside the cool-down starts none.
        ("TfTfTfT", AlarmRule(cooldown=2), "TfffTff"),
        ("", AlarmRule(3, 3), ""),
        # Between the two levels an alarm goes on, but none starts.
        ("hThhfhT", AlarmRule(clear=0.5), "fTTTffT"),
        ("Th?hT", AlarmRule(clear=0.5), "TTffT"),
        ("ThTfT", AlarmRule(), "TfTfT"),
        # Rows between the levels don't count towards the duration.
        ("ThTTh", AlarmRule(min_duration=2, clear=0.5), "fffTT"),
        # The cool-down begins where the alarm ends, at row 2.
        ("ThfTTT", AlarmRule(cooldown=2, clear=0.5), "TTfffT"),
        ("TfhhTh", AlarmRule(cooldown=2, clear=0.5), "TfffTT"),
    ],
)
def test_alarms_by_hand(signs, rule, expected):
    assert whole(signs, rule) == [SIGNS[sign] for sign in expected]
    assert streamed(signs, rule) == [SIGNS[sign] for sign in expected]


@settings(deadline=None, max_examples=300)
@given(
    st.text("TTThhf?", max_size=60),
    st.integers(1, 5),
    st.integers(0, 8),
    st.sampled_from([0.5, 1.0]),
)
def test_a_series_at_once_is_the_stream(signs, min_duration, cooldown, clear):
    rule = AlarmRule(min_duration, cooldown, clear)
    assert whole(signs, rule) == streamed(signs, rule)


@settings(deadline=None)
@given(st.text("TTTf?", max_size=60), st.integers(1, 5), st.integers(0, 8))
def test_what_the_rule_says_in_words(signs, min_duration, cooldown):
    raised = streamed(signs, AlarmRule(min_duration, cooldown))
    spans = events(np.array(raised, bool), gap=1).tolist()
    for start, stop in spans:
        assert signs[start - min_duration + 1 : stop] == "T" * (
            stop - start + min_duration - 1
        )
        assert stop == len(signs) or signs[stop] != "T"
    for (_, stop), (start, _) in itertools.pairwise(spans):
        assert start - stop > cooldown


def test_the_default_rule_is_the_rows_above():
    rng = np.random.default_rng(0)
    scores = rng.random(1000)
    np.testing.assert_array_equal(row_alarms(scores, 0.5, AlarmRule()), scores > 0.5)


@pytest.mark.parametrize("tau", [0.0, -1.0, np.inf])
def test_a_tau_without_a_share_clears_at_itself(tau):
    assert clear_level(tau, AlarmRule(clear=0.5)) == tau
    scores = np.array([-2.0, -0.7, 0.2, -0.7])
    found = row_alarms(scores, tau, AlarmRule(clear=0.5))
    np.testing.assert_array_equal(found, scores > tau)


def test_the_state_survives_json():
    state = AlarmState()
    for score in (9.0, 9.0, 9.0, 0.0, 0.0, 9.0):
        state, _ = next_alarm(state, score, 5.0, AlarmRule(2, 5))
        assert AlarmState(**json.loads(json.dumps(state._asdict()))) == state
    assert state == AlarmState(run=1, active=0, rest=3)


@pytest.mark.parametrize("rule", [AlarmRule(min_duration=0), AlarmRule(cooldown=-1)])
def test_rules_that_mean_nothing_are_refused(rule):
    with pytest.raises(ConfigError, match="expected at least 1 and at least 0 rows"):
        row_alarms(np.ones(3), 0.5, rule)
    with pytest.raises(ConfigError, match="expected at least 1 and at least 0 rows"):
        next_alarm(AlarmState(), 1.0, 0.5, rule)


@pytest.mark.parametrize("clear", [0.0, -0.5, 1.01, np.nan])
def test_a_clear_level_that_means_nothing_is_refused(clear):
    with pytest.raises(ConfigError, match="share of τ above 0, at most 1"):
        row_alarms(np.ones(3), 0.5, AlarmRule(clear=clear))


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 10))
@example([True, False, False, True], 3)  # as far apart as the gap: two events
@example([True, False, False, True], 4)
def test_events_join_alarms_nearer_than_the_gap(alarm, gap):
    rows = [row for row, raised in enumerate(alarm) if raised]
    expected = []
    for row in rows:
        if expected and row - expected[-1][1] < max(gap, 2):
            expected[-1][1] = row
        else:
            expected.append([row, row])
    got = events(np.array(alarm, bool), gap=gap)
    assert got.tolist() == [[first, last + 1] for first, last in expected]
    assert got.shape == (len(expected), 2)


# Rows 4 and 5 are one event, and row 9 is another: their windows of 3 don't overlap.
ALARM = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 1], bool)
WINDOW_SCORE = np.array([np.nan, np.nan, 1, 2, 6, 8, 1, 1, 1, 12.0])
SCORE = np.array([9.0, 8, 7, 2, 6, 5, 0, np.nan, 3, 1])
CONTRIBUTIONS = np.arange(40.0).reshape(10, 4) * [1, -1, 1, 1]


def table(**changes):
    given = {
        "entity": "pump",
        "time": np.arange(10) * 10,
        "window_score": WINDOW_SCORE,
        "score": SCORE,
        "tau": 4.0,
        "window": 3,
        "explain": lambda rows: CONTRIBUTIONS[rows],
        "channels": ("a", "b", "c", "d"),
    }
    return event_table(**{"alarm": ALARM} | given | changes)


def test_event_table_by_hand():
    # Channels are those of rows 2 and 8, the largest scores that windows of the events
    # saw; none saw row 1. Of the rows in the events 4 and 9 have the largest.
    expected = pd.DataFrame(
        {
            "entity": ["pump", "pump"],
            "start": [40, 90],
            "end": [50, 90],
            "severity": [2.0, 3.0],
            "peak": [40, 90],
            "channels": ["d;c;a", "d;c;a"],
        }
    )
    pd.testing.assert_frame_equal(table(), expected)


def test_events_closer_than_a_window_are_one_line():
    one = table(window=5)
    assert one[["start", "end", "severity", "peak"]].to_numpy().tolist() == [
        [40, 90, 3.0, 40]
    ]


def test_times_stay_times():
    time = np.datetime64("2024-01-01", "s") + np.arange(10) * np.timedelta64(60, "s")
    events = table(time=time)
    assert events["start"].tolist() == [
        pd.Timestamp("2024-01-01 00:04"),
        pd.Timestamp("2024-01-01 00:09"),
    ]


def test_what_windows_saw_is_explained_at_once_and_by_rank():
    asked = []

    def explain(rows):
        asked.append(rows.tolist())
        return np.array([[0.5, 3.0, 3.0, 1.0], [4.0, 0.0, -1.0, 2.0]])

    # Of equals the first channel comes first.
    assert table(explain=explain)["channels"].tolist() == ["b;c;d", "a;d;b"]
    assert asked == [[2, 8]]
    assert table(explain=None)["channels"].tolist() == ["", ""]
    two = table(explain=lambda rows: CONTRIBUTIONS[rows, :2], channels=("a", "b"))
    assert two["channels"].tolist() == ["a;b", "a;b"]


def test_severity_without_a_ratio_is_infinite():
    assert table(tau=0.0)["severity"].tolist() == [np.inf, np.inf]
    assert table(tau=-2.0)["severity"].tolist() == [np.inf, np.inf]
    infinite = np.where(WINDOW_SCORE == 8, np.inf, WINDOW_SCORE)
    assert table(window_score=infinite)["severity"].tolist() == [np.inf, 3.0]


def test_no_alarm_gives_an_empty_table_with_its_columns():
    empty = table(alarm=np.zeros(10, bool))
    assert len(empty) == 0
    assert list(empty) == ["entity", "start", "end", "severity", "peak", "channels"]
    assert empty.dtypes.tolist() == table().dtypes.tolist()


# Alarm-management measures, against hand calculation.

DAY0 = pd.Timestamp("2024-05-01")


def table_of(starts, lengths=0, **columns):
    """Events that begin so many seconds after the day's start."""
    starts = np.asarray(starts, float)
    moments = [
        DAY0 + pd.to_timedelta(at, unit="s") for at in (starts, starts + lengths)
    ]
    frame = {"start": moments[0], "end": moments[1], **columns}
    return pd.DataFrame(frame, index=range(len(starts)))


def measured(starts, lengths=0, hours=1.0, **columns):
    span = (DAY0, DAY0 + pd.Timedelta(hours=hours))
    return kdjax.alarm_measures(table_of(starts, lengths, **columns), span=span)


def test_a_flood_begins_above_ten_events_in_ten_minutes_and_ends_below_five():
    """Every 30 s: the 11th begins at 300 s; at 810 s all but four are ten minutes old."""
    found = measured(np.arange(12) * 30)
    assert found.flood_share == pytest.approx((810 - 300) / 3600)
    assert found.most_in_10_minutes == found.most_in_hour == found.most_in_day == 12
    # Ten are none, nor are eleven of which the first is ten minutes old.
    assert measured(np.arange(10) * 30).flood_share == 0
    found = measured(np.arange(11) * 60)
    assert found.flood_share == 0 and found.most_in_10_minutes == 10
    # Five in ten minutes, without end, don't end one; it counts up to the end of the span.
    slow = np.append(np.arange(11), 10 + np.arange(1, 30) * 120)
    assert measured(slow).flood_share == pytest.approx((3600 - 10) / 3600)
    # One that begins and ends at the same instants is not interrupted.
    again = np.append(np.arange(11), np.arange(11) + 600)
    assert measured(again).flood_share == pytest.approx((600 + 606 - 10) / 3600)


@pytest.mark.parametrize("seed", range(5))
def test_measures_in_time_are_those_of_every_second_looked_at(seed):
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.integers(0, 3 * 86_400, 60))
    burst = rng.integers(90_000, 93_000, 60)
    starts = np.sort(np.append(starts, burst))
    found = measured(rng.permutation(starts), hours=72)
    begun = np.bincount(starts, minlength=3 * 86_400)
    passed = np.append(0, np.cumsum(begun))

    def within(seconds):
        at = np.arange(1, len(passed))
        return passed[at] - passed[np.maximum(at - seconds, 0)]

    assert found.most_in_day == within(86_400).max()
    assert found.most_in_hour == within(3600).max()
    assert found.most_in_10_minutes == within(600).max()
    flooded, seconds = False, 0
    for count in within(600):
        flooded = count > 10 or (flooded and count >= 5)
        seconds += flooded
    assert found.flood_share == pytest.approx(seconds / (3 * 86_400)) and seconds > 100
    assert found.per_day == 40 and found.events == 120


def test_a_source_chatters_with_three_events_within_a_minute():
    starts = [0, 30, 60, 100, 130, 161, 0, 1, 2]
    entity = ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    channels = ["x;y", "x", "x;z", "x", "x", "x", "x", "y", "x"]
    found = measured(starts, entity=entity, channels=channels)
    assert found.chattering == ("a x",)
    # An event of another kind has another source.
    kinds = ["score", "frozen", "score", *["score"] * 6]
    found = measured(starts, entity=entity, channels=channels, kind=kinds)
    assert found.chattering == () and found.worst[0] == ("b x", 3)
    assert dict(found.worst)["a frozen x"] == 1


def test_standing_events_last_longer_than_a_day():
    found = measured([0, 0, 3600, 0], [86_400, 86_401, 90_000, 5], hours=48)
    assert found.standing == 2 and found.per_day == 2
    open_ = table_of([0, 100_000]).assign(end=[None, ""])
    span = [DAY0, DAY0 + pd.Timedelta(hours=48)]
    assert kdjax.alarm_measures(open_, span=span).standing == 1


def test_the_ten_most_frequent_sources():
    """Twelve sources with 1 to 12 events: the ten largest have 75 of 78."""
    entity = np.repeat([f"e{n:02}" for n in range(1, 13)], range(1, 13))
    found = measured(np.arange(78), entity=entity)
    assert found.worst == tuple((f"e{n:02}", n) for n in range(12, 2, -1))
    assert found.worst_share == pytest.approx(75 / 78)


def test_measures_of_numbers_need_their_unit():
    rows = pd.DataFrame({"start": [0, 5, 6], "end": [0, 5, 1500]})
    found = kdjax.alarm_measures(rows, span=(0, 2879))
    assert (
        found.per_day is found.standing is found.flood_share is found.chattering is None
    )
    assert "`seconds` is not given" in found.reason
    assert found.events == 3 and found.worst == (("", 3),)
    found = kdjax.alarm_measures(rows, span=(0, 2880), seconds=60)
    assert found.reason == "" and found.per_day == 1.5
    assert (found.most_in_10_minutes, found.standing) == (3, 1)


def test_measures_of_no_events_and_of_no_time():
    found = measured([])
    assert (
        found.per_day == found.most_in_day == found.flood_share == found.standing == 0
    )
    assert found.chattering == found.worst == () and found.worst_share is None
    assert "the span has no length" in measured([0], hours=0).reason


def test_a_file_of_events_is_measured_on_the_clocks_of_its_zone(tmp_path):
    """The clock goes back at 03:00 to 02:00: 01:50 to 02:05 is an hour and a quarter."""
    texts = ["2024-10-27 01:50:00+02:00", "2024-10-27 02:05:00+01:00"]
    path = tmp_path / "scores.csv.events.csv"
    pd.DataFrame({"start": texts, "end": texts}).to_csv(path, index=False)
    span = "2024-10-27 00:00:00+02:00", "2024-10-27 23:59:59+01:00"
    found = kdjax.alarm_measures(pd.read_csv(path), span=span)
    assert (found.most_in_hour, found.most_in_day) == (1, 2)
    assert found.per_day == pytest.approx(2 / (25 / 24), rel=1e-4)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("2024-05-01 02:00", "2024-05-01 01:00", "event 1 .* begins after its end"),
        ("2024-05-01 02:00", "2024-05-02 02:00", "not within the span, 2024-05-01"),
        ("2024-04-01 02:00", "2024-05-01 02:00", "not within the span, 2024-05-01"),
        ("at noon", "2024-05-01 02:00", "events: .* 'at noon'"),
    ],
)
def test_events_outside_the_span_and_odd_times_are_refused(start, end, words):
    table = pd.DataFrame({"start": [start], "end": [end]})
    with pytest.raises(DataError, match=words):
        kdjax.alarm_measures(table, span=("2024-05-01 00:00", "2024-05-02 00:00"))
