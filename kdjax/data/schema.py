"""Columns of a table get their roles (time, entity, label, channel) and become series.

Tables that are too large for the memory are copied in chunks to a temporary file.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import (
    is_datetime64_any_dtype,
    is_numeric_dtype,
    is_timedelta64_dtype,
)

from kdjax.data.cells import is_truth, looks_like, mark_missing, to_number
from kdjax.data.raw import Place, others, to_labels, to_rows, where
from kdjax.data.scaler import needs_float64
from kdjax.data.series import Series
from kdjax.data.tables import UNNAMED, Table
from kdjax.data.times import (
    TimeForm,
    Times,
    arrange,
    find_time,
    is_zoned,
    parse_time,
    time_form,
)
from kdjax.data.windowing import chunk_rows
from kdjax.errors import ConfigError, DataError, check_choice

logger = logging.getLogger(__name__)

MISSING = ("error", "ffill", "mask")
ORDERS = ("strict", "sort")
DUPLICATES = ("error", "last")

_HEAD = 65_536  # rows of a large table read at once to find and read its time column
_ROLE_HINT = (
    "correct it, or name the column as entity_column or time_column if it is one, else "
    "remove it"
)


class Roles(NamedTuple):
    """Names of the columns that are no channels; "" for none or, of time, unknown."""

    time: str = ""
    entity: str = ""
    label: str = ""


class Rules(NamedTuple):
    """How to treat missing values, unsorted rows and repeated times; see `read_table`."""

    missing: str = "error"
    order: str = "strict"
    duplicates: str = "error"
    missing_values: tuple[str, ...] = ()
    fill_limit: int | None = None  # rows that `ffill` goes back at most
    dtype: Any = None  # of rows; None: float64 only where a channel needs it


class Recording(NamedTuple):
    """The series of one file, one an entity in order of first appearance."""

    series: tuple[Series, ...]
    zoned: bool = False  # whether the file's times have an offset from UTC


def check_rules(rules: Rules) -> None:
    """Raises ConfigError for an unknown rule."""
    choices = (MISSING, ORDERS, DUPLICATES)
    for name, word, known in zip(Rules._fields, rules[:3], choices, strict=False):
        check_choice(f"data.{name}", word, known)


def to_series(
    table: Table, *, roles: Roles, rules: Rules, name: str, large: bool
) -> Recording:
    """The series in a table; `name` is the entity if there is no column of entities.

    The channels of a `large` table are copied in chunks to a temporary file in `TMPDIR`
    that is deleted with the last series that uses it.
    """
    dtype = rules.dtype or np.float32
    place = table.place
    frame = _known_columns(table, roles) if large else table.read()
    _check_roles(roles, place)
    rest = frame.drop(columns=[one for one in (roles.entity, roles.label) if one])
    clock = roles.time or find_time(rest, place)
    channels = _channel_names(place, {*roles, clock} - {""})
    groups = _entity_rows(frame, roles.entity, name, place)
    notes: dict[str, list[str]] = {entity: [] for entity in groups}
    times = parse_time(frame[clock], place) if clock else Times(np.empty(0))
    time = times.values if clock else None
    for entity, rows in groups.items():
        if time is not None:
            groups[entity], notes[entity] = arrange(
                time[rows], rows, place, clock, form=TimeForm(times.dtype),
                order=rules.order, duplicates=rules.duplicates,
            )  # fmt: skip
        elif (rules.order, rules.duplicates) != ("strict", "error"):
            notes[entity].append("no time column, so the rows stay as they are")
    order = np.concatenate([*groups.values()])
    stops = np.cumsum([len(rows) for rows in groups.values()])
    labels = _labels(frame, np.sort(order), roles.label, place) if roles.label else None
    place = place._replace(rows=order)
    target: np.ndarray
    chunks: Iterable[pd.DataFrame]
    if large:
        target = mapped_rows(len(order), len(channels), dtype)
        chunks = table.chunks(channels, chunk_rows(target))
    else:
        target, chunks = np.empty((len(order), len(channels)), dtype), [frame]
    missing = _copy(chunks, target, channels, stops, rules, place)
    if missing is None:  # Read again, since such files are rare.
        rules = rules._replace(dtype=np.float64)
        return to_series(table, roles=roles, rules=rules, name=name, large=large)
    filled = np.zeros_like(missing)
    if rules.missing == "ffill" and missing.any():
        filled = missing - _fill(target, stops, rules.fill_limit)
        missing -= filled
    parts = np.split(target, stops[:-1])
    series = []
    for (entity, rows), values, absent, known in zip(
        groups.items(), parts, missing, filled, strict=True
    ):
        for count, what in (
            (known, "filled with the last one before"),
            (absent, "missing"),
        ):
            if count:
                notes[entity].append(f"{count:,} of {values.size:,} values {what}")
        series.append(
            Series(
                entity,
                values,
                channels,
                time=None if time is None else time[rows],
                labels=None if labels is None else labels[rows],
                notes=tuple(f"{entity}: {note}" for note in notes[entity]),
                form=time_form(times, rows),
            )
        )
    return Recording(tuple(series), is_zoned(times.dtype))


def _labels(
    frame: pd.DataFrame, rows: np.ndarray, name: str, place: Place
) -> np.ndarray:
    """Labels `[N]` bool, read in these rows of the file and False in others."""
    place = place._replace(rows=rows)
    hint = "labels are 0 (normal) or 1 (anomaly)"
    numbers = parse_numbers(frame[name].iloc[rows], place, hint)
    labels = np.zeros(len(frame), bool)
    labels[rows] = to_labels(numbers, place, name)
    return labels


def _check_roles(roles: Roles, place: Place) -> None:
    named = [name for name in roles if name]
    for name in named:
        if name not in place.columns:
            raise DataError(
                f"{place.path} has no column {name!r}: its columns are "
                f"{', '.join(place.columns)}."
            )
        if named.count(name) > 1:
            raise DataError(
                f"{place.path}: column {name!r} is named for two purposes among "
                "time_column, entity_column and label_column; name it once."
            )


def _channel_names(place: Place, used: set[str]) -> tuple[str, ...]:
    """The columns that are channels: at least one, all of them with names."""
    names = tuple(name for name in place.columns if name not in used)
    if not names:
        raise DataError(
            f"{place.path} has no channel besides {', '.join(place.columns)}: "
            "expected at least one column of numbers."
        )
    for name in names:
        # Most often the row numbers of a table saved with its index.
        if UNNAMED.fullmatch(name):
            raise DataError(
                f"{place.path}: column {place.columns.index(name) + 1} has no name; name "
                "it, or remove it if it only counts rows."
            )
    return names


def _entity_rows(
    frame: pd.DataFrame, entity_column: str, name: str, place: Place
) -> dict[str, np.ndarray]:
    """The row numbers of each entity, in order of first appearance."""
    if not entity_column:
        return {name: np.arange(len(frame))}
    column = frame[entity_column]
    names = column.astype(str).str.strip()
    absent = np.flatnonzero(column.isna() | (names == ""))
    if len(absent):
        raise DataError(
            f"{where(place, int(absent[0]), entity_column)}: the entity is missing; "
            "complete or remove the row."
        )
    codes, entities = pd.factorize(names)
    return {str(name): np.flatnonzero(codes == i) for i, name in enumerate(entities)}


def parse_numbers(
    column: pd.Series,
    place: Place,
    hint: str = _ROLE_HINT,
    *,
    missing_values: Sequence[str] = (),
) -> np.ndarray:
    """A column as float64 `[N]`, NaN for a missing cell; DataError for text."""
    if is_numeric_dtype(column):
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        return mark_missing(numbers, missing_values)
    for is_kind, what, todo in (
        (is_datetime64_any_dtype, "times", "name it as time_column"),
        (is_timedelta64_dtype, "durations", "convert it to a number of seconds"),
    ):
        if is_kind(column):
            raise DataError(
                f"{place.path}: column {str(column.name)!r} holds {what}, expected "
                f"numbers; {todo} or remove it."
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
        if hint == _ROLE_HINT:
            first = (
                len(text) == 1 and (row if place.rows is None else place.rows[row]) == 0
            )
            todo = "name it in data.missing_values"
            hint = (
                looks_like(column.iloc[row], name=name, first=first, todo=todo) or hint
            )
        if len(text) < len(found) and hint == _ROLE_HINT:
            hint = f"if it marks a missing value, name it in data.missing_values; else {hint}"
        raise DataError(
            f"{where(place, row, name)}: {column.iloc[row]!r} is not a "
            f"number{others(len(text))}; {hint}."
        )
    return numbers


def mapped_rows(rows: int, width: int, dtype: Any = np.float32) -> np.memmap:
    """An empty array `[N, D]` in a temporary file that is deleted with it."""
    size, folder = np.dtype(dtype).itemsize * rows * width, tempfile.gettempdir()
    text = f"{size / 1e9:.1f} GB in {folder}"
    logger.info("rows larger than data.memory_bytes are copied to a file: %s", text)
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
            f"rows larger than data.memory_bytes need {text} ({error}): set TMPDIR to a "
            "folder with more room, or raise data.memory_bytes."
        ) from None


def _known_columns(table: Table, roles: Roles) -> pd.DataFrame:
    """The columns with a role, or whose name or first rows may be times, whole."""
    columns = table.place.columns
    wanted = {name for name in columns if name in roles}
    if not roles.time:
        open_ = [name for name in columns if name not in roles]
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
    rules: Rules,
    place: Place,
) -> np.ndarray | None:
    """Copies channels to `target` `[N, D]`; the missing values of each entity, `[E]`.

    `place.rows` holds the file's row of each row of the target. None, without `rules.dtype`,
    where a channel needs float64.
    """
    assert place.rows is not None
    by_row, done = np.argsort(place.rows), 0
    counts = np.zeros(len(stops), np.int64)
    seen = np.zeros(len(channels), bool)
    for frame in chunks:
        begin, done = done, done + len(frame)
        first, last = np.searchsorted(place.rows, (begin, done), sorter=by_row)
        to = by_row[first:last]
        rows = place.rows[to]
        here = place._replace(rows=rows)
        if len(to) < len(frame):  # Rows with repeated times are left out.
            frame = frame.iloc[rows - begin]
        values = np.empty((len(to), len(channels)))
        for index, name in enumerate(channels):
            values[:, index] = parse_numbers(
                frame[name], here, missing_values=rules.missing_values
            )
        if rules.missing == "ffill":
            values[~np.isfinite(values)] = np.nan
        bad = ~np.isfinite(values) if rules.missing == "error" else np.isinf(values)
        if bad.any():
            raise _missing_error(
                values, bad, channels, rules.missing, here, len(target)
            )
        options: dict[str, Any] = {"missing": "mask", "dtype": target.dtype}
        target[to] = to_rows(values, here, channels, **options)
        absent = np.isnan(values)
        seen |= ~absent.all(axis=0)
        owners = np.searchsorted(stops, to, side="right")
        if rules.dtype is None:
            parts = [values[owners == owner] for owner in np.unique(owners)]
            if any(needs_float64([part]).any() for part in parts):
                return None
        np.add.at(counts, owners, absent.sum(axis=1))
    if rules.missing != "error" and not seen.all():
        empty = [repr(channels[i]) for i in np.flatnonzero(~seen)]
        raise DataError(
            f"{place.path}: no row has a value in {', '.join(empty)}; remove "
            f"{'these columns' if len(empty) > 1 else 'this column'}."
        )
    return counts


def _fill(target: np.ndarray, stops: np.ndarray, limit: int | None) -> np.ndarray:
    """Fills missing values of each entity in place; how many stay missing, `[E]`."""
    size, first = chunk_rows(target), 0
    counts = np.zeros(len(stops), np.int64)
    for entity, stop in enumerate(stops):
        last = np.full(target.shape[1], np.nan, target.dtype)
        ages = np.zeros(target.shape[1], np.int64)
        for start in range(first, stop, size):
            part = slice(start, min(start + size, stop))
            target[part], last, ages = fill_forward(target[part], last, ages, limit)
            counts[entity] += np.isnan(target[part]).sum()
        first = stop
    return counts


def fill_forward(
    rows: np.ndarray, last: np.ndarray, ages: np.ndarray, limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Missing cells of rows `[N, D]` filled with the last value of their channel.

    A value is used for at most `limit` rows, for any number with None; then cells stay
    missing. `last` `[D]` are the values before the first row, NaN for none, and `ages`
    `[D]` the rows since; the result has those after the last row too.

    >>> column, start = np.array([[np.nan], [5], [np.nan], [np.nan]]), np.array([7.0])
    >>> fill_forward(column, start, np.array([0]), 1)[0].ravel()
    array([ 7.,  5.,  5., nan])
    """
    numbers = np.arange(1, len(rows) + 1)[:, None]
    # The number of the row that a cell's value comes from, from 1; not above 0 for `last`.
    source = np.where(np.isnan(rows), -ages, numbers)
    source = np.maximum.accumulate(source, axis=0)
    stacked = np.concatenate([last[None], rows])
    values = np.take_along_axis(stacked, np.maximum(source, 0), axis=0)
    age = numbers - source
    known = values if limit is None else np.where(age <= limit, values, np.nan)
    return known.astype(rows.dtype), values[-1], age[-1]


def _missing_error(
    values: np.ndarray,
    bad: np.ndarray,
    channels: tuple[str, ...],
    missing: str,
    place: Place,
    rows: int,
) -> DataError:
    """The error for bad cells `[n, D]`; it counts them if they are all of the `rows`."""
    row, column = (int(i) for i in np.argwhere(bad)[0])
    start = f"{where(place, row, channels[column])}: "
    more = others(int(bad.sum())) if len(bad) == rows else ""
    absent = bool(np.isnan(values[row, column]))
    mask = ", or leave it open by data.missing=mask" if absent else ""
    return DataError(
        f"{start}the value is {'missing' if absent else 'infinite'}{more}; correct the "
        f"file, or repeat the last value by data.missing=ffill{mask}."
    )
