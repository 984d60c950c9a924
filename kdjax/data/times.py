"""Time columns: which column it is, what instants it holds, whether they run forward."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.cells import Place, where
from kdjax.errors import DataError

_NAMES = ("time", "timestamp", "date", "datetime")
# The offset that an ISO time ends in: Z, +02:00, +0200 or +02; none in a plain date.
_OFFSET = r"[T ]\d.*?(Z|[+-]\d\d(?::?\d\d)?)$"
# What pandas takes for ISO besides: the words now and today, and +200 for +20:00.
_SHAPE = (
    r"\d{4}[-/]?\d\d?([-/]?\d\d?)?"
    r"([T ]+\d\d?(:?\d\d(:?\d\d(\.\d+)?)?)?\s*(Z|[+-]\d\d(:?\d\d)?)?)?"
)


def find_time(frame: pd.DataFrame, place: Place) -> str:
    """The time column among those of `frame`, or "" if there is none.

    One named time, timestamp, date or datetime; else the only text column that holds
    datetimes.
    """
    columns = [str(name) for name in frame.columns]
    found = [name for name in columns if name.lower() in _NAMES]
    if not found and len(frame):
        kinds = zip(columns, frame.dtypes, strict=True)
        texts = [
            name for name, kind in kinds if not pd.api.types.is_numeric_dtype(kind)
        ]
        found = [name for name in texts if _holds_datetimes(frame[name])]
    if len(found) > 1:
        raise DataError(
            f"{place.path} has several time columns ({', '.join(found)}): "
            "keep one, or name it as time_column and remove the others."
        )
    return found[0] if found else ""


def parse_time(column: pd.Series, place: Place) -> np.ndarray:
    """Instants `[N]`: float64 of a numeric column, else datetime64[ns], in UTC if zoned."""
    name = str(column.name)
    if pd.api.types.is_bool_dtype(column):
        raise DataError(
            f"{place.path}: time column {name!r} holds true and false; expected times."
        )
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(np.float64)
        _check_present(np.isfinite(numbers), name, place)
        return numbers
    _check_present(column.notna().to_numpy(), name, place)
    if not pd.api.types.is_datetime64_any_dtype(column):
        text, column = column, _parse_text(column, name, place)
        _check_zones(text, name, place)
    return _nanoseconds(column, name, place)


def has_zone(column: pd.Series) -> bool:
    """Whether times say how far they are from UTC, going by the first."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return column.dt.tz is not None
    return re.search(_OFFSET, str(column.iloc[0]).strip()) is not None


def median_step(time: np.ndarray | None) -> float:
    """Median of the steps between successive times `[N]`; 0.0 where there is none.

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
    """`median_step` of datetimes; 0.0 where numbers or nothing tell the time.

    >>> seconds_per_row(np.array([0.0, 60.0]))
    0.0
    """
    dated = time is not None and np.issubdtype(time.dtype, np.datetime64)
    return median_step(time) if dated else 0.0


class Arranged(NamedTuple):
    """One entity's rows in order of time.

    Attributes:
        rows: `[M]` rows of the file.
        notes: what was done to get there.
    """

    rows: np.ndarray
    notes: tuple[str, ...]


def arrange(
    time: np.ndarray,
    rows: np.ndarray,
    place: Place,
    column: str,
    *,
    order: str,
    duplicates: str,
) -> Arranged:
    """The rows of an entity with strictly increasing times; DataError where they aren't.

    Args:
        time: `[N]` instants of the entity.
        rows: `[N]` their rows in the file.
        place: the file.
        column: name of the time column.
        order: `sort` sorts by time and keeps the order of equal times, `strict` doesn't.
        duplicates: `last` keeps the last of successive rows with equal times.
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
    check_order(time, rows, place, column)
    return Arranged(rows, tuple(notes))


def check_order(time: np.ndarray, rows: np.ndarray, place: Place, column: str) -> None:
    """Refuses times of one entity that repeat or run backwards.

    Args:
        time: `[N]` instants of the entity.
        rows: `[N]` their rows in the file.
        place: the file.
        column: name of the time column.
    """
    backwards = np.flatnonzero(time[1:] <= time[:-1])
    if not len(backwards):
        return
    at = int(backwards[0])
    here = where(place, int(rows[at + 1]), column)
    if time[at + 1] == time[at]:
        raise DataError(
            f"{here}: {_text(time[at + 1])} is there twice (first in row {rows[at] + 1}); "
            "remove the duplicate or set data.duplicates=last, or name the "
            "entity_column if the file holds several entities."
        )
    raise DataError(
        f"{here}: {_text(time[at + 1])} is before {_text(time[at])} of row "
        f"{rows[at] + 1}; sort the file by time or set data.order=sort, or name the "
        "entity_column if the file holds several entities."
    )


def _text(instant: np.datetime64 | np.float64) -> str:
    """An instant for messages, to the second or finer only if need be."""
    if isinstance(instant, np.datetime64):
        return str(np.datetime_as_string(instant, unit="auto"))
    return f"{instant:.15g}"


def _holds_datetimes(column: pd.Series) -> bool:
    """Whether a column that is not numeric holds datetimes throughout."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return True
    if pd.api.types.is_numeric_dtype(column):
        return False
    text = column.dropna().astype(str)
    # A bare "2024" would parse as a year.
    if not len(text) or not text.str.contains(r"\d-\d|T\d").all():
        return False
    return bool(
        pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True).notna().all()
    )


def _check_present(present: np.ndarray, name: str, place: Place) -> None:
    if not present.all():
        row = int(np.flatnonzero(~present)[0])
        raise DataError(
            f"{where(place, row, name)}: the time is missing; complete or remove the row."
        )


def _check_zones(column: pd.Series, name: str, place: Place) -> None:
    zones = column.astype(str).str.strip().str.extract(_OFFSET)[0].fillna("none")
    differs = (zones != zones.iloc[0]).to_numpy()
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        raise DataError(
            f"{where(place, row, name)}: time zone {zones.iloc[row]} differs from "
            f"{zones.iloc[0]} of row 1; write all times in one zone, best UTC."
        )


def _parse_text(column: pd.Series, name: str, place: Place) -> pd.Series:
    text = column.astype(str).str.strip()
    times = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    bad = np.flatnonzero(times.isna() | ~text.str.fullmatch(_SHAPE))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{where(place, row, name)}: {column.iloc[row]!r} is neither a number nor an "
            "ISO time such as 2024-01-31 23:59:00; convert the column."
        )
    return times


def _nanoseconds(column: pd.Series, name: str, place: Place) -> np.ndarray:
    if column.dt.tz is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    try:
        return column.astype("datetime64[ns]").to_numpy()
    except (ValueError, OverflowError):
        raise DataError(
            f"{place.path}: time column {name!r} leaves the years 1678 to 2261; correct it."
        ) from None
