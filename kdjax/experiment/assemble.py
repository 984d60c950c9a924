"""Settings of detection as the rules that calibration goes by.

A calibrated model made into a detector with its card, and digests of the data.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.prepared import Entity, Prepared, training_ranges
from kdjax.data.series import Dataset, Ranges, Series
from kdjax.data.times import median_step, seconds_per_row
from kdjax.data.windowing import chunks
from kdjax.detection.calibration import Calibration, Rules
from kdjax.detection.detector import POOLED, Detector
from kdjax.detection.thresholds import Rule, budget_rate, parse_budget
from kdjax.errors import ConfigError
from kdjax.models.residual import ResidualModel

Settings = Mapping[str, Any]


def calibration_rules(settings: Settings, prepared: Prepared) -> Rules:
    """Settings of calibration."""
    detection = settings["detection"]
    fields = ("floor", "ridge", "shrinkage", "scope", "trim", "batch_size")
    return Rules(
        allowed_points=detection["count"],
        threshold=threshold_rule(
            settings, step_seconds=_row_seconds(prepared), stride=prepared.stride
        ),
        **{field: detection[field] for field in fields},
    )


def threshold_rule(settings: Settings, *, step_seconds: float, stride: int) -> Rule:
    """How τ is chosen; a budget of alarms becomes a rate of windows here.

    Args:
        settings: of the run; `data.step_seconds` goes before what the rows say.
        step_seconds: time between rows, 0 where rows have no dates.
        stride: of the windows that calibrate.

    Raises:
        ConfigError: a budget can't be met, or nothing tells how long a row lasts.
    """
    threshold = settings["threshold"]
    method, rate = threshold["method"], threshold["false_alarm_rate"]
    if method == "fixed":
        return Rule(method, rate, threshold["value"])
    if method == "budget":
        per_day = parse_budget(threshold["budget"])
        seconds = settings["data"]["step_seconds"] or step_seconds
        if not seconds:
            raise ConfigError(
                "threshold.method='budget' needs to know how long a row lasts: give a "
                "file with dates and times, or set data.step_seconds."
            )
        rate = budget_rate(per_day, step_seconds=seconds, stride=stride)
    return Rule(method, rate)


def _row_seconds(prepared: Prepared) -> float:
    """Median time between rows, the median over entities; 0 where rows have no dates."""
    seconds = [seconds_per_row(entity.train.time) for entity in prepared.entities]
    return float(np.median(seconds))


# Rows that a detector keeps of its training data, in windows: exported files are checked
# on them wherever the detector goes.
REFERENCE_WINDOWS = 3


def make_detector(
    name: str,
    model: ResidualModel,
    calibration: Calibration,
    prepared: Prepared,
    *,
    settings: Settings,
    digests: Mapping[str, str],
    results: Sequence[Mapping[str, Any]] = (),
    warm_start: Mapping[str, Any] | None = None,
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
        gaussians=calibration.gaussians,
        thresholds=calibration.thresholds,
        card={
            **_card(name, model, calibration, prepared),
            "data": {
                "name": prepared.name,
                "channels": list(prepared.channels),
                "sha256": dict(digests),
            },
            **({"descends_from": dict(warm_start)} if warm_start else {}),
            "results": [dict(row) for row in results],
            "settings": dict(settings),
        },
        ranges=Ranges(low, high),
        calibration=tuple(
            scores.astype(np.float32) for scores in calibration.threshold_scores
        ),
        reference=_reference(prepared),
        step=typical_step(prepared),
        attribution=detection["attribution"],
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
