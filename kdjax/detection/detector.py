"""A detector: a residual model with a scaler, Gaussian and threshold per entity.

Turns windows of raw or scaled rows into residuals, scores and contributions, in batches.
NaN marks missing cells.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.scaler import Scaler, along, apply_scaler
from kdjax.data.series import Ranges
from kdjax.data.windowing import has_missing
from kdjax.detection.attribution import attribution_matrix, split_deviations
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.reading import fill_limit
from kdjax.detection.scores import deviations, scores_of, window_scores
from kdjax.detection.stream_batches import EntityStreams
from kdjax.detection.stream_rules import Plan, plan_by, plan_of
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.detection.thresholds import Threshold
from kdjax.errors import DataError
from kdjax.io.processes import check_not_forked
from kdjax.models.baselines import BASELINES
from kdjax.models.classifier import with_constants
from kdjax.models.model import Params, fill_missing
from kdjax.models.residual import (
    ResidualModel,
    components_of,
    gives_scores,
    residual_function,
)
from kdjax.training.batching import WindowFunction, map_windows

POOLED = "pooled"

# Windows scored at once; larger batches gain little, see docs/performance.md.
BATCH_SIZE = 256

# Windows of several entities that are scored in one call; each size is compiled.
BATCHES = (1, 16, 256)
PADDED = 4  # most windows that a call computes, as a multiple of those it needs
# For networks whose scores must equal those of `score_windows` to the last bit: XLA rounds
# the sums of smaller batches differently.
EXACT_BATCHES, EXACT_PADDED = (64, 256), 4 / 3
OPENED = 1000  # entities whose plans of streams are cached
# Parameters of `with_constants` for a model without constant channels.
_NO_CONSTANT = {"moving": 1.0, "still": 0.0, "slack": -1.0}


class Detector(NamedTuple):
    """All parts of scoring, and a card that describes the training.

    The last entry of `scalers`, `gaussians`, `thresholds`, `ranges` and `calibration` is
    the pooled one, for entities without calibration.

    Attributes:
        model: windows of scaled rows to residuals.
        channels: the D names, in the order that the model expects.
        window: L.
        stride: of the windows in evaluation.
        allowed_points: points of a window that may lie above τ without an alarm.
        max_gap: in median steps; no window crosses a longer step in time.
        entities: the E names.
        scalers: offsets and scales, `[E + 1, D]` each; rows enter in their dtype.
        gaussians: means `[E + 1, F]` and whitening matrices `[E + 1, F, F]`.
        thresholds: E + 1 of them.
        card: JSON object: data, splits, settings, results, limits.
        ranges: lowest and highest raw training values, `[E + 1, D]` each, or None.
        calibration: E + 1 arrays, the sorted window scores that each τ was chosen on;
            empty where unknown.
        reference: `[R, D]` raw training rows to check exported files on, or None.
        step: median time between rows in training, in seconds, or in the unit of a
            numeric time column; 0 where rows had no time.
        attribution: method of contributions, see `kdjax.detection.attribution`.
        min_duration: consecutive rows above τ before an alarm.
        cooldown: rows after an alarm in which none begins.
        constant: raw values of the channels that were constant in training, `[E + 1, D]`,
            NaN elsewhere; they don't count in scores. None for older detectors.
        unchanged: most training rows in which each channel, and last all of them, kept
            their values, `[E + 1, D + 1]`; 0 where not checked, None for no checks.
        no_data: whether a gap in time is an event.
        clear: share of τ down to which an alarm continues.
    """

    model: ResidualModel
    channels: tuple[str, ...]
    window: int
    stride: int
    allowed_points: int
    max_gap: float
    entities: tuple[str, ...]
    scalers: Scaler
    gaussians: Gaussian
    thresholds: tuple[Threshold, ...]
    card: dict[str, Any]
    ranges: Ranges | None = None
    calibration: tuple[np.ndarray, ...] = ()
    reference: np.ndarray | None = None
    step: float = 0.0
    attribution: str = "correlation"
    min_duration: int = 1
    cooldown: int = 0
    constant: np.ndarray | None = None
    unchanged: np.ndarray | None = None
    no_data: bool = False
    clear: float = 1.0

    @property
    def context(self) -> tuple[str, ...]:
        """Channels that the model reads, but that have no scores and contributions."""
        return tuple(self.channels[place] for place in self.model.context)


class Explained(NamedTuple):
    """a_t `[B, L]`, NaN in rows without a value, and contributions `[B, L, D]`."""

    points: np.ndarray
    contributions: np.ndarray


def entity_index(detector: Detector, entity: str) -> int:
    """Index of an entity's scaler, Gaussian and threshold; `pooled` is the last."""
    names = (*detector.entities, POOLED)
    if entity not in names:
        raise DataError(
            f"the detector has no entity {entity!r}: give one of "
            f"{', '.join(detector.entities)}, or {POOLED}."
        )
    return len(names) - 1 if entity == POOLED else names.index(entity)


def usual_entity(detector: Detector) -> str:
    """The default entity: the only one, else pooled."""
    return detector.entities[0] if len(detector.entities) == 1 else POOLED


def scaler_of(detector: Detector, index: int) -> Scaler:
    """The scaler at an index from `entity_index`."""
    return Scaler(*(field[index] for field in detector.scalers))


def gaussian_of(detector: Detector, index: int) -> Gaussian:
    """The Gaussian at an index from `entity_index`."""
    return Gaussian(*(field[index] for field in detector.gaussians))


def model_of(detector: Detector, index: int) -> ResidualModel:
    """The model, as `constant_model`, for the index from `entity_index`."""
    constant = None if detector.constant is None else detector.constant[index]
    return constant_model(detector.model, scaler_of(detector, index), constant)


def constant_model(
    model: ResidualModel, scaler: Scaler, constant: np.ndarray | None
) -> ResidualModel:
    """A model with the raw values of constant channels `[D]`, NaN elsewhere.

    They don't count in scores while they keep their value. Where scores come from
    residuals they never count, since the Gaussian leaves them out.
    """
    if constant is None or not gives_scores(model.kind):
        return model
    values = apply_scaler(scaler, constant)
    return model._replace(params=with_constants(model.params, values))


def score_windows(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    *,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Point scores `[M, L]` of the windows of raw rows.

    Args:
        detector: the detector.
        index: from `entity_index`.
        values: `[N, D]` raw rows; NaN where a value is missing.
        starts: `[M]` first rows of the windows.
        batch_size: windows at once.
    """
    pieces = score_batches(detector, index, values, starts, batch_size=batch_size)
    return _joined(pieces, detector.window)


def score_batches(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    *,
    explain: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Any]:
    """`score_windows` in batches `[B, L]`, for long series; `values` may be a memmap.

    With `explain` batches are `Explained`.
    """
    gaussian = gaussian_of(detector, index)
    model = model_of(detector, index)
    common: tuple[Any, ...] = (model.params, gaussian)
    if explain:
        common += (attribution_matrix(gaussian, method=detector.attribution),)
    return _map(
        point_scorer,
        model,
        common,
        values,
        starts,
        window=detector.window,
        batch_size=batch_size,
        scaler=scaler_of(detector, index),
    )


def score_scaled(
    model: ResidualModel,
    gaussian: Gaussian,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
) -> np.ndarray:
    """Point scores `[M, L]` of the windows of scaled rows `[N, D]`."""
    options: dict[str, Any] = {"window": window, "batch_size": batch_size}
    common = (model.params, gaussian)
    return _joined(_map(point_scorer, model, common, rows, starts, **options), window)


def residual_batches(
    model: ResidualModel,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Residuals `[B, L, F]` of the windows of scaled rows, in batches; NaN if missing."""
    options: dict[str, Any] = {"window": window, "batch_size": batch_size}
    return _map(_residual_marker, model, model.params, rows, starts, **options)


def scoring_batch(model: ResidualModel, width: int, batch_size: int) -> int:
    """Windows at once: independent channels make D sequences of each window."""
    independent = model.architecture and model.architecture.channels == "independent"
    return max(1, batch_size // width) if independent else batch_size


def stream_detector(
    detector: Detector,
    *,
    entity: str = POOLED,
    adaptive_step: float = 0.0,
    rolling: float = 0.0,
    reading: Mapping[str, Any] | None = None,
) -> StreamDetector:
    """A stream of a detector on jax, compiled and ready for its first row.

    Uses the scaler, Gaussian and threshold of `entity`; `reading` is for `plan_by`, and
    the other options are those of `StreamDetector`.
    """
    index = entity_index(detector, entity)
    model, scaler = model_of(detector, index), scaler_of(detector, index)
    gaussian = gaussian_of(detector, index)
    attribution = attribution_matrix(gaussian, method=detector.attribution)

    # Constants inside the compiled function are faster than arguments of each call.
    def compiled(function: Any, *common: Any) -> Any:
        if scaler.offset.dtype == np.float32:
            return jax.jit(lambda raw: function(common, apply_scaler(scaler, raw)))
        # Without float64 on the device numpy centres the rows, in 0.1 ms per window.
        scored = jax.jit(lambda rows: function(common, rows))
        return lambda raw: scored(apply_scaler(scaler, raw))

    form, weights = model.form, (model.params, gaussian)
    full = compiled(point_scorer(form), *weights)
    holed = compiled(point_scorer(form, True), *weights)
    explained = compiled(point_scorer(form, True), *weights, attribution)

    def score(windows: np.ndarray) -> WindowResult:
        check_not_forked()
        points = np.asarray((holed if has_missing(windows) else full)(windows))
        found = window_scores(points, count=detector.allowed_points)
        return WindowResult(points[0], float(found[0]))

    def explain(windows: np.ndarray) -> np.ndarray:
        return np.asarray(explained(windows).contributions[0])

    shape = (1, detector.window, len(detector.channels))
    zeros = np.zeros(shape, scaler.offset.dtype)
    for windows in (zeros, zeros + np.nan):
        score(windows)
    explain(zeros)
    moving = {"adaptive_step": adaptive_step, "rolling": rolling}
    plan = stream_plan(detector, index, reading or {})
    return StreamDetector(plan, score, explain=explain, **moving)


def entity_streams(
    detector: Detector,
    *,
    entity: str | None = None,
    adaptive_step: float = 0.0,
    rolling: float = 0.0,
    reading: Mapping[str, Any] | None = None,
    exact: bool = False,
    ready: bool = True,
) -> EntityStreams:
    """Streams of all entities on jax, whose windows are scored in batches.

    Each entity has its own scaler, Gaussian and threshold, an unknown one those of
    `usual_entity`; with `entity` all have those of that entity. `exact` scores networks in
    batches of `EXACT_BATCHES`, padded. Without `ready`, the first rows compile, unless a
    detector of the same form did before. Other options are as in `stream_detector`.
    """
    places = {name: place for place, name in enumerate((*detector.entities, POOLED))}
    usual = entity or usual_entity(detector)
    model, form, (offset, scale) = detector.model, detector.model.form, detector.scalers
    # Parameters that differ between entities, `[E + 1, D]` each; see `constant_model`.
    each = [model_of(detector, place).params for place in range(len(places))]
    own = {
        name: np.stack(
            [one.get(name, np.full(len(detector.channels), usual, "f")) for one in each]
        )
        for name, usual in _NO_CONSTANT.items()
        if any(name in one for one in each)
    }
    common = jax.device_put((model.params, own, detector.gaussians))
    full, holed = _entity_scorer(form), _entity_scorer(form, True)
    most = scoring_batch(model, len(detector.channels), BATCH_SIZE)
    exact = exact and model.architecture is not None
    batches, padded = (EXACT_BATCHES, EXACT_PADDED) if exact else (BATCHES, PADDED)
    sizes = sorted({min(size, most) for size in batches})

    def score(entities: Sequence[str], windows: np.ndarray) -> list[WindowResult]:
        check_not_forked()
        index = np.array([places[name] for name in entities])
        with np.errstate(over="ignore"):
            rows = (windows - offset[index, None]) / scale[index, None]
            rows = rows.astype(np.float32, copy=False)
        points = np.empty(rows.shape[:2], np.float32)
        lacking = np.isnan(rows.min(axis=(1, 2), initial=np.inf))
        for function, group in ((full, ~lacking), (holed, lacking)):
            rest = np.flatnonzero(group)
            while len(rest):
                # The fewest calls with little padding, which repeats the last window.
                fit = [size for size in sizes if size <= padded * len(rest)]
                size = max(fit, default=sizes[0])
                part, rest = rest[:size], rest[size:]
                batch = np.pad(part, (0, size - len(part)), "edge")
                found = np.asarray(function(common, index[batch], rows[batch]))
                points[part] = found[: len(part)]
        found = window_scores(points, count=detector.allowed_points)
        return [*map(WindowResult, points, found.tolist())]

    explained = _explainer(form)

    @functools.lru_cache(OPENED)
    def weights(name: str) -> Any:
        gaussian = gaussian_of(detector, places[name])
        matrix = attribution_matrix(gaussian, method=detector.attribution)
        return model_of(detector, places[name]).params, gaussian, matrix

    def explain(name: str, windows: np.ndarray) -> np.ndarray:
        rows = apply_scaler(scaler_of(detector, places[name]), windows)
        return np.asarray(explained(weights(name), rows).contributions[0])

    @functools.lru_cache(OPENED)
    def open_entity(name: str) -> StreamDetector:
        return StreamDetector(
            stream_plan(detector, places[name], reading or {}),
            lambda windows: score([name], windows)[0],
            explain=functools.partial(explain, name),
            adaptive_step=adaptive_step,
            rolling=rolling,
        )

    shape = (detector.window, len(detector.channels))
    for size in sizes if ready else ():
        for value in (0.0, np.nan):
            score([usual] * size, np.full((size, *shape), value, offset.dtype))
    if ready:
        explain(usual, np.zeros((1, *shape), offset.dtype))
        # Imports are done here, not between two rows.
        open_entity(usual).drift()
    known = () if entity else detector.entities
    return EntityStreams(open_entity, score, known=known, usual=usual)


def stream_plan(detector: Detector, index: int, reading: Mapping[str, Any]) -> Plan:
    """The plan of an entity's stream whose rows are read by these options."""
    limit = fill_limit(detector, step=reading.get("step", ""))
    return plan_by(plan_of(detector, index)._replace(fill_limit=limit), reading)


# The functions below are cached, so that detectors of a `ResidualModel.form` share a trace.


@functools.lru_cache
def point_scorer(form: ResidualModel, missing: bool = False) -> WindowFunction:
    """`((params, gaussian), windows [B, L, D]) -> point scores [B, L]` of scaled windows.

    `((params, gaussian, attribution), windows) -> Explained`. `missing` says whether
    windows may have NaN cells, which takes longer.
    """
    if gives_scores(form.kind):
        return _own_scorer(form, missing)
    residuals = _observed_residuals(form, missing)
    copies = len(components_of(form.kind))
    gaps = np.array(form.context, int) - np.arange(len(form.context))

    def scores(common: Any, windows: Array) -> Any:
        params, gaussian, *attribution = common
        found, observed = residuals(params, windows)
        distance = deviations(gaussian, found, observed)
        if not attribution:
            return scores_of(gaussian, distance, observed)
        parts = split_deviations(attribution[0], distance)
        # Summed over the components of an ensemble.
        parts = parts.reshape(*parts.shape[:2], copies, -1).sum(axis=2)
        if form.context:
            parts = jnp.insert(parts, gaps, 0, axis=-1)
        points = scores_of(gaussian, distance, observed)
        # They become numpy arrays in `map_windows`.
        return Explained(points, parts)  # type: ignore[arg-type]

    return scores


@functools.lru_cache
def _entity_scorer(form: ResidualModel, missing: bool = False) -> Any:
    """`(common, index [B], windows [B, L, D]) -> point scores [B, L]`, compiled.

    `index` is that of the entity of each window, see `entity_streams`.
    """
    if not gives_scores(form.kind):
        residuals = _observed_residuals(form, missing)

        def own_scores(gaussian: Gaussian, *cells: Any) -> Any:
            found, observed = jax.tree.map(lambda one: one[None], cells)
            distance = deviations(gaussian, found, observed)
            return scores_of(gaussian, distance, observed)[0]

        def shared(common: Any, index: Array, rows: Array) -> Any:
            params, _, gaussians = common
            own = jax.tree.map(lambda field: field[index], gaussians)
            return jax.vmap(own_scores)(own, *residuals(params, rows))

        return jax.jit(shared)
    function = point_scorer(form, missing)

    def one(params: Params, own: Params, gaussian: Gaussian, rows: Array) -> Any:
        return function(({**params, **own}, gaussian), rows[None])[0]

    def every(common: Any, index: Array, rows: Array) -> Any:
        params, *fields = common
        own, gaussians = jax.tree.map(lambda field: field[index], fields)
        found: Array = jax.vmap(one, (None, 0, 0, 0))(params, own, gaussians, rows)
        return found

    return jax.jit(every)


@functools.lru_cache
def _explainer(form: ResidualModel) -> Any:
    return jax.jit(point_scorer(form, True))


def _own_scorer(form: ResidualModel, missing: bool) -> WindowFunction:
    """`point_scorer` of a kind of model that returns scores itself."""
    own, contributions = BASELINES[form.kind].scores, BASELINES[form.kind].contributions
    assert own is not None and contributions is not None

    def scores(common: Any, windows: Array) -> Any:
        params, _, *attribution = common
        given, observed = windows, None
        if missing:
            if (
                "still" in params
            ):  # a constant channel keeps its value where it is missing
                gone = jnp.isnan(windows) & (params["moving"] == 0)
                given = jnp.where(gone, params["still"], windows)
            given, observed = fill_missing(given)[0], ~jnp.isnan(windows)
        points = own(params, given, form.context)
        if observed is not None:
            seen = observed
            if "moving" in params:
                seen &= along(params["moving"] > 0, seen)
            seen = _scored(seen, form)
            points = jnp.where(seen.any(axis=-1), points, jnp.nan)
        if not attribution:
            return points
        return Explained(points, contributions(params, given, form.context))  # type: ignore[arg-type]

    return scores


@functools.lru_cache
def _residual_marker(form: ResidualModel, missing: bool) -> WindowFunction:
    residuals = _observed_residuals(form, missing)

    def marked(params: Params, windows: Array) -> Array:
        found: Array
        found, observed = residuals(params, windows)
        if observed is None:
            return found
        # An overflow is not a missing cell.
        found = jnp.where(jnp.isnan(found), jnp.inf, found)
        return jnp.where(observed, found, jnp.nan)

    return marked


@functools.lru_cache
def _observed_residuals(form: ResidualModel, missing: bool) -> Any:
    """`(params, windows) -> (residuals, mask of observed cells, or None for all)`."""
    every = residual_function(form.kind, form.architecture)
    copies = len(components_of(form.kind))

    def residuals(params: Params, windows: Array) -> tuple[Array, Array | None]:
        filled, observed = fill_missing(windows) if missing else (windows, None)
        if observed is not None:
            observed = _scored(jnp.tile(observed, (1, 1, copies)), form)
        return _scored(every(params, filled), form), observed

    return residuals


def _scored(values: Array, form: ResidualModel) -> Array:
    """Values `[B, L, D·K]` of K components without those of the context."""
    if not form.context:
        return values
    copies = len(components_of(form.kind))
    first = np.arange(copies) * (values.shape[-1] // copies)
    return jnp.delete(values, np.add.outer(first, form.context).ravel(), axis=-1)


def _map(
    make: Callable[[ResidualModel, bool], WindowFunction],
    model: ResidualModel,
    common: Any,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    batch_size: int,
    **options: Any,
) -> Iterator[Any]:
    """Results of a window function for all windows, in batches; options as `map_windows`."""
    function = make(model.form, has_missing(rows))
    size = scoring_batch(model, rows.shape[1], batch_size)
    return map_windows(function, common, rows, starts, batch_size=size, **options)


def _joined(pieces: Iterator[np.ndarray], window: int) -> np.ndarray:
    return np.concatenate([np.empty((0, window), np.float32), *pieces])
