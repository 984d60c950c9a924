"""From a residual model and clean rows to Normals and thresholds, each entity its own.

Entities with too little data borrow: with too few validation rows, the pooled scaler,
Normal and threshold; with too few calibration windows, a threshold from all entities'
calibration scores, each under the Normal that the entity uses.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.prepared import Prepared
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.splits import window_starts
from kdjax.detection.detector import error_batches, score_scaled
from kdjax.detection.moments import Moments, merge_all, moments_of
from kdjax.detection.normal import (
    Normal,
    fit_normal,
    floored_channels,
    ledoit_wolf_shrinkage,
    oas_shrinkage,
)
from kdjax.detection.scores import window_scores
from kdjax.detection.threshold import (
    Threshold,
    conformal,
    needed_scores,
    too_few_message,
)
from kdjax.errors import ConfigError
from kdjax.models.residual import ResidualModel


class View(NamedTuple):
    """An entity's train rows as one scaler shows them.

    Attributes:
        rows: `[N, D]`, scaled.
        validation: starts of its validation windows.
        calibration: starts of its calibration windows.
        distinct: number of distinct rows in the validation windows.
    """

    rows: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray
    distinct: int


class Calibration(NamedTuple):
    """What calibration adds to a residual model; the last entries are the pooled.

    Attributes:
        scalers: `[E + 1, D]` offsets and scales.
        normals: `[E + 1, D]` means, `[E + 1, D, D]` whitening matrices.
        thresholds: E + 1.
        scores: E arrays, each entity's calibration window scores.
        notes: sentences for the report: which entities borrowed what.
        floored: names of each entity's channels whose errors deviate less than the
            floor.
    """

    scalers: Scaler
    normals: Normal
    thresholds: tuple[Threshold, ...]
    scores: tuple[np.ndarray, ...]
    notes: tuple[str, ...]
    floored: dict[str, list[str]]


class Rules(NamedTuple):
    """Settings of calibration, as the config has them.

    Attributes:
        allowed_points: points of a window that may lie above τ without an alarm.
        floor, ridge, shrinkage: see `fit_normal`.
        scope: `per_entity`, or `pooled` for one Normal and τ of all entities.
        false_alarm_rate: wanted share of false alarms among normal windows.
        batch_size: windows scored at once.
    """

    allowed_points: int
    floor: float
    ridge: float
    shrinkage: str
    scope: str
    false_alarm_rate: float
    batch_size: int


def check_enough(prepared: Prepared, *, false_alarm_rate: float) -> None:
    """Refuses, before any training, a rate that no calibration set here can hold."""
    total = sum(len(_starts(prepared, e.split.calibration)) for e in prepared.entities)
    if total < needed_scores(false_alarm_rate):
        raise ConfigError(too_few_message(total, false_alarm_rate))


def calibrate(model: ResidualModel, prepared: Prepared, rules: Rules) -> Calibration:
    """Normals and thresholds of a model on the clean rows of a data set."""
    job = _Job(model, prepared.window, prepared.channels, rules)
    views = [_view(prepared, i) for i in _indices(prepared)]
    moments = [_moments(job, view) for view in views]
    pooled_normal, pooled_tau = _pooled(job, prepared, views, moments)
    if rules.scope == "pooled":
        normals = [_normal(job, views, merge_all(moments))] * len(views)
    else:
        normals = [
            pooled_normal if entity.pooled else _normal(job, [view], own)
            for entity, view, own in zip(prepared.entities, views, moments, strict=True)
        ]
    scores = [
        _scores(job, view, normal) for view, normal in zip(views, normals, strict=True)
    ]
    thresholds, notes = _thresholds(prepared, scores, pooled_tau, rules)
    scalers = [*(e.scaler for e in prepared.entities), prepared.pooled_scaler]
    return Calibration(
        scalers=Scaler(*map(np.stack, zip(*scalers, strict=True))),
        normals=Normal(*map(np.stack, zip(*normals, pooled_normal, strict=True))),
        thresholds=(*thresholds, pooled_tau),
        scores=tuple(scores),
        notes=tuple(notes),
        floored={
            entity.name: floored_channels(
                own, floor=rules.floor, channels=prepared.channels
            )
            for entity, own in zip(prepared.entities, moments, strict=True)
            if own.n
        },
    )


class _Job(NamedTuple):
    model: ResidualModel
    window: int
    channels: tuple[str, ...]
    rules: Rules


def _indices(prepared: Prepared) -> range:
    return range(len(prepared.entities))


def _view(prepared: Prepared, index: int, scaler: Scaler | None = None) -> View:
    entity = prepared.entities[index]
    validation = _starts(prepared, entity.split.validation)
    covered = np.zeros(len(entity.train.values), bool)
    covered[(validation[:, None] + np.arange(prepared.window)).ravel()] = True
    return View(
        rows=apply_scaler(scaler or entity.scaler, entity.train.values),
        validation=validation,
        calibration=_starts(prepared, entity.split.calibration),
        distinct=int(covered.sum()),
    )


def _starts(prepared: Prepared, spans: np.ndarray) -> np.ndarray:
    return window_starts(spans, window=prepared.window, stride=prepared.stride)


def _pooled(
    job: _Job, prepared: Prepared, views: Sequence[View], moments: Sequence[Moments]
) -> tuple[Normal, Threshold]:
    """Normal and τ for entities that are not known: all rows under the pooled scaler."""
    if not all(_same(e.scaler, prepared.pooled_scaler) for e in prepared.entities):
        views = [_view(prepared, i, prepared.pooled_scaler) for i in _indices(prepared)]
        moments = [_moments(job, view) for view in views]
    normal = _normal(job, views, merge_all(moments))
    scores = np.concatenate([_scores(job, view, normal) for view in views])
    rate = job.rules.false_alarm_rate
    return normal, conformal(scores, rate=rate, source="pooled")


def _same(first: Scaler, second: Scaler) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _errors(job: _Job, view: View) -> Iterator[np.ndarray]:
    """The errors of the validation windows, `[B, L, D]` a piece."""
    return error_batches(
        job.model,
        view.rows,
        view.validation,
        window=job.window,
        batch_size=job.rules.batch_size,
    )


def _moments(job: _Job, view: View) -> Moments:
    nothing = moments_of(np.empty((0, len(job.channels))))
    return merge_all([nothing, *map(moments_of, _errors(job, view))])


def _normal(job: _Job, views: Sequence[View], moments: Moments) -> Normal:
    rules = job.rules
    rows = sum(view.distinct for view in views)
    shrinkage = None
    if rules.shrinkage == "oas":
        shrinkage = oas_shrinkage(moments, floor=rules.floor, rows=rows)
    elif rules.shrinkage == "ledoit_wolf":
        pieces = (piece for view in views for piece in _errors(job, view))
        shrinkage = ledoit_wolf_shrinkage(pieces, moments, floor=rules.floor, rows=rows)
    return fit_normal(
        moments,
        floor=rules.floor,
        ridge=rules.ridge,
        channels=job.channels,
        shrinkage=shrinkage,
    )


def _scores(job: _Job, view: View, normal: Normal) -> np.ndarray:
    """Window scores `[n]` of the calibration windows."""
    points = score_scaled(
        job.model,
        normal,
        view.rows,
        view.calibration,
        window=job.window,
        batch_size=job.rules.batch_size,
    )
    return window_scores(points, count=job.rules.allowed_points)


def _thresholds(
    prepared: Prepared,
    scores: Sequence[np.ndarray],
    pooled_tau: Threshold,
    rules: Rules,
) -> tuple[list[Threshold], list[str]]:
    rate = rules.false_alarm_rate
    together = np.concatenate(scores)
    shared = conformal(together, rate=rate, source="shared")
    thresholds = []
    for entity, own in zip(prepared.entities, scores, strict=True):
        if rules.scope == "pooled":
            thresholds.append(shared._replace(source="pooled"))
        elif entity.pooled:
            thresholds.append(pooled_tau)
        elif len(own) < needed_scores(rate):
            thresholds.append(shared)
        else:
            thresholds.append(conformal(own, rate=rate))
    return thresholds, _borrowing_notes(prepared, scores, thresholds)


def _borrowing_notes(
    prepared: Prepared, scores: Sequence[np.ndarray], thresholds: Sequence[Threshold]
) -> list[str]:
    groups = {
        "pooled": "pooled Normal and τ",
        "shared": "too few calibration windows, so τ from all entities' scores",
    }
    notes = []
    for source, reason in groups.items():
        borrowers = [
            (f"{entity.name} ({len(own)} calibration windows)", threshold)
            for entity, own, threshold in zip(
                prepared.entities, scores, thresholds, strict=True
            )
            if threshold.source == source
        ]
        if borrowers:
            tau = borrowers[0][1]
            notes.append(
                f"{reason} (the {tau.rank}-th smallest of {tau.n}): "
                f"{', '.join(name for name, _ in borrowers)}"
            )
    return notes
