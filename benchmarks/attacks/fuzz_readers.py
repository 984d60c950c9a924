"""The target `readers` of the fuzzers: files of data in every format, and their oracles.

What is accepted is compared with the file's text or bytes taken apart by hand.
"""

import ast
import contextlib
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.raw import read_npz
from kdjax.data.readers import load_files, read_table
from kdjax.data.series import Series
from kdjax.errors import KdjaxError

KINDS = (".csv", ".tsv", ".txt", ".csv.gz", ".npy", ".npz", ".parquet", "spans")
TEXTS = KINDS[:3]
MISSING = ("error", "ffill", "mask", "error")
WORDS = {"", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A"}
POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
FRACTION = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?", re.ASCII)
ROWS = "time,m,a\n1,x,1\n2,x,2\n3,y,3\n4,y,4\n"


def readers(data: bytes, folder: Path) -> str:
    """A file of data: format, options, content."""
    kind, options, content = KINDS[data[0] % len(KINDS)], data[1], data[2:]
    path = folder / f"file{'.csv' if kind == 'spans' else kind}"
    path.write_bytes(content)
    if kind == "spans":
        rows = folder / "rows.csv"
        rows.write_text(ROWS)
        read_table(rows, entity_column="m", exclude=path)
        return "right"
    if kind == ".npz":
        assert not read_npz(path, "train").dtype.hasobject
        return "right"
    roles = {
        "entity_column": "m" if options & 4 else "",
        "label_column": "y" if options & 8 else "",
        "time_column": "t" if options & 16 else "",
    }
    rules = {
        "missing": MISSING[options & 3],
        "order": "sort" if options & 64 else "strict",
        "duplicates": "last" if options & 128 else "error",
    }
    whole = outcome(lambda: read_table(path, **roles, **rules))
    if options & 32:
        large = outcome(lambda: load_files(path, memory_bytes=0, **roles, **rules))
        _check_same(whole, large if isinstance(large, KdjaxError) else large.train)
    if isinstance(whole, KdjaxError):
        raise whole
    for series in whole:
        _check_series(series, rules["missing"])
    if options & (64 | 128) or rules["missing"] == "ffill":
        return "right"
    if kind in TEXTS:
        _check_text(content, kind, whole, roles)
    elif kind == ".npy":
        _check_npy(content, whole)
    elif kind == ".parquet" and not any(roles.values()):
        _check_parquet(path, whole)
    return "right"


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except KdjaxError as error:
        return error


def _check_same(whole: Any, large: Any) -> None:
    """Rows on disk are those in memory, or neither way takes them."""
    refused = isinstance(whole, KdjaxError), isinstance(large, KdjaxError)
    assert refused[0] == refused[1], f"in memory {whole!r}, on disk {large!r}"
    for one, other in () if refused[0] else zip(whole, large, strict=True):
        assert (one.entity, one.channels) == (other.entity, other.channels)
        np.testing.assert_array_equal(one.values, other.values)
        for field in ("time", "labels"):
            mine, theirs = getattr(one, field), getattr(other, field)
            assert (mine is None) == (theirs is None), field
            if mine is not None:
                np.testing.assert_array_equal(mine, theirs)


def _check_series(series: Series, missing: str) -> None:
    """What holds of any series that is accepted."""
    values = series.values
    assert values.dtype == np.float32 and values.shape[1] == len(series.channels)
    assert len(values) and series.channels and not np.isinf(values).any()
    assert missing == "mask" or not np.isnan(values).any()
    assert series.labels is None or series.labels.dtype == bool
    if series.time is not None:
        assert len(series.time) == len(values) and not np.isnan(series.time).any()
        assert (series.time[1:] > series.time[:-1]).all()


def _check_text(
    content: bytes, kind: str, found: Sequence[Series], roles: dict[str, str]
) -> None:
    """Each number is what one way of cutting the text into cells gives, by hand."""
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    faults = []
    for mark in (",", ";", "\t", "|", *([" "] if kind == ".txt" else [])):
        try:
            _compare(cells_of(text, mark), mark, found, roles)
        except (AssertionError, LookupError, ValueError) as error:
            faults.append(f"{mark!r}: {error}"[:200])
        else:
            return
    raise AssertionError(f"no reading of the text gives these numbers: {faults}")


def cells_of(text: str, mark: str) -> list[list[str]]:
    """The cells of a text, with quotes resolved; ValueError where they make no sense."""
    if mark == " " and '"' not in text:
        return [line.encode().split() and _words(line) for line in text.split("\n")]
    rows, row, at = [], list[str](), 0
    while True:
        cell, at = _cell(text, at, mark)
        row.append(cell)
        if at >= len(text) or text[at] == "\n":
            rows.append(row)
            row = []
        if at >= len(text):
            return rows
        at += 1


def _words(line: str) -> list[str]:
    return [word.decode() for word in line.encode().split()]


def _cell(text: str, at: int, mark: str) -> tuple[str, int]:
    """The cell at a place, and where it ends."""
    start = at
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] != '"':
        ends = [place for c in (mark, "\n") if (place := text.find(c, at)) >= 0]
        end = min(ends, default=len(text))
        return text[at:end], end
    pieces, at = [], start + 1
    while True:
        close = text.index('"', at)
        pieces.append(text[at:close])
        at = close + 1
        if text[at : at + 1] != '"':
            break
        pieces.append('"')
        at += 1
    if at < len(text) and text[at] not in (mark, "\n"):
        raise ValueError("text after a closing quote")
    return "".join(pieces), at


def _compare(
    rows: list[list[str]], mark: str, found: Sequence[Series], roles: dict[str, str]
) -> None:
    width = len(rows[0])
    assert all(len(row) == width for row in rows), "ragged"
    names = [cell.strip() for cell in rows[0]]
    if found[0].channels == tuple(f"channel_{i}" for i in range(1, width + 1)) and all(
        not math.isnan(number_of(cell, mark)) or cell in ("nan", "NaN")
        for cell in names
    ):
        names = list(found[0].channels)
    else:
        rows = rows[1:]
    named = {name for name in roles.values() if name}
    clocks = [n for n in names if n not in found[0].channels and n not in named]
    clock = roles["time_column"] or (clocks[0] if clocks else "")
    assert len(clocks) <= 1, "columns that went nowhere"
    wanted = _by_entity(rows, names, roles["entity_column"])
    assert len(wanted) == len(found), "entities"
    for own, series in zip(wanted.values(), found, strict=True):
        for place, channel in enumerate(series.channels):
            at = names.index(channel)
            numbers = [number_of(row[at], mark) for row in own]
            expected = np.array(numbers, np.float64).astype(np.float32)
            np.testing.assert_array_equal(series.values[:, place], expected, channel)
        if roles["label_column"]:
            at = names.index(roles["label_column"])
            labels = [number_of(row[at], mark) for row in own]
            assert series.labels.tolist() == labels
        if clock:
            cells = [row[names.index(clock)].strip() for row in own]
            _check_times(cells, series.time, mark)
    _check_marks(rows, names, found[0].channels, mark)


def _by_entity(
    rows: list[list[str]], names: list[str], column: str
) -> dict[str, list[list[str]]]:
    if not column:
        return {"": rows}
    wanted: dict[str, list[list[str]]] = {}
    for row in rows:
        wanted.setdefault(row[names.index(column)].strip(), []).append(row)
    return wanted


def number_of(cell: str, mark: str) -> float:
    """A cell's number, NaN where it is missing; ValueError for anything else."""
    cell = cell.strip(" \t\v\f\n")
    if cell in WORDS:
        return math.nan
    if cell.lower() in ("true", "false"):
        return float(cell.lower() == "true")
    if POINT.fullmatch(cell):
        return float(cell)
    if mark != "," and COMMA.fullmatch(cell):
        return float(cell.replace(",", "."))
    raise ValueError(f"{cell!r} is no number")


def _check_marks(
    rows: list[list[str]], names: list[str], channels: tuple[str, ...], mark: str
) -> None:
    """A point among decimal commas may mark thousands: nobody can tell."""
    cells = {row[names.index(name)].strip() for row in rows for name in channels}
    commas = {c for c in cells if mark != "," and COMMA.fullmatch(c)}
    points = {c for c in cells if FRACTION.fullmatch(c)}
    assert not (commas and points), f"decimal marks are mixed: {commas}, {points}"


def _check_times(cells: list[str], time: np.ndarray | None, mark: str) -> None:
    assert time is not None, "no time"
    if time.dtype == np.float64:
        assert time.tolist() == [number_of(cell, mark) for cell in cells], "times"
        return
    moments = []
    for cell, instant in zip(cells, time, strict=True):
        with contextlib.suppress(
            ValueError
        ):  # other forms than Python's have no oracle
            moment = datetime.fromisoformat(cell)
            moments.append(moment.utcoffset())
            moment = moment.replace(tzinfo=moment.tzinfo or UTC)
            exact = np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")
            assert instant.astype("datetime64[us]") == exact, f"{cell}: {instant}"
    assert len(set(moments)) <= 1, f"zones are mixed: {moments}"


def _check_npy(content: bytes, found: Sequence[Series]) -> None:
    """The bytes after the header, read as it says."""
    size, start = (2, 10) if content[6] == 1 else (4, 12)
    stop = start + int.from_bytes(content[8 : 8 + size], "little")
    try:
        header = ast.literal_eval(content[start:stop].decode("latin1").strip())
    except SyntaxError:
        return  # Python 2's numbers
    order = "F" if header["fortran_order"] else "C"
    raw = np.frombuffer(content[stop:], np.dtype(header["descr"]))
    values = raw.reshape(header["shape"], order=order).astype(np.float64)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found[0].values, values.astype(np.float32))


def _check_parquet(path: Path, found: Sequence[Series]) -> None:
    """The file's values as Python objects."""
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path).to_pydict()
    stripped = {name.strip(): values for name, values in columns.items()}
    for place, channel in enumerate(found[0].channels):
        numbers = [_python_number(value) for value in stripped[channel]]
        with np.errstate(over="ignore"):
            expected = np.array(numbers, np.float64).astype(np.float32)
        np.testing.assert_array_equal(found[0].values[:, place], expected, channel)


def _python_number(value: Any) -> float:
    if isinstance(value, bytes):
        value = value.decode("ascii")
    if isinstance(value, str):
        return number_of(value, ",")
    return math.nan if value is None else float(value)
