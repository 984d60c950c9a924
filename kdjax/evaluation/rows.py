"""The rows of results.json: each model's metrics by threshold, scope and level.

The paper's Table 1 is one cell of this grid: precision, recall and F1 (Eq. 3-5) of
windows. Whether it pools machines, and how it chose τ, it doesn't say, so both
thresholds (`oracle`, and a label-free one) stand beside each other, at both scopes:

- `pooled`: the oracle has one τ over all entities' scores; the label-free rule has each
  entity's own τ; true and false positives and false negatives are summed.
- `per_entity_mean`: the mean of the entities' own metric, each with its own τ, over the
  entities where it is defined. At level `point` it has also the metrics that look at
  rows in their order (`kdjax.evaluation.samples`); no other cell has their keys.

Where a τ that follows its stream was asked for, `rolling` is a third threshold at level
`window`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdjax.errors import ConfigError, DataError
from kdjax.evaluation.samples import (
    ALARM_METRICS,
    CURVE_METRICS,
    EVENT_METRICS,
    FOLLOWING,
    ORACLE,
    VOLUME_METRICS,
    EntityScores,
    Extent,
    Measured,
    Sample,
    alarm_metrics,
    make_sample,
    measure,
    own_oracle,
    relative_scores,
)

__all__ = [
    "FOLLOWING",
    "LEVELS",
    "METRICS",
    "ORACLE",
    "POINT_METRICS",
    "SCOPES",
    "EntityScores",
    "per_entity_rows",
    "result_rows",
    "unlabelled_rows",
]

SCOPES = ("pooled", "per_entity_mean")
LEVELS = ("window", "point")
METRICS = ALARM_METRICS + CURVE_METRICS  # in each row
POINT_METRICS = VOLUME_METRICS + EVENT_METRICS  # of points, by entity or as their mean
POOLED_CURVE = "curve metrics: per_entity_mean only"


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
            the other metrics of points. Both are inflated: show the values of `random`
            beside them.

    Returns:
        Eight dicts, and two more of `rolling` where entities have it, with `model`,
        `parameters`, `scope`, `threshold`, `level`, the five `METRICS`, `alarm_rate`,
        `tau` (of the pooled oracle, else None), `entities`, `entities_defined` (metric
        -> how many entities are in the mean; empty if pooled) and `notes` (metric ->
        why it is None; `rows`: how many rows had no score). `POINT_METRICS` are in the two of level `point` and scope
        `per_entity_mean` only.
    """
    without = [entity.entity for entity in entities if not _labelled(entity)]
    if without:
        raise DataError(
            f"{', '.join(without)}: no labels, which metrics need. Give labels for "
            "each entity, or ask for the rows of unlabelled data."
        )
    return _rows(model, parameters, entities, method, Extent(window, point_adjusted))


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
    return _rows(model, parameters, blank, method, Extent())


def per_entity_rows(
    model: str,
    entities: Sequence[EntityScores],
    *,
    method: str = "conformal",
    levels: Sequence[str] = ("window",),
    window: int | None = None,
    point_adjusted: bool = False,
) -> list[dict[str, Any]]:
    """Numbers of each entity under both thresholds, JSON-able.

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
    _check_levels(levels)
    extent = Extent(window, point_adjusted)
    samples = [
        (sample, threshold)
        for entity in entities
        for level in levels
        for sample in [make_sample(entity, level, extent)]
        for threshold in (ORACLE, method)
    ]
    samples += [(sample, FOLLOWING) for sample in _following(entities)]
    return [
        {
            "model": model,
            "entity": sample.entity,
            "level": sample.level,
            "threshold": threshold,
            **_own_row(sample, threshold),
        }
        for sample, threshold in samples
    ]


def _own_row(sample: Sample, threshold: str) -> dict[str, Any]:
    values, reasons, tau, _ = measure(sample, threshold)
    if threshold == FOLLOWING:
        tau, reasons["tau"] = math.nan, "it moves"
    if math.isinf(tau):
        reasons["tau"] = "infinite"
    positives = None if sample.labels is None else int(np.sum(sample.labels))
    return {
        **{name: _number(value) for name, value in values.items()},
        "tau": _number(tau),
        f"{sample.level}s": len(sample.scores),
        "positives": positives,
        "notes": reasons,
    }


def _rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    method: str,
    extent: Extent,
) -> list[dict[str, Any]]:
    _check(entities, method)
    samples = {
        level: [make_sample(e, level, extent) for e in entities] for level in LEVELS
    }
    cells = [
        (threshold, scope, level, samples[level])
        for threshold in (ORACLE, method)
        for scope in SCOPES
        for level in LEVELS
    ]
    if rolling := _following(entities):
        cells += [(FOLLOWING, scope, "window", rolling) for scope in SCOPES]
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


def _following(entities: Sequence[EntityScores]) -> list[Sample]:
    """Windows under a τ that follows its stream; none unless all entities have one."""
    if any(entity.rolling_tau is None for entity in entities):
        return []
    return [make_sample(relative_scores(e), "window", Extent()) for e in entities]


def _row(samples: list[Sample], threshold: str, scope: str) -> dict[str, Any]:
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


def _pooled(samples: list[Sample], threshold: str) -> Measured:
    merged = samples[0]._replace(
        labels=_joined_labels(samples),
        scores=np.concatenate([sample.scores for sample in samples]),
    )
    if threshold == ORACLE:
        taus = [own_oracle(merged)] * len(samples)
    else:
        taus = [sample.threshold for sample in samples]
    alarms = [s.scores > tau for s, tau in zip(samples, taus, strict=True)]
    values, reasons = alarm_metrics(merged, np.concatenate(alarms), taus[0])
    return Measured(
        values | dict.fromkeys(CURVE_METRICS, math.nan),
        reasons | dict.fromkeys(CURVE_METRICS, POOLED_CURVE),
        taus[0] if threshold == ORACLE else math.nan,
        {},
    )


def _mean(samples: list[Sample], threshold: str) -> Measured:
    each = [measure(sample, threshold) for sample in samples]
    values, reasons, defined = {}, {}, {}
    for name in each[0].values:
        known = [m.values[name] for m in each if not math.isnan(m.values[name])]
        defined[name] = len(known)
        values[name] = math.fsum(known) / len(known) if known else math.nan
        if not known:
            reasons[name] = "; ".join(dict.fromkeys(m.reasons[name] for m in each))
    return Measured(values, reasons, math.nan, defined)


def _joined_labels(samples: list[Sample]) -> np.ndarray | None:
    labels = [sample.labels for sample in samples if sample.labels is not None]
    return np.concatenate(labels) if labels else None


def _labelled(entity: EntityScores) -> bool:
    return entity.labels is not None and entity.window_labels is not None


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


def _check_levels(levels: Sequence[str]) -> None:
    for level in levels:
        if level not in LEVELS:
            raise ConfigError(f"level {level!r}: expected one of {', '.join(LEVELS)}.")
