"""Converts cells of text to numbers, by the same rules for files and streams.

A number has ASCII digits, a decimal point (or comma, where commas do not separate cells)
and optionally an exponent. `true` and `false` are 1 and 0 where a column has no numbers. A
cell is missing if it is empty, one of `MISSING_CELLS`, or one of the user's markers
(`data.missing_values`). Case and white space around a cell, no-break spaces included, are
ignored.
"""

import functools
import re
from collections.abc import Collection
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

MISSING_CELLS = ("", "na", "n/a", "nan", "-nan", "null", "none", "#n/a")
_TRUTH = {"true": 1.0, "false": 0.0}
_NUMBER = re.compile(
    r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.ASCII | re.IGNORECASE
)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+", re.ASCII)
# End of the message about a cell such as 1.000 in a column of whole numbers.
IN_THOUSANDS = (
    "among whole numbers may be in thousands: write numbers without thousands marks, or "
    "the whole column with decimals."
)
# Missing values as historians, spreadsheets and databases write them. They are not in
# `MISSING_CELLS`, since each of them can be a state too.
_MARKERS = (
    "unavailable", "unknown", "bad", "bad input", "bad data", "no data", "nodata", "no result",
    "i/o timeout", "calc failed", "comm fail", "shutdown", "offline", "invalid", "error",
    "missing", "undefined", "<na>", "nat", "1.#qnan", "-1.#qnan", "1.#ind", "-1.#ind", "n.a.", "#value!", "#div/0!", "#ref!", "#num!", "#name?", "#null!",
    "\\n", "(null)",
    "-", "--", "---", "?", "*", ".",
)  # fmt: skip
# Excludes 0x1F, 1e and 1d3, which Fortran writes for 1e3.
_UNIT = re.compile(
    r"(?!0x)([+-]?\d[\d.,]*)\s*(?!e$|[de][+-]?\d+$)([^\W\d_]|[%°]).*", re.IGNORECASE
)
COMMENT = ("#", "//", "%")
_NUMBERS = (bool, int, float, np.bool_, np.number, Decimal)


def to_number(
    cell: Any, *, comma: bool = False, missing: Collection[str] = ()
) -> float | None:
    """A cell as a number: NaN if it is missing, None if it is not a number.

    Args:
        cell: text, a number, a truth value or None.
        comma: whether the decimal mark may be a comma.
        missing: the user's markers of missing cells, as written in the file.

    >>> to_number(" 1e3 "), to_number("NAN"), to_number("False"), to_number("1_000")
    (1000.0, nan, 0.0, None)
    """
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return np.nan
    if isinstance(cell, str):
        cell = cell.strip()
        word = cell.lower()
        if word in MISSING_CELLS or cell in missing:
            return np.nan
        if word in _TRUTH:
            return _TRUTH[word]
        if comma:
            cell = cell.replace(",", ".")
        if not _NUMBER.fullmatch(cell):
            return None
    elif not isinstance(cell, _NUMBERS):
        return None
    try:
        number = float(cell)
    except OverflowError:  # a whole number in JSON
        return np.inf if cell > 0 else -np.inf
    return np.nan if missing and number in _numbers(tuple(missing)) else number


def mark_missing(
    numbers: np.ndarray, missing: Collection[str], *, dtype: Any = None
) -> np.ndarray:
    """Numbers `[N]` with NaN in place of each marker such as -9999.

    They are compared in `dtype`, by default their own: -999.99 in float32 differs from
    -999.99 in float64.

    >>> mark_missing(np.float32([-999.99, 1]), ("-999.99",))
    array([nan,  1.], dtype=float32)
    """
    if not (markers := _numbers(tuple(missing))):
        return numbers
    kind = np.dtype(dtype or numbers.dtype)
    with np.errstate(over="ignore"):
        marks = np.array(markers).astype(kind if kind.kind == "f" else np.float64)
    # No cell can hold a marker beyond the dtype's range.
    marks = marks[np.isfinite(marks) | ~np.isfinite(markers)]
    return np.where(np.isin(numbers, marks), np.float32(np.nan), numbers)


@functools.lru_cache
def _numbers(markers: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(float(marker) for marker in markers if _NUMBER.fullmatch(marker))


def exact_number(text: str) -> int | float | None:
    """The number in a text, such as a time in nanoseconds; None for other text.

    >>> exact_number(" 1772323260000000001"), exact_number("1.5e3"), exact_number("1_000")
    (1772323260000000001, 1500.0, None)
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    # No float64 has 300 digits.
    return int(text) if _WHOLE.fullmatch(text) and len(text) < 300 else float(text)


def is_truth(cell: Any) -> bool:
    """Whether a cell is `true` or `false`, in any case."""
    if isinstance(cell, str):
        return cell.strip().lower() in _TRUTH
    return isinstance(cell, bool | np.bool_)


def is_number(cell: str, *, comma: bool = False) -> bool:
    """Whether a cell holds a number or NaN; other markers and truth values don't count.

    >>> is_number("1e3"), is_number("1_000"), is_number("NA")
    (True, False, False)
    """
    cell = cell.strip().replace(",", ".") if comma else cell.strip()
    return bool(_NUMBER.fullmatch(cell)) or cell.lower() in ("nan", "-nan")


def looks_like(
    cell: Any, *, name: str = "", first: bool = False, todo: str = ""
) -> str:
    """A guess about a cell that is not a number and the remedy, for messages; or empty.

    Args:
        cell: most often text.
        name: of its column.
        first: whether it is in the first row and the only such cell of its column.
        todo: the remedy for a marker of missing values.

    >>> looks_like("12.5 bar")
    'it looks like a number with a unit: write 12.5 alone'
    """
    text = str(cell).strip()
    if text.lower() in _MARKERS:
        return f"it looks like a marker of a missing value: {todo}"
    if text == name:
        return "it looks like a repeated header: remove the line"
    if text.startswith(COMMENT):
        return "it looks like a comment: remove the line"
    if match := _UNIT.fullmatch(text):
        return f"it looks like a number with a unit: write {match[1]} alone"
    return "it looks like a second header line: remove it" if first else ""


def number_form(cell: str) -> str:
    """The form of a number: `whole`, `grouped` (may be in thousands), or `plain`.

    A column with whole and grouped cells, but no plain ones, may be in thousands. Empty
    for a cell without a decimal mark that is not a whole number.

    >>> [number_form(cell) for cell in ("998", "1.000", "0.125", "1,25", "NaN")]
    ['whole', 'grouped', 'plain', 'plain', '']
    """
    cell = cell.strip()
    if "." in cell or "," in cell:
        return "grouped" if _GROUPED.fullmatch(cell) else "plain"
    return "whole" if _WHOLE.fullmatch(cell) else ""


def first_thousands(texts: pd.Series) -> int | None:
    """First row of a column of text that may be in thousands: 998, 999, 1.000."""
    forms = texts.dropna().map(number_form)
    if {*forms} & {"whole", "grouped", "plain"} != {"whole", "grouped"}:
        return None
    return int(forms.index[forms == "grouped"][0])
