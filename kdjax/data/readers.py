"""Users' own files as series: CSV, Parquet and NumPy files of sensor channels.

A file holds one row a time step: channels, and if need be a time column (found by name or
content), an entity column and a label column (both only if named).

Spans of time that a user leaves out, such as maintenance, from a CSV file of them.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kdjax.data.cells import Place, where
from kdjax.data.mmap import reordered, to_mapped_series
from kdjax.data.raw import available_memory, read_npy
from kdjax.data.schema import (
    Recording,
    Roles,
    Rules,
    check_rules,
    to_series,
)
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import merge
from kdjax.data.tables import (
    OpenTable,
    Table,
    numbered_channels,
    open_table,
    read_columns,
)
from kdjax.data.times import has_zone, parse_time
from kdjax.errors import DataError

# What a cell takes while a file is read whole: as Arrow, pandas and numpy have it.
_WHOLE_BYTES = 28
# Rows of a mapped file checked at once.
_CHECKED = 100_000


def read_table(
    path: str | os.PathLike[str],
    *,
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
    missing: str = "error",
    order: str = "strict",
    duplicates: str = "error",
    exclude: str | os.PathLike[str] = "",
) -> tuple[Series, ...]:
    """The series of a file, one an entity in order of first appearance.

    What is done to rows on request (filled, left open, sorted, left out) is counted in
    `Series.notes`.

    Args:
        path: `.csv`, `.tsv` or `.txt` (also `.gz` of them), `.parquet`, or `.npy` `[N, D]`.
            Text needs a header line unless its first line is all numbers; then, as in
            `.npy`, the columns are `channel_1`, `channel_2`, ….
        time_column: its name; if empty a column is found by its name (time, timestamp,
            date, datetime) or as the only one that holds datetimes.
        entity_column: column of entity names; if empty all rows are one entity, named as
            the file.
        label_column: column of labels, 0 or 1; if empty there are none.
        missing: `error` refuses cells without a finite number, `ffill` repeats the
            entity's last value, `mask` leaves NaN where there is no number and refuses
            infinite ones.
        order: `strict` refuses times that run backwards within an entity, `sort` sorts
            its rows by time.
        duplicates: `error` refuses equal times within an entity, `last` keeps the last
            of such rows.
        exclude: CSV of spans that fill `Series.excluded`; see
            `exclude_rows`.
    """
    rules = Rules(missing, order, duplicates)
    check_rules(rules)
    roles = Roles(time_column, entity_column, label_column)
    recording = _read(Path(path), roles, rules, _stem(Path(path)))
    if not str(exclude):
        return recording.series
    return exclude_rows([recording], Path(exclude))[0]


def load_files(
    path: str | os.PathLike[str],
    *,
    test_path: str | os.PathLike[str] = "",
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
    missing: str = "error",
    order: str = "strict",
    duplicates: str = "error",
    exclude: str | os.PathLike[str] = "",
    memory_bytes: float = math.inf,
) -> Dataset:
    """The data set of a train file and, if given, a test file; see `read_table`.

    Test channels are put in the order of train's, test entities likewise. The train file
    may lack the label column when there is a test file. Excluded spans are both files'.

    A Parquet or `.npy` file whose numbers take more than `memory_bytes` as float32 is
    not loaded, nor is one that the memory has no room for: its series are memory maps
    (see `kdjax.data.mmap`). Text is always read whole, so that a CSV file larger than
    the memory is refused, and has to become a Parquet file first.
    """
    rules = Rules(missing, order, duplicates)
    check_rules(rules)
    roles = Roles(time_column, entity_column, label_column)
    name = _stem(Path(path))
    if not str(test_path):
        recordings = [_read(Path(path), roles, rules, name, memory_bytes)]
    else:
        train = _read(Path(path), roles, rules, name, memory_bytes, labels="optional")
        # Without a column of entities the test file's name is no other machine.
        test = _read(Path(test_path), roles, rules, name, memory_bytes)
        aligned = _align(train.series, test.series, Path(test_path))
        recordings = [train, test._replace(series=aligned)]
    parts = [recording.series for recording in recordings]
    if str(exclude):
        parts = exclude_rows(recordings, Path(exclude))
    return Dataset(name, parts[0], parts[1] if len(parts) > 1 else ())


def match_channels(series: Series, channels: Sequence[str]) -> Series:
    """`series` with its channels in the order of `channels`, matched by name.

    Channels that the file did not name (`channel_1`, …) are matched by position if there
    are as many.

    >>> rows = Series("a", np.array([[1.0, 2.0]], np.float32), ("cpu", "mem"))
    >>> match_channels(rows, ("mem", "cpu")).values
    array([[2., 1.]], dtype=float32)
    """
    channels = tuple(channels)
    if series.channels == channels:
        return series
    if series.channels == numbered_channels(len(channels)):
        return series._replace(channels=channels)
    absent = [name for name in channels if name not in series.channels]
    foreign = [name for name in series.channels if name not in channels]
    if absent or foreign:
        raise DataError(
            f"{series.entity}: channels differ from the {len(channels)} expected; "
            f"missing: {', '.join(absent) or 'none'}; not expected: "
            f"{', '.join(foreign) or 'none'}. Rename, add or remove columns."
        )
    order = [series.channels.index(name) for name in channels]
    return series._replace(values=reordered(series.values, order), channels=channels)


def _read(
    path: Path,
    roles: Roles,
    rules: Rules,
    name: str,
    memory_bytes: float = math.inf,
    *,
    labels: str = "needed",
) -> Recording:
    """The series of a file, with the entity `name` where it has no column of them.

    `labels="optional"` lets it lack the label column.
    """
    mapped = None if any(roles) else _mapped(path, name)
    if mapped is not None:
        return Recording((mapped,))
    table = _too_large(path, memory_bytes) or read_columns(
        path, text_column=roles.entity
    )
    if labels == "optional" and roles.label not in table.place.columns:
        roles = roles._replace(label="")
    if isinstance(table, OpenTable):
        return to_mapped_series(table, roles=roles, rules=rules, name=name)
    return to_series(table, roles=roles, rules=rules, name=name)


def _too_large(path: Path, memory_bytes: float) -> OpenTable | None:
    """The file, if it can stay on disk and its numbers take more than there is for them."""
    table = open_table(path)
    if table is None:
        return None
    cells = table.rows * len(table.numeric)
    room = available_memory() / _WHOLE_BYTES
    return table if 4 * cells > memory_bytes or cells > room else None


def _mapped(path: Path, name: str) -> Series | None:
    """A `.npy` file of finite float32 rows as it lies on disk; None for any other."""
    if path.suffix.lower() != ".npy" or not path.is_file():
        return None
    values = read_npy(path, mapped=True)
    as_read = values.dtype == np.float32 and values.flags.c_contiguous
    if values.ndim != 2 or not values.size or not as_read:
        return None
    for first in range(0, len(values), _CHECKED):
        if not np.isfinite(values[first : first + _CHECKED]).all():
            return None
    return Series(name, values, numbered_channels(values.shape[1]))


def _stem(path: Path) -> str:
    """The file's name without its endings."""
    return Path(path.name.removesuffix(".gz")).stem


def _align(
    train: tuple[Series, ...], test: tuple[Series, ...], path: Path
) -> tuple[Series, ...]:
    """Test series with the entities and channels of train, in train's order."""
    known = {series.entity: series for series in train}
    for series in test:
        if series.entity not in known:
            raise DataError(
                f"{path} has the entity {series.entity!r}, which the train file lacks: "
                f"expected {', '.join(known)}; add it there or remove its rows."
            )
    found = {series.entity: series for series in test}
    for entity in known:
        if entity not in found:
            raise DataError(
                f"{path} has no rows of the entity {entity!r} of the train file: add "
                "them, or remove the entity from the train file."
            )
    try:
        return tuple(match_channels(found[a], known[a].channels) for a in known)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


_DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")


def exclude_rows(
    recordings: Sequence[Recording], path: Path
) -> list[tuple[Series, ...]]:
    """The series of each recording, with `excluded` and `notes` on what it holds.

    Args:
        recordings: files to which the spans apply.
        path: CSV with the columns `start` and `end` (inclusive) in the units of the
            recordings' time, or row numbers from 0 where they have none; a column `entity`
            if need be, empty where a span is all entities'; `reason` is not read. An
            `end` that is a date means the end of that day.
    """
    table = read_columns(path, text_column="entity")
    _check_columns(table.place)
    owners = _owners(table, recordings)
    hit = np.zeros(len(table.frame), bool)
    found = []
    for series, zoned in recordings:
        bounds = _bounds(table, series[0], zoned)
        spans = [_rows(one, bounds, owners) for one in series]
        hit |= np.any([rows[:, 0] < rows[:, 1] for rows in spans], axis=0)
        found.append(
            tuple(
                _excluding(one, rows, path)
                for one, rows in zip(series, spans, strict=True)
            )
        )
    found[0] = _with_misses(found[0], hit, table.place)
    return found


def _check_columns(place: Place) -> None:
    absent = [name for name in ("start", "end") if name not in place.columns]
    foreign = set(place.columns) - {"start", "end", "entity", "reason"}
    if absent or foreign:
        raise DataError(
            f"{place.path} has the columns {', '.join(place.columns)}: expected start and "
            "end, and if need be entity and reason."
        )


def _owners(table: Table, recordings: Sequence[Recording]) -> np.ndarray:
    """The entity of each span, `[S]` str; "" where it is all entities'."""
    frame, place = table
    if "entity" not in place.columns:
        return np.full(len(frame), "", object)
    owners = frame["entity"].fillna("").astype(str).str.strip().to_numpy(object)
    known = [one.entity for one in recordings[0].series]
    for row, owner in enumerate(owners):
        if owner and owner not in known:
            raise DataError(
                f"{where(place, row, 'entity')}: the data have no entity {owner!r}; "
                f"expected {', '.join(known)}, or nothing for all."
            )
    return owners


def _bounds(table: Table, series: Series, zoned: bool) -> np.ndarray:
    """First and last instants of the spans, `[S, 2]` as the series counts time."""
    frame, place = table
    columns = [
        _instants(frame[name], series.time, zoned, place) for name in ("start", "end")
    ]
    bounds = np.stack(columns, axis=1)
    turned = np.flatnonzero(bounds[:, 1] < bounds[:, 0])
    if len(turned):
        row = int(turned[0])
        raise DataError(
            f"{where(place, row)}: the end {frame['end'].iloc[row]} is before the start "
            f"{frame['start'].iloc[row]}; correct it."
        )
    return bounds


def _instants(
    column: pd.Series, time: np.ndarray | None, zoned: bool, place: Place
) -> np.ndarray:
    """The column as instants of the same kind as `time`, `[S]`."""
    instants = parse_time(column, place)
    dated = time is not None and np.issubdtype(time.dtype, np.datetime64)
    here = f"{place.path}: column {str(column.name)!r} holds {column.iloc[0]}"
    if np.issubdtype(instants.dtype, np.datetime64) != dated:
        numbers = "row numbers from 0" if time is None else "numbers"
        expected = "times such as 2024-01-31 23:59:00" if dated else numbers
        raise DataError(f"{here}, where the data need {expected}; convert the column.")
    if dated and has_zone(column) != zoned:
        theirs = "have a time zone" if zoned else "have no time zone"
        raise DataError(
            f"{here}, while the times of the data {theirs}; write both alike."
        )
    if dated and column.name == "end" and not pd.api.types.is_datetime64_dtype(column):
        days = column.astype(str).str.strip().str.fullmatch(r"\d{4}-\d\d-\d\d")
        instants = instants + days.to_numpy(np.int64) * (_DAY - np.timedelta64(1, "ns"))
    return instants


def _rows(series: Series, bounds: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The series' own rows between the bounds, `[S, 2] -> [S, 2]` half open."""
    time = np.arange(len(series.values)) if series.time is None else series.time
    first = np.searchsorted(time, bounds[:, 0], side="left")
    stop = np.searchsorted(time, bounds[:, 1], side="right")
    mine = (owners == "") | (owners == series.entity)
    return np.stack([first, np.where(mine, stop, first)], axis=1)


def _excluding(series: Series, spans: np.ndarray, path: Path) -> Series:
    spans = merge(spans[spans[:, 0] < spans[:, 1]])
    if not len(spans):
        return series
    rows = int((spans[:, 1] - spans[:, 0]).sum())
    note = f"{series.entity}: {rows:,} of {len(series.values):,} rows excluded ({path.name})"
    return series._replace(excluded=spans, notes=(*series.notes, note))


def _with_misses(
    series: tuple[Series, ...], hit: np.ndarray, place: Place
) -> tuple[Series, ...]:
    """The series, the first with a note on spans that hold no row."""
    missed = np.flatnonzero(~hit)
    if not len(missed):
        return series
    note = (
        f"{len(missed)} of {len(hit)} spans hold no row of the data, the first in "
        f"{where(place, int(missed[0]))}"
    )
    first = series[0]._replace(notes=(*series[0].notes, note))
    return (first, *series[1:])
