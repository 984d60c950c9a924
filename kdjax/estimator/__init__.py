"""The PyOD-shaped face: `KDDetector`, for what is built around scikit-learn."""

from kdjax.estimator.checks import EXPECTED_FAILED_CHECKS
from kdjax.estimator.face import KDDetector

__all__ = ["EXPECTED_FAILED_CHECKS", "KDDetector"]
