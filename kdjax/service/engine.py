"""A detector in service: rows of many entities, answered in order by one thread.

Requests wait in a bounded queue. The thread takes all waiting ones, scores rows of
different entities together, commits rows and events, then answers. Changes of the detector
happen between two such batches. A batch that can't be committed is rolled back as a whole.
"""

import collections
import contextlib
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.data.lines import Line
from kdjax.detection.occurrences import Event, message
from kdjax.detection.streaming import StreamRow
from kdjax.detection.timestamps import Timestamp
from kdjax.errors import ArtifactError, DataError, KdjaxError
from kdjax.notify.outbox import Outbox, Receiver
from kdjax.scoring.machines import Machines, Store
from kdjax.scoring.managed import (
    BEGIN,
    END,
    Message,
    Spans,
    is_marked,
    message_text,
)
from kdjax.scoring.streams import lock_state
from kdjax.service.answers import (
    KNOWN,
    Answered,
    Answers,
    answer_rows,
    joined,
    new_places,
    refused_places,
    take_lines,
)
from kdjax.service.bodies import Body, RequestError
from kdjax.service.journal import Clock, EventLog, Journal, rolled_back
from kdjax.service.loading import Loaded, load, sealing, stamp
from kdjax.service.page import Kept, keep
from kdjax.service.shadow import Shadow
from kdjax.service.thresholds import Thresholds, budget_threshold

BATCH_ROWS = 1000  # most rows that are answered together, unless one body has more
LAG_ROWS = 10_000  # rows in the journal before states of their entities are written
PUT_EACH = 64  # most states written with one batch, unless the journal grows
LOADED = 16  # detectors of a fleet that are kept for requests without state
TICK = 1.0  # seconds between two checks for silence and changed detectors
# Seconds for rows that wait, for states, and for alarm messages at the end.
LAST_WAIT = 1.0


class Limits(NamedTuple):
    """Limits of a request, the queue and the process."""

    body: int = 8_000_000  # bytes of a body
    rows: int = 5000  # rows of a body
    waiting: int = 20_000  # rows in the queue of a detector
    entities: int = 10_000  # of a detector
    open: int = 1000  # entities of a detector in memory
    seconds: float = 30.0  # for a request to come in
    listeners: int = 100  # open requests for events


class Latest(NamedTuple):
    """The last row of an entity."""

    row: StreamRow
    received: float  # seconds since 1970
    drift: float = math.nan  # distance of its scores from those of calibration


class Job(NamedTuple):
    """Waiting rows of a request, or a call; the future receives the result."""

    body: Body
    done: "Future[Any]"
    call: Callable[[], Any] | None = None


class Engine:
    """A detector in service under a name.

    Args:
        path: its folder or ONNX file.
        folder: of the state.
        limits: of the queue and of entities.
        clock: numbers of events, shared by all detectors.
        to: receivers of alarm messages.
        shadow: a second detector, or None.
        excluded: spans of rows that are left out, such as those of maintenance.
        log: called with messages for the user.
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
        excluded: Spans | None = None,
        log: Callable[[str], None] = lambda text: None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self._limits, self._clock = name, limits, clock
        self._log, self._committed = log, committed
        self._path, self._state = path, folder / f"{name}.sqlite"
        self._to, self._excluded = to, excluded
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
        self.waiting = 0  # rows in it
        self._changed, self._closing = threading.Condition(), False
        self._rate = 1000.0  # rows a second, for Retry-After
        self.shadow: Shadow | None = None
        self.loaded = load(path, excluded)
        self._stamp, self._refused_stamp = stamp(path), (0, "")
        if shadow is not None:
            self.shadow = Shadow(load(shadow, excluded), self.loaded, limits.open)
        self._outbox: Outbox | None = None
        self._dirty: dict[str, tuple[int, int]] = {}
        with contextlib.closing(Store(self._state)) as store:
            promoted = store.whole().get("promoted")
        if self.shadow and promoted == self.shadow.loaded.digest:
            self.loaded = self.shadow.loaded
            self.shadow.machines.store.close()
            self.shadow = None
        self._open()
        self.log = EventLog(self._state)
        self._thread = threading.Thread(
            target=self._run, name=f"kdjax-{name}", daemon=True
        )
        self._thread.start()

    # Called from other threads.

    def submit(self, body: Body) -> "Future[Answers]":
        """Puts rows into the queue; RequestError (429) if it is full."""
        rows = len(body.lines)
        with self._changed:
            if self.waiting and self.waiting + rows > self._limits.waiting:
                self.refused["queue"] += rows
                text = f"{self.waiting} rows wait: send this again later."
                wait = math.ceil(self.waiting / max(self._rate, 1))
                header = ("Retry-After", str(min(max(wait, 1), 60)))
                raise RequestError(429, text, "queue", header=header)
            return self._put(Job(body, Future()), rows)

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Runs a function in the engine's thread, between two batches."""
        with self._changed:
            return self._put(Job(Body([], []), Future(), function), 0)

    def _put(self, job: Job, rows: int) -> "Future[Any]":
        if self._closing or not self.ready:
            raise RequestError(503, self.fault or "the service is ending.", "closed")
        self._queue.append(job)
        self.waiting += rows
        self._changed.notify()
        return job.done

    def close(self) -> None:
        """Answers waiting rows, saves all states and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._stack.close()

    def loaded_of(self, entity: str) -> Loaded:
        """The detector of a machine of a fleet, else the one in service.

        RequestError for a machine without one.
        """
        loaded = self.loaded
        if not loaded.fleet:
            return loaded
        from kdjax.detection.fleet import machine_folder, open_machine

        if not entity:
            raise RequestError(
                400,
                f"{self.name} is a fleet: give the entity of the detector.",
            )
        try:
            folder = machine_folder(self._path, entity)
            whose = open_machine(self._path, entity)[1]
            return _load_machine(folder, whose, stamp(folder))
        except DataError as error:
            known = loaded.streams.is_listed(entity)
            raise RequestError(409 if known else 404, str(error), "machine") from None

    def tau(self, entity: str, loaded: Loaded | None = None) -> float:
        """The current τ of an entity; for an unknown one that of entities without their own.

        `loaded` is that of a machine of a fleet.
        """
        found, streams = self.thresholds.of(entity), (loaded or self.loaded).streams
        return streams.another(entity).plan.tau if found is None else found

    # Run in the engine's thread by `call`.

    def set_threshold(
        self, tau: float | None, budget: float | None, entity: str | None, note: str
    ) -> dict[str, Any]:
        """Changes τ of an entity, or of all for None, from the next row on."""
        if why := self.machines.refusal(entity or ""):
            raise RequestError(409, why, "machine")
        plan, detail = self.machines.of(entity or "").stream.plan, "given"
        before = self.tau(entity or "")
        if budget is not None:
            tau, detail = budget_threshold(plan, budget)
        assert tau is not None
        change = {
            "time": time.time(), "entity": entity, "tau": tau, "before": before,
            "detail": detail, "note": note, "digest": self.loaded.digest_of(entity),
        }  # fmt: skip
        with self._committing():
            self.journal.add_threshold(change)
        self.thresholds.add(change)
        return change

    def acknowledge(self, name: str, mark: Mapping[str, Any]) -> None:
        """Records the acknowledgement of an event."""
        with self._committing():
            self.journal.acknowledge(name, mark)
            self._send(self._due())

    def shelve(self, source: str, mark: Mapping[str, Any]) -> None:
        """Shelves messages of an entity and kind, or ends that."""
        with self._committing():
            self.journal.shelve(source, mark)
            self._shelves = self.journal.shelves()
            self._send(self._due())

    def promote(self) -> None:
        """Makes the shadow the detector; the rows in streams' buffers are kept."""
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
        saved, digest = machines.saved, self.loaded.digest
        if self._to and not self._outbox:
            alarms = saved.get("alarms") or {}
            spool = self._state.with_suffix(".alarms")
            self._outbox = Outbox(self._to, spool=spool, saved=alarms, log=self._log)
        self._form = machines.of("").stream.form  # of rows that are kept
        self.journal = Journal(machines.store, self._clock)
        changes = self.journal.thresholds()
        self.thresholds = Thresholds(changes, self.loaded.digest_of)
        self._shelves = self.journal.shelves()
        self._managed = self.journal.managed(
            lambda event, _: is_marked(self._shelves, event, time.time())
        )
        self._dirty.clear()
        self.open_events.clear()
        is_other = saved.get("digest", digest) != digest
        touched = {one["event"]["entity"] for one in self._managed.open.values()}
        left = touched if is_other else ()
        ends = {e["id"]: e for name in left for e in machines.left_open(name)}
        for batch in self.journal.rows():
            lines = [
                line
                for line, count in batch
                if not self.machines.refusal(line.entity)  # it was removed
                and self.machines.of(line.entity).lines <= count
            ]
            self._answer(lines)
            touched |= {line.entity for line in lines}
            machines.shrink()
        for name in touched:
            with contextlib.suppress(ArtifactError):  # damaged: its next row is refused
                self._see([name])
            machines.shrink()
        machines.accepted = 0  # the saved number includes the journal's rows
        self.marks = saved.get("marks") or {}
        if is_other:
            self._take_over(ends)
        for name in list(machines.names):
            machines.put(name)
        self.journal.trim(None)
        whole = self._whole()
        machines.store.commit(whole)
        if self._outbox:
            self._outbox.release(whole["alarms"])
        machines.saved = {**saved, **machines.store.whole()}
        self.ready, self.fault = True, ""

    def _see(self, names: Iterable[str]) -> None:
        """Updates the open events of entities."""
        for name in names:
            if self.machines.refusal(name):  # it was removed from the fleet
                self.open_events.pop(name, None)
                continue
            self.open_events[name] = self.machines.of(name).stream.open_events

    def _take_over(self, ends: Mapping[str, Any], machines: Sequence[str] = ()) -> None:
        """Records that the detector changed, and ends events that the new one has not open.

        `ends` are the ends by id of the open events in the states; `machines` of a fleet
        are those whose detectors changed, all by default.
        """
        before = self.machines.saved
        same = machines or before.get("form") == self._form
        text = "another detector is used"
        if machines:
            text += f" for {', '.join(machines[:3])}"
            text += f" and {len(machines) - 3:,} more" if len(machines) > 3 else ""
        text += "; rows in buffers are kept" if same else "; windows start again"
        note = {
            "kind": "detector", "entity": "", "detector": self.loaded.digest,
            "before": before.get("digest", self.loaded.digest), "text": text,
        }  # fmt: skip
        self.journal.add_events([note])
        known = {name: one["event"] for name, one in self._managed.open.items()}
        now: dict[str, Mapping[str, Any]] = {
            e.id: message(e, name) for name, es in self.open_events.items() for e in es
        }
        found: list[Mapping[str, Any]] = [
            {**ends.get(name, {**event, "end": event["start"]}), "reason": "detector"}
            for name, event in known.items()
            if name not in now
        ]
        found += [event for name, event in now.items() if name not in known]
        self._announce(found)
        self._count_events(found)
        self._log(f"{self.name}: {text} ({self.loaded.digest[:12]})")

    def _whole(self) -> dict[str, Any]:
        outbox, saved = self._outbox, self.machines.saved
        return {
            **self.machines.about(),
            "alarms": outbox.state() if outbox else saved.get("alarms"),
            "promoted": saved.get("promoted"),
            "digest": self.loaded.digest,
            "form": self._form,
            "marks": self.marks,
        }

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        """Commits what the block wrote; after an error it rolls back, with all rows since."""
        try:
            with rolled_back(self.machines.store):
                yield
                whole = self._whole()
                self.machines.store.commit(whole)
        except (ArtifactError, OSError) as error:
            self._log(f"{self.name}: saving failed, rows are refused: {error}")
            self._reopen()
            raise RequestError(
                503, f"the state can't be saved; send this again later: {error}", "disk"
            ) from error
        if self._outbox:
            self._outbox.release(whole["alarms"])

    def _reopen(self) -> None:
        """Restores the committed state."""
        with contextlib.suppress(KdjaxError):
            self.machines.store.close()
        try:
            self._open()
        except (KdjaxError, OSError) as error:
            self.ready, self.fault = False, f"the state can't be read: {error}"

    def _swap(self, loaded: Loaded, *, promoted: bool = False) -> None:
        """Continues with another detector; all rows before have their answers."""
        try:
            self._swapped(loaded, promoted)
        except (KdjaxError, OSError):
            self._reopen()
            raise

    def _swapped(self, loaded: Loaded, promoted: bool) -> None:
        for name in list(self.machines.names):
            self.machines.put(name)
        self.journal.trim(None)
        whole = self._whole()
        whole["promoted"] = loaded.digest if promoted else None
        self.machines.store.commit(whole)
        self.machines.store.close()
        self.loaded = loaded
        self.latest.clear()
        self._open()
        self.counts["reloads"] += 1
        self._committed()

    def _refresh(self) -> None:
        """Continues with the current machines of a fleet, and their detectors."""
        if not self.machines.stale():
            return
        names = self.machines.refresh()
        self.thresholds = Thresholds(self.journal.thresholds(), self.loaded.digest_of)
        if not names:
            return
        with self._committing():
            ends = {e["id"]: e for name in names for e in self.machines.left_open(name)}
            for name in names:
                self._see([name])
                self.machines.shrink()
            self._take_over(ends, names)
        self.counts["reloads"] += 1
        self._committed()

    def _run(self) -> None:
        due, end = time.monotonic() + TICK, 0.0
        while True:
            with self._changed:
                if not self._queue and not self._closing:
                    self._changed.wait(max(0.0, due - time.monotonic()))
                end = end if not self._closing else end or time.monotonic() + LAST_WAIT
                if end and (not self._queue or time.monotonic() > end):
                    break
                jobs = self._taken()
            try:
                if jobs and jobs[0].call:
                    _settle(jobs[0], jobs[0].call)
                elif jobs:
                    self._batch(jobs)
                if time.monotonic() >= due:
                    due = time.monotonic() + TICK
                    with contextlib.suppress(RequestError):
                        self._tick()
            except Exception as error:  # noqa: BLE001 - the service goes on
                self._log(f"{self.name}: {type(error).__name__}: {error}")
                self.refused["fault"] += sum(len(job.body.lines) for job in jobs)
                self._reopen()
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(error)
        self._finish()

    def _taken(self) -> list[Job]:
        """The jobs that are answered next: one call, or rows up to `BATCH_ROWS`."""
        jobs, rows = list[Job](), 0
        while self._queue and (not jobs or not (jobs[0].call or self._queue[0].call)):
            rows += len(self._queue[0].body.lines)
            if jobs and rows > BATCH_ROWS:
                break
            jobs.append(self._queue.popleft())
        self.waiting -= sum(len(job.body.lines) for job in jobs)
        return jobs

    def _batch(self, jobs: Sequence[Job]) -> None:
        """Answers rows of several requests."""
        begun = time.monotonic()
        entities = {line.entity for job in jobs for line in job.body.lines}
        if any(map(self.machines.refusal, entities)):
            self._refresh()
        before: dict[str, int] = {}  # lines of each entity up to here
        accepted = list[tuple[Job, list[tuple[int, int]], dict[int, str]]]()
        most = self._limits.entities
        lines = list[tuple[Line, int]]()  # and lines of its entity before
        for job in jobs:
            try:
                refused = refused_places(job.body, self.machines)
                new = new_places(job.body, self.machines, before, most, refused)
            except RequestError as error:
                self.refused[error.reason] += len(job.body.lines)
                # Its frames refer to the body, in a cycle that is collected late.
                job.done.set_exception(error.with_traceback(None))
                continue
            accepted.append((job, new, refused))
            self.refused["machine"] += len(refused)
            lines += [(job.body.lines[place], count) for place, count in new]
        try:
            with self._committing() if lines else contextlib.nullcontext():
                rows, answers, brought = self._answer([line for line, _ in lines])
                if lines:
                    self._note(lines)
                self._announce(e for _, row in answers if row for e in row.events)
                for job, *_ in accepted:
                    self.marks = {**self.marks, **job.body.marks}
        except RequestError as error:
            self.refused["disk"] += len(lines)
            for job, *_ in accepted:
                job.done.set_exception(error)
            return
        self._count(rows, answers)
        each = iter(answers)
        for job, new, refused in accepted:
            job.done.set_result(joined(job.body, new, each, brought, refused))
        rate = len(lines) / max(time.monotonic() - begun, 1e-6)
        self._rate += 0.1 * (rate - self._rate)
        self._committed()

    def _answer(
        self, lines: Sequence[Line]
    ) -> tuple[list[Line], list[Answered], Iterator[int]]:
        """The rows that lines complete, their answers, and the number of rows of each line."""
        rows, brought = take_lines(self.machines, lines)
        answers = answer_rows(self.machines, rows, self.thresholds.of)
        self._see({line.entity for line in rows})
        if self.shadow is not None:
            self.shadow.take(rows, [row for _, row in answers])
        return rows, answers, itertools.repeat(1) if brought is None else iter(brought)

    def _note(self, pairs: Sequence[tuple[Line, int]]) -> None:
        """Writes rows to the journal, and states whose rows have long been there."""
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
        """Records events, and puts their messages into the outbox."""
        events = [*events]
        self.journal.add_events(
            {**e, "detector": self.name, "phase": BEGIN if e["end"] is None else END}
            for e in events
        )
        self._send([one for e in events for one in self._managed.changed(e, "")])

    def _due(self) -> list[Message]:
        """Messages of events whose shelving ended, or that were acknowledged."""
        return self._managed.due(lambda _: Timestamp("", 0))

    def _send(self, messages: Iterable[Message]) -> None:
        self.journal.note_open(self._managed)
        if self._outbox and messages:
            digest = self.loaded.digest_of
            self._outbox.add(
                message_text(event, phase, digest(event["entity"]))
                for event, phase in messages
            )

    def _count(self, lines: Sequence[Line], answers: Sequence[Answered]) -> None:
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
        self._refresh()
        if events := self.machines.silent(0.0):
            with self._committing():
                self._announce(events)
                for name in {e["entity"] for e in events}:
                    self._see([name])
                    self.machines.put(name)
                self.machines.shrink()
            self._count_events(events)
            self._committed()
        if self._managed.holds() and (messages := self._due()):
            with self._committing():
                self._send(messages)
        self._look_for_change()

    def _look_for_change(self) -> None:
        """Loads the detector again if its manifest or file has changed."""
        try:
            file = sealing(self._path)
            if file.stat().st_mtime_ns in (self._stamp[0], self._refused_stamp[0]):
                return
            found = stamp(self._path)
            if found[1] == self._stamp[1]:
                self._stamp = found
                return
        except (KdjaxError, OSError):
            return  # partly written: the old one answers
        # In another thread, while rows are answered; then between two batches.
        self._refused_stamp = found
        threading.Thread(target=self._reload, args=(found,), daemon=True).start()

    def _reload(self, found: tuple[int, str]) -> None:
        try:
            loaded = load(self._path, self._excluded)
        except (KdjaxError, OSError) as error:
            self._log(f"{self.name}: the changed detector is not used: {error}")
            self.counts["refused_reloads"] += 1
            return

        def swap() -> None:
            self._stamp = found
            self._swap(loaded)

        with contextlib.suppress(RequestError):
            self.call(swap)

    def _finish(self) -> None:
        """Saves states, for `LAST_WAIT` seconds: a start answers the journal's rows again."""
        end = time.monotonic() + LAST_WAIT
        ending = RequestError(503, "the service is ending.", "closed")
        for job in self._queue:  # requests that are not answered any more
            job.done.set_exception(ending)
        try:
            while self._dirty and time.monotonic() < end:
                name = next(iter(self._dirty))
                self.machines.put(name)
                del self._dirty[name]
            self.journal.trim(next(iter(self._dirty.values()), (None, 0))[0])
            self.machines.store.commit(self._whole())
        except (ArtifactError, OSError) as error:
            self._log(f"{self.name}: only the journal was saved: {error}")
        finally:
            if self._outbox:
                self._outbox.drain(LAST_WAIT)
                with contextlib.suppress(KdjaxError, OSError):  # of already taken rows
                    self.machines.store.commit(self._whole())
                self._outbox.close()
            self.log.close()  # before the store: only a writer empties and removes the WAL
            with contextlib.suppress(KdjaxError):
                self.machines.store.close()
            if self.shadow:
                self.shadow.machines.store.close()


@functools.lru_cache(LOADED)
def _load_machine(folder: Path, entity: str, _: tuple[int, str]) -> Loaded:
    return load(folder, entity=entity)


def _settle(job: Job, call: Callable[[], Any]) -> None:
    try:
        job.done.set_result(call())
    except Exception as error:  # noqa: BLE001 - the caller sees it
        job.done.set_exception(error)
