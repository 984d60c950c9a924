"""Whole events: which were found, how late, and the F1 of events.

An event is an unbroken run of labelled rows; an alarm in any of its rows detects it.
"""

import math

import numpy as np
import numpy.typing as npt

from kdjax.metrics.checks import (
    nan_reasons,
    runs,
    warn_undefined,
    why_undefined,
    with_alarms,
)
from kdjax.metrics.points import harmonic_mean


def event_recall(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Share of the events that are detected; NaN with a warning if there is none.

    >>> event_recall([0, 1, 1, 0, 1], [0, 0, 1, 1, 0])
    0.5
    """
    truth, alarms = with_alarms(labels, predictions)
    value = recall_of(delays_of(truth, alarms))
    warn_undefined(nan_reasons({"event_recall": value}, why_undefined(truth, alarms)))
    return value


def event_f1(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Harmonic mean of the recall of events and the precision of rows (as TSB-AD's).

    It is 0 where events exist and nothing was predicted; NaN with a warning if there is
    no event.

    >>> event_f1([0, 1, 1, 0, 1], [0, 0, 1, 1, 0])
    0.5
    """
    truth, alarms = with_alarms(labels, predictions)
    value = event_f1_of(truth, alarms)
    warn_undefined(nan_reasons({"event_f1": value}, why_undefined(truth, alarms)))
    return value


def detection_delay(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Mean over the detected events of the rows from start to first alarm.

    0 is an alarm in the event's first row; alarms before the event do not count. Missed
    events are left out: read it beside `event_recall`. NaN with a warning if no event is
    detected.

    >>> detection_delay([0, 1, 1, 0, 1, 1], [1, 0, 1, 0, 1, 0])
    0.5
    """
    truth, alarms = with_alarms(labels, predictions)
    value = delay_of(delays_of(truth, alarms))
    warn_undefined(
        nan_reasons({"detection_delay": value}, why_undefined(truth, alarms))
    )
    return value


def delays_of(truth: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Rows from each event's start to its first alarm, `[N], [N] -> [E]`; NaN if missed.

    >>> delays_of(np.array([True, True, False, True]), np.array([False, True, True, False]))
    array([ 1., nan])
    """
    starts, stops = runs(truth)
    places = np.append(np.flatnonzero(alarms), len(alarms))
    first = places[np.searchsorted(places, starts)]
    return np.where(first < stops, first - starts, np.nan)


def recall_of(delays: np.ndarray) -> float:
    """`event_recall` from `[E]` delays."""
    return float(np.mean(~np.isnan(delays))) if len(delays) else math.nan


def delay_of(delays: np.ndarray) -> float:
    """`detection_delay` from `[E]` delays."""
    known = delays[~np.isnan(delays)]
    return float(known.mean()) if len(known) else math.nan


def event_f1_of(truth: np.ndarray, alarms: np.ndarray) -> float:
    """`event_f1` of checked `[N]` bool arrays, without a warning."""
    recall = recall_of(delays_of(truth, alarms))
    if not recall:
        return 0.0  # also where nothing was predicted, which leaves precision undefined
    precision = float(truth[alarms].mean()) if alarms.any() else math.nan
    return harmonic_mean(precision, recall)
