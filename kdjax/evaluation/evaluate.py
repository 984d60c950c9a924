"""Wanted and realised shares of false alarms, by entity and rule, as JSON objects.

A threshold that was chosen on some clean windows promises something on others. Two looks
at what comes of it: calibration windows in turn left out, and, where test rows have
labels, the test windows without an anomaly. Labels only report here.

Each model calibrated on clean rows, then judged on the test rows.
"""

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

# Rules shown beside the one in use, for the detector that goes into production.
COMPARED = ("conformal", "quantile", "pot")
STUDENT = "student"


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
    """One object a rule: the one in use first, for the student others beside it.

    Args:
        name: of the model.
        calibration: of the model.
        place: of the entity.
        scores: of its test windows.
        starts: `[M]` first rows of these windows.
        prepared: the data.
        rules: of calibration.
    """
    own = rules.threshold
    others = [
        Rule(method, own.rate)
        for method in COMPARED
        if name == STUDENT and method != own.method and own.method != "fixed"
    ]
    window = prepared.window
    found = []
    for rule in (own, *others):
        tau = _tau(calibration, place, rule, used=rule is own)
        cross = cross_rates(
            calibration.scores[place], calibration.starts[place], rule, window=window
        )
        test = _on_clean_test(scores, starts, tau, window, cross.wanted)
        found.append(
            {
                "model": name,
                "entity": scores.entity,
                "method": rule.method,
                "used": rule is own,
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


def _on_clean_test(
    scores: EntityScores, starts: np.ndarray, tau: float, window: int, wanted: float
) -> MeasuredRate | None:
    if scores.window_labels is None or math.isnan(tau):
        return None
    clean = ~scores.window_labels & ~np.isnan(scores.window_scores)
    return measured_rate(
        scores.window_scores[clean], starts[clean], tau, window=window, wanted=wanted
    )


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
    """Whether the test windows' scores come from where calibration's did."""
    threshold_scores, own = (
        calibration.threshold_scores[place],
        calibration.starts[place],
    )
    known = np.flatnonzero(~np.isnan(scores.window_scores))
    if not len(threshold_scores) or not len(known):
        return None
    apart = known[disjoint(starts[known], window)]
    found = drift(
        p_values(threshold_scores, scores.window_scores[apart]),
        calibration=max(1, len(disjoint(own, window))),
    )
    return found._asdict()


# Windows whose scores are folded to rows at once.
FOLDED = 8192


class ModelEvaluation(NamedTuple):
    """One model's calibration and its results.

    Attributes:
        model: the residual model.
        calibration: its scalers, Gaussians and thresholds.
        scores: of the test rows, one entry an entity.
        rows: lines of `results.json`.
        entities: the same by entity.
        rates: wanted and realised shares of false alarms by entity and rule.
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
    """Each model calibrated and judged, by its name.

    Args:
        models: residual models by name.
        prepared: the data.
        rules: of calibration.
        min_anomalous_points: anomalous rows that make a window anomalous.
        console: shows progress.
        ready: calibrations of models that bring their own.
        point_adjusted: whether to add point-adjusted metrics, which flatter.
        following: share of windows above a τ that follows its stream; 0 for none.
    """
    labels = [
        _window_labels(prepared, entity, min_anomalous_points)
        for entity in prepared.entities
    ]
    evaluated = {}
    for name, model in models.items():
        console.print(f"{name}: calibrates and scores")
        calibration = ready.get(name) or calibrate(model, prepared, rules)
        scores = tuple(
            _test_scores(model, calibration, prepared, rules, i)._replace(
                window_labels=own
            )
            for i, own in enumerate(labels)
        )
        if rolling:
            scores = tuple(
                own._replace(rolling_tau=_rolling_taus(calibration, i, own, rolling))
                for i, own in enumerate(scores)
            )
        evaluated[name] = _judged(
            name, model, calibration, scores, prepared, rules, point_adjusted
        )
    return evaluated


def _judged(
    name: str,
    model: ResidualModel,
    calibration: Calibration,
    scores: tuple[EntityScores, ...],
    prepared: Prepared,
    rules: Rules,
    point_adjusted: bool,
) -> ModelEvaluation:
    method = rules.threshold.method
    options: dict[str, Any] = {
        "window": prepared.window,
        "point_adjusted": point_adjusted,
    }
    rates = []
    for place, (entity, own) in enumerate(zip(prepared.entities, scores, strict=True)):
        starts = test_starts(prepared, entity)
        rates += false_alarm_rates(
            name, calibration, place, own, starts, prepared=prepared, rules=rules
        )
    return ModelEvaluation(
        model,
        calibration,
        scores,
        table_rows(name, model, scores, method=method, **options),
        per_entity_rows(name, scores, method=method, levels=LEVELS, **options),
        rates,
    )


def table_rows(
    name: str,
    model: ResidualModel,
    scores: Sequence[EntityScores],
    *,
    method: str,
    window: int,
    point_adjusted: bool,
) -> list[dict[str, Any]]:
    """Lines of `results.json` of one model; without numbers where labels are missing."""
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
    """Starts of the windows that evaluation counts."""
    return window_starts(
        entity.test_spans, window=prepared.window, stride=prepared.stride
    )


def _window_labels(
    prepared: Prepared, entity: Entity, min_anomalous_points: int
) -> np.ndarray | None:
    if entity.test is None or entity.test.labels is None:
        return None
    return window_labels(
        entity.test.labels,
        test_starts(prepared, entity),
        window=prepared.window,
        min_anomalous_points=min_anomalous_points,
    )


def _test_scores(
    model: ResidualModel,
    calibration: Calibration,
    prepared: Prepared,
    rules: Rules,
    index: int,
) -> EntityScores:
    """Scores of one entity's test rows, without its window labels."""
    entity = prepared.entities[index]
    tau = calibration.thresholds[index].tau
    if entity.test is None:
        nothing = np.empty(0)
        return EntityScores(entity.name, None, nothing, None, nothing, tau)
    starts = test_starts(prepared, entity)
    found = score_rows(
        model, calibration, index, entity.test.values, starts, prepared.window, rules
    )
    return EntityScores(
        entity=entity.name,
        labels=entity.test.labels,
        scores=found.rows,
        window_labels=None,
        window_scores=found.windows,
        threshold=tau,
    )


def _rolling_taus(
    calibration: Calibration, place: int, scores: EntityScores, share: float
) -> np.ndarray | None:
    """`[M]` τ before each test window, from the scores behind the entity's own τ on."""
    threshold_scores = calibration.threshold_scores[place]
    if not len(threshold_scores):  # a fixed τ has none
        return None
    return rolling_taus(shuffled(threshold_scores), scores.window_scores, share)


class RowScores(NamedTuple):
    """Scores of a series.

    Attributes:
        rows: `[N]` mean of a_t over the windows that cover the row; NaN for none.
        windows: `[M]` window scores.
    """

    rows: np.ndarray
    windows: np.ndarray


def score_rows(
    model: ResidualModel,
    calibration: Calibration,
    place: int,
    values: np.ndarray,
    starts: np.ndarray,
    window: int,
    rules: Rules,
) -> RowScores:
    """Scores of the windows of raw rows, under the Gaussian of one entity.

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
        # Some windows at a time: their row numbers take twice the room of the scores.
        for first in range(0, len(at), FOLDED):
            part = slice(first, first + FOLDED)
            add_scores(sums, points[part], at[part])
        found.append(window_scores(points, count=rules.allowed_points))
    return RowScores(mean_of_sums(sums), np.concatenate(found))
