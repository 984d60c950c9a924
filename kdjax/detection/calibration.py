"""Calibration of a residual model on clean rows: Gaussians and thresholds per entity.

An entity with too few validation rows uses the pooled scaler, Gaussian and threshold.
One with too few calibration windows gets a threshold from the calibration scores of all
entities, each under the Gaussian that its entity uses.

The rules `blocks` and `budget` use all training rows: all for the Gaussian, and for τ each
fold of rows with the Gaussian of the other folds. Other rules use validation rows for the
Gaussian, and calibration rows for τ.

With several processes (`kdjax.training.hosts`) each takes a share of the validation
windows; each scores all calibration windows.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.prepared import ROWS_PER_CHANNEL, Entity, Prepared, training_ranges
from kdjax.data.scaler import Scaler
from kdjax.data.splits import folds, window_starts
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
    without_channels,
)
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import (
    BLOCKS,
    BY_FOLDS,
    CLASSIFIER_CAUTION,
    Rule,
    Threshold,
    entity_thresholds,
    find_threshold,
    needed,
    too_few_message,
)
from kdjax.errors import ConfigError, DataError, counted
from kdjax.models.residual import ResidualModel, gives_scores, residual_names
from kdjax.training import hosts

# Residuals that deviate by at most so many roundings of the rows to float32 count as
# rounding errors only.
ROUNDINGS = 8

# Rounds of trimming: after a new fit without the worst windows, others may rank as worse.
TRIM_ROUNDS = 2


class Calibration(NamedTuple):
    """The calibration of a residual model; the last entries are the pooled ones."""

    scalers: Scaler  # [E + 1, D] offsets and scales
    gaussians: Gaussian  # [E + 1, F] means, [E + 1, F, F] whitening matrices
    thresholds: tuple[Threshold, ...]  # E + 1
    scores: tuple[np.ndarray, ...]  # E arrays, each entity's calibration window scores
    starts: tuple[np.ndarray, ...]  # E arrays, the first train rows of these windows
    # E + 1, the scores that each τ was chosen on: by folds in order of time, else sorted
    threshold_scores: tuple[np.ndarray, ...]
    notes: tuple[str, ...]  # which entities use pooled or shared parts
    floored: dict[str, list[str]]  # residuals with a deviation below the floor
    # [E + 1, D] raw values of the channels that were constant in the rows behind each
    # Gaussian and have no part in scores, NaN elsewhere; None of an older detector.
    constant: np.ndarray | None = None


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
    held_out: tuple[ResidualModel, ...] | None  # by fold; () for `model`

    @property
    def residuals(self) -> tuple[str, ...]:
        """Names of the F residuals."""
        scored = np.delete(self.prepared.channels, self.model.context).tolist()
        return residual_names(self.model.kind, scored)


class _View(NamedTuple):
    """Train rows `[N, D]` of an entity, a scaler for them, and windows."""

    rows: np.ndarray
    scaler: Scaler
    # Starts [n] of the windows of the Gaussian and of τ, by fold.
    validation: tuple[np.ndarray, ...]
    calibration: tuple[np.ndarray, ...]


class NothingLeft(ConfigError):
    """The residuals of a model are rounding errors only, so that scores are meaningless."""


class _Fit(NamedTuple):
    """A Gaussian, and those that score the calibration windows of each fold."""

    whole: Gaussian
    folds: tuple[Gaussian, ...]


def check_enough(
    prepared: Prepared, rule: Rule, *, todo: str = "give more rows"
) -> None:
    """Raises ConfigError, with the remedy `todo`, if calibration windows are too few."""
    total = count_windows(prepared, rule)
    if total < needed(rule):
        raise ConfigError(too_few_message(total, rule, todo=todo))


def count_windows(prepared: Prepared, rule: Rule) -> int:
    """The number of windows of all entities that τ is chosen on."""
    found = [_fold_starts(prepared, e, rule, BLOCKS) for e in prepared.entities]
    return sum(len(starts) for own in found for starts in own)


def rule_for(kind: str, rule: Rule) -> Rule:
    """The rule for a kind of model; some kinds need less caution."""
    return rule._replace(caution=CLASSIFIER_CAUTION) if gives_scores(kind) else rule


def calibrate(
    model: ResidualModel,
    prepared: Prepared,
    rules: Rules,
    *,
    held_out: Sequence[ResidualModel] | None = (),
) -> Calibration:
    """Gaussians and thresholds of a model on the clean rows of a data set.

    `held_out` are models trained without the calibration windows of each fold, which score
    these instead of a model that was trained on all rows; None: no window is scored.
    """
    rules = rules._replace(threshold=rule_for(model.kind, rules.threshold))
    others = None if held_out is None else tuple(held_out)
    job, entities = _Job(model, prepared, rules, others), prepared.entities
    constant = constant_values(prepared, scope=rules.scope)
    still = ~np.isnan(constant)
    views = [
        _view(job, entity, entity.scaler, own)
        for entity, own in zip(entities, still[:-1], strict=True)
    ]
    moments = [_moments(job, view) for view in views]
    shared = _fit(job, views, moments, still[-1])
    pooled, pooled_views = shared, views
    scaler = prepared.pooled_scaler
    if not all(np.array_equal(entity.scaler, scaler) for entity in entities):
        pooled_views = [_view(job, entity, scaler, still[-1]) for entity in entities]
        pooled_moments = [_moments(job, view) for view in pooled_views]
        pooled = _fit(job, pooled_views, pooled_moments, still[-1])
    if rules.scope == "pooled":
        fits = [shared] * len(views)
    else:
        fits = [
            pooled if entity.pooled else _fit(job, [view], [own], at)
            for entity, view, own, at in zip(
                entities, views, moments, still[:-1], strict=True
            )
        ]
    found = [_scores(job, *pair) for pair in zip(views, fits, strict=True)]
    scores, starts = zip(*found, strict=True)
    own_scores = pooled_scores = np.concatenate(scores)
    if len(entities) > 1:
        every = [_scores(job, view, pooled)[0] for view in pooled_views]
        pooled_scores = np.concatenate(every)
    pooled_tau = find_threshold(pooled_scores, rules.threshold, source="pooled")
    thresholds, notes = entity_thresholds(
        prepared, scores, pooled_tau, rules.threshold, scope=rules.scope
    )
    sets = {"shared": own_scores, "pooled": pooled_scores}
    if rules.scope == "pooled":
        sets["pooled"] = own_scores
    threshold_scores = [
        *(sets.get(t.source, own) for own, t in zip(scores, thresholds, strict=True)),
        pooled_scores,
    ]
    scalers = [*(e.scaler for e in entities), prepared.pooled_scaler]
    gaussians = [fit.whole for fit in (*fits, pooled)]
    return Calibration(
        scalers=Scaler(*map(np.stack, zip(*scalers, strict=True))),
        gaussians=Gaussian(*map(np.stack, zip(*gaussians, strict=True))),
        thresholds=(*thresholds, pooled_tau),
        scores=scores,
        starts=starts,
        threshold_scores=tuple(
            own if rules.threshold.method in BY_FOLDS else np.sort(own)
            for own in threshold_scores
        ),
        notes=tuple(notes),
        floored={
            e.name: floored_channels(
                merge_all(own), floor=rules.floor, channels=job.residuals
            )
            for e, own in zip(entities, moments, strict=True)
            if any(part.n for part in own)
        },
        constant=constant,
    )


def constant_values(prepared: Prepared, *, scope: str) -> np.ndarray:
    """`Calibration.constant`: by the ranges of the rows of each entity's Gaussian.

    If all channels are constant, all are kept: else nothing would have a score.
    """
    low, high = training_ranges(prepared)
    for place, entity in enumerate(prepared.entities):
        if entity.pooled or scope == "pooled":
            low[place], high[place] = low[-1], high[-1]
    constant = np.where(low == high, low, np.nan)
    constant[:, [*prepared.context]] = np.nan
    moves = np.delete(np.isnan(constant), prepared.context, axis=1)
    constant[~moves.any(axis=1)] = np.nan
    return constant


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


def _fold_starts(
    prepared: Prepared, entity: Entity, rule: Rule, count: int
) -> tuple[np.ndarray, ...]:
    sizes = {"window": prepared.window, "stride": prepared.stride, "count": count}
    return fold_starts(entity.split.calibration, entity.train_spans, rule, **sizes)


def fold_starts(
    calibration: np.ndarray,
    whole: np.ndarray,
    rule: Rule,
    *,
    window: int,
    stride: int,
    count: int = BLOCKS,
) -> tuple[np.ndarray, ...]:
    """Starts of the windows that choose τ, by fold, from spans of calibration and all rows."""
    spans = folds(whole, count) if rule.method in BY_FOLDS else [calibration]
    stride = 1 if rule.each_row else stride
    return tuple(window_starts(own, window=window, stride=stride) for own in spans)


def _view(job: _Job, entity: Entity, scaler: Scaler, constant: np.ndarray) -> _View:
    """An entity's windows without the most abnormal ones in its moments.

    Concentration steps of FAST-MCD (Rousseeuw and Van Driessen, 1999) on whole windows.
    """
    prepared, rule = job.prepared, job.rules.threshold
    validation = calibration = _fold_starts(
        prepared, entity, rule, len(job.held_out or ()) or BLOCKS
    )
    if rule.method not in BY_FOLDS:
        options = {"window": prepared.window, "stride": prepared.stride}
        validation = (window_starts(entity.split.validation, **options),)
    view = _View(entity.train.values, scaler, validation, calibration)
    every = np.concatenate(validation)
    kept = len(every) - int(job.rules.trim * len(every))
    if kept == len(every):
        return view
    trimmed = view
    for _ in range(TRIM_ROUNDS):
        moments = merge_all(_moments(job, trimmed))
        if moments.n < ROWS_PER_CHANNEL * len(prepared.channels):
            break  # the entity uses the pooled Gaussian
        share = _share(job, [trimmed], moments, constant)
        gaussian = _gaussian(job, [trimmed], moments, constant, share)
        scores = _window_scores(job, view, job.model, gaussian, every)
        # NaN scores sort last and are left out first.
        mildest = every[np.sort(np.argsort(scores, kind="stable")[:kept])]
        parts = [starts[np.isin(starts, mildest)] for starts in validation]
        trimmed = view._replace(validation=tuple(parts))
    return trimmed


def _fit(
    job: _Job, views: list[_View], moments: list[list[Moments]], constant: np.ndarray
) -> _Fit:
    """The Gaussian of all moments, by view and fold, and those without each fold.

    Channels that are `constant`, `[D]` bool, have no part in them.
    """
    whole = merge_all([part for own in moments for part in own])
    share = _share(job, views, whole, constant)
    gaussian = _gaussian(job, views, whole, constant, share)
    count = len(moments[0])
    if count == 1 or not job.residuals:
        return _Fit(gaussian, (gaussian,) * max(count, len(views[0].calibration)))
    others = [
        merge_all([part for own in moments for part in (*own[:k], *own[k + 1 :])])
        for k in range(count)
    ]
    without = (
        _gaussian(job, (), own, constant, share) if own.n else gaussian
        for own in others
    )
    return _Fit(gaussian, tuple(without))


def _residuals(
    job: _Job, view: _View, starts: np.ndarray, *, shared: bool
) -> Iterator[np.ndarray]:
    """Residuals of the complete rows of windows, `[K, F]` per batch.

    `shared` takes only the batches of this process.
    """
    batch_size, window = job.rules.batch_size, job.prepared.window
    size = scoring_batch(job.model, len(job.prepared.channels), batch_size)
    done = 0
    for piece in scaled_pieces(view.rows, view.scaler, starts, window=window):
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


def _moments(job: _Job, view: _View) -> list[Moments]:
    """Moments of the residuals of each fold, over the batches of all processes."""
    width = len(job.residuals)
    if not width:
        return [Moments(0, np.zeros(0), np.zeros((0, 0))) for _ in view.validation]
    found = (_residuals(job, view, starts, shared=True) for starts in view.validation)
    return [merge_shares(map(moments_of, own), width=width) for own in found]


def _gaussian(
    job: _Job,
    views: Sequence[_View],
    moments: Moments,
    constant: np.ndarray,
    share: float | None,
) -> Gaussian:
    """The Gaussian of the residuals of channels that are not `constant`, `[D]` bool."""
    if not job.residuals:
        return Gaussian(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
    if not moments.n:
        absent = sum(
            np.isnan(view.rows[start : start + job.prepared.window]).sum(axis=0)
            for view in views
            for start in np.concatenate(view.validation)
        )
        absent[[*job.model.context]] = -1
        name = job.prepared.channels[int(np.argmax(absent))]
        raise DataError(
            "no validation row has a value in every channel, so the residuals have no "
            f"covariance: put {name!r}, which lacks most values, in data.ignore, or repeat "
            "its last value: with a larger data.fill_limit on a grid (data.step), with "
            "data.missing=ffill elsewhere."
        )
    if views:
        _check_deviation(job, views, moments)
    scored = _scored(job, constant)
    found = gaussian_from_moments(
        _of_channels(moments, scored),
        floor=job.rules.floor,
        ridge=job.rules.ridge,
        channels=np.array(job.residuals)[scored].tolist(),
        shrinkage=share,
    )
    return without_channels(found, moments.mean, scored)


def _scored(job: _Job, constant: np.ndarray) -> np.ndarray:
    """Which residuals `[F]` are of channels that are scored and not constant."""
    own = np.delete(~constant, job.model.context)
    return np.tile(own, len(job.residuals) // len(own))  # of each component


def _of_channels(moments: Moments, scored: np.ndarray) -> Moments:
    scatter = moments.scatter[np.ix_(scored, scored)]
    return Moments(moments.n, moments.mean[scored], scatter)


def _share(
    job: _Job, views: Sequence[_View], moments: Moments, constant: np.ndarray
) -> float | None:
    """The shrinkage share of the covariance of all folds."""
    method, floor = job.rules.shrinkage, job.rules.floor
    if method == "none" or not job.residuals or not moments.n:
        return None
    scored = _scored(job, constant)
    pieces = (
        piece[..., scored]
        for view in views
        for starts in view.validation
        for piece in _residuals(job, view, starts, shared=False)
    )
    rows = sum(_distinct(job, view) for view in views)
    used = _of_channels(moments, scored)
    return shrinkage_share(method, pieces, used, floor=floor, rows=rows)


def _check_deviation(job: _Job, views: Sequence[_View], moments: Moments) -> None:
    """Raises NothingLeft if the residuals of all channels are rounding errors only."""
    largest, squares = float(moments.deviation.max()), [0.0]
    if largest > 0.01:
        return  # Rows are scaled to about 1.
    for view in views:
        own = view.rows, view.scaler, np.concatenate(view.validation)
        for piece in scaled_pieces(*own, window=job.prepared.window):
            rows = np.delete(piece.rows, job.model.context, axis=1)
            moving = np.fmax.reduce(rows) > np.fmin.reduce(rows)
            known = np.nan_to_num(rows[:, moving]).astype(np.float64)
            squares += (known**2).mean(axis=0).tolist()
    size = math.sqrt(max(squares))
    if largest < ROUNDINGS * np.finfo(np.float32).eps * size:
        count = counted(len(job.prepared.channels), "channel")
        raise NothingLeft(
            f"the residuals of {job.model.kind} for {count} are rounding errors only: they "
            f"deviate by {largest:.1g} at most, where scaled rows are of size {size:.1g}. "
            "Use another detector, such as mahalanobis, or put channels that others "
            "determine in data.ignore."
        )


def _distinct(job: _Job, view: _View) -> int:
    """Number of distinct complete rows in the validation windows, which overlap."""
    covered = np.zeros(len(view.rows), bool)
    for start in np.concatenate(view.validation):
        covered[start : start + job.prepared.window] = True
    pieces = (np.delete(rows, job.model.context, axis=1) for rows in chunks(view.rows))
    complete = [~np.isnan(rows).any(axis=1) for rows in pieces]
    return int((covered & np.concatenate(complete)).sum())


def _window_scores(
    job: _Job, view: _View, model: ResidualModel, gaussian: Gaussian, starts: np.ndarray
) -> np.ndarray:
    """Window scores `[n]`."""
    sizes = {"window": job.prepared.window, "batch_size": job.rules.batch_size}
    pieces = point_pieces(model, gaussian, view.scaler, view.rows, starts, **sizes)
    count = job.rules.allowed_points
    found = [window_scores(points, count=count) for points, _ in pieces]
    return np.concatenate([np.empty(0, np.float32), *found])


def _scores(job: _Job, view: _View, fit: _Fit) -> tuple[np.ndarray, np.ndarray]:
    """Scores and starts, in order of time, of the calibration windows that have a score.

    Each fold is scored by a model and a Gaussian that were fitted without it.
    """
    if job.held_out is None:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    models = job.held_out or (job.model,) * len(view.calibration)
    parts = zip(models, fit.folds, view.calibration, strict=True)
    scores = np.concatenate([_window_scores(job, view, *part) for part in parts])
    known = ~np.isnan(scores)
    return scores[known], np.concatenate(view.calibration)[known]
