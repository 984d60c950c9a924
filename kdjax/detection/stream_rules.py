"""What a stream must know of a detector besides how to score, as JSON.

A plan travels inside exported files, so that a stream needs nothing else.
"""

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.errors import ArtifactError

if TYPE_CHECKING:
    from kdjax.detection.detector import Detector

# Order statistics of the calibration scores that a plan keeps.
KEPT = 1000


class Plan(NamedTuple):
    """All that a stream must know besides how to score a window.

    Attributes:
        entity: whose scaler, Gaussian and threshold these are; `pooled` for none.
        channels: the D names, in the order that the model expects.
        window: L.
        stride: rows from one calibration window to the next.
        tau: τ; a window alarms when its score is above.
        rate: the wanted share of false alarms among normal windows; 0 for `fixed`.
        threshold_method: how τ was chosen.
        allowed_points: points of a window that may lie above τ without an alarm.
        max_gap: in steps; the buffer is emptied at longer ones.
        step: median time between rows in training, in seconds, or in the unit of a
            numeric time column; 0 where it is not known, so that there are no gaps.
        min_duration: rows in a row above τ before an alarm.
        cooldown: rows after an alarm in which none begins.
        calibration: sorted window scores of calibration, at most `KEPT` of them at
            evenly spaced ranks; empty where they are not known.
        disjoint: about how many calibration windows share no row.
    """

    entity: str
    channels: tuple[str, ...]
    window: int
    stride: int
    tau: float
    rate: float
    threshold_method: str
    allowed_points: int
    max_gap: float
    step: float
    min_duration: int
    cooldown: int
    calibration: tuple[float, ...]
    disjoint: int


def plan_of(detector: "Detector", index: int) -> Plan:
    """The plan of a detector's entity; `index` from `entity_index`."""
    threshold = detector.thresholds[index]
    scores = np.sort(detector.calibration[index]) if detector.calibration else ()
    return Plan(
        entity=(*detector.entities, "pooled")[index],
        channels=detector.channels,
        window=detector.window,
        stride=detector.stride,
        tau=float(threshold.tau),
        rate=float(threshold.rate),
        threshold_method=threshold.method,
        allowed_points=detector.allowed_points,
        max_gap=float(detector.max_gap),
        step=float(detector.step),
        min_duration=detector.min_duration,
        cooldown=detector.cooldown,
        calibration=_thinned(np.asarray(scores, np.float64)),
        disjoint=math.ceil(
            len(scores) * min(detector.stride, detector.window) / detector.window
        ),
    )


def plan_to_json(plan: Plan) -> str:
    """A plan as JSON text; infinite numbers are the words `inf` and `-inf`."""
    fields = plan._asdict() | {
        "tau": _plain(plan.tau),
        "max_gap": _plain(plan.max_gap),
        "calibration": [_plain(score) for score in plan.calibration],
    }
    return json.dumps(fields, allow_nan=False, separators=(",", ":"))


def plan_from_json(text: str) -> Plan:
    """The plan that `plan_to_json` wrote.

    Raises:
        ArtifactError: the text is not that of a plan.
    """
    try:
        found = json.loads(text)
        if set(found) != set(Plan._fields):
            odd = sorted(set(found) ^ set(Plan._fields))
            raise ValueError(f"missing or unknown: {', '.join(map(str, odd))}")
        plan = Plan(**{name: _READ[name](found[name]) for name in Plan._fields})
        if plan.allowed_points >= plan.window:
            raise ValueError("allowed_points is not below window")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"this is no stream plan of kdjax ({error}): export the detector again."
        ) from error
    return plan


def _thinned(ordered: np.ndarray) -> tuple[float, ...]:
    """At most `KEPT` of sorted scores, the smallest and the largest among them."""
    ranks = np.arange(len(ordered))
    if len(ordered) > KEPT:
        ranks = np.rint(np.linspace(0, len(ordered) - 1, KEPT)).astype(np.int64)
    return tuple(ordered[ranks].tolist())


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def word(value: Any) -> str:
    """A value out of JSON that has to be text; like those below, raises otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def names(value: Any) -> tuple[str, ...]:
    """A value out of JSON that has to be a list of different texts, one at least."""
    found = tuple(word(name) for name in value)
    if not isinstance(value, list) or not found or len(set(found)) < len(found):
        raise ValueError("channels are no list of different names")
    return found


def whole(least: int) -> Callable[[Any], int]:
    """Reads values out of JSON that have to be whole numbers of at least `least`."""

    def read(value: Any) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"{value!r} is no whole number of at least {least}")
        return value

    return read


def number(value: Any) -> float:
    """A value out of JSON that has to be a number, or `inf` or `-inf`."""
    if type(value) not in (int, float) and value not in ("inf", "-inf"):
        raise ValueError(f"{value!r} is no number")
    if math.isnan(float(value)):
        raise ValueError("nan is no number")
    return float(value)


def amount(value: Any) -> float:
    """A value out of JSON that has to be a number of at least 0."""
    if number(value) < 0:
        raise ValueError(f"{value!r} is below 0")
    return number(value)


def _scores(value: Any) -> tuple[float, ...]:
    scores = tuple(number(score) for score in value)
    if list(scores) != sorted(scores):
        raise ValueError("calibration scores are not sorted")
    return scores


_READ: dict[str, Callable[[Any], Any]] = {
    "entity": word,
    "channels": names,
    "window": whole(1),
    "stride": whole(1),
    "tau": number,
    "rate": amount,
    "threshold_method": word,
    "allowed_points": whole(0),
    "max_gap": amount,
    "step": amount,
    "min_duration": whole(1),
    "cooldown": whole(0),
    "calibration": _scores,
    "disjoint": whole(0),
}
