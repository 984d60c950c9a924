"""Rows from lines of text as they come: CSV below a header, or JSON objects.

A line at fault is handed on with what is wrong, since whoever reads a live stream has
to decide whether to go on. Blank lines hold no row.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kdjax.data.cells import Place, is_number
from kdjax.data.times import find_time
from kdjax.errors import ConfigError, DataError

_SEPARATORS = (",", ";", "\t", "|")
# Cells that say "no value"; any other text among numbers is a fault.
MISSING_CELLS = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A")


class Line(NamedTuple):
    """A line of the stream.

    Attributes:
        number: from 1, blank ones and the header counted.
        time: a number or a text; None where rows have no time, or it is not legible.
        row: `[D]` in the order of the channels, NaN where missing; empty if at fault.
        error: what is wrong with the line; empty if nothing.
    """

    number: int
    time: Any
    row: list[float]
    error: str = ""


class _Format(NamedTuple):
    """How to take a line apart; each part raises DataError on what is at fault."""

    split: Callable[[str], Any]
    time: Callable[[Any], Any]
    row: Callable[[Any], list[float]]


def read_lines(
    lines: Iterable[str],
    channels: Sequence[str],
    *,
    time_column: str = "",
    ignored: Sequence[str] = (),
) -> Iterator[Line]:
    """The lines of a stream one by one; JSON if the first begins with a brace.

    CSV needs no header where its first line holds a number for each channel.

    Args:
        lines: text, such as an open file.
        channels: the D names, each of them a column or a key.
        time_column: its name; if empty, the one named time, timestamp, date or datetime.
        ignored: columns or keys to pass over.

    Raises:
        ConfigError: a channel is to be ignored.
        DataError: the header lacks a channel or has a foreign column.

    >>> list(read_lines(["time,b,a", "7,2,"], ["a", "b"]))
    [Line(number=2, time=7, row=[nan, 2.0], error='')]
    """
    both = [name for name in channels if name in ignored]
    if both:
        raise ConfigError(
            f"{', '.join(both)} can't be ignored: each channel of the detector is needed."
        )
    return _read(lines, channels, time_column, ignored)


def _read(
    lines: Iterable[str],
    channels: Sequence[str],
    time_column: str,
    ignored: Sequence[str],
) -> Iterator[Line]:
    numbered: Iterator[tuple[int, str]] = (
        (n, text) for n, text in enumerate(lines, start=1) if text.strip()
    )
    first = next(numbered, None)
    if first is None:
        return
    number, text = first[0], first[1].lstrip("\ufeff")
    if text.lstrip().startswith("{"):
        layout = _json(channels, time_column, ignored)
        numbered = chain([(number, text)], numbered)
    else:
        mark = _bare(text, channels)
        if mark:
            names, numbered = [*channels], chain([(number, text)], numbered)
        else:
            mark = max(_SEPARATORS, key=text.count)
            names = [name.strip() for name in _cells(text, mark)]
        layout = _csv(names, mark, channels, time_column, ignored)
    for number, text in numbered:
        yield _taken_apart(layout, number, text)


def _bare(text: str, channels: Sequence[str]) -> str:
    """The separator of a first line that holds a number a channel; empty for a header."""
    if '"' in text:
        return ""  # names are quoted, numbers are not
    for mark in reversed(_SEPARATORS):
        cells = [cell.strip() for cell in _cells(text, mark)]
        numbers = [_decimal(cell, comma=mark != ",") for cell in cells]
        if len(cells) == len(channels) and all(map(is_number, numbers)):
            return "" if set(cells) == set(channels) else mark
    return ""


def _taken_apart(layout: _Format, number: int, text: str) -> Line:
    time = None
    try:
        parts = layout.split(text)
        time = layout.time(parts)
        return Line(number, time, layout.row(parts))
    except DataError as error:
        return Line(number, time, [], str(error))


def _csv(
    names: list[str],
    mark: str,
    channels: Sequence[str],
    time_column: str,
    ignored: Sequence[str],
) -> _Format:
    def split(text: str) -> list[str]:
        cells = _cells(text, mark)
        if len(cells) != len(names):
            raise DataError(f"{len(cells)} cells, expected {len(names)}; complete it.")
        return cells

    time_column = time_column or _find_time(names, channels, ignored)
    _check_names(names, channels, time_column, ignored)
    places = [names.index(name) for name in channels]
    at = names.index(time_column) if time_column else None

    decimal, comma = "", mark != ","  # the first is not known until a cell tells

    def row(cells: list[str]) -> list[float]:
        nonlocal decimal
        own = [cells[place] for place in places]
        text = "".join(own)
        try:
            if "_" in text:
                raise ValueError
            found = [*map(float, own)]
        except ValueError:
            found = [_value(cells[i], i, names[i], comma=comma) for i in places]
        if comma and (decimal != "." or "," in text):
            decimal = _one_mark(text, decimal)
        return found

    return _Format(split, lambda cells: None if at is None else _time(cells[at]), row)


def _cells(text: str, mark: str) -> list[str]:
    text = text.rstrip("\r\n")
    if '"' not in text:
        return text.split(mark)
    try:
        return next(csv.reader([text], delimiter=mark, strict=True))
    except csv.Error as error:
        raise DataError(f"{error}; correct its quotes.") from None


def _one_mark(text: str, before: str) -> str:
    """The decimal mark of numbers so far: a point beside commas may mark thousands."""
    used = {before, *(mark for mark in ".," if mark in text)} - {""}
    if len(used) > 1:
        raise DataError(
            "decimal points and decimal commas: write one of them throughout, and no "
            "thousands marks."
        )
    return "".join(used)


def _decimal(cell: str, *, comma: bool) -> str:
    """A cell with a decimal point for its one comma, if that can't separate cells."""
    if comma and cell.count(",") == 1 and "." not in cell:
        return cell.replace(",", ".")
    return cell


def _value(cell: str, place: int, name: str, *, comma: bool) -> float:
    """A cell's number; with `comma` one comma may stand for the decimal point."""
    cell = cell.strip()
    if cell in MISSING_CELLS:
        return math.nan
    text = _decimal(cell, comma=comma)
    if is_number(text):
        return float(text)
    raise DataError(
        f"column {place + 1} ({name!r}): {cell!r} is not a number; correct it, or leave "
        "it empty if it is missing."
    )


def _time(cell: str) -> int | float | str:
    text = cell.strip()
    for kind in (int, float):
        try:
            return kind(text) if "_" not in text else text
        except ValueError:
            pass
    return text


def _json(channels: Sequence[str], time_column: str, ignored: Sequence[str]) -> _Format:
    name = time_column
    known = {*channels, *ignored}

    def split(text: str) -> dict[str, Any]:
        nonlocal name
        try:
            found = json.loads(text, object_pairs_hook=_object)
        except (RecursionError, ValueError) as error:
            raise DataError(f"no JSON object ({error}); correct it.") from None
        if not isinstance(found, dict):
            raise DataError("no JSON object; give one with the channels as keys.")
        name = name or _find_time(list(found), channels, ignored)
        return found

    def row(found: dict[str, Any]) -> list[float]:
        if not found.keys() - {name} <= known or not found.keys() >= set(channels):
            _check_names(list(found), channels, name if name in found else "", ignored)
        return [_member(found, channel) for channel in channels]

    return _Format(split, lambda found: found.get(name), row)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _member(found: dict[str, Any], channel: str) -> float:
    value = found[channel]
    if value is None:
        return math.nan
    if type(value) is float:
        return value
    if type(value) is not int:
        raise DataError(f"{channel!r}: {value!r} is not a number; give one or null.")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _find_time(
    names: Sequence[str], channels: Sequence[str], ignored: Sequence[str]
) -> str:
    known = {*channels, *ignored}
    left = [name for name in names if name not in known]
    # Looks at names alone: there are no rows yet. JSON knows names that are no UTF-8.
    frame = pd.DataFrame(columns=pd.Index(left, dtype=object))
    return find_time(frame, Place(Path("the stream"), tuple(left)))


def _check_names(
    names: Sequence[str], channels: Sequence[str], time: str, ignored: Sequence[str]
) -> None:
    counts, known = Counter(names), {*channels, *ignored, time}
    absent = [name for name in (*channels, time) if name and name not in counts]
    foreign = [name for name in names if name not in known]
    twice = sorted(name for name, count in counts.items() if count > 1)
    if absent or foreign or twice:
        raise DataError(
            f"the columns differ from the {len(channels)} channels expected; missing: "
            f"{', '.join(absent) or 'none'}; not expected: {', '.join(foreign) or 'none'}"
            f"; there twice: {', '.join(twice) or 'none'}. The first line names the "
            "columns of CSV; columns that are no channels have to be named as ignored."
        )
