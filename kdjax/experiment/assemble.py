"""Rules of calibration from settings, detectors from calibrated models, data digests."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.prepared import Prepared, training_ranges
from kdjax.data.series import Dataset, Ranges, Series
from kdjax.data.times import median_step, seconds_per_row
from kdjax.data.windowing import chunks
from kdjax.detection.alarming import AlarmRule, EventRule
from kdjax.detection.cadence import common_step
from kdjax.detection.calibration import Calibration, Rules
from kdjax.detection.detector import POOLED, Detector
from kdjax.detection.thresholds import CAUTION, Rule, needed, parse_budget
from kdjax.errors import ConfigError
from kdjax.models.residual import ResidualModel

Settings = Mapping[str, Any]

# Training rows that a detector keeps, in windows, to check exported files on.
REFERENCE_WINDOWS = 3


def calibration_rules(settings: Settings, prepared: Prepared) -> Rules:
    """The rules of calibration."""
    detection = settings["detection"]
    fields = ("floor", "ridge", "shrinkage", "scope", "trim", "batch_size")
    seconds = np.median([seconds_per_row(e.train.time) for e in prepared.entities])
    return Rules(
        allowed_points=detection["count"],
        threshold=threshold_rule(
            settings,
            step_seconds=float(seconds),
            stride=prepared.stride,
            window=prepared.window,
        ),
        **{field: detection[field] for field in fields},
    )


def settings_alarm_rule(settings: Settings) -> AlarmRule:
    """When rows above τ become an alarm."""
    return AlarmRule(*(settings["threshold"][name] for name in AlarmRule._fields))


def threshold_rule(
    settings: Settings, *, step_seconds: float, stride: int, window: int
) -> Rule:
    """How τ is chosen, on scores of windows of this stride.

    `data.step_seconds` overrides `step_seconds`, which is 0 if rows have no dates.
    ConfigError if a budget can't be met, or the time between rows is unknown.
    """
    threshold = settings["threshold"]
    seconds = settings["data"]["step_seconds"] or step_seconds
    budget = threshold["method"] == "budget"
    event = EventRule(
        gap=window,
        spacing=1 if budget and threshold["mode"] == "stream" else min(stride, window),
        rows_per_day=24 * 3600 / seconds if seconds else 0.0,
        alarm=settings_alarm_rule(settings),
    )
    rule = Rule(
        threshold["method"],
        threshold["false_alarm_rate"],
        math.nan if threshold["value"] is None else threshold["value"],
        caution=CAUTION,
        overlap=max(1.0, window / stride),
        per_day=parse_budget(threshold["budget"]) if budget else 0.0,
        events=event,
    )
    needed(rule)  # raises for a budget without times
    most = event.rows_per_day / window
    if rule.per_day > most:
        raise ConfigError(
            f"threshold.budget={threshold['budget']!r}: alarms less than "
            f"data.window={window} rows apart are one event, so that a day has at most "
            f"{most:.3g}: give a lower budget, or a smaller data.window."
        )
    return rule


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
    """The detector of the model `name` that was calibrated on `prepared`.

    `digests` (SHA-256 of each series), `results` and `warm_start` (its `descends_from`)
    go into the card.
    """
    detection, threshold = settings["detection"], settings["threshold"]
    entities = tuple(entity.name for entity in prepared.entities)
    taus = [tau._asdict() for tau in calibration.thresholds]
    splits = {}
    for entity in prepared.entities:
        rows = {
            name: int(np.diff(spans, axis=1).sum())
            for name, spans in entity.split._asdict().items()
        }
        tested = 0 if entity.test is None else len(entity.test.values)
        splits[entity.name] = {**rows, "test": tested}
    # The last raw train rows of the first entity that has enough of them.
    wanted = REFERENCE_WINDOWS * prepared.window
    values = [entity.train.values for entity in prepared.entities]
    reference = max(values, key=lambda rows: min(len(rows), wanted))[-wanted:]
    context = [prepared.channels[place] for place in prepared.context]
    card: dict[str, Any] = {
        "title": f"{name} of {prepared.name}",
        "model": {"name": name, "kind": model.kind, "parameters": model.parameters},
        "splits": splits,
        "thresholds": dict(zip((*entities, POOLED), taus, strict=True)),
        "floored_channels": dict(calibration.floored),
        "never_tested_on": [
            "entities, sampling rates and channels other than those listed here",
            "data recorded after the test rows: recalibrate when normal behaviour moves",
            "more missing values than the training rows had",
        ],
        "data": {
            "name": prepared.name,
            "channels": list(prepared.channels),
            "sha256": dict(digests),
            **({"context": context} if context else {}),
            **_clock(prepared.entities[0].train),
        },
        **({"descends_from": dict(warm_start)} if warm_start else {}),
        "results": [dict(row) for row in results],
        "settings": dict(settings),
    }
    return Detector(
        model=model,
        channels=prepared.channels,
        window=prepared.window,
        stride=prepared.stride,
        allowed_points=detection["count"],
        max_gap=settings["data"]["max_gap"],
        entities=entities,
        scalers=calibration.scalers,
        gaussians=calibration.gaussians,
        thresholds=calibration.thresholds,
        card=card,
        ranges=Ranges(*training_ranges(prepared)),
        calibration=tuple(
            scores.astype(np.float32) for scores in calibration.threshold_scores
        ),
        reference=np.array(reference),
        step=common_step([median_step(e.train.time) for e in prepared.entities]),
        attribution=detection["attribution"],
        min_duration=threshold["min_duration"],
        cooldown=threshold["cooldown"],
        clear=threshold["clear"],
        constant=calibration.constant,
        unchanged=_unchanged(prepared) if settings["alarm"]["frozen"] else None,
        no_data=settings["alarm"]["no_data"],
    )


def _unchanged(prepared: Prepared) -> np.ndarray:
    """`Detector.unchanged`; that of all entities if one has too few rows."""
    longest = np.stack([entity.unchanged for entity in prepared.entities])
    pooled = [entity.pooled for entity in prepared.entities]
    longest[pooled] = longest.max(axis=0)
    return np.concatenate([longest, longest.max(axis=0)[None]])


def _clock(series: Series) -> dict[str, Any]:
    """The time column's entries in a card, if there is one."""
    if series.time is None or not series.time_column:
        return {}
    dated = np.issubdtype(series.time.dtype, np.datetime64)
    return {"time_column": series.time_column, "dated": bool(dated)}


def data_digests(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of each series, by `train/ENTITY` and `test/ENTITY`."""
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
