"""Times of rows in streams: numbers, local times and times with a zone."""

import sys
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.cells import exact_number
from kdjax.data.times import WHOLE, iso_time
from kdjax.detection.stream_rules import as_number, as_text
from kdjax.errors import DataError

_LARGEST = sys.float_info.max

CLOCKS = {
    "": "no time",
    "number": "a number as time",
    "local": "a time without zone",
    "zoned": "a time with zone",
}


class Timestamp(NamedTuple):
    """A time on one of three clocks."""

    clock: str  # `number`, `local` or `zoned`; empty if rows have no time
    value: float  # whole ns since 1970 (of UTC if zoned), or the number


def parse_timestamp(time: Any) -> Timestamp:
    """A number, a datetime, or a text of one as a timestamp; None has no clock.

    >>> parse_timestamp("1970-01-01T01:00:00+01:00")
    Timestamp(clock='zoned', value=0)
    """
    if time is None:
        return Timestamp("", 0)
    if isinstance(time, Timestamp):
        return time
    if isinstance(time, str) and (number := exact_number(time)) is not None:
        time = number
    if isinstance(time, (int, float, np.integer, np.floating)):
        if isinstance(time, bool) or not -_LARGEST <= time <= _LARGEST:
            raise DataError(f"the time {time} is not a finite number; correct it.")
        # Whole numbers such as ns since 1970 may be too large for a float.
        whole = int(time) if isinstance(time, (int, np.integer)) else 0
        exact = WHOLE < abs(whole) < 2.0**63
        return Timestamp("number", whole if exact else float(time))
    try:
        moment = pd.Timestamp(iso_time(time) or "" if isinstance(time, str) else time)
        if pd.isna(moment):
            raise ValueError
        value = moment.as_unit("ns").value
    except (OverflowError, TypeError, ValueError):
        raise DataError(
            f"{time!r} is neither a number nor an ISO time such as 2024-01-31 23:59:00 "
            "of the years 1678 to 2261; correct it."
        ) from None
    return Timestamp("local" if moment.tz is None else "zoned", value)


def said_time(time: Any, instant: Timestamp, row: int) -> Any:
    """A time in the form of events: a text, a number, or the row's number."""
    if not instant.clock:
        return row
    if isinstance(time, str) or instant.clock == "number":
        return time if isinstance(time, str) else instant.value
    if isinstance(time, Timestamp):
        zone = "UTC" if instant.clock == "zoned" else None
        time = pd.Timestamp(instant.value, tz=zone)
    return pd.Timestamp(time).isoformat()


def as_timestamp(clock: Any, value: Any) -> Timestamp:
    """A time from a state; ValueError or TypeError if invalid."""
    if as_text(clock) not in CLOCKS:
        raise ValueError(f"{clock!r} is not a clock")
    as_number(value)
    return Timestamp(clock, value)  # not converted: ns don't fit into a float
