"""The data of a detector in service on disk, besides the streams of its entities.

All of it is in the SQLite file of `kdjax.scoring.machines`. A batch of rows is written to
the journal, with its events, in one transaction before its answers are sent. The states of
entities follow later, so that a row costs one write. A start reads the states, then answers
the journal's rows that they don't have again.
"""

import array
import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax.data.lines import Line
from kdjax.errors import ArtifactError
from kdjax.scoring.machines import Store
from kdjax.scoring.managed import Managed, source_of

MOST_EVENTS = 100_000  # most entries of a detector
_TABLES = """
CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY, head TEXT, cells BLOB);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, id TEXT, source TEXT, body TEXT);
CREATE INDEX IF NOT EXISTS events_id ON events (id);
CREATE TABLE IF NOT EXISTS open (id TEXT PRIMARY KEY, body TEXT);
CREATE INDEX IF NOT EXISTS events_source ON events (source);
CREATE TABLE IF NOT EXISTS marks (id TEXT PRIMARY KEY, acknowledged TEXT);
CREATE TABLE IF NOT EXISTS shelves (source TEXT PRIMARY KEY, body TEXT);
CREATE TABLE IF NOT EXISTS thresholds (number INTEGER PRIMARY KEY, body TEXT)"""
_ENCODE = json.JSONEncoder(allow_nan=False).encode


class Clock:
    """Increasing numbers: microseconds since 1970, the same for all detectors."""

    def __init__(self) -> None:
        self._last, self._lock = 0, threading.Lock()

    def after(self, number: int) -> None:
        """Makes later numbers larger than `number`."""
        with self._lock:
            self._last = max(self._last, number)

    def next(self) -> int:
        """A new number, larger than all before."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            return self._last


class Journal:
    """Writes to the store of a detector; the store's `commit` makes changes permanent."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._seen = set[str]()  # ids acknowledged since the start, or open then
        for table in _TABLES.split(";"):
            store.execute(table.strip())
        for table in ("events", "journal"):
            found = store.execute(f"SELECT max(number) FROM {table}")
            clock.after(found[0][0] or 0)

    def rows(self) -> Iterator[list[tuple[Line, int]]]:
        """The batches: lines, each with the number of lines of its entity before."""
        for (number,) in self._store.execute(
            "SELECT number FROM journal ORDER BY number"
        ):
            found = self._store.execute(
                "SELECT head, cells FROM journal WHERE number = ?", (number,)
            )
            head, cells = json.loads(found[0][0]), array.array("d", found[0][1])
            place, batch = 0, list[tuple[Line, int]]()
            for entity, count, length, when, error, line, *tag in head:
                row = [*cells[place : place + length]]
                batch.append((Line(line, when, row, error, entity, *tag), count))
                place += length
            yield batch

    def add_rows(self, lines: Sequence[tuple[Line, int]]) -> int:
        """Writes a batch; returns its number."""
        number, head = self._clock.next(), []
        cells = b"".join(array.array("d", line.row).tobytes() for line, _ in lines)
        for line, count in lines:
            when = line.time
            if isinstance(when, float) and not math.isfinite(when):
                when = str(when)
            tag = (line.tag,) if line.tag else ()
            head.append(
                (line.entity, count, len(line.row), when, line.error, line.number, *tag)
            )
        self._store.execute(
            "INSERT INTO journal VALUES (?, ?, ?)",
            (number, _ENCODE(head), cells),
        )
        return number

    def trim(self, before: int | None) -> None:
        """Removes the batches before a number, or all; states have their rows."""
        where, values = ("", ()) if before is None else (" WHERE number < ?", (before,))
        self._store.execute(f"DELETE FROM journal{where}", values)

    def add_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Notes events that began or ended, or messages about the stream."""
        number = 0
        for event in events:
            number = self._clock.next()
            entry = {"number": number, "received": number / 1e6, **event}
            values = (number, event.get("id"), source_of(event), _ENCODE(entry))
            self._store.execute("INSERT INTO events VALUES (?, ?, ?, ?)", values)
        if number:
            self._store.execute(
                "DELETE FROM events WHERE number <= (SELECT number FROM events "
                "ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (MOST_EVENTS,),
            )

    def note_open(self, managed: Managed) -> None:
        """Writes changes of the open events since the last call."""
        for name in managed.touched:
            if name in managed.open:
                values = (name, _ENCODE(managed.open[name]))
                self._store.execute("INSERT OR REPLACE INTO open VALUES (?, ?)", values)
            else:
                self._store.execute("DELETE FROM open WHERE id = ?", (name,))
        managed.touched.clear()

    def managed(self, shelved: Callable[[Mapping[str, Any], Any], bool]) -> Managed:
        """The open events, as `note_open` wrote them."""
        found = self._store.execute("SELECT body FROM open ORDER BY rowid")
        saved = [json.loads(body) for (body,) in found]
        marks = self._store.execute("SELECT id FROM marks JOIN open USING (id)")
        self._seen |= {name for (name,) in marks}
        return Managed(shelved, self._seen.__contains__, saved=saved)

    def acknowledge(self, name: str, mark: Mapping[str, Any]) -> None:
        """Records the acknowledgement of an event."""
        values = (name, _ENCODE(mark))
        self._store.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", values)
        self._seen.add(name)

    def shelve(self, source: str, mark: Mapping[str, Any]) -> None:
        """Shelves events of a source, see `kdjax.scoring.managed`."""
        values = (source, _ENCODE(mark))
        self._store.execute("INSERT OR REPLACE INTO shelves VALUES (?, ?)", values)

    def shelves(self) -> dict[str, dict[str, Any]]:
        """The entries of `shelve`, by source."""
        found = self._store.execute("SELECT source, body FROM shelves")
        return {source: json.loads(body) for source, body in found}

    def add_threshold(self, change: Mapping[str, Any]) -> None:
        """Records a change of τ."""
        values = (self._clock.next(), _ENCODE(change))
        self._store.execute("INSERT INTO thresholds VALUES (?, ?)", values)

    def thresholds(self) -> list[dict[str, Any]]:
        """All changes of τ, the first one first."""
        found = self._store.execute("SELECT body FROM thresholds ORDER BY number")
        return [json.loads(body) for (body,) in found]


class EventLog:
    """Reads the events of a detector while the journal is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._file = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False
        )

    def after(
        self, number: int, *, most: int, name: str = "", entity: str = "",
        latest: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Entries with a larger number in their order: the first ones, or the latest.

        `name` is an event's id; `entity` that of the events.
        """
        where, values = "number > ?", list[Any]([number])
        if name:
            where, values = "id = ?", [name]
        if entity:
            start = _ENCODE([entity, ""])[:-2]  # of all its sources
            where, values = "source >= ? AND source < ?", [start, f"{start}\x7f"]
        order = "DESC" if latest else "ASC"
        found = self._select(
            "SELECT events.body, marks.acknowledged, shelves.body FROM events "
            "LEFT JOIN marks ON marks.id = events.id "
            "LEFT JOIN shelves ON shelves.source = events.source WHERE events.number IN "
            f"(SELECT number FROM events WHERE {where} ORDER BY number {order} LIMIT ?) "
            "ORDER BY events.number",
            (*values, most),
        )
        return [
            json.loads(body)
            | {
                "acknowledged": mark and json.loads(mark),
                "shelved": shelf and json.loads(shelf),
            }
            for body, mark, shelf in found
        ]

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()

    def _select(self, command: str, values: Sequence[Any]) -> list[Any]:
        try:
            with self._lock:
                return self._file.execute(command, values).fetchall()
        except sqlite3.Error as error:
            raise ArtifactError(f"{self._path} can't be read ({error}).") from error


@contextlib.contextmanager
def rolled_back(store: Store) -> Iterator[None]:
    """Rolls back uncommitted changes if the block raises."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ArtifactError):
            store.execute("ROLLBACK")
        raise
