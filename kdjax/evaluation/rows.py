"""The rows of results.json: each model's metrics by threshold, scope and level.

The paper's Table 1 is one cell of this grid: precision, recall and F1 (Eq. 3-5) of
windows. Whether it pools machines, and how it chose τ, it doesn't say, so both
thresholds (`oracle`, and a label-free one) stand beside each other, at both scopes:

- `pooled`: the oracle has one τ over all entities' scores; the label-free rule has each
  entity's own τ; true and false positives and false negatives are summed.
- `per_entity_mean`: the mean of the entities' own metric, each with its own τ, over the
  entities where it is defined.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError
from kdjax.evaluation.metrics import (
    as_labels,
    as_scores,
    auc_roc,
    average_precision,
    count,
    from_counts,
    undefined,
    undefined_curve,
)
from kdjax.evaluation.oracle import oracle_threshold

ORACLE = "oracle"
SCOPES = ("pooled", "per_entity_mean")
LEVELS = ("window", "point")
ALARM_METRICS = ("precision", "recall", "f1")
CURVE_METRICS = ("auc_roc", "average_precision")
METRICS = ALARM_METRICS + CURVE_METRICS
NO_LABELS = "no labels"
POOLED_CURVE = "curve metrics: per_entity_mean only"
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
    """

    entity: str
    labels: np.ndarray | None  # [N]
    scores: np.ndarray  # [N]
    window_labels: np.ndarray | None  # [M]
    window_scores: np.ndarray  # [M]
    threshold: float


class _Sample(NamedTuple):
    """One entity at one level: the K windows, or the K rows, that have a score."""

    entity: str
    level: str
    labels: np.ndarray | None  # [K] bool
    scores: np.ndarray  # [K] float64
    threshold: float
    left_out: int
    curves: dict[str, float]


class _Measured(NamedTuple):
    """Metrics and alarm rate, NaN where undefined; why; τ (NaN if there is no one τ)."""

    values: dict[str, float]
    reasons: dict[str, str]
    tau: float
    defined: dict[str, int]


def result_rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    *,
    method: str = "conformal",
) -> list[dict[str, Any]]:
    """Rows of `results.json` for one model: threshold x scope x level, JSON-able.

    Args:
        model: name of the model, such as `teacher`.
        parameters: how many parameters it has; None where that has no meaning.
        entities: labels and scores, one entry for each entity.
        method: name of the label-free rule behind each `threshold`.

    Returns:
        Eight dicts with `model`, `parameters`, `scope`, `threshold`, `level`, the five
        metrics, `alarm_rate`, `tau` (of the pooled oracle, else None), `entities`,
        `entities_defined` (metric -> how many
        entities are in the mean; empty if pooled) and `notes` (metric ->
        why it is None; `rows`: how many rows had no score).
    """
    without = [entity.entity for entity in entities if not _labelled(entity)]
    if without:
        raise DataError(
            f"{', '.join(without)}: no labels, which metrics need. Give labels for "
            "each entity, or ask for the rows of unlabelled data."
        )
    return _rows(model, parameters, entities, method)


def unlabelled_rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    *,
    method: str = "conformal",
) -> list[dict[str, Any]]:
    """The rows of `result_rows` for data without labels: every metric is None.

    Labels are ignored where there are some. `alarm_rate` needs none, and is given for
    the label-free rule.
    """
    blank = [entity._replace(labels=None, window_labels=None) for entity in entities]
    return _rows(model, parameters, blank, method)


def per_entity_rows(
    model: str, entities: Sequence[EntityScores], *, method: str = "conformal"
) -> list[dict[str, Any]]:
    """Window-level numbers of each entity under both thresholds, JSON-able.

    Dicts with `model`, `entity`, `threshold`, the five metrics, `tau`, `alarm_rate`,
    `windows`, `positives` and `notes` (key -> why it is None).
    """
    _check(entities, method)
    rows = []
    for entity in entities:
        sample = _sample(entity, "window")
        for threshold in (ORACLE, method):
            values, reasons, tau, _ = _measure(sample, threshold)
            if math.isinf(tau):
                reasons["tau"] = "infinite"
            row: dict[str, Any] = {"model": model, "entity": entity.entity}
            row["threshold"] = threshold
            row |= {name: _number(value) for name, value in values.items()}
            row |= {"tau": _number(tau), "windows": len(sample.scores)}
            rows.append(row | {"positives": _positives(sample), "notes": reasons})
    return rows


def _rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    method: str,
) -> list[dict[str, Any]]:
    _check(entities, method)
    samples = {level: [_sample(e, level) for e in entities] for level in LEVELS}
    return [
        {
            "model": model,
            "parameters": parameters,
            "scope": scope,
            "threshold": threshold,
            "level": level,
            **_row(samples[level], threshold, scope),
        }
        for threshold in (ORACLE, method)
        for scope in SCOPES
        for level in LEVELS
    ]


def _row(samples: list[_Sample], threshold: str, scope: str) -> dict[str, Any]:
    summary = _pooled if scope == "pooled" else _mean
    values, reasons, tau, defined = summary(samples, threshold)
    left_out = {s.entity: s.left_out for s in samples if s.left_out}
    if left_out:
        where = ", ".join(f"{entity}: {n}" for entity, n in left_out.items())
        reasons["rows"] = (
            f"left out, without a score: {sum(left_out.values())} ({where})"
        )
    return {
        **{name: _number(value) for name, value in values.items()},
        "tau": _number(tau),
        "entities": len(samples),
        "entities_defined": defined,
        "notes": reasons,
    }


def _pooled(samples: list[_Sample], threshold: str) -> _Measured:
    merged = samples[0]._replace(
        labels=_joined_labels(samples),
        scores=np.concatenate([sample.scores for sample in samples]),
    )
    if threshold == ORACLE:
        taus = [_oracle(merged)] * len(samples)
    else:
        taus = [sample.threshold for sample in samples]
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


def _measure(sample: _Sample, threshold: str) -> _Measured:
    """One entity's metrics with its own τ."""
    tau = _oracle(sample) if threshold == ORACLE else sample.threshold
    values, reasons = _alarm_metrics(sample, sample.scores > tau, tau)
    if sample.labels is not None and len(sample.scores):
        reasons |= undefined_curve(sample.labels)
    else:
        reasons |= dict.fromkeys(CURVE_METRICS, reasons["f1"])
    if math.isnan(tau):
        reasons["tau"] = reasons["f1"]
    return _Measured(values | sample.curves, reasons, tau, {})


def _alarm_metrics(
    sample: _Sample, alarms: np.ndarray, tau: float
) -> tuple[dict[str, float], dict[str, str]]:
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


def _oracle(sample: _Sample) -> float:
    if sample.labels is None or not sample.labels.any():
        return math.nan
    return oracle_threshold(sample.labels, sample.scores).threshold


def _sample(entity: EntityScores, level: str) -> _Sample:
    at_window = level == "window"
    scores = np.asarray(entity.window_scores if at_window else entity.scores)
    labels = entity.window_labels if at_window else entity.labels
    scored = ~np.isnan(scores)  # a window without any known point has no score either
    kept = scores[scored].astype(np.float64)  # τ is compared in one precision
    if len(kept):
        as_scores(kept, name=f"{level} scores of {entity.entity}")
    if labels is not None:
        labels = _checked_labels(labels, scores, f"{level} labels of {entity.entity}")
        labels = labels[scored]
    curves = dict.fromkeys(CURVE_METRICS, math.nan)
    if labels is not None and len(kept):
        missing = undefined_curve(labels)
        for name, metric in zip(
            CURVE_METRICS, (auc_roc, average_precision), strict=True
        ):
            if name not in missing:
                curves[name] = metric(labels, kept)
    left_out = len(scores) - len(kept)
    return _Sample(
        entity.entity, level, labels, kept, float(entity.threshold), left_out, curves
    )


def _checked_labels(labels: np.ndarray, scores: np.ndarray, name: str) -> np.ndarray:
    if len(labels) != len(scores):
        raise DataError(
            f"`{name}` has {len(labels)} values for {len(scores)} scores: expected one "
            "label for each score."
        )
    return as_labels(labels, name=name) if len(labels) else np.array([], dtype=bool)


def _joined_labels(samples: list[_Sample]) -> np.ndarray | None:
    labels = [sample.labels for sample in samples if sample.labels is not None]
    return np.concatenate(labels) if labels else None


def _labelled(entity: EntityScores) -> bool:
    return entity.labels is not None and entity.window_labels is not None


def _positives(sample: _Sample) -> int | None:
    return None if sample.labels is None else int(np.count_nonzero(sample.labels))


def _number(value: float) -> float | None:
    """`value` for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


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
