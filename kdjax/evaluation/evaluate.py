"""Calibrates models on clean rows and evaluates them on the test rows."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from kdjax.data.prepared import Entity, Prepared
from kdjax.data.scaler import Scaler
from kdjax.data.splits import window_starts
from kdjax.data.windowing import (
    add_scores,
    empty_sums,
    mean_of_sums,
    window_labels,
)
from kdjax.detection.calibration import (
    Calibration,
    Rules,
    calibrate,
    point_pieces,
)
from kdjax.detection.false_alarms import (
    MeasuredRate,
    cross_rates,
    disjoint,
    drift,
    measured_rate,
    p_values,
)
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.rolling import rolling_taus, shuffled
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import Rule, find_threshold, needed
from kdjax.evaluation.rows import (
    LEVELS,
    EntityScores,
    per_entity_rows,
    result_rows,
    unlabelled_rows,
)
from kdjax.models.residual import ResidualModel

# Rules compared with the one in use, for the student.
COMPARED = ("conformal", "quantile", "pot")
STUDENT = "student"
# Windows whose scores are added to rows at once: their row numbers take twice the
# memory of the scores.
FOLDED = 8192


class ModelEvaluation(NamedTuple):
    """One model's calibration and its results.

    Attributes:
        model: the residual model.
        calibration: its scalers, Gaussians and thresholds.
        scores: of the test rows, one entry an entity.
        rows: lines of `results.json`.
        entities: the same by entity.
        rates: wanted and measured false-alarm rates by entity and rule.
    """

    model: ResidualModel
    calibration: Calibration
    scores: tuple[EntityScores, ...]
    rows: list[dict[str, Any]]
    entities: list[dict[str, Any]]
    rates: list[dict[str, Any]]


def evaluate_models(
    models: Mapping[str, ResidualModel],
    prepared: Prepared,
    rules: Rules,
    *,
    min_anomalous_points: int,
    console: Console,
    ready: Mapping[str, Calibration] = MappingProxyType({}),
    point_adjusted: bool = False,
    rolling: float = 0.0,
) -> dict[str, ModelEvaluation]:
    """Calibrates each model on clean rows and scores the test rows; by model name.

    Args:
        models: residual models by name.
        prepared: the data.
        rules: of calibration.
        min_anomalous_points: anomalous rows that make a window anomalous.
        console: shows progress.
        ready: calibrations of models that bring their own.
        point_adjusted: whether to add point-adjusted metrics, which are inflated.
        rolling: share of windows above the rolling threshold; 0 for none.
    """
    method, window = rules.threshold.method, prepared.window
    evaluated = {}
    for name, model in models.items():
        console.print(f"{name}: calibrates and scores")
        calibration = ready.get(name) or calibrate(model, prepared, rules)
        scores, rates = [], []
        for place, entity in enumerate(prepared.entities):
            starts = test_starts(prepared, entity)
            own = _test_scores(
                model,
                calibration,
                prepared,
                rules,
                place,
                starts,
                min_anomalous_points=min_anomalous_points,
                rolling=rolling,
            )
            scores.append(own)
            rates += false_alarm_rates(
                name, calibration, place, own, starts, prepared=prepared, rules=rules
            )
        evaluated[name] = ModelEvaluation(
            model,
            calibration,
            tuple(scores),
            table_rows(
                name,
                model,
                scores,
                method=method,
                window=window,
                point_adjusted=point_adjusted,
            ),
            per_entity_rows(
                name,
                scores,
                method=method,
                levels=LEVELS,
                window=window,
                point_adjusted=point_adjusted,
            ),
            rates,
        )
    return evaluated


def table_rows(
    name: str,
    model: ResidualModel,
    scores: Sequence[EntityScores],
    *,
    method: str,
    window: int,
    point_adjusted: bool,
) -> list[dict[str, Any]]:
    """Lines of `results.json` of one model; without metrics where labels are missing."""
    if any(one.window_labels is None for one in scores):
        return unlabelled_rows(name, model.parameters, scores, method=method)
    return result_rows(
        name,
        model.parameters,
        scores,
        method=method,
        window=window,
        point_adjusted=point_adjusted,
    )


def test_starts(prepared: Prepared, entity: Entity) -> np.ndarray:
    """Starts of the test windows that evaluation counts, `[M]`."""
    return window_starts(
        entity.test_spans, window=prepared.window, stride=prepared.stride
    )


def _test_scores(
    model: ResidualModel,
    calibration: Calibration,
    prepared: Prepared,
    rules: Rules,
    place: int,
    starts: np.ndarray,
    *,
    min_anomalous_points: int,
    rolling: float,
) -> EntityScores:
    """Labels and scores of one entity's test rows and windows."""
    entity, window = prepared.entities[place], prepared.window
    tau = calibration.thresholds[place].tau
    scores = EntityScores(entity.name, None, np.empty(0), None, np.empty(0), tau)
    if entity.test is not None:
        values, labels = entity.test.values, entity.test.labels
        rows, windows = score_rows(
            model, calibration, place, values, starts, window, rules
        )
        scores = scores._replace(labels=labels, scores=rows, window_scores=windows)
        if labels is not None:
            scores = scores._replace(
                window_labels=window_labels(
                    labels,
                    starts,
                    window=window,
                    min_anomalous_points=min_anomalous_points,
                )
            )
    behind_tau = calibration.threshold_scores[place]
    if rolling and len(behind_tau):  # a fixed τ has none
        taus = rolling_taus(shuffled(behind_tau), scores.window_scores, rolling)
        scores = scores._replace(rolling_tau=taus)
    return scores


def score_rows(
    model: ResidualModel,
    calibration: Calibration,
    place: int,
    values: np.ndarray,
    starts: np.ndarray,
    window: int,
    rules: Rules,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of raw rows and of their windows, under one entity's scaler and Gaussian.

    Returns `[N]` mean of a_t over the windows that cover the row, NaN for none, and
    `[M]` window scores.

    Args:
        model: the residual model.
        calibration: of the model.
        place: of the entity.
        values: `[N, D]` raw rows; may be a memory map.
        starts: `[M]` first rows of the windows.
        window: L.
        rules: of calibration.
    """
    pieces = point_pieces(
        model,
        Gaussian(*(field[place] for field in calibration.gaussians)),
        Scaler(*(field[place] for field in calibration.scalers)),
        values,
        starts,
        window=window,
        batch_size=rules.batch_size,
    )
    sums, found = empty_sums(len(values)), [np.empty(0, np.float32)]
    for points, at in pieces:
        for first in range(0, len(at), FOLDED):
            part = slice(first, first + FOLDED)
            add_scores(sums, points[part], at[part])
        found.append(window_scores(points, count=rules.allowed_points))
    return mean_of_sums(sums), np.concatenate(found)


def false_alarm_rates(
    name: str,
    calibration: Calibration,
    place: int,
    scores: EntityScores,
    starts: np.ndarray,
    *,
    prepared: Prepared,
    rules: Rules,
) -> list[dict[str, Any]]:
    """Wanted and measured false-alarm rates of one entity, an object a rule, JSON-able.

    They are measured on calibration windows in turn left out, and on the test windows
    without an anomaly where there are labels. The rule in use comes first; for the
    student other rules follow.

    Args:
        name: of the model.
        calibration: of the model.
        place: of the entity.
        scores: of its test windows.
        starts: `[M]` first rows of these windows.
        prepared: the data.
        rules: of calibration.
    """
    used, window = rules.threshold, prepared.window
    compared = [m for m in COMPARED if name == STUDENT and used.method != "fixed"]
    others = [Rule(method, used.rate) for method in compared if method != used.method]
    found = []
    for rule in (used, *others):
        tau = _tau(calibration, place, rule, used=rule is used)
        cross = cross_rates(
            calibration.scores[place], calibration.starts[place], rule, window=window
        )
        test = None
        if scores.window_labels is not None and not math.isnan(tau):
            clean = ~scores.window_labels & ~np.isnan(scores.window_scores)
            test = measured_rate(
                scores.window_scores[clean],
                starts[clean],
                tau,
                window=window,
                wanted=cross.wanted,
            )
        found.append(
            {
                "model": name,
                "entity": scores.entity,
                "method": rule.method,
                "used": rule is used,
                "wanted": cross.wanted,
                "tau": tau if math.isfinite(tau) else None,
                "left_out": _object(cross),
                "clean_test": None if test is None else _object(test),
            }
        )
    found[0]["drift"] = _drift(calibration, place, scores, starts, window)
    return found


def _tau(calibration: Calibration, place: int, rule: Rule, *, used: bool) -> float:
    if used:
        return calibration.thresholds[place].tau
    threshold_scores = calibration.threshold_scores[place]
    if len(threshold_scores) < needed(rule):
        return math.nan
    return find_threshold(threshold_scores, rule).tau


def _object(found: MeasuredRate) -> dict[str, Any]:
    return {
        "rate": None if math.isnan(found.rate) else found.rate,
        "separate_windows": found.disjoint_n,
        "separate_alarms": found.disjoint_alarms,
        "low": found.low,
        "high": found.high,
        "detail": found.detail,
    }


def _drift(
    calibration: Calibration,
    place: int,
    scores: EntityScores,
    starts: np.ndarray,
    window: int,
) -> dict[str, Any] | None:
    """Whether test scores have the distribution of calibration scores."""
    threshold_scores = calibration.threshold_scores[place]
    known = np.flatnonzero(~np.isnan(scores.window_scores))
    if not len(threshold_scores) or not len(known):
        return None
    separate = known[disjoint(starts[known], window)]
    found = drift(
        p_values(threshold_scores, scores.window_scores[separate]),
        calibration=max(1, len(disjoint(calibration.starts[place], window))),
    )
    return found._asdict()
