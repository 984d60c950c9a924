"""Cells of a table as float32 numbers or labels, and messages that say where one fails.

Rows and columns count from 1 in messages. Text files add the line, which is what an
editor shows.
"""

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.raw import read_bytes
from kdjax.errors import DataError


class Place(NamedTuple):
    """Where a table comes from, for messages.

    Attributes:
        path: its file.
        columns: names of all its columns.
        first_line: line of its first row in a text file; 0 where there are no lines.
        rows: `[N]` the file's row of each row of the table; None where they agree.
    """

    path: Path
    columns: tuple[str, ...]
    first_line: int = 0
    rows: np.ndarray | None = None


def where(place: Place, row: int, column: str = "") -> str:
    """The words for one cell or row, `row` counted from 0.

    >>> where(Place(Path("a.csv"), ("cpu", "mem"), first_line=2), 3, "mem")
    "a.csv: row 4 (line 5), column 2 ('mem')"
    """
    row = row if place.rows is None else int(place.rows[row])
    text = f"{place.path}: row {row + 1}"
    if place.first_line:
        text += f" (line {row + place.first_line})"
    if column:
        number = place.columns.index(column) + 1
        text += f", column {number} ({column!r})"
    return text


def others(count: int) -> str:
    """The words for how many cells share the fault of the one named."""
    return f" ({count} such cells in all)" if count > 1 else ""


@contextlib.contextmanager
def about(*paths: str | os.PathLike[str]) -> Iterator[None]:
    """A DataError within it names the files that it is about, if it doesn't already."""
    try:
        yield
    except DataError as error:
        named = [str(path) for path in paths if str(path)]
        if not named or any(name in str(error) for name in named):
            raise
        raise DataError(f"{' and '.join(named)}: {error}") from error


def to_float32(
    values: np.ndarray,
    place: Place,
    columns: Sequence[str] = (),
    *,
    missing: str = "error",
) -> np.ndarray:
    """`values` `[N, D]` as float32; a cell that is not finite there is a DataError.

    Checked after the cast: 1e39 is a finite float64 and an infinite float32.

    Args:
        values: `[N, D]` numbers.
        place: where they come from.
        columns: names of the D columns; by default all of the place's.
        missing: `mask` lets NaN pass.
    """
    columns = columns or place.columns
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype=np.float32)
    bad = np.isinf(cast) if missing == "mask" else ~np.isfinite(cast)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        value = values[row, column]
        problem = (
            f"{value:g} is beyond float32 (3.4e38); correct it or change the unit"
            if np.isfinite(value)
            else f"{value} is not a finite number; correct or fill it"
        )
        more = others(int(bad.sum()))
        raise DataError(f"{where(place, row, columns[column])}: {problem}{more}.")
    return cast


def to_labels(values: np.ndarray, place: Place, column: str) -> np.ndarray:
    """Labels `[N]` as bool; DataError where one is neither 0 nor 1."""
    bad = (values != 0) & (values != 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{where(place, row, column)}: label {values[row]:g} is neither 0 (normal) "
            "nor 1 (anomaly); correct it."
        )
    return values.astype(bool)


def read_matrix(path: Path, columns: tuple[str, ...]) -> np.ndarray:
    """Rows of a comma-separated text file without header, `[N, D]` float32."""
    data = read_bytes(path)
    place = Place(path, columns, first_line=1)
    try:
        values = pd.read_csv(
            io.BytesIO(data),
            header=None,
            dtype=np.float64,
            skip_blank_lines=False,
        ).to_numpy()
    except (ValueError, pd.errors.ParserError) as error:
        raise _fault(data, place) or DataError(
            f"{path} can't be read as numbers ({error}): expected {len(columns)} "
            "comma-separated numbers a row."
        ) from None
    if values.shape[1] != len(columns) or not np.isfinite(values).all():
        # pandas pads short rows with NaN: only the text tells them from a NaN.
        fault = _fault(data, place)
        if fault is not None:
            raise fault
    return to_float32(values, place)


def _fault(data: bytes, place: Place) -> DataError | None:
    """The first cell or row of the text that is at fault, looked for cell by cell."""
    width = len(place.columns)
    lines = io.StringIO(data.decode("utf-8", errors="replace"), newline="")
    for row, cells in enumerate(_split(lines)):
        if len(cells) != width:
            return DataError(
                f"{where(place, row)} has {len(cells)} cells, expected {width}; "
                "complete or remove the row."
            )
        for column, cell in zip(place.columns, cells, strict=True):
            if not is_number(cell):
                return DataError(
                    f"{where(place, row, column)}: {cell!r} is not a number; correct it."
                )
    return None


def _split(lines: io.StringIO) -> Iterator[list[str]]:
    """The cells of each line, as far as the text is one of cells."""
    with contextlib.suppress(csv.Error):
        yield from csv.reader(lines)


def is_number(cell: str) -> bool:
    """Whether a cell is a number as files write it.

    >>> is_number("1e3"), is_number("1_000")
    (True, False)
    """
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # float("1_0") is Python's liberty, not the format's
