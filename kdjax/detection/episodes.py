"""Events of a series whose windows are scored already."""

import numpy as np

from kdjax.data.windows import latest_window
from kdjax.detection.alarms import AlarmRule, alarms, find_events


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
    alarm = alarms(known > tau, ~np.isnan(known), rule)
    return find_events(alarm, gap=window)
