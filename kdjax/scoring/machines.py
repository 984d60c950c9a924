"""Streams of many entities in one input: some are in memory, all of them on disk.

The store is one SQLite file. A save writes what changed since the last one: the state of
each entity that had a line, and the new rows of its buffer. All of it is one transaction,
so that a kill leaves the store before or after it.
"""

import collections
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.detection.stream_batches import EntityStreams
from kdjax.detection.streaming import StreamDetector, left_open
from kdjax.errors import ArtifactError, ConfigError, counted
from kdjax.io.files import (
    check_schema,
    check_state_kind,
    kdjax_version,
    read_state,
    state_text,
)
from kdjax.scoring.readings import Answered, RowReader

SCHEMA = 1
KNOWN_EACH = 128  # least number of answered lines of an entity that are kept one by one
_TABLES = """
CREATE TABLE IF NOT EXISTS whole (id INTEGER PRIMARY KEY, state TEXT);
CREATE TABLE IF NOT EXISTS entities (id INTEGER PRIMARY KEY, name BLOB UNIQUE, state TEXT);
CREATE TABLE IF NOT EXISTS rows (
    entity INTEGER, place INTEGER, cells BLOB, PRIMARY KEY (entity, place)
) WITHOUT ROWID;
"""


class Machine:
    """The stream of an entity, the lines of it that were answered, and its open step."""

    def __init__(
        self, stream: StreamDetector, answered: Answered, reader: RowReader | None
    ) -> None:
        self.stream, self.answered, self.reader = stream, answered, reader
        self.lines = 0  # number of answered lines, with those of earlier runs
        self.key: int | None = None  # in the store
        self.changed = False  # since it was saved


class Record(NamedTuple):
    """What the store has of an entity."""

    machine: Machine
    state: str
    rows: Mapping[int, bytes]  # changed rows of the buffer by their places


class Machines:
    """The streams of all entities, of which `most` are in memory: those of the last lines.

    Faulty lines without an entity belong to the entity ``.

    Args:
        streams: returns the stream of an entity before its first row.
        reading: how lines are read, see `RowReader`.
        store: of their states.
        most: entities in memory, besides those whose rows are scored together.
        log: called with messages for the user.
        known: least number of answered lines of an entity that are kept one by one.
        carries: whether states of another detector are used: buffered rows, if channels,
            window and cadence are equal, and counts of lines.
    """

    def __init__(
        self,
        streams: EntityStreams,
        reading: Mapping[str, Any],
        *,
        store: "Store",
        most: int,
        log: Callable[[str], None],
        known: int = KNOWN_EACH,
        carries: bool = False,
    ) -> None:
        if most < 1:
            raise ConfigError(f"most_open={most}: give 1 entity or more.")
        self.score, self.accepted = streams.score, 0
        self.plan = streams.another("").plan  # without values of one entity
        # On an even grid each entity also has a reader.
        self.reader = RowReader(self.plan, reading)
        self._streams, self.store, self._most, self._log = streams, store, most, log
        self._open: collections.OrderedDict[str, Machine] = collections.OrderedDict()
        self._known, self._carries = known, carries
        self.saved = self.store.whole()
        self._run = int(self.saved.get("run", 0)) + 1
        self._rows = int(self.saved.get("rows", 0))
        self.names = {*self.store.names()} - {""}
        # Arrival of each entity's last line, the oldest first, if silence is an event.
        self._since = dict.fromkeys(self.names, time.monotonic())
        # Seconds of silence that are an event, of entities with a cadence of their own.
        self._waits = dict[str, float]()
        self._pooled = False  # whether an entity without its own values was reported
        self.of("")  # raises for the state of another detector

    @property
    def rows(self) -> int:
        """Rows that were accepted, with those of earlier runs."""
        return self._rows + self.accepted

    def under(self) -> str:
        """A message on the thresholds that are used."""
        if self._streams.fleet:
            return "scoring each machine with its own detector of the fleet"
        whose = "each entity with its own threshold, or if it has none with that"
        whose = whose if self._streams.known else "all entities with the threshold"
        return f"scoring {whose} of {self.plan.entity}: {self.plan.tau:g}"

    def counts(self) -> str:
        """A message on the number of entities, for the end."""
        return f" of {counted(len(self.names), 'stream')}"

    def refusal(self, name: str) -> str:
        """Why the rows of an entity can't be taken; empty where they can."""
        return self._streams.refusal(name)

    def is_listed(self, name: str) -> bool:
        """Whether an entity is in the catalogue of a fleet, though it may have failed."""
        return self._streams.is_listed(name)

    def digest(self, name: str) -> str:
        """The digest of an entity's own detector in a fleet; else empty."""
        return self._streams.digest(name)

    def stale(self) -> bool:
        """Whether `refresh` may find changes."""
        return self._streams.stale()

    def refresh(self) -> list[str]:
        """Closes machines of a fleet whose detector changed, and returns their names.

        They continue from the store with the new one. All taken rows must be answered.
        """
        if not self.stale():
            return []
        try:
            self._streams.refresh()
        except ArtifactError as error:
            self._log(f"{error} The last version that was read stays in use.")
            return []
        found = [
            name
            for name, machine in self._open.items()
            if name and not self._streams.is_current(machine.stream)
        ]
        for name in found:
            self.put(name)
            del self._open[name]
        return found

    def wait_of(self, name: str) -> float:
        """Seconds of silence that make an event of an entity; 0 for none."""
        return self._waits.get(name, self.plan.max_gap * self.plan.step)

    def reader_of(self, name: str) -> RowReader:
        """Reads the readings of an entity."""
        return self.of(name).reader or self.reader

    def of(self, name: str) -> Machine:
        """The entity's machine, from memory, from the store, or before its first line."""
        if name not in self._open:
            self._open[name] = self._read(name)
        self._open.move_to_end(name)
        machine = self._open[name]
        machine.changed = True
        return machine

    def came(self, name: str) -> None:
        """Records the arrival of a line."""
        if name:
            self._since.pop(name, None)
            self._since[name] = time.monotonic()

    def shrink(self) -> None:
        """Keeps `most` entities in memory; all taken rows must be answered."""
        while len(self._open) > self._most:
            _, machine = self._open.popitem(last=False)
            if machine.changed:
                self.store.put([self._record(machine)])

    def put(self, name: str) -> None:
        """Writes an entity that changed since the last time; `save` commits it."""
        machine = self._open.get(name)
        if machine and machine.changed:
            self.store.put([self._record(machine)])

    def silent(self, _: float) -> Sequence[Mapping[str, Any]]:
        """Events that begin because no line of an entity has come for too long."""
        events, now = list[Mapping[str, Any]](), time.monotonic()
        waits = (self.wait_of(""), *self._waits.values())
        least = min(filter(None, waits), default=0.0)
        for name, since in (
            [*self._since.items()] if self.plan.no_data and least else ()
        ):
            if (passed := now - since) <= least:
                break
            if passed <= self.wait_of(name):
                continue
            del self._since[name]
            if self.refusal(name):
                continue
            events += self.of(name).stream.silent(passed)
            if passed <= self.wait_of(name):  # set when it was opened
                self._since[name] = since
            self.shrink()
        return events

    def left_open(self, name: str) -> list[dict[str, Any]]:
        """Ends of the open events of an entity in the store, when no row follows."""
        found = self.store.get(name)
        if found is None:
            return []
        state = read_state(found[1].encode(), f"the state of {name!r}")
        return left_open(state["stream"], name)

    def finish(self) -> Sequence[Mapping[str, Any]]:
        """Ends the open events."""
        events = list[Mapping[str, Any]]()
        for name in sorted(self.names):
            if self.refusal(name):
                continue
            events += self.of(name).stream.finish()
            self.shrink()
        return events

    def kept(self) -> dict[str, Any]:
        """For `save`: what changed since the last call; nothing without a state."""
        machines = self._open.values() if self.store.path is not None else ()
        changed = [machine for machine in machines if machine.changed]
        return {**self.about(), "entities": [*map(self._record, changed)]}

    def about(self) -> dict[str, Any]:
        """The part of `kept` that does not depend on entities."""
        return {
            "schema": SCHEMA,
            "kdjax_version": kdjax_version(),
            "run": self._run,
            "rows": self.rows,
        }

    def save(self, kept: Mapping[str, Any], mark: Callable[[], Any]) -> None:
        """Writes the result of `kept`, with further keys and a mark, if there is a state.

        Entities that left the memory before are saved with it.
        """
        if self.store.path is not None:
            self.store.put(kept["entities"])
            whole = {name: value for name, value in kept.items() if name != "entities"}
            self.store.commit({**whole, "output": mark()})

    def _record(self, machine: Machine) -> Record:
        machine.changed = False
        answered, reader = machine.answered, machine.reader
        state = {
            "stream": machine.stream.state(buffer=False),
            "lines": machine.lines,
            "answered": answered.state(),
            "run": self._run,
            "next": answered.next,
            "older": answered.older,
        }
        if reader:
            state |= {"readings": reader.state(), "resumed": reader.resumed}
        return Record(machine, state_text(state), machine.stream.new_rows())

    def _read(self, name: str) -> Machine:
        stream = self._streams.another(name)
        reader = self.reader.another() if self.plan.reading.step and name else None
        machine = Machine(stream, Answered(self._known), reader)
        own = stream.plan.max_gap * stream.plan.step
        if own != self.plan.max_gap * self.plan.step:
            self._waits[name] = own
        found = self.store.get(name)
        self.names |= {name} - {""}
        if name and stream.plan.entity != name and not self._pooled:
            self._pooled = True
            self._log(
                f"rows of {name!r} have the scaler, Gaussian and threshold of "
                f"{stream.plan.entity!r}; further such entities are not reported."
            )
        if found is None:
            return machine
        machine.key, text, rows = found
        answered = machine.answered
        try:
            state = read_state(text.encode(), f"the state of {name!r}")
            carries = self._restore(stream, state["stream"], rows)
            # A detector of the same form may read rows, and the one before readings.
            carries = carries and not (self._carries and "readings" not in state)
            machine.lines = int(state.get("lines", 0))
            answered.restore(state["answered"])
            if reader and carries:
                reader.restore(state["readings"])
            if state["run"] == self._run:
                answered.next, answered.older = state["next"], state["older"]
                if reader and carries:
                    reader.resumed = state["resumed"]
            elif stream.last.clock or not name:
                # Rows without times can't be distinguished from rows sent again.
                answered.next = 0
        except (LookupError, OverflowError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the state of {name!r} was not written by `stream` ({error}): remove "
                "the state to start again."
            ) from error
        return machine

    def _restore(
        self, stream: StreamDetector, state: dict[str, Any], rows: dict[int, bytes]
    ) -> bool:
        """Whether a stream continues from a state; else its windows start again."""
        if self._carries:
            found = stream.carried(state)
            if (
                self._streams.fleet
                and (found or {}).get("detector") != state["detector"]
            ):
                goes = "its rows are kept" if found else "its windows start again"
                self._log(f"{stream.entity}: another detector is used; {goes}.")
            if found is None:
                # Rows without times have their numbers as names: these continue.
                stream.rows = int(state["rows"])
                return False
            state = found
        stream.restore(state, rows)
        return True


class Store:
    """A SQLite file with the states of entities; None for a temporary one.

    Raises:
        ArtifactError: in any method, if the file is not such a store, or can't be used.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            check_state_kind(path, several=True)
        with self._naming():
            self._file = sqlite3.connect(
                "" if path is None else path,
                isolation_level=None,
                check_same_thread=False,  # one thread at a time uses it
            )
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            self._file.executescript(_TABLES)

    def execute(self, command: str, values: Sequence[Any] = ()) -> list[Any]:
        """Runs a further command; its changes are permanent from the next `commit` on."""
        with self._naming():
            if not command.startswith("SELECT"):
                self._begin()
            return self._file.execute(command, values).fetchall()

    def whole(self) -> dict[str, Any]:
        """The argument of the last `commit`; empty in a new store."""
        with self._naming():
            found = self._file.execute("SELECT state FROM whole").fetchone()
        if not found:
            return {}
        state = read_state(found[0].encode(), str(self.path))
        version = state.get("kdjax_version")
        check_schema(str(self.path), state["schema"], known=SCHEMA, version=version)
        return state

    def names(self) -> Iterator[str]:
        """The names of all entities."""
        with self._naming():
            for (name,) in self._file.execute("SELECT name FROM entities"):
                yield name.decode("utf-8", "surrogatepass")

    def get(self, name: str) -> tuple[int, str, dict[int, bytes]] | None:
        """Key, state and rows of an entity; None for an unknown one."""
        with self._naming():
            found = self._file.execute(
                "SELECT id, state FROM entities WHERE name = ?", (_packed(name),)
            ).fetchone()
            if not found:
                return None
            rows = self._file.execute(
                "SELECT place, cells FROM rows WHERE entity = ?", found[:1]
            )
            return (*found, dict(rows))

    def put(self, records: Sequence[Record]) -> None:
        """Writes entities; `commit` makes the changes permanent."""
        with self._naming():
            self._begin()
            for machine, state, _ in records:
                if machine.key is None:
                    name = _packed(machine.stream.entity)
                    added = self._file.execute(
                        "INSERT INTO entities (name) VALUES (?)", (name,)
                    )
                    machine.key = added.lastrowid
                self._file.execute(
                    "UPDATE entities SET state = ? WHERE id = ?", (state, machine.key)
                )
            self._file.executemany(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
                (
                    (machine.key, place, cells)
                    for machine, _, rows in records
                    for place, cells in rows.items()
                ),
            )

    def commit(self, whole: Mapping[str, Any]) -> None:
        """Makes all changes permanent, together with a state of the whole."""
        with self._naming():
            self._begin()
            self._file.execute(
                "INSERT OR REPLACE INTO whole VALUES (0, ?)", (state_text(whole),)
            )
            self._file.execute("COMMIT")

    def close(self) -> None:
        """Closes the file; changes that were not committed are lost."""
        with self._naming():
            self._file.close()

    def _begin(self) -> None:
        if not self._file.in_transaction:
            self._file.execute("BEGIN")

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ArtifactError(
                f"{self.path or 'a temporary file'} can't be used as the state of "
                f"several entities ({error}): check disk and permissions, give the state "
                "that a stream with --entity_column wrote, or remove it to start "
                "again."
            ) from error


def _packed(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
