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
    merge_all,
    merge_shares,
    moments_of,
    shrinkage_share,
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
    """The calibration of a residual model; the last entries are the pooled ones."""

    scalers: Scaler  # [E + 1, D] offsets and scales
    gaussians: Gaussian  # [E + 1, F] means, [E + 1, F, F] whitening matrices
    thresholds: tuple[Threshold, ...]  # E + 1
    scores: tuple[np.ndarray, ...]  # E arrays, each entity's calibration window scores
    starts: tuple[np.ndarray, ...]  # E arrays, the first train rows of these windows
    threshold_scores: tuple[np.ndarray, ...]  # E + 1, the sorted scores behind each τ
    notes: tuple[str, ...]  # which entities use pooled or shared parts
    floored: dict[str, list[str]]  # residuals with a deviation below the floor


class Rules(NamedTuple):
    """Options of calibration; `floor`, `ridge`, `shrinkage` as in `fit_gaussian`."""

    allowed_points: int  # points of a window that may lie above τ without an alarm
    floor: float
    ridge: float
    shrinkage: str
    scope: str  # `per_entity`, or `pooled` for one Gaussian and τ of all entities
    threshold: Rule  # how τ is chosen
    # Share of each entity's validation windows, the most abnormal, that is left out of
    # the moments, for training data that may hold anomalies.
    trim: float
    batch_size: int  # windows scored at once


class _Job(NamedTuple):
    model: ResidualModel
    prepared: Prepared
    rules: Rules

    @property
    def residuals(self) -> tuple[str, ...]:
        """Names of the F residuals."""
        scored = np.delete(self.prepared.channels, self.model.context).tolist()
        return residual_names(self.model.kind, scored)


class _View(NamedTuple):
    """Train rows `[N, D]` of an entity, a scaler for them, and starts of windows."""

    rows: np.ndarray
    scaler: Scaler
    validation: np.ndarray
    calibration: np.ndarray


def check_enough(
    prepared: Prepared, rule: Rule, *, todo: str = "give more rows"
) -> None:
    """Raises ConfigError if calibration windows are too few for the rule; `todo`: then."""
    total = count_windows(prepared)
    if total < needed(rule):
        raise ConfigError(too_few_message(total, rule, todo=todo))


def count_windows(prepared: Prepared) -> int:
    """How many calibration windows all entities have."""
    return sum(len(_starts(prepared, e.split.calibration)) for e in prepared.entities)


def calibrate(model: ResidualModel, prepared: Prepared, rules: Rules) -> Calibration:
    """Gaussians and thresholds of a model on the clean rows of a data set."""
    job, entities = _Job(model, prepared, rules), prepared.entities
    views = [_view(job, entity, entity.scaler) for entity in entities]
    moments = [_moments(job, view) for view in views]
    pooled_gaussian, pooled_scores = _pooled(job, views, moments)
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
    sets = {"shared": np.concatenate(scores), "pooled": pooled_scores}
    if rules.scope == "pooled":
        sets["pooled"] = sets["shared"]
    threshold_scores = [
        *(sets.get(t.source, own) for own, t in zip(scores, thresholds, strict=True)),
        pooled_scores,
    ]
    scalers = [*(e.scaler for e in entities), prepared.pooled_scaler]
    gaussians.append(pooled_gaussian)
    return Calibration(
        scalers=Scaler(*map(np.stack, zip(*scalers, strict=True))),
        gaussians=Gaussian(*map(np.stack, zip(*gaussians, strict=True))),
        thresholds=(*thresholds, pooled_tau),
        scores=scores,
        starts=starts,
        threshold_scores=tuple(map(np.sort, threshold_scores)),
        notes=tuple(notes),
        floored={
            e.name: floored_channels(own, floor=rules.floor, channels=job.residuals)
            for e, own in zip(entities, moments, strict=True)
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
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """a_t `[m, L]` and first rows `[m]` of the windows of raw rows `[N, D]`.

    All at once, or in pieces where `values` is a memory map.
    """
    options = {"window": window, "batch_size": batch_size}
    for piece in scaled_pieces(values, scaler, starts, window=window):
        points = score_scaled(model, gaussian, piece.rows, piece.starts, **options)
        yield points, piece.at


def _starts(prepared: Prepared, spans: np.ndarray) -> np.ndarray:
    return window_starts(spans, window=prepared.window, stride=prepared.stride)


def _view(job: _Job, entity: Entity, scaler: Scaler) -> _View:
    """An entity's windows without the most abnormal validation windows.

    Concentration steps of FAST-MCD (Rousseeuw and Van Driessen, 1999) on whole windows.
    """
    view = _View(
        rows=entity.train.values,
        scaler=scaler,
        validation=_starts(job.prepared, entity.split.validation),
        calibration=_starts(job.prepared, entity.split.calibration),
    )
    kept = len(view.validation) - int(job.rules.trim * len(view.validation))
    if kept == len(view.validation):
        return view
    trimmed = view
    for _ in range(TRIM_ROUNDS):
        moments = _moments(job, trimmed)
        if moments.n < ROWS_PER_CHANNEL * len(job.prepared.channels):
            break  # The entity uses the pooled Gaussian.
        gaussian = _gaussian(job, [trimmed], moments)
        scores = _scores(job, view, gaussian, view.validation)
        # NaN scores sort last and are left out first.
        mildest = np.sort(np.argsort(scores, kind="stable")[:kept])
        trimmed = view._replace(validation=view.validation[mildest])
    return trimmed


def _pooled(
    job: _Job, views: Sequence[_View], moments: Sequence[Moments]
) -> tuple[Gaussian, np.ndarray]:
    """Gaussian and calibration scores of all rows under the pooled scaler."""
    pooled, entities = job.prepared.pooled_scaler, job.prepared.entities
    if not all(np.array_equal(entity.scaler, pooled) for entity in entities):
        views = [_view(job, entity, pooled) for entity in entities]
        moments = [_moments(job, view) for view in views]
    gaussian = _gaussian(job, views, merge_all(moments))
    scores = [_calibration_scores(job, view, gaussian)[0] for view in views]
    return gaussian, np.concatenate(scores)


def _residuals(job: _Job, view: _View, *, shared: bool) -> Iterator[np.ndarray]:
    """Residuals of the complete rows of validation windows, `[K, F]` per batch.

    `shared` takes only the batches of this process.
    """
    batch_size, window = job.rules.batch_size, job.prepared.window
    size = scoring_batch(job.model, len(job.prepared.channels), batch_size)
    done = 0
    for piece in scaled_pieces(view.rows, view.scaler, view.validation, window=window):
        stops = range(size, len(piece.starts), size)
        batches = np.split(piece.starts, stops) if len(piece.starts) else []
        own = hosts.share(batches, done) if shared else batches
        done += len(batches)
        if not own:
            continue
        starts = np.concatenate(own)
        if len(batches) > 1:  # pads a short batch to the shape of the others
            starts = np.pad(starts, (0, -len(starts) % size), mode="edge")
        found = residual_batches(
            job.model, piece.rows, starts, window=window, batch_size=batch_size
        )
        for residuals, batch in zip(found, own, strict=True):
            kept = residuals[: len(batch)]
            if has_missing(piece.rows):
                kept = kept[~np.isnan(kept).any(axis=-1)]
            yield kept


def _moments(job: _Job, view: _View) -> Moments:
    """Moments of the residuals, over the batches of all processes."""
    if not job.residuals:
        return Moments(0, np.zeros(0), np.zeros((0, 0)))
    pieces = map(moments_of, _residuals(job, view, shared=True))
    return merge_shares(pieces, width=len(job.residuals))


def _gaussian(job: _Job, views: Sequence[_View], moments: Moments) -> Gaussian:
    if not job.residuals:
        return Gaussian(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
    if not moments.n:
        absent = sum(
            np.isnan(view.rows[start : start + job.prepared.window]).sum(axis=0)
            for view in views
            for start in view.validation
        )
        absent[[*job.model.context]] = -1
        name = job.prepared.channels[int(np.argmax(absent))]
        raise DataError(
            "no validation row has a value in every channel, so the residuals have no "
            f"covariance: leave out {name!r}, which lacks most, by data.ignore, or repeat "
            "its last value: by a larger data.fill_limit on a grid (data.step), by "
            "data.missing=ffill elsewhere."
        )
    floor, method, share = job.rules.floor, job.rules.shrinkage, None
    if method != "none":
        pieces = (p for view in views for p in _residuals(job, view, shared=False))
        rows = sum(_distinct(job, view) for view in views)
        share = shrinkage_share(method, pieces, moments, floor=floor, rows=rows)
    return gaussian_from_moments(
        moments,
        floor=floor,
        ridge=job.rules.ridge,
        channels=job.residuals,
        shrinkage=share,
    )


def _distinct(job: _Job, view: _View) -> int:
    """Number of distinct complete rows in the validation windows, which overlap."""
    covered = np.zeros(len(view.rows), bool)
    for start in view.validation:
        covered[start : start + job.prepared.window] = True
    pieces = (np.delete(rows, job.model.context, axis=1) for rows in chunks(view.rows))
    complete = [~np.isnan(rows).any(axis=1) for rows in pieces]
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
        window=job.prepared.window,
        batch_size=job.rules.batch_size,
    )
    count = job.rules.allowed_points
    found = [window_scores(points, count=count) for points, _ in pieces]
    return np.concatenate([np.empty(0, np.float32), *found])


def _calibration_scores(
    job: _Job, view: _View, gaussian: Gaussian
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and starts of the calibration windows that have a score."""
    scores = _scores(job, view, gaussian, view.calibration)
    known = ~np.isnan(scores)
    return scores[known], view.calibration[known]
