"""Events of rows: their ids, and those that a stream has open.

    score           rows in alarm; alarms less than L rows apart are one event
    constant_moved  a channel that was constant in training has another value
    frozen          a channel, or all, unchanged for longer than in training
    no_data         no row for more than `max_gap` steps

`Open` is the state of a stream's events; its functions return the state after a row and
events that began or ended, as JSON objects. An event without an end has just begun.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

KINDS = ("score", "constant_moved", "frozen", "no_data")
SCORE, MOVED, FROZEN, NO_DATA = KINDS
ALL = "all"  # in place of channels that are frozen together
_ROUNDINGS = 4  # allowed rounding differences of a constant value


def event_id(entity: str, kind: str, instant: Any, subject: str = "") -> str:
    """A short id of an event, equal in files and streams.

    `instant` is its start: whole ns since 1970, a number, or the row's number.

    >>> event_id("pump", "score", 0)
    'c4328d2150db'
    """
    text = "\n".join((entity, kind, repr(float(instant)), subject))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def has_moved(constant: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether values of constant channels differ from `[D]`, `[…, D]`; never for NaN.

    >>> has_moved(np.float32([4, np.nan]), np.float32([[4, 1], [5, 1], [np.nan, 1]]))
    array([[False, False],
           [ True, False],
           [False, False]])
    """
    near = _ROUNDINGS * np.finfo(rows.dtype).eps * np.abs(constant)
    return np.abs(rows - constant) > near


class Peak(NamedTuple):
    """The most abnormal of some rows, with the contributions in their windows."""

    score: float = -math.inf  # the largest a_t in their windows
    time: Any = None  # of the row whose own a_t is largest
    channels: tuple[str, ...] = ()
    severity: float = -math.inf  # the largest of the rows
    shares: tuple[float, ...] = ()  # of the channels in all contributions
    window_score: float = -math.inf  # where severity is largest, and its τ
    tau: float = math.nan
    own: float = -math.inf  # a_t of the row at `time`


class Event(NamedTuple):
    """An open event."""

    id: str
    kind: str
    subject: str  # the channel, `all`, or empty
    start: Any
    text: str = ""
    # Of alarms: the time of the last one, rows since, and the rows up to it and after it.
    end: Any = None
    quiet: int = 0
    peak: Peak = Peak()
    ahead: Peak = Peak()


def message(event: Event, entity: str, end: Any = None) -> dict[str, Any]:
    """An event as a JSON object; one without `end` has just begun."""
    scored, peak = event.kind == SCORE, event.peak
    channels = [*peak.channels] if scored else [event.subject] * bool(event.subject)
    found = {
        "id": event.id,
        "kind": event.kind,
        "entity": entity,
        "start": event.start,
        "end": end,
        "severity": json_number(peak.severity),
        "peak": peak.time if scored else event.start,
        "channels": channels,
        "shares": [json_number(share) for share in peak.shares],
        "score": json_number(peak.score),
        "window_score": json_number(peak.window_score),
        "tau": json_number(peak.tau),
    }
    return found | ({"text": event.text} if event.text else {})


def json_number(value: float) -> float | str | None:
    """A number as JSON: null for none, a string for infinite."""
    if math.isfinite(value):
        return value
    return "inf" if value > 0 else None


def joined(peak: Peak, other: Peak) -> Peak:
    """The larger peak of both; the first of equal ones."""
    best = other if other.score > peak.score else peak
    worst = other if other.severity > peak.severity else peak
    latest = other if other.own > peak.own else peak
    severity, window_score, tau = worst.severity, worst.window_score, worst.tau
    best = best._replace(severity=severity, window_score=window_score, tau=tau)
    return best._replace(time=latest.time, own=latest.own)


def after_row(
    event: Event | None,
    alarm: bool,
    peak: Callable[[bool], Peak],
    *,
    window: int,
    begin: Callable[[Peak], Event],
) -> tuple[Event | None, list[tuple[Event, Any]]]:
    """The event of alarms that is open after a row, and the events that began or ended.

    Alarms less than `window` rows apart are one event. `peak` returns the row's own peak,
    and with True its channels too.
    """
    changed = []
    if event is not None and event.quiet + 1 >= window:
        changed.append((event, event.end))
        event = None
    if event is None:
        if alarm:
            event = begin(peak(True))
            changed.append((event, None))
        return event, changed
    now = peak(False)
    if now.score > joined(event.peak, event.ahead).score:
        now = peak(True)
    ahead = joined(event.ahead, now)
    if not alarm:
        return event._replace(ahead=ahead, quiet=event.quiet + 1), changed
    best = joined(event.peak, ahead)
    return event._replace(quiet=0, end=now.time, peak=best, ahead=Peak()), changed


def packed(event: Event) -> dict[str, Any]:
    """An event as JSON values, for `unpacked`."""
    found = event._asdict()
    for name in ("peak", "ahead"):
        peak: Peak = found[name]
        numbers = (peak.score, peak.severity, peak.window_score, peak.tau, peak.own)
        shares = [*map(repr, peak.shares)]
        found[name] = [peak.time, [*peak.channels], shares, *map(repr, numbers)]
    return found


def unpacked(found: Any) -> Event:
    """Reverses `packed`; LookupError, TypeError or ValueError for other values."""
    event = Event(**found)
    if event.kind not in KINDS or type(event.quiet) is not int:
        raise ValueError(f"{event.kind!r} is not a kind of event")
    peaks = []
    for time, channels, shares, *numbers in (found["peak"], found["ahead"]):
        names, parts = tuple(map(str, channels)), tuple(map(float, shares))
        score, severity, *rest = map(float, numbers)
        peaks.append(Peak(score, time, names, severity, parts, *rest))
    return event._replace(peak=peaks[0], ahead=peaks[1])
