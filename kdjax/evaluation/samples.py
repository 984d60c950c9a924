"""One entity's windows or rows under one model, and what is measured on them.

Reasons go beside all numbers: a metric without a value is NaN, and its name is then a
key of the reasons.

The threshold of best F1, found with the test labels in hand.

The paper doesn't say how τ of section 2.1 was chosen; the literature's custom is this
one. It uses the answers, so no detector in service can have it: every table names it
`oracle` and puts a label-free threshold beside it.

Metrics of one entity's rows in their order: events, buffers, delays.

Rows without a score are left out, here as everywhere: distances and delays count rows
that have one, and an event without any such row counts nowhere. That may bring two
events together that only rows without a score kept apart. One quiet row between them,
without an alarm under any τ, then stays in: two events remain two.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdjax.errors import DataError
from kdjax.metrics.affiliations import affiliation_of
from kdjax.metrics.checks import (
    NO_POSITIVES,
    UndefinedMetricWarning,
    as_labels,
    as_scores,
    nan_reasons,
    one_class,
    why_undefined,
    with_scores,
)
from kdjax.metrics.events import (
    delay_of,
    delays_of,
    event_f1_of,
    recall_of,
)
from kdjax.metrics.point_adjusted import adjusted_f1_of
from kdjax.metrics.points import (
    auc_roc,
    average_precision,
    count,
    from_counts,
    undefined,
    undefined_curve,
)
from kdjax.metrics.ranges import ranges_of
from kdjax.metrics.volumes import volumes

ORACLE = "oracle"
FOLLOWING = "rolling"
ALARM_METRICS = ("precision", "recall", "f1")
CURVE_METRICS = ("auc_roc", "average_precision")
NO_LABELS = "no labels"
NO_TAU = "no positive labels, so no oracle threshold"
NOTHING = {"window": "no complete window", "point": "no row has a score"}
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


class OrderedRows(NamedTuple):
    """Rows of one entity, `[K]` in order; a quiet row that stays in has score -inf."""

    labels: np.ndarray  # bool
    scores: np.ndarray  # float64


class EntityScores(NamedTuple):
    """One entity's labels and scores under one model.

    Attributes:
        entity: its name.
        labels: `[N]` bool, True in anomalous rows; None where there are no labels.
        scores: `[N]`, mean of a_t (Eq. 1) over the windows that cover the row; NaN
            where none does.
        window_labels: `[M]` bool; None where there are no labels.
        window_scores: `[M]`, the (c+1)-th largest a_t of the window; NaN where so many
            points have none.
        threshold: the entity's label-free τ, in units of window scores.
        followed: `[M]` the τ in force before each window, of a threshold that follows
            its stream; None where none was asked for.
    """

    entity: str
    labels: np.ndarray | None  # [N]
    scores: np.ndarray  # [N]
    window_labels: np.ndarray | None  # [M]
    window_scores: np.ndarray  # [M]
    threshold: float
    rolling_tau: np.ndarray | None = None  # [M]


class Extent(NamedTuple):
    """What is measured beyond the metrics of each row."""

    window: int | None = None
    point_adjusted: bool = False


class Sample(NamedTuple):
    """One entity at one level: the K windows, or the K rows, that have a score."""

    entity: str
    level: str
    labels: np.ndarray | None  # [K] bool
    scores: np.ndarray  # [K] float64
    threshold: float
    left_out: int
    curves: dict[str, float]
    curve_reasons: dict[str, str]
    series: OrderedRows | None  # labelled rows in order; None at level window
    point_adjusted: bool


class Measured(NamedTuple):
    """Metrics and alarm rate, NaN where undefined; why; τ (NaN if there is no one τ)."""

    values: dict[str, float]
    reasons: dict[str, str]
    tau: float
    defined: dict[str, int]


def make_sample(entity: EntityScores, level: str, extent: Extent) -> Sample:
    """An entity's scores at a level, without the NaN, and what no τ can change.

    Raises:
        DataError: labels that are neither 0 nor 1, or not one for each score.
    """
    at_window = level == "window"
    scores = np.asarray(entity.window_scores if at_window else entity.scores)
    labels = entity.window_labels if at_window else entity.labels
    scored = ~np.isnan(scores)  # a window without any known point has no score either
    kept = scores[scored].astype(np.float64)  # τ is compared in one precision
    if len(kept):
        as_scores(kept, name=f"{level} scores of {entity.entity}")
    series = None
    if labels is not None:
        labels = _checked_labels(labels, scores, f"{level} labels of {entity.entity}")
        series = in_order(labels, scores) if len(kept) and not at_window else None
        labels = labels[scored]
    curves, curve_reasons = _curve_metrics(labels, kept, level, series, extent.window)
    return Sample(
        entity=entity.entity,
        level=level,
        labels=labels,
        scores=kept,
        threshold=float(entity.threshold),
        left_out=len(scores) - len(kept),
        curves=curves,
        curve_reasons=curve_reasons,
        series=series,
        point_adjusted=extent.point_adjusted,
    )


def relative_scores(entity: EntityScores) -> EntityScores:
    """Window scores in units of the τ then in force, which is 1 for all of them.

    For a threshold that follows its stream, and for nothing else: what is above τ stays
    above it, and curves rank what was out of the ordinary for its time.
    """
    assert entity.rolling_tau is not None
    scores = np.asarray(entity.window_scores, np.float64)
    unknown, positive = np.isnan(scores), scores > 0
    ratio = np.where(unknown, np.nan, 0.0)
    # Anything is above a τ of 0; where both overflowed see below.
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(scores, entity.rolling_tau, out=ratio, where=positive)
    ratio[positive & np.isinf(entity.rolling_tau)] = 0.0
    return entity._replace(window_scores=ratio, threshold=1.0)


def _curve_metrics(
    labels: np.ndarray | None,
    scores: np.ndarray,
    level: str,
    series: OrderedRows | None,
    window: int | None,
) -> tuple[dict[str, float], dict[str, str]]:
    names = CURVE_METRICS + VOLUME_METRICS * (level == "point")
    values = dict.fromkeys(names, math.nan)
    why_none = _nothing(labels, scores, level)
    if labels is None or why_none is not None:
        return values, dict.fromkeys(names, why_none or NO_LABELS)
    reasons = undefined_curve(labels)
    for name, metric in zip(CURVE_METRICS, (auc_roc, average_precision), strict=True):
        if name not in reasons:
            values[name] = metric(labels, scores)
    if series is not None:
        own, why = volume_metrics(series, window)
        values, reasons = values | own, reasons | why
    return values, reasons


def measure(sample: Sample, threshold: str) -> Measured:
    """One entity's metrics with its own τ: the oracle's, or the label-free rule's."""
    tau = own_oracle(sample) if threshold == ORACLE else sample.threshold
    values, reasons = alarm_metrics(sample, sample.scores > tau, tau)
    if sample.level == "point":
        own, why = _event_metrics(sample, tau)
        values, reasons = values | own, reasons | why
    if math.isnan(tau):
        reasons["tau"] = reasons["f1"]
    return Measured(values | sample.curves, reasons | sample.curve_reasons, tau, {})


def _event_metrics(
    sample: Sample, tau: float
) -> tuple[dict[str, float], dict[str, str]]:
    if sample.series is not None and not math.isnan(tau):
        return event_metrics(sample.series, tau, point_adjusted=sample.point_adjusted)
    names = EVENT_METRICS + INFLATED_METRICS * sample.point_adjusted
    why = _nothing(sample.labels, sample.scores, sample.level) or NO_TAU
    return dict.fromkeys(names, math.nan), dict.fromkeys(names, why)


def _nothing(labels: np.ndarray | None, scores: np.ndarray, level: str) -> str | None:
    """Why nothing at all can be measured against labels."""
    if not len(scores):
        return NOTHING[level]
    return NO_LABELS if labels is None else None


def alarm_metrics(
    sample: Sample, alarms: np.ndarray, tau: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Eq. 3-5 and the alarm rate of `[K]` alarms, and why some are NaN."""
    values = dict.fromkeys((*ALARM_METRICS, "alarm_rate"), math.nan)
    if not len(alarms):
        return values, dict.fromkeys(values, NOTHING[sample.level])
    if not math.isnan(tau):
        values["alarm_rate"] = float(alarms.mean())
    if sample.labels is None or math.isnan(tau):
        why = NO_LABELS if sample.labels is None else NO_TAU
        return values, {name: why for name in values if math.isnan(values[name])}
    counts = count(sample.labels, alarms)
    return values | from_counts(counts)._asdict(), undefined(counts)


def own_oracle(sample: Sample) -> float:
    """The oracle's τ; NaN without positive labels."""
    if sample.labels is None or not sample.labels.any():
        return math.nan
    return oracle_threshold(sample.labels, sample.scores).threshold


def _checked_labels(labels: np.ndarray, scores: np.ndarray, name: str) -> np.ndarray:
    if len(labels) != len(scores):
        raise DataError(
            f"`{name}` has {len(labels)} values for {len(scores)} scores: expected one "
            "label for each score."
        )
    return as_labels(labels, name=name) if len(labels) else np.array([], dtype=bool)


class OracleThreshold(NamedTuple):
    """τ of best F1, alarm meaning score > τ, and that F1; NaN without positives."""

    threshold: float
    f1: float


def oracle_threshold(labels: npt.ArrayLike, scores: npt.ArrayLike) -> OracleThreshold:
    """τ of best F1 (Eq. 5) for `[N]` labels and scores, exact over all scores.

    τ is one of the scores or, where alarming on everything is best, the float just
    below the smallest. Of equally good thresholds the largest is taken: fewest alarms.
    O(N log N).

    >>> oracle_threshold([0, 0, 1, 1], [0.1, 0.3, 0.2, 0.9])
    OracleThreshold(threshold=0.1, f1=0.8)
    """
    truth, values = with_scores(labels, scores)
    if not truth.any():
        warnings.warn(
            f"the oracle threshold is NaN: {NO_POSITIVES}",
            UndefinedMetricWarning,
            stacklevel=2,
        )
        return OracleThreshold(float("nan"), float("nan"))
    thresholds, f1 = _candidates(truth, values)
    best = int(np.argmax(f1))
    return OracleThreshold(float(thresholds[best]), float(f1[best]))


def _candidates(
    labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each τ that changes the alarms, in falling order, with its F1."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    # Equal scores raise alarms together: a τ lies only where the score falls.
    last_of_ties = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    alarms = last_of_ties + 1
    hits = np.cumsum(labels[order])[last_of_ties]
    below_all = np.nextafter(ordered[-1], np.array(-np.inf, dtype=ordered.dtype))
    thresholds = np.concatenate(([ordered[0]], ordered[last_of_ties[1:]], [below_all]))
    # First candidate: τ = the largest score, no alarm. No τ lies below a score of -inf.
    alarms, hits = np.append(0, alarms), np.append(0, hits)
    stop = len(alarms) - int(ordered[-1] == -np.inf)
    f1 = 2 * hits / (alarms + np.count_nonzero(labels))
    return thresholds[:stop], f1[:stop]


def in_order(labels: np.ndarray, scores: np.ndarray) -> OrderedRows:
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
    return OrderedRows(labels[kept], quiet[kept])


def volume_metrics(
    series: OrderedRows, window: int | None
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
    series: OrderedRows, tau: float, *, point_adjusted: bool = False
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
