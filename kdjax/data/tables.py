"""Reads users' files as tables of columns: CSV, Parquet and NumPy.

Faults that pandas repairs silently are DataErrors with file and row: short and long rows,
NUL bytes, repeated column names, a first row that is not a header.
"""

import contextlib
import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.cells import (
    COMMENT,
    IN_THOUSANDS,
    MISSING_CELLS,
    first_thousands,
    is_number,
    to_number,
)
from kdjax.data.raw import (
    IN_PIECES,
    Place,
    check_content,
    check_room,
    check_text,
    read_bytes,
    read_npy,
    reading,
    where,
)
from kdjax.errors import DataError, counted
from kdjax.io.stores import check_local

SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet", ".npy")

_SEPARATORS = ("\t", ";", "|", ",")  # the comma is last: it can be a decimal comma
_SAMPLE_LINES = 20
_BUFFER_BYTES = 1_000_000  # read ahead in each column of a large Parquet file
_CELL_BYTES = 20  # least memory of a cell of text in pandas, measured
# Blanks inside a line only: across empty cells and lines the search would not end.
_CELL = (
    r'(?:^|[;|\t])[ \v\f]*(?:"[ \v\f]*)?[+-]?\d*%s\d+(?:[eE][+-]?\d+)?'
    r'[ \v\f]*(?:"[ \v\f]*)?(?=[;|\t\n]|$)'
)
_DECIMAL_COMMA = re.compile((_CELL % ",").encode(), re.MULTILINE)
_DECIMAL_POINT = re.compile((_CELL % r"\.").encode(), re.MULTILINE)
# A column without a name, also as pandas writes it to a file.
UNNAMED = re.compile(r"unnamed(_|: )\d+", re.IGNORECASE)
# May be in thousands; only such columns are read again, as text.
_MAYBE_GROUPED = re.compile(
    rb"(?:^|[;|\t\n])[ \"]*[+-]?[1-9]\d{0,2}[.,]\d{3}[ \"]*(?=[;|\t\n.,]|$)"
)
# The usual markers of missing cells, which pandas finds itself.
_MARKERS = [*MISSING_CELLS, *map(str.upper, MISSING_CELLS), "NaN", "None", "Null"]
NAMES_SEPARATOR = re.compile(r"\s*\"?sep=.?\"?[;,|]*\s*", re.IGNORECASE)
_BLANK = re.compile(rb"\n[ \t\v\f]*\n")
_BLANKS_FIRST = re.compile(rb"(?:[ \t\v\f]*\n)*")
_DATE = re.compile(r"\d{4}-\d\d(-\d\d.*)?")


class Table(NamedTuple):
    """A file's columns, to be read at once or in chunks; missing cells are NaN."""

    place: Place
    rows: int
    numeric: int  # number of columns of numbers; 0 for text, which is held whole
    # (names, rows of a chunk) -> frames with these columns
    chunks: Callable[[Sequence[str], int], Iterator[pd.DataFrame]]

    def read(self) -> pd.DataFrame:
        """All rows and columns."""
        parts = [*self.chunks(self.place.columns, self.rows)]
        return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def numbered_channels(count: int) -> tuple[str, ...]:
    """Names for channels without names.

    >>> numbered_channels(2)
    ('channel_1', 'channel_2')
    """
    return tuple(f"channel_{i}" for i in range(1, count + 1))


def check_file(path: Path) -> None:
    """Raises DataError for a folder, a pipe or a device, and for another ending.

    Raises ConfigError for a URL.
    """
    check_local(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise DataError(f"{path} can't be read (it is {what}): give one file.")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{path} has an unknown ending: expected {', '.join(SUFFIXES)}; convert it."
        )


def open_table(
    path: Path, *, text_columns: Collection[str] = (), empty: bool = False
) -> Table:
    """The table in a file, by the ending of its name, which is one of `SUFFIXES`.

    `text_columns` are read as text even if they look like numbers; `empty` allows a table
    without rows.
    """
    check_file(path)
    name = path.name.lower()
    if name.endswith(".npy"):
        table = _open_npy(path)
    elif name.endswith(".parquet"):
        table = _open_parquet(path)
    else:
        table = _read_text(path, text_columns)
    if not (table.rows or empty):
        raise DataError(f"{path} has no rows: expected data below the column names.")
    return table


def frame_table(frame: pd.DataFrame, name: str) -> Table:
    """A frame in memory as a table; `name` is its name in messages."""
    names = check_names(Path(name), [str(column) for column in frame.columns])
    frame = frame.set_axis(list(names), axis=1).reset_index(drop=True)

    def chunks(wanted: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
        for first in range(0, len(frame), rows):
            yield frame.iloc[first : first + rows][list(wanted)]

    return Table(Place(Path(name), names), len(frame), 0, chunks)


def _open_npy(path: Path) -> Table:
    values = read_npy(path)
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "fiub":
        raise DataError(
            f"{path} holds {values.dtype} of shape {values.shape}, expected numbers "
            "[rows, channels]: reshape or convert the array."
        )
    names = numbered_channels(values.shape[1])

    def chunks(wanted: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
        places = [names.index(name) for name in wanted]
        for first in range(0, len(values), rows):
            part = values[first : first + rows, places]
            yield pd.DataFrame(part, columns=list(wanted))

    return Table(Place(path, names), len(values), len(names), chunks)


def _open_parquet(path: Path) -> Table:
    import pyarrow.parquet
    from pyarrow.types import is_boolean, is_floating, is_integer

    with reading(path), path.open("rb") as start:
        check_content(path, start.read(8), own="Parquet")
    with _parquet_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        schema, total = file.schema_arrow, file.metadata.num_rows
    # Columns for an index that pandas stored without a name are left out.
    index = re.compile(r"__index_level_\d+__")
    names = check_names(
        path, ["" if index.fullmatch(name) else name.strip() for name in schema.names]
    )
    stored = dict(zip(names, schema.names, strict=True))
    kinds = (is_floating, is_integer, is_boolean)
    numeric = sum(any(is_kind(one) for is_kind in kinds) for one in schema.types)

    def chunks(wanted: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
        # Buffered, so that only the current pages of a row group are in memory.
        whole, columns, done = rows >= total, [stored[name] for name in wanted], 0
        options: dict[str, Any] = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES}
        options = {} if whole else options
        with (
            _parquet_errors(path),
            pyarrow.parquet.ParquetFile(path, **options) as file,
        ):
            for batch in file.iter_batches(rows, columns=columns, use_threads=whole):
                # Without pandas' own metadata an index is a column like any other.
                frame = batch.select(columns).to_pandas(ignore_metadata=True)
                frame.columns = pd.Index(wanted)
                done += len(frame)
                yield frame
            if done != total:
                raise ValueError(f"{done} rows, {total} in its metadata")

    return Table(Place(path, names), total, numeric, chunks)


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turns errors of reading a Parquet file into DataErrors."""
    import pyarrow

    # Invalid texts and metadata raise Python's errors rather than Arrow's.
    damage = (pyarrow.ArrowException, RecursionError, ValueError, TypeError)
    with reading(path, "Parquet", damage, "copy or write it again."):
        yield


def _read_text(path: Path, text_columns: Collection[str]) -> Table:
    data = read_bytes(path)
    check_text(path, data)
    begin = _BLANKS_FIRST.match(data).end()  # type: ignore[union-attr]
    number, data = 1 + data.count(b"\n", 0, begin), data[begin:]
    first = data.split(b"\n", 1)[0].decode("utf-8")
    if NAMES_SEPARATOR.fullmatch(first):
        raise DataError(
            f"{path}: line {number} {first.strip()!r} names the separator for Excel: "
            "remove it."
        )
    data, separator = _separated(path, data)
    names, header = _header(path, data, separator, number)
    place = Place(path, names, first_line=number + header)
    if len(names) > 1 and b'"' not in data and _BLANK.search(data):
        lines = data.split(b"\n")
        numbers = [n for n, line in enumerate(lines) if line.strip()]
        data = b"\n".join(lines[n] for n in numbers)
        place = place._replace(lines=np.array(numbers[header:]) + number)
    _check_width(place, data, separator, header)
    decimal = _decimal(place, data, separator, header)
    cells = data.count(separator.encode()) + data.count(b"\n")
    check_room(path, _CELL_BYTES * cells, IN_PIECES)
    options: dict[str, Any] = {
        "sep": separator,
        "header": 0 if header else None,
        "names": list(names),
        "index_col": False,
        "skip_blank_lines": False,
        "skipinitialspace": True,
        "keep_default_na": False,
        "low_memory": False,
    }
    try:
        frame = pd.read_csv(
            io.BytesIO(data),
            dtype={name: str for name in names if name in text_columns},
            decimal=decimal,
            na_values={name: _MARKERS for name in names if name not in text_columns},
            **options,
        )
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{path} can't be read as a table ({error}): correct the file."
        ) from None
    if separator != "," and _MAYBE_GROUPED.search(data):
        texts = pd.read_csv(io.BytesIO(data), dtype=str, **options)
        texts = texts.drop(columns=texts.columns.intersection([*text_columns]))
        for name in texts:
            if (row := first_thousands(texts[name])) is not None:
                cell = f"{where(place, row, str(name))}: {texts[name].iloc[row]!r}"
                raise DataError(f"{cell} {IN_THOUSANDS}")
    if decimal == ",":  # columns with other words, which pandas has left as text
        for name in frame.select_dtypes(exclude=["number", "bool"]):
            if name in text_columns:
                continue
            pairs = [(cell, to_number(cell, comma=True)) for cell in frame[name]]
            frame[name] = [text if found is None else found for text, found in pairs]
    return Table(place, len(frame), 0, lambda wanted, rows: iter([frame]))


def _separated(path: Path, data: bytes) -> tuple[bytes, str]:
    """The text, and the separator that splits its first lines into equally many cells.

    In a `.txt` file that may be runs of blanks, which become tabs.
    """
    head = b"\n".join(data.split(b"\n", _SAMPLE_LINES)[:_SAMPLE_LINES])
    text = head.decode("utf-8", errors="ignore")
    rows = {mark: _split_lines(path, text, mark) for mark in _SEPARATORS}
    for mark in _SEPARATORS:
        if _is_even(rows[mark]):
            return data, mark
    blanks = path.name.lower().removesuffix(".gz").endswith(".txt")
    blanks = blanks and b'"' not in data and b"\t" not in data
    if blanks and _is_even([line.split() for line in text.split("\n")]):
        lines = data.split(b"\n")
        return b"\n".join(b"\t".join(line.split()) for line in lines), "\t"
    # One column, or rows of different widths: then the header decides.
    return data, max(reversed(_SEPARATORS), key=lambda mark: len(rows[mark][0]))


def _is_even(rows: list[list[str]]) -> bool:
    """Whether all lines have the same number of cells, more than one."""
    return len({len(row) for row in rows}) == 1 and len(rows[0]) > 1


def _split_lines(
    path: Path, text: str, separator: str, *, strict: bool = False
) -> list[list[str]]:
    """The cells of each line, with quotes resolved; `strict` refuses `"1"2` for 12."""
    if '"' not in text:
        # Faster, and cells have no length limit.
        lines = text.removesuffix("\n").split("\n")
        rows = (line.split(separator) if line else [] for line in lines)
        return [[cell.lstrip(" ") for cell in row] for row in rows]
    # As in pandas, blanks before a quote are not part of the cell.
    options: dict[str, Any] = {"skipinitialspace": True, "strict": strict}
    found = csv.reader(io.StringIO(text, newline=""), delimiter=separator, **options)
    try:
        return list(found)
    except csv.Error as error:
        raise DataError(
            f"{path}: line {found.line_num} can't be read ({error}): correct its quotes."
        ) from None


def _header(
    path: Path, data: bytes, separator: str, number: int
) -> tuple[tuple[str, ...], bool]:
    """Column names, and whether the first line, numbered `number`, has them."""
    first = data.split(b"\n", 1)[0].decode("utf-8")
    cells = _split_lines(path, first, separator)[0] if first else [""]
    cells = [cell.strip() for cell in cells]
    words = [cell for cell in cells if not is_number(cell, comma=separator != ",")]
    if not words:
        return numbered_channels(len(cells)), False
    if all(to_number(cell) is not None or _DATE.fullmatch(cell) for cell in words):
        raise DataError(
            f"{path}: line {number} {first[:60]!r} looks like data, expected column names: "
            "add a header line."
        )
    return check_names(path, cells), True


def check_names(path: Path, names: list[str]) -> tuple[str, ...]:
    """Column names, each once; an empty one becomes `unnamed_` and its number."""
    names = [name or f"unnamed_{i}" for i, name in enumerate(names, start=1)]
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        first = seen.setdefault(name, position)
        if first != position:
            raise DataError(
                f"{path}: columns {first + 1} and {position + 1} are both named "
                f"{name!r}; rename or remove one."
            )
    return tuple(names)


def _check_width(place: Place, data: bytes, separator: str, header: bool) -> None:
    """Raises DataError for rows of another width, which pandas would pad or cut."""
    if b'"' in data:
        text = data.decode("utf-8")
        rows = _split_lines(place.path, text, separator)
        counts = np.array([max(len(row), 1) for row in rows])  # a blank line has one
    else:
        raw = np.frombuffer(data, np.uint8)
        marks = np.flatnonzero(raw == ord(separator))
        ends = np.append(np.flatnonzero(raw == ord("\n")), len(raw))
        counts = np.diff(np.searchsorted(marks, ends), prepend=0) + 1
    counts = counts[int(header) :]
    bad = np.flatnonzero(counts != len(place.columns))
    if len(bad):
        row = int(bad[0])
        own = data.split(b"\n")[row + header].decode().lstrip()
        todo = "complete or remove the row"
        if header and not row and place.columns[0].startswith(COMMENT):
            todo = f"line {place.first_line - 1} looks like a comment: remove it"
        elif own.startswith(COMMENT):
            todo = "it looks like a comment: remove the row"
        mark = "tabs or blanks" if separator == "\t" else repr(separator)
        raise DataError(
            f"{where(place, row)} has {counted(counts[row], 'cell')}, expected "
            f"{len(place.columns)}; {todo} "
            f"(the separator is {mark})."
        )
    if b'"' in data:
        _split_lines(place.path, text, separator, strict=True)


def _decimal(place: Place, data: bytes, separator: str, header: bool) -> str:
    """The decimal mark: a comma if cells have one that doesn't separate them."""
    if separator == "," or not _DECIMAL_COMMA.search(data):
        return "."
    point = _DECIMAL_POINT.search(data)
    if point:
        row = data[: point.end()].count(b"\n") - header
        raise DataError(
            f"{where(place, row)} has a decimal point in {point[0].decode()!r}, other "
            "cells a decimal comma; write one of them throughout, and no thousands marks."
        )
    return ","
