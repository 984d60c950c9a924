"""A detector: a residual model with the scaler, Normal and threshold of each entity."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.detection.normal import Normal
from kdjax.detection.scores import point_scores
from kdjax.detection.threshold import Threshold
from kdjax.errors import DataError
from kdjax.models.autoencoder import Architecture, Params
from kdjax.models.batches import map_windows
from kdjax.models.residual import ResidualModel, errors_function

POOLED = "pooled"


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
    batch_size: int = 128,
) -> np.ndarray:
    """Point scores `[M, L]` of the windows of raw rows.

    Args:
        detector: the detector.
        index: from `entity_index`.
        values: `[N, D]` rows in the units of training.
        starts: `[M]` first rows of the windows.
        batch_size: windows at once.
    """
    scaler = Scaler(*(field[index] for field in detector.scalers))
    normal = Normal(*(field[index] for field in detector.normals))
    return score_scaled(
        detector.model,
        normal,
        apply_scaler(scaler, values),
        starts,
        window=detector.window,
        batch_size=batch_size,
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
    scores = _point_scorer(model.kind, model.architecture)
    batches = map_windows(
        lambda windows: scores(model.params, normal, windows),
        rows,
        starts,
        window=window,
        batch_size=scoring_batch(model, rows.shape[1], batch_size),
    )
    return np.concatenate([np.empty((0, window), np.float32), *batches])


def scoring_batch(model: ResidualModel, width: int, batch_size: int) -> int:
    """Windows at once: independent channels make D sequences of each window."""
    independent = model.architecture and model.architecture.channels == "independent"
    return max(1, batch_size // width) if independent else batch_size


@functools.lru_cache
def error_batches(
    kind: str, architecture: Architecture | None
) -> Callable[[Params, Array], Array]:
    """The jitted errors of a kind of model; one trace serves all its detectors."""
    return jax.jit(errors_function(kind, architecture))


@functools.lru_cache
def _point_scorer(
    kind: str, architecture: Architecture | None
) -> Callable[[Params, Normal, Array], Array]:
    errors = errors_function(kind, architecture)

    @jax.jit
    def scores(params: Params, normal: Normal, windows: Array) -> Array:
        return point_scores(normal, errors(params, windows))

    return scores
