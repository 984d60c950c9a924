"""Calibration of a residual model on clean rows: Gaussians and thresholds per entity.

An entity with too few validation rows uses the pooled scaler, Gaussian and threshold.
One with too few calibration windows gets a threshold from the calibration scores of all
entities, each under the Gaussian that its entity uses.

Several processes (`kdjax.training.hosts`) share the validation windows; each scores all
calibration windows.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.prepared import ROWS_PER_CHANNEL, Entity, Prepared
from kdjax.data.scaler import Scaler
from kdjax.data.splits import window_starts
from kdjax.data.windowing import chunks, has_missing, scaled_pieces
from kdjax.detection.detector import residual_batches, score_scaled, scoring_batch
from kdjax.detection.gaussian import (
    Gaussian,
    Moments,
    floored_channels,
    gaussian_from_moments,
    ledoit_wolf_shrinkage,
    merge_all,
    merge_shares,
    moments_of,
    oas_shrinkage,
)
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import (
    Rule,
    Threshold,
    entity_thresholds,
    find_threshold,
    needed,
    too_few_message,
)
from kdjax.errors import ConfigError, DataError
from kdjax.models.residual import ResidualModel, residual_names
from kdjax.training import hosts

# Rounds of trimming: a new fit without the worst windows may rank others as worse.
TRIM_ROUNDS = 2


class Calibration(NamedTuple):
    """The calibration of a residual model; the last entries are the pooled ones.

    Attributes:
        scalers: `[E + 1, D]` offsets and scales.
        gaussians: `[E + 1, F]` means, `[E + 1, F, F]` whitening matrices.
        thresholds: E + 1.
        scores: E arrays, each entity's calibration window scores.
        starts: E arrays, the first train rows of these windows.
        threshold_scores: E + 1 arrays, the sorted scores each threshold was chosen on.
        notes: which entities use pooled or shared parts.
        floored: names of each entity's residuals with a deviation below the floor.
    """

    scalers: Scaler
    gaussians: Gaussian
    thresholds: tuple[Threshold, ...]
    scores: tuple[np.ndarray, ...]
    starts: tuple[np.ndarray, ...]
    threshold_scores: tuple[np.ndarray, ...]
    notes: tuple[str, ...]
    floored: dict[str, list[str]]


class Rules(NamedTuple):
    """Options of calibration.

    Attributes:
        allowed_points: points of a window that may lie above τ without an alarm.
        floor, ridge, shrinkage: see `gaussian_from_moments`.
        scope: `per_entity`, or `pooled` for one Gaussian and τ of all entities.
        threshold: how τ is chosen.
        trim: share of each entity's validation windows, the most abnormal, that is left
            out of the moments, for training data that may hold anomalies.
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


class PointScores(NamedTuple):
    """Point scores of some windows: a_t `[m, L]` and their first rows `[m]`."""

    points: np.ndarray
    starts: np.ndarray


class _Job(NamedTuple):
    model: ResidualModel
    window: int
    width: int  # D
    residuals: tuple[str, ...]  # their F names
    rules: Rules


class _View(NamedTuple):
    """Train rows `[N, D]` of an entity, a scaler for them, and starts of windows."""

    rows: np.ndarray
    scaler: Scaler
    validation: np.ndarray
    calibration: np.ndarray


def check_enough(prepared: Prepared, rule: Rule) -> None:
    """Raises ConfigError if there are too few calibration windows for the rule."""
    total = sum(len(_starts(prepared, e.split.calibration)) for e in prepared.entities)
    if total < needed(rule):
        raise ConfigError(too_few_message(total, rule))


def calibrate(model: ResidualModel, prepared: Prepared, rules: Rules) -> Calibration:
    """Gaussians and thresholds of a model on the clean rows of a data set."""
    channels = prepared.channels
    names = residual_names(model.kind, channels)
    job = _Job(model, prepared.window, len(channels), names, rules)
    entities = prepared.entities
    views = [_trimmed(job, _view(prepared, e, e.scaler)) for e in entities]
    moments = [_moments(job, view) for view in views]
    pooled_gaussian, pooled_scores = _pooled(job, prepared, views, moments)
    pooled_tau = find_threshold(pooled_scores, rules.threshold, source="pooled")
    if rules.scope == "pooled":
        gaussians = [_gaussian(job, views, merge_all(moments))] * len(views)
    else:
        gaussians = [
            pooled_gaussian if entity.pooled else _gaussian(job, [view], own)
            for entity, view, own in zip(entities, views, moments, strict=True)
        ]
    found = [
        _calibration_scores(job, view, gaussian)
        for view, gaussian in zip(views, gaussians, strict=True)
    ]
    scores, starts = zip(*found, strict=True)
    thresholds, notes = entity_thresholds(
        prepared, scores, pooled_tau, rules.threshold, scope=rules.scope
    )
    shared = np.concatenate(scores)
    sets = {
        "shared": shared,
        "pooled": shared if rules.scope == "pooled" else pooled_scores,
    }
    threshold_scores = [
        *(sets.get(t.source, own) for own, t in zip(scores, thresholds, strict=True)),
        pooled_scores,
    ]
    scalers = [*(e.scaler for e in entities), prepared.pooled_scaler]
    gaussians = [*gaussians, pooled_gaussian]
    return Calibration(
        scalers=Scaler(*map(np.stack, zip(*scalers, strict=True))),
        gaussians=Gaussian(*map(np.stack, zip(*gaussians, strict=True))),
        thresholds=(*thresholds, pooled_tau),
        scores=scores,
        starts=starts,
        threshold_scores=tuple(map(np.sort, threshold_scores)),
        notes=tuple(notes),
        floored={
            entity.name: floored_channels(
                own, floor=rules.floor, channels=job.residuals
            )
            for entity, own in zip(entities, moments, strict=True)
            if own.n
        },
    )


def point_pieces(
    model: ResidualModel,
    gaussian: Gaussian,
    scaler: Scaler,
    values: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
) -> Iterator[PointScores]:
    """Point scores of the windows of raw rows `[N, D]`.

    All at once, or in pieces where `values` is a memory map.
    """
    options = {"window": window, "batch_size": batch_size}
    for piece in scaled_pieces(values, scaler, starts, window=window):
        points = score_scaled(model, gaussian, piece.rows, piece.starts, **options)
        yield PointScores(points, piece.at)


def _view(prepared: Prepared, entity: Entity, scaler: Scaler) -> _View:
    return _View(
        rows=entity.train.values,
        scaler=scaler,
        validation=_starts(prepared, entity.split.validation),
        calibration=_starts(prepared, entity.split.calibration),
    )


def _starts(prepared: Prepared, spans: np.ndarray) -> np.ndarray:
    return window_starts(spans, window=prepared.window, stride=prepared.stride)


def _trimmed(job: _Job, view: _View) -> _View:
    """The view without its most abnormal validation windows.

    Concentration steps of FAST-MCD (Rousseeuw and Van Driessen, 1999) on whole windows.
    """
    kept = len(view.validation) - int(job.rules.trim * len(view.validation))
    if kept == len(view.validation):
        return view
    trimmed = view
    for _ in range(TRIM_ROUNDS):
        moments = _moments(job, trimmed)
        if moments.n < ROWS_PER_CHANNEL * job.width:
            break  # The entity uses the pooled Gaussian.
        gaussian = _gaussian(job, [trimmed], moments)
        scores = _scores(job, view, gaussian, view.validation)
        # NaN scores sort last and are left out first.
        mildest = np.sort(np.argsort(scores, kind="stable")[:kept])
        trimmed = view._replace(validation=view.validation[mildest])
    return trimmed


def _pooled(
    job: _Job, prepared: Prepared, views: Sequence[_View], moments: Sequence[Moments]
) -> tuple[Gaussian, np.ndarray]:
    """Gaussian and calibration scores of all rows under the pooled scaler."""
    pooled = prepared.pooled_scaler
    if not all(
        np.array_equal(own, shared)
        for entity in prepared.entities
        for own, shared in zip(entity.scaler, pooled, strict=True)
    ):
        views = [_trimmed(job, _view(prepared, e, pooled)) for e in prepared.entities]
        moments = [_moments(job, view) for view in views]
    gaussian = _gaussian(job, views, merge_all(moments))
    scores = [_calibration_scores(job, view, gaussian)[0] for view in views]
    return gaussian, np.concatenate(scores)


def _residuals(job: _Job, view: _View, *, shared: bool) -> Iterator[np.ndarray]:
    """Residuals of the complete rows of validation windows, `[K, F]` per batch.

    `shared` takes only the batches of this process.
    """
    batch_size = job.rules.batch_size
    size = scoring_batch(job.model, job.width, batch_size)
    done = 0
    for piece in scaled_pieces(
        view.rows, view.scaler, view.validation, window=job.window
    ):
        batches = [
            piece.starts[first : first + size]
            for first in range(0, len(piece.starts), size)
        ]
        own = hosts.share(batches, done) if shared else batches
        done += len(batches)
        if not own:
            continue
        starts = np.concatenate(own)
        if len(batches) > 1:  # pads a short batch to the shape of the others
            starts = np.pad(starts, (0, -len(starts) % size), mode="edge")
        found = residual_batches(
            job.model, piece.rows, starts, window=job.window, batch_size=batch_size
        )
        for residuals, batch in zip(found, own, strict=True):
            kept = residuals[: len(batch)]
            if has_missing(piece.rows):
                kept = kept[~np.isnan(kept).any(axis=-1)]
            yield kept


def _moments(job: _Job, view: _View) -> Moments:
    """Moments of the residuals, over the batches of all processes."""
    pieces = map(moments_of, _residuals(job, view, shared=True))
    return merge_shares(pieces, width=len(job.residuals))


def _gaussian(job: _Job, views: Sequence[_View], moments: Moments) -> Gaussian:
    if not moments.n:
        raise DataError(
            "no validation row has a value in every channel, so the residuals have no "
            "covariance: remove the channels with the most gaps, or repeat the last "
            "value by data.missing=ffill."
        )
    floor = job.rules.floor
    shrinkage = None
    if job.rules.shrinkage != "none":
        rows = sum(_distinct(job, view) for view in views)
        if job.rules.shrinkage == "oas":
            shrinkage = oas_shrinkage(moments, floor=floor, rows=rows)
        else:
            shrinkage = ledoit_wolf_shrinkage(
                (
                    piece
                    for view in views
                    for piece in _residuals(job, view, shared=False)
                ),
                moments,
                floor=floor,
                rows=rows,
            )
    return gaussian_from_moments(
        moments,
        floor=floor,
        ridge=job.rules.ridge,
        channels=job.residuals,
        shrinkage=shrinkage,
    )


def _distinct(job: _Job, view: _View) -> int:
    """Number of distinct complete rows in the validation windows, which overlap."""
    covered = np.zeros(len(view.rows), bool)
    for start in view.validation:
        covered[start : start + job.window] = True
    complete = [~np.isnan(rows).any(axis=1) for rows in chunks(view.rows)]
    return int((covered & np.concatenate(complete)).sum())


def _scores(
    job: _Job, view: _View, gaussian: Gaussian, starts: np.ndarray
) -> np.ndarray:
    """Window scores `[n]`."""
    pieces = point_pieces(
        job.model,
        gaussian,
        view.scaler,
        view.rows,
        starts,
        window=job.window,
        batch_size=job.rules.batch_size,
    )
    count = job.rules.allowed_points
    found = [window_scores(piece.points, count=count) for piece in pieces]
    return np.concatenate([np.empty(0, np.float32), *found])


def _calibration_scores(
    job: _Job, view: _View, gaussian: Gaussian
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and starts of the calibration windows that have a score."""
    scores = _scores(job, view, gaussian, view.calibration)
    known = ~np.isnan(scores)
    return scores[known], view.calibration[known]
