"""Decisions of operators during a stream: spans to leave out or shelve, acknowledgements.

The terms are those of alarm management (ANSI/ISA-18.2, IEC 62682). Decisions are in files
that are read again when they change, or arrive by HTTP. If a file can't be read, its last
valid content is used.
"""

import csv
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.readers import check_spans, read_spans
from kdjax.detection.timestamps import Timestamp, parse_timestamp
from kdjax.errors import ConfigError, DataError

LOOK_EVERY = 1.0  # seconds between two checks whether a file changed
BEGIN, END, ACKNOWLEDGED = "begin", "end", "acknowledged"

Message = tuple[Mapping[str, Any], str]  # an event, and the phase of its message
_UNREADABLE = (DataError, OSError, UnicodeDecodeError, csv.Error)


class Edited:
    """A file that users edit: `read` is called with it at first, and when it changed.

    At first a fault is a ConfigError, later a message to `log`.
    """

    def __init__(
        self, path: Path, read: Callable[[Path], None], log: Callable[[str], None]
    ) -> None:
        self.path, self._read, self._log = path, read, log
        self._stamp: object = self._now()
        self._due = time.monotonic() + LOOK_EVERY
        try:
            read(path)
        except _UNREADABLE as error:
            raise ConfigError(str(error)) from error

    def look(self) -> None:
        """Reads the file again if it changed; checks at most once a second."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + LOOK_EVERY
        if (stamp := self._now()) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._read(self.path)
        except _UNREADABLE as error:
            self._log(f"{error} The last valid content of {self.path} stays in use.")
        else:
            self._log(f"{self.path} changed and was read again")

    def _now(self) -> object:
        try:
            found = self.path.stat()
        except OSError as error:
            return str(error)
        return found.st_mtime_ns, found.st_size, found.st_ino


class Spans:
    """Whether a time of an entity lies in the spans of a CSV file, in its current version.

    The file is that of `data.exclude`, see `kdjax.data.readers.row_spans`.

    Raises:
        ConfigError: it can't be read at first, or its times are on another clock than the
            first given time.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by clocks
        self._lock = threading.Lock()
        self._file = Edited(path, self._take, log)

    def __call__(self, entity: str, instant: Timestamp) -> bool:
        """Where rows have no times, `instant` holds the row's number."""
        with self._lock:
            self._file.look()
            if instant.clock not in self._known:
                try:
                    found = read_spans(self._file.path, instant.clock)
                except _UNREADABLE as error:
                    raise ConfigError(str(error)) from error
                self._known[instant.clock] = found
            bounds, owners = self._known[instant.clock]
        inside = (bounds[:, 0] <= instant.value) & (instant.value <= bounds[:, 1])
        return bool((inside & ((owners == "") | (owners == entity))).any())

    def _take(self, path: Path) -> None:
        check_spans(path)
        self._known = {clock: read_spans(path, clock) for clock in self._known}


class Ids:
    """Whether an id is in the column `id` of a CSV file, in its current version.

    Raises:
        ConfigError: it can't be read at first.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self._file = Edited(path, self._take, log)

    def __call__(self, name: str) -> bool:
        self._file.look()
        return name in self._ids

    def _take(self, path: Path) -> None:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if "id" not in (table.fieldnames or ()):
                raise DataError(
                    f"{path} has no column id: expected the ids of events to acknowledge, "
                    "from messages or events files."
                )
            self._ids = {(row["id"] or "").strip() for row in table}


def source_of(event: Mapping[str, Any]) -> str:
    """The key of events that are shelved together: entity and kind."""
    return json.dumps([event.get("entity", ""), event.get("kind", "")])


def is_marked(
    marks: Mapping[str, Mapping[str, Any]], event: Mapping[str, Any], now: float
) -> bool:
    """Whether an event is shelved, by `source_of`; `until` as `now`, None for ever."""
    mark = marks.get(source_of(event))
    return mark is not None and (mark["until"] is None or now < mark["until"])


def message_text(event: Mapping[str, Any], phase: str, digest: str) -> str:
    """The JSON text of a message; `digest` is that of the detector."""
    found = {**event, "detector": digest, "phase": phase}
    return json.dumps(found, allow_nan=False)


class Managed:
    """The open events, and the messages that are sent about them.

    An event that begins while it is shelved has no message. If it is still open when the
    shelving ends, its message of the begin follows. An event has a message of its end if it
    had one of its begin. An acknowledged event has one more message.

    Args:
        shelved: whether an event is shelved, at the time of a row of its entity.
        seen: whether the event of an id was acknowledged.
        saved: the result of `state`.
    """

    def __init__(
        self,
        shelved: Callable[[Mapping[str, Any], Timestamp], bool],
        seen: Callable[[str], bool],
        *,
        saved: Iterable[Mapping[str, Any]],
    ) -> None:
        self.open = {one["event"]["id"]: dict(one) for one in saved}
        self.touched = dict[str, None]()  # ids of events that began, changed or ended
        self._shelved, self._seen = shelved, seen

    def changed(self, event: Mapping[str, Any], clock: str) -> list[Message]:
        """The messages of an event that begins or ends, by times of this clock."""
        name = event["id"]
        self.touched[name] = None
        if event["end"] is None:
            start = parse_timestamp(event["start"])._replace(clock=clock)
            held = self._shelved(event, start)
            self.open[name] = {"event": event, "held": held, "acknowledged": False}
            return [] if held else [(event, BEGIN)]
        known = self.open.pop(name, {})
        if known.get("held"):
            return []
        return [(_marked(event) if known.get("acknowledged") else event, END)]

    def holds(self) -> bool:
        """Whether a message of a begin waits for the end of shelving."""
        return any(one["held"] for one in self.open.values())

    def due(self, last: Callable[[str], Timestamp]) -> list[Message]:
        """Messages that are due now; `last` returns the time of an entity's last row."""
        found: list[Message] = []
        for name, one in self.open.items():
            event, before = one["event"], len(found)
            if one["held"] and not self._shelved(event, last(event["entity"])):
                one["held"] = False
                found.append((event, BEGIN))
            if not (one["held"] or one["acknowledged"]) and self._seen(name):
                one["acknowledged"] = True
                found.append((_marked(event), ACKNOWLEDGED))
            if len(found) > before:
                self.touched[name] = None
        return found

    def state(self) -> list[dict[str, Any]]:
        """For `saved`, as JSON values."""
        return [dict(one) for one in self.open.values()]


def _marked(event: Mapping[str, Any]) -> dict[str, Any]:
    return {**event, "acknowledged": True}
