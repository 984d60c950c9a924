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


def group_name(name: str, part: str) -> str:
    """Such as `teacher/machine-1-1`: a network's name in the log and as a folder."""
    if part == ALL:
        return name
    # Quoted, so that an entity's name can't lead out of the folder.
    return f"{name}/{urllib.parse.quote(part, safe=' ').replace('.', '%2E')}"


def merge_evaluations(
    name: str,
    parts: Sequence[ModelEvaluation],
    *,
    window: int,
    point_adjusted: bool = False,
) -> ModelEvaluation:
    """The results of all groups' models of one name, with rows over all entities.

    The calibration has no pooled entries, and the model is that of the first group.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    scores = tuple(entity for part in parts for entity in part.scores)
    rows = result_rows(
        name,
        first.model.parameters,
        scores,
        method=first.calibration.thresholds[0].method,
        window=window,
        point_adjusted=point_adjusted,
    )
    return ModelEvaluation(
        first.model,
        _merge_calibrations([part.calibration for part in parts]),
        scores,
        rows,
        [row for part in parts for row in part.entities],
        [rate for part in parts for rate in part.rates],
    )


def _merge_calibrations(parts: Sequence[Calibration]) -> Calibration:
    """Without the last entries of each group, which are its pooled ones."""

    def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([array[:-1] for array in arrays])

    return Calibration(
        scalers=Scaler(*map(joined, zip(*(p.scalers for p in parts), strict=True))),
        gaussians=Gaussian(
            *map(joined, zip(*(p.gaussians for p in parts), strict=True))
        ),
        thresholds=tuple(tau for p in parts for tau in p.thresholds[:-1]),
        scores=tuple(own for p in parts for own in p.scores),
        starts=tuple(own for p in parts for own in p.starts),
        threshold_scores=tuple(own for p in parts for own in p.threshold_scores[:-1]),
        notes=tuple(note for p in parts for note in p.notes),
        floored={k: v for p in parts for k, v in p.floored.items()},
    )
