"""Affiliation precision and recall (Huet, Navarro and Rossi, KDD 2022).

The zone of an event is the rows nearer to it than to any other event. Precision measures
how near the zone's alarms are to the event, recall how near the event's rows are to
alarms; both as the chance that a row drawn from the zone is further away. Row i is the
interval [i, i + 1). All integrals are exact, as in the authors' reference implementation.

Alarms at random have an F1 near 0.7 at any alarm rate: compare with random scores.
"""

import math
from typing import NamedTuple

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


class Affiliation(NamedTuple):
    """Affiliation precision, recall and their harmonic mean; NaN where undefined."""

    precision: float
    recall: float
    f1: float


class _Span(NamedTuple):
    start: float
    stop: float

    @property
    def length(self) -> float:
        return self.stop - self.start


def affiliation(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> Affiliation:
    """Affiliation precision, recall and F1 of `[N]` alarms; rows in order.

    Precision is the mean over the zones that hold an alarm, recall that over all
    events. Where nothing was predicted precision and F1 are NaN and recall is 0; without
    positive labels all are NaN; an `UndefinedMetricWarning` says so.

    >>> affiliation([0, 0, 1, 1], [0, 1, 1, 0])
    Affiliation(precision=0.6875, recall=0.90625, f1=0.7818627450980392)
    """
    truth, alarms = with_alarms(labels, predictions)
    found = affiliation_of(truth, alarms)
    warn_undefined(nan_reasons(found._asdict(), why_undefined(truth, alarms)))
    return found


def affiliation_of(truth: np.ndarray, alarms: np.ndarray) -> Affiliation:
    """`affiliation` of checked `[N]` bool arrays, without a warning."""
    starts, stops = runs(truth)
    if not len(starts):
        return Affiliation(math.nan, math.nan, math.nan)
    begin, end = runs(alarms)
    edges = np.concatenate([[0], (stops[:-1] + starts[1:]) / 2, [len(truth)]])
    precisions, recalls = [], []
    for i, event in enumerate(map(_Span, starts, stops)):
        zone = _Span(edges[i], edges[i + 1])
        inside = slice(
            np.searchsorted(end, zone.start, side="right"),
            np.searchsorted(begin, zone.stop),
        )
        own_begin = np.maximum(begin[inside], zone.start)
        own_end = np.minimum(end[inside], zone.stop)
        if len(own_begin):
            precisions.append(_precision(own_begin, own_end, event, zone))
            recalls.append(_recall(own_begin, own_end, event, zone))
    precision = math.fsum(precisions) / len(precisions) if precisions else math.nan
    recall = math.fsum(recalls) / len(starts)  # 0 for an event whose zone is quiet
    return Affiliation(precision, recall, harmonic_mean(precision, recall))


def _precision(begin: np.ndarray, end: np.ndarray, event: _Span, zone: _Span) -> float:
    """Mean over the zone's alarms of the chance to lie further from the event.

    At distance d > 0 that chance is 1 - (|J| + min(d, m) + d) / |E|, where E is the
    zone, J the event and m the shorter way from J to an end of E.
    """
    shorter = min(event.start - zone.start, zone.stop - event.stop)

    def integral(distance: np.ndarray) -> np.ndarray:
        """Of min(u, m) + u over u from 0 to `distance`."""
        within = np.minimum(distance, shorter)
        over = within**2 / 2 + shorter * (distance - within) + distance**2 / 2
        return np.asarray(over)

    far = integral(event.start - np.minimum(begin, event.start))
    near = integral(event.start - np.minimum(end, event.start))
    before = float((far - near).sum())
    far = integral(np.maximum(end, event.stop) - event.stop)
    near = integral(np.maximum(begin, event.stop) - event.stop)
    after = float((far - near).sum())
    length = float((end - begin).sum())
    hit = np.minimum(end, event.stop) - np.maximum(begin, event.start)
    outside = length - float(np.maximum(hit, 0).sum())
    lost = event.length * outside + before + after
    return 1 - lost / (zone.length * length)


def _recall(begin: np.ndarray, end: np.ndarray, event: _Span, zone: _Span) -> float:
    """Mean over the event of the chance to lie further from it than the alarms do.

    For a point y at distance D from the nearest alarm that chance is
    1 - (min(D, m) + D) / |E|, where m is the shorter way from y to an end of the zone E.
    """
    edges = np.concatenate([begin, end])
    # All places where D, m or the smaller of them may bend: between them the integrand
    # is a straight line, so that the trapezoids are exact.
    bends = np.concatenate(
        [
            [event.start, event.stop, (zone.start + zone.stop) / 2],
            edges,
            (end[:-1] + begin[1:]) / 2,
            (zone.start + edges) / 2,
            (zone.stop + edges) / 2,
        ]
    )
    at = np.unique(np.clip(bends, event.start, event.stop))
    last = np.searchsorted(begin, at, side="right")  # alarms that began by then
    since = at - np.append(-np.inf, end)[last]
    until = np.append(begin, np.inf)[last] - at
    distance = np.minimum(np.maximum(since, 0), until)
    shorter = np.minimum(at - zone.start, zone.stop - at)
    lost = np.trapezoid(np.minimum(distance, shorter) + distance, at)
    return float(1 - lost / (zone.length * event.length))
