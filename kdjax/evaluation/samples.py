"""One entity's windows or rows under one model, and what is measured on them.

Reasons go beside all numbers: a metric without a value is NaN, and its name is then a
key of the reasons.
"""

import math
from typing import NamedTuple

import numpy as np

from kdjax.errors import DataError
from kdjax.evaluation.labels import as_labels, as_scores
from kdjax.evaluation.oracle import oracle_threshold
from kdjax.evaluation.points import (
    auc_roc,
    average_precision,
    count,
    from_counts,
    undefined,
    undefined_curve,
)
from kdjax.evaluation.series import (
    EVENT_METRICS,
    INFLATED_METRICS,
    VOLUME_METRICS,
    Series,
    event_metrics,
    in_order,
    volume_metrics,
)

ORACLE = "oracle"
FOLLOWING = "following"
ALARM_METRICS = ("precision", "recall", "f1")
CURVE_METRICS = ("auc_roc", "average_precision")
NO_LABELS = "no labels"
NO_TAU = "no positive labels, so no oracle threshold"
NOTHING = {"window": "no complete window", "point": "no row has a score"}


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
    followed: np.ndarray | None = None  # [M]


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
    series: Series | None  # labelled rows in order; None at level window
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
    assert entity.followed is not None
    scores = np.asarray(entity.window_scores, np.float64)
    unknown, positive = np.isnan(scores), scores > 0
    ratio = np.where(unknown, np.nan, 0.0)
    # Anything is above a τ of 0; where both overflowed see below.
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(scores, entity.followed, out=ratio, where=positive)
    ratio[positive & np.isinf(entity.followed)] = 0.0
    return entity._replace(window_scores=ratio, threshold=1.0)


def _curve_metrics(
    labels: np.ndarray | None,
    scores: np.ndarray,
    level: str,
    series: Series | None,
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
