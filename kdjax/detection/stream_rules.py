"""The rules of a stream, except how a window is scored, as JSON.

A plan is stored inside exported files, so that a stream needs no other file.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.data.schema import Reading, check_reading
from kdjax.detection.reading import OF_ROWS, fill_limit, read_by, reading_of
from kdjax.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from kdjax.detection.detector import Detector

# Order statistics of the calibration scores that a plan keeps.
KEPT = 1000


class Plan(NamedTuple):
    """The rules of a stream; fields without a comment are those of `Detector`."""

    entity: str  # of the scaler, Gaussian and threshold; `pooled` for none
    channels: tuple[str, ...]
    window: int
    stride: int
    tau: float  # τ; a window alarms when its score is above
    rate: float  # wanted false-alarm rate among normal windows; 0 for `fixed`
    threshold_method: str  # how τ was chosen
    allowed_points: int
    max_gap: float
    step: float
    min_duration: int
    cooldown: int
    # Sorted window scores of calibration, at most `KEPT` of them at evenly spaced ranks;
    # empty where unknown.
    calibration: tuple[float, ...]
    # Approximate number of calibration windows that share no row; 0: no comparison.
    disjoint: int
    fill_limit: int = 0  # most rows that repeat a value for missing cells; 0 for none
    dtype: str = "float32"  # of the rows that the detector takes, or `float64`
    reading: Reading = Reading()
    context: tuple[str, ...] = ()
    constant: tuple[float | None, ...] = ()  # a value per channel, None if not constant
    unchanged: tuple[int, ...] = ()  # longest runs of each channel, and of all
    no_data: bool = False
    clear: float = 1.0


def plan_of(detector: "Detector", index: int) -> Plan:
    """The plan of a detector's entity; `index` from `entity_index`."""
    threshold = detector.thresholds[index]
    scores = np.empty(0)
    if detector.calibration:
        scores = np.sort(detector.calibration[index]).astype(np.float64)
    ranks = np.rint(np.linspace(0, len(scores) - 1, min(len(scores), KEPT)))
    constant = [] if detector.constant is None else detector.constant[index].tolist()
    constant = [None if math.isnan(value) else value for value in constant]
    unchanged = () if detector.unchanged is None else detector.unchanged[index].tolist()
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
        calibration=tuple(scores[ranks.astype(np.int64)].tolist()),
        disjoint=separate_scores(detector, index),
        fill_limit=fill_limit(detector),
        dtype=detector.scalers.offset.dtype.name,
        reading=reading_of(detector),
        context=detector.context,
        constant=tuple(constant) if any(v is not None for v in constant) else (),
        unchanged=tuple(unchanged),
        no_data=detector.no_data,
        clear=float(detector.clear),
    )


def separate_scores(detector: "Detector", index: int) -> int:
    """Approximate number of calibration windows of an entity that share no row.

    0 if there are none, or those of all entities, whose scores may differ.
    """
    if not detector.calibration or detector.thresholds[index].source == "shared":
        return 0
    spacing = detector.thresholds[index].spacing or detector.stride
    share = min(spacing, detector.window) / detector.window
    return math.ceil(len(detector.calibration[index]) * share)


def plan_by(plan: Plan, given: Mapping[str, Any]) -> Plan:
    """A plan whose rows are read with these options of `read_table`; see `read_by`."""
    limit = plan.fill_limit or (plan.window if given.get("step") else 0)
    return plan._replace(reading=read_by(plan.reading, given), fill_limit=limit)


def plan_to_json(plan: Plan, *, whole: bool = False) -> str:
    """A plan as JSON text; infinite numbers are the strings `inf` and `-inf`.

    Fields with their default are left out unless `whole`.
    """

    def plain(number: float) -> float | str:
        return number if math.isfinite(number) else str(number)

    fields = plan._asdict() | {
        "tau": plain(plan.tau),
        "max_gap": plain(plan.max_gap),
        "calibration": [plain(score) for score in plan.calibration],
    }
    usual, reading = Reading._field_defaults, plan.reading._asdict()
    fields["reading"] = {n: v for n, v in reading.items() if v != usual[n]}
    for name, usual in Plan._field_defaults.items():  # as version 0.1.0 wrote plans
        if fields[name] in (usual, {}) and not whole:
            del fields[name]
    return json.dumps(fields, allow_nan=False, separators=(",", ":"))


def plan_from_json(text: str) -> Plan:
    """The plan that `plan_to_json` wrote.

    Raises:
        ArtifactError: the text is not a plan.
    """
    try:
        found = json.loads(text)
        found = Plan._field_defaults | found
        if set(found) != set(Plan._fields):
            odd = sorted(set(found) ^ set(Plan._fields))
            raise ValueError(f"missing or unknown: {', '.join(map(str, odd))}")
        plan = Plan(**{name: PLAN_CHECKS[name](found[name]) for name in Plan._fields})
        if plan.allowed_points >= plan.window:
            raise ValueError("allowed_points is not below window")
        for name, more in (("constant", 0), ("unchanged", 1)):
            if len(getattr(plan, name)) not in (0, len(plan.channels) + more):
                raise ValueError(f"{name} is not of these channels")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"this is not a stream plan of kdjax ({error}): export the detector again."
        ) from error
    return plan


# Checks of values that were read from JSON; each raises TypeError or ValueError.


def as_text(value: Any) -> str:
    """The value if it is text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def as_names(value: Any) -> tuple[str, ...]:
    """The value if it is a list of one or more different texts."""
    found = tuple(as_text(name) for name in value)
    if not isinstance(value, list) or not found or len(set(found)) < len(found):
        raise ValueError("channels are not a list of different names")
    return found


def as_count(least: int) -> Callable[[Any], int]:
    """A check for whole numbers of at least `least`."""

    def read(value: Any) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"{value!r} is not a whole number of at least {least}")
        return value

    return read


def as_number(value: Any) -> float:
    """The value if it is a number, or the string `inf` or `-inf`."""
    if type(value) not in (int, float) and value not in ("inf", "-inf"):
        raise ValueError(f"{value!r} is not a number")
    if math.isnan(float(value)):
        raise ValueError("nan is not a number")
    return float(value)


def as_amount(value: Any) -> float:
    """The value if it is a number of at least 0."""
    number = as_number(value)
    if number < 0:
        raise ValueError(f"{value!r} is below 0")
    return number


def as_share(value: Any) -> float:
    """The value if it is a number above 0, at most 1."""
    number = as_number(value)
    if not 0 < number <= 1:
        raise ValueError(f"{value!r} is not above 0 and at most 1")
    return number


def _dtype(value: Any) -> str:
    if value not in ("float32", "float64"):
        raise ValueError(f"{value!r} is neither float32 nor float64")
    return str(value)


def as_flag(value: Any) -> bool:
    """The value if it is true or false."""
    if type(value) is not bool:
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _reading(value: Any) -> Reading:
    if isinstance(value, Reading):  # the default
        return value
    usual = Reading._field_defaults
    found: dict[str, Any] = {}
    for name, given in value.items():
        several = isinstance(given, list)
        if name not in OF_ROWS or several != isinstance(usual[name], tuple):
            raise TypeError(f"{name} is {given!r}")
        found[name] = tuple(map(as_text, given)) if several else as_text(given)
    reading = Reading(**found)
    try:
        check_reading(reading)
    except ConfigError as error:
        raise ValueError(error) from None
    return reading


def _scores(value: Any) -> tuple[float, ...]:
    scores = tuple(as_number(score) for score in value)
    if list(scores) != sorted(scores):
        raise ValueError("calibration scores are not sorted")
    return scores


PLAN_CHECKS: dict[str, Callable[[Any], Any]] = {
    "entity": as_text,
    "channels": as_names,
    "window": as_count(1),
    "stride": as_count(1),
    "tau": as_number,
    "rate": as_amount,
    "threshold_method": as_text,
    "allowed_points": as_count(0),
    "max_gap": as_amount,
    "step": as_amount,
    "min_duration": as_count(1),
    "cooldown": as_count(0),
    "calibration": _scores,
    "disjoint": as_count(0),
    "fill_limit": as_count(0),
    "dtype": _dtype,
    "reading": _reading,
    "context": lambda value: as_names(value) if value else (),
    "constant": lambda value: tuple(v if v is None else as_number(v) for v in value),
    "unchanged": lambda value: tuple(map(as_count(0), value)),
    "no_data": as_flag,
    "clear": as_share,
}
