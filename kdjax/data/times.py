"""Time columns: finding them, parsing them, checking that times increase."""

import re

import numpy as np
import pandas as pd

from kdjax.data.raw import Place, where
from kdjax.errors import DataError

_NAMES = ("time", "timestamp", "date", "datetime")
# The offset at the end of an ISO time: Z, +02:00, +0200 or +02; none in a plain date.
_OFFSET = r"[T ]\d.*?(?:Z|[+-]\d\d(?::?\d\d)?)\s*$"
# Year, mark, month, day, hour, minute, second, fraction and offset of an ISO time.
_ISO = re.compile(
    r"(\d{4})([-/]?)(\d\d?)(?:\2(\d\d?))?"
    r"(?:(?:T| +)(\d\d?)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?"
    r"\s*(?:(Z)|([+-]\d\d)(?::?(\d\d))?)?)?",
    re.ASCII,
)
# As almost all files have it; pandas reads these by itself.
_COMMON = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)


def find_time(frame: pd.DataFrame, place: Place) -> str:
    """The time column of `frame`, or "" if there is none.

    It is named time, timestamp, date or datetime; else it is the only column of text or
    dates that holds datetimes throughout. DataError if there are several.
    """
    found = [str(name) for name in frame.columns if str(name).lower() in _NAMES]
    if not found and len(frame):
        found = [str(name) for name in frame.columns if _holds_datetimes(frame[name])]
    if len(found) > 1:
        raise DataError(
            f"{place.path} has several time columns ({', '.join(found)}): "
            "keep one, or name it as time_column and remove the others."
        )
    return found[0] if found else ""


def parse_time(column: pd.Series, place: Place) -> np.ndarray:
    """Times `[N]`: float64 of numbers, else datetime64[ns], in UTC if they have a zone."""
    name = str(column.name)
    if pd.api.types.is_bool_dtype(column):
        raise DataError(
            f"{place.path}: time column {name!r} holds true and false; expected times."
        )
    numeric = pd.api.types.is_numeric_dtype(column)
    numbers = column.to_numpy(np.float64) if numeric else np.empty(0)
    absent = np.flatnonzero(~np.isfinite(numbers) if numeric else column.isna())
    if len(absent):
        raise DataError(
            f"{where(place, int(absent[0]), name)}: the time is missing; complete or "
            "remove the row."
        )
    if numeric:
        return numbers
    if not pd.api.types.is_datetime64_any_dtype(column):
        column = _parse_text(column, name, place)
    if column.dt.tz is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    try:
        return column.astype("datetime64[ns]").to_numpy()
    except (ValueError, OverflowError):
        raise DataError(
            f"{place.path}: time column {name!r} leaves the years 1678 to 2261; correct it."
        ) from None


def iso_time(text: str) -> str | None:
    """A time in full ISO form; None for text that is no time.

    >>> iso_time("2026/3/1 7:05"), iso_time("20260401T000000,5Z"), iso_time("now")
    ('2026-03-01T07:05:00', '2026-04-01T00:00:00.5+00:00', None)
    """
    text = text.strip()
    if _COMMON.fullmatch(text):
        return text
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    year, mark, month, day, hour, minute, second, part, utc, hours, minutes = (
        match.groups()
    )
    if not mark and min(len(month), len(day or "")) < 2:
        return None  # without marks 2026111 has no one meaning
    time = f"{year}-{month:0>2}-{day or '01':0>2}"
    if hour:
        time += f"T{hour:0>2}:{minute or '00'}:{second or '00'}"
        time += f".{part}" if part else ""
    if utc or hours:
        time += "+00:00" if utc else f"{hours}:{minutes or '00'}"
    return time


def has_zone(column: pd.Series) -> bool:
    """Whether times have an offset from UTC, by the first."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return column.dt.tz is not None
    return re.search(_OFFSET, str(column.iloc[0]).strip()) is not None


def median_step(time: np.ndarray | None) -> float:
    """Median of the steps between successive times `[N]`; 0.0 without a step.

    In seconds for datetimes, else in the unit of the numbers.

    >>> median_step(np.array(["2024-01-01T00:00", "2024-01-01T00:01"], "datetime64[ns]"))
    60.0
    """
    if time is None or len(time) < 2:
        return 0.0
    steps = np.diff(time)
    if np.issubdtype(time.dtype, np.datetime64):
        steps = steps / np.timedelta64(1, "s")
    return float(np.median(steps))


def seconds_per_row(time: np.ndarray | None) -> float:
    """`median_step` of datetimes; 0.0 for numbers and None."""
    dated = time is not None and np.issubdtype(time.dtype, np.datetime64)
    return median_step(time) if dated else 0.0


def arrange(
    time: np.ndarray,
    rows: np.ndarray,
    place: Place,
    column: str,
    *,
    order: str,
    duplicates: str,
) -> tuple[np.ndarray, list[str]]:
    """The rows `[M]` of an entity with strictly increasing times, and notes on changes.

    `time` `[N]` are its times, `rows` `[N]` their rows in the file. `sort` sorts by time,
    stably; `last` keeps the last of successive rows with equal times. DataError if times
    that repeat or run backwards remain.
    """
    notes = []
    late = int((time < np.maximum.accumulate(time)).sum()) if order == "sort" else 0
    if late:
        by_time = np.argsort(time, kind="stable")
        time, rows = time[by_time], rows[by_time]
        notes.append(f"{late:,} rows that came after later ones sorted by time")
    if duplicates == "last":
        last = np.append(time[1:] != time[:-1], True)
        time, rows = time[last], rows[last]
        repeated = len(last) - len(rows)
        if repeated:
            notes.append(
                f"{repeated:,} rows with repeated times left out (the last of each kept)"
            )
    backwards = np.flatnonzero(time[1:] <= time[:-1])
    if not len(backwards):
        return rows, notes
    at = int(backwards[0])
    before, after, first = _text(time[at]), _text(time[at + 1]), rows[at] + 1
    problem = (
        f"{after} is there twice (first in row {first}); remove the duplicate or set "
        "data.duplicates=last"
        if time[at + 1] == time[at]
        else f"{after} is before {before} of row {first}; sort the file by time or set "
        "data.order=sort"
    )
    raise DataError(
        f"{where(place, int(rows[at + 1]), column)}: {problem}, or name the "
        "entity_column if the file holds several entities."
    )


def _text(time: np.datetime64 | np.float64) -> str:
    """A time for messages; datetimes to the second, or finer if needed."""
    if isinstance(time, np.datetime64):
        return str(np.datetime_as_string(time, unit="auto"))
    return f"{time:.15g}"


def _holds_datetimes(column: pd.Series) -> bool:
    """Whether a column holds datetimes, or text that is datetimes throughout."""
    dated = pd.api.types.is_datetime64_any_dtype(column)
    if dated or pd.api.types.is_numeric_dtype(column):
        return bool(dated)
    text = column.dropna().astype(str)
    # A plain "2024" would parse as a year.
    if not len(text) or not text.str.contains(r"\d-\d|T\d").all():
        return False
    times = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    return bool(times.notna().all())


def _parse_text(column: pd.Series, name: str, place: Place) -> pd.Series:
    """Text as datetimes in UTC; DataError for another form, or if some lack a zone."""
    texts = pd.Series([iso_time(cell) for cell in column.astype(str)], dtype=object)
    times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    bad = np.flatnonzero(times.isna())
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{where(place, row, name)}: {column.iloc[row]!r} is neither a number nor an "
            "ISO time such as 2024-01-31 23:59:00; convert the column."
        )
    zoned = column.astype(str).str.contains(_OFFSET)
    differs = np.flatnonzero(zoned != zoned.iloc[0])
    if len(differs):
        row = int(differs[0])
        raise DataError(
            f"{where(place, row, name)}: {column.iloc[row]!r} and {column.iloc[0]!r} of "
            "row 1: only one of them has an offset from UTC; write all times alike."
        )
    return times
