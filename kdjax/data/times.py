"""Finds, parses and writes time columns; checks that times increase."""

import datetime
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.cells import exact_number, looks_like
from kdjax.data.raw import Place, where
from kdjax.errors import DataError, counted

NAMES = ("time", "timestamp", "date", "datetime")
_OFFSET = r"(Z|[+-]\d\d:\d\d)$"  # of a time from `iso_time`
# Year, mark, month, day, hour, minute, second, fraction and offset of an ISO time.
_ISO = re.compile(
    r"(\d{4})([-/]?)(\d\d?)(?:\2(\d\d?))?"
    r"(?:(?:T| +)(\d\d?)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?"
    r"\s*(?:(Z)|([+-]\d\d)(?::?(\d\d))?)?)?",
    re.ASCII,
)
_NO_OFFSET = re.compile(  # 60 minutes or more
    r"[^T ]*[T ].*[+-]\d\d:?[6-9]\d", re.ASCII
)
WHOLE = 2.0**53  # float64 holds all whole numbers up to it
# What distinguishes a date in text from a number or a name.
_DATED = r"\d{4}-\d\d\s*$|\d[-/]\d+[-/]\d|\dT\d"
# The usual form, which pandas reads without help.
_COMMON = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)


class TimeForm(NamedTuple):
    """How times are written; without a dtype, unchanged.

    Offsets that differ belong to times, not to rows, so that a part of a series keeps
    the form.
    """

    dtype: Any = None  # of the column in pandas, with its unit and zone
    # [K] start of each offset, in UTC; empty if the times have one zone
    since: np.ndarray = np.empty(0, "datetime64[ns]")
    offsets: np.ndarray = np.empty(0, np.int16)  # [K] minutes


class Times(NamedTuple):
    """A column of times."""

    # [N] datetime64[ns], in UTC if they have a zone; or numbers: float64, unless they are
    # whole and too large for it
    values: np.ndarray
    dtype: Any = None  # as in `TimeForm`
    offsets: np.ndarray = np.empty(0, np.int16)  # [N] minutes; empty unless they differ


def find_time(frame: pd.DataFrame, place: Place) -> str:
    """The time column of `frame`, or "" if there is none.

    It is named time, timestamp, date or datetime; else it is the only column of text or
    dates with datetimes only. DataError if there are several.
    """
    found = [str(name) for name in frame.columns if str(name).lower() in NAMES]
    if not found and len(frame):
        found = [str(name) for name in frame.columns if _holds_datetimes(frame[name])]
    if len(found) > 1:
        raise DataError(
            f"{place.path} has several time columns ({', '.join(found)}): "
            "keep one, or name it as data.time_column and remove the others."
        )
    return found[0] if found else ""


def parse_time(column: pd.Series, place: Place) -> Times:
    """The times of a column: numbers, datetimes, dates, or texts of these."""
    name = str(column.name)
    column = _with_numbers(column)
    if pd.api.types.is_bool_dtype(column):
        raise DataError(
            f"{place.path}: time column {name!r} holds true and false: expected times."
        )
    numeric = pd.api.types.is_numeric_dtype(column)
    numbers = column.to_numpy(np.float64) if numeric else np.empty(0)
    absent = np.flatnonzero(~np.isfinite(numbers) if numeric else column.isna())
    if len(absent):
        todo = "complete or remove the row"
        if place.first_line and [*absent] == [0]:
            todo = "remove the line if it holds units, else complete the row"
        raise DataError(
            f"{where(place, int(absent[0]), name)}: the time is missing; {todo}."
        )
    if numeric:
        # Such as ns since 1970, which float64 would round.
        exact = column.dtype.kind in "iu" and WHOLE < np.abs(numbers).max() < 2.0**63
        return Times(column.to_numpy(np.int64) if exact else numbers, column.dtype)
    dtype, offsets = None, np.empty(0, np.int16)
    if pd.api.types.is_datetime64_any_dtype(column):
        column = pd.to_datetime(column)  # of Arrow's types as well
        dtype = column.dtype
    else:
        column, dtype, offsets = _parse_text(column, name, place)
    if column.dt.tz is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    try:
        return Times(column.astype("datetime64[ns]").to_numpy(), dtype, offsets)
    except (ValueError, OverflowError):
        raise DataError(
            f"{place.path}: time column {name!r} leaves the years 1678 to 2261: correct it."
        ) from None


def _with_numbers(column: pd.Series) -> pd.Series:
    """A column of texts as numbers if all are numbers; any other unchanged."""
    dated = pd.api.types.is_datetime64_any_dtype(column)
    if dated or pd.api.types.is_numeric_dtype(column) or column.isna().any():
        return column
    numbers = [exact_number(cell) for cell in column.astype(str)]
    if None in numbers or not numbers:
        return column
    exact = all(isinstance(n, int) and abs(n) < 2**63 for n in numbers)
    kind = np.int64 if exact else np.float64
    return pd.Series(numbers, column.index, kind, column.name)


def time_form(times: Times, rows: np.ndarray) -> TimeForm:
    """The form of some rows `[M]`, whose times increase."""
    if not len(times.offsets):
        return TimeForm(times.dtype)
    own = times.offsets[rows]
    new = np.append(True, own[1:] != own[:-1])
    return TimeForm(times.dtype, times.values[rows][new], own[new])


def clock_of(time: np.ndarray | None, form: TimeForm) -> str:
    """The kind of a series' times: `local`, `zoned`, `number`, or empty for none."""
    if time is None or not np.issubdtype(time.dtype, np.datetime64):
        return "" if time is None else "number"
    return "zoned" if is_zoned(form.dtype) else "local"


def is_zoned(dtype: Any) -> bool:
    """Whether times of a dtype have a zone."""
    return isinstance(dtype, pd.DatetimeTZDtype)


def local_times(time: np.ndarray, form: TimeForm) -> tuple[np.ndarray, np.ndarray]:
    """Datetimes in UTC `[N]` as local times of their zone, and offsets in minutes."""
    if len(form.since):
        places = np.searchsorted(form.since, time, side="right") - 1
        minutes = form.offsets[np.maximum(places, 0)].astype(np.int64)
        return time + minutes * np.timedelta64(1, "m"), minutes
    local = pd.DatetimeIndex(time, tz="UTC").tz_convert(form.dtype.tz)
    found = local.tz_localize(None).to_numpy()
    return found, (found - time) // np.timedelta64(1, "m")


def format_times(time: np.ndarray, form: TimeForm) -> Any:
    """Times `[N]` as an array for a table, in the form before `parse_time`.

    Datetimes have their zone. Times with different offsets are texts, since a column of
    pandas or Parquet has one zone only.

    >>> form = TimeForm(pd.DatetimeTZDtype("ns", "Europe/Berlin"))
    >>> format_times(np.array(["2026-05-25T22:00"], "datetime64[ns]"), form)[0]
    Timestamp('2026-05-26 00:00:00+0200', tz='Europe/Berlin')
    """
    if form.dtype is None:
        return time
    if not is_zoned(form.dtype):
        # The dtype may be one of pandas, such as an Arrow timestamp.
        return pd.Series(time).astype(form.dtype).array
    if not len(form.since):
        zoned = pd.DatetimeIndex(time, tz="UTC").tz_convert(form.dtype.tz)
        return zoned.as_unit(form.dtype.unit).array
    local, minutes = local_times(time, form)
    texts = pd.Series(local).dt.tz_localize("UTC").astype(str)
    signs = pd.Series(minutes).map(offset_text)
    return (texts.str.removesuffix("+00:00") + signs).array


def axis_times(
    time: np.ndarray | None, form: TimeForm
) -> tuple[np.ndarray | None, str]:
    """Times for an axis, and their clock: local if the offset is constant, else UTC.

    The clock is empty for numbers, rows and times without a zone.
    """
    if time is None or not len(time) or not is_zoned(form.dtype):
        return time, ""
    local, minutes = local_times(time, form)
    if (minutes != minutes[0]).any():
        return time, "UTC"
    return local, f"UTC{offset_text(minutes[0])}"


def offset_text(minutes: int) -> str:
    """An offset from UTC, such as `+02:00`."""
    hours, rest = divmod(abs(int(minutes)), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02}:{rest:02}"


def time_text(time: Any, form: TimeForm) -> str:
    """A time for display: no finer than needed, with its offset.

    >>> time_text(np.datetime64("2026-05-25T22:00"), TimeForm(pd.DatetimeTZDtype(tz="UTC")))
    '2026-05-25T22:00+00:00'
    """
    if not isinstance(time, np.datetime64):
        return str(time) if isinstance(time, np.integer) else f"{time:.15g}"
    offset = ""
    if is_zoned(form.dtype):
        (time,), (minutes,) = local_times(np.array([time], "datetime64[ns]"), form)
        offset = offset_text(minutes)
    text = str(np.datetime_as_string(time, unit="auto"))
    if offset and "T" not in text:
        text += "T00:00"
    return f"{text}{offset}"


def iso_time(text: str) -> str | None:
    """A time in full ISO form; None for text that is not a time.

    >>> iso_time("2026/3/1 7:05"), iso_time("20260401T000000,5Z"), iso_time("now")
    ('2026-03-01T07:05:00', '2026-04-01T00:00:00.5+00:00', None)
    """
    text = text.strip()
    if _NO_OFFSET.fullmatch(text):
        return None
    if _COMMON.fullmatch(text):
        return text
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    year, mark, month, day, hour, minute, second, part, utc, hours, minutes = (
        match.groups()
    )
    if not mark and min(len(month), len(day or "")) < 2:
        return None  # 2026111 without separators is ambiguous
    time = f"{year}-{month:0>2}-{day or '01':0>2}"
    if hour:
        time += f"T{hour:0>2}:{minute or '00'}:{second or '00'}"
        time += f".{part}" if part else ""
    if utc or hours:
        time += "+00:00" if utc else f"{hours}:{minutes or '00'}"
    return time


def time_steps(time: np.ndarray) -> np.ndarray:
    """The steps between successive times, `[N] -> [N − 1]`.

    In seconds for datetimes, else in the unit of the numbers.
    """
    steps: np.ndarray = np.diff(time)
    dated = np.issubdtype(time.dtype, np.datetime64)
    return steps / np.timedelta64(1, "s") if dated else steps


def median_step(time: np.ndarray | None) -> float:
    """Median of the `time_steps` of times `[N]`; 0.0 without a step.

    >>> median_step(np.array(["2024-01-01T00:00", "2024-01-01T00:01"], "datetime64[ns]"))
    60.0
    """
    if time is None or len(time) < 2:
        return 0.0
    return float(np.median(time_steps(time)))


def seconds_per_row(time: np.ndarray | None) -> float:
    """`median_step` of datetimes; 0.0 for numbers and None."""
    dated = time is not None and np.issubdtype(time.dtype, np.datetime64)
    return median_step(time) if dated else 0.0


def arrange(
    times: Times,
    rows: np.ndarray,
    place: Place,
    column: str,
    *,
    order: str,
    duplicates: str,
) -> tuple[np.ndarray, list[str]]:
    """The rows `[M]` of an entity with strictly increasing times, and notes on changes.

    `times` are those of the file, `rows` `[N]` those of the entity. `sort` sorts by time,
    stably; `last` keeps the last of successive rows with equal times. DataError if times
    that repeat or decrease remain.
    """
    time, notes = times.values[rows], []
    late = int((time < np.maximum.accumulate(time)).sum()) if order == "sort" else 0
    if late:
        by_time = np.argsort(time, kind="stable")
        time, rows = time[by_time], rows[by_time]
        notes.append(f"{counted(late, 'row')} out of order sorted by time")
    if duplicates == "last":
        last = np.append(time[1:] != time[:-1], True)
        time, rows = time[last], rows[last]
        repeated = len(last) - len(rows)
        if repeated:
            notes.append(
                f"{counted(repeated, 'row')} with repeated times left out (the last of each kept)"
            )
    backwards = np.flatnonzero(time[1:] <= time[:-1])
    if not len(backwards):
        return rows, notes
    at = int(backwards[0])
    before, after = (time_text(time[i], TimeForm(times.dtype)) for i in (at, at + 1))
    first = rows[at] + 1
    problem = (
        f"{after} is a duplicate (first in row {first}); remove one or set "
        "data.duplicates=last"
        if time[at + 1] == time[at]
        else f"{after} is before {before} of row {first}; sort the file by time or set "
        "data.order=sort"
    )
    raise DataError(
        f"{where(place, int(rows[at + 1]), column)}: {problem}, or name "
        "data.entity_column if the file has several entities."
    )


def _holds_datetimes(column: pd.Series) -> bool:
    """Whether a column has datetimes only, or text that is datetimes only."""
    dated = pd.api.types.is_datetime64_any_dtype(column)
    if dated or pd.api.types.is_numeric_dtype(column):
        return bool(dated)
    text = column.dropna().astype(str)
    # A plain "2024" would parse as a year.
    if not len(text) or not text.str.contains(_DATED).all():
        return False
    texts = [iso_time(cell) for cell in text]
    times = pd.to_datetime(
        pd.Series(texts, dtype=object), format="ISO8601", errors="coerce", utc=True
    )
    return bool(times.notna().all())


def _parse_text(
    column: pd.Series, name: str, place: Place
) -> tuple[pd.Series, Any, np.ndarray]:
    """Text as datetimes, with dtype and offsets as in `Times`.

    DataError for another form, or if only some times have an offset.
    """
    texts = pd.Series([iso_time(cell) for cell in column.astype(str)], dtype=object)
    times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    bad = np.flatnonzero(times.isna())
    if len(bad):
        words = [row for row in bad if exact_number(str(column.iloc[row])) is None]
        row = int((words or bad)[0])
        cell, hint = str(column.iloc[row]), ""
        if not any(map(str.isdigit, cell)):  # 10pm has no unit
            first = len(words) == 1 and row == 0
            todo = "complete or remove the row"
            hint = looks_like(cell, name=name, first=first, todo=todo)
        problem = (
            "is neither a number nor an ISO time such as 2024-01-31 23:59:00; "
            f"{hint or 'convert the column'}"
            if words
            else "is a number, but other times are not: write all times alike"
        )
        raise DataError(f"{where(place, row, name)}: {column.iloc[row]!r} {problem}.")
    marks, codes = np.unique(
        texts.str.extract(_OFFSET, expand=False).fillna("").str.replace("Z", "+00:00"),
        return_inverse=True,
    )
    differs = np.flatnonzero((marks[codes] == "") != (marks[codes[0]] == ""))
    if len(differs):
        row = int(differs[0])
        raise DataError(
            f"{where(place, row, name)}: {column.iloc[row]!r} and {column.iloc[0]!r} of "
            "row 1: only one of them has an offset from UTC; write all times alike."
        )
    if marks[0] == "":
        return times, None, np.empty(0, np.int16)
    zones = [datetime.datetime.strptime(mark, "%z").tzinfo for mark in marks]
    dtype = pd.DatetimeTZDtype("ns", zones[0])
    if len(zones) == 1:
        return times, dtype, np.empty(0, np.int16)
    minutes = [int(mark[:3]) * 60 + int(mark[0] + mark[4:]) for mark in marks]
    return times, dtype, np.array(minutes, np.int16)[codes]
