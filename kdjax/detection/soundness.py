"""Whether the parts of a detector that was read fit together.

A manifest tells damage. This tells what a hand, or a fault of whoever wrote it, has put
together: shapes that differ, a scale of 0, a window of text.
"""

import numpy as np

from kdjax.detection.blame import METHODS
from kdjax.detection.detector import Detector
from kdjax.detection.plan import amount, names, number, whole, word
from kdjax.models.residual import error_names

_COUNTS = {
    "window": 1,
    "stride": 1,
    "allowed_points": 0,
    "min_duration": 1,
    "cooldown": 0,
}


def check_detector(detector: Detector) -> None:
    """Refuses parts that mean nothing, alone or together.

    Raises:
        LookupError, TypeError, ValueError: what is wrong with which part.
    """
    for name, least in _COUNTS.items():
        whole(least)(getattr(detector, name))
    for value in (detector.max_gap, detector.step):
        amount(value)
    names(list(detector.channels))
    for entity in detector.entities:
        word(entity)
    if detector.allowed_points >= detector.window:
        raise ValueError("allowed_points is not below window")
    if detector.blame not in METHODS:
        raise ValueError(f"{detector.blame!r} divides no score")
    if len(detector.thresholds) != len(detector.entities) + 1:
        raise ValueError("there is no threshold for each entity")
    for threshold in detector.thresholds:
        word(threshold.method)
        number(threshold.tau)
        amount(threshold.rate)
    if not isinstance(detector.card, dict):
        raise TypeError("the card is no JSON object")
    _check_arrays(detector)


def _check_arrays(detector: Detector) -> None:
    """Scalers and Normals: one an entity, of as many channels and errors."""
    places, width = len(detector.entities) + 1, len(detector.channels)
    errors = len(error_names(word(detector.model.kind), detector.channels))
    offset, scale = detector.scalers
    mean, whiten = detector.normals
    for values, shape, name in (
        (offset, (places, width), "scaler/offset"),
        (scale, (places, width), "scaler/scale"),
        (mean, (places, errors), "normal/mean"),
        (whiten, (places, errors, errors), "normal/whiten"),
    ):
        _check_floats(values, shape, name)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds a value that is not finite")
    if not (scale > 0).all():
        raise ValueError("scaler/scale is not above 0 throughout")
    # Channels never seen have no range, and scores may be infinite.
    for values in detector.ranges or ():
        _check_floats(values, (places, width), "range")
    if detector.reference is not None:
        _check_floats(detector.reference, (len(detector.reference), width), "reference")
    if detector.calibration and len(detector.calibration) != places:
        raise ValueError("there are no calibration scores for each entity")


def _check_floats(values: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if values.dtype.kind != "f" or values.shape != shape:
        raise ValueError(
            f"{name} is {values.dtype} of shape {values.shape}, expected floats of shape "
            f"{shape}"
        )
