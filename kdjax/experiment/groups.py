"""Entity groups: all entities together, or each with networks of its own.

With `entity_mode="per_entity"` each entity is prepared, trained, calibrated and evaluated
by itself; tables then hold all of them.
"""

import urllib.parse
from collections.abc import Sequence

import numpy as np

from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset
from kdjax.detection.calibration import Calibration
from kdjax.detection.gaussian import Gaussian
from kdjax.evaluation.evaluate import ModelEvaluation
from kdjax.evaluation.rows import result_rows

PER_ENTITY = "per_entity"
ALL = ""  # the name of the only group of a data set


def split_groups(dataset: Dataset, entity_mode: str) -> dict[str, Dataset]:
    """One data set for each entity, or the whole as the group `ALL`."""
    if entity_mode != PER_ENTITY:
        return {ALL: dataset}
    tests = {series.entity: (series,) for series in dataset.test}
    return {
        series.entity: dataset._replace(
            train=(series,), test=tests[series.entity] if tests else ()
        )
        for series in dataset.train
    }


def group_name(name: str, group: str) -> str:
    """Such as `teacher/machine-1-1`: a network's name in the log and as a folder."""
    if group == ALL:
        return name
    # Quoted, so that an entity's name can't lead out of the folder.
    return f"{name}/{urllib.parse.quote(group, safe=' ').replace('.', '%2E')}"


def merge_evaluations(
    name: str,
    evaluations: Sequence[ModelEvaluation],
    *,
    window: int,
    point_adjusted: bool = False,
) -> ModelEvaluation:
    """The results of all groups' models of one name, with rows over all entities.

    The calibration has no pooled entries, and the model is that of the first group.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    scores = tuple(entity for evaluation in evaluations for entity in evaluation.scores)
    rows = result_rows(
        name,
        first.model.parameters,
        scores,
        method=first.calibration.thresholds[0].method,
        window=window,
        point_adjusted=point_adjusted,
    )
    calibrations = [evaluation.calibration for evaluation in evaluations]
    # Without the last entry of each group, which is its pooled one.
    scalers, gaussians = (
        [
            np.concatenate([array[:-1] for array in arrays])
            for arrays in zip(*of_groups, strict=True)
        ]
        for of_groups in (
            [calibration.scalers for calibration in calibrations],
            [calibration.gaussians for calibration in calibrations],
        )
    )
    calibration = Calibration(
        scalers=Scaler(*scalers),
        gaussians=Gaussian(*gaussians),
        thresholds=tuple(tau for c in calibrations for tau in c.thresholds[:-1]),
        scores=tuple(scores for c in calibrations for scores in c.scores),
        starts=tuple(starts for c in calibrations for starts in c.starts),
        threshold_scores=tuple(
            s for c in calibrations for s in c.threshold_scores[:-1]
        ),
        notes=tuple(note for c in calibrations for note in c.notes),
        floored={k: v for c in calibrations for k, v in c.floored.items()},
    )
    entities = [row for evaluation in evaluations for row in evaluation.entities]
    rates = [rate for evaluation in evaluations for rate in evaluation.rates]
    return ModelEvaluation(first.model, calibration, scores, rows, entities, rates)
