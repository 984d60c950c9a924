"""Scores rows of a text stream: one JSON line per row, each exactly once.

The state file has the stream, digests of the last answered lines and the length of the
output at that moment. A restart truncates the output to that length and skips the lines
that were answered, so that repeated input neither loses nor repeats a row.
"""

import collections
import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

import filelock

from kdjax.data.lines import Line
from kdjax.detection.false_alarms import NORMAL_AGAIN
from kdjax.detection.occurrences import json_number
from kdjax.detection.stream_batches import BatchScorer, Unchanging, answer_together
from kdjax.detection.stream_rules import plan_by
from kdjax.detection.streaming import StreamDetector, StreamRow, Taken
from kdjax.detection.timestamps import Timestamp, parse_timestamp
from kdjax.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    KdjaxError,
    check_choice,
    counted,
)
from kdjax.io.files import (
    MANIFEST,
    check_state_kind,
    check_target,
    clear_leftovers,
    is_fleet,
    load_state,
    save_state,
    sha256,
)
from kdjax.io.signals import Stopped, signals_held
from kdjax.notify.outbox import LAST_WAIT, Outbox, receivers
from kdjax.scoring.machines import Machine, Machines, Store
from kdjax.scoring.managed import Ids, Managed, Message, Spans, message_text
from kdjax.scoring.opening import NOTHING, open_streams, opener
from kdjax.scoring.readings import Answered, RowReader, is_late

ON_ERROR = ("skip", "stop")
MOST_OPEN = 1000  # entities in memory
AT_ONCE = 256  # most rows of different entities that are scored in one call
SAVE_EVERY = 1.0  # seconds between two writes of the state
SAVE_SHARE = 0.1  # largest share of the time for writing the state
KNOWN = 5000  # least number of answered lines that are kept one by one for a restart
WATCHED = 100  # lines of which half may be faulty
UNSCORED = 10  # windows, and `WATCHED` lines, that are reported if none has a score
TELL_EVERY = 1.0  # seconds between two checks for silence
SAY_EVERY = 60.0  # seconds between two reports of the same kind
SIGNAL_WAIT = 1.5  # seconds for alarm messages after a signal; a process has 3.5 to end
TWICE = (
    "its time is not after that of the row before, and the same row was answered before; "
    "remove duplicate rows."
)
_ENCODE = json.JSONEncoder(allow_nan=False).encode


class Summary(NamedTuple):
    """Rows and invalid lines, with earlier runs, and lines skipped as answered."""

    rows: int
    faulty: int
    again: int


class _Answer(NamedTuple):
    """The answer to a line."""

    text: str  # empty if an earlier run had answered it
    fault: str = ""  # of the line, or of the row before, which it withdraws
    scored: bool = False
    events: tuple[Mapping[str, Any], ...] = ()
    stream: StreamDetector | None = None  # whose row it is


class _File(NamedTuple):
    """The output."""

    write: Callable[[str], None]  # a line, without buffering
    mark: Callable[[], list[Any] | None]  # path and flushed length, None for no file


class _Alarms(NamedTuple):
    """Where messages of events are sent, if anywhere."""

    outbox: Outbox | None
    digest: str  # of the detector
    waiting: Mapping[str, Any]  # messages that an earlier run did not deliver
    managed: Managed


class _Watch:
    """Detects a stream with few scores: most lines are faulty, or none has a score.

    `scored` is whether a row had a score, `faulty` the number of invalid lines, both with
    earlier runs; `again` the number of lines that were answered before; `streams` that of
    entities, whose first rows have no score each.
    """

    def __init__(self, window: int, *, scored: bool, faulty: int) -> None:
        self.scored, self.faulty, self.again = scored, faulty, 0
        self.streams = 1
        self._latest: collections.deque[bool] = collections.deque(maxlen=WATCHED)
        self._window = window
        self._fault = ""  # the latest
        self._without = 0  # successive answers without a score
        self._due = 0.0
        self.reported = ""

    def report(self, answer: _Answer) -> str:
        """The message after an answer; empty for none, or if it was sent shortly before."""
        if not answer.text:
            self.again += 1
            return ""
        self.faulty += bool(answer.fault)
        self._latest.append(bool(answer.fault))
        self._fault = answer.fault or self._fault
        self._without = 0 if answer.scored else self._without + 1
        self.scored = self.scored or answer.scored
        found = self._problem(len(self._latest) == WATCHED)
        if not found or time.monotonic() < self._due:
            return ""
        self._due = time.monotonic() + SAY_EVERY
        self.reported = found
        return found

    def finished(self, rows: int) -> str:
        """The last message, or the one at the end."""
        problem = self._problem(bool(self._latest)) or self.reported
        if problem or self.scored:
            return problem
        return (
            f"no row has a score: {counted(rows, 'row')} in all, but a score needs "
            f"{self._window} rows without a gap: give more rows, or correct missing "
            "cells and gaps in time."
        )

    def _problem(self, enough: bool) -> str:
        faults, lines = sum(self._latest), len(self._latest)
        if enough and 2 * faults > lines:
            return (
                f"{faults} of the last {counted(lines, 'line')} are faulty, the latest: "
                f"{self._fault}"
            )
        if self._without >= self.streams * max(WATCHED, UNSCORED * self._window):
            return (
                f"the last {self._without:,} lines have no score: check the answers for "
                "missing cells, gaps in time and faulty lines."
            )
        return ""


def stream_rows(
    stream: StreamDetector,
    lines: Iterable[str],
    *,
    on_error: str = "skip",
    **reading: Any,
) -> Iterator[str]:
    """A JSON text for each row among the lines, and for events that begin and end.

    `docs/stream.md` lists their keys.

    Lines are those of `kdjax.data.lines.read_lines`. With `skip` an invalid line is
    answered with its error and the state `unknown`; with `stop` it raises a DataError.
    Lines must have the columns that `reading` names, such as `time_column="when"`.
    """
    check_choice("on_error", on_error, ON_ERROR)
    found: list[_Answer] = []
    one = _One(RowReader(plan_by(stream.plan, reading), reading), stream)
    answering = _Answering(one, found.append, on_error=on_error)
    for line in one.reader.rows(lines):
        answering.take(line)
        while found:
            yield from found.pop(0).text.splitlines()
    yield from map(event_text, stream.finish())


def run_stream(
    lines: Iterable[str | Sequence[str]],
    output: TextIO | str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    state: str | os.PathLike[str] | None = None,
    on_error: str = "skip",
    reading: Mapping[str, Any] = NOTHING,
    log: Callable[[str], None] = lambda text: None,
    entity: str | None = None,
    on_alarm: Sequence[str] = (),
    exclude: str | os.PathLike[str] = "",
    shelve: str | os.PathLike[str] = "",
    acknowledged: str | os.PathLike[str] = "",
    most_open: int = MOST_OPEN,
    **options: Any,
) -> Summary:
    """Answers lines as `stream_rows` does until they end, or until a signal.

    The program's signal handlers must be installed (`kdjax.io.signals`).

    The output is a text stream, or the path of a file to append to. The stream resumes
    from the file `state` if it exists; the file is written at the end, and at most once a
    second before. `log` is called with messages for the user; `reading`, `entity` and
    options are for `open_stream`; by default the entity is the one that rows name, if the
    detector knows it. Lines must have the columns that `reading` names.

    If `reading` names an `entity_column`, each entity has its own stream: answers have its
    name, and the state is a SQLite file of all entities, of which `most_open` are in
    memory. Lines that arrive together, as a list, are scored together: those of different
    entities, at most `AT_ONCE`.

    `exclude` names a CSV file of spans whose rows are left out (`StreamDetector.excluded`),
    `shelve` one of spans in which an event that begins has no message, and
    `acknowledged` one with ids of events, see `kdjax.scoring.managed`.

    `on_alarm` names receivers of a message when an event begins and when it ends:
    `webhook:URL`, `command:PROGRAM` or `file:PATH`. With a state, messages that were not
    delivered are kept in `STATE.alarms` and sent by the next run.

    Raises:
        DataError: at the end, if more than half of `WATCHED` successive lines were faulty,
            or none had a score for `UNSCORED` windows or at all; all lines have their
            answers.
    """
    with contextlib.ExitStack() as stack:
        check_choice("on_error", on_error, ON_ERROR)
        spool = None if state is None else Path(f"{state}.alarms")
        files = [state or "", spool or "", detector]
        if isinstance(output, (str, os.PathLike)):
            check_target(output, inputs=files)
            files.append(output)
        to = receivers(on_alarm, inputs=files)
        if (shelve or acknowledged) and not to:
            raise ConfigError(
                "shelve and acknowledged select messages of on_alarm: give on_alarm too."
            )
        excluded = Spans(Path(exclude), log) if exclude else None
        if is_fleet(detector):
            detector, entity, reading = _in_fleet(detector, entity, reading)
        fleet = is_fleet(detector)
        if state is not None:
            check_target(state, inputs=(detector,), name="state")
            lock_state(stack, Path(state))
        machines: _One | Machines
        if reading.get("entity_column"):
            streams = open_streams(detector, entity=entity, reading=reading, **options)
            streams.excluded = excluded or streams.excluded
            store = Store(None if state is None else Path(state))
            stack.callback(store.close)
            machines = Machines(
                streams, reading, store=store, most=most_open, log=log, carries=fleet
            )
        else:
            machines = _opened(detector, entity, reading, state, log, excluded, options)
        window, saved = machines.plan.window, machines.saved
        usual = machines.rows >= window  # in states of older versions
        scored, faulty = bool(saved.get("scored", usual)), int(saved.get("faulty", 0))
        watch = _Watch(window, scored=scored, faulty=faulty)
        file = _open_output(stack, output, saved)
        waiting = saved.get("alarms") or {}
        outbox = Outbox(to, spool=spool, saved=waiting, log=log) if to else None
        if outbox:
            stack.callback(outbox.close)
        if outbox and state is None:
            log(
                "without a state, alarm messages that are not delivered are lost "
                f"{LAST_WAIT:g} s after the input ends."
            )
        digest = detector_digest(Path(detector)) if to and not fleet else ""
        spans = Spans(Path(shelve), log) if shelve else None
        managed = Managed(
            lambda event, at: spans is not None and spans(event["entity"], at),
            Ids(Path(acknowledged), log) if acknowledged else lambda name: False,
            saved=saved.get("managed", ()),
        )
        alarms = _Alarms(outbox, digest, waiting, managed)
        out = _Out(machines, watch, file, alarms, log)
        answering = _Answering(machines, out.answer, out.settle, on_error=on_error)
        silence = _Silence()

        def pause() -> None:
            answering.flush()
            machines.refresh()

        source = _until_signal(lines, silence, pause)
        read = machines.reader.rows(source, machines.reader_of)
        log(machines.under())
        if saved:
            log(f"{state}: resuming after {counted(machines.rows, 'row')}")

        def tell() -> None:
            pause()
            out.events(machines.silent(time.monotonic() - silence.since))
            out.manage()
            if out.urgent:
                out.save()

        try:
            try:
                with _watching(silence, tell, log):
                    for line in read:
                        answering.take(line)
            finally:
                with contextlib.suppress(Stopped), signals_held():
                    answering.flush()
            if state is None:
                out.events([*machines.finish()])
            with contextlib.suppress(Stopped), signals_held():
                out.save()
        except DataError:
            if out.begun:
                out.save()
            raise
        finally:
            if outbox:
                outbox.drain(SIGNAL_WAIT if silence.stopped else math.inf)
        again = watch.again + machines.reader.again
        summary = Summary(machines.rows, watch.faulty, again)
        with contextlib.suppress(Stopped), signals_held():
            out.save()
        text = f"{counted(summary.rows, 'row')} in all{machines.counts()}"
        if out.drifted and machines.score:
            text += f", {len(out.drifted)} of them drifted from calibration"
        if summary.faulty:
            text += f", {counted(summary.faulty, 'invalid line')}"
        if machines.reader.repeated:
            text += (
                f", {counted(machines.reader.repeated, 'repeated reading')} left out"
            )
        if summary.again:
            text += f", {counted(summary.again, 'line')} skipped that had been answered before"
        log(text)
        if problem := watch.finished(machines.rows):
            raise DataError(problem)
        return summary


def _in_fleet(
    folder: str | os.PathLike[str], entity: str | None, reading: Mapping[str, Any]
) -> tuple[str | os.PathLike[str], str | None, Mapping[str, Any]]:
    """The detector of one machine of a fleet; or the fleet, and the entity column."""
    from kdjax.detection.fleet import machine_folder, open_machine, read_fleet

    if entity:
        return machine_folder(folder, entity), open_machine(folder, entity)[1], reading
    given = reading.get("entity_column")
    known = read_fleet(folder)["settings"]["data"]["entity_column"]
    return folder, None, {**reading, "entity_column": given or known or "entity"}


def detector_digest(path: Path) -> str:
    """The SHA-256 of a detector's manifest, which has those of its files; or of a file."""
    return sha256(path / MANIFEST if path.is_dir() else path)


def _under(stream: StreamDetector) -> str:
    return f"scoring with the threshold of {stream.plan.entity}: {stream.plan.tau:g}"


def lock_state(stack: contextlib.ExitStack, state: Path) -> None:
    """Locks the state against other programs; the lock ends with this process."""
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(filelock.FileLock(f"{state}.lock", timeout=0))
        clear_leftovers(state.parent, (state.name,))
    except filelock.Timeout:
        raise ArtifactError(
            f"{state} is in use by another stream: give each stream its own state."
        ) from None
    except OSError as error:
        raise ArtifactError(f"{state} can't be used ({error}).") from error


class _One(Unchanging):
    """The one stream of lines whose rows are of one entity, with what `Machines` has."""

    score: BatchScorer | None = None  # the stream's own
    names: Collection[str] = ("",)
    reader_of: Callable[[str], RowReader] | None = None

    def __init__(
        self,
        reader: RowReader,
        stream: StreamDetector,
        *,
        state: str | os.PathLike[str] | None = None,
        renamed: Callable[[str], StreamDetector | None] | None = None,
    ) -> None:
        self.reader, self.plan, self.accepted = reader, stream.plan, 0
        self._machine = Machine(stream, Answered(KNOWN), None)
        self._renamed, self._state = renamed, state
        known = state is not None and Path(state).exists()
        if known:
            check_state_kind(cast(str, state), several=False)
        self.saved = load_state(cast(str, state)) if known else {}
        if self.saved:
            self._restore(self.saved)

    @property
    def rows(self) -> int:
        """Rows that were accepted, with those of earlier runs."""
        return self._machine.stream.rows

    def of(self, name: str) -> Machine:
        """The stream, whatever the name; before its first row the one for the rows' entity."""
        machine, named = self._machine, self.reader.entity
        if self._renamed and named:
            if not machine.stream.rows:
                machine.stream = self._renamed(named) or machine.stream
            machine.stream.entity = named
        return machine

    def came(self, name: str) -> None:
        """Does nothing: the time of the latest line is known."""

    def shrink(self) -> None:
        """Does nothing."""

    def silent(self, seconds: float) -> Sequence[Mapping[str, Any]]:
        """Events that begin because no line has come for so many seconds."""
        return self.of("").stream.silent(seconds)

    def finish(self) -> Sequence[Mapping[str, Any]]:
        """Ends the open events."""
        return self.of("").stream.finish()

    def under(self) -> str:
        """A message on the threshold that is used."""
        return _under(self._machine.stream)

    def counts(self) -> str:
        """Empty: no further message at the end."""
        return ""

    def kept(self) -> dict[str, Any]:
        """For `save`."""
        machine = self.of("")
        return {
            "stream": machine.stream.state(),
            "answered": machine.answered.state(),
            "readings": self.reader.state(),
        }

    def save(self, kept: Mapping[str, Any], mark: Callable[[], Any]) -> None:
        """Writes the result of `kept`, with further keys and a mark, if there is a state."""
        if self._state is not None:
            save_state(self._state, {**kept, "output": mark()})

    def _restore(self, saved: Mapping[str, Any]) -> None:
        try:
            if "readings" in saved:
                self.reader.restore(saved["readings"])
            stream, answered = self.of("").stream, self._machine.answered
            stream.restore(saved["stream"])
            # Version 0.1.0 has only the time up to which rows were answered.
            usual = {"lines": ["", ""], "since": [[*stream.last]] * 2}
            answered.restore(saved.get("answered", usual))
            int(saved["faulty"])
        except (LookupError, OverflowError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the state was not written by `stream` ({error}): remove it to start again."
            ) from error
        # Rows without times can't be distinguished from rows sent again.
        answered.next = 0 if stream.last.clock else None


def _opened(
    detector: str | os.PathLike[str],
    entity: str | None,
    reading: Mapping[str, Any],
    state: str | os.PathLike[str] | None,
    log: Callable[[str], None],
    excluded: Spans | None,
    options: Mapping[str, Any],
) -> _One:
    """The stream of one entity: `entity`, else the one that rows name if it is known."""
    entities, opened = opener(detector, reading=reading, **options)

    def open_entity(entity: str | None) -> StreamDetector:
        stream = opened(entity)
        stream.excluded = excluded or stream.excluded
        return stream

    stream = open_entity(entity)

    def renamed(named: str) -> StreamDetector | None:
        nonlocal stream
        other = entity is None and named in entities and named != stream.plan.entity
        if not other:
            return None
        stream = open_entity(named)
        log(_under(stream))
        return stream

    return _One(RowReader(stream.plan, reading), stream, state=state, renamed=renamed)


def _open_output(
    stack: contextlib.ExitStack,
    output: TextIO | str | os.PathLike[str],
    saved: Mapping[str, Any],
) -> _File:
    """The output; a file is truncated to the length in the saved state."""
    if not isinstance(output, (str, os.PathLike)):

        def write(text: str) -> None:
            output.write(text + "\n")
            output.flush()

        return _File(write, lambda: None)
    path = Path(output).resolve()
    mode = "r+b" if path.exists() else "w+b"
    if mode == "w+b":

        def remove_empty(kind: type[BaseException] | None, *_: object) -> None:
            failed = kind is not None and issubclass(kind, KdjaxError)
            if failed and path.is_file() and not path.stat().st_size:
                path.unlink()

        stack.push(remove_empty)
    try:
        file = stack.enter_context(path.open(mode, buffering=0))
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be written ({error}): check permissions, or give another file."
        ) from error
    size = file.seek(0, os.SEEK_END)
    name, length = saved.get("output") or (None, 0)
    if name == str(path):
        if size < length:
            raise ArtifactError(
                f"{path} has {size} bytes, but {length} when the state was written: restore "
                "it, or remove the state to start again."
            )
        file.truncate(length)
        file.seek(length)
    elif size:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            raise ArtifactError(
                f"{path} ends inside a line: complete it, or give another file."
            )

    def append(text: str) -> None:
        line = f"{text}\n".encode()
        while line:  # a full disk may take a part of it
            line = line[file.write(line) :]

    def mark() -> list[Any]:
        os.fsync(file.fileno())
        return [str(path), file.tell()]

    return _File(append, mark)


class _Item(NamedTuple):
    """A line that waits for its answer."""

    line: Line
    instant: Timestamp | None
    machine: Machine
    taken: Taken | None  # None for a fault, or a line that was answered before
    fault: str = ""


class _Answering:
    """Answers lines: rows of different entities that arrive together are scored together."""

    def __init__(
        self,
        machines: _One | Machines,
        answer: Callable[[_Answer], None],
        settle: Callable[[], None] = lambda: None,
        *,
        on_error: str,
    ) -> None:
        self._machines, self._answer, self._settle = machines, answer, settle
        self._stops, self._several = on_error == "stop", machines.score is not None
        self._items: list[_Item] = []
        self._waiting: set[int] = set()  # machines by their identity
        self._again = False  # whether the line before was a repeated one

    def take(self, line: Line) -> None:
        """Takes a line; `flush` answers it at the latest."""
        machines, owner = self._machines, line.entity
        if machines.refusal(owner) and machines.stale():
            self.flush()
            machines.refresh()
        if why := machines.refusal(owner):
            line, owner = line._replace(row=[], error=why), ""
        machine = machines.of(owner)
        machines.came(owner)
        if id(machine) in self._waiting:
            self.flush()
        machine.changed = True  # since `flush` saved
        stream, answered = machine.stream, machine.answered
        fault, instant, taken = line.error, None, None
        try:
            if not (fault and line.time is None):
                instant = parse_timestamp(line.time)
        except DataError as error:
            fault = fault or str(error)
        if self._several and machines.accepted and not owner:
            answered.next, answered.older = None, False  # a new row came before it
        follows = self._again and self._several
        self._again = answered.comes_again(line, instant, follows=follows)
        if self._again:
            self._answer(_Answer(""))
            if not self._items:
                machines.shrink()
            return
        if not fault and is_late(instant, stream.last) and answered.has(line, instant):
            fault = TWICE
        if not fault:
            try:
                said = line.time if instant and instant.clock else None
                taken = stream.take(line.row, instant, said=said)
                answered.next = None
                machines.accepted += 1
            except DataError as error:
                fault = str(error)
        if fault and self._stops:
            self.flush()
            raise DataError(f"line {line.number}: {fault}")
        self._items.append(_Item(line, instant, machine, taken, fault))
        self._waiting.add(id(machine))
        if machines.score is None or len(self._items) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Answers all taken lines, in their order."""
        if not self._items:
            return
        items, self._items = self._items, []
        self._waiting.clear()
        pairs = [(one.machine.stream, one.taken) for one in items if one.taken]
        rows = iter(answer_together(pairs, self._machines.score))
        for item in items:
            row = next(rows) if item.taken else None
            self._answer(self._answered(item, row))
        self._machines.shrink()
        self._settle()

    def _answered(self, item: _Item, row: StreamRow | None) -> _Answer:
        line, fault, stream = item.line, item.fault, item.machine.stream
        item.machine.answered.add(line, item.instant, stream.last)
        events = row.events if row else ()
        name = line.entity if self._several else None
        text = answer_text(line, row, fault, moves=stream.moves, name=name)
        if row and row.taken_back:
            fault = (
                f"row {row.row - 1} was ahead of its time: row {row.row} is earlier, and "
                "the stream continues without it."
            )
        # Excluded rows have no score by intention.
        scored = row is not None and (row.left_out or not math.isnan(row.score))
        text = "\n".join([text, *map(event_text, events)])
        return _Answer(text, fault, scored, events, stream if row else None)


def event_text(found: Mapping[str, Any]) -> str:
    """The JSON text of an event that begins or ends."""
    return _ENCODE({"row": None, "event": found})


def answer_text(
    line: Line, row: StreamRow | None, fault: str, *, moves: bool, name: str | None
) -> str:
    """The JSON text of a row, or of a faulty line; `name` is that of its entity."""
    if row and name and not (row.alarm or row.taken_back or row.left_out or moves):
        score, other = _number_text(row.score), _number_text(row.window_score)
        time = repr(line.time) if type(line.time) is int else _ENCODE(line.time)
        return (  # as the encoder writes it, in half the time
            f'{{"row": {row.row}, "time": {time}, "score": {score}, '
            f'"window_score": {other}, "alarm": 0, "state": "{row.state}", '
            f'"entity": {_ENCODE(name)}}}'
        )
    known = row is not None or line.time is None or isinstance(line.time, (str, int))
    answer: dict[str, Any] = {
        "row": row and row.row,
        "time": line.time if known else str(line.time),
        "score": row and json_number(row.score),
        "window_score": row and json_number(row.window_score),
        "alarm": int(row.alarm) if row else 0,
        "state": row.state if row else "unknown",
    }
    if name is not None:
        answer["entity"] = name or None
    if not row:
        answer |= {"line": line.number, "error": fault}
    elif moves:
        answer["tau"] = json_number(row.tau)
    if row and row.taken_back:
        answer["taken_back"] = row.row - 1
    if row and row.left_out:
        answer["excluded"] = True
    if row and row.alarm:
        answer["channels"] = row.channels
    return _ENCODE(answer)


def _number_text(value: float) -> str:
    return repr(value) if math.isfinite(value) else _ENCODE(json_number(value))


class _Out:
    """Writes answers, events, alarm messages and the state of a run."""

    def __init__(
        self,
        machines: _One | Machines,
        watch: _Watch,
        file: _File,
        alarms: _Alarms,
        log: Callable[[str], None],
    ) -> None:
        self._machines, self._watch, self._log = machines, watch, log
        self._file, self._alarms = file, alarms
        self.begun = False  # whether anything was written
        # The first answer comes after its row was taken.
        self._before = self._kept()
        self._due = time.monotonic() + SAVE_EVERY
        self.urgent = False  # whether messages wait for a save
        self.drifted: dict[str, bool] = {}  # entity: whether its scores are higher
        self._drift_due = 0.0

    def answer(self, answer: _Answer) -> None:
        """Writes an answer and its message, if any."""
        if answer.text:
            # If this fails, the state is not saved, and a restart answers this row again.
            self._put(answer.text)
        if answer.fault and not self._watch.faulty:
            self._log(f"an invalid line: {answer.fault} Further ones are only counted.")
        self._watch.streams = max(1, len(self._machines.names))
        if problem := self._watch.report(answer):
            self._log(problem)
        if answer.stream is not None:
            self._look_for_drift(answer.stream)
        self._announce(answer.events)

    def events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Writes events that did not begin or end with a row."""
        if events:
            self._put("\n".join(map(event_text, events)))
            self._announce(events)

    def settle(self) -> None:
        """Saves the state if it is due, or if alarm messages wait for it."""
        due = time.monotonic() >= self._due
        if due or self._alarms.managed.holds():
            self.manage()
        if due or self.urgent:
            self.save()

    def save(self) -> None:
        """Saves the state; each taken line has its answer by then."""
        begun = time.monotonic()
        self._save(self._kept())
        now = time.monotonic()
        self.urgent = False
        self._due = now + max(SAVE_EVERY, (now - begun) / SAVE_SHARE)

    def _put(self, text: str) -> None:
        """Writes a text, or raises KdjaxError."""
        if not self.begun:
            self._save(self._before)  # before anything is written to the output
            self.begun = True
        try:
            self._file.write(text)
        except OSError as error:
            raise KdjaxError(
                f"the output can't be written ({error}): free disk space or unblock its "
                "reader, then rerun the command; with a state it resumes."
            ) from error

    def _announce(self, events: Sequence[Mapping[str, Any]]) -> None:
        managed = self._alarms.managed
        if self._alarms.outbox:
            for event in events:
                clock = self._last(event["entity"]).clock
                self._send(managed.changed(event, clock))

    def manage(self) -> None:
        """Sends messages after decisions of operators on open events."""
        if self._alarms.outbox:
            self._send(self._alarms.managed.due(self._last))

    def _last(self, entity: str) -> Timestamp:
        """The time, or the number, of an entity's last row."""
        if self._machines.refusal(entity):  # it was removed from the fleet
            return Timestamp("", 0)
        stream = self._machines.of(entity).stream
        return stream.last if stream.last.clock else Timestamp("", stream.rows - 1)

    def _send(self, messages: Sequence[Message]) -> None:
        """Puts messages into the outbox; `save` sends them."""
        if self._alarms.outbox and messages:
            known, machines = self._alarms.digest, self._machines
            self._alarms.outbox.add(
                message_text(event, phase, known or machines.digest(event["entity"]))
                for event, phase in messages
            )
            self.urgent = True

    def _look_for_drift(self, stream: StreamDetector) -> None:
        if stream.rows % stream.plan.window:
            return
        found, name = stream.drift(), stream.entity
        if found.distance < NORMAL_AGAIN:
            self.drifted.pop(name, None)
        elif found.drifted and self.drifted.get(name) != found.higher:
            self.drifted[name] = found.higher
            if time.monotonic() < self._drift_due:
                return  # the message at the end counts them
            several = self._machines.score is not None
            self._drift_due = time.monotonic() + SAY_EVERY * several
            self._log(f"{name}: " * several + f"{found}.")

    def _kept(self) -> dict[str, Any]:
        outbox, waiting = self._alarms.outbox, self._alarms.waiting
        return {
            **self._machines.kept(),
            "faulty": self._watch.faulty,
            "scored": self._watch.scored,
            "alarms": outbox.state() if outbox else waiting,
            "managed": self._alarms.managed.state(),
        }

    def _save(self, kept: Mapping[str, Any]) -> None:
        # The mark flushes the answers that the state counts.
        self._machines.save(kept, self._file.mark)
        if self._alarms.outbox:
            self._alarms.outbox.release(kept["alarms"])


class _Silence:
    """How long no line has come; only one thread at a time may use the stream."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.since = time.monotonic()
        self.stopped = False  # by a signal


@contextlib.contextmanager
def _watching(
    silence: _Silence, tell: Callable[[], None], log: Callable[[str], None]
) -> Iterator[None]:
    """Calls `tell` each second from another thread, since a read may block for long."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(TELL_EVERY):
            # A thread with the lock is answering a line, so there is no silence.
            if not silence.lock.acquire(blocking=False):
                continue
            try:
                tell()
            except (KdjaxError, OSError) as error:
                log(f"an event can't be written ({error})")
                return
            finally:
                silence.lock.release()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _until_signal(
    lines: Iterable[str | Sequence[str]], silence: _Silence, flush: Callable[[], None]
) -> Iterator[str]:
    """The lines up to SIGTERM or SIGINT; a row in progress is finished first.

    `flush` is called before waiting for lines: after those that arrived together.
    """
    try:
        for found in lines:
            together = [found] if isinstance(found, str) else found
            for number, line in enumerate(together, start=1):
                with signals_held(), silence.lock:
                    silence.since = time.monotonic()
                    yield line
                    if number == len(together):
                        flush()
    except KeyboardInterrupt:
        silence.stopped = True
        return
    except UnicodeDecodeError as error:
        raise DataError(f"the input is not UTF-8 text ({error}).") from None
