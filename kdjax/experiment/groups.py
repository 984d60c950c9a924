"""A data set in parts: all entities together, or each with networks of its own.

`entity_mode="per_entity"` makes each entity a part that is prepared, trained, calibrated
and judged as if it were alone; tables then hold all of them again.
"""

import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np

from kdjax.data.prepared import Prepared
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset
from kdjax.detection.calibration import Calibration
from kdjax.detection.gaussian import Gaussian
from kdjax.evaluation.evaluate import ModelEvaluation, table_rows

PER_ENTITY = "per_entity"
ALL = ""  # the name of a data set's only part


def split_groups(dataset: Dataset, entity_mode: str) -> dict[str, Dataset]:
    """The parts by entity, or the data set itself as the part `ALL`."""
    if entity_mode != PER_ENTITY:
        return {ALL: dataset}
    tests = {series.entity: series for series in dataset.test}
    return {
        series.entity: dataset._replace(
            train=(series,), test=(tests[series.entity],) if tests else ()
        )
        for series in dataset.train
    }


def group_name(name: str, part: str) -> str:
    """Such as `teacher/machine-1-1`: a network's name in the log and as a folder."""
    if part == ALL:
        return name
    # No name of an entity leaves its folder.
    return f"{name}/{urllib.parse.quote(part, safe=' ').replace('.', '%2E')}"


def merge_prepared(parts: Sequence[Prepared]) -> Prepared:
    """All entities; the pooled scaler is that of the first part."""
    entities = tuple(entity for part in parts for entity in part.entities)
    return parts[0]._replace(entities=entities)


def merge_evaluations(
    name: str,
    parts: Sequence[ModelEvaluation],
    *,
    window: int,
    point_adjusted: bool = False,
) -> ModelEvaluation:
    """What the parts' models of one name achieved together.

    Args:
        name: of the models.
        parts: each judged on its own entities.
        window: L.
        point_adjusted: whether to add point-adjusted metrics.

    Returns:
        Rows over all entities; the calibration has no pooled entries, and the model is
        that of the first part.
    """
    if len(parts) == 1:
        return parts[0]
    scores = tuple(entity for part in parts for entity in part.scores)
    method = parts[0].calibration.thresholds[0].method
    return ModelEvaluation(
        parts[0].model,
        _join_calibrations([part.calibration for part in parts]),
        scores,
        table_rows(
            name,
            parts[0].model,
            scores,
            method=method,
            window=window,
            point_adjusted=point_adjusted,
        ),
        [row for part in parts for row in part.entities],
        [rate for part in parts for rate in part.rates],
    )


def size_note(parts: Mapping[str, Prepared]) -> list[str]:
    """Says that a table's parameters are those of one network of many."""
    if list(parts) == [ALL]:
        return []
    note = (
        f"entity_mode=per_entity: {len(parts)} teachers and as many students, one an "
        "entity; parameters are those of one of them"
    )
    return [note]


def _join_calibrations(parts: Sequence[Calibration]) -> Calibration:
    # The last entries of each part are its pooled ones.
    scalers = zip(*(part.scalers for part in parts), strict=True)
    gaussians = zip(*(part.gaussians for part in parts), strict=True)
    return Calibration(
        scalers=Scaler(*(_without_last(fields) for fields in scalers)),
        gaussians=Gaussian(*(_without_last(fields) for fields in gaussians)),
        thresholds=tuple(tau for part in parts for tau in part.thresholds[:-1]),
        scores=tuple(own for part in parts for own in part.scores),
        starts=tuple(own for part in parts for own in part.starts),
        threshold_scores=tuple(
            own for part in parts for own in part.threshold_scores[:-1]
        ),
        notes=tuple(note for part in parts for note in part.notes),
        floored={k: v for part in parts for k, v in part.floored.items()},
    )


def _without_last(fields: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([field[:-1] for field in fields])
