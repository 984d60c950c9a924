"""A detector in service: rows of many entities, answered in order by one thread.

Requests wait in a bounded queue. The thread takes all that wait, scores rows of different
entities together, commits rows and events, then answers. Changes of the detector happen
between two such batches. A batch that can't be committed is taken back as a whole.
"""

import collections
import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.data.lines import Line
from kdjax.detection.occurrences import Event, json_number
from kdjax.detection.stream_batches import EntityStreams, answer_together
from kdjax.detection.stream_rules import Plan
from kdjax.detection.streaming import StreamRow
from kdjax.detection.timestamps import parse_timestamp
from kdjax.errors import ArtifactError, ConfigError, DataError, KdjaxError, counted
from kdjax.io.files import MANIFEST
from kdjax.notify.outbox import Outbox, Receiver
from kdjax.scoring.machines import Machines, Store
from kdjax.scoring.opening import ONNX_BATCH, open_streams
from kdjax.scoring.readings import is_late
from kdjax.scoring.streams import (
    TWICE,
    answer_text,
    detector_digest,
    event_text,
    lock_state,
)
from kdjax.service.bodies import Body, RequestError
from kdjax.service.journal import Clock, EventLog, Journal, rolled_back, source_of
from kdjax.service.page import Kept, keep

if TYPE_CHECKING:
    from kdjax.export.container import Scored

BATCH_ROWS = 1000  # rows, at most, that are answered together unless one body has more
AT_ONCE = 256  # windows scored in one call
LAG_ROWS = 10_000  # rows in the journal before states of their entities are written
PUT_EACH = 64  # states written with one batch, at most, unless the journal grows
KNOWN = 500  # rows of an entity that are known when they come again without a sequence
TICK = 1.0  # seconds between two looks for silence and changed detectors
COMPARED = 10_000  # pairs of scores that a comparison with a shadow keeps
END = 1.0  # seconds for rows that wait, for states, and for alarm messages at the end


class Limits(NamedTuple):
    """What a request, the queue and the process may hold."""

    body: int = 8_000_000  # bytes of a body
    rows: int = 5000  # rows of a body
    waiting: int = 20_000  # rows in the queue of a detector
    entities: int = 10_000  # of a detector
    open: int = 1000  # entities of a detector in memory
    seconds: float = 30.0  # for a request to come in
    listeners: int = 100  # requests for events that stay open


class Loaded(NamedTuple):
    """A detector from a folder or an ONNX file."""

    path: Path
    digest: str
    backend: str  # `jax` or `onnxruntime`
    streams: EntityStreams
    plan: Plan  # of the usual entity
    entities: tuple[str, ...]
    card: Mapping[str, Any] | None
    scored: "Callable[[np.ndarray], Scored]"  # windows [B, L, D] of the usual entity


class Latest(NamedTuple):
    """The last row of an entity."""

    row: StreamRow
    received: float  # seconds since 1970
    drift: float = math.nan  # distance of its scores from those of calibration


class Job(NamedTuple):
    """Rows of a request that wait, or a call; the future gets what came of it."""

    body: Body
    done: "Future[Any]"
    call: Callable[[], Any] | None = None


class Answers(NamedTuple):
    """The JSON text of each row, and the events that each brought."""

    texts: list[str]
    events: list[tuple[Mapping[str, Any], ...]]


def load(path: Path) -> Loaded:
    """A saved detector, verified and ready: on JAX, or an ONNX file on onnxruntime alone.

    Raises:
        ArtifactError: it is damaged or of another kind.
        ConfigError: it reads readings on a grid, which the service doesn't.
    """
    from kdjax.export.container import Scored, load_onnx

    digest = stamp(path)[1]
    card: Mapping[str, Any] | None = None
    entities: tuple[str, ...] = ()
    if path.is_dir():
        from kdjax.detection.detector import entity_streams
        from kdjax.detection.storage import load_detector

        detector = load_detector(path)
        streams, backend = entity_streams(detector), "jax"
        card, entities = detector.card, detector.entities
        usual = streams.another("")
        plan = usual.plan

        def scored(windows: np.ndarray) -> Scored:
            found = streams.score([plan.entity] * len(windows), windows)
            points = np.stack([one.points for one in found])
            scores = np.array([one.window_score for one in found], np.float32)
            parts = np.stack([usual.explained(window[None]) for window in windows])
            return Scored(points, scores, (scores > plan.tau).astype(np.int64), parts)

    else:
        streams, backend = open_streams(path, backend="onnxruntime"), "onnxruntime"
        run = load_onnx(path).run
        plan = streams.another("").plan

        def scored(windows: np.ndarray) -> Scored:
            starts = range(0, len(windows), ONNX_BATCH)
            pieces = [run(windows[first : first + ONNX_BATCH]) for first in starts]
            return Scored(*map(np.concatenate, zip(*pieces, strict=True)))

    if plan.reading.step or plan.reading.long:
        raise ConfigError(
            f"{path} reads readings on a grid (data.step or data.layout=long), serve "
            "takes rows: put readings on the grid first, or use kdjax stream."
        )
    # Imports what it needs now rather than between two rows.
    streams.another("").drift()
    return Loaded(path, digest, backend, streams, plan, entities, card, scored)


def stamp(path: Path) -> tuple[int, str]:
    """When a detector's manifest, or its file, was written (ns), and its SHA-256."""
    file = path / MANIFEST if path.is_dir() else path
    try:
        return file.stat().st_mtime_ns, detector_digest(path)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror}).") from None


class Shadow:
    """A second detector that scores the same rows, and how the two compare."""

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self.loaded, self.rows, self.error = loaded, 0, ""
        self.machines = Machines(
            loaded.streams,
            {},
            store=Store(None),
            most=limits.open,
            log=lambda text: None,
        )
        self.both = self.own = self.other = self.events = 0
        self._scores: collections.deque[tuple[float, float]]
        self._scores = collections.deque(maxlen=COMPARED)

    def take(self, lines: Sequence[Line], rows: Sequence[StreamRow | None]) -> None:
        """Scores lines of different entities, whose rows the first detector answered."""
        pairs, found = [], list[StreamRow]()
        for line, row in zip(lines, rows, strict=True):
            if row is None:
                continue
            stream = self.machines.of(line.entity).stream
            with contextlib.suppress(DataError):
                pairs.append((stream, stream.take(line.row, line.time)))
                found.append(row)
        for row, second in zip(
            found, answer_together(pairs, self.machines.score), strict=True
        ):
            self.rows += 1
            self.both += row.alarm and second.alarm
            self.own += second.alarm and not row.alarm
            self.other += row.alarm and not second.alarm
            begun = [e for e in second.events if e["end"] is None]
            self.events += len(begun)
            self._scores.append((_severity(row), _severity(second)))
        self.machines.shrink()

    def compared(self) -> dict[str, Any]:
        """The comparison as JSON values; severities are window scores in units of τ."""
        pairs = np.array(self._scores).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        shares = (0.5, 0.9, 0.99, 1.0)
        quantiles = {
            name: [round(float(q), 6) for q in np.quantile(column, shares)]
            for name, column in zip(("first", "shadow"), pairs.T, strict=True)
            if len(column)
        }
        return {
            "detector": str(self.loaded.path.name),
            "digest": self.loaded.digest,
            "rows": self.rows,
            "alarms": {
                "both": self.both,
                "first_only": self.other,
                "shadow_only": self.own,
            },
            "events": self.events,
            "severity": {"rows": len(pairs), "shares": shares, **quantiles},
            "error": self.error or None,
        }


def _severity(row: StreamRow) -> float:
    return row.window_score / row.tau if row.tau > 0 else math.nan


class Engine:
    """A detector in service under a name.

    Args:
        path: its folder or ONNX file.
        folder: where state is kept.
        limits: of the queue and of entities.
        clock: numbers of events, shared by all detectors.
        to: receivers of alarm messages.
        shadow: a second detector, or None.
        log: called with messages for people.
        committed: called in this engine's thread when rows or events were committed.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        folder: Path,
        *,
        limits: Limits,
        clock: Clock,
        to: tuple[Receiver, ...] = (),
        shadow: Path | None = None,
        log: Callable[[str], None] = lambda text: None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self._limits, self._clock = name, limits, clock
        self._log, self._committed = log, committed
        self._path, self._state = path, folder / f"{name}.sqlite"
        self._stack = contextlib.ExitStack()
        lock_state(self._stack, self._state)
        self.counts: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()
        self.latest: dict[str, Latest] = {}
        self.last_row, self.begun = math.nan, time.time()  # seconds since 1970
        self.kept: Kept = {}  # rows for the live page
        self.open_events: dict[str, tuple[Event, ...]] = {}  # by entity
        self.ready, self.fault = False, ""
        self._queue: collections.deque[Job] = collections.deque()
        self._waiting = 0  # rows in it
        self._changed, self._closing = threading.Condition(), False
        self._rate = 1000.0  # rows a second, for Retry-After
        self.shadow: Shadow | None = None
        self.loaded = load(path)
        self._stamp, self._refused_stamp = stamp(path), (0, "")
        if shadow is not None:
            self.shadow = Shadow(load(shadow), limits)
        self._outbox: Outbox | None = None
        self._dirty: dict[str, tuple[int, int]] = {}
        self._open()
        if (
            self.shadow
            and self.machines.saved.get("promoted") == self.shadow.loaded.digest
        ):
            self._swap(self.shadow.loaded, promoted=True)
            self.shadow = None
        saved = self.machines.saved.get("alarms") or {}
        if to:
            spool = folder / f"{name}.alarms"
            self._outbox = Outbox(to, spool=spool, saved=saved, log=log)
        self.log = EventLog(self._state)
        self._thread = threading.Thread(
            target=self._run, name=f"kdjax-{name}", daemon=True
        )
        self._thread.start()

    # Called from other threads.

    def submit(self, body: Body) -> "Future[Answers]":
        """Puts rows into the queue; RequestError (429) where it is full."""
        rows = len(body.lines)
        with self._changed:
            if self._waiting and self._waiting + rows > self._limits.waiting:
                self.refused["queue"] += rows
                error = RequestError(
                    429, f"{self._waiting} rows wait: send this again later.", "queue"
                )
                wait = math.ceil(self._waiting / max(self._rate, 1))
                error.headers["Retry-After"] = str(min(max(wait, 1), 60))
                raise error
            return self._put(Job(body, Future()), rows)

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Runs a function in the engine's thread, between two batches."""
        with self._changed:
            return self._put(Job(Body([], []), Future(), function), 0)

    def _put(self, job: Job, rows: int) -> "Future[Any]":
        if self._closing or not self.ready:
            raise RequestError(503, self.fault or "the service is ending.", "closed")
        self._queue.append(job)
        self._waiting += rows
        self._changed.notify()
        return job.done

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._waiting

    def close(self) -> None:
        """Answers what waits, saves all states and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.log.close()
        self._stack.close()

    def score(self, lines: Sequence[Line], entity: str, *, explain: bool) -> list[Any]:
        """Answers rows as a stream before its first row does; it keeps nothing."""
        return stateless(self.loaded, self._tau_of(entity), lines, entity, explain)

    # Run in the engine's thread by `call`.

    def set_threshold(
        self, tau: float | None, budget: float | None, entity: str | None, note: str
    ) -> dict[str, Any]:
        """Changes τ of an entity, or of all for None, from the next row on."""
        plan = self.machines.plan if entity is None else self._plan_of(entity)
        before = self._taus.get(None, plan.tau) if entity is None else plan.tau
        detail = "given"
        if budget is not None:
            tau, detail = budget_threshold(plan, budget)
        assert tau is not None
        change = {
            "time": time.time(), "entity": entity, "tau": tau, "before": before,
            "detail": detail, "note": note, "digest": self.loaded.digest,
        }  # fmt: skip
        with self._committing():
            self.journal.add_threshold(change)
        self._apply(change)
        return change

    def acknowledge(self, name: str, mark: Mapping[str, Any]) -> None:
        """Notes that someone has seen an event."""
        with self._committing():
            self.journal.acknowledge(name, mark)

    def shelve(self, source: str, mark: Mapping[str, Any]) -> None:
        """Notes that messages of an entity and kind are not to be sent for a time."""
        with self._committing():
            self.journal.shelve(source, mark)
        self._shelves = self.journal.shelves()

    def promote(self) -> None:
        """Makes the shadow the detector; rows that wait in streams carry over."""
        if self.shadow is None:
            raise RequestError(409, "there is no shadow to promote.")
        self._swap(self.shadow.loaded, promoted=True)
        self.shadow.machines.store.close()
        self.shadow = None

    # Only in the engine's thread from here on.

    def _open(self) -> None:
        """Opens the store, and answers the journal's rows that states don't have."""
        self.machines = machines = Machines(
            self.loaded.streams,
            {},
            store=Store(self._state),
            most=self._limits.open,
            log=self._log,
            known=KNOWN,
            carries=True,
        )
        self.journal = Journal(machines.store, self._clock)
        self.thresholds = self.journal.thresholds()
        self._shelves = self.journal.shelves()
        self._taus: dict[str | None, float] = {}
        self._dirty.clear()
        for change in self.thresholds:
            self._taus |= self._change(change)
        for batch in self.journal.rows():
            lines = [
                line
                for line, count in batch
                if self.machines.of(line.entity).lines <= count
            ]
            for part in _rounds(lines):
                self._answer([lines[place] for place in part])
            machines.shrink()
        machines.accepted = 0  # the saved number has the journal's rows
        for name in list(machines.names):
            machines.put(name)
        self.journal.trim(None)
        self.marks = machines.saved.get("marks") or {}
        machines.store.commit(self._whole())
        machines.saved = {**machines.saved, **machines.store.whole()}
        self.ready, self.fault = True, ""

    def _whole(self) -> dict[str, Any]:
        machines = self.machines
        kept = machines.about()
        kept |= {
            "alarms": self._outbox.state()
            if self._outbox
            else machines.saved.get("alarms"),
            "promoted": machines.saved.get("promoted"),
            "digest": self.loaded.digest,
            "marks": self.marks,
        }
        return kept

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        """Commits what the block wrote; else takes it back, with all rows since."""
        try:
            with rolled_back(self.machines.store):
                yield
                whole = self._whole()
                self.machines.store.commit(whole)
        except (ArtifactError, OSError) as error:
            self._log(f"{self.name}: nothing could be saved, rows are refused: {error}")
            self._reopen()
            raise RequestError(
                503, f"the state can't be saved; send this again later: {error}", "disk"
            ) from error
        if self._outbox:
            self._outbox.release(whole["alarms"])

    def _reopen(self) -> None:
        """Goes back to what was committed."""
        with contextlib.suppress(KdjaxError):
            self.machines.store.close()
        try:
            self._open()
        except (KdjaxError, OSError) as error:
            self.ready, self.fault = False, f"the state can't be read: {error}"

    def _swap(self, loaded: Loaded, *, promoted: bool = False) -> None:
        """Goes on with another detector; all rows before have their answers."""
        try:
            self._swapped(loaded, promoted)
        except (KdjaxError, OSError):
            self._reopen()
            raise

    def _swapped(self, loaded: Loaded, promoted: bool) -> None:
        old = self.loaded
        for name in list(self.machines.names):
            self.machines.put(name)
        self.journal.trim(None)
        whole = self._whole()
        whole["promoted"] = loaded.digest if promoted else None
        fields = ("channels", "window", "step", "max_gap", "dtype")
        same = all(getattr(old.plan, f) == getattr(loaded.plan, f) for f in fields)
        text = "their rows carry over" if same else "windows start anew"
        note = {
            "kind": "detector", "entity": "", "detector": loaded.digest, "before": old.digest,
            "text": f"another detector is in force; {text}",
        }  # fmt: skip
        self.journal.add_events([note])
        self.machines.store.commit(whole)
        self.machines.store.close()
        self.loaded = loaded
        self.latest.clear()
        self._open()
        self.counts["reloads"] += 1
        self._log(f"{self.name}: {note['text']} ({loaded.digest[:12]})")
        self._committed()

    def _change(self, change: Mapping[str, Any]) -> dict[str | None, float]:
        """τ by entity of a change that is of this detector."""
        if change["digest"] != self.loaded.digest:
            return {}
        if change["entity"] is None:
            self._taus.clear()
        return {change["entity"]: change["tau"]}

    def _apply(self, change: dict[str, Any]) -> None:
        self.thresholds.append(change)
        self._taus |= self._change(change)
        for name in self.machines.opened():
            self._retune(name)

    def _tau_of(self, entity: str) -> float | None:
        return self._taus.get(entity, self._taus.get(None))

    def _plan_of(self, entity: str) -> Plan:
        return self.machines.of(entity).stream.plan

    def _retune(self, name: str) -> None:
        """Gives an entity's stream the τ that was set for it."""
        stream, tau = self.machines.of(name).stream, self._tau_of(name)
        if tau is not None and stream.plan.tau != tau:
            stream.plan = stream.plan._replace(tau=tau)

    def _run(self) -> None:
        due, end = time.monotonic() + TICK, 0.0
        while True:
            with self._changed:
                if not self._queue and not self._closing:
                    self._changed.wait(max(0.0, due - time.monotonic()))
                end = end if not self._closing else end or time.monotonic() + END
                if end and (not self._queue or time.monotonic() > end):
                    break
                jobs = self._taken()
            try:
                if jobs and jobs[0].call:
                    _settle(jobs[0], jobs[0].call)
                elif jobs:
                    self._batch(jobs)
            except Exception as error:  # noqa: BLE001 - the service goes on
                self._log(f"{self.name}: {type(error).__name__}: {error}")
                self.refused["fault"] += sum(len(job.body.lines) for job in jobs)
                self._reopen()
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(error)
            if time.monotonic() >= due:
                due = time.monotonic() + TICK
                with contextlib.suppress(RequestError):
                    self._tick()
        self._finish()

    def _taken(self) -> list[Job]:
        """The jobs that are answered next: one call, or rows up to `BATCH_ROWS`."""
        jobs, rows = list[Job](), 0
        while self._queue and (not jobs or not (jobs[0].call or self._queue[0].call)):
            rows += len(self._queue[0].body.lines)
            if jobs and rows > BATCH_ROWS:
                break
            jobs.append(self._queue.popleft())
        self._waiting -= sum(len(job.body.lines) for job in jobs)
        return jobs

    def _batch(self, jobs: Sequence[Job]) -> None:
        """Answers rows of several requests."""
        begun = time.monotonic()
        before: dict[str, int] = {}  # lines of each entity up to here
        accepted, lines = list[tuple[Job, list[int]]](), list[Line]()
        counts = list[int]()
        for job in jobs:
            own = dict(before)
            try:
                new = self._checked(job.body, own)
            except RequestError as error:
                self.refused[error.reason] += len(job.body.lines)
                job.done.set_exception(error)
                continue
            before = own
            accepted.append((job, new))
            for place in new:
                lines.append(job.body.lines[place])
        answers: list[tuple[str, StreamRow | None]] = [("", None)] * len(lines)
        try:
            rounds = _rounds(lines)
            with self._committing() if lines else contextlib.nullcontext():
                for part in rounds:
                    group = [lines[place] for place in part]
                    numbered = [self.machines.of(line.entity).lines for line in group]
                    counts += numbered
                    for place, found in zip(part, self._answer(group), strict=True):
                        answers[place] = found
                order = [lines[place] for part in rounds for place in part]
                if lines:
                    self._note([*zip(order, counts, strict=True)])
                self._announce(e for _, row in answers if row for e in row.events)
                for job, _ in accepted:
                    self.marks = {**self.marks, **job.body.marks}
        except RequestError as error:
            self.refused["disk"] += len(lines)
            for job, _ in accepted:
                job.done.set_exception(error)
            return
        self._count(lines, answers)
        each = iter(answers)
        for job, new in accepted:
            job.done.set_result(_joined(job.body, new, each))
        self._rate += 0.1 * (
            len(lines) / max(time.monotonic() - begun, 1e-6) - self._rate
        )
        self._committed()

    def _checked(self, body: Body, before: dict[str, int]) -> list[int]:
        """The places of new rows; RequestError for rows that can't come next."""
        new, fresh = list[int](), set[str]()
        without: collections.Counter[str] = collections.Counter()
        names, most = self.machines.names, self._limits.entities
        for place, (line, number) in enumerate(
            zip(body.lines, body.sequence, strict=True)
        ):
            name = line.entity
            if name and name not in names:
                fresh.add(name)
                if len(names) + len(fresh) > most:
                    raise RequestError(
                        403, f"more than {most} entities: start the service with a larger "
                        "--max_entities.", "entities",
                    )  # fmt: skip
            if name not in before:
                known = name in names or not name
                before[name] = self.machines.of(name).lines if known else 0
            if number is None:
                without[name] += 1
            elif number > before[name]:
                raise RequestError(
                    409, f"the next row of {name!r} has the sequence {before[name]}, not "
                    f"{number}: send the rows between first.", "sequence",
                    expected=before[name], entity=name,
                )  # fmt: skip
            elif number < before[name]:
                continue
            before[name] += 1
            new.append(place)
        if without and max(without.values()) > KNOWN:
            raise RequestError(
                413, f"more than {KNOWN} rows of an entity without `sequence`: give it, or "
                "send fewer at once.", "rows",
            )  # fmt: skip
        return new

    def _answer(self, lines: Sequence[Line]) -> list[tuple[str, StreamRow | None]]:
        """Takes rows of different entities in and answers them."""
        machines, items = self.machines, []
        for line in lines:
            machine = machines.of(line.entity)
            machines.came(line.entity)
            if self._taus:
                self._retune(line.entity)
            stream, fault = machine.stream, line.error
            instant, taken = None, None
            try:
                if not (fault and line.time is None):
                    instant = parse_timestamp(line.time)
                late = not fault and is_late(instant, stream.last)
                if late and machine.answered.has(line, instant):
                    fault = TWICE
                if not fault:
                    said = line.time if instant and instant.clock else None
                    taken = stream.take(line.row, instant, said=said)
            except DataError as error:
                fault = fault or str(error)
            items.append((line, instant, machine, taken, fault))
        pairs = [(machine.stream, taken) for *_, machine, taken, _ in items if taken]
        machines.accepted += len(pairs)
        rows = list[StreamRow]()
        for first in range(0, len(pairs), AT_ONCE):
            rows += answer_together(pairs[first : first + AT_ONCE], machines.score)
        found, answered = list[tuple[str, StreamRow | None]](), iter(rows)
        for line, instant, machine, taken, fault in items:
            row = next(answered) if taken else None
            machine.answered.add(line, instant, machine.stream.last)
            self.open_events[line.entity] = machine.stream.open_events
            machine.lines += 1
            text = answer_text(line, row, fault, moves=False, name=line.entity)
            found.append((text, row))
        if self.shadow is not None:
            try:
                self.shadow.take(lines, [row for _, row in found])
            except (KdjaxError, OSError) as error:
                self.shadow.error = str(error)
        return found

    def _note(self, pairs: Sequence[tuple[Line, int]]) -> None:
        """Writes rows to the journal, and states whose rows have been there for long."""
        number, rows = self.journal.add_rows(pairs), len(pairs)
        self.counts["journal"] += rows
        total = self.counts["journal"]
        for line, _ in pairs:
            self._dirty.setdefault(line.entity, (number, total))
        self.machines.shrink()
        put = 0
        while self._dirty:
            name, (_, since) = next(iter(self._dirty.items()))
            lag = total - since
            if lag < LAG_ROWS or (put >= PUT_EACH + rows and lag < 2 * LAG_ROWS):
                break
            self.machines.put(name)
            del self._dirty[name]
            put += 1
        first = next(iter(self._dirty.values()), (None, 0))[0]
        if put:
            self.journal.trim(first)

    def _announce(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Notes events, and puts messages of those that are not shelved into the outbox."""
        found = [
            {
                **e,
                "detector": self.name,
                "phase": "begin" if e["end"] is None else "end",
            }
            for e in events
        ]
        if not found:
            return
        self.journal.add_events(found)
        if self._outbox:
            now, digest = time.time(), self.loaded.digest
            shelves = self._shelves
            self._outbox.add(
                alarm_text(_plain(event), digest)
                for event in found
                if not is_shelved(event, shelves, now)
            )

    def _count(
        self, lines: Sequence[Line], answers: Sequence[tuple[str, StreamRow | None]]
    ) -> None:
        now = self.last_row = time.time()
        for line, (_, row) in zip(lines, answers, strict=True):
            if row is None:
                self.refused["row"] += 1
                continue
            known = self.latest.get(line.entity)
            drift = known.drift if known else math.nan
            if row.row % self.loaded.plan.window == 0:
                drift = self.machines.of(line.entity).stream.drift().distance
            self.latest[line.entity] = Latest(row, now, drift)
            keep(self.kept, line, row)
            self.counts["windows"] += not math.isnan(row.window_score)
            self.counts["alarms"] += row.alarm
            self._count_events(row.events)
        self.counts["rows"] += len(lines)

    def _count_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            self.counts["begun" if event["end"] is None else "ended"] += 1

    def _tick(self) -> None:
        if not self.ready:
            self._reopen()
            return
        if events := self.machines.silent(0.0):
            with self._committing():
                self._announce(events)
            self._count_events(events)
            self._committed()
        self._look_for_change()

    def _look_for_change(self) -> None:
        """Loads the detector again where its manifest or file has changed."""
        try:
            file = self._path / MANIFEST if self._path.is_dir() else self._path
            if file.stat().st_mtime_ns in (self._stamp[0], self._refused_stamp[0]):
                return
            found = stamp(self._path)
            if found[1] == self._stamp[1]:
                self._stamp = found
                return
        except (KdjaxError, OSError):
            return  # half written: the old one answers
        # Aside, while rows go on to be answered; then between two batches.
        self._refused_stamp = found
        threading.Thread(target=self._reload, args=(found,), daemon=True).start()

    def _reload(self, found: tuple[int, str]) -> None:
        try:
            loaded = load(self._path)
        except (KdjaxError, OSError) as error:
            self._log(f"{self.name}: the changed detector is not taken: {error}")
            self.counts["refused_reloads"] += 1
            return

        def swap() -> None:
            self._stamp = found
            self._swap(loaded)

        with contextlib.suppress(RequestError):
            self.call(swap)

    def _finish(self) -> None:
        """Saves states, for `END` seconds: a start answers the journal's rows again."""
        end = time.monotonic() + END
        for job in self._queue:  # nobody waits for these any more
            job.done.set_exception(
                RequestError(503, "the service is ending.", "closed")
            )
        try:
            while self._dirty and time.monotonic() < end:
                name = next(iter(self._dirty))
                self.machines.put(name)
                del self._dirty[name]
            self.journal.trim(next(iter(self._dirty.values()), (None, 0))[0])
            self.machines.store.commit(self._whole())
        except (ArtifactError, OSError) as error:
            self._log(
                f"{self.name}: states are not saved, the journal has them: {error}"
            )
        finally:
            if self._outbox:
                self._outbox.drain(END)
                self._outbox.close()
            opened = [self.machines, *([self.shadow.machines] if self.shadow else [])]
            for machines in opened:
                with contextlib.suppress(KdjaxError):
                    machines.store.close()


def _settle(job: Job, call: Callable[[], Any]) -> None:
    try:
        job.done.set_result(call())
    except Exception as error:  # noqa: BLE001 - the caller sees it
        job.done.set_exception(error)


def _rounds(lines: Sequence[Line]) -> list[list[int]]:
    """Places of lines in rounds, in each of which every entity occurs once at most."""
    rounds, seen = list[list[int]](), dict[str, int]()
    for place, line in enumerate(lines):
        number = seen[line.entity] = seen.get(line.entity, -1) + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(place)
    return rounds


def _joined(
    body: Body, new: Sequence[int], found: Iterator[tuple[str, StreamRow | None]]
) -> Answers:
    """The answers to a request, with those to rows that had been answered before."""
    texts, events = list[str](), list[tuple[Mapping[str, Any], ...]]()
    fresh = {*new}
    for place, line in enumerate(body.lines):
        if place in fresh:
            text, row = next(found)
            texts.append(text)
            events.append(row.events if row else ())
        else:
            texts.append(_repeated(line, body.sequence[place]))
            events.append(())
    return Answers(texts, events)


def _repeated(line: Line, number: int | None) -> str:
    text = answer_text(line, None, "", moves=False, name=line.entity)
    end = text.rindex(', "line": ')
    return f'{text[:end]}, "repeated": true, "sequence": {number}}}'


def alarm_text(event: Mapping[str, Any], digest: str) -> str:
    """The message of an event that begins or ends."""
    phase = "begin" if event["end"] is None else "end"
    return json.dumps({**event, "detector": digest, "phase": phase}, allow_nan=False)


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event as a stream has it."""
    return {k: v for k, v in event.items() if k not in ("detector", "phase")}


def is_shelved(
    event: Mapping[str, Any], shelves: Mapping[str, Mapping[str, Any]], now: float
) -> bool:
    """Whether messages of an event are held back."""
    mark = shelves.get(source_of(event))
    return mark is not None and (mark["until"] is None or now < mark["until"])


def budget_threshold(plan: Plan, per_day: float) -> tuple[float, str]:
    """τ for so many events a day, from a plan's calibration scores, and how it came.

    Windows that share rows alarm together, so that each event is taken to fill one window:
    the share of windows above τ is `per_day` · L rows of those of a day.
    """
    n, rows = len(plan.calibration), 86_400 / plan.step if plan.step else 0.0
    if not n or not rows:
        raise RequestError(
            409, "the detector has no calibration scores, or no cadence: give `tau`."
        )
    share = per_day * plan.window / rows
    if not share < 1:
        raise RequestError(
            409, f"{per_day:g} events a day are more than rows can hold."
        )
    if share * (plan.disjoint + 1) < 1:
        least = rows / plan.window / (plan.disjoint + 1)
        raise RequestError(
            409,
            f"calibration has {counted(plan.disjoint, 'separate window')}, too few for "
            f"{per_day:g} events a day: give {least:.3g}/day or more, or `tau`.",
        )
    rank = min(math.ceil((n + 1) * (1 - share)), n)
    tau = plan.calibration[rank - 1]
    return (
        tau,
        f"{per_day:g} events a day: {share:.3g} of windows above τ, rank {rank} of {n}",
    )


def stateless(
    loaded: Loaded, tau: float | None, lines: Sequence[Line], entity: str, explain: bool
) -> list[Any]:
    """Answers to rows as a stream before its first row gives them, in batches.

    Each is its JSON text, its row and the contributions `[D]` to its score, or None.
    """
    first, second = (loaded.streams.another(entity) for _ in range(2))
    if tau is not None:
        second.plan = second.plan._replace(tau=tau)
    found = list[Any]()
    for start in range(0, len(lines), AT_ONCE):
        part = lines[start : start + AT_ONCE]
        # Windows don't depend on scores: they are taken first, and scored together.
        windows = list[np.ndarray]()
        for line in part:
            with contextlib.suppress(DataError):
                taken = first.take(_row(line), line.time)
                first.answer(taken, None)
                windows += [taken.window.copy()] if taken.whole else []
        names = [first.plan.entity] * len(windows)
        scores = iter(
            loaded.streams.score(names, np.concatenate(windows)) if windows else ()
        )
        for line in part:
            row, fault, shares = None, line.error, None
            try:
                taken = second.take(_row(line), line.time, said=line.time)
                score = next(scores) if taken.whole else None
                row = second.answer(taken, score)
                if explain and score is not None:
                    parts = score.contributions
                    if parts is None:
                        parts = second.explained(taken.window)
                    shares = [*map(json_number, parts[-1].tolist())]
            except DataError as error:
                fault = str(error)
            text = answer_text(line, row, fault, moves=False, name=entity)
            found.append((text, row, shares))
    return found


def _row(line: Line) -> list[float]:
    if line.error:
        raise DataError(line.error)
    return line.row


def texts_of(answers: Answers) -> str:
    """Answers and events as `kdjax stream` writes them, a line each."""
    lines = list[str]()
    for text, events in zip(answers.texts, answers.events, strict=True):
        lines.append(text)
        lines += map(event_text, events)
    return "".join(f"{line}\n" for line in lines)
