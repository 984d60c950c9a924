"""Rows from lines of a stream: CSV below a header, or JSON objects.

A faulty line is returned with its error, since the caller decides whether to continue.
Blank lines are skipped; where rows have a single column they are missing cells.
"""

import contextlib
import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kdjax.data.cells import (
    COMMENT,
    IN_THOUSANDS,
    exact_number,
    is_number,
    is_truth,
    looks_like,
    number_form,
    to_number,
)
from kdjax.data.raw import Place, content_kind
from kdjax.data.schema import Reading
from kdjax.data.tables import NAMES_SEPARATOR
from kdjax.data.times import find_time
from kdjax.errors import DataError, counted

_SEPARATORS = (",", ";", "\t", "|")


# How to read a line: (text -> time, entity and parts), (parts -> a `Line`); both raise
# DataError.
_Format = tuple[Callable[[str], tuple[Any, str, Any]], Callable[[Any], "Line"]]


class Line(NamedTuple):
    """A line of the stream."""

    number: int  # from 1, counting blank lines and the header
    time: Any  # a number or text; None without a time or if the line can't be split
    row: list[float]  # [D], NaN where missing; empty after an error
    error: str = ""  # the fault of the line; empty without one
    entity: str = ""
    tag: str = ""  # of a reading, whose row has only its value


def read_lines(
    lines: Iterable[str],
    channels: Sequence[str],
    reading: Reading | None = None,
    *,
    may_lack: Collection[str] = (),
) -> Iterator[Line]:
    """The lines of a stream one by one; JSON if the first begins with a brace.

    CSV needs no header if its first line has one number per channel. The time column is
    by default that of `find_time`, by the names and the first row; ignored columns or
    keys are not read. DataError if the header lacks a channel or has an unknown column. In
    long layout a line's row has only its value, and ignored tags are missing. Columns in
    `may_lack` are optional.

    >>> list(read_lines(["time,b,a", "7,2,"], ["a", "b"]))
    [Line(number=2, time=7, row=[nan, 2.0], error='', entity='', tag='')]
    """
    # The expected columns; in long layout those of tags and values.
    reading, values, tag = reading or Reading(), tuple(channels), ""
    if reading.long:
        values, tag = (reading.value_column,), reading.tag_column
    wanted = reading._replace(channels=values, tag_column=tag)
    blank_is_row = False
    numbered: Iterator[tuple[int, str]] = (
        (n, text)
        for n, text in enumerate(lines, start=1)
        if text.strip() or blank_is_row
    )
    first = next(numbered, None)
    if first is None:
        return
    text = first[1].lstrip("\ufeff")
    is_json = text.lstrip().startswith("{")
    if NAMES_SEPARATOR.fullmatch(text):
        raise DataError(
            f"line {first[0]} {text.strip()!r} names the separator for Excel: remove it."
        )
    separator = "" if tag else _headerless(text, wanted.channels)
    if is_json or separator:
        numbered = chain([(first[0], text)], numbered)
    if is_json:
        split, row = _json(wanted, may_lack)
    else:
        names = [*wanted.channels]
        if not separator:
            separator = max(_SEPARATORS, key=text.count)
            names = [name.strip() for name in _cells(text, separator)]
        blank_is_row = len(names) == 1  # with a missing cell, as in files
        cells: dict[str, Any] = dict.fromkeys(names)
        wanted = _among(wanted, cells, may_lack)
        if not wanted.time_column and _foreign(names, wanted):
            # The values of the first row may identify the time column.
            following = next(numbered, (0, ""))
            numbered = chain([following] if following[0] else [], numbered)
            with contextlib.suppress(DataError):
                cells |= zip(names, _cells(following[1], separator), strict=False)
            wanted = _among(wanted, cells, may_lack)
        split, row = _csv(names, separator, wanted)
    for number, text in numbered:
        time, entity = None, ""
        try:
            time, entity, parts = split(text)
            line = row(parts)._replace(number=number, time=time)
        except DataError as error:
            line = Line(number, time, [], str(error), entity)
        yield line


def check_start(head: bytes) -> None:
    """Raises DataError if standard input begins as a file that is not UTF-8 text."""
    kind, _ = content_kind(head)
    if kind:
        todo = {
            "gzip": "unpack it with gzip -dc",
            "UTF-16 text": "convert it with iconv -f UTF-16 -t UTF-8",
        }.get(kind, "write its rows as CSV")
        raise DataError(
            f"standard input holds {kind}, not lines of text: {todo} first."
        )


def _headerless(text: str, channels: Sequence[str]) -> str:
    """The separator of a first line with one number per channel; empty for a header."""
    if '"' in text:
        return ""
    for separator in reversed(_SEPARATORS):
        cells = [cell.strip() for cell in _cells(text, separator)]
        numbers = [is_number(cell, comma=separator != ",") for cell in cells]
        if len(cells) == len(channels) and all(numbers):
            return "" if set(cells) == set(channels) else separator
    return ""


def _csv(names: list[str], separator: str, wanted: Reading) -> _Format:
    _check_names(names, wanted)
    words = (wanted.entity_column, wanted.tag_column)
    entity, tag = (names.index(one) if one else -1 for one in words)
    places = [names.index(name) for name in wanted.channels]
    at = names.index(wanted.time_column) if wanted.time_column else None
    decimal, comma = "", separator != ","  # The mark is unknown until a cell has one.
    truth: dict[str, bool] = {}  # by channel, whether it has truth values
    # By channel, the first cell of each form, see `_check_form`.
    forms: list[dict[str, str]] = [{} for _ in places]

    def split(text: str) -> tuple[Any, str, list[str]]:
        cells = _cells(text, separator)
        if len(cells) != len(names):
            raise DataError(
                f"{counted(len(cells), 'cell')}, expected {len(names)}: complete it."
            )
        time = None if at is None else _time(cells[at])
        return time, "" if entity < 0 else _word(cells[entity]), cells

    def row(cells: list[str]) -> Line:
        nonlocal decimal
        line = _line(wanted, *("" if i < 0 else cells[i] for i in (entity, tag)))
        if line.tag in wanted.ignore:
            return line
        own = [cells[place] for place in places]
        text = "".join(own)
        try:
            if "_" in text or not text.isascii() or wanted.missing_values:
                raise ValueError
            found = [*map(float, own)]
            words = False
        except ValueError:
            found = [
                _value(cells[i], names[i], wanted, place=i, comma=comma) for i in places
            ]
            words = True
        # The fast way for rows of numbers only, which most are.
        if words or len(truth) < len(own) or any(truth.values()) or line.tag:
            _check_truth(own, found, [line.tag] if line.tag else wanted.channels, truth)
        if comma:
            used = {decimal, *(mark for mark in ".," if mark in text)} - {""}
            if len(used) > 1:  # A point beside commas may mark thousands.
                raise DataError(
                    "decimal points and decimal commas: write one of them throughout, "
                    "and no thousands marks."
                )
            decimal = "".join(used)
            for place, cell, known in zip(places, own, forms, strict=True):
                if "plain" not in known:
                    _check_form(cell, known, f"column {place + 1} ({names[place]!r})")
        if at is not None:
            _check_time(cells[at])
        return line._replace(row=found)

    return split, row


def _line(wanted: Reading, entity: Any, tag: Any) -> Line:
    """A line of missing cells with its entity and its tag."""
    words = {"entity": entity, "tag": tag}
    found = {what: _word(word) for what, word in words.items()}
    for what, word in found.items():
        if getattr(wanted, f"{what}_column") and not word:
            raise DataError(f"the {what} is missing; complete or remove the line.")
    return Line(0, None, [math.nan] * len(wanted.channels), **found)


def _word(cell: Any) -> str:
    """The name in a cell of an entity or a tag; empty if it is missing."""
    return "" if cell is None else str(cell).strip()


def _cells(text: str, separator: str) -> list[str]:
    text = text.rstrip("\r\n")
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"{error}; correct its quotes.") from None


def _value(
    cell: Any, name: str, wanted: Reading, *, place: int = -1, comma: bool = False
) -> float:
    """A cell as a number; `place` is the index of its column, −1 for a key of JSON."""
    number = to_number(cell, comma=comma, missing=wanted.missing_values)
    if number is None:
        column, empty = f"{name!r}", "give null"
        if place >= 0:
            column, empty = f"column {place + 1} ({name!r})", "leave the cell empty"
        hint = looks_like(cell, name=name, todo=empty)
        hint = hint or f"correct it, or {empty} if it is missing"
        text = cell.strip() if isinstance(cell, str) else cell
        raise DataError(f"{column}: {text!r} is not a number; {hint}.")
    return number


def _check_truth(
    cells: Sequence[Any],
    numbers: Sequence[float],
    channels: Sequence[str],
    known: dict[str, bool],
) -> None:
    """DataError where a channel has truth values and numbers; `known` is updated."""
    for channel, cell, number in zip(channels, cells, numbers, strict=True):
        if math.isnan(number):
            continue
        if known.setdefault(channel, is_truth(cell)) != is_truth(cell):
            raise DataError(
                f"{channel!r}: {cell!r} is not a number: a channel has numbers or "
                "truth values, not both; correct it."
            )


def _check_form(cell: str, known: dict[str, str], column: str) -> None:
    """DataError if a column has both 998 and 1.000 and no other decimals.

    `known` has the first cell of each `number_form`, and is updated. Whole numbers after
    1.000 are reported as a fault of 1.000, whose row was already scored.
    """
    form = number_form(cell)
    is_new = form not in known
    known.setdefault(form, cell)
    if form == "grouped" and "whole" in known:
        raise DataError(f"{column}: {cell.strip()!r} {IN_THOUSANDS}")
    if form == "whole" and is_new and "grouped" in known:
        earlier = known["grouped"].strip()
        raise DataError(f"{column}: {earlier!r} of an earlier line {IN_THOUSANDS}")


def _time(cell: str) -> int | float | str:
    number = exact_number(cell)
    return cell.strip() if number is None else number


def _check_time(cell: Any) -> None:
    number = to_number(cell)
    if number is not None and math.isnan(number):
        raise DataError("the time is missing; complete or remove the line.")


def _json(wanted: Reading, may_lack: Collection[str]) -> _Format:
    own, settled, channels = wanted, False, wanted.channels
    truth: dict[str, bool] = {}

    def split(text: str) -> tuple[Any, str, dict[str, Any]]:
        nonlocal own
        try:
            found = json.loads(text, object_pairs_hook=unique_keys)
        except (RecursionError, ValueError) as error:
            raise DataError(f"not a JSON object ({error}): correct it.") from None
        if not isinstance(found, dict):
            raise DataError("not a JSON object: give one with the channels as keys.")
        if not settled:
            own = _among(wanted, found, may_lack)
        time = found.get(own.time_column) if own.time_column else None
        name = found.get(own.entity_column) if own.entity_column else None
        return time, _word(name), found

    def row(found: dict[str, Any]) -> Line:
        nonlocal settled
        words = (own.entity_column, own.tag_column)
        needed = {*channels, *words} - {""}
        known = {*needed, *own.ignore, own.time_column} - {""}
        if not found.keys() <= known or not found.keys() >= needed:
            time = own.time_column if own.time_column in found else ""
            _check_names(list(found), own._replace(time_column=time))
        # A faulty line doesn't determine the keys.
        settled = bool(own.time_column)
        line = _line(own, *(found.get(one) if one else "" for one in words))
        if line.tag in wanted.ignore:
            return line
        cells = [found[channel] for channel in channels]
        numbers = [_value(found[channel], channel, wanted) for channel in channels]
        _check_truth(cells, numbers, [line.tag] if line.tag else channels, truth)
        if own.time_column:
            _check_time(found.get(own.time_column))
        return line._replace(row=numbers)

    return split, row


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a key that occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _among(
    wanted: Reading, cells: Mapping[str, Any], may_lack: Collection[str]
) -> Reading:
    """`names` without the optional columns that are absent, and with a time column."""
    absent = {*may_lack} - {*cells}
    time, entity = ("" if name in absent else name for name in wanted[:2])
    wanted = wanted._replace(time_column=time, entity_column=entity)
    if time or not (left := _foreign(cells, wanted)):
        return wanted
    # JSON keys may be invalid UTF-8, so their type is object; None without a row.
    columns = pd.Index(left, dtype=object)
    frame = pd.DataFrame([[cells[name] for name in left]], None, columns, object)
    found = find_time(frame, Place(Path("the stream"), tuple(left)))
    return wanted._replace(time_column=found)


def _foreign(names: Iterable[str], wanted: Reading) -> list[str]:
    """The names of columns that are neither wanted nor ignored."""
    words = {wanted.time_column, wanted.entity_column, wanted.tag_column} - {""}
    known = {*wanted.channels, *wanted.ignore, *words}
    return [name for name in names if name not in known]


def _listed(names: Sequence[str]) -> str:
    """Names for a message, at most some: a body without line ends is one long header."""
    some = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:40]]
    more = len(names) - len(some)
    return ", ".join(some) + f" and {more} more" * (more > 0)


def _check_names(names: Sequence[str], wanted: Reading) -> None:
    channels, tag = wanted.channels, wanted.tag_column
    words = (wanted.time_column, wanted.entity_column, tag)
    needed = [name for name in (*channels, *words) if name]
    counts, foreign = Counter(names), _foreign(names, wanted)
    absent = [name for name in needed if name not in counts]
    twice = sorted(name for name, count in counts.items() if count > 1)
    found = {
        "missing": absent,
        "not expected": [
            name or f"column {names.index(name) + 1}, without a name"
            for name in foreign
        ],
        "there twice": [name or "names that are empty" for name in twice],
    }
    if any(found.values()):
        wrong = [f"{what}: {_listed(some)}" for what, some in found.items() if some]
        hint = (
            "The first line of CSV names the columns; name columns other than channels "
        )
        hint += "as ignored, and that of the time by data.time_column."
        if foreign and not absent and not wanted.entity_column:
            name = foreign[0] if len(foreign) == 1 and foreign[0] else "NAME"
            hint += f" Rows of several machines need --entity_column={name}."
        if any(name.startswith(COMMENT) for name in names[:1]):
            hint = "The first line looks like a comment: remove it."
        elif not tag and len(absent) >= len(channels):
            hint += " Lines with one reading each need --layout=long."
        expected = (
            "those of long layout"
            if tag
            else f"the {counted(len(channels), 'channel')}"
        )
        raise DataError(
            f"the columns differ from {expected} expected; {'; '.join(wrong)}. {hint}"
        )
