"""Resamples readings of sensors with different rates to rows on an even grid.

Rows are one step apart, at whole multiples of the step: since 1970 (UTC for times with an
offset), or since 0 for numbers. The row at t holds the mean of a tag's readings in
(t − step, t], so it uses no reading after t. Without a reading it repeats the value of the
row before, for up to `limit` rows; later, and before its first reading, a tag is missing.
Rows more than `limit` steps after the last reading of any tag are left out.
"""

import numpy as np
import pandas as pd

from kdjax.data.cells import to_number
from kdjax.errors import ConfigError, DataError

_MOST = 2.0**53  # most steps since 0 that a float64 counts exactly


def parse_step(text: str | float) -> tuple[float, bool]:
    """A step in seconds, or in the unit of numeric times, and whether it has a unit.

    >>> parse_step("1min"), parse_step("500ms"), parse_step("10")
    ((60.0, True), (0.5, True), (10.0, False))
    """
    number = to_number(text)
    try:
        step = pd.Timedelta(text).total_seconds() if number is None else number
    except (OverflowError, ValueError):
        step = np.nan
    if not 1e-9 <= step < np.inf:
        raise ConfigError(
            f"data.step={text!r} is not a step: give a duration such as 1min or 10s, "
            "or a number of seconds (numeric times: a number in their unit)."
        )
    return float(step), number is None


def step_of(text: str | float, *, dated: bool) -> float:
    """A step from `parse_step` for these times; DataError if it has no unit there."""
    step, has_unit = parse_step(text)
    if has_unit and not dated:
        raise DataError(
            f"step={text} is a duration, but the times are numbers: give the step as a "
            "number in their unit, or use dates as times."
        )
    return step


def step_index(time: np.ndarray, step: float) -> np.ndarray:
    """The number k of the step ((k − 1)·step, k·step] that each time lies in, `[N]` int64.

    Args:
        time: `[N]` datetime64 or numbers.
        step: in seconds, or in the unit of the numbers.

    >>> step_index(np.array([0.0, 0.1, 10.0, 10.1]), 10.0)
    array([0, 1, 1, 2])
    """
    if np.issubdtype(time.dtype, np.datetime64):
        numbers: np.ndarray = time.astype("datetime64[ns]").astype(np.int64)
        return -(-numbers // _nanoseconds(step))
    if time.dtype.kind == "i" and float(step).is_integer():
        return -(-time // int(step))  # exact, such as ns since 1970
    quotient = time / step
    if not (np.abs(quotient) < _MOST).all():
        raise DataError(
            f"times up to {np.abs(time).max():g} are too many steps of {step:g}: correct "
            "the times, or set a larger step."
        )
    # Rounding may put the quotient of a multiple of the step just beside a whole number.
    nearest = np.rint(quotient)
    exact = np.abs(quotient - nearest) <= 4 * np.spacing(np.abs(quotient))
    return np.where(exact, nearest, np.ceil(quotient)).astype(np.int64)


def step_time(index: np.ndarray, step: float, *, dated: bool) -> np.ndarray:
    """The times at which steps end: datetime64[ns] if `dated`, else numbers.

    Multiples of a whole step are whole numbers, unless int64 can't hold them.
    """
    if dated:
        return (index * _nanoseconds(step)).astype("datetime64[ns]")
    times = index * float(step)
    whole = float(step).is_integer() and (np.abs(times) < 2.0**63).all()
    return index * int(step) if whole else times


def to_grid(
    time: np.ndarray,
    tag: np.ndarray,
    value: np.ndarray,
    *,
    step: float,
    tags: int,
    limit: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Readings as rows on an even grid: times `[N]` and values `[N, D]` float64.

    Args:
        time: `[R]` datetime64 or numbers, of each tag in order.
        tag: `[R]` numbers of the tags, from 0.
        value: `[R]` finite numbers.
        step: between rows, in seconds or in the unit of numeric times.
        tags: D.
        limit: most rows for which a tag keeps its last value; None for any number.

    >>> time, tag = np.array([1.0, 9.0, 12.0, 41.0]), np.array([0, 0, 1, 0])
    >>> rows = to_grid(time, tag, np.array([2.0, 4.0, 7.0, 5.0]), step=10, tags=2, limit=1)
    >>> rows[0].tolist(), rows[1].tolist()
    ([10, 20, 30, 50], [[3.0, nan], [3.0, 7.0], [nan, 7.0], [5.0, nan]])
    """
    index = step_index(time, step)
    # The steps with a reading, and up to `limit` after each.
    lengths, used = step_runs(index, limit)
    first = np.repeat(used - (np.cumsum(lengths) - lengths), lengths)
    steps = first + np.arange(len(first))
    place = np.searchsorted(steps, index) * tags + tag
    size = len(steps) * tags
    count = np.bincount(place, minlength=size)
    total = np.bincount(place, weights=value, minlength=size)
    mean = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    rows, *_ = fill_forward(mean.reshape(-1, tags), limit)
    dated = np.issubdtype(time.dtype, np.datetime64)
    return step_time(steps, step, dated=dated), rows


def fill_forward(
    rows: np.ndarray,
    limit: int | None,
    last: np.ndarray | None = None,
    ages: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Missing cells of rows `[N, D]` filled with the last value of their channel.

    A value is repeated for at most `limit` rows (None: any number); later cells stay
    missing. `last` `[D]` are the values before the first row, NaN for none, and `ages`
    `[D]` the rows since; the function also returns both as of the last row.

    >>> column, last = np.array([[np.nan], [5], [np.nan], [np.nan]]), np.array([7.0])
    >>> fill_forward(column, 1, last)[0].ravel()
    array([ 7.,  5.,  5., nan])
    """
    last = np.full(rows.shape[1], np.nan, rows.dtype) if last is None else last
    ages = np.zeros(rows.shape[1], np.int64) if ages is None else ages
    numbers = np.arange(1, len(rows) + 1)[:, None]
    # Row number from 1 of the source of a cell's value; 0 or below for `last`.
    source = np.where(np.isnan(rows), -ages, numbers)
    source = np.maximum.accumulate(source, axis=0)
    stacked = np.concatenate([last[None], rows])
    values = np.take_along_axis(stacked, np.maximum(source, 0), axis=0)
    age = numbers - source
    known = values if limit is None else np.where(age <= limit, values, np.nan)
    return known.astype(rows.dtype), values[-1], age[-1]


def _nanoseconds(step: float) -> int:
    return max(1, round(step * 1e9))


def step_runs(index: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Row counts from each step with a reading to the next or the limit; the steps."""
    used = np.unique(index)
    lengths = np.append(np.diff(used), 1)
    return lengths if limit is None else np.minimum(lengths, limit + 1), used
