"""Costs of a detector in use: numbers, bytes of its file, time per window."""

import statistics
import time
from typing import Any

import numpy as np

from kdjax.detection.detector import Detector
from kdjax.errors import ConfigError
from kdjax.export.container import load_onnx

ROUNDS = 50
WARM = 3  # The first calls allocate.


def window_milliseconds(content: bytes, rounds: int = ROUNDS) -> float:
    """Median time of one window of an exported file in onnxruntime, on one core."""
    plan, run = load_onnx(content)
    # Speed doesn't depend on the values.
    window = np.zeros((1, plan.window, len(plan.channels)), np.float32)
    seconds = []
    for _ in range(rounds + WARM):
        started = time.perf_counter()
        run(window)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[WARM:])


def numbers(detector: Detector) -> int:
    """The number of values that score windows of one entity, F = K·D errors, K components.

    The model's parameters, offset and scale `[D]` of the scaler, mean `[F]` and whitening
    matrix `[F, F]` of the Gaussian (the attribution matrix follows from it), and τ.
    """
    errors: int = detector.gaussians.mean.shape[-1]
    scaler = 2 * len(detector.channels)
    return detector.model.parameters + scaler + errors + errors**2 + 1


def detector_costs(
    detector: Detector,
    rounds: int = ROUNDS,
    known: dict[tuple[Any, ...], float] | None = None,
) -> dict[str, Any]:
    """Costs of one entity's detector, JSON-able.

    `parameters` of the model, `numbers`, `bytes` of the ONNX file, `milliseconds` of a
    window in onnxruntime on one core (median of `rounds`), and `reason`: why one of the
    last two is None, else empty. `known` caches milliseconds, which are equal for detectors
    of one shape.
    """
    model, known = detector.model, {} if known is None else known
    shape = (model.form, detector.window, detector.attribution)
    costs: dict[str, Any] = {
        "parameters": model.parameters,
        "numbers": numbers(detector),
        "bytes": None,
        "milliseconds": None,
        "reason": "",
    }
    try:
        from kdjax.export.onnx import onnx_file  # ConfigError without onnx

        content = onnx_file(detector, 0)
        costs["bytes"] = len(content)
        if shape not in known:
            known[shape] = window_milliseconds(content, rounds)
        costs["milliseconds"] = known[shape]
    except ConfigError as error:
        costs["reason"] = str(error)
    return costs
