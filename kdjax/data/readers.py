"""Readers of users' own files as series: CSV, Parquet and NumPy files of channels.

A file has one row per time step: channels, optionally a time column (found by name or
content), an entity column and a label column (both only if named). A CSV file of spans of
time, such as maintenance, excludes rows.
"""

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax.data.raw import Place, as_array, available_memory, read_npy, where
from kdjax.data.readings import grid_series
from kdjax.data.schema import (
    Reading,
    check_reading,
    mapped_rows,
    to_series,
)
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import merge
from kdjax.data.tables import Table, numbered_channels, open_table
from kdjax.data.times import clock_of, is_zoned, parse_time
from kdjax.data.windowing import chunks, on_disk
from kdjax.errors import DataError, counted

_WHOLE_BYTES = 28  # memory per cell to read a file: Arrow, pandas and numpy together
# Allowed columns of a file of spans; the last five are those of events.
SPAN_COLUMNS = {
    "start", "end", "entity", "reason", "severity", "peak", "channels", "id", "kind"
}  # fmt: skip
_DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")


def read_table(
    path: str | os.PathLike[str],
    *,
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
    ignore: Sequence[str] = (),
    missing: str = "error",
    order: str = "strict",
    duplicates: str = "error",
    missing_values: Sequence[str] = (),
    fill_limit: int | None = None,
    layout: str = "wide",
    tag_column: str = "tag",
    value_column: str = "value",
    step: str | float = "",
    exclude: str | os.PathLike[str] = "",
    dtype: Any = None,
) -> tuple[Series, ...]:
    """The series of a file, one per entity in order of first appearance.

    `Series.notes` counts the rows that were filled, left missing, sorted or left out.

    Args:
        path: `.csv`, `.tsv` or `.txt` (also `.gz` of them), `.parquet`, or `.npy` `[N, D]`.
            Text needs a header line unless its first line is all numbers; then, as in
            `.npy`, the columns are `channel_1`, `channel_2`, ….
        time_column: its name; by default the column named time, timestamp, date or
            datetime, else the only one that holds datetimes.
        entity_column: column of entity names; by default all rows are one entity, named
            as the file.
        label_column: column of labels, 0 or 1; by default there are none.
        ignore: columns that are not channels, with any content; in long layout tags too.
        missing: `error` refuses cells without a finite number, `ffill` repeats the
            entity's last value for up to `fill_limit` rows, `mask` gives NaN for missing
            cells and refuses infinite ones.
        order: `strict` refuses times that run backwards within an entity, `sort` sorts
            its rows by time.
        duplicates: `error` refuses equal times within an entity, `last` keeps the last
            of such rows.
        missing_values: markers of missing cells besides an empty cell, NA, N/A, NaN,
            NULL, None and #N/A in any case.
        fill_limit: most rows for which `ffill`, or `step`, repeats a value; later
            cells, and cells before the first value, are NaN. None for any number.
        layout: `wide` for one column per channel; `long` for one row per reading with
            time, tag (the channel's name) and value. Long needs a `step`.
        tag_column, value_column: of long layout.
        step: resamples the readings to an even grid, see `kdjax.data.grid`: `1min`,
            `500ms`, or a number of seconds, or of the unit of numeric times.
        exclude: CSV of spans that fill `Series.excluded`; see `exclude_rows`.
        dtype: of the values, float32 or float64, such as that of a detector's scalers; by
            default float64 only where float32 would cost a channel more than a hundredth
            of its noise.

    Raises:
        DataError: the file can't be read; the message names file, row and column.

    >>> (series,) = read_table("plant.csv", time_column="time")  # doctest: +SKIP
    >>> series.values.shape, series.channels  # doctest: +SKIP
    ((20000, 3), ('load', 'heat', 'flow'))
    """
    return load_files(**locals()).train


def load_files(
    path: str | os.PathLike[str],
    *,
    test_path: str | os.PathLike[str] = "",
    exclude: str | os.PathLike[str] = "",
    memory_bytes: float = math.inf,
    may_lack: Collection[str] = (),
    entity: str = "",
    **options: Any,
) -> Dataset:
    """The data set of a train file and, if given, a test file; see `read_table`.

    `options` are further ones of `read_table`. Test channels and entities are put in the
    order of the train file, test values in its dtype. The train file may lack the label
    column, and the test file ignored columns, if both files are given. `exclude` applies
    to both. For scoring, columns in `may_lack` are optional, `channels` are those of the
    detector, which may have no value, and `entity` names rows without an entity column, by
    default as the file.

    Series of Parquet or `.npy` files are memory maps if their numbers need more than
    `memory_bytes` as float32, or more than the free memory. Text is always read whole.

    >>> dataset = load_files("train.csv", test_path="test.csv")  # doctest: +SKIP
    >>> dataset.train[0].values.shape  # doctest: +SKIP
    (20000, 3)
    """
    own = Reading(**{**options, "ignore": tuple(options.get("ignore", ()))})
    check_reading(own)
    name = entity or name_of(path)
    parts, paths = [], [Path(one) for one in (path, test_path) if str(one)]
    # Without an entity column the test file has the same entity as the train file.
    for number, one in enumerate(paths, start=1):
        lacking = {*may_lack, *(own.ignore if number > 1 else ())}
        lacking |= {own.label_column} if number < len(paths) else set()
        parts.append(_read(one, own, name, memory_bytes, lacking))
        first = parts[-1][0]
        own = own._replace(dtype=first.values.dtype, channels=first.channels)
    if len(paths) > 1:
        parts[1] = _align(parts[0], parts[1], paths[1])
    if str(exclude):
        parts = exclude_rows(parts, Path(exclude))
    return Dataset(name, parts[0], parts[1] if len(paths) > 1 else ())


def name_of(path: str | os.PathLike[str]) -> str:
    """The entity of a file without an entity column: its name without endings.

    >>> name_of("data/plant.csv.gz")
    'plant'
    """
    return Path(Path(path).name.removesuffix(".gz")).stem


def match_channels(series: Series, channels: Sequence[str]) -> Series:
    """`series` with its channels in the order of `channels`, matched by name.

    Channels without names in the file (`channel_1`, …) are matched by position if their
    number is right.

    >>> rows = Series("a", np.array([[1.0, 2.0]], np.float32), ("cpu", "mem"))
    >>> match_channels(rows, ("mem", "cpu")).values
    array([[2., 1.]], dtype=float32)
    """
    channels = tuple(channels)
    if not isinstance(series, Series):
        raise DataError(
            f"the rows are of type {type(series).__name__}, expected a kdjax.data.series."
            "Series: give one that kdjax.read_table returns, or Series('X', values, "
            "channels) with an array [N, D] and the names of its columns."
        )
    if isinstance(series.values, np.ma.MaskedArray):
        series = series._replace(values=as_array(series.values))
    if series.channels == channels:
        return series
    if series.channels == numbered_channels(len(channels)):
        return series._replace(channels=channels)
    absent = [name for name in channels if name not in series.channels]
    foreign = [name for name in series.channels if name not in channels]
    found = {"missing": absent, "not expected": foreign}
    if any(found.values()):
        wrong = [f"{what}: {', '.join(some)}" for what, some in found.items() if some]
        raise DataError(
            f"{series.entity}: channels differ from the {len(channels)} expected; "
            f"{'; '.join(wrong)}. Rename, add or remove columns, or put those that are not "
            "channels in data.ignore."
        )
    order = [series.channels.index(name) for name in channels]
    if not on_disk(series.values):
        return series._replace(values=series.values[:, order], channels=channels)
    values = mapped_rows(len(series.values), len(order), series.values.dtype)
    for source, target in zip(chunks(series.values), chunks(values), strict=True):
        target[:] = source[:, order]
    return series._replace(values=values, channels=channels)


def _read(
    path: Path,
    reading: Reading,
    name: str,
    memory_bytes: float,
    may_lack: Collection[str],
) -> tuple[Series, ...]:
    """The series of a file; columns in `may_lack` are optional."""
    npy = path.suffix.lower() == ".npy" and path.is_file()
    if npy and not reading.columns and not reading.step and reading.dtype != np.float64:
        values = read_npy(path)
        as_read = values.dtype == np.float32 and values.flags.c_contiguous
        usable = as_read and values.ndim == 2 and values.size > 0
        # Finite float32 rows stay a memory map.
        if usable and all(np.isfinite(rows).all() for rows in chunks(values)):
            names = numbered_channels(values.shape[1])
            return (Series(name, values, names),)
    text = {reading.entity_column, *reading.ignore}
    text |= {reading.tag_column} if reading.long else set()
    table = open_table(path, text_columns=text)
    return series_of(table, reading, name, memory_bytes=memory_bytes, may_lack=may_lack)


def series_of(
    table: Table,
    reading: Reading,
    name: str,
    *,
    memory_bytes: float = math.inf,
    may_lack: Collection[str] = (),
) -> tuple[Series, ...]:
    """The series of a table; columns in `may_lack` are optional.

    `name` is the entity without an entity column. Channels that need more than
    `memory_bytes` as float32, or more than the free memory, stay on disk.
    """
    absent = {*may_lack} - {*table.place.columns}
    time, entity, label = ("" if name in absent else name for name in reading[:3])
    reading = reading._replace(
        time_column=time, entity_column=entity, label_column=label
    )
    if reading.step:
        return grid_series(table, reading=reading, name=name, may_lack=may_lack)
    ignore = tuple(one for one in reading.ignore if one not in absent)
    reading = reading._replace(ignore=ignore)
    room = min(memory_bytes / 4, available_memory() / _WHOLE_BYTES)
    large = table.rows * table.numeric > room
    return to_series(table, reading=reading, name=name, large=large)


def _align(
    train: tuple[Series, ...], test: tuple[Series, ...], path: Path
) -> tuple[Series, ...]:
    """Test series with the entities and channels of train, in train's order."""
    known = {series.entity: series for series in train}
    found = {series.entity: series for series in test}
    for entity in found:
        if entity not in known:
            raise DataError(
                f"{path} has the entity {entity!r}, which the train file lacks: "
                f"expected {', '.join(known)}; add it there or remove its rows."
            )
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


def exclude_rows(
    parts: Sequence[tuple[Series, ...]], path: Path, *, others: Collection[str] = ()
) -> list[tuple[Series, ...]]:
    """The series of each file with `excluded` and a note; `path` as in `row_spans`."""
    every, missed = row_spans(parts, path, others=others)
    found = []
    for series, own in zip(parts, every, strict=True):
        excluded = []
        for one, spans in zip(series, own, strict=True):
            if len(spans):
                rows, count = int(np.diff(spans).sum()), len(one.values)
                note = f"{rows:,} of {count:,} rows excluded ({path.name})"
                notes = (*one.notes, f"{one.entity}: {note}")
                one = one._replace(excluded=spans, notes=notes)
            excluded.append(one)
        found.append(tuple(excluded))
    if missed:
        one, *rest = found[0]
        found[0] = (one._replace(notes=(*one.notes, missed)), *rest)
    return found


def row_spans(
    parts: Sequence[tuple[Series, ...]],
    path: Path,
    *,
    also: str = "",
    others: Collection[str] = (),
) -> tuple[list[list[np.ndarray]], str]:
    """Row spans `[S, 2]` of each series of each file, and a note on spans without a row.

    The CSV of spans has the columns `start` and `end` (inclusive) in the units of the
    series' time, or row numbers from 0 without times; optionally a column `entity`, empty
    if a span applies to all entities. `also` is another name of the only entity. `reason`
    and other columns of events are not read. An `end` that is a date means the end of that
    day. `others` are further allowed entities.
    """
    frame, place, owners = _open_spans(path)
    known = [one.entity for one in parts[0]]
    if len(known) == 1:
        owners[owners == also] = known[0]
    foreign = np.isin(owners, [*{*others} - {*known}])
    frame, owners = frame[~foreign].reset_index(drop=True), owners[~foreign]
    place = place._replace(rows=np.flatnonzero(~foreign)) if foreign.any() else place
    _check_owners(owners, place, known)
    if not len(owners):
        return [[np.empty((0, 2), int) for _ in series] for series in parts], ""
    hit = np.zeros(len(frame), bool)
    found = []
    for series in parts:
        bounds = _bounds(frame, place, clock_of(series[0].time, series[0].form))
        spans = []
        for one in series:
            time = np.arange(len(one.values)) if one.time is None else one.time
            first = np.searchsorted(time, bounds[:, 0], side="left")
            stop = np.searchsorted(time, bounds[:, 1], side="right")
            own = (first < stop) & ((owners == "") | (owners == one.entity))
            hit |= own
            spans.append(merge(np.stack([first, stop], axis=1)[own]))
        found.append(spans)
    missed = np.flatnonzero(~hit)
    if not len(missed):
        return found, ""
    return found, (
        f"{len(missed)} of {counted(len(hit), 'span')} without a row of the data, the first in "
        f"{where(place, int(missed[0]))}"
    )


def read_spans(path: Path, clock: str) -> tuple[np.ndarray, np.ndarray]:
    """First and last times of spans `[S, 2]` and their entities `[S]`, empty for all.

    The file is as in `row_spans`, or has no spans. `clock` is that of the data, see
    `clock_of`; dates are whole ns since 1970, in UTC if they have a zone.
    """
    frame, place, owners = _open_spans(path, empty=True)
    if not len(frame):
        return np.empty((0, 2)), owners
    bounds = _bounds(frame, place, clock)
    return bounds if bounds.dtype.kind != "M" else bounds.astype(np.int64), owners


def check_spans(path: Path) -> None:
    """Raises the errors of `read_spans`, except those of its clock."""
    _open_spans(path, empty=True)


def _open_spans(
    path: Path, *, empty: bool = False
) -> tuple[pd.DataFrame, Place, np.ndarray]:
    """A table of spans and the entity of each, `[S]` str; "" for all entities."""
    table = open_table(path, text_columns=["entity"], empty=empty)
    frame, place = table.read(), table.place
    if not {"start", "end"} <= {*place.columns} <= SPAN_COLUMNS:
        raise DataError(
            f"{path} has the columns {', '.join(place.columns)}: expected start and "
            "end, and optionally entity and reason."
        )
    if "entity" not in place.columns:
        return frame, place, np.full(len(frame), "", object)
    owners = frame["entity"].fillna("").astype(str).str.strip().to_numpy(object)
    return frame, place, owners


def _check_owners(owners: np.ndarray, place: Place, known: Sequence[str]) -> None:
    for row, owner in enumerate(owners):
        if owner and owner not in known:
            raise DataError(
                f"{where(place, row, 'entity')}: the data have no entity {owner!r}: "
                f"expected {', '.join(known)}, or an empty cell for all."
            )


def _bounds(frame: pd.DataFrame, place: Place, clock: str) -> np.ndarray:
    """First and last times of the spans, `[S, 2]`, on the clock of the data."""
    dated, zoned = clock in ("local", "zoned"), clock == "zoned"
    found = []
    for name in ("start", "end"):
        column = frame[name]
        times, dtype, _ = parse_time(column, place)
        here = f"{place.path}: column {name!r} holds {column.iloc[0]}"
        if np.issubdtype(times.dtype, np.datetime64) != dated:
            numbers = "numbers" if clock else "row numbers from 0"
            need = "times such as 2024-01-31 23:59:00" if dated else numbers
            raise DataError(f"{here}, but the data need {need}: convert the column.")
        if dated and is_zoned(dtype) != zoned:
            data = "have a time zone" if zoned else "have no time zone"
            raise DataError(
                f"{here}, but the times of the data {data}: write both alike."
            )
        if dated and name == "end" and not pd.api.types.is_datetime64_dtype(column):
            days = column.astype(str).str.strip().str.fullmatch(r"\d{4}-\d\d-\d\d")
            times = times + days.to_numpy(np.int64) * (_DAY - np.timedelta64(1, "ns"))
        found.append(times)
    bounds = np.stack(found, axis=1)
    turned = np.flatnonzero(bounds[:, 1] < bounds[:, 0])
    if len(turned):
        row = int(turned[0])
        raise DataError(
            f"{where(place, row)}: the end {frame['end'].iloc[row]} is before the start "
            f"{frame['start'].iloc[row]}: correct it."
        )
    return bounds
