"""A detector: a residual model with the scaler, Normal and threshold of each entity."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from kdjax.data.scaler import Scaler
from kdjax.detection.normal import Normal
from kdjax.detection.scores import point_scores
from kdjax.detection.threshold import Threshold
from kdjax.errors import DataError
from kdjax.models.autoencoder import Architecture, Params
from kdjax.models.batches import map_windows
from kdjax.models.residual import ResidualModel, errors_function

POOLED = "pooled"

# Windows scored at once: larger batches gain little, see docs/performance.md.
BATCH_SIZE = 256


class Detector(NamedTuple):
    """All that scoring needs, and a card that says where it comes from.

    The last entry of `scalers`, `normals` and `thresholds` is the pooled one, for
    entities that the detector was not calibrated on.

    Attributes:
        model: windows of scaled rows to errors.
        channels: the D names, in the order that the model expects.
        window: L.
        stride: of the windows in evaluation.
        allowed_points: points of a window that may lie above τ without an alarm.
        max_gap: in median steps; windows end at longer steps in time.
        entities: the E names.
        scalers: offsets and scales, `[E + 1, D]` each.
        normals: means `[E + 1, D]` and whitening matrices `[E + 1, D, D]`.
        thresholds: E + 1 of them.
        card: JSON object: data, splits, settings, results, limits.
    """

    model: ResidualModel
    channels: tuple[str, ...]
    window: int
    stride: int
    allowed_points: int
    max_gap: float
    entities: tuple[str, ...]
    scalers: Scaler
    normals: Normal
    thresholds: tuple[Threshold, ...]
    card: dict[str, Any]


def entity_index(detector: Detector, entity: str) -> int:
    """Place of an entity's scaler, Normal and threshold; `pooled` is the last."""
    if entity == POOLED:
        return len(detector.entities)
    try:
        return detector.entities.index(entity)
    except ValueError:
        raise DataError(
            f"the detector knows no entity {entity!r}: give one of "
            f"{', '.join(detector.entities)}, or {POOLED}."
        ) from None


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
        values: `[N, D]` rows in the units of training.
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
    return _score_batches(
        detector.model,
        Normal(*(field[index] for field in detector.normals)),
        values,
        starts,
        window=detector.window,
        batch_size=batch_size,
        scaler=Scaler(*(field[index] for field in detector.scalers)),
    )


def score_scaled(
    model: ResidualModel,
    normal: Normal,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
) -> np.ndarray:
    """Point scores `[M, L]` of the windows of scaled rows `[N, D]`."""
    pieces = _score_batches(
        model, normal, rows, starts, window=window, batch_size=batch_size
    )
    return _joined(pieces, window)


def error_batches(
    model: ResidualModel,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """The model's errors `[B, L, D]` for the windows of scaled rows, a batch a piece."""
    return map_windows(
        errors_function(model.kind, model.architecture),
        model.params,
        rows,
        starts,
        window=window,
        batch_size=scoring_batch(model, rows.shape[1], batch_size),
    )


def scoring_batch(model: ResidualModel, width: int, batch_size: int) -> int:
    """Windows at once: independent channels make D sequences of each window."""
    independent = model.architecture and model.architecture.channels == "independent"
    return max(1, batch_size // width) if independent else batch_size


@functools.lru_cache
def point_scorer(
    kind: str, architecture: Architecture | None
) -> Callable[[tuple[Params, Normal], Array], Array]:
    """`((params, normal), windows [B, L, D]) -> point scores [B, L]` of scaled windows.

    The same function for all detectors of a kind, so that one trace serves them all.
    """
    errors = errors_function(kind, architecture)

    def scores(common: tuple[Params, Normal], windows: Array) -> Array:
        params, normal = common
        return point_scores(normal, errors(params, windows))

    return scores


def _score_batches(
    model: ResidualModel,
    normal: Normal,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
    scaler: Scaler | None = None,
) -> Iterator[np.ndarray]:
    return map_windows(
        point_scorer(model.kind, model.architecture),
        (model.params, normal),
        rows,
        starts,
        window=window,
        batch_size=scoring_batch(model, rows.shape[1], batch_size),
        scaler=scaler,
    )


def _joined(pieces: Iterator[np.ndarray], window: int) -> np.ndarray:
    return np.concatenate([np.empty((0, window), np.float32), *pieces])
