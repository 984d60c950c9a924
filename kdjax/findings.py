"""What a run's numbers come to: costs, intervals, differences, and which one to take."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.costs import detector_costs
from kdjax.detection.detector import Detector
from kdjax.evaluation.intervals import interval_rows, paired_rows
from kdjax.evaluation.recommendation import agreement, recommend
from kdjax.judgement import Judged

TEACHER = "teacher"


def find(
    results: Mapping[str, Any],
    judged: Mapping[str, Judged],
    detectors: Mapping[str, Detector],
) -> dict[str, Any]:
    """Entries of `results.json` that follow from others.

    Args:
        results: its content so far.
        judged: of all entities, by model name.
        detectors: one of each model, which is run to see what it costs.
    """
    found = {
        "intervals": interval_rows(results["entities"]),
        "paired": paired_rows(results["entities"]),
        "costs": {name: detector_costs(one) for name, one in detectors.items()},
        "agreement": _agreements(judged),
    }
    return found | {"recommendation": recommend({**results, **found})}


def _agreements(judged: Mapping[str, Judged]) -> dict[str, float | None]:
    """How far each model's alarms are the teacher's: Cohen's kappa, None if undefined."""
    alarms = {name: _alarms(one) for name, one in judged.items()}
    kappas = {
        name: agreement(own, alarms[TEACHER]) if len(own) else math.nan
        for name, own in alarms.items()
    }
    return {name: None if math.isnan(k) else k for name, k in kappas.items()}


def _alarms(judged: Judged) -> np.ndarray:
    """Of all entities' test windows, one after the other; none where a score is NaN."""
    own = [entity.window_scores > entity.threshold for entity in judged.scores]
    return np.concatenate(own)
