"""Users' own files as series: CSV, Parquet and NumPy files of sensor channels.

A file holds one row a time step: channels, and if need be a time column (found by name or
content), an entity column and a label column (both only if named).
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdjax.data.exclusions import exclude as exclude_spans
from kdjax.data.large import reordered, to_mapped_series
from kdjax.data.memory import available_memory
from kdjax.data.raw import read_npy
from kdjax.data.roles import Recording, Roles, Rules, check_rules, to_series
from kdjax.data.series import Dataset, Series
from kdjax.data.tables import OpenTable, numbered_channels, open_table, read_columns
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
            `kdjax.data.exclusions.exclude`.
    """
    rules = Rules(missing, order, duplicates)
    check_rules(rules)
    roles = Roles(time_column, entity_column, label_column)
    recording = _read(Path(path), roles, rules, _stem(Path(path)))
    if not str(exclude):
        return recording.series
    return exclude_spans([recording], Path(exclude))[0]


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
    (see `kdjax.data.large`). Text is always read whole, so that a CSV file larger than
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
        parts = exclude_spans(recordings, Path(exclude))
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
