"""Turns rows above τ into alarms, and alarms into events.

A rule can require that the window score stays above τ for some rows before an alarm starts
(minimum duration), that it falls below a lower level before the alarm ends (hysteresis),
and that no alarm starts for some rows after one (cool-down). `next_alarm` takes one row
at a time, for streams; `row_alarms` returns the same for a whole series.
`alarm_measures` computes alarm-management measures of events.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.raw import Place
from kdjax.data.times import parse_time
from kdjax.data.windowing import latest_window
from kdjax.errors import ConfigError, DataError, counted
from kdjax.metrics.checks import runs

TOP = 3  # channels that an event lists

# By ISA-18.2 and IEC 62682; seconds. More events in `PERIOD` than the first of `FLOOD` begin
# a flood, fewer than the second end it (EEMUA 191).
DAY, HOUR, PERIOD, MINUTE = 86_400.0, 3_600.0, 600.0, 60.0
FLOOD = (10, 5)
CHATTERS = 3  # events of a source within a minute
WORST = 10  # sources


class AlarmRule(NamedTuple):
    """When rows above τ become an alarm; all values in rows."""

    min_duration: int = 1  # successive rows above τ, of which the last starts the alarm
    # Rows after the end of an alarm in which none starts. They count towards
    # `min_duration`: a score that stays high alarms right after the cool-down.
    cooldown: int = 0
    # An alarm continues while the score is above this share of τ.
    clear: float = 1.0


def alarm_rule(source: Any) -> AlarmRule:
    """The rule of a detector, of a plan, or of another object with its fields."""
    return AlarmRule(*(getattr(source, name) for name in AlarmRule._fields))


def clear_level(tau: float, rule: AlarmRule) -> float:
    """The score above which an alarm continues: a share of τ, or τ where τ is not above 0.

    >>> clear_level(5.0, AlarmRule(clear=0.5))
    2.5
    """
    # In single precision, as the scores, so that tables and streams agree.
    return float(np.float32(tau * rule.clear)) if rule.clear < 1 and tau > 0 else tau


class EventRule(NamedTuple):
    """How window scores in order of time become events."""

    gap: int  # alarms less than so many rows apart are one event; L
    spacing: int = 1  # rows from one score to the next: 1 in a stream
    rows_per_day: float = 0.0  # 0 where unknown
    alarm: AlarmRule = AlarmRule()


def count_events(scores: np.ndarray, tau: float, rule: EventRule) -> int:
    """The number of events in window scores `[n]` in order of time.

    >>> count_events(np.array([0.0, 9, 0, 0, 9, 9]), 5, EventRule(gap=3))
    2
    """
    alarm = row_alarms(np.repeat(scores, rule.spacing), tau, rule.alarm)
    return len(events(alarm, gap=rule.gap))


class AlarmState(NamedTuple):
    """The state of a stream between rows; whole numbers only."""

    run: int = 0  # successive rows above τ up to now, at most `min_duration`
    active: int = 0  # 1 while in alarm
    rest: int = 0  # rows of cool-down left


def next_alarm(
    state: AlarmState, score: float, tau: float, rule: AlarmRule
) -> tuple[AlarmState, bool]:
    """The state after a row, and whether the row is in alarm.

    `score` is the window score; NaN, for none, neither starts nor continues an alarm.

    >>> next_alarm(AlarmState(run=1), 6.0, 5.0, AlarmRule(min_duration=2))
    (AlarmState(run=2, active=1, rest=0), True)
    """
    _check(rule)
    left = max(0, state.rest - 1)
    run = min(state.run + 1, rule.min_duration) if score > tau else 0
    if state.active:
        active = score > clear_level(tau, rule)
        left = left if active else rule.cooldown
    else:
        active = run == rule.min_duration and not state.rest
    return AlarmState(run, int(active), left), active


def row_alarms(scores: np.ndarray, tau: float, rule: AlarmRule) -> np.ndarray:
    """Rows in alarm by their window scores, `[N] -> [N]` bool: `next_alarm` row by row.

    >>> scores = np.array([9, 0, 9, 9, 9, 0, 9, 9, 9])
    >>> row_alarms(scores, 5, AlarmRule(min_duration=2, cooldown=2)).astype(int)
    array([0, 0, 0, 1, 1, 0, 0, 0, 1])
    >>> row_alarms(np.array([9, 4, 1, 4]), 5, AlarmRule(clear=0.6)).astype(int)
    array([1, 1, 0, 0])
    """
    _check(rule)
    above = scores > tau
    if rule == AlarmRule():
        return above
    # First rows at which an alarm may start.
    begins, length = np.zeros(len(above), bool), rule.min_duration
    for start, stop in zip(*runs(above), strict=True):
        begins[start + length - 1 : stop] = True
    inside, free = np.zeros(len(above), bool), 0
    for start, stop in zip(*runs(scores > clear_level(tau, rule)), strict=True):
        start = max(start, free)
        start += int(np.argmax(begins[start:stop])) if start < stop else 0
        if start < stop and begins[start]:
            inside[start:stop] = True
            free = stop + rule.cooldown + 1
    return inside


def events(alarm: np.ndarray, *, gap: int) -> np.ndarray:
    """Events as half-open spans of rows, `[N] -> [K, 2]` int64.

    Args:
        alarm: rows in alarm.
        gap: alarms less than so many rows apart, from the last row of one to the first of
            the next, are one event. With L these are alarms whose windows overlap.

    >>> events(np.array([1, 0, 0, 1, 0, 0, 0, 1], bool), gap=4)
    array([[0, 4],
           [7, 8]])
    """
    starts, stops = runs(np.asarray(alarm, bool))
    apart = starts[1:] - (stops[:-1] - 1) >= gap
    first = np.concatenate([starts[:1], starts[1:][apart]])
    last = np.concatenate([stops[:-1][apart], stops[-1:]])
    return np.stack([first, last], axis=1)


def event_table(
    alarm: np.ndarray,
    *,
    entity: str,
    time: Any,
    window_score: np.ndarray,
    score: np.ndarray,
    tau: float,
    window: int,
    explain: Callable[[np.ndarray], np.ndarray] | None = None,
    channels: Sequence[str] = (),
) -> pd.DataFrame:
    """One line per event of the rows in alarm `[N]`; alarms less than L apart are one.

    All arrays are `[N]`: times or row numbers, and scores, NaN where unknown. `explain`
    returns shares of the channels in the scores of some rows, `[K] -> [K, D]`; it is called
    once. With None no channels are listed.

    Columns: `entity`; `start` and `end`, the times of its first and last row in alarm;
    `severity`, its largest window score in units of τ, infinite where τ is not above 0
    or the score is; `peak`, the time of the largest score among its rows; `channels`, the
    three with the largest contributions, joined by `;`, at the largest score in all rows
    of its windows. These rows begin up to L − 1 rows before `start`, since a window
    alarms at its end: a short cause may lie before the first row in alarm.
    """
    first, stop = events(alarm, gap=window).T
    highest = window_score[_largest(window_score, first, stop)].astype(np.float64)
    peak = _largest(score, first, stop)
    named = [""] * len(peak)
    if explain is not None and len(peak):
        cause = _largest(score, np.maximum(first - window + 1, 0), stop)
        order = np.argsort(-explain(cause), axis=1, kind="stable")[:, :TOP]
        named = [";".join(channels[i] for i in own) for own in order]
    columns = {
        "entity": [entity] * len(peak),
        "start": time[first],
        "end": time[stop - 1],
        "severity": highest / tau if tau > 0 else np.full(len(peak), np.inf),
        "peak": time[peak],
        "channels": named,
    }
    return pd.DataFrame(columns).astype({"entity": str, "channels": str})


class AlarmMeasures(NamedTuple):
    """Alarm-management measures of events; those of time are None where it is unknown."""

    events: int
    # The ten most frequent sources, with their events.
    worst: tuple[tuple[str, int], ...]
    worst_share: float | None  # their share of all events; None without an event
    reason: str = ""  # why the following fields are None
    per_day: float | None = None  # mean
    most_in_day: int | None = None  # in any 24 hours
    most_in_hour: int | None = None  # in any 60 minutes
    most_in_10_minutes: int | None = None
    flood_share: float | None = None  # of the time
    chattering: tuple[str, ...] | None = None  # sources with 3 events within a minute
    standing: int | None = None  # events that last for longer than 24 hours


def alarm_measures(
    events: pd.DataFrame, *, span: Sequence[Any], seconds: float = 0.0
) -> AlarmMeasures:
    """The measures of ISA-18.2 and IEC 62682 of a table of events, for one operator.

    A flood begins when there are more than 10 events in 10 minutes, and ends when there
    are fewer than 5. The source of an event is its entity, its kind and its first channel.

    Args:
        events: columns `start`, `end` (empty while it lasts), optionally `entity`, `kind` and
            `channels`, such as from `score_events` or a file `.events.csv`.
        span: first and last time of the observation, in the same form as in `events`.
        seconds: length of one unit of numeric times, such as the seconds between rows.

    Raises:
        DataError: times are not in a known form, or lie outside the span.

    >>> day = ("2024-05-01 00:00", "2024-05-03 00:00")
    >>> table = pd.DataFrame({"start": ["2024-05-01 10:00"], "end": ["2024-05-02 11:00"]})
    >>> alarm_measures(table, span=day)[4:9], alarm_measures(table, span=day).standing
    ((0.5, 1, 1, 1, 0.0), 1)
    """
    sources = _sources(events)
    worst = tuple(Counter(sources).most_common(WORST))
    share = sum(count for _, count in worst) / len(sources) if sources else None
    found = AlarmMeasures(len(sources), worst, share)
    start, end, (first, last) = _seconds(events, span, seconds)
    if not last > first:
        unknown = "the times are numbers and `seconds` is not given: their unit"
        if seconds or not np.isnan(last):
            unknown = "the span has no length: the rate of events"
        return found._replace(reason=f"{unknown} is unknown")
    outside = np.flatnonzero((start < first) | (end > last) | (end < start))
    if len(outside):
        row = events.iloc[outside[0]]
        raise DataError(
            f"events: event {outside[0] + 1} ({row['start']} to {row['end']}) begins after "
            f"its end or is not within the span, {', '.join(map(str, span[:4]))}: give the "
            "times of the first and last observed row."
        )
    order = np.argsort(start, kind="stable")
    ordered, names = start[order], np.array(sources, object)[order]
    between = pd.Series(ordered).groupby(names).diff(CHATTERS - 1)

    def most(length: float) -> int:
        before = np.searchsorted(ordered, ordered - length, side="right")
        return int((np.arange(1, len(ordered) + 1) - before).max(initial=0))

    return found._replace(
        per_day=float(len(ordered) / ((last - first) / DAY)),
        most_in_day=most(DAY),
        most_in_hour=most(HOUR),
        most_in_10_minutes=most(PERIOD),
        flood_share=float(_flooded(ordered, last) / (last - first)),
        chattering=tuple(dict.fromkeys(names[between <= MINUTE])),
        standing=int((end - start > DAY).sum()),
    )


def measures_text(found: AlarmMeasures) -> str:
    """Measures as one line; their times must be known."""
    if found.chattering is None:
        return found.reason
    return (
        f"{found.per_day:.2g} events a day, at most {found.most_in_day:,} in 24 hours and "
        f"{found.most_in_10_minutes:,} in 10 minutes; {found.flood_share:.1%} of the time in "
        f"flood, {counted(len(found.chattering), 'source')} chattering, "
        f"{found.standing:,} standing"
    )


def _sources(events: pd.DataFrame) -> list[str]:
    """Entity, kind but `score`, and first channel of each event."""
    parts = []
    for name in ("entity", "kind", "channels"):
        own = events[name] if name in events else pd.Series("", events.index)
        texts = own.fillna("").astype(str).str.split(";").str[0]
        parts.append(texts.replace("score", "") if name == "kind" else texts)
    return [" ".join(filter(None, own)) for own in zip(*parts, strict=True)]


def _seconds(
    events: pd.DataFrame, span: Sequence[Any], seconds: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Starts, ends and the span in seconds; NaN for numbers of unknown unit."""
    ends, count = events["end"].astype(object), len(events)
    lasting = (ends.isna() | (ends == "")).to_numpy(bool)
    texts = [*map(str, [*span, *events["start"], *ends.where(~lasting, span[0])])]
    place = Place(Path("events"), ("start", "end"))
    values = parse_time(pd.Series(texts, name="start"), place).values
    if values.dtype.kind == "M":
        moments = (values - values[0]) / np.timedelta64(1, "s")
    else:
        moments = (values - values[0]) * (seconds or np.nan)
    watched, start, end = np.split(moments, [len(span), len(span) + count])
    first, last = float(watched.min()), float(watched.max())
    return start, np.where(lasting, last, end), (first, last)


def _flooded(starts: np.ndarray, last: float) -> float:
    """Seconds in flood up to `last`, from the starts of events `[n]`, ascending."""
    at, place = np.unique(np.append(starts, starts + PERIOD), return_inverse=True)
    change = np.repeat([1, -1], len(starts))
    count = np.cumsum(np.bincount(place, change, len(at)))
    states = np.where(count > FLOOD[0], 1.0, np.where(count < FLOOD[1], 0.0, np.nan))
    flood = pd.Series(states).ffill().fillna(0).to_numpy()
    return float(np.sum(flood * np.diff(np.minimum(at, last), append=last)))


def _check(rule: AlarmRule) -> None:
    if rule.min_duration < 1 or rule.cooldown < 0:
        raise ConfigError(
            f"an alarm with min_duration={rule.min_duration} and "
            f"cooldown={rule.cooldown}: expected at least 1 and at least 0 rows."
        )
    if not 0 < rule.clear <= 1:
        raise ConfigError(
            f"an alarm with clear={rule.clear:g}: expected a share of τ above 0, at most 1."
        )


def _largest(values: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Rows of the largest value in each half-open span; NaN is ignored."""
    rows = [
        start + int(np.argmax(np.fmax(values[start:end], -np.inf)))
        for start, end in zip(first.tolist(), stop.tolist(), strict=True)
    ]
    return np.array(rows, np.int64)


def latest_scores(
    scores: np.ndarray, starts: np.ndarray, spans: np.ndarray, *, window: int, rows: int
) -> np.ndarray:
    """The score of the latest window that ended at or before each row, `[M] -> [N]`.

    Windows have first rows `starts` `[M]`, ascending. Window and row lie in the same one of
    the half-open spans `[S, 2]` between gaps; NaN for none.

    >>> starts, spans = np.array([0, 2, 4]), np.array([[0, 6]])
    >>> latest_scores(np.array([1.0, 9.0, 2.0]), starts, spans, window=2, rows=6)
    array([nan,  1.,  1.,  9.,  9.,  2.])
    """
    latest = latest_window(starts, spans, window=window, rows=rows)
    return np.append(scores, np.nan)[latest]
