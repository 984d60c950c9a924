"""A calibrated model made into a detector with its card, and digests of the data."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.channels import Ranges
from kdjax.data.clock import median_step
from kdjax.data.large import chunks
from kdjax.data.prepared import Entity, Prepared, training_ranges
from kdjax.data.series import Dataset, Series
from kdjax.detection.calibration import Calibration
from kdjax.detection.detector import POOLED, Detector
from kdjax.models.residual import ResidualModel

# Rows that a detector keeps of its training data, in windows: exported files are checked
# on them wherever the detector goes.
REFERENCE_WINDOWS = 3

Settings = Mapping[str, Any]


def make_detector(
    name: str,
    model: ResidualModel,
    calibration: Calibration,
    prepared: Prepared,
    *,
    settings: Settings,
    digests: Mapping[str, str],
    results: Sequence[Mapping[str, Any]] = (),
    origin: Mapping[str, Any] | None = None,
) -> Detector:
    """The detector of one model.

    Args:
        name: of the model, such as `student`.
        model: the residual model.
        calibration: from `kdjax.detection.calibration.calibrate`.
        prepared: the data that it was made from.
        settings: of the run.
        digests: SHA-256 of each series.
        results: what the model achieved, for the card.
        origin: what the detector descends from, for the card.
    """
    detection, threshold = settings["detection"], settings["threshold"]
    low, high = training_ranges(prepared)
    return Detector(
        model=model,
        channels=prepared.channels,
        window=prepared.window,
        stride=prepared.stride,
        allowed_points=detection["count"],
        max_gap=settings["data"]["max_gap"],
        entities=tuple(entity.name for entity in prepared.entities),
        scalers=calibration.scalers,
        normals=calibration.normals,
        thresholds=calibration.thresholds,
        card={
            **_card(name, model, calibration, prepared),
            "data": {
                "name": prepared.name,
                "channels": list(prepared.channels),
                "sha256": dict(digests),
            },
            **({"descends_from": dict(origin)} if origin else {}),
            "results": [dict(row) for row in results],
            "settings": dict(settings),
        },
        ranges=Ranges(low, high),
        calibration=tuple(scores.astype(np.float32) for scores in calibration.behind),
        reference=_reference(prepared),
        step=typical_step(prepared),
        blame=detection["blame"],
        min_duration=threshold["min_duration"],
        cooldown=threshold["cooldown"],
    )


def data_digests(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of each series, by its part and entity."""
    return {
        f"{part}/{series.entity}": series_digest(series)
        for part in ("train", "test")
        for series in getattr(dataset, part)
    }


def series_digest(series: Series) -> str:
    """SHA-256 of a series' channels, values, time, labels and excluded spans."""
    digest = hashlib.sha256(repr(series.channels).encode())
    for array in (series.values, series.time, series.labels, series.excluded):
        for chunk in () if array is None else chunks(array):
            digest.update(np.ascontiguousarray(chunk).tobytes())
    return digest.hexdigest()


def typical_step(prepared: Prepared) -> float:
    """Median time between rows, the median over entities; 0 where rows have no time."""
    return float(np.median([median_step(e.train.time) for e in prepared.entities]))


def _card(
    name: str, model: ResidualModel, calibration: Calibration, prepared: Prepared
) -> dict[str, Any]:
    names = [*(entity.name for entity in prepared.entities), POOLED]
    return {
        "title": f"{name} of {prepared.name}",
        "model": {"name": name, "kind": model.kind, "parameters": model.parameters},
        "splits": {entity.name: _rows(entity) for entity in prepared.entities},
        "thresholds": {
            entity: threshold._asdict()
            for entity, threshold in zip(names, calibration.thresholds, strict=True)
        },
        "floored_channels": dict(calibration.floored),
        "never_tested_on": [
            "entities, sampling rates and channels other than those listed here",
            "data recorded after the test rows: recalibrate when normal behaviour moves",
            "more missing values than the training rows had",
        ],
    }


def _rows(entity: Entity) -> dict[str, int]:
    parts = entity.split._asdict().items()
    return {part: int((spans[:, 1] - spans[:, 0]).sum()) for part, spans in parts} | {
        "test": 0 if entity.test is None else len(entity.test.values)
    }


def _reference(prepared: Prepared) -> np.ndarray:
    """The last raw train rows, `[R, D]`, of the first entity that has enough of them."""
    wanted = REFERENCE_WINDOWS * prepared.window
    longest = max(prepared.entities, key=lambda entity: len(entity.train.values))
    for entity in (*prepared.entities, longest):
        if len(entity.train.values) >= wanted or entity is longest:
            return np.array(entity.train.values[-wanted:])
    raise AssertionError("a data set has entities")
