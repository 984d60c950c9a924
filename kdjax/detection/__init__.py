"""From residuals to alarms: Gaussian, scores, thresholds, events, saved detectors, streams."""

from kdjax import _room_names

__all__, __getattr__ = _room_names(__name__)
