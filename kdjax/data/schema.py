"""Assigns roles (time, entity, label, channel) to the columns of a table; makes series.

Tables that are too large for the memory are copied in chunks to a temporary file.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import (
    is_datetime64_any_dtype,
    is_numeric_dtype,
    is_timedelta64_dtype,
)

from kdjax.data.cells import is_truth, looks_like, mark_missing, to_number
from kdjax.data.grid import fill_forward, parse_step
from kdjax.data.raw import Place, others, to_labels, to_rows, where
from kdjax.data.scaler import needs_float64
from kdjax.data.series import Series
from kdjax.data.tables import UNNAMED, Table
from kdjax.data.times import TimeForm, Times, arrange, find_time, parse_time, time_form
from kdjax.data.windowing import chunk_rows
from kdjax.errors import ConfigError, DataError, check_choice

logger = logging.getLogger(__name__)

MISSING = ("error", "ffill", "mask")
LAYOUTS = ("wide", "long")
ORDERS = ("strict", "sort")
DUPLICATES = ("error", "last")
FEW_VALUES = 3  # distinct numbers of a column that may be a quality or a state

_HEAD = 65_536  # rows of a large table read at once to find and read its time column


class Advice(NamedTuple):
    """The remedy that messages give for text in a column of numbers."""

    text: str
    marker: str = ""  # for a marker of missing values; empty if there can be none


_MARKER = "name it in data.missing_values"
IN_FILE = Advice(
    "correct it, or name a column that is not a channel as data.time_column, "
    "data.entity_column or in data.ignore",
    _MARKER,
)
# For a column that a detector needs.
IN_CHANNEL = Advice("correct it", _MARKER)


class Reading(NamedTuple):
    """How a file's rows are read; see `kdjax.data.readers.read_table`."""

    time_column: str = ""
    entity_column: str = ""
    label_column: str = ""
    ignore: tuple[str, ...] = ()
    missing: str = "error"
    order: str = "strict"
    duplicates: str = "error"
    missing_values: tuple[str, ...] = ()
    fill_limit: int | None = None  # most rows that repeat a value
    dtype: Any = None  # of rows; None: float64 only where a channel needs it
    layout: str = "wide"
    tag_column: str = "tag"
    value_column: str = "value"
    step: str | float = ""
    channels: tuple[str, ...] = ()  # of the detector that scores the rows, if any

    @property
    def long(self) -> bool:
        """Whether each row is a reading of one tag."""
        return self.layout == "long"

    @property
    def columns(self) -> list[str]:
        """The named columns that are not channels."""
        own = (self.tag_column, self.value_column) if self.long else ()
        return [name for name in (*self[:3], *own, *self.ignore) if name]


class Assigned(NamedTuple):
    """A table whose columns have roles."""

    frame: pd.DataFrame
    place: Place
    reading: Reading
    groups: dict[str, np.ndarray]  # row numbers of each entity, in order of appearance
    times: Times | None


def check_reading(reading: Reading) -> None:
    """Raises ConfigError for an unknown choice, or long layout or grid without a step."""
    choices = {
        "missing": MISSING, "order": ORDERS, "duplicates": DUPLICATES, "layout": LAYOUTS,
    }  # fmt: skip
    for name, known in choices.items():
        check_choice(f"data.{name}", getattr(reading, name), known)
    if reading.step:
        parse_step(reading.step)
    elif reading.layout == "long":
        raise ConfigError(
            "data.layout=long needs data.step, the time between rows of the grid, such "
            "as 1min."
        )


def check_ignored(channels: Sequence[str], ignore: Collection[str]) -> None:
    """Raises ConfigError if `ignore` contains a channel of the detector."""
    if both := [name for name in channels if name in ignore]:
        raise ConfigError(f"{', '.join(both)} can't be ignored: the detector needs it.")


def assign_roles(
    table: Table, *, reading: Reading, name: str, large: bool = False
) -> Assigned:
    """The columns of a table by their roles.

    `name` is the entity without an entity column. Of a `large` table only columns that are
    not channels are read.
    """
    place = table.place
    _check_columns(reading, place)
    frame = _known_columns(table, reading) if large else table.read()
    others = [
        one for one in reading.columns if one != reading.time_column and one in frame
    ]
    clock = reading.time_column or find_time(frame.drop(columns=others), place)
    groups = entity_rows(frame, reading.entity_column, name, place)
    times = parse_time(frame[clock], place) if clock else None
    return Assigned(frame, place, reading._replace(time_column=clock), groups, times)


def to_series(
    table: Table, *, reading: Reading, name: str, large: bool
) -> tuple[Series, ...]:
    """The series of a table with one column per channel, one per entity.

    Entities are in order of first appearance; see `assign_roles`.

    The channels of a `large` table are copied in chunks to a temporary file in `TMPDIR`
    that is deleted with the last series that uses it.
    """
    found = assign_roles(table, reading=reading, name=name, large=large)
    try:
        series = _row_series(table, found, large)
        if series is None:  # Such files are rare: they are read again.
            wide = reading._replace(dtype=np.float64)
            found = assign_roles(table, reading=wide, name=name, large=large)
            series = _row_series(table, found, large)
        assert series is not None
        return series
    except DataError as error:
        hint = "" if large else _layout_hint(found)
        raise (DataError(f"{error} {hint}") if hint else error) from None


def _row_series(
    table: Table, found: Assigned, large: bool
) -> tuple[Series, ...] | None:
    """None if a channel needs float64 and `reading.dtype` is not given."""
    frame, place, reading, groups, times = found
    dtype = reading.dtype or np.float32
    channels = channel_names(place, reading)
    notes: dict[str, list[str]] = {entity: [] for entity in groups}
    for entity, rows in groups.items():
        if times is not None:
            groups[entity], notes[entity] = arrange(
                times, rows, place, reading.time_column, order=reading.order,
                duplicates=reading.duplicates,
            )  # fmt: skip
        elif (reading.order, reading.duplicates) != ("strict", "error"):
            notes[entity].append("no time column: the order of the rows is kept")
    order = np.concatenate([*groups.values()])
    stops = np.cumsum([len(rows) for rows in groups.values()])
    labels = parse_labels(found, np.sort(order)) if reading.label_column else None
    place = place._replace(rows=order)
    target: np.ndarray
    chunks: Iterable[pd.DataFrame]
    if large:
        target = mapped_rows(len(order), len(channels), dtype)
        chunks = table.chunks(channels, chunk_rows(target))
    else:
        target, chunks = np.empty((len(order), len(channels)), dtype), [frame]
    missing = _copy(chunks, target, channels, stops, reading, place)
    if missing is None:
        return None
    filled = np.zeros_like(missing)
    if reading.missing == "ffill" and missing.any():
        filled = missing - _fill(target, stops, reading.fill_limit)
        missing -= filled
    parts = np.split(target, stops[:-1])
    series = []
    for (entity, rows), values, absent, known in zip(
        groups.items(), parts, missing, filled, strict=True
    ):
        empty = [repr(channels[i]) for i in np.flatnonzero(absent == len(values))]
        if empty:
            notes[entity].append(f"no row has a value in {', '.join(empty)}")
        for count, what in (
            (known.sum(), "filled with the last one before"),
            (absent.sum(), "missing"),
        ):
            if count:
                notes[entity].append(f"{count:,} of {values.size:,} values {what}")
        series.append(
            Series(
                entity,
                values,
                channels,
                time=None if times is None else times.values[rows],
                labels=None if labels is None else labels[rows],
                notes=tuple(f"{entity}: {note}" for note in notes[entity]),
                form=TimeForm() if times is None else time_form(times, rows),
                time_column=reading.time_column,
            )
        )
    return tuple(series)


def long_columns(frame: pd.DataFrame) -> tuple[str, str] | None:
    """The columns of tags and values, if a table looks like long layout without its times.

    The values are its only column of numbers with more than a few distinct ones (a quality
    has few); the tags are a text that repeats.
    """
    cells, half = frame.astype(str), len(frame) / 2
    filled = [pd.to_numeric(cells[name], errors="coerce").count() for name in cells]
    numbers = np.array(filled) > half
    repeated = cells.loc[:, ~numbers].nunique()
    repeated = repeated[repeated <= half]
    values = cells.loc[:, numbers].nunique()
    values = values[values > FEW_VALUES] if len(values) > 1 else values
    if len(values) != 1 or repeated.empty:
        return None
    return str(repeated.idxmax()), str(values.index[0])


def _layout_hint(found: Assigned) -> str:
    """Advice for a table that looks like long layout; empty for any other."""
    used = {*found.reading.columns, found.reading.time_column}
    rest = [name for name in found.place.columns if name not in used]
    if found.times is None or (columns := long_columns(found.frame[rest])) is None:
        return ""
    tag, value = columns
    return (
        "The table looks like long layout (one row per reading): set data.layout=long, "
        f"data.tag_column={tag}, data.value_column={value} and data.step, such as 1min."
    )


def parse_labels(found: Assigned, rows: np.ndarray) -> np.ndarray:
    """Labels `[N]` bool, read in these rows of the file and False in others."""
    name, place = found.reading.label_column, found.place._replace(rows=rows)
    advice = Advice("labels are 0 (normal) or 1 (anomaly)")
    numbers = parse_numbers(found.frame[name].iloc[rows], place, advice)
    labels = np.zeros(len(found.frame), bool)
    labels[rows] = to_labels(numbers, place, name)
    return labels


def _check_columns(reading: Reading, place: Place) -> None:
    named = reading.columns
    for name in named:
        # Ignored names may be tags.
        if name not in place.columns and not (reading.long and name in reading.ignore):
            hint = ""
            if reading.long and name in (reading.tag_column, reading.value_column):
                hint = (
                    " Long layout has a column of tags and one of values: name them by "
                    "data.tag_column and data.value_column. A table with one column per "
                    "sensor is data.layout=wide."
                )
            raise DataError(
                f"{place.path} has no column {name!r}: its columns are "
                f"{', '.join(place.columns)}.{hint}"
            )
        if named.count(name) > 1:
            raise DataError(
                f"{place.path}: column {name!r} is given twice among time_column, "
                "entity_column, label_column and ignore: give it once."
            )


def channel_names(place: Place, reading: Reading) -> tuple[str, ...]:
    """The columns that are channels: at least one, each with a name."""
    used = {*reading.columns, reading.time_column}
    names = tuple(name for name in place.columns if name not in used)
    if not names:
        raise DataError(
            f"{place.path} has no channel besides {', '.join(place.columns)}: "
            "expected at least one column of numbers."
        )
    for name in names:
        # Usually the row numbers of a table that was saved with its index.
        if UNNAMED.fullmatch(name):
            raise DataError(
                f"{place.path}: column {place.columns.index(name) + 1} has no name; name "
                "it, or remove it if it only counts rows."
            )
    return names


def entity_rows(
    frame: pd.DataFrame, named: str, name: str, place: Place, what: str = "entity"
) -> dict[str, np.ndarray]:
    """The row numbers of each entity, in order of first appearance."""
    if not named:
        return {name: np.arange(len(frame))}
    column = frame[named]
    names = column.astype(str).str.strip()
    absent = np.flatnonzero(column.isna() | (names == ""))
    if len(absent):
        raise DataError(
            f"{where(place, int(absent[0]), named)}: the {what} is missing; "
            "complete or remove the row."
        )
    codes, entities = pd.factorize(names)
    return {str(name): np.flatnonzero(codes == i) for i, name in enumerate(entities)}


def parse_numbers(
    column: pd.Series,
    place: Place,
    advice: Advice = IN_FILE,
    *,
    missing_values: Sequence[str] = (),
) -> np.ndarray:
    """A column as float64 `[N]`, NaN for a missing cell; DataError for text."""
    if is_numeric_dtype(column):
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        own = getattr(column.dtype, "numpy_dtype", column.dtype)
        return mark_missing(numbers, missing_values, dtype=own)
    for is_kind, what in (
        (is_datetime64_any_dtype, "times"),
        (is_timedelta64_dtype, "durations"),
    ):
        if is_kind(column):
            raise DataError(
                f"{place.path}: column {str(column.name)!r} holds {what}, expected "
                f"numbers; {advice.text}."
            )
    found = [to_number(cell, missing=missing_values) for cell in column]
    numbers = np.array(found, np.float64)  # NaN for None
    truth = np.array([is_truth(cell) for cell in column], bool)
    words = np.array([number is None for number in found], bool)
    if (~truth & ~np.isnan(numbers)).any():
        words |= truth
    text = np.flatnonzero(words)
    if len(text):
        row, name = int(text[0]), str(column.name)
        hint = ""
        if todo := advice.marker:
            number = row if place.rows is None else place.rows[row]
            first = bool(len(text) == 1 and number == 0)
            hint = looks_like(column.iloc[row], name=name, first=first, todo=todo)
            if not hint and len(text) < len(found):
                hint = f"if it marks a missing value, {todo}; else {advice.text}"
        raise DataError(
            f"{where(place, row, name)}: {column.iloc[row]!r} is not a "
            f"number{others(len(text))}; {hint or advice.text}."
        )
    return numbers


def channel_numbers(column: pd.Series, place: Place, reading: Reading) -> np.ndarray:
    """`parse_numbers` of a channel, or of the values of readings."""
    known = reading.channels if not reading.long else [reading.value_column]
    advice = IN_CHANNEL if column.name in known else IN_FILE
    if reading.missing == "error":
        advice = advice._replace(marker=f"{_MARKER}, with data.missing=ffill or mask")
    return parse_numbers(column, place, advice, missing_values=reading.missing_values)


def mapped_rows(rows: int, width: int, dtype: Any = np.float32) -> np.memmap:
    """An empty array `[N, D]` in a temporary file that is deleted with it."""
    size, folder = np.dtype(dtype).itemsize * rows * width, tempfile.gettempdir()
    text = f"{size / 1e9:.1f} GB in {folder}"
    logger.info("rows exceed data.memory_bytes and are copied to a file: %s", text)
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError("the disk is full")
        with tempfile.TemporaryFile(prefix="kdjax-") as file:
            # Writing to a mapped file on a full disk would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=(rows, width))
    except OSError as error:
        raise ConfigError(
            f"rows that exceed data.memory_bytes need {text} ({error}): set TMPDIR to a "
            "folder with more space, or raise data.memory_bytes."
        ) from None


def _known_columns(table: Table, reading: Reading) -> pd.DataFrame:
    """The columns with a role, or whose name or first rows may be times, whole."""
    columns = table.place.columns
    wanted = {name for name in columns if name in reading.columns}
    wanted -= {*reading.ignore}
    if not reading.time_column:
        open_ = [name for name in columns if name not in reading.columns]
        head = next(table.chunks(open_, _HEAD), pd.DataFrame())
        wanted |= {name for name in open_ if find_time(head[[name]], table.place)}
    if not wanted:
        return pd.DataFrame(index=pd.RangeIndex(table.rows))
    ordered = [name for name in columns if name in wanted]
    return pd.concat(table.chunks(ordered, _HEAD), ignore_index=True)


def _copy(
    chunks: Iterable[pd.DataFrame],
    target: np.ndarray,
    channels: tuple[str, ...],
    stops: np.ndarray,
    reading: Reading,
    place: Place,
) -> np.ndarray | None:
    """Copies channels to `target` `[N, D]`; returns missing values per entity, `[E, D]`.

    `place.rows` holds the file's row of each row of the target. None if a channel needs
    float64 and `reading.dtype` is not given.
    """
    assert place.rows is not None
    by_row, done = np.argsort(place.rows), 0
    counts = np.zeros((len(stops), len(channels)), np.int64)
    for frame in chunks:
        begin, done = done, done + len(frame)
        first, last = np.searchsorted(place.rows, (begin, done), sorter=by_row)
        to = by_row[first:last]
        rows = place.rows[to]
        here = place._replace(rows=rows)
        if len(to) < len(frame):  # Some rows with repeated times were left out.
            frame = frame.iloc[rows - begin]
        values = np.empty((len(to), len(channels)))
        for index, name in enumerate(channels):
            values[:, index] = channel_numbers(frame[name], here, reading)
        if reading.missing == "ffill":
            values[~np.isfinite(values)] = np.nan
        bad = ~np.isfinite(values) if reading.missing == "error" else np.isinf(values)
        if bad.any():
            raise missing_error(values, bad, channels, here, len(target))
        options: dict[str, Any] = {"missing": "mask", "dtype": target.dtype}
        target[to] = to_rows(values, here, channels, **options)
        owners = np.searchsorted(stops, to, side="right")
        if reading.dtype is None:
            # Columns of float32 can't be read more precisely.
            wide = [frame[name].dtype != np.float32 for name in channels]
            parts = [values[owners == owner][:, wide] for owner in np.unique(owners)]
            if any(wide) and any(needs_float64([part]).any() for part in parts):
                return None
        absent, columns = np.nonzero(np.isnan(values))
        np.add.at(counts, (owners[absent], columns), 1)
    # A sensor may fail in scored rows, but training needs a value of each channel.
    dead = counts.sum(axis=0) == len(target)
    if not reading.channels and dead.any():
        empty = [repr(channels[i]) for i in np.flatnonzero(dead)]
        raise DataError(
            f"{place.path}: no row has a value in {', '.join(empty)}; remove "
            f"{'these columns' if len(empty) > 1 else 'this column'}."
        )
    return counts


def _fill(target: np.ndarray, stops: np.ndarray, limit: int | None) -> np.ndarray:
    """Fills missing values of each entity in place; returns how many remain, `[E, D]`."""
    size, first = chunk_rows(target), 0
    counts = np.zeros((len(stops), target.shape[1]), np.int64)
    for entity, stop in enumerate(stops):
        last = ages = None
        for start in range(first, stop, size):
            part = slice(start, min(start + size, stop))
            target[part], last, ages = fill_forward(target[part], limit, last, ages)
            counts[entity] += np.isnan(target[part]).sum(axis=0)
        first = stop
    return counts


def missing_error(
    values: np.ndarray, bad: np.ndarray, names: Sequence[str], place: Place, rows: int
) -> DataError:
    """The error for bad cells `[n, D]`; counts them if these are all of the `rows`."""
    row, column = (int(i) for i in np.argwhere(bad)[0])
    more = others(int(bad.sum())) if len(bad) == rows else ""
    absent = bool(np.isnan(values[row, column]))
    mask = ", or leave it NaN by data.missing=mask" if absent else ""
    return DataError(
        f"{where(place, row, names[column])}: the value is "
        f"{'missing' if absent else 'infinite'}{more}; correct it, or repeat the last "
        f"value by data.missing=ffill{mask}."
    )
