"""Users' own files as series: CSV, Parquet and NumPy files of sensor channels.

A file holds one row a time step: channels, and if need be a time column (found by name or
content), an entity column and a label column (both only if named).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kdjax.data.cells import Place, others, to_float32, to_labels, where
from kdjax.data.clock import check_order, find_time, parse_time
from kdjax.data.raw import read_npy
from kdjax.data.series import Dataset, Series
from kdjax.data.tables import UNNAMED, Table, read_columns
from kdjax.errors import ConfigError, DataError

MISSING = ("error", "ffill")

# Rows of a mapped file checked at once.
_CHECKED = 100_000


def read_table(
    path: str | os.PathLike[str],
    *,
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
    missing: str = "error",
) -> tuple[Series, ...]:
    """The series of a file, one an entity in order of first appearance.

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
            entity's last value.
    """
    _check_missing(missing)
    if not (time_column or entity_column or label_column):
        mapped = _mapped(Path(path))
        if mapped is not None:
            return (mapped,)
    table = read_columns(Path(path), text_column=entity_column)
    return _series(table, time_column, entity_column, label_column, missing)


def load_files(
    path: str | os.PathLike[str],
    *,
    test_path: str | os.PathLike[str] = "",
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
    missing: str = "error",
) -> Dataset:
    """The data set of a train file and, if given, a test file; see `read_table`.

    Test channels are put in the order of train's, test entities likewise. The train file
    may lack the label column when there is a test file.
    """
    _check_missing(missing)
    has_test = bool(str(test_path))
    table = read_columns(Path(path), text_column=entity_column)
    has_labels = label_column in table.place.columns or not has_test
    train = _series(
        table, time_column, entity_column, label_column if has_labels else "", missing
    )
    test: tuple[Series, ...] = ()
    if has_test:
        test = read_table(
            test_path,
            time_column=time_column,
            entity_column=entity_column,
            label_column=label_column,
            missing=missing,
        )
        test = _align(train, test, Path(test_path), named=bool(entity_column))
    return Dataset(_stem(Path(path)), train, test)


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
    unnamed = tuple(f"channel_{i}" for i in range(1, len(channels) + 1))
    if series.channels == unnamed:
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
    return series._replace(values=series.values[:, order], channels=channels)


def _check_missing(missing: str) -> None:
    if missing not in MISSING:
        raise ConfigError(
            f"data.missing={missing!r} is unknown: use one of {', '.join(MISSING)}."
        )


def _mapped(path: Path) -> Series | None:
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
    channels = tuple(f"channel_{i}" for i in range(1, values.shape[1] + 1))
    return Series(_stem(path), values, channels)


def _stem(path: Path) -> str:
    """The file's name without its endings."""
    return Path(path.name.removesuffix(".gz")).stem


def _series(
    table: Table, time_column: str, entity_column: str, label_column: str, missing: str
) -> tuple[Series, ...]:
    """The series in a table whose columns get their meaning here."""
    frame, place = table
    roles = [name for name in (entity_column, label_column) if name]
    _check_roles(place, [time_column, *roles])
    rest = frame.drop(columns=roles)
    time_column = time_column or find_time(rest, place)
    channels = _channels([name for name in rest.columns if name != time_column], place)
    groups = _groups(frame, entity_column, place)
    values = _values(frame, channels, groups, missing, place)
    time = parse_time(frame[time_column], place) if time_column else None
    labels = _labels(frame, label_column, place)
    if time is not None:
        for rows in groups.values():
            check_order(time[rows], rows, place, time_column)
    return tuple(
        Series(
            entity,
            values[rows],
            channels,
            time=None if time is None else time[rows],
            labels=None if labels is None else labels[rows],
        )
        for entity, rows in groups.items()
    )


def _check_roles(place: Place, names: list[str]) -> None:
    """Refuses columns that the file lacks or that would have two meanings."""
    named = [name for name in names if name]
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


def _channels(names: list[str], place: Place) -> tuple[str, ...]:
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


def _groups(
    frame: pd.DataFrame, entity_column: str, place: Place
) -> dict[str, np.ndarray]:
    """The row numbers of each entity, in order of first appearance."""
    if not entity_column:
        return {_stem(place.path): np.arange(len(frame))}
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


def _values(
    frame: pd.DataFrame,
    channels: tuple[str, ...],
    groups: dict[str, np.ndarray],
    missing: str,
    place: Place,
) -> np.ndarray:
    """The channels as finite float32, `[N, D]`, with missing cells filled if wanted."""
    values = np.empty((len(frame), len(channels)))
    for index, name in enumerate(channels):
        values[:, index] = _numbers(frame[name], place)
    if missing == "ffill":
        values[~np.isfinite(values)] = np.nan
        for rows in groups.values():
            values[rows] = pd.DataFrame(values[rows]).ffill().to_numpy()
    bad = ~np.isfinite(values)
    if bad.any():
        raise _gap(values, bad, channels, missing, place)
    return to_float32(values, place, channels)


def _gap(
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
            "complete or remove these rows."
        )
    cell = "is missing" if np.isnan(values[row, column]) else "is infinite"
    return DataError(
        f"{start}: the value {cell}{others(count)}; correct the file, or "
        "repeat the last value by data.missing=ffill."
    )


_ROLE_HINT = (
    "correct it, or name the column as entity_column or time_column if it is one, else "
    "remove it"
)


def _numbers(column: pd.Series, place: Place, hint: str = _ROLE_HINT) -> np.ndarray:
    """A column as float64 `[N]`, NaN where a cell is missing; DataError on text."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64)
    if pd.api.types.is_datetime64_any_dtype(column):
        raise DataError(
            f"{place.path}: column {str(column.name)!r} holds times, expected numbers; "
            "name it as time_column or remove it."
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


def _labels(frame: pd.DataFrame, column: str, place: Place) -> np.ndarray | None:
    if not column:
        return None
    numbers = _numbers(frame[column], place, "labels are 0 (normal) or 1 (anomaly)")
    return to_labels(numbers, place, column)


def _align(
    train: tuple[Series, ...], test: tuple[Series, ...], path: Path, *, named: bool
) -> tuple[Series, ...]:
    """Test series with the entities and channels of train, in train's order."""
    if not named:
        # Each file is one entity; the test file's name is no other machine.
        test = tuple(series._replace(entity=train[0].entity) for series in test)
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
