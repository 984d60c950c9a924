"""From rows above τ to alarms that are worth a look, and from alarms to events.

A rule may ask that the window score stays above τ for some rows before an alarm starts
(minimum duration) and that quiet follows an alarm (cool-down). `next_alarm` takes one
row at a time, as a stream has them; `alarms` gives the same for a whole series.

Events of a series whose windows are scored already.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.windowing import latest_window
from kdjax.errors import ConfigError

EVENT_COLUMNS = ("entity", "start", "end", "severity", "peak", "channels")
TOP = 3  # channels that an event names


class AlarmRule(NamedTuple):
    """When rows above τ become an alarm; all in rows.

    Attributes:
        min_duration: rows in a row above τ, of which the last starts the alarm.
        cooldown: rows after the one that ended an alarm in which none starts. They
            count towards `min_duration`, so what goes on alarms once they are over.
    """

    min_duration: int = 1
    cooldown: int = 0


class AlarmState(NamedTuple):
    """What a stream remembers from row to row; whole numbers only.

    Attributes:
        run: rows in a row above τ up to now, at most `min_duration`.
        active: 1 while in alarm.
        rest: rows of cool-down left.
    """

    run: int = 0
    active: int = 0
    rest: int = 0


START = AlarmState()


def next_alarm(
    state: AlarmState, above: bool | None, rule: AlarmRule
) -> tuple[AlarmState, bool]:
    """The state after a row, and whether the row is in alarm.

    Args:
        state: after the row before; `START` for none.
        above: whether the window score is above τ; None for a row without one, which
            counts as not above.
        rule: when rows above become an alarm.

    >>> next_alarm(AlarmState(run=1), True, AlarmRule(min_duration=2))
    (AlarmState(run=2, active=1, rest=0), True)
    """
    _check(rule)
    left = max(0, state.rest - 1)
    if not above:
        return AlarmState(rest=rule.cooldown if state.active else left), False
    run = min(state.run + 1, rule.min_duration)
    active = bool(state.active) or (run == rule.min_duration and not state.rest)
    return AlarmState(run, int(active), left), active


def row_alarms(above: np.ndarray, known: np.ndarray, rule: AlarmRule) -> np.ndarray:
    """Rows in alarm, `[N], [N] -> [N]` bool: `next_alarm` row after row.

    Args:
        above: whether the window score is above τ.
        known: whether the row has a window score.
        rule: when rows above become an alarm.

    >>> above = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1], bool)
    >>> known = np.ones(9, bool)
    >>> row_alarms(above, known, AlarmRule(min_duration=2, cooldown=2)).astype(int)
    array([0, 0, 0, 1, 1, 0, 0, 0, 1])
    """
    _check(rule)
    hit: np.ndarray = np.asarray(above, bool) & np.asarray(known, bool)
    if rule.min_duration == 1 and rule.cooldown == 0:
        return hit
    spans = _runs(hit)
    spans[:, 0] += rule.min_duration - 1
    spans = spans[spans[:, 0] < spans[:, 1]]
    if rule.cooldown:
        spans = _rested(spans, rule.cooldown)
    change = np.zeros(len(hit) + 1, np.int8)
    change[spans[:, 0]] = 1
    change[spans[:, 1]] -= 1
    inside: np.ndarray = np.cumsum(change[:-1], dtype=np.int8).astype(bool)
    return inside


def events(alarm: np.ndarray, *, gap: int) -> np.ndarray:
    """Events as half-open spans of rows, `[N] -> [K, 2]` int64.

    Args:
        alarm: rows in alarm.
        gap: alarms nearer than so many rows, from the last row of one to the first of
            the next, are one event. With L these are alarms whose windows overlap.

    >>> events(np.array([1, 0, 0, 1, 0, 0, 0, 1], bool), gap=4)
    array([[0, 4],
           [7, 8]])
    """
    runs = _runs(np.asarray(alarm, bool))
    apart = runs[1:, 0] - (runs[:-1, 1] - 1) >= gap
    first = np.concatenate([runs[:1, 0], runs[1:, 0][apart]])
    last = np.concatenate([runs[:-1, 1][apart], runs[-1:, 1]])
    return np.stack([first, last], axis=1)


def event_table(
    alarm: np.ndarray,
    *,
    entity: str,
    time: np.ndarray,
    window_score: np.ndarray,
    score: np.ndarray,
    tau: float,
    window: int,
    explain: Callable[[np.ndarray], np.ndarray] | None = None,
    channels: Sequence[str] = (),
) -> pd.DataFrame:
    """One line an event of the rows in alarm `[N]`; alarms nearer than L are one.

    Columns: `entity`; `start` and `end`, the times of its first and last row in alarm;
    `severity`, its largest window score in units of τ, infinite where τ is not above 0
    or the score is; `peak`, the time of the largest score of a row; `channels`, the
    three with the largest contributions at the peak, joined by `;`. The peak may lie up
    to L − 1 rows before `start`, since a window alarms after what it saw.

    Args:
        alarm: rows in alarm, from `alarms`.
        entity: its name.
        time: `[N]` times or row numbers.
        window_score: `[N]`, NaN where unknown.
        score: `[N]`, NaN where unknown.
        tau: τ.
        window: L.
        explain: shares of the channels in the scores of some rows, `[K] -> [K, D]`;
            asked once, for the peaks. None names no channels.
        channels: the D names.
    """
    first, stop = events(alarm, gap=window).T
    highest = window_score[_largest(window_score, first, stop)].astype(np.float64)
    peak = _largest(score, np.maximum(first - window + 1, 0), stop)
    columns = (
        [entity] * len(peak),
        time[first],
        time[stop - 1],
        highest / tau if tau > 0 else np.full(len(peak), np.inf),
        time[peak],
        _top(explain, peak, channels),
    )
    table = pd.DataFrame(dict(zip(EVENT_COLUMNS, columns, strict=True)))
    return table.astype({"entity": str, "channels": str})


def _check(rule: AlarmRule) -> None:
    if rule.min_duration < 1 or rule.cooldown < 0:
        raise ConfigError(
            f"an alarm with min_duration={rule.min_duration} and "
            f"cooldown={rule.cooldown}: expected at least 1 and at least 0 rows."
        )


def _runs(hit: np.ndarray) -> np.ndarray:
    """Half-open spans of the rows that are true, `[N] -> [K, 2]`."""
    padded = np.concatenate([[False], hit, [False]])
    return np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)


def _rested(spans: np.ndarray, cooldown: int) -> np.ndarray:
    """Spans of alarms that wait until the cool-down after the last is over."""
    kept, free = [], 0
    for start, stop in spans.tolist():
        if max(start, free) < stop:
            kept.append((max(start, free), stop))
            free = stop + cooldown + 1
    return np.array(kept, np.int64).reshape(-1, 2)


def _largest(values: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Rows of the largest value in each half-open span; unknown ones don't count."""
    rows = [
        start + int(np.argmax(np.fmax(values[start:end], -np.inf)))
        for start, end in zip(first.tolist(), stop.tolist(), strict=True)
    ]
    return np.array(rows, np.int64)


def _top(
    explain: Callable[[np.ndarray], np.ndarray] | None,
    rows: np.ndarray,
    channels: Sequence[str],
) -> list[str]:
    if explain is None or len(rows) == 0:
        return [""] * len(rows)
    order = np.argsort(-explain(rows), axis=1, kind="stable")[:, :TOP]
    return [";".join(channels[i] for i in own) for own in order]


def scored_events(
    window_scores: np.ndarray,
    starts: np.ndarray,
    spans: np.ndarray,
    *,
    tau: float,
    window: int,
    rule: AlarmRule,
) -> np.ndarray:
    """Half-open spans of rows of the events that `score` finds, `[K, 2]`.

    Rows know the latest window that ended at or before them; those above τ are in
    alarm, as the rule allows; alarms nearer than L rows are one event.

    Args:
        window_scores: `[M]`, NaN where a window has none.
        starts: `[M]` first rows of the windows, none of which crosses a gap.
        spans: `[S, 2]` half-open spans of rows between gaps.
        tau: τ.
        window: L.
        rule: when rows above τ become an alarm.

    >>> starts, spans = np.array([0, 2, 4]), np.array([[0, 8]])
    >>> scored_events(
    ...     np.array([1.0, 9.0, 1.0]), starts, spans, tau=5, window=2, rule=AlarmRule()
    ... )
    array([[3, 5]])
    """
    known = np.full(int(spans.max(initial=0)), np.nan)
    for first, last in spans:
        own = (starts >= first) & (starts < last)
        latest = latest_window(starts[own] - first, window=window, rows=last - first)
        # Before the end of the first window comes -1, and so the NaN.
        known[first:last] = np.append(window_scores[own], np.nan)[latest]
    alarm = row_alarms(known > tau, ~np.isnan(known), rule)
    return events(alarm, gap=window)
