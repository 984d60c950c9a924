"""Calibrates models on clean rows, and scores their training and test rows.

Training rows should be normal. Users can check the windows of highest score and leave
abnormal rows out with `data.exclude` or `detection.trim`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from kdjax.data import windowing
from kdjax.data.prepared import Entity, Prepared, training_ranges
from kdjax.data.scaler import Scaler
from kdjax.data.series import Ranges, outside
from kdjax.data.splits import window_starts
from kdjax.data.times import format_times, time_text
from kdjax.detection import false_alarms
from kdjax.detection.alarming import latest_scores
from kdjax.detection.calibration import (
    Calibration,
    NothingLeft,
    Rules,
    calibrate,
    point_pieces,
    rule_for,
)
from kdjax.detection.detector import constant_model
from kdjax.detection.false_alarms import FOREIGN, MeasuredRate
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.rolling import rolling_taus, shuffled
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import Rule, find_threshold, needed
from kdjax.evaluation.rows import (
    CLASSIFIER,
    NETWORKS,
    STUDENT,
    EntityScores,
    metric_rows,
)
from kdjax.models.residual import ResidualModel

# Rules compared with the one in use, for the student and the classifier.
COMPARED = ("conformal", "quantile", "pot")
WORST = 5  # windows listed for each entity


class ModelEvaluation(NamedTuple):
    """One model's calibration and its results."""

    model: ResidualModel
    calibration: Calibration
    scores: tuple[EntityScores, ...]  # of the test rows, one entry an entity
    rows: list[dict[str, Any]]  # of `results.json`
    entities: list[dict[str, Any]]  # the same by entity
    rates: list[dict[str, Any]]  # false-alarm rates by entity and rule


class Inspection(NamedTuple):
    """One entity's training rows under one detector."""

    entity: str
    scores: np.ndarray  # [N] window scores as in score tables; none crosses a split
    worst: list[dict[str, Any]]  # windows of highest score that share no row


def evaluate_models(
    models: Mapping[str, ResidualModel],
    prepared: Prepared,
    rules: Rules,
    *,
    min_anomalous_points: int,
    console: Console,
    ready: Mapping[str, Calibration] = MappingProxyType({}),
    held_out: Callable[[ResidualModel], Sequence[ResidualModel] | None] = lambda _: (),
    point_adjusted: bool = False,
    rolling: float = 0.0,
    compared: Sequence[str] = COMPARED,
) -> dict[str, ModelEvaluation]:
    """Calibrates each model on clean rows and scores the test rows; by model name.

    `ready` has calibrations of models that bring their own; `held_out` returns the models
    that score calibration windows instead, see `calibrate`. `min_anomalous_points` rows
    make a window anomalous. A baseline whose residuals are rounding errors is left out.
    `point_adjusted` adds metrics that are inflated; `rolling` is the share of windows
    above the rolling threshold, 0 for none; `compared` are rules whose rates are compared
    with those of the rule in use, for the student and the classifier.
    """
    options: dict[str, Any] = {
        "method": rules.threshold.method,
        "window": prepared.window,
        "point_adjusted": point_adjusted,
    }
    evaluated = {}
    for name, model in models.items():
        console.print(f"{name}: calibrating and scoring")
        try:
            calibration = ready.get(name) or calibrate(
                model, prepared, rules, held_out=held_out(model)
            )
        except NothingLeft as error:
            if name in NETWORKS:
                raise
            console.print(f"{name}: left out: {error}")
            continue
        used = rules._replace(threshold=rule_for(model.kind, rules.threshold))
        scores, rates = [], []
        for place, entity in enumerate(prepared.entities):
            starts, test = test_starts(prepared, entity), entity.test
            rows = windows = np.empty(0)
            labels = of_windows = taus = None
            if test is not None:
                rows, windows = score_rows(
                    model, calibration, place, test.values, starts, prepared, rules
                )
                labels = test.labels
            if labels is not None:
                of_windows = windowing.window_labels(
                    labels,
                    starts,
                    window=prepared.window,
                    min_anomalous_points=min_anomalous_points,
                )
            behind_tau = calibration.threshold_scores[place]
            if rolling and len(behind_tau):  # a fixed τ has none
                taus = rolling_taus(shuffled(behind_tau), windows, rolling)
            tau = calibration.thresholds[place].tau
            own = EntityScores(
                entity.name, labels, rows, of_windows, windows, tau, taus
            )
            scores.append(own)
            rates += false_alarm_rates(
                name, calibration, place, own, starts, prepared=prepared, rules=used,
                compared=compared,
            )  # fmt: skip
        measured = metric_rows(name, model.parameters, scores, **options)
        evaluated[name] = ModelEvaluation(
            model, calibration, tuple(scores), *measured, rates
        )
    return evaluated


def test_starts(prepared: Prepared, entity: Entity) -> np.ndarray:
    """Starts of the test windows that evaluation counts, `[M]`."""
    return window_starts(
        entity.test_spans, window=prepared.window, stride=prepared.stride
    )


def score_rows(
    model: ResidualModel,
    calibration: Calibration,
    place: int,
    values: np.ndarray,
    starts: np.ndarray,
    prepared: Prepared,
    rules: Rules,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of raw rows `[N, D]` and of windows, under one entity's scaler and Gaussian.

    Returns `[N]` mean of a_t over the windows that cover the row, NaN for none, and
    `[M]` window scores. `values` may be a memory map; `starts` `[M]` are first rows.
    """
    scaler = Scaler(*(field[place] for field in calibration.scalers))
    constant = None if calibration.constant is None else calibration.constant[place]
    gaussian = Gaussian(*(field[place] for field in calibration.gaussians))
    model = constant_model(model, scaler, constant)
    sizes = {"window": prepared.window, "batch_size": rules.batch_size}
    pieces = point_pieces(model, gaussian, scaler, values, starts, **sizes)
    sums, found = windowing.empty_sums(len(values)), [np.empty(0, np.float32)]
    for points, at in pieces:
        windowing.add_scores(sums, points, at)
        found.append(window_scores(points, count=rules.allowed_points))
    return windowing.mean_of_sums(sums), np.concatenate(found)


def false_alarm_rates(
    name: str,
    calibration: Calibration,
    place: int,
    scores: EntityScores,
    starts: np.ndarray,
    *,
    prepared: Prepared,
    rules: Rules,
    compared: Sequence[str] = COMPARED,
) -> list[dict[str, Any]]:
    """Wanted and measured false-alarm rates of one entity, an object a rule, JSON-able.

    They are measured on calibration windows, each fold left out in turn, and on test
    windows (first rows `starts` `[M]`) without an anomaly if there are labels. The rule in
    use comes first; for the student and the classifier other rules follow.
    """
    used, window = rules.threshold, prepared.window
    behind_tau = calibration.threshold_scores[place]
    own_starts = calibration.starts[place]
    others = [
        Rule(method, used.rate)
        for method in compared
        if name in (STUDENT, CLASSIFIER) and used.method not in (method, "fixed")
    ]
    known = ~np.isnan(scores.window_scores)
    found: list[dict[str, Any]] = []
    for rule in (used, *others):
        tau = calibration.thresholds[place].tau
        if rule is not used:
            enough = len(behind_tau) >= needed(rule)
            tau = find_threshold(behind_tau, rule).tau if enough else math.nan
        cross = false_alarms.cross_rates(
            calibration.scores[place], own_starts, rule, window=window
        )
        test = None
        if scores.window_labels is not None and not math.isnan(tau):
            clean = known & ~scores.window_labels
            own = scores.window_scores[clean]
            test = false_alarms.measured_rate(
                own, starts[clean], tau, window=window, wanted=cross.wanted
            )
        rate = {
            "model": name,
            "entity": scores.entity,
            "method": rule.method,
            "used": rule is used,
            "wanted": cross.wanted,
            "tau": tau if math.isfinite(tau) else None,
            "left_out": _object(cross),
            "clean_test": None if test is None else _object(test),
        }
        found.append(rate)
    expected = false_alarms.expected_events(calibration.scores[place], used)
    found[0]["expected_events"] = expected and expected._asdict()
    found[0]["drift"] = None
    if len(behind_tau) and known.any():
        # Whether test scores have the distribution of calibration scores.
        (at,) = known.nonzero()
        separate = at[false_alarms.disjoint(starts[at], window)]
        found[0]["drift"] = false_alarms.drift(
            false_alarms.p_values(behind_tau, scores.window_scores[separate]),
            calibration=max(1, len(false_alarms.disjoint(own_starts, window))),
        )._asdict()
    return found


def _object(found: MeasuredRate) -> dict[str, Any]:
    return {
        "rate": None if math.isnan(found.rate) else found.rate,
        "separate_windows": found.disjoint_n,
        "separate_alarms": found.disjoint_alarms,
        "low": found.low,
        "high": found.high,
        "detail": found.detail,
    }


def inspect_training(
    evaluated: ModelEvaluation, prepared: Prepared, rules: Rules
) -> tuple[Inspection, ...]:
    """The training rows of each entity, scored by a calibrated model."""
    inspections = []
    for place, entity in enumerate(prepared.entities):
        spans = np.concatenate(entity.split)
        starts = window_starts(spans, window=prepared.window, stride=prepared.stride)
        starts.sort()
        model, calibration, *_ = evaluated
        values = entity.train.values
        _, windows = score_rows(
            model, calibration, place, values, starts, prepared, rules
        )
        tau = calibration.thresholds[place].tau
        worst = _worst(entity, starts, windows, tau, prepared.window)
        sizes = {"window": prepared.window, "rows": len(values)}
        rows = latest_scores(windows, starts, spans, **sizes)
        inspections.append(Inspection(entity.name, rows, worst))
    return tuple(inspections)


def merge_evaluations(
    name: str,
    evaluations: Sequence[ModelEvaluation],
    *,
    window: int,
    point_adjusted: bool = False,
) -> ModelEvaluation:
    """The results of all groups' models of one name, with rows over all entities.

    Model and calibration are those of the first group.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    scores = tuple(entity for evaluation in evaluations for entity in evaluation.scores)
    rows, _ = metric_rows(
        name,
        first.model.parameters,
        scores,
        method=first.calibration.thresholds[0].method,
        window=window,
        point_adjusted=point_adjusted,
    )
    entities = [row for evaluation in evaluations for row in evaluation.entities]
    rates = [rate for evaluation in evaluations for rate in evaluation.rates]
    return first._replace(scores=scores, rows=rows, entities=entities, rates=rates)


def test_notes(evaluated: ModelEvaluation, prepared: Prepared) -> list[str]:
    """Notes on entities whose test rows differ from the training rows."""
    ranges, foreign = training_ranges(prepared), []
    scored = np.delete(np.arange(len(prepared.channels)), prepared.context)
    for place, entity in enumerate(prepared.entities):
        if entity.test is not None:
            own = Ranges(*(side[place] for side in ranges))
            rows = sum(
                int(outside(own, chunk)[:, scored].any(axis=1).sum())
                for chunk in windowing.chunks(entity.test.values)
            )
            share = rows / len(entity.test.values)
            if share > FOREIGN:
                foreign.append(f"{entity.name} {share:.0%}")
    drifted = [
        r["entity"] for r in evaluated.rates if (r.get("drift") or {}).get("drifted")
    ]
    words = {
        "test rows outside the training range: {}": foreign,
        "scores of test windows have drifted from those of calibration, so that no "
        "false-alarm rate holds there: {}; run kdjax calibrate on recent clean rows for "
        "new thresholds": drifted,
    }
    return [text.format(", ".join(found)) for text, found in words.items() if found]


def _worst(
    entity: Entity, starts: np.ndarray, scores: np.ndarray, tau: float, window: int
) -> list[dict[str, Any]]:
    """The windows of highest score, chosen greedily so that none share a row."""
    listed: list[dict[str, Any]] = []
    taken: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        start, score = int(starts[index]), float(scores[index])
        if len(listed) == WORST or np.isnan(score):
            break
        if any(abs(start - other) < window for other in taken):
            continue
        taken.append(start)
        (part,) = (
            name
            for name, spans in entity.split._asdict().items()
            if ((spans[:, 0] <= start) & (start < spans[:, 1])).any()
        )
        entry = {
            "entity": entity.name,
            "part": part,
            "start": _time(entity, start),
            "end": _time(entity, start + window - 1),
            # An overflow comes first; JSON has no infinity.
            "score": score if np.isfinite(score) else None,
            "above": bool(score > tau),
        }
        listed.append(entry)
    return listed


def _time(entity: Entity, row: int) -> str | float | int:
    series = entity.train
    if series.time is None:
        return row
    instant = series.time[row : row + 1]
    if instant.dtype.kind == "M":
        text = time_text(instant[0], series.form)
        return text if "T" in text else f"{text}T00:00"  # a date ends with the day
    return format_times(instant, series.form).item()
