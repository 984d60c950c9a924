"""One series in memory made into detectors, and what a detector says of each row."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from kdjax.assembly import data_digests, make_detector
from kdjax.controls import fit_control
from kdjax.data.prepared import Prepared
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import segments
from kdjax.detection.alarms import AlarmRule, alarms
from kdjax.detection.calibration import calibrate
from kdjax.detection.detector import POOLED, Detector, entity_index, scaler_of
from kdjax.detection.table import score_table
from kdjax.detection.threshold import Threshold
from kdjax.distillation import train_networks
from kdjax.errors import ConfigError
from kdjax.fields import CONTROLS
from kdjax.lessons import Scorer, is_taught
from kdjax.models.residual import ResidualModel
from kdjax.pipeline import prepare_dataset
from kdjax.rules import calibration_rules

DETECTORS = ("student", "teacher", *CONTROLS)

Settings = Mapping[str, Any]


class Tuition(NamedTuple):
    """Who teaches a student instead of a network of its own run.

    Attributes:
        teachers: scaled windows `[B, L, D]` to scores of their rows `[B, L]`.
        weights: of the teachers; () to count them the same.
    """

    teachers: tuple[Scorer, ...] = ()
    weights: tuple[float, ...] = ()


UNTAUGHT = Tuition()


def learn(
    series: Series,
    name: str,
    *,
    settings: Settings,
    teacher: Detector | None = None,
    entity: str = POOLED,
    lesson: Tuition = UNTAUGHT,
) -> dict[str, Detector]:
    """The detector `name`, and beside a student its teacher, by name.

    Args:
        series: rows that are believed normal.
        name: one of `DETECTORS`.
        settings: from `kdjax.config.resolve`.
        teacher: one that is trained already. It stays as it is, and the rows are scaled
            as it knows them.
        entity: of the teacher, whose scaler to take.
        lesson: of a student without a network as teacher.

    Raises:
        ConfigError: an unknown name, too few rows for the false-alarm rate, or teachers
            that nobody learns from.
        DataError: too few rows for the window.
    """
    if name not in DETECTORS:
        raise ConfigError(f"detector={name!r} must be one of {', '.join(DETECTORS)}.")
    _check_lesson(lesson, name, settings)
    dataset = Dataset("rows in memory", (series,), ())
    prepared = prepare_dataset(dataset, settings)
    known = {}
    if teacher is not None:
        known = {"teacher": teacher}
        prepared = _rescaled(
            prepared, scaler_of(teacher, entity_index(teacher, entity))
        )
    rules = calibration_rules(settings, prepared)
    made = {
        found: make_detector(
            found,
            model,
            calibrate(model, prepared, rules),
            prepared,
            settings=settings,
            digests=data_digests(dataset),
        )
        for found, model in _models(name, prepared, settings, teacher, lesson).items()
        if found not in known
    }
    return made | known


def verdicts(detector: Detector, series: Series, *, entity: str) -> pd.DataFrame:
    """`score_table`, but with the first window's score in the rows before its end.

    So each row has a `window_score` and may be in alarm, except where no window is.
    """
    table = score_table(detector, series, entity=entity)
    scores = table["window_score"].to_numpy(copy=True)
    stretches = segments(
        series.time,
        len(scores),
        max_gap=detector.max_gap,
        step=detector.step or None,
    )
    for start, stop in stretches:
        end = start + detector.window - 1
        if end < stop:
            scores[start:end] = scores[end]
    return table.assign(
        window_score=scores, alarm=in_alarm(detector, scores, entity=entity)
    )


def in_alarm(detector: Detector, scores: np.ndarray, *, entity: str) -> np.ndarray:
    """Which rows are in alarm by their window scores, `[N] -> [N]` bool."""
    tau = detector.thresholds[entity_index(detector, entity)].tau
    rule = AlarmRule(detector.min_duration, detector.cooldown)
    return alarms(scores > tau, ~np.isnan(scores), rule)


def with_threshold(
    detector: Detector, threshold: Threshold, *, entity: str
) -> Detector:
    """The detector with another τ for one entity, in its card as well."""
    place = entity_index(detector, entity)
    thresholds = list(detector.thresholds)
    thresholds[place] = threshold
    known = {**detector.card.get("thresholds", {}), entity: threshold._asdict()}
    return detector._replace(
        thresholds=tuple(thresholds), card={**detector.card, "thresholds": known}
    )


def _rescaled(prepared: Prepared, scaler: Scaler) -> Prepared:
    entities = tuple(entity._replace(scaler=scaler) for entity in prepared.entities)
    return prepared._replace(entities=entities, pooled_scaler=scaler)


def _models(
    name: str,
    prepared: Prepared,
    settings: Settings,
    teacher: Detector | None,
    lesson: Tuition,
) -> dict[str, ResidualModel]:
    """The model `name`, and beside a student its teacher."""
    if name in CONTROLS:
        return {name: fit_control(name, prepared)}
    with tempfile.TemporaryDirectory() as folder:
        return train_networks(
            prepared,
            settings,
            Path(folder),
            Console(quiet=True),
            names=(name,) if lesson.teachers else ("teacher", name),
            teacher=None if teacher is None else teacher.model,
            scorers=lesson.teachers,
            weights=lesson.weights,
        )


def _check_lesson(lesson: Tuition, name: str, settings: Settings) -> None:
    """Refuses teachers that nobody learns from, and weights that are none of theirs."""
    if lesson.teachers and (name != "student" or not is_taught(settings["distill"])):
        raise ConfigError(
            f"teachers: detector={name!r} with alpha={settings['distill']['alpha']} "
            "learns from none: set detector='student' and alpha above 0."
        )
    weights = lesson.weights
    sound = all(0 <= weight < np.inf for weight in weights) and any(weights)
    if weights and (len(weights) != len(lesson.teachers) or not sound):
        raise ConfigError(
            f"weights={weights!r} must have a finite number from 0 on for each of "
            f"{len(lesson.teachers)} teachers, not all of them 0."
        )
