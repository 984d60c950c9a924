"""Columns of a table get their roles (time, entity, label, channel) and become series.

Tables that are too large for the memory are copied in chunks to a temporary file.
"""

import logging
import os
import shutil
import tempfile
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.raw import Place, others, to_float32, to_labels, where
from kdjax.data.series import Series
from kdjax.data.tables import UNNAMED, OpenTable, Table
from kdjax.data.times import arrange, find_time, has_zone, parse_time
from kdjax.data.windowing import chunk_rows
from kdjax.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

MISSING = ("error", "ffill", "mask")
ORDERS = ("strict", "sort")
DUPLICATES = ("error", "last")

# Rows of a large table that are read at once to find and read its time column.
_HEAD = 65_536
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


class Recording(NamedTuple):
    """The series of one file.

    Attributes:
        series: one an entity, in order of first appearance.
        zoned: whether the file's times have an offset from UTC.
    """

    series: tuple[Series, ...]
    zoned: bool = False


class _Layout(NamedTuple):
    """A table's rows in order, and which of them belong to each entity."""

    table: Table
    channels: tuple[str, ...]
    groups: dict[str, np.ndarray]  # rows of the table
    time: np.ndarray | None  # [N]
    labels: np.ndarray | None  # [N]
    notes: dict[str, list[str]]
    zoned: bool


def check_rules(rules: Rules) -> None:
    """Raises ConfigError for an unknown rule."""
    choices = (MISSING, ORDERS, DUPLICATES)
    for name, word, known in zip(Rules._fields, rules, choices, strict=True):
        if word not in known:
            raise ConfigError(
                f"data.{name}={word!r} is unknown: use one of {', '.join(known)}."
            )


def to_series(table: Table, *, roles: Roles, rules: Rules, name: str) -> Recording:
    """The series in a table.

    Args:
        table: the file's columns.
        roles: which of them are no channels.
        rules: how to treat faults of rows.
        name: the entity if there is no column of entities.
    """
    layout = _lay_out(table, roles=roles, rules=rules, name=name)
    values = _values(layout, rules.missing)
    return _to_recording(layout, {e: values[rows] for e, rows in layout.groups.items()})


def _lay_out(table: Table, *, roles: Roles, rules: Rules, name: str) -> _Layout:
    """A table with roles for its columns and rows in order; `frame` may lack channels."""
    frame, place = table
    _check_roles(roles, place)
    rest = frame.drop(columns=[one for one in (roles.entity, roles.label) if one])
    clock = roles.time or find_time(rest, place)
    channels = _channel_names(place, {*roles, clock} - {""})
    groups = _entity_rows(frame, roles.entity, name, place)
    zoned = bool(clock) and has_zone(frame[clock])
    notes: dict[str, list[str]] = defaultdict(list)
    time = parse_time(frame[clock], place) if clock else None
    if time is None and (rules.order, rules.duplicates) != ("strict", "error"):
        for entity in groups:
            notes[entity].append("no time column, so the rows stay as they are")
    if time is not None:
        arranged = {}
        for entity, rows in groups.items():
            arranged[entity], notes[entity] = arrange(
                time[rows], rows, place, clock,
                order=rules.order, duplicates=rules.duplicates,
            )  # fmt: skip
        if any(notes.values()):
            order = np.concatenate(list(arranged.values()))
            stops = np.cumsum([len(rows) for rows in arranged.values()])
            inside = np.split(np.arange(len(order)), stops[:-1])
            groups = dict(zip(groups, inside, strict=True))
            frame, time = frame.iloc[order], time[order]
            place = place._replace(rows=order)
    labels = None
    if roles.label:
        hint = "labels are 0 (normal) or 1 (anomaly)"
        numbers = parse_numbers(frame[roles.label], place, hint)
        labels = to_labels(numbers, place, roles.label)
    return _Layout(Table(frame, place), channels, groups, time, labels, notes, zoned)


def _to_recording(layout: _Layout, values: dict[str, np.ndarray]) -> Recording:
    """The series of a layout with the values `[N, D]` of each entity."""
    series = tuple(
        Series(
            entity,
            values[entity],
            layout.channels,
            time=None if layout.time is None else layout.time[rows],
            labels=None if layout.labels is None else layout.labels[rows],
            notes=tuple(f"{entity}: {note}" for note in layout.notes[entity]),
        )
        for entity, rows in layout.groups.items()
    )
    return Recording(series, layout.zoned)


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


def _values(layout: _Layout, missing: str) -> np.ndarray:
    """The channels as float32 `[N, D]`, missing cells treated as `missing` says."""
    (frame, place), channels = layout.table, layout.channels
    values = np.empty((len(frame), len(channels)))
    for index, name in enumerate(channels):
        values[:, index] = parse_numbers(frame[name], place)
    bad = ~np.isfinite(values)
    if bad.any() and missing != "error":
        if missing == "ffill":
            values[bad] = np.nan
        for entity, rows in layout.groups.items():
            if missing == "ffill":
                values[rows] = pd.DataFrame(values[rows]).ffill().to_numpy()
            _note_missing(layout, entity, int(bad[rows].sum()), bad[rows].size, missing)
        if missing == "mask":
            _check_alive((~np.isnan(values)).any(axis=0), channels, place)
        bad = np.isnan(values) if missing == "ffill" else np.isinf(values)
    if bad.any():
        raise _missing_error(values, bad, channels, missing, place)
    return to_float32(values, place, channels, missing=missing)


def _note_missing(
    layout: _Layout, entity: str, count: int, size: int, missing: str
) -> None:
    """Adds a note on missing values to an entity of a layout."""
    if count:
        what = "filled with the last one before" if missing == "ffill" else "missing"
        layout.notes[entity].append(f"{count:,} of {size:,} values {what}")


def _check_alive(seen: np.ndarray, channels: tuple[str, ...], place: Place) -> None:
    """Raises DataError for channels without any value; `seen` is `[D]` bool."""
    empty = [channels[i] for i in np.flatnonzero(~seen)]
    if empty:
        raise DataError(
            f"{place.path}: no row has a value in {', '.join(map(repr, empty))}; remove "
            f"{'these columns' if len(empty) > 1 else 'this column'}."
        )


def _missing_error(
    values: np.ndarray,
    bad: np.ndarray,
    channels: tuple[str, ...],
    missing: str,
    place: Place,
) -> DataError:
    """The error for bad cells `[N, D]` without a finite number; it names the first."""
    row, column = (int(i) for i in np.argwhere(bad)[0])
    start = where(place, row, channels[column])
    more = others(int(bad.sum()))
    if missing == "ffill":
        return DataError(
            f"{start}: no earlier value of this entity fills the gap{more}; "
            "complete or remove these rows, or leave gaps open by data.missing=mask."
        )
    absent = bool(np.isnan(values[row, column]))
    cell = "is missing" if absent else "is infinite"
    mask = ", or leave it open by data.missing=mask" if absent else ""
    return DataError(
        f"{start}: the value {cell}{more}; correct the file, or "
        f"repeat the last value by data.missing=ffill{mask}."
    )


def parse_numbers(
    column: pd.Series, place: Place, hint: str = _ROLE_HINT
) -> np.ndarray:
    """A column as float64 `[N]`, NaN for a missing cell; DataError for text."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64)
    what = ""
    if pd.api.types.is_datetime64_any_dtype(column):
        what, todo = "times", "name it as time_column"
    if pd.api.types.is_timedelta64_dtype(column):
        what, todo = "durations", "convert it to a number of seconds"
    if what:
        raise DataError(
            f"{place.path}: column {str(column.name)!r} holds {what}, expected numbers; "
            f"{todo} or remove it."
        )
    numbers = pd.to_numeric(column, errors="coerce")
    text = np.flatnonzero(numbers.isna() & column.notna())
    if len(text):
        row = int(text[0])
        raise DataError(
            f"{where(place, row, str(column.name))}: {column.iloc[row]!r} is not a "
            f"number{others(len(text))}; {hint}."
        )
    return numbers.to_numpy(np.float64)


def to_mapped_series(
    table: OpenTable, *, roles: Roles, rules: Rules, name: str
) -> Recording:
    """`to_series` for a table that is too large for the memory.

    Times, labels and entities are read whole, the channels in chunks, into a temporary
    file in `TMPDIR` that is deleted with the last series that uses it.
    """
    frame = _known_columns(table, roles)
    layout = _lay_out(Table(frame, table.place), roles=roles, rules=rules, name=name)
    groups = layout.groups
    target = _Target(
        mapped_rows(sum(map(len, groups.values())), len(layout.channels)),
        np.concatenate(list(groups.values())),
        np.cumsum([len(rows) for rows in groups.values()]),
        layout.table.place,
    )
    missing = _copy(table, layout.channels, target, rules.missing)
    if missing.any() and rules.missing == "ffill":
        _fill(target, layout.channels)
    values = dict(zip(groups, np.split(target.values, target.stops[:-1]), strict=True))
    for entity, count in zip(groups, missing, strict=True):
        _note_missing(layout, entity, int(count), values[entity].size, rules.missing)
    return _to_recording(layout, values)


def mapped_rows(rows: int, width: int) -> np.memmap:
    """An empty float32 array `[N, D]` in a temporary file that is deleted with it.

    Raises:
        ConfigError: the disk has too little room.
    """
    size, folder = 4 * rows * width, tempfile.gettempdir()
    text = f"{size / 1e9:.1f} GB in {folder}"
    logger.info("rows larger than data.memory_bytes are copied to a file: %s", text)
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError("the disk is full")
        with tempfile.TemporaryFile(prefix="kdjax-") as file:
            # Writing to a mapped file on a full disk would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "w+", shape=(rows, width))
    except OSError as error:
        raise ConfigError(
            f"rows larger than data.memory_bytes need {text} ({error}): set TMPDIR to a "
            "folder with more room, or raise data.memory_bytes."
        ) from None


class _Target(NamedTuple):
    """Where the rows of a file go.

    Attributes:
        values: `[N, D]`, one entity after the other.
        rows: `[N]` the table's row of each.
        stops: `[E]` where each entity ends.
        place: of the table.
    """

    values: np.memmap
    rows: np.ndarray
    stops: np.ndarray
    place: Place

    def file_rows(self) -> np.ndarray:
        """`[N]` the file's row of each."""
        known = self.place.rows
        return self.rows if known is None else known[self.rows]


def _known_columns(table: OpenTable, roles: Roles) -> pd.DataFrame:
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
    table: OpenTable, channels: tuple[str, ...], target: _Target, missing: str
) -> np.ndarray:
    """Copies the channels to their places; the missing values of each entity, `[E]`."""
    counts = np.zeros(len(target.stops), np.int64)
    places = np.full(table.rows, -1)
    places[target.file_rows()] = np.arange(len(target.rows))
    seen, done = np.zeros(len(channels), bool), 0
    for frame in table.chunks(channels, chunk_rows(target.values)):
        to = places[done : done + len(frame)]
        kept = np.flatnonzero(to >= 0)  # The others have repeated times.
        here = target.place._replace(rows=done + kept)
        done += len(frame)
        frame, to = frame.iloc[kept], to[kept]
        rows = np.stack([parse_numbers(frame[c], here) for c in channels], axis=1)
        if missing == "ffill":
            rows[~np.isfinite(rows)] = np.nan
        bad = ~np.isfinite(rows) if missing == "error" else np.isinf(rows)
        _check_first(bad, rows, channels, missing, here)
        policy = "error" if missing == "error" else "mask"
        absent = np.isnan(rows)
        seen |= ~absent.all(axis=0)
        owners = np.searchsorted(target.stops, to, side="right")
        np.add.at(counts, owners, absent.sum(axis=1))
        target.values[to] = to_float32(rows, here, channels, missing=policy)
    if missing == "mask":
        _check_alive(seen, channels, target.place)
    return counts


def _check_first(
    bad: np.ndarray,
    values: np.ndarray,
    channels: tuple[str, ...],
    missing: str,
    place: Place,
) -> None:
    """Refuses bad cells of a chunk: the first, as the number in the file is unknown."""
    if bad.any():
        first = np.zeros_like(bad)
        first[tuple(np.argwhere(bad)[0])] = True
        raise _missing_error(values, first, channels, missing, place)


def _fill(target: _Target, channels: tuple[str, ...]) -> None:
    """Repeats the last value of each entity for missing ones."""
    size, first, file_rows = chunk_rows(target.values), 0, target.file_rows()
    for stop in target.stops:
        last = np.full((1, len(channels)), np.nan, np.float32)
        for start in range(first, stop, size):
            part = slice(start, min(start + size, stop))
            rows = np.concatenate([last, target.values[part]])
            filled = pd.DataFrame(rows).ffill().to_numpy()[1:]
            here = target.place._replace(rows=file_rows[part])
            _check_first(np.isnan(filled), filled, channels, "ffill", here)
            target.values[part] = filled
            last = filled[-1:]
        first = stop
