"""Streams on jax: one window at a time, compiled ahead of the first row."""

from typing import Any

import jax
import numpy as np

from kdjax.data.windowing import has_missing
from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import (
    POOLED,
    Detector,
    entity_index,
    explainer,
    gaussian_of,
    point_scorer,
    scaler_of,
)
from kdjax.detection.scores import window_scores
from kdjax.detection.stream_rules import plan_of
from kdjax.detection.streaming import StreamDetector, WindowResult


def stream_detector(
    detector: Detector,
    *,
    entity: str = POOLED,
    adaptive_step: float = 0.0,
    rolling: float = 0.0,
) -> StreamDetector:
    """A stream of a detector on jax, compiled and ready for its first row.

    Args:
        detector: the detector.
        entity: whose scaler, Gaussian and threshold to use; `pooled` for none.
        adaptive_step: see `StreamDetector`, also for `rolling`.
        following: the other way to move τ.
    """
    index = entity_index(detector, entity)
    model, scaler = detector.model, scaler_of(detector, index)
    gaussian = gaussian_of(detector, index)
    attribution = attribution_matrix(gaussian, method=detector.attribution)

    # Compiled with the arrays inside, which is faster than to hand them over each time.
    def compiled(function: Any, *common: Any) -> Any:
        return jax.jit(
            lambda raw: function(common, (raw - scaler.offset) / scaler.scale)
        )

    kind = model.kind, model.architecture
    full = compiled(point_scorer(*kind), model.params, gaussian)
    holed = compiled(point_scorer(*kind, True), model.params, gaussian)
    explained = compiled(explainer(*kind, True), model.params, gaussian, attribution)

    def score(windows: np.ndarray) -> WindowResult:
        points = np.asarray((holed if has_missing(windows) else full)(windows))
        found = window_scores(points, count=detector.allowed_points)
        return WindowResult(points[0], float(found[0]))

    def explain(windows: np.ndarray) -> np.ndarray:
        return np.asarray(explained(windows).contributions[0])

    shape = (1, detector.window, len(detector.channels))
    for value in (0.0, np.nan):
        score(np.full(shape, value, np.float32))
    explain(np.zeros(shape, np.float32))
    plan = plan_of(detector, index)
    return StreamDetector(
        plan, score, explain=explain, adaptive_step=adaptive_step, rolling=rolling
    )
