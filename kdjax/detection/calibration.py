"""From a residual model and clean rows to Gaussians and thresholds, each entity its own.

Entities with too little data borrow: with too few validation rows, the pooled scaler,
Gaussian and threshold; with too few calibration windows, a threshold from all entities'
calibration scores, each under the Gaussian that the entity uses.

Several processes (`kdjax.training.hosts`) share the validation windows; each scores the
calibration windows for itself.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.prepared import ROWS_PER_CHANNEL, Prepared
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

# Rounds of trimming: a refit without the worst windows can show others as worse.
TRIM_ROUNDS = 2


class View(NamedTuple):
    """An entity's train rows as one scaler shows them.

    Attributes:
        rows: `[N, D]`, raw; may be a memory map.
        scaler: applied to the rows piece by piece.
        validation: starts of its validation windows.
        calibration: starts of its calibration windows.
        scores: `[n]` of the calibration windows, once they are known.
    """

    rows: np.ndarray
    scaler: Scaler
    validation: np.ndarray
    calibration: np.ndarray
    scores: np.ndarray = np.empty(0)


class Calibration(NamedTuple):
    """What calibration adds to a residual model; the last entries are the pooled.

    Attributes:
        scalers: `[E + 1, D]` offsets and scales.
        normals: `[E + 1, F]` means, `[E + 1, F, F]` whitening matrices.
        thresholds: E + 1.
        scores: E arrays, each entity's calibration window scores.
        starts: E arrays, the first train rows of these windows.
        behind: E + 1 arrays, the sorted scores that each threshold was chosen on.
        notes: sentences for the report: which entities borrowed what.
        floored: names of each entity's errors that deviate less than the floor: those
            of their channels, with the part's before it for a joined model.
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
    """Settings of calibration, as the config has them.

    Attributes:
        allowed_points: points of a window that may lie above τ without an alarm.
        floor, ridge, shrinkage: see `gaussian_from_moments`.
        scope: `per_entity`, or `pooled` for one Gaussian and τ of all entities.
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
    """Gaussians and thresholds of a model on the clean rows of a data set."""
    job = _Job(model, prepared.window, prepared.channels, rules)
    views = [_trimmed(job, _view(prepared, i)) for i in _indices(prepared)]
    moments = [_moments(job, view) for view in views]
    pooled_gaussian, pooled_scores = _pooled(job, prepared, views, moments)
    pooled_tau = find_threshold(pooled_scores, rules.threshold, source="pooled")
    if rules.scope == "pooled":
        gaussians = [_normal(job, views, merge_all(moments))] * len(views)
    else:
        gaussians = [
            pooled_gaussian if entity.pooled else _normal(job, [view], own)
            for entity, view, own in zip(prepared.entities, views, moments, strict=True)
        ]
    views = [
        _with_known_calibration(job, view, gaussian)
        for view, gaussian in zip(views, gaussians, strict=True)
    ]
    scores = [view.scores for view in views]
    thresholds, notes = entity_thresholds(
        prepared, scores, pooled_tau, rules.threshold, scope=rules.scope
    )
    shared = np.concatenate(scores)
    pooled = shared if rules.scope == "pooled" else pooled_scores
    sets = {"shared": shared, "pooled": pooled}
    threshold_scores = [
        own if tau.source == "own" else sets[tau.source]
        for own, tau in zip(scores, thresholds, strict=True)
    ]
    scalers = [*(e.scaler for e in prepared.entities), prepared.pooled_scaler]
    return Calibration(
        scalers=Scaler(*map(np.stack, zip(*scalers, strict=True))),
        gaussians=Gaussian(
            *map(np.stack, zip(*gaussians, pooled_gaussian, strict=True))
        ),
        thresholds=(*thresholds, pooled_tau),
        scores=tuple(scores),
        starts=tuple(view.calibration for view in views),
        threshold_scores=tuple(
            np.sort(found) for found in (*threshold_scores, pooled_scores)
        ),
        notes=tuple(notes),
        floored={
            entity.name: floored_channels(own, floor=rules.floor, channels=job.errors)
            for entity, own in zip(prepared.entities, moments, strict=True)
            if own.n
        },
    )


class PointScores(NamedTuple):
    """Point scores of some windows: a_t `[m, L]` and their first rows `[m]`."""

    points: np.ndarray
    starts: np.ndarray


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
    """Point scores of the windows of raw rows `[N, D]`, all at once or a piece each.

    In pieces where `values` is a memory map; see `kdjax.data.windowing.scaled_pieces`.
    """
    options = {"window": window, "batch_size": batch_size}
    for piece in scaled_pieces(values, scaler, starts, window=window):
        points = score_scaled(model, gaussian, piece.rows, piece.starts, **options)
        yield PointScores(points, piece.at)


class _Job(NamedTuple):
    model: ResidualModel
    window: int
    channels: tuple[str, ...]
    rules: Rules

    @property
    def errors(self) -> tuple[str, ...]:
        """Names of the F errors."""
        return residual_names(self.model.kind, self.channels)


def _indices(prepared: Prepared) -> range:
    return range(len(prepared.entities))


def _view(prepared: Prepared, index: int, scaler: Scaler | None = None) -> View:
    entity = prepared.entities[index]
    return View(
        rows=entity.train.values,
        scaler=scaler or entity.scaler,
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
            break  # Too few rows for a Gaussian of its own: this entity borrows one.
        gaussian = _normal(job, [trimmed], moments)
        scores = _scores(job, view, gaussian, view.validation)
        # Unknown scores (NaN) are the first to go.
        mildest = np.sort(np.argsort(scores, kind="stable")[:kept])
        trimmed = view._replace(validation=view.validation[mildest])
    return trimmed


def _starts(prepared: Prepared, spans: np.ndarray) -> np.ndarray:
    return window_starts(spans, window=prepared.window, stride=prepared.stride)


def _pooled(
    job: _Job, prepared: Prepared, views: Sequence[View], moments: Sequence[Moments]
) -> tuple[Gaussian, np.ndarray]:
    """Gaussian and calibration scores for entities that are not known.

    Those of all rows under the pooled scaler.
    """
    if not all(_same(e.scaler, prepared.pooled_scaler) for e in prepared.entities):
        scaler = prepared.pooled_scaler
        views = [_trimmed(job, _view(prepared, i, scaler)) for i in _indices(prepared)]
        moments = [_moments(job, view) for view in views]
    gaussian = _normal(job, views, merge_all(moments))
    scores = [_with_known_calibration(job, view, gaussian).scores for view in views]
    return gaussian, np.concatenate(scores)


def _same(first: Scaler, second: Scaler) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


Batches = list[np.ndarray]


def _everything(batches: Batches, first: int) -> Batches:
    return batches


def _errors(
    job: _Job, view: View, take: Callable[[Batches, int], Batches] = _everything
) -> Iterator[np.ndarray]:
    """The errors of the validation windows' complete rows, `[K, F]` a batch.

    Args:
        job: what is calibrated.
        view: of the rows.
        take: chooses among batches of windows, given the number of the first.
    """
    size = scoring_batch(job.model, len(job.channels), job.rules.batch_size)
    done = 0
    for piece in scaled_pieces(
        view.rows, view.scaler, view.validation, window=job.window
    ):
        batches = [
            piece.starts[first : first + size]
            for first in range(0, len(piece.starts), size)
        ]
        own, done = take(batches, done), done + len(batches)
        if not own:
            continue
        starts = np.concatenate(own)
        if len(batches) > 1:  # A short one keeps the shape that it has among others.
            starts = np.pad(starts, (0, -len(starts) % size), mode="edge")
        found = residual_batches(
            job.model,
            piece.rows,
            starts,
            window=job.window,
            batch_size=job.rules.batch_size,
        )
        for errors, batch in zip(found, own, strict=True):
            kept = errors[: len(batch)]
            if has_missing(piece.rows):
                kept = kept[~np.isnan(kept).any(axis=-1)]
            yield kept


def _moments(job: _Job, view: View) -> Moments:
    """Of all processes' batches together."""
    pieces = map(moments_of, _errors(job, view, hosts.share))
    return merge_shares(pieces, width=len(job.errors))


def _with_known_calibration(job: _Job, view: View, gaussian: Gaussian) -> View:
    """The view with the calibration windows that have a score, and their scores."""
    scores = _scores(job, view, gaussian, view.calibration)
    known = ~np.isnan(scores)
    return view._replace(calibration=view.calibration[known], scores=scores[known])


def _normal(job: _Job, views: Sequence[View], moments: Moments) -> Gaussian:
    if not moments.n:
        raise DataError(
            "no validation row has a value in every channel, so the errors have no "
            "covariance: remove the channels with the most gaps, or repeat the last "
            "value by data.missing=ffill."
        )
    return gaussian_from_moments(
        moments,
        floor=job.rules.floor,
        ridge=job.rules.ridge,
        channels=job.errors,
        shrinkage=_shrinkage(job, views, moments),
    )


def _shrinkage(job: _Job, views: Sequence[View], moments: Moments) -> float | None:
    floor, kind = job.rules.floor, job.rules.shrinkage
    if kind == "none":
        return None
    rows = sum(_distinct(job, view) for view in views)
    if kind == "oas":
        return oas_shrinkage(moments, floor=floor, rows=rows)
    pieces = (piece for view in views for piece in _errors(job, view))
    return ledoit_wolf_shrinkage(pieces, moments, floor=floor, rows=rows)


def _distinct(job: _Job, view: View) -> int:
    """Number of distinct complete rows in the validation windows, which overlap."""
    covered = np.zeros(len(view.rows), bool)
    for start in view.validation:
        covered[start : start + job.window] = True
    complete = [~np.isnan(rows).any(axis=1) for rows in chunks(view.rows)]
    return int((covered & np.concatenate(complete)).sum())


def _scores(
    job: _Job, view: View, gaussian: Gaussian, starts: np.ndarray
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
