"""Spans of time that a user leaves out, such as maintenance, from a CSV file of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kdjax.data.cells import Place, where
from kdjax.data.clock import has_zone, parse_time
from kdjax.data.roles import Recording
from kdjax.data.series import Series
from kdjax.data.splits import merge
from kdjax.data.tables import Table, read_columns
from kdjax.errors import DataError

_DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")


def exclude(recordings: Sequence[Recording], path: Path) -> list[tuple[Series, ...]]:
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
