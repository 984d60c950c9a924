"""What a student costs where it runs: bytes of its exported file, time per window."""

import statistics
import time

import numpy as np

from kdjax.detection.detector import Detector
from kdjax.export.scorer import load_onnx

ROUNDS = 50
WARM = 3  # The first calls allocate.


def exported(detector: Detector) -> bytes:
    """The ONNX file of the detector's first entity.

    Raises:
        ConfigError: the extra `onnx` is not installed.
    """
    from kdjax.export.detector import onnx_file

    return onnx_file(detector, 0)


def window_milliseconds(content: bytes, rounds: int = ROUNDS) -> float:
    """Median time of one window in onnxruntime, on one core.

    Args:
        content: an exported file.
        rounds: windows timed.
    """
    plan, run = load_onnx(content)
    # Speed doesn't depend on the values.
    window = np.zeros((1, plan.window, len(plan.channels)), np.float32)
    seconds = []
    for _ in range(rounds + WARM):
        started = time.perf_counter()
        run(window)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[WARM:])
