"""Inputs of many machines: a folder of files, a partitioned Parquet folder, one table.

Machines are found by names only, so that a folder of many is listed without being read;
`read_machine` reads one. A table in one file is read as a whole and split by its entity
column.
"""

import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pandas as pd

from kdjax.data.readers import exclude_rows, load_files, name_of, series_of
from kdjax.data.schema import Reading, check_reading, entity_rows
from kdjax.data.series import Series
from kdjax.data.tables import SUFFIXES, Table, frame_table, open_table
from kdjax.errors import ConfigError, DataError, counted

# A folder of one machine's Parquet files, such as `entity=m1`.
_PARTITION = re.compile(r"[^=/]+=(?P<entity>.+)")


class Machine(NamedTuple):
    """One machine's rows: files, or a frame with its part of a table."""

    entity: str
    paths: tuple[str, ...] = ()
    frame: pd.DataFrame | None = None
    source: str = ""  # the table that the frame is from
    first_line: int = 0  # line of row 0 of the table, see `Place`
    fault: str = ""  # why the machine can't be used
    size: int = 0  # bytes of its files or of its frame, to estimate the cost


def list_machines(path: str | os.PathLike[str], *, entity_column: str) -> list[Machine]:
    """The machines of an input, by name.

    Args:
        path: a folder with a file for each machine at any depth, named by the file without
            endings; or with a folder `COLUMN=MACHINE` of Parquet files for each; or one
            file with an entity column, which is read as a whole.
        entity_column: of one file.

    Raises:
        ConfigError: one file without `entity_column`.
        DataError: there is no such path, or no machine in it.

    >>> [m.entity for m in list_machines("plants", entity_column="")]  # doctest: +SKIP
    ['m1', 'm2']
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path.")
    if not path.is_dir():
        if not entity_column:
            raise ConfigError(
                f"{path} is one file: name the column of machines in "
                "data.entity_column, or give a folder with a file for each."
            )
        table = open_table(path, text_columns={entity_column})
        return frame_machines(table, entity_column)
    sizes = {file: file.stat().st_size for file in sorted(_files(path))}
    return name_machines(path, sizes)


def name_machines(
    path: str | os.PathLike[str], sizes: Mapping[Any, int]
) -> list[Machine]:
    """The machines of a folder's files, which come with their sizes; URLs are text."""
    found: dict[str, list[Any]] = {}
    parted = set()
    for file in sizes:
        above = PurePath(file).parent
        entity = partition_of(file) if above.name != PurePath(path).name else ""
        if entity:
            parted.add((entity, str(above)))
        found.setdefault(entity or name_of(file), []).append(file)
    if not found:
        raise DataError(
            f"{path} has no file of rows: expected file endings {', '.join(SUFFIXES)}."
        )
    machines = []
    for entity, files in sorted(found.items()):
        places = {str(PurePath(file).parent) for file in files}
        fault = ""
        whole = len(places) == 1 and (entity, *places) in parted
        if len(files) > 1 and not whole:
            fault = (
                f"{counted(len(files), 'file')} have this name "
                f"({', '.join(map(str, files[:3]))}): rename them, or keep one"
            )
        size = sum(sizes[file] for file in files)
        machines.append(Machine(entity, tuple(map(str, files)), fault=fault, size=size))
    return machines


def partition_of(path: str | os.PathLike[str]) -> str:
    """The machine of a part of a partitioned Parquet folder; empty for another file.

    >>> partition_of(Path("plants/entity=line%2F1/part-0.parquet"))
    'line/1'
    """
    path = PurePath(path)
    known = _PARTITION.fullmatch(path.parent.name)
    if not (known and path.name.lower().endswith(".parquet")):
        return ""
    return urllib.parse.unquote(known["entity"])


def frame_machines(table: Table, entity_column: str) -> list[Machine]:
    """The machines of a table with a column of entities, by name."""
    return [
        Machine(
            name,
            frame=own.drop(columns=entity_column),
            source=str(table.place.path),
            first_line=table.place.first_line,
            size=8 * len(own) * (own.shape[1] - 1),
        )
        for name, own in sorted(entity_frames(table, entity_column).items())
    ]


def entity_frames(table: Table, column: str) -> dict[str, pd.DataFrame]:
    """The rows of each entity in a column of a table, in order of first appearance."""
    place = table.place
    if column not in place.columns:
        raise DataError(
            f"{place.path} has no column {column!r}: its columns are "
            f"{', '.join(place.columns)}; name the one of the machines as entity_column."
        )
    frame = table.read()
    rows = entity_rows(frame, column, "", place)
    return {entity: frame.iloc[own] for entity, own in rows.items()}


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(here) / name


def read_machine(
    machine: Machine,
    *,
    exclude: str | os.PathLike[str] = "",
    others: Collection[str] = (),
    may_lack: Collection[str] = (),
    **options: Any,
) -> Series:
    """The series of a machine; `options` are those of `read_table`.

    Rows of several files, such as parts of a partition, are in the order of the file
    names. Columns in `may_lack` are optional; `exclude` may name the `others`.

    Raises:
        DataError: a fault of the rows, or `machine.fault`.
    """
    if machine.fault:
        raise DataError(f"{machine.entity}: {machine.fault}.")
    series = _read_machine(machine, may_lack, options)
    if str(exclude):
        [(series,)] = exclude_rows([(series,)], Path(exclude), others=others)
    return series


def _read_machine(
    machine: Machine, may_lack: Collection[str], options: dict[str, Any]
) -> Series:
    name = machine.entity
    options["entity_column"] = ""  # the machine's name is that of its file
    if machine.frame is None and len(machine.paths) == 1:
        options |= {"entity": name, "may_lack": may_lack}
        (series,) = load_files(machine.paths[0], **options).train
        return series
    reading = Reading(**{**options, "ignore": tuple(options.get("ignore", ()))})
    check_reading(reading)
    if machine.frame is None:
        paths = [*map(Path, machine.paths)]
        tables = [open_table(path) for path in paths]
        for path, table in zip(paths, tables, strict=True):
            if table.place.columns != tables[0].place.columns:
                raise DataError(
                    f"{path} has other columns than {paths[0]}: give all files of a "
                    "partition the same columns."
                )
        frame = pd.concat([table.read() for table in tables], ignore_index=True)
        table = frame_table(frame, str(paths[0].parent))
    else:
        table = frame_table(machine.frame, f"{machine.source} ({name})")
        if first := machine.first_line:
            lines = machine.frame.index.to_numpy() + first
            place = table.place._replace(first_line=first, lines=lines)
            table = table._replace(place=place)
    (series,) = series_of(table, reading, name, may_lack=may_lack)
    return series


def usual_channels(found: Sequence[Series]) -> tuple[str, ...]:
    """The channels that most series have; on a tie those of the first series.

    >>> import numpy as np
    >>> rows = np.zeros((1, 1), np.float32)
    >>> usual_channels([Series("a", rows, ("x",)), Series("b", rows, ("y",)),
    ...                 Series("c", rows, ("y",))])
    ('y',)
    """
    counts = Counter(tuple(sorted(series.channels)) for series in found)
    most = counts.most_common(1)[0][0]
    return next(one.channels for one in found if tuple(sorted(one.channels)) == most)
