"""A detector: a residual model with the scaler, Gaussian and threshold of each entity.

Everything that turns windows into scores passes here: batches of raw or scaled rows, with
missing cells (NaN) or without, with contributions or without.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.scaler import Scaler
from kdjax.data.series import Ranges
from kdjax.data.windowing import has_missing
from kdjax.detection.attribution import contributions
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import deviations, scores_of
from kdjax.detection.thresholds import Threshold
from kdjax.errors import DataError
from kdjax.models.autoencoder import Architecture
from kdjax.models.missing import fill_missing
from kdjax.models.model import Params
from kdjax.models.residual import ResidualModel, components_of, residual_function
from kdjax.training.batching import WindowFunction, map_windows

POOLED = "pooled"

# Windows scored at once: larger batches gain little, see docs/performance.md.
BATCH_SIZE = 256


class Detector(NamedTuple):
    """All that scoring needs, and a card that says where it comes from.

    The last entry of `scalers`, `gaussians`, `thresholds`, `ranges` and `calibration` is
    the pooled one, for entities that the detector was not calibrated on.

    Attributes:
        model: windows of scaled rows to errors.
        channels: the D names, in the order that the model expects.
        window: L.
        stride: of the windows in evaluation.
        allowed_points: points of a window that may lie above τ without an alarm.
        max_gap: in median steps; windows end at longer steps in time.
        entities: the E names.
        scalers: offsets and scales, `[E + 1, D]` each.
        normals: means `[E + 1, F]` and whitening matrices `[E + 1, F, F]`.
        thresholds: E + 1 of them.
        card: JSON object: data, splits, settings, results, limits.
        ranges: lowest and highest raw training values, `[E + 1, D]` each; None where
            they are not known.
        calibration: E + 1 arrays, the sorted window scores that each τ was chosen on;
            empty where they are not known.
        reference: `[R, D]` raw rows of training, on which exported files are checked;
            None where there are none.
        step: median time between rows in training, in seconds, or in the unit of a
            numeric time column; 0 where rows had no time.
        blame: how scores are divided among channels, see `kdjax.detection.attribution`.
        min_duration: rows in a row above τ before an alarm.
        cooldown: rows after an alarm in which none begins.
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


class Explained(NamedTuple):
    """Scores of a batch of windows and what each channel contributed.

    Attributes:
        points: a_t, `[B, L]`; NaN in rows without an observed channel.
        contributions: `[B, L, D]`.
    """

    points: np.ndarray
    contributions: np.ndarray


def entity_index(detector: Detector, entity: str) -> int:
    """Place of an entity's scaler, Gaussian and threshold; `pooled` is the last."""
    if entity == POOLED:
        return len(detector.entities)
    try:
        return detector.entities.index(entity)
    except ValueError:
        raise DataError(
            f"the detector knows no entity {entity!r}: give one of "
            f"{', '.join(detector.entities)}, or {POOLED}."
        ) from None


def usual_entity(detector: Detector) -> str:
    """Whose threshold to take where rows don't tell: the only entity's, else pooled."""
    return detector.entities[0] if len(detector.entities) == 1 else POOLED


def scaler_of(detector: Detector, index: int) -> Scaler:
    """The scaler at a place from `entity_index`."""
    return Scaler(*(field[index] for field in detector.scalers))


def gaussian_of(detector: Detector, index: int) -> Gaussian:
    """The Gaussian at a place from `entity_index`."""
    return Gaussian(*(field[index] for field in detector.gaussians))


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
        values: `[N, D]` rows in the units of training; NaN where a value is missing.
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
    batch_size: int = BATCH_SIZE,
) -> Iterator[np.ndarray]:
    """`score_windows` piece by piece, `[B, L]` each, for series that fill the memory.

    `values` may be a memory map.
    """
    return _map_raw(
        point_scorer, detector, index, values, starts, batch_size=batch_size
    )


def explain_batches(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    *,
    attribution: np.ndarray,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Explained]:
    """Scores and contributions of the windows of raw rows, a batch a piece.

    Args:
        detector: the detector.
        index: from `entity_index`.
        values: `[N, D]` raw rows; may be a memory map.
        starts: `[M]` first rows of the windows.
        blame: `[F, F]` from `attribution_matrix` of the same Gaussian.
        batch_size: windows at once.
    """
    return _map_raw(
        explainer, detector, index, values, starts, attribution, batch_size=batch_size
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
    pieces: Iterator[np.ndarray] = _map(
        point_scorer(model.kind, model.architecture, has_missing(rows)),
        model,
        (model.params, gaussian),
        rows,
        starts,
        window=window,
        batch_size=batch_size,
    )
    return _joined(pieces, window)


def residual_batches(
    model: ResidualModel,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """The model's errors `[B, L, F]` for the windows of scaled rows, a batch a piece.

    NaN where a cell is missing.
    """
    return _map(
        _error_marker(model.kind, model.architecture, has_missing(rows)),
        model,
        model.params,
        rows,
        starts,
        window=window,
        batch_size=batch_size,
    )


def scoring_batch(model: ResidualModel, width: int, batch_size: int) -> int:
    """Windows at once: independent channels make D sequences of each window."""
    independent = model.architecture and model.architecture.channels == "independent"
    return max(1, batch_size // width) if independent else batch_size


@functools.lru_cache
def point_scorer(
    kind: str, architecture: Architecture | None, missing: bool = False
) -> WindowFunction:
    """`((params, gaussian), windows [B, L, D]) -> point scores [B, L]` of scaled windows.

    The same function for all detectors of a kind, so that one trace serves them all.

    Args:
        kind: of the residual model.
        architecture: of its network, if it has one.
        missing: whether windows may have NaN cells, which costs time.
    """
    errors = _observed_errors(kind, architecture, missing)

    def scores(common: tuple[Params, Gaussian], windows: Array) -> Array:
        params, gaussian = common
        found, observed = errors(params, windows)
        return scores_of(gaussian, deviations(gaussian, found, observed), observed)

    return scores


@functools.lru_cache
def explainer(
    kind: str, architecture: Architecture | None, missing: bool = False
) -> WindowFunction:
    """`((params, gaussian, attribution), windows) -> Explained` of scaled windows."""
    errors = _observed_errors(kind, architecture, missing)

    def explained(common: tuple[Params, Gaussian, Any], windows: Array) -> Any:
        params, gaussian, attribution = common
        found, observed = errors(params, windows)
        distance = deviations(gaussian, found, observed)
        parts = contributions(attribution, distance)
        # A channel's part is the sum of what its errors have.
        parts = parts.reshape(*parts.shape[:2], -1, windows.shape[-1]).sum(axis=2)
        points = scores_of(gaussian, distance, observed)
        # numpy arrays once they have left the device.
        return Explained(points, parts)  # type: ignore[arg-type]

    return explained


@functools.lru_cache
def _error_marker(
    kind: str, architecture: Architecture | None, missing: bool
) -> WindowFunction:
    errors = _observed_errors(kind, architecture, missing)

    def marked(params: Params, windows: Array) -> Array:
        found: Array
        found, observed = errors(params, windows)
        if observed is None:
            return found
        # An overflow is no missing cell.
        found = jnp.where(jnp.isnan(found), jnp.inf, found)
        return jnp.where(observed, found, jnp.nan)

    return marked


@functools.lru_cache
def _observed_errors(
    kind: str, architecture: Architecture | None, missing: bool
) -> Any:
    """`(params, windows) -> (errors, which cells were observed or None for all)`."""
    errors, copies = residual_function(kind, architecture), len(components_of(kind))
    if not missing:
        return lambda params, windows: (errors(params, windows), None)

    def filled_errors(params: Params, windows: Array) -> tuple[Array, Array]:
        filled = fill_missing(windows)
        observed = jnp.tile(filled.observed, (1, 1, copies))
        return errors(params, filled.windows), observed

    return filled_errors


def _map_raw(
    maker: Callable[[str, Architecture | None, bool], WindowFunction],
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    *further: np.ndarray,
    batch_size: int,
) -> Iterator[Any]:
    """What a maker's function gives for raw rows; `further` follows params and Gaussian."""
    model = detector.model
    return _map(
        maker(model.kind, model.architecture, has_missing(values)),
        model,
        (model.params, gaussian_of(detector, index), *further),
        values,
        starts,
        window=detector.window,
        batch_size=batch_size,
        scaler=scaler_of(detector, index),
    )


def _map(
    function: WindowFunction,
    model: ResidualModel,
    common: Any,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
    scaler: Scaler | None = None,
) -> Iterator[Any]:
    return map_windows(
        function,
        common,
        rows,
        starts,
        window=window,
        batch_size=scoring_batch(model, rows.shape[1], batch_size),
        scaler=scaler,
    )


def _joined(pieces: Iterator[np.ndarray], window: int) -> np.ndarray:
    return np.concatenate([np.empty((0, window), np.float32), *pieces])
