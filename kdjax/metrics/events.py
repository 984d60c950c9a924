"""Metrics of events: which were found, how late, and how well alarms cover them.

An event is an unbroken run of labelled rows; an alarm in any of its rows detects it.

- Point-adjusted F1 counts every row of an event as found once one of them is, and so is
  inflated: uniformly random scores reach 0.78 on the labels of SMD, and 0.96 on its first
  machine (Kim et al., AAAI 2022, arXiv 2109.05257). PA%K adjusts an event only if more
  than K % of its rows are found.
- Precision and recall of ranges (Tatbul et al., NeurIPS 2018): recall is the mean over
  labelled ranges of the share that alarms cover, precision the mean over ranges of alarms
  of the share that is labelled. The options are those of the `prts` package.
- Affiliation precision and recall (Huet, Navarro and Rossi, KDD 2022): the zone of an
  event is the rows nearer to it than to any other event. Precision measures how near the
  zone's alarms are to the event, recall how near the event's rows are to alarms; both as
  the chance that a row drawn from the zone is further away. Row i is the interval
  [i, i + 1). All integrals are exact, as in the authors' reference implementation. Alarms
  at random have an F1 near 0.7 at any alarm rate.

Compare them with those of random scores.
"""

import math
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from kdjax.errors import ConfigError, check_choice
from kdjax.metrics.checks import event_reasons, runs, warn_undefined, with_alarms
from kdjax.metrics.points import PrecisionRecallF1, count, from_counts, harmonic_mean

CARDINALITIES = ("reciprocal", "one")
BIASES = ("flat", "front", "middle", "back")


class _Span(NamedTuple):
    start: float
    stop: float

    @property
    def length(self) -> float:
        return self.stop - self.start


class Affiliation(NamedTuple):
    """Affiliation precision, recall and their harmonic mean; NaN where undefined."""

    precision: float
    recall: float
    f1: float


Found = TypeVar("Found", float, Affiliation, PrecisionRecallF1)


def event_recall(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of the events that are detected; NaN with a warning if there is none.

    >>> event_recall([0, 1, 1, 0, 1], [0, 0, 1, 1, 0])
    0.5
    """
    truth, alarms = with_alarms(labels, predictions)
    return _warned(_recall_of_events(truth, alarms), truth, alarms, "event_recall")


def detection_delay(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean over the detected events of the rows from start to first alarm.

    0 is an alarm in the event's first row; alarms before the event do not count. Missed
    events are left out: read it beside `event_recall`. NaN with a warning if no event is
    detected.

    >>> detection_delay([0, 1, 1, 0, 1, 1], [1, 0, 1, 0, 1, 0])
    0.5
    """
    truth, alarms = with_alarms(labels, predictions)
    delays = _delays(truth, alarms)
    known = delays[~np.isnan(delays)]
    delay = float(known.mean()) if len(known) else math.nan
    return _warned(delay, truth, alarms, "detection_delay")


def event_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Harmonic mean of the recall of events and the precision of rows (as TSB-AD's).

    It is 0 where events exist and nothing was predicted; NaN with a warning if there is
    no event.

    >>> event_f1([0, 1, 1, 0, 1], [0, 0, 1, 1, 0])
    0.5
    """
    truth, alarms = with_alarms(labels, predictions)
    recall = _recall_of_events(truth, alarms)
    f1 = 0.0  # also where nothing was predicted, which leaves precision undefined
    if recall:
        precision = float(truth[alarms].mean()) if alarms.any() else math.nan
        f1 = harmonic_mean(precision, recall)
    return _warned(f1, truth, alarms, "event_f1")


def point_adjusted_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """F1 (Eq. 5) after each event with an alarm counts as found throughout; inflated.

    NaN with a warning if nothing is labelled.

    >>> point_adjusted_f1([0, 1, 1, 1, 1], [1, 0, 1, 0, 0])  # TP 4, FP 1
    0.8888888888888888
    """
    truth, alarms = with_alarms(labels, predictions)
    f1 = _adjusted_f1(truth, alarms, 0)
    return _warned(f1, truth, alarms, "point_adjusted_f1")


def pa_k_f1(labels: ArrayLike, predictions: ArrayLike, *, k: float = 20) -> float:
    """F1 (Eq. 5) after each event with more than `k` % alarms counts as found; inflated.

    `k=0` is point adjustment and `k=100` plain F1. NaN with a warning if nothing is
    labelled; ConfigError unless `k` is a percentage.

    >>> pa_k_f1([0, 1, 1, 1, 1], [1, 0, 1, 0, 0], k=25)  # 25 % aren't more: TP 1, FP 1
    0.3333333333333333
    """
    truth, alarms = with_alarms(labels, predictions)
    if not 0 <= k <= 100:
        raise ConfigError(f"k={k}: expected a percentage from 0 to 100.")
    return _warned(_adjusted_f1(truth, alarms, k), truth, alarms, "pa_k_f1")


def range_precision_recall(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    alpha: float = 0.0,
    cardinality: str = "reciprocal",
    bias: str = "flat",
) -> PrecisionRecallF1:
    """Range precision, range recall and their harmonic mean; rows in order.

    Where nothing was predicted precision is NaN, recall and F1 are 0; without positive
    labels all are NaN; an `UndefinedMetricWarning` says so.

    Args:
        labels: `[N]`, 1 in anomalous rows.
        predictions: `[N]`, 1 in rows with an alarm.
        alpha: 0 to 1, weight in recall of an event being hit at all; the rest is the
            weight of the covered share. Not used in precision.
        cardinality: `reciprocal` divides a range's reward by the number of ranges that
            overlap it, `one` does not.
        bias: which rows of a range count most: `flat` none, `front` the first, `middle`,
            `back` the last.

    Raises:
        ConfigError: another `alpha`, `cardinality` or `bias`.

    >>> range_precision_recall([0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0, 0])
    PrecisionRecallF1(precision=0.75, recall=0.25, f1=0.375)
    """
    truth, alarms = with_alarms(labels, predictions)
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha}: expected a number from 0 to 1.")
    check_choice("cardinality", cardinality, CARDINALITIES)
    check_choice("bias", bias, BIASES)
    options = {"cardinality": cardinality, "bias": bias}
    precision, recall, f1 = math.nan, 0.0, 0.0
    if not truth.any():
        recall = f1 = math.nan
    elif alarms.any():
        recall = _mean_reward(truth, alarms, alpha=alpha, **options)
        precision = _mean_reward(alarms, truth, alpha=0.0, **options)
        f1 = harmonic_mean(precision, recall)
    return _warned(PrecisionRecallF1(precision, recall, f1), truth, alarms)


def affiliation(labels: ArrayLike, predictions: ArrayLike) -> Affiliation:
    """Affiliation precision, recall and F1 of `[N]` alarms; rows in order.

    Precision is the mean over the zones that hold an alarm, recall that over all
    events. Where nothing was predicted precision and F1 are NaN and recall is 0; without
    positive labels all are NaN; an `UndefinedMetricWarning` says so.

    >>> affiliation([0, 0, 1, 1], [0, 1, 1, 0])
    Affiliation(precision=0.6875, recall=0.90625, f1=0.7818627450980392)
    """
    truth, alarms = with_alarms(labels, predictions)
    starts, stops = runs(truth)
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
    # 0 for an event whose zone is quiet.
    recall = math.fsum(recalls) / len(starts) if len(starts) else math.nan
    found = Affiliation(precision, recall, harmonic_mean(precision, recall))
    return _warned(found, truth, alarms)


def _warned(
    found: Found, truth: np.ndarray, alarms: np.ndarray, name: str = ""
) -> Found:
    """A metric called `name`, or a tuple of several; warns where one is NaN."""
    values = {name: found} if isinstance(found, float) else found._asdict()
    warn_undefined(event_reasons(values, truth, alarms), stacklevel=4)
    return found


def _delays(truth: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Rows from each event's start to its first alarm, `[N], [N] -> [E]`; NaN if missed.

    >>> _delays(np.array([True, True, False, True]), np.array([False, True, True, False]))
    array([ 1., nan])
    """
    starts, stops = runs(truth)
    places = np.append(np.flatnonzero(alarms), len(alarms))
    first = places[np.searchsorted(places, starts)]
    return np.where(first < stops, first - starts, np.nan)


def _recall_of_events(truth: np.ndarray, alarms: np.ndarray) -> float:
    delays = _delays(truth, alarms)
    return float(np.mean(~np.isnan(delays))) if len(delays) else math.nan


def _adjusted_f1(truth: np.ndarray, alarms: np.ndarray, k: float) -> float:
    starts, stops = runs(truth)
    found = np.append(0, np.cumsum(alarms))
    hits, lengths = found[stops] - found[starts], stops - starts
    adjusted = alarms.copy()
    adjusted[truth] |= np.repeat(100 * hits > k * lengths, lengths)
    return from_counts(count(truth, adjusted)).f1


def _mean_reward(
    ranges: np.ndarray, others: np.ndarray, *, alpha: float, cardinality: str, bias: str
) -> float:
    """Mean over the runs of `ranges` of their reward from the runs of `others`."""
    starts, stops = runs(ranges)
    lengths = stops - starts
    firsts = np.cumsum(lengths) - lengths  # where each run begins among its own rows
    place = np.arange(lengths.sum()) - np.repeat(firsts, lengths) + 1  # 1, 2, ...
    from_end = np.repeat(lengths, lengths) - place + 1
    weights = {
        "flat": np.ones_like(place),
        "front": from_end,
        "middle": np.minimum(place, from_end),
        "back": place,
    }[bias].astype(np.float64)
    covered = others[ranges]
    share = np.add.reduceat(weights * covered, firsts) / np.add.reduceat(
        weights, firsts
    )
    begins = covered & ((place == 1) | ~np.append(False, covered[:-1]))
    overlaps = np.add.reduceat(begins.astype(int), firsts)
    factor = 1 / np.maximum(overlaps, 1) if cardinality == "reciprocal" else 1.0
    rewards = alpha * (overlaps > 0) + (1 - alpha) * factor * share
    return float(rewards.mean())


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

    # How far the ends of the alarms lie from the event, before it and after it.
    far = np.maximum([event.start - begin, end - event.stop], 0)
    near = np.maximum([event.start - end, begin - event.stop], 0)
    lost = event.length * (far - near).sum() + (integral(far) - integral(near)).sum()
    return float(1 - lost / (zone.length * (end - begin).sum()))


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
