"""From a residual model and clean rows to Normals and thresholds, each entity its own.

Entities with too little data borrow: with too few validation rows, the pooled scaler,
Normal and threshold; with too few calibration windows, a threshold from all entities'
calibration scores, each under the Normal that the entity uses.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.prepared import ROWS_PER_CHANNEL, Prepared
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.splits import window_starts
from kdjax.data.windows import has_missing
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
    Rule,
    Threshold,
    find_threshold,
    needed,
    too_few_message,
)
from kdjax.errors import ConfigError, DataError
from kdjax.models.residual import ResidualModel

# Rounds of trimming: a refit without the worst windows can show others as worse.
TRIM_ROUNDS = 2


class View(NamedTuple):
    """An entity's train rows as one scaler shows them.

    Attributes:
        rows: `[N, D]`, scaled.
        validation: starts of its validation windows.
        calibration: starts of its calibration windows.
        scores: `[n]` of the calibration windows, once they are known.
    """

    rows: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray
    scores: np.ndarray = np.empty(0)


class Calibration(NamedTuple):
    """What calibration adds to a residual model; the last entries are the pooled.

    Attributes:
        scalers: `[E + 1, D]` offsets and scales.
        normals: `[E + 1, D]` means, `[E + 1, D, D]` whitening matrices.
        thresholds: E + 1.
        scores: E arrays, each entity's calibration window scores.
        starts: E arrays, the first train rows of these windows.
        behind: E + 1 arrays, the sorted scores that each threshold was chosen on.
        notes: sentences for the report: which entities borrowed what.
        floored: names of each entity's channels whose errors deviate less than the
            floor.
    """

    scalers: Scaler
    normals: Normal
    thresholds: tuple[Threshold, ...]
    scores: tuple[np.ndarray, ...]
    starts: tuple[np.ndarray, ...]
    behind: tuple[np.ndarray, ...]
    notes: tuple[str, ...]
    floored: dict[str, list[str]]


class Rules(NamedTuple):
    """Settings of calibration, as the config has them.

    Attributes:
        allowed_points: points of a window that may lie above τ without an alarm.
        floor, ridge, shrinkage: see `fit_normal`.
        scope: `per_entity`, or `pooled` for one Normal and τ of all entities.
        threshold: how τ is chosen.
        trim: share of each entity's validation windows, the most abnormal, that is left
            out of the error moments, for training data that may be contaminated.
        batch_size: windows scored at once.
    """

    allowed_points: int
    floor: float
    ridge: float
    shrinkage: str
    scope: str
    threshold: Rule
    trim: float
    batch_size: int


def check_enough(prepared: Prepared, rule: Rule) -> None:
    """Refuses, before any training, a rule that no calibration set here can serve."""
    total = sum(len(_starts(prepared, e.split.calibration)) for e in prepared.entities)
    if total < needed(rule):
        raise ConfigError(too_few_message(total, rule))


def calibrate(model: ResidualModel, prepared: Prepared, rules: Rules) -> Calibration:
    """Normals and thresholds of a model on the clean rows of a data set."""
    job = _Job(model, prepared.window, prepared.channels, rules)
    views = [_trimmed(job, _view(prepared, i)) for i in _indices(prepared)]
    moments = [_moments(job, view) for view in views]
    pooled_normal, pooled_scores = _pooled(job, prepared, views, moments)
    pooled_tau = find_threshold(pooled_scores, rules.threshold, source="pooled")
    if rules.scope == "pooled":
        normals = [_normal(job, views, merge_all(moments))] * len(views)
    else:
        normals = [
            pooled_normal if entity.pooled else _normal(job, [view], own)
            for entity, view, own in zip(prepared.entities, views, moments, strict=True)
        ]
    views = [
        _with_known_calibration(job, view, normal)
        for view, normal in zip(views, normals, strict=True)
    ]
    scores = [view.scores for view in views]
    thresholds, notes = _thresholds(prepared, scores, pooled_tau, rules)
    shared = np.concatenate(scores)
    pooled = shared if rules.scope == "pooled" else pooled_scores
    sets = {"shared": shared, "pooled": pooled}
    behind = [
        own if tau.source == "own" else sets[tau.source]
        for own, tau in zip(scores, thresholds, strict=True)
    ]
    scalers = [*(e.scaler for e in prepared.entities), prepared.pooled_scaler]
    return Calibration(
        scalers=Scaler(*map(np.stack, zip(*scalers, strict=True))),
        normals=Normal(*map(np.stack, zip(*normals, pooled_normal, strict=True))),
        thresholds=(*thresholds, pooled_tau),
        scores=tuple(scores),
        starts=tuple(view.calibration for view in views),
        behind=tuple(np.sort(found) for found in (*behind, pooled_scores)),
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
    return View(
        rows=apply_scaler(scaler or entity.scaler, entity.train.values),
        validation=_starts(prepared, entity.split.validation),
        calibration=_starts(prepared, entity.split.calibration),
    )


def _trimmed(job: _Job, view: View) -> View:
    """The view without its most abnormal validation windows.

    As the concentration steps of FAST-MCD (Rousseeuw and Van Driessen, 1999), but with
    whole windows, since the rows of one are abnormal together.
    """
    kept = len(view.validation) - int(job.rules.trim * len(view.validation))
    if kept == len(view.validation):
        return view
    trimmed = view
    for _ in range(TRIM_ROUNDS):
        moments = _moments(job, trimmed)
        if moments.n < ROWS_PER_CHANNEL * len(job.channels):
            break  # Too few rows for a Normal of its own: this entity borrows one.
        normal = _normal(job, [trimmed], moments)
        scores = _scores(job, view, normal, view.validation)
        # Unknown scores (NaN) are the first to go.
        mildest = np.sort(np.argsort(scores, kind="stable")[:kept])
        trimmed = view._replace(validation=view.validation[mildest])
    return trimmed


def _starts(prepared: Prepared, spans: np.ndarray) -> np.ndarray:
    return window_starts(spans, window=prepared.window, stride=prepared.stride)


def _pooled(
    job: _Job, prepared: Prepared, views: Sequence[View], moments: Sequence[Moments]
) -> tuple[Normal, np.ndarray]:
    """Normal and calibration scores for entities that are not known.

    Those of all rows under the pooled scaler.
    """
    if not all(_same(e.scaler, prepared.pooled_scaler) for e in prepared.entities):
        scaler = prepared.pooled_scaler
        views = [_trimmed(job, _view(prepared, i, scaler)) for i in _indices(prepared)]
        moments = [_moments(job, view) for view in views]
    normal = _normal(job, views, merge_all(moments))
    scores = [_with_known_calibration(job, view, normal).scores for view in views]
    return normal, np.concatenate(scores)


def _same(first: Scaler, second: Scaler) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _errors(job: _Job, view: View) -> Iterator[np.ndarray]:
    """The errors of the validation windows' complete rows, `[K, D]` a piece."""
    pieces = error_batches(
        job.model,
        view.rows,
        view.validation,
        window=job.window,
        batch_size=job.rules.batch_size,
    )
    if not has_missing(view.rows):
        return pieces
    return (piece[~np.isnan(piece).any(axis=-1)] for piece in pieces)


def _moments(job: _Job, view: View) -> Moments:
    nothing = moments_of(np.empty((0, len(job.channels))))
    return merge_all([nothing, *map(moments_of, _errors(job, view))])


def _with_known_calibration(job: _Job, view: View, normal: Normal) -> View:
    """The view with the calibration windows that have a score, and their scores."""
    scores = _scores(job, view, normal, view.calibration)
    known = ~np.isnan(scores)
    return view._replace(calibration=view.calibration[known], scores=scores[known])


def _normal(job: _Job, views: Sequence[View], moments: Moments) -> Normal:
    if not moments.n:
        raise DataError(
            "no validation row has a value in every channel, so the errors have no "
            "covariance: remove the channels with the most gaps, or repeat the last "
            "value by data.missing=ffill."
        )
    rules = job.rules
    rows = sum(_distinct(job, view) for view in views)
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


def _distinct(job: _Job, view: View) -> int:
    """Number of distinct complete rows in the validation windows, which overlap."""
    covered = np.zeros(len(view.rows), bool)
    covered[(view.validation[:, None] + np.arange(job.window)).ravel()] = True
    return int((covered & ~np.isnan(view.rows).any(axis=1)).sum())


def _scores(job: _Job, view: View, normal: Normal, starts: np.ndarray) -> np.ndarray:
    """Window scores `[n]`."""
    points = score_scaled(
        job.model,
        normal,
        view.rows,
        starts,
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
    rule = rules.threshold
    shared = find_threshold(np.concatenate(scores), rule, source="shared")
    thresholds = []
    for entity, own in zip(prepared.entities, scores, strict=True):
        if rules.scope == "pooled":
            thresholds.append(shared._replace(source="pooled"))
        elif entity.pooled:
            thresholds.append(pooled_tau)
        elif len(own) < needed(rule):
            thresholds.append(shared)
        else:
            thresholds.append(find_threshold(own, rule))
    details = [
        f"{entity.name}: {threshold.detail}"
        for entity, threshold in zip(prepared.entities, thresholds, strict=True)
        if threshold.detail
    ]
    return thresholds, [*_borrowing_notes(prepared, scores, thresholds), *details]


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
                f"{reason} ({_rank(tau)}): {', '.join(name for name, _ in borrowers)}"
            )
    return notes


def _rank(tau: Threshold) -> str:
    return f"the {tau.rank}-th smallest of {tau.n}" if tau.rank else f"of {tau.n}"
