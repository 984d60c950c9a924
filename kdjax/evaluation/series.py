"""Metrics of one entity's rows in their order: events, buffers, delays.

Rows without a score are left out, here as everywhere: distances and delays count rows
that have one, and an event without any such row counts nowhere. That may bring two
events together that only rows without a score kept apart. One quiet row between them,
without an alarm under any τ, then stays in: two events remain two.
"""

import math
from typing import NamedTuple

import numpy as np

from kdjax.evaluation.adjusted import adjusted_f1_of
from kdjax.evaluation.affiliation import affiliation_of
from kdjax.evaluation.events import delay_of, delays_of, event_f1_of, recall_of
from kdjax.evaluation.labels import nan_reasons, one_class, why_undefined
from kdjax.evaluation.ranges import ranges_of
from kdjax.evaluation.vus import volumes

VOLUME_METRICS = ("vus_roc", "vus_pr")
EVENT_METRICS = (
    "affiliation_precision",
    "affiliation_recall",
    "affiliation_f1",
    "range_precision",
    "range_recall",
    "range_f1",
    "event_recall",
    "event_f1",
    "detection_delay",
)
INFLATED_METRICS = ("point_adjusted_f1", "pa_k_f1")
PA_K = 20  # percent, as in the paper of PA%K
NO_WINDOW = "no window was given"


class Series(NamedTuple):
    """Rows of one entity, `[K]` in order; a quiet row that stays in has score -inf."""

    labels: np.ndarray  # bool
    scores: np.ndarray  # float64


def in_order(labels: np.ndarray, scores: np.ndarray) -> Series:
    """The rows that have a score, and those that must keep events apart.

    Args:
        labels: `[N]` bool.
        scores: `[N]`, NaN in rows without one.

    >>> labels = np.array([True, False, False, True])
    >>> in_order(labels, np.array([1.0, np.nan, np.nan, 2.0])).labels.tolist()
    [True, False, True]
    """
    scored = ~np.isnan(scores)
    rows = np.flatnonzero(scored)
    normal = np.append(0, np.cumsum(~labels))
    before, after = rows[:-1], rows[1:]
    meet = labels[before] & labels[after] & (normal[after] > normal[before])
    kept = scored.copy()
    for row in before[meet]:
        kept[row + 1 + np.argmin(labels[row + 1 :])] = True
    quiet = np.where(scored, scores, -np.inf).astype(np.float64)
    return Series(labels[kept], quiet[kept])


def volume_metrics(
    series: Series, window: int | None
) -> tuple[dict[str, float], dict[str, str]]:
    """VUS-ROC and VUS-PR by name, and why they are NaN.

    Args:
        series: the rows.
        window: widest buffer, in rows; None leaves both metrics NaN.
    """
    reason = one_class(series.labels) if window is not None else NO_WINDOW
    if window is None or reason is not None:
        nothing = dict.fromkeys(VOLUME_METRICS, math.nan)
        return nothing, nan_reasons(nothing, str(reason))
    found = volumes(series.labels, series.scores, window=window)
    return dict(zip(VOLUME_METRICS, found, strict=True)), {}


def event_metrics(
    series: Series, tau: float, *, point_adjusted: bool = False
) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics of the alarms score > τ by name, and why some are NaN.

    Args:
        series: the rows.
        tau: the threshold.
        point_adjusted: whether to add `INFLATED_METRICS`.
    """
    truth, alarms = series.labels, series.scores > tau
    near, ranges = affiliation_of(truth, alarms), ranges_of(truth, alarms)
    delays = delays_of(truth, alarms)
    events = (recall_of(delays), event_f1_of(truth, alarms), delay_of(delays))
    values = dict(zip(EVENT_METRICS, (*near, *ranges, *events), strict=True))
    if point_adjusted:
        inflated = (adjusted_f1_of(truth, alarms, k=k) for k in (0, PA_K))
        values |= zip(INFLATED_METRICS, inflated, strict=True)
    return values, nan_reasons(values, why_undefined(truth, alarms))
