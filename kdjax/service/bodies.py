"""Rows from the bodies of requests: JSON, JSON lines or CSV, as `Line`s of a stream.

Faults of a body as a whole are a `RequestError`; a faulty row is answered with its fault,
as in `kdjax stream`. This module doesn't import JAX.
"""

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.lines import Line, read_lines, unique_keys
from kdjax.data.times import NAMES
from kdjax.detection.stream_rules import Plan
from kdjax.errors import DataError, KdjaxError

JSON, LINES, CSV = "application/json", "application/x-ndjson", "text/csv"
MEDIA = (JSON, LINES, CSV)
LONGEST_NAME = 200  # characters of an entity's name


class RequestError(KdjaxError):
    """A refused request: the status of its answer, a header, and further keys."""

    def __init__(
        self, status: int, text: str, reason: str = "", *,
        header: tuple[str, str] | None = None, **keys: Any,
    ) -> None:  # fmt: skip
        super().__init__(text)
        self.status, self.reason, self.keys = status, reason or str(status), keys
        self.headers = dict([header] if header else [])


class Body(NamedTuple):
    """Rows of a request."""

    lines: list[Line]  # with their entities, numbered from 1
    # The number of each in its client's own count for the entity; None without one.
    sequence: list[int | None]
    # Places in a source behind these rows; the state keeps them with the rows.
    marks: Mapping[str, Any] = MappingProxyType({})


def media_of(
    headers: Mapping[str, str], known: Sequence[str] = MEDIA, usual: str = ""
) -> str:
    """The media type of a body, one of `known`; RequestError for another or a coding."""
    given, *options = (headers.get("content-type") or usual).lower().split(";")
    given = {"application/jsonl": LINES, "application/x-jsonlines": LINES}.get(
        given.strip(), given.strip()
    )
    charset = [o.partition("=")[2].strip(' "') for o in options if "charset" in o]
    coding = headers.get("content-encoding", "identity").lower()
    if given not in known or coding != "identity":
        text = f"send a body of content-type {' or '.join(known)}, not compressed."
        raise RequestError(415, text, "media")
    if charset and charset[0] not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(415, f"a charset of {charset[0]}: send UTF-8.", "media")
    return given


def as_text(data: bytes) -> str:
    """A body as text; RequestError if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8 text ({error}).") from None


def as_json(data: bytes) -> Any:
    """A JSON body; RequestError for NaN, Infinity and invalid JSON."""
    try:
        return _loads(as_text(data))
    except (RecursionError, ValueError) as error:
        raise RequestError(400, f"the body is not JSON ({error}).") from None


def _loads(text: str) -> Any:
    """A JSON text; ValueError for NaN, Infinity and keys that occur twice."""
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=unique_keys)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number; give null for a missing value")


def as_object(data: bytes, known: Sequence[str]) -> dict[str, Any]:
    """A JSON object with keys among `known`; RequestError otherwise."""
    found = as_json(data)
    if not isinstance(found, dict) or not found.keys() <= {*known}:
        raise RequestError(400, f"give a JSON object with keys of {', '.join(known)}.")
    return found


def check_entity(name: str) -> str:
    """The name of an entity; RequestError if it is empty, long or not printable."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise RequestError(
            400,
            f"an entity's name must have 1 to {LONGEST_NAME} printable characters, "
            f"got {name[:50]!r}.",
        )
    return name


def read_rows(
    data: bytes, media: str, plan: Plan, *, most: int, entity: str = ""
) -> Body:
    """The rows of a body, in their order.

    Args:
        data: the body. JSON is an object with `rows`, lists `[D]` or objects by channel,
            and optionally `time` and `sequence`.
        media: one of `MEDIA`.
        plan: of the detector; its reading names the columns.
        most: most rows; RequestError (413) for more.
        entity: of all rows; empty if each row names its own.
    """
    if media == JSON:
        body = _json(data, plan, most, entity)
    else:
        lines = as_text(data).splitlines()
        if len(lines) - (media == CSV) > most:
            raise _too_many(most)
        fast = _fast_lines(lines, plan, entity) if media == LINES else None
        body = fast or _slow_lines(lines, plan, entity)
    if not body.lines:
        raise RequestError(400, "the body has no rows.")
    return body


def _too_many(most: int) -> RequestError:
    return RequestError(413, f"more than {most} rows: send fewer per request.", "rows")


def _json(data: bytes, plan: Plan, most: int, entity: str) -> Body:
    keys = ("rows", "time", "sequence", *([] if entity else ["entity"]))
    found = as_object(data, keys)
    rows = found.get("rows")
    if not isinstance(rows, list):
        raise RequestError(
            400, "`rows` is not a list: give one list or object per row."
        )
    if len(rows) > most:
        raise _too_many(most)
    times = _each(found, "time", rows, [None])
    names = [entity] * len(rows) if entity else _each(found, "entity", rows, [""])
    first = _count(found.get("sequence"))
    if first is not None and not entity:
        raise RequestError(400, "`sequence` needs one entity: give it in each row.")
    lines, sequence = [], list[int | None]()
    split, columns = _splitter(plan, entity), _columns(plan)
    for number, row in enumerate(rows, start=1):
        own, count = names[number - 1], None if first is None else first + number - 1
        time, more = times[number - 1], dict[str, Any]()
        if plan.reading.long and not isinstance(row, dict):
            row = "it is not an object with a tag, a value and a time"
        elif isinstance(row, dict):
            row, more = split(row)
            if plan.reading.long and not more.get("tag"):
                row = "the tag is missing"
            own, time = own or more.get("entity", ""), more.get("time", time)
            count = _count(more.get("sequence")) if count is None else count
        lines.append(_line(row, number, time, own, columns, more.get("tag")))
        sequence.append(count)
    return Body(lines, sequence)


def _each(found: Mapping[str, Any], key: str, rows: list[Any], usual: list[Any]) -> Any:
    values = found.get(key)
    if values is None:
        return usual * len(rows)
    if not isinstance(values, list) or len(values) != len(rows):
        raise RequestError(400, f"`{key}` must be a list of {len(rows)}, one per row.")
    return values


def _count(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 2**53):
        raise RequestError(400, "`sequence` must be a whole number of at least 0.")
    return value


def _columns(plan: Plan) -> tuple[str, ...]:
    """The columns of values: the channels, or that of readings in long layout."""
    return (plan.reading.value_column,) if plan.reading.long else plan.channels


def _splitter(
    plan: Plan, entity: str
) -> Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """Splits a row by name into its values, in order, and tag, entity, time and sequence."""
    channels, reading = _columns(plan), plan.reading
    taken = {*channels, *reading.ignore}
    times = [reading.time_column] if reading.time_column else [*NAMES]
    # The use of each further key; columns of the detector come first.
    roles = {name: "time" for name in times}
    roles |= {name: "entity" for name in ("entity", reading.entity_column) if name}
    roles["sequence"] = "sequence"
    if reading.long:
        roles[reading.tag_column] = "tag"
    roles = {name: role for name, role in roles.items() if name not in taken}
    wanted = {*channels}
    values = operator.itemgetter(*channels) if len(channels) > 1 else None

    def split(row: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        more = {}
        if len(row) > len(channels):
            for name in row.keys() - wanted:
                if name in roles:
                    more[roles[name]] = row[name]
                elif name not in taken:
                    return f"{name!r} is not a channel", more
        try:
            found = values(row) if values else (row[channels[0]],)
        except KeyError as error:
            return f"the channel {error} is missing", more
        return found, more

    return split


def _line(
    row: Any, number: int, time: Any, entity: Any, columns: Sequence[str], tag: Any
) -> Line:
    """A row as a line with its error, if faulty. `tag` is that of a reading."""
    own, error = _entity(entity)
    if isinstance(time, bool) or not isinstance(time, int | float | str | None):
        time, error = None, "its time is neither a number nor a text"
    if isinstance(row, str):
        error = error or row
    elif not isinstance(row, list | tuple) or len(row) != len(columns):
        error = error or f"it is not a list of {len(columns)} numbers"
    tag = "" if tag is None else str(tag).strip()
    if error:
        return Line(number, time, [], f"{error}; correct it.", own)
    if {*map(type, row)} <= _NUMBERS:
        return Line(number, time, row, "", own, tag)
    values = list[float]()
    for name, cell in zip(columns, row, strict=True):
        if cell is not None and type(cell) not in (int, float, bool):
            text = (
                f"{name!r}: {str(cell)[:50]!r} is not a number; give null if missing."
            )
            return Line(number, time, [], text, own)
        try:
            values.append(math.nan if cell is None else float(cell))
        except OverflowError:
            return Line(
                number, time, [], f"{name!r} is beyond float64; correct it.", own
            )
    return Line(number, time, values, "", own, tag)


_NUMBERS = {float}


def _entity(name: Any) -> tuple[str, str]:
    """An entity's name, empty for a faulty one, and its fault."""
    try:
        return check_entity(name.strip() if isinstance(name, str) else ""), ""
    except RequestError as error:
        return "", str(error).rstrip(".")


def _fast_lines(lines: list[str], plan: Plan, entity: str) -> Body | None:
    """JSON lines of plain numbers and nulls; None if `read_lines` must read them."""
    split, found, sequence = _splitter(plan, entity), list[Line](), list[int | None]()
    clocks, columns = 0, _columns(plan)
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            row, more = split(_loads(text))
        except (AttributeError, RecursionError, TypeError, ValueError):
            row, more = None, {}
        if not isinstance(row, tuple):
            return None
        if not {*map(type, row)} <= {float, int, type(None)}:
            return None
        name = entity or more.get("entity")
        clocks += "time" in more
        if plan.reading.long and not more.get("tag"):
            return None
        line = _line(row, number, more.get("time"), name, columns, more.get("tag"))
        found.append(line)
        sequence.append(_count(more.get("sequence")))
    # A row without its time is a fault where others have one.
    return None if clocks not in (0, len(found)) else Body(found, sequence)


def _slow_lines(lines: list[str], plan: Plan, entity: str) -> Body:
    """JSON lines or CSV in all forms of `kdjax stream`, with its messages of faults."""
    reading = plan.reading
    column = reading.entity_column or "entity"
    lack = {reading.time_column} - {""}
    if entity:
        lack |= {column}
    try:
        own = reading._replace(entity_column=column)
        found = [*read_lines(lines, plan.channels, own, may_lack=lack)]
    except DataError as error:
        raise RequestError(400, str(error)) from None
    if entity:
        found = [line._replace(entity=entity) for line in found]
    else:
        checked = [_entity(line.entity) for line in found]
        found = [
            line._replace(
                entity=name, error=line.error or fault, row=[] if fault else line.row
            )
            for line, (name, fault) in zip(found, checked, strict=True)
        ]
    return Body(found, [None] * len(found))


def read_windows(found: Any, plan: Plan, *, most: int) -> np.ndarray:
    """Windows `[B, L, D]` of a JSON body, NaN for null; RequestError for others."""
    shape = (plan.window, len(plan.channels))
    try:
        windows = np.array(found, object)
        if windows.ndim != 3 or windows.shape[1:] != shape or not len(windows):
            raise ValueError(f"of shape {list(windows.shape)}")
        if len(windows) * plan.window > most:
            raise _too_many(most)
        kinds = {*map(type, windows.ravel().tolist())}
        if not kinds <= {float, int, type(None)}:
            raise ValueError("with cells that are not numbers")
        cells = windows.astype(np.float64)
        if (np.abs(cells) >= 2.0**128 - 2.0**103).any():
            raise ValueError("with numbers beyond float32")
        return cells.astype(plan.dtype)
    except (OverflowError, TypeError, ValueError) as error:
        raise RequestError(
            400, f"windows {error}: give [B, {shape[0]}, {shape[1]}] numbers or nulls."
        ) from None
