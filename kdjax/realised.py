"""Wanted and realised shares of false alarms, by entity and rule, as JSON objects.

A threshold that was chosen on some clean windows promises something on others. Two looks
at what comes of it: calibration windows in turn left out, and, where test rows have
labels, the test windows without an anomaly. Labels only report here.
"""

import math
from typing import Any

import numpy as np

from kdjax.data.prepared import Prepared
from kdjax.detection.calibration import Calibration, Rules
from kdjax.detection.rates import (
    Realised,
    cross_rates,
    disjoint,
    drift,
    p_values,
    realised,
)
from kdjax.detection.threshold import Rule, find_threshold, needed
from kdjax.evaluation.rows import EntityScores

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
    behind = calibration.behind[place]
    if len(behind) < needed(rule):
        return math.nan
    return find_threshold(behind, rule).tau


def _on_clean_test(
    scores: EntityScores, starts: np.ndarray, tau: float, window: int, wanted: float
) -> Realised | None:
    if scores.window_labels is None or math.isnan(tau):
        return None
    clean = ~scores.window_labels & ~np.isnan(scores.window_scores)
    return realised(
        scores.window_scores[clean], starts[clean], tau, window=window, wanted=wanted
    )


def _object(found: Realised) -> dict[str, Any]:
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
    behind, own = calibration.behind[place], calibration.starts[place]
    known = np.flatnonzero(~np.isnan(scores.window_scores))
    if not len(behind) or not len(known):
        return None
    apart = known[disjoint(starts[known], window)]
    found = drift(
        p_values(behind, scores.window_scores[apart]),
        calibration=max(1, len(disjoint(own, window))),
    )
    return found._asdict()
