"""Tables of readings as series on an even grid, see `kdjax.data.grid`.

In long layout each row is a reading: time, tag, value, and the entity if there are
several. In wide layout each cell that isn't missing is one.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from kdjax.data.grid import step_index, step_of, step_runs, step_time, to_grid
from kdjax.data.raw import check_room, others, to_rows, where
from kdjax.data.scaler import needs_float64
from kdjax.data.schema import (
    Assigned,
    Reading,
    assign_roles,
    channel_names,
    channel_numbers,
    check_ignored,
    entity_rows,
    parse_labels,
)
from kdjax.data.series import Series
from kdjax.data.tables import Table
from kdjax.data.times import TimeForm, Times, arrange, is_zoned, time_form, time_text
from kdjax.errors import DataError, counted

_CELL_BYTES = 40  # memory of a reading, or a cell of the grid, while both exist
_PARTS = (
    "give the readings in parts, set a larger data.step, or a smaller data.fill_limit"
)


def grid_series(
    table: Table, *, reading: Reading, name: str, may_lack: Collection[str] = ()
) -> tuple[Series, ...]:
    """The series of a table of readings; `name` is the entity without an entity column.

    In long layout `reading.channels` are the allowed tags; a tag without a reading is
    missing. Without them all tags are channels, sorted by name. `may_lack` are ignored
    names that are optional.
    """
    check_room(
        table.place.path, _CELL_BYTES * table.rows * len(table.place.columns), _PARTS
    )
    found = assign_roles(table, reading=reading, name=name)
    place, reading, times = found.place, found.reading, found.times
    if times is None:
        raise DataError(
            f"{place.path} has no time column, which data.step={reading.step} needs: "
            "name it as data.time_column."
        )
    time = times.values
    dated = np.issubdtype(time.dtype, np.datetime64)
    step = step_of(reading.step, dated=dated)
    if reading.long:
        tags, names = _tags(found, may_lack)
        values = _values(found, tags)
    else:
        tags, names = np.empty(0), channel_names(place, reading)
        columns = [channel_numbers(found.frame[one], place, reading) for one in names]
        values = np.stack(columns, axis=1)
        to_rows(values, place, names, missing="mask")  # for its checks
    labels = (
        parse_labels(found, np.arange(len(values))) if reading.label_column else None
    )
    series = []
    for entity, rows in found.groups.items():
        if reading.long:
            rows = rows[tags[rows] >= 0]
            once, notes = _distinct(
                found, rows[~np.isnan(values[rows])], tags, values, names
            )
            own, tag, value = time[once], tags[once], values[once]
        else:
            rows, notes = arrange(
                times, rows, place, reading.time_column,
                order=reading.order, duplicates=reading.duplicates,
            )  # fmt: skip
            own = np.repeat(time[rows], len(names))
            tag, value = np.tile(np.arange(len(names)), len(rows)), values[rows].ravel()
        known = ~np.isnan(value)
        if not known.any():
            raise DataError(f"{place.path}: {entity} has no reading of a channel.")
        own, tag, value = own[known], tag[known], value[known]
        runs, _ = step_runs(step_index(own, step), reading.fill_limit)
        steps = int(runs.sum())
        check_room(place.path, _CELL_BYTES * steps * len(names), _PARTS)
        ends, cells = to_grid(
            own, tag, value, step=step, tags=len(names), limit=reading.fill_limit
        )
        absent = np.isnan(cells)
        if absent.any() and reading.missing == "error":
            at, form = int(np.argmax(absent.any(axis=1))), _form(times, rows)
            when = time_text(ends[at], form)
            raise _missing_error(cells, when, names, entity, found)
        notes.append(f"{len(own):,} readings make {steps:,} rows at steps of {step:g}")
        if count := int(absent.sum()):
            notes.append(f"{count:,} of {cells.size:,} values missing")
        marked = None
        if labels is not None:
            anomalous = step_index(time[rows][labels[rows]], step)
            marked = np.isin(ends, step_time(anomalous, step, dated=dated))
        series.append(
            Series(
                entity,
                cells,
                names,
                time=ends,
                labels=marked,
                notes=tuple(f"{entity}: {note}" for note in notes),
                form=_form(times, rows),
                time_column=reading.time_column,
            )
        )
    dtype = reading.dtype
    if dtype is None:
        hard = any(needs_float64([one.values]).any() for one in series)
        dtype = np.float64 if hard else np.float32
    return tuple(one._replace(values=one.values.astype(dtype)) for one in series)


def _form(times: Times, rows: np.ndarray) -> TimeForm:
    """The form of a grid's times; those of the readings may be coarser."""
    if not is_zoned(times.dtype):
        return TimeForm()
    form = time_form(times, rows[np.argsort(times.values[rows], kind="stable")])
    return form._replace(dtype=pd.DatetimeTZDtype("ns", times.dtype.tz))


def _tags(
    found: Assigned, may_lack: Collection[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The number of each row's channel, `[N]`, −1 for ignored tags; and the channels."""
    place, reading = found.place, found.reading
    ignore, column = reading.ignore, reading.tag_column
    used = {*reading.columns, reading.time_column}
    if foreign := [name for name in place.columns if name not in used]:
        raise DataError(
            f"{place.path}: columns {', '.join(foreign)} are not used in long layout: "
            "put them in data.ignore, or name one as entity_column."
        )
    groups = entity_rows(found.frame, column, "", place, "tag")
    check_ignored(reading.channels, ignore)
    names = reading.channels or tuple(sorted(groups.keys() - {*ignore}))
    for tag, rows in groups.items():
        if tag not in names and tag not in ignore:
            raise DataError(
                f"{where(place, int(rows[0]), column)}: the tag {tag!r} is none of the "
                f"{len(names)} channels ({', '.join(names)}): remove its rows, or put it "
                "in data.ignore."
            )
    absent = {*ignore} - {*groups} - {*place.columns} - {*may_lack}
    if absent:
        raise DataError(
            f"{place.path} has no column or tag {', '.join(sorted(absent))}: remove it "
            "from data.ignore."
        )
    if not names:
        raise DataError(f"{place.path} has no tag besides those of data.ignore.")
    tags = np.full(len(found.frame), -1)
    for number, tag in enumerate(names):
        tags[groups.get(tag, [])] = number
    return tags, names


def _values(found: Assigned, tags: np.ndarray) -> np.ndarray:
    """The value of each reading, `[N]`, NaN where it is missing or its tag ignored."""
    column, values = found.reading.value_column, np.full(len(tags), np.nan)
    order = np.argsort(tags, kind="stable")
    # Tag by tag: one may have truth values and another numbers.
    for rows in np.split(order, np.flatnonzero(np.diff(tags[order])) + 1):
        if tags[rows[0]] < 0:
            continue
        place = found.place._replace(rows=rows)
        values[rows] = channel_numbers(
            found.frame[column].iloc[rows], place, found.reading
        )
        to_rows(values[rows, None], place, (column,), missing="mask")  # for its checks
    return values


def _distinct(
    found: Assigned,
    rows: np.ndarray,
    tags: np.ndarray,
    values: np.ndarray,
    names: Sequence[str],
) -> tuple[np.ndarray, list[str]]:
    """An entity's readings, one per tag and time, in any order; and notes."""
    assert found.times is not None
    time = found.times.values
    rows = rows[np.lexsort((time[rows], tags[rows]))]  # stable
    before, after = rows[:-1], rows[1:]
    again = (tags[after] == tags[before]) & (time[after] == time[before])
    differs = np.flatnonzero(again & (values[after] != values[before]))
    if len(differs) and found.reading.duplicates == "error":
        first, second = rows[differs[0] : differs[0] + 2]
        when = time_text(time[first], TimeForm(found.times.dtype))
        raise DataError(
            f"{where(found.place, int(second))}: the tag {names[tags[first]]!r} has two "
            f"values at {when} (first in row {first + 1}){others(len(differs))}; remove "
            "one, set data.duplicates=last, or name data.entity_column if the file has "
            "several entities."
        )
    kept, notes = np.ones(len(rows), bool), []
    kept[:-1] = ~again
    if count := int(again.sum()):
        text = counted(count, "repeated reading")
        notes.append(f"{text} left out (the last of each kept)")
    return rows[kept], notes


def _missing_error(
    cells: np.ndarray, when: str, names: Sequence[str], entity: str, found: Assigned
) -> DataError:
    """The error for missing cells of a grid `[N, D]`, the first in the row at `when`."""
    absent, limit = np.isnan(cells), found.reading.fill_limit
    row, column = np.argwhere(absent)[0]
    name = names[column]
    since, todo = "", ""
    if not absent[:row, column].all():
        since, todo = f" in the {limit} steps", ", or set a larger data.fill_limit"
    return DataError(
        f"{found.place.path}: {entity} has no value of {name!r} at {when}"
        f"{others(int(absent.sum()))}: no reading then or{since} before; set "
        f"data.missing=mask to allow it{todo}, or put {name!r} in data.ignore."
    )
