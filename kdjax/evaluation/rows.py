"""The rows of results.json: each model's metrics by threshold, scope and level.

The paper's Table 1 is one cell of this grid: precision, recall and F1 (Eq. 3-5) of
windows. The paper does not state how τ was chosen nor whether machines are pooled, so
the rows have two thresholds (`oracle`, which uses the test labels, and a label-free
one) and two scopes:

- `pooled`: the oracle has one τ over all entities' scores; the label-free rule has each
  entity's own τ; true and false positives and false negatives are summed.
- `per_entity_mean`: the mean of the entities' own metric, each with its own τ, over the
  entities where it is defined. At level `point` it also has the metrics that depend on
  the order of rows: events, buffers, delays.

`rolling` is a third threshold at level `window` where entities have one.

A metric without a value is NaN (None in the rows), with its reason in `notes`. Rows
without a score are left out; distances and delays count the rows that have one.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError
from kdjax.metrics.affiliations import affiliation_of
from kdjax.metrics.checks import (
    as_labels,
    as_scores,
    nan_reasons,
    one_class,
    why_undefined,
)
from kdjax.metrics.events import delay_of, delays_of, event_f1_of, recall_of
from kdjax.metrics.point_adjusted import adjusted_f1_of
from kdjax.metrics.points import (
    auc_roc,
    average_precision,
    count,
    from_counts,
    oracle_threshold,
    undefined,
    undefined_curve,
)
from kdjax.metrics.ranges import ranges_of
from kdjax.metrics.volumes import volumes_of

ORACLE = "oracle"
ROLLING = "rolling"
SCOPES = ("pooled", "per_entity_mean")
LEVELS = ("window", "point")

ALARM_METRICS = ("precision", "recall", "f1")
CURVE_METRICS = ("auc_roc", "average_precision")
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
METRICS = ALARM_METRICS + CURVE_METRICS  # in each row
POINT_METRICS = VOLUME_METRICS + EVENT_METRICS  # of points, by entity or as their mean
PA_K = 20  # percent, as in the paper of PA%K

NO_LABELS = "no labels"
NO_TAU = "no positive labels, so no oracle threshold"
NO_WINDOW = "no window was given"
NO_SCORES = {"window": "no complete window", "point": "no row has a score"}
POOLED_CURVE = "curve metrics: per_entity_mean only"

Values = dict[str, float]
Reasons = dict[str, str]


class EntityScores(NamedTuple):
    """One entity's labels and scores under one model.

    Attributes:
        entity: its name.
        labels: `[N]` bool, True in anomalous rows; None where there are no labels.
        scores: `[N]`, mean of a_t (Eq. 1) over the windows that cover the row; NaN
            where none does.
        window_labels: `[M]` bool; None where there are no labels.
        window_scores: `[M]`, the (c+1)-th largest a_t of the window; NaN where fewer
            points have a score.
        threshold: the entity's label-free τ, in units of window scores.
        rolling_tau: `[M]`, the rolling τ in force before each window; None without one.
    """

    entity: str
    labels: np.ndarray | None  # [N]
    scores: np.ndarray  # [N]
    window_labels: np.ndarray | None  # [M]
    window_scores: np.ndarray  # [M]
    threshold: float
    rolling_tau: np.ndarray | None = None  # [M]


class _Sample(NamedTuple):
    """One entity at one level: the K windows or rows that have a score."""

    entity: str
    level: str
    labels: np.ndarray | None  # [K] bool
    scores: np.ndarray  # [K] float64
    threshold: float
    left_out: int
    curves: tuple[Values, Reasons]  # metrics that no τ changes
    # Labels and scores from `in_order`; None at level window or without labels.
    ordered: tuple[np.ndarray, np.ndarray] | None
    point_adjusted: bool


class _Measured(NamedTuple):
    """Metrics, NaN where undefined; why; τ (NaN if there is no one τ)."""

    values: Values
    reasons: Reasons
    tau: float
    defined: dict[str, int]


def result_rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    *,
    method: str = "conformal",
    window: int | None = None,
    point_adjusted: bool = False,
) -> list[dict[str, Any]]:
    """Rows of `results.json` for one model: threshold x scope x level, JSON-able.

    Args:
        model: name of the model, such as `teacher`.
        parameters: how many parameters it has; None where that has no meaning.
        entities: labels and scores, one entry for each entity.
        method: name of the label-free rule behind each `threshold`.
        window: L in rows, the widest buffer of `vus_roc` and `vus_pr`; None leaves them
            undefined.
        point_adjusted: whether to add `point_adjusted_f1` and `pa_k_f1` (K = 20 %) to
            the metrics of points. Both are inflated: compare with those of `random`.

    Returns:
        Eight dicts, and two more of `rolling` where entities have it, with `model`,
        `parameters`, `scope`, `threshold`, `level`, the five `METRICS`, `alarm_rate`,
        `tau` (of the pooled oracle, else None), `entities`, `entities_defined` (metric
        -> how many entities are in the mean; empty if pooled) and `notes` (metric ->
        why it is None; `rows`: how many rows had no score). `POINT_METRICS` are in the
        two of level `point` and scope `per_entity_mean` only.
    """
    without = [
        e.entity for e in entities if e.labels is None or e.window_labels is None
    ]
    if without:
        raise DataError(
            f"{', '.join(without)}: no labels, which metrics need. Give labels for "
            "each entity, or ask for the rows of unlabelled data."
        )
    return _rows(model, parameters, entities, method, window, point_adjusted)


def unlabelled_rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    *,
    method: str = "conformal",
) -> list[dict[str, Any]]:
    """The rows of `result_rows` without labels: only `alarm_rate` has a value.

    Labels are ignored where there are some.
    """
    blank = [entity._replace(labels=None, window_labels=None) for entity in entities]
    return _rows(model, parameters, blank, method, None, False)


def per_entity_rows(
    model: str,
    entities: Sequence[EntityScores],
    *,
    method: str = "conformal",
    levels: Sequence[str] = ("window",),
    window: int | None = None,
    point_adjusted: bool = False,
) -> list[dict[str, Any]]:
    """Numbers of each entity under each threshold, JSON-able.

    Args:
        model: name of the model.
        entities: labels and scores, one entry for each entity.
        method: name of the label-free rule behind each `threshold`.
        levels: `window`, `point` or both.
        window: as in `result_rows`.
        point_adjusted: as in `result_rows`.

    Returns:
        Dicts by entity, level and threshold with `model`, `entity`, `level`,
        `threshold`, the five `METRICS` (at level `point` `POINT_METRICS` too), `tau`,
        `alarm_rate`, `windows` or `points` that have a score, `positives` among them,
        and `notes` (key -> why it is None).
    """
    _check(entities, method)
    for level in levels:
        if level not in LEVELS:
            raise ConfigError(f"level {level!r}: expected one of {', '.join(LEVELS)}.")
    samples = [
        (sample, threshold)
        for entity in entities
        for level in levels
        for sample in [_sample(entity, level, window, point_adjusted)]
        for threshold in (ORACLE, method)
    ]
    samples += [(sample, ROLLING) for sample in _rolling_samples(entities)]
    return [
        {
            "model": model,
            "entity": sample.entity,
            "level": sample.level,
            "threshold": threshold,
            **_entity_row(sample, threshold),
        }
        for sample, threshold in samples
    ]


def _entity_row(sample: _Sample, threshold: str) -> dict[str, Any]:
    values, reasons, tau, _ = _measure(sample, threshold)
    if threshold == ROLLING:
        tau, reasons["tau"] = math.nan, "it moves"
    if math.isinf(tau):
        reasons["tau"] = "infinite"
    return {
        **{name: _number(value) for name, value in values.items()},
        "tau": _number(tau),
        f"{sample.level}s": len(sample.scores),
        "positives": None if sample.labels is None else int(sample.labels.sum()),
        "notes": reasons,
    }


def _rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    method: str,
    window: int | None,
    point_adjusted: bool,
) -> list[dict[str, Any]]:
    _check(entities, method)
    samples = {
        level: [_sample(entity, level, window, point_adjusted) for entity in entities]
        for level in LEVELS
    }
    cells = [
        (threshold, scope, level, samples[level])
        for threshold in (ORACLE, method)
        for scope in SCOPES
        for level in LEVELS
    ]
    if rolling := _rolling_samples(entities):
        cells += [(ROLLING, scope, "window", rolling) for scope in SCOPES]
    return [
        {
            "model": model,
            "parameters": parameters,
            "scope": scope,
            "threshold": threshold,
            "level": level,
            **_row(own, threshold, scope),
        }
        for threshold, scope, level, own in cells
    ]


def _row(samples: list[_Sample], threshold: str, scope: str) -> dict[str, Any]:
    summary = _pooled if scope == "pooled" else _mean
    values, reasons, tau, defined = summary(samples, threshold)
    left_out = {s.entity: s.left_out for s in samples if s.left_out}
    if left_out:
        where = ", ".join(f"{entity}: {n}" for entity, n in left_out.items())
        total = sum(left_out.values())
        reasons["rows"] = f"left out, without a score: {total} ({where})"
    return {
        **{name: _number(value) for name, value in values.items()},
        "tau": _number(tau),
        "entities": len(samples),
        "entities_defined": defined,
        "notes": reasons,
    }


def _pooled(samples: list[_Sample], threshold: str) -> _Measured:
    labels = [sample.labels for sample in samples if sample.labels is not None]
    merged = samples[0]._replace(
        labels=np.concatenate(labels) if labels else None,
        scores=np.concatenate([sample.scores for sample in samples]),
    )
    taus = [sample.threshold for sample in samples]
    if threshold == ORACLE:
        taus = [_oracle_tau(merged)] * len(samples)
    alarms = [s.scores > tau for s, tau in zip(samples, taus, strict=True)]
    values, reasons = _alarm_metrics(merged, np.concatenate(alarms), taus[0])
    return _Measured(
        values | dict.fromkeys(CURVE_METRICS, math.nan),
        reasons | dict.fromkeys(CURVE_METRICS, POOLED_CURVE),
        taus[0] if threshold == ORACLE else math.nan,
        {},
    )


def _mean(samples: list[_Sample], threshold: str) -> _Measured:
    each = [_measure(sample, threshold) for sample in samples]
    values, reasons, defined = {}, {}, {}
    for name in each[0].values:
        known = [m.values[name] for m in each if not math.isnan(m.values[name])]
        defined[name] = len(known)
        values[name] = math.fsum(known) / len(known) if known else math.nan
        if not known:
            reasons[name] = "; ".join(dict.fromkeys(m.reasons[name] for m in each))
    return _Measured(values, reasons, math.nan, defined)


def _check(entities: Sequence[EntityScores], method: str) -> None:
    if not entities:
        raise DataError("`entities` is empty: expected at least one entity's scores.")
    if method == ORACLE:
        raise ConfigError(
            "`method` is 'oracle', which looks at the labels: expected the name of "
            "the label-free rule, such as 'conformal'."
        )
    for entity in entities:
        if math.isnan(entity.threshold):
            raise DataError(
                f"the threshold of {entity.entity} is NaN, under which nothing would "
                "ever raise an alarm: expected a number. Calibrate the detector first."
            )


def _number(value: float) -> float | None:
    """`value` for JSON, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


# One entity's scores and what is measured on them.


def _sample(
    entity: EntityScores, level: str, window: int | None, point_adjusted: bool
) -> _Sample:
    """An entity's scores at a level, without the NaN, and the metrics without a τ.

    Raises:
        DataError: labels that are neither 0 nor 1, or not one for each score.
    """
    at_window = level == "window"
    scores = np.asarray(entity.window_scores if at_window else entity.scores)
    labels = entity.window_labels if at_window else entity.labels
    scored = ~np.isnan(scores)
    known = scores[scored].astype(np.float64)  # τ is compared in one precision
    if len(known):
        as_scores(known, name=f"{level} scores of {entity.entity}")
    ordered = None
    if labels is not None:
        labels = _checked_labels(labels, scores, f"{level} labels of {entity.entity}")
        ordered = None if at_window or not len(known) else in_order(labels, scores)
        labels = labels[scored]
    values, reasons = _curve_metrics(labels, known, level)
    if not at_window:
        own, why = _volume_metrics(ordered, window, reasons)
        values, reasons = values | own, reasons | why
    return _Sample(
        entity.entity,
        level,
        labels,
        known,
        float(entity.threshold),
        len(scores) - len(known),
        (values, reasons),
        ordered,
        point_adjusted,
    )


def _checked_labels(labels: np.ndarray, scores: np.ndarray, name: str) -> np.ndarray:
    if len(labels) != len(scores):
        raise DataError(
            f"`{name}` has {len(labels)} values for {len(scores)} scores: expected one "
            "label for each score."
        )
    return as_labels(labels, name=name) if len(labels) else np.array([], dtype=bool)


def in_order(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the rows that have a score, `[N], [N] -> [K], [K]`.

    Where leaving out rows without a score would join two events, one normal row between
    them stays in, with score -inf.

    >>> labels = np.array([True, False, False, True])
    >>> in_order(labels, np.array([1.0, np.nan, np.nan, 2.0]))[0].tolist()
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
    return labels[kept], quiet[kept]


def _rolling_samples(entities: Sequence[EntityScores]) -> list[_Sample]:
    """Windows under a rolling τ; none unless all entities have one."""
    if any(entity.rolling_tau is None for entity in entities):
        return []
    return [_sample(relative_scores(e), "window", None, False) for e in entities]


def relative_scores(entity: EntityScores) -> EntityScores:
    """Window scores as multiples of the rolling τ, with threshold 1."""
    assert entity.rolling_tau is not None
    scores = np.asarray(entity.window_scores, np.float64)
    positive = scores > 0
    ratio = np.where(np.isnan(scores), np.nan, 0.0)
    # A positive score is above a τ of 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(scores, entity.rolling_tau, out=ratio, where=positive)
    ratio[positive & np.isinf(entity.rolling_tau)] = 0.0
    return entity._replace(window_scores=ratio, threshold=1.0)


def _measure(sample: _Sample, threshold: str) -> _Measured:
    """One entity's metrics with its own τ: the oracle's, or the label-free rule's."""
    tau = _oracle_tau(sample) if threshold == ORACLE else sample.threshold
    values, reasons = _alarm_metrics(sample, sample.scores > tau, tau)
    if sample.level == "point":
        own, why = _event_metrics(sample, tau)
        values, reasons = values | own, reasons | why
    if math.isnan(tau):
        reasons["tau"] = reasons["f1"]
    curves, why = sample.curves
    return _Measured(values | curves, reasons | why, tau, {})


def _oracle_tau(sample: _Sample) -> float:
    """τ of best F1; NaN without positive labels."""
    if sample.labels is None or not sample.labels.any():
        return math.nan
    return oracle_threshold(sample.labels, sample.scores).threshold


def _why_nothing(
    labels: np.ndarray | None, scores: np.ndarray, level: str
) -> str | None:
    """Why no metric at all has a value."""
    if not len(scores):
        return NO_SCORES[level]
    return NO_LABELS if labels is None else None


def _all_nan(names: Sequence[str], why: str) -> tuple[Values, Reasons]:
    return dict.fromkeys(names, math.nan), dict.fromkeys(names, why)


def _curve_metrics(
    labels: np.ndarray | None, scores: np.ndarray, level: str
) -> tuple[Values, Reasons]:
    why = _why_nothing(labels, scores, level)
    if labels is None or why:
        return _all_nan(CURVE_METRICS, why or NO_LABELS)
    reasons = undefined_curve(labels)
    metrics = dict(zip(CURVE_METRICS, (auc_roc, average_precision), strict=True))
    values = {
        name: math.nan if name in reasons else metric(labels, scores)
        for name, metric in metrics.items()
    }
    return values, reasons


def _volume_metrics(
    ordered: tuple[np.ndarray, np.ndarray] | None,
    window: int | None,
    curve_reasons: Reasons,
) -> tuple[Values, Reasons]:
    """VUS-ROC and VUS-PR; without rows for the reason of the other curves."""
    if ordered is None:
        return _all_nan(VOLUME_METRICS, curve_reasons["auc_roc"])
    if window is None:
        return _all_nan(VOLUME_METRICS, NO_WINDOW)
    if why := one_class(ordered[0]):
        return _all_nan(VOLUME_METRICS, why)
    found = volumes_of(*ordered, window=window)
    return dict(zip(VOLUME_METRICS, found, strict=True)), {}


def _alarm_metrics(
    sample: _Sample, alarms: np.ndarray, tau: float
) -> tuple[Values, Reasons]:
    """Eq. 3-5 and the alarm rate of `[K]` alarms."""
    names = (*ALARM_METRICS, "alarm_rate")
    if not len(alarms):
        return _all_nan(names, NO_SCORES[sample.level])
    if math.isnan(tau):
        return _all_nan(names, NO_LABELS if sample.labels is None else NO_TAU)
    rate = {"alarm_rate": float(alarms.mean())}
    if sample.labels is None:
        values, reasons = _all_nan(ALARM_METRICS, NO_LABELS)
        return values | rate, reasons
    counts = count(sample.labels, alarms)
    return from_counts(counts)._asdict() | rate, undefined(counts)


def _event_metrics(sample: _Sample, tau: float) -> tuple[Values, Reasons]:
    """Metrics of rows in their order under τ."""
    names = EVENT_METRICS + INFLATED_METRICS * sample.point_adjusted
    if sample.ordered is None or math.isnan(tau):
        why = _why_nothing(sample.labels, sample.scores, sample.level) or NO_TAU
        return _all_nan(names, why)
    truth, scores = sample.ordered
    alarms = scores > tau
    delays = delays_of(truth, alarms)
    found = [
        *affiliation_of(truth, alarms),
        *ranges_of(truth, alarms),
        recall_of(delays),
        event_f1_of(truth, alarms),
        delay_of(delays),
    ]
    if sample.point_adjusted:
        found += [adjusted_f1_of(truth, alarms, k=k) for k in (0, PA_K)]
    values = dict(zip(names, found, strict=True))
    return values, nan_reasons(values, why_undefined(truth, alarms))
