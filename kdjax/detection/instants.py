"""Times of rows that come one by one: numbers or datetimes, and how they compare."""

import re
import sys
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.errors import DataError

_LARGEST = sys.float_info.max

CLOCKS = {
    "": "no time",
    "number": "a number as time",
    "local": "a time without zone",
    "zoned": "a time with zone",
}
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d(:?\d\d(:?\d\d([.,]\d+)?)?)?"
    r"\s*(Z|[+-]\d\d(:?\d\d)?)?)?"
)


class Instant(NamedTuple):
    """A time on one of three clocks.

    Attributes:
        clock: `number`, `local` or `zoned`; empty where rows have no time.
        value: whole ns since 1970 (of UTC if zoned), or the number.
    """

    clock: str
    value: float


def instant_of(time: Any) -> Instant:
    """A number, a datetime or an ISO text as an instant; None is one without clock.

    What is an instant already stays as it is.

    >>> instant_of("1970-01-01T01:00:00+01:00")
    Instant(clock='zoned', value=0)
    """
    if time is None:
        return Instant("", 0)
    if isinstance(time, Instant):
        return time
    if isinstance(time, (int, float, np.integer, np.floating)):
        if isinstance(time, bool) or not -_LARGEST <= time <= _LARGEST:
            raise DataError(f"the time {time} is not a finite number; correct it.")
        return Instant("number", float(time))
    try:
        if isinstance(time, str) and not _ISO.fullmatch(time):
            raise ValueError
        moment = pd.Timestamp(time)
        if pd.isna(moment):
            raise ValueError
        value = moment.as_unit("ns").value
    except (OverflowError, TypeError, ValueError):
        raise DataError(
            f"{time!r} is neither a number nor an ISO time such as 2024-01-31 23:59:00 "
            "of the years 1678 to 2261; correct it."
        ) from None
    return Instant("local" if moment.tz is None else "zoned", value)
