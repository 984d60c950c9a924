"""Columns of a table get their roles (time, entity, label, channel) and become series."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.cells import (
    Place,
    others,
    to_float32,
    to_labels,
    where,
)
from kdjax.data.series import Series
from kdjax.data.tables import UNNAMED, Table
from kdjax.data.times import (
    arrange,
    find_time,
    has_zone,
    parse_time,
)
from kdjax.errors import ConfigError, DataError

MISSING = ("error", "ffill", "mask")
ORDERS = ("strict", "sort")
DUPLICATES = ("error", "last")


class Roles(NamedTuple):
    """Names of the columns that are no channels; "" where there is none or none known."""

    time: str = ""
    entity: str = ""
    label: str = ""


class Rules(NamedTuple):
    """What becomes of missing values, unsorted rows and repeated times; see `read_table`."""

    missing: str = "error"
    order: str = "strict"
    duplicates: str = "error"


class Recording(NamedTuple):
    """The series of one file.

    Attributes:
        series: one an entity, in order of first appearance.
        zoned: whether the file's times say how far they are from UTC.
    """

    series: tuple[Series, ...]
    zoned: bool = False


class Layout(NamedTuple):
    """A table's rows, put in order, and which of them belong to whom."""

    table: Table
    groups: dict[str, np.ndarray]  # rows of the table
    time: np.ndarray | None  # [N]
    notes: dict[str, list[str]]


def check_rules(rules: Rules) -> None:
    """Refuses words that mean nothing."""
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
        rules: how faults of its rows are dealt with.
        name: the entity where there is no column of entities.
    """
    frame, place = table
    check_roles(roles, place)
    rest = frame.drop(columns=[one for one in (roles.entity, roles.label) if one])
    clock = roles.time or find_time(rest, place)
    channels = channel_names([one for one in rest.columns if one != clock], place)
    groups = entity_rows(frame, roles.entity, name, place)
    (frame, place), groups, time, notes = lay_out(table, groups, clock, rules)
    values = _values(frame, channels, groups, rules.missing, place, notes)
    labels = read_labels(frame, roles.label, place)
    series = tuple(
        Series(
            entity,
            values[rows],
            channels,
            time=None if time is None else time[rows],
            labels=None if labels is None else labels[rows],
            notes=tuple(f"{entity}: {note}" for note in notes[entity]),
        )
        for entity, rows in groups.items()
    )
    return Recording(series, zoned=bool(clock) and has_zone(frame[clock]))


def check_roles(roles: Roles, place: Place) -> None:
    """Refuses columns that the file lacks or that would have two meanings."""
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


def channel_names(names: list[str], place: Place) -> tuple[str, ...]:
    """The columns that are channels: at least one, none of them nameless."""
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
    return tuple(names)


def entity_rows(
    frame: pd.DataFrame, entity_column: str, name: str, place: Place
) -> dict[str, np.ndarray]:
    """The row numbers of each entity, in order of first appearance."""
    if not entity_column:
        return {name: np.arange(len(frame))}
    column = frame[entity_column]
    names = column.astype(str).str.strip()
    absent = (column.isna() | (names == "")).to_numpy()
    if absent.any():
        row = int(np.flatnonzero(absent)[0])
        raise DataError(
            f"{where(place, row, entity_column)}: the entity is missing; complete or "
            "remove the row."
        )
    codes, entities = pd.factorize(names)
    return {str(name): np.flatnonzero(codes == i) for i, name in enumerate(entities)}


def lay_out(
    table: Table, groups: dict[str, np.ndarray], clock: str, rules: Rules
) -> Layout:
    """The table with each entity's rows in order of time, as far as the rules allow."""
    frame, place = table
    notes: dict[str, list[str]] = defaultdict(list)
    if not clock:
        if (rules.order, rules.duplicates) != ("strict", "error"):
            for entity in groups:
                notes[entity].append("no time column, so the rows stay as they are")
        return Layout(table, groups, None, notes)
    time = parse_time(frame[clock], place)
    arranged = {}
    for entity, rows in groups.items():
        arranged[entity], notes[entity][:] = arrange(
            time[rows], rows, place, clock,
            order=rules.order, duplicates=rules.duplicates,
        )  # fmt: skip
    if not any(notes.values()):
        return Layout(table, groups, time, notes)
    order = np.concatenate(list(arranged.values()))
    stops = np.cumsum([len(rows) for rows in arranged.values()])
    inside = np.split(np.arange(len(order)), stops[:-1])
    table = Table(frame.iloc[order], place._replace(rows=order))
    return Layout(table, dict(zip(groups, inside, strict=True)), time[order], notes)


def _values(
    frame: pd.DataFrame,
    channels: tuple[str, ...],
    groups: dict[str, np.ndarray],
    missing: str,
    place: Place,
    notes: dict[str, list[str]],
) -> np.ndarray:
    """The channels as float32 `[N, D]`, missing cells as the policy wants them."""
    values = np.empty((len(frame), len(channels)))
    for index, name in enumerate(channels):
        values[:, index] = parsed_numbers(frame[name], place)
    bad = ~np.isfinite(values)
    if missing == "ffill" and bad.any():
        values[bad] = np.nan
        for entity, rows in groups.items():
            values[rows] = pd.DataFrame(values[rows]).ffill().to_numpy()
            _count(notes[entity], bad[rows], "filled with the last one before")
        bad = np.isnan(values)
    if missing == "mask" and bad.any():
        for entity, rows in groups.items():
            _count(notes[entity], bad[rows], "missing")
        check_alive(values, channels, place)
        bad = np.isinf(values)
    if bad.any():
        raise gap_error(values, bad, channels, missing, place)
    return to_float32(values, place, channels, missing=missing)


def _count(notes: list[str], cells: np.ndarray, what: str) -> None:
    count = int(cells.sum())
    if count:
        notes.append(f"{count:,} of {cells.size:,} values {what}")


def check_alive(values: np.ndarray, channels: tuple[str, ...], place: Place) -> None:
    """Refuses channels without any value."""
    empty = [channels[i] for i in np.flatnonzero(np.isnan(values).all(axis=0))]
    if empty:
        raise DataError(
            f"{place.path}: no row has a value in {', '.join(map(repr, empty))}; remove "
            f"{'these columns' if len(empty) > 1 else 'this column'}."
        )


def gap_error(
    values: np.ndarray,
    bad: np.ndarray,
    channels: tuple[str, ...],
    missing: str,
    place: Place,
) -> DataError:
    """The error for cells without a finite number, which names the first."""
    row, column = (int(i) for i in np.argwhere(bad)[0])
    start = where(place, row, channels[column])
    count = int(bad.sum())
    if missing == "ffill":
        return DataError(
            f"{start}: no earlier value of this entity fills the gap{others(count)}; "
            "complete or remove these rows, or leave gaps open by data.missing=mask."
        )
    absent = bool(np.isnan(values[row, column]))
    cell = "is missing" if absent else "is infinite"
    mask = ", or leave it open by data.missing=mask" if absent else ""
    return DataError(
        f"{start}: the value {cell}{others(count)}; correct the file, or "
        f"repeat the last value by data.missing=ffill{mask}."
    )


_ROLE_HINT = (
    "correct it, or name the column as entity_column or time_column if it is one, else "
    "remove it"
)


def parsed_numbers(
    column: pd.Series, place: Place, hint: str = _ROLE_HINT
) -> np.ndarray:
    """A column as float64 `[N]`, NaN where a cell is missing; DataError on text."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64)
    if pd.api.types.is_datetime64_any_dtype(column):
        raise DataError(
            f"{place.path}: column {str(column.name)!r} holds times, expected numbers; "
            "name it as time_column or remove it."
        )
    if pd.api.types.is_timedelta64_dtype(column):
        raise DataError(
            f"{place.path}: column {str(column.name)!r} holds durations, expected "
            "numbers; convert it to a number of seconds or remove it."
        )
    numbers = pd.to_numeric(column, errors="coerce")
    text = (numbers.isna() & column.notna()).to_numpy()
    if text.any():
        row = int(np.flatnonzero(text)[0])
        raise DataError(
            f"{where(place, row, str(column.name))}: {column.iloc[row]!r} is not a "
            f"number{others(int(text.sum()))}; {hint}."
        )
    return numbers.to_numpy(np.float64)


def read_labels(frame: pd.DataFrame, column: str, place: Place) -> np.ndarray | None:
    """A column of labels as bool `[N]`; None without one."""
    if not column:
        return None
    numbers = parsed_numbers(
        frame[column], place, "labels are 0 (normal) or 1 (anomaly)"
    )
    return to_labels(numbers, place, column)
