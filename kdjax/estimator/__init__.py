"""The PyOD-shaped face: `KDDetector`, for what is built around scikit-learn."""

from kdjax.estimator.face import EXPECTED_FAILED_CHECKS, KDDetector

__all__ = ["EXPECTED_FAILED_CHECKS", "KDDetector"]
