"""Scores rows of a text stream: one JSON line per row, each exactly once.

The state file holds the stream, digests of the last answered lines and the length of the
output at that moment. A restart truncates the output to that length and skips the lines
that were answered, so input that is sent again neither loses nor repeats a row.
"""

import array
import base64
import collections
import contextlib
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import filelock
import numpy as np

from kdjax.data.lines import Line
from kdjax.detection.occurrences import json_number
from kdjax.detection.stream_rules import plan_by
from kdjax.detection.streaming import (
    StreamDetector,
    StreamRow,
    Timestamp,
    WindowResult,
    as_timestamp,
    parse_timestamp,
)
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
    check_target,
    clear_leftovers,
    load_state,
    save_state,
    sha256,
)
from kdjax.io.signals import Stopped, signals_held
from kdjax.notify.outbox import LAST_WAIT, Outbox, receivers
from kdjax.scoring.readings import RowReader

if TYPE_CHECKING:
    from kdjax.export.container import Scorer

BACKENDS = ("jax", "onnxruntime")
ON_ERROR = ("skip", "stop")
SAVE_EVERY = 1.0  # seconds between two writes of the state
KNOWN = 5000  # answered lines, at least, that are known one by one after a restart
WATCHED = 100  # lines of which half may be at fault
UNSCORED = 10  # windows, and `WATCHED` lines, that are reported if none has a score
TELL_EVERY = 1.0  # seconds between two looks for silence
SAY_EVERY = 60.0  # seconds between two reports of the same kind
SIGNAL_WAIT = 1.5  # seconds for alarm messages after a signal; a process has 3.5 to end
NOTHING: Mapping[str, Any] = MappingProxyType({})
_ENCODE = json.JSONEncoder(allow_nan=False).encode


class Summary(NamedTuple):
    """Rows and invalid lines, with earlier runs, and lines skipped as answered."""

    rows: int
    faulty: int
    again: int


class _Answer(NamedTuple):
    """What came of a line."""

    text: str  # empty if an earlier run had answered it
    fault: str = ""  # of the line, or of the row before that it takes back
    scored: bool = False
    events: tuple[Mapping[str, Any], ...] = ()


class _Answered:
    """The lines that were answered before, by digests of the last ones.

    After a restart the lines that come again do so in their order.
    """

    def __init__(self) -> None:
        # Lines in two parts; once the newer one is full it takes the older one's place.
        self._lines = [array.array("I"), array.array("I")]
        # Rows up to the time at which a part begins were all answered.
        self._since = [Timestamp("", 0), Timestamp("", 0)]
        # The next of the known lines to come again: the first after a restart; None
        # once a row was new.
        self.next: int | None = None
        self._older = False  # whether the line before was older than the known ones

    def add(self, line: Line, instant: Timestamp | None, last: Timestamp) -> None:
        """Notes an answered line; `last` is the time of the last row taken in."""
        if len(self._lines[1]) >= KNOWN:
            self._lines = [self._lines[1], array.array("I")]
            self._since = [self._since[1], last]
        # A clock that was set back: rows of those times are not known to be answered.
        self._since = [
            min(time, last) if time.clock == last.clock else Timestamp("", 0)
            for time in self._since
        ]
        self._lines[1].append(_digest(line, instant))

    def has(self, line: Line, instant: Timestamp | None) -> bool:
        """Whether a line is one of the last answered ones."""
        return any(_digest(line, instant) in part for part in self._lines)

    def comes_again(self, line: Line, instant: Timestamp | None) -> bool:
        """Whether an earlier run answered a line; no `instant` for an unreadable time."""
        if self.next is None:
            return False
        if instant is not None:
            self._older = not self.next and _is_late(instant, self._since[0])
        if not self._older:
            known, place = self._lines[0] + self._lines[1], self.next
            # Faults without a time may look alike: only the next one is meant.
            stop = len(known) if instant else place + 1
            with contextlib.suppress(ValueError):
                self.next = known.index(_digest(line, instant), place, stop) + 1
                return True
        return self._older

    def state(self) -> dict[str, Any]:
        """For `restore`, as JSON values."""
        parts = [np.array(part, "<u4").tobytes() for part in self._lines]
        lines = [base64.b64encode(part).decode() for part in parts]
        return {"lines": lines, "since": [[*time] for time in self._since]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; LookupError, TypeError or ValueError if it is none."""
        parts = [base64.b64decode(part, validate=True) for part in state["lines"]]
        older, newer = (array.array("I", np.frombuffer(p, "<u4")) for p in parts)
        first, second = (as_timestamp(*time) for time in state["since"])
        self._lines, self._since = [older, newer], [first, second]


def _digest(line: Line, instant: Timestamp | None) -> int:
    """Of a line's time, values and error, however the time is written."""
    time = f"{instant.clock} {instant.value}" if instant else line.time
    text = f"{time}\n{line.error}\n".encode("utf-8", "surrogatepass")
    return zlib.crc32(array.array("d", line.row).tobytes(), zlib.crc32(text))


class _Watch:
    """Notices a stream that hardly answers: most lines at fault, or no score for long.

    `scored` is whether a row had a score, `faulty` the number of invalid lines, both with
    earlier runs; `again` the number of lines that were answered before.
    """

    def __init__(self, window: int, *, scored: bool, faulty: int) -> None:
        self.scored, self.faulty, self.again = scored, faulty, 0
        self._latest: collections.deque[bool] = collections.deque(maxlen=WATCHED)
        self._most = max(WATCHED, UNSCORED * window)
        self._fault = ""  # the latest
        self._without = 0  # answers without a score in a row
        self._due = 0.0
        self.reported = ""

    def report(self, answer: _Answer) -> str:
        """What to say after an answer; empty for nothing, or if it was just said."""
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

    def finished(self, stream: StreamDetector) -> str:
        """What was said, or is to be said at the end."""
        problem = self._problem(bool(self._latest)) or self.reported
        if problem or self.scored:
            return problem
        return (
            f"no row has a score: {counted(stream.rows, 'row')} in all, and a score needs "
            f"{stream.plan.window} rows without a gap; give more rows, or look for missing "
            "cells and gaps in time among them."
        )

    def _problem(self, enough: bool) -> str:
        faults, lines = sum(self._latest), len(self._latest)
        if enough and 2 * faults > lines:
            return (
                f"{faults} of the last {counted(lines, 'line')} at fault, the latest: "
                f"{self._fault}"
            )
        if self._without >= self._most:
            return (
                f"the last {self._without:,} lines have no score: look for missing "
                "cells, gaps in time and lines at fault among the answers."
            )
        return ""


def open_stream(
    path: str | os.PathLike[str],
    *,
    backend: str = "jax",
    entity: str | None = None,
    adaptive_step: float = 0.0,
    rolling: float = 0.0,
    reading: Mapping[str, Any] = NOTHING,
) -> StreamDetector:
    """The stream of a saved detector, ready for its first row.

    Args:
        path: a detector's folder, or an ONNX file of one for `onnxruntime`.
        backend: one of `BACKENDS`.
        entity: whose scaler, Gaussian and threshold to use; by default those of the only
            entity, else the pooled ones, or those in the file.
        adaptive_step, rolling: see `StreamDetector`.
        reading: how rows are read, where it differs from training: options of
            `kdjax.data.readers.read_table`.

    >>> stream = open_stream("runs/plant/detectors/student")  # doctest: +SKIP
    >>> stream.update([0.5, 21.0, 3.2]).state  # doctest: +SKIP
    'unknown'
    """
    moving = {"adaptive_step": adaptive_step, "rolling": rolling}
    return _opener(path, backend, reading, **moving)[1](entity)


def _opener(
    path: str | os.PathLike[str],
    backend: str = "jax",
    reading: Mapping[str, Any] = NOTHING,
    **moving: float,
) -> tuple[Sequence[str], Callable[[str | None], StreamDetector]]:
    """A detector's entities, and a function that opens the stream of one of them.

    For None it opens that of the usual entity. A file has that of its own only.
    """
    check_choice("backend", backend, BACKENDS)
    path = Path(path)
    if backend == "onnxruntime" and not path.is_dir():
        from kdjax.export.container import load_onnx

        scorer = load_onnx(path)

        def open_file(entity: str | None) -> StreamDetector:
            if entity not in (None, scorer.plan.entity):
                raise ConfigError(
                    f"{path} was exported for entity {scorer.plan.entity!r}, not "
                    f"{entity!r}: leave the entity out, or export the detector for it."
                )
            return _onnx_stream(scorer, reading, moving)

        return (), open_file
    if path.is_file():
        raise ConfigError(
            f"{path} is a file: give the detector's folder, or backend=onnxruntime for "
            "an ONNX file."
        )
    from kdjax.detection.detector import entity_index, stream_detector, usual_entity
    from kdjax.detection.storage import load_detector

    loaded = load_detector(path)

    def open_entity(entity: str | None) -> StreamDetector:
        used = entity or usual_entity(loaded)
        if backend == "onnxruntime":
            from kdjax.export.container import load_onnx
            from kdjax.export.onnx import onnx_file

            scorer = load_onnx(onnx_file(loaded, entity_index(loaded, used)))
            return _onnx_stream(scorer, reading, moving)
        stream = stream_detector(loaded, entity=used, reading=reading, **moving)
        stream.drift()  # imports what it needs now rather than between two rows
        return stream

    return loaded.entities, open_entity


def _onnx_stream(
    scorer: "Scorer", reading: Mapping[str, Any], moving: Mapping[str, Any]
) -> StreamDetector:
    def score(windows: np.ndarray) -> WindowResult:
        points, found, _, parts = scorer.run(windows)
        return WindowResult(points[0], float(found[0]), parts[0])

    return StreamDetector(plan_by(scorer.plan, reading), score, **moving)


def stream_rows(
    stream: StreamDetector,
    lines: Iterable[str],
    *,
    on_error: str = "skip",
    **reading: Any,
) -> Iterator[str]:
    """A JSON text for each row among the lines, and for events that begin and end.

    `docs/stream.md` lists their keys.

    Lines are those of `kdjax.data.lines.read_lines`. By `skip` an invalid line is
    answered with its error and the state `unknown`; `stop` raises a DataError. Lines must
    have the columns that `reading` names, such as `time_column="when"`.
    """
    read = RowReader(plan_by(stream.plan, reading), reading).rows(lines)
    for answer in _answers(lambda: stream, read, _Answered(), on_error=on_error):
        yield from answer.text.splitlines()
    yield from map(_event, stream.finish())


def run_stream(
    lines: Iterable[str],
    output: TextIO | str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    state: str | os.PathLike[str] | None = None,
    on_error: str = "skip",
    reading: Mapping[str, Any] = NOTHING,
    log: Callable[[str], None] = lambda text: None,
    entity: str | None = None,
    on_alarm: Sequence[str] = (),
    **options: Any,
) -> Summary:
    """Answers lines as `stream_rows` does until they end, or until a signal.

    The program's handlers must be installed for it (`kdjax.io.signals`).

    The output is a text stream, or the path of a file to append to. The stream resumes
    from the file `state` if it exists; it is written at the end, and at most once a second
    before. `log` is called with messages for the user; `reading`, `entity` and options are
    for `open_stream`; by default the entity is the one that rows name, if the detector knows
    it. Lines must have the columns that `reading` names.

    `on_alarm` names receivers of a message when an event begins and when it ends:
    `webhook:URL`, `command:PROGRAM` or `file:PATH`. With a state those that were not
    delivered lie beside it, in `STATE.alarms`, and are sent by the next run.

    Raises:
        DataError: at the end, if more than half of `WATCHED` lines in a row were at fault,
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
        if state is not None:
            check_target(state, inputs=(detector,), name="state")
            _lock(stack, Path(state))
        entities, open_entity = _opener(detector, reading=reading, **options)
        stream = open_entity(entity)
        reader = RowReader(stream.plan, reading)

        def current() -> StreamDetector:
            nonlocal stream
            named = reader.entity  # known from the first row on
            other = entity is None and named in entities and named != stream.plan.entity
            if other and not stream.rows:
                stream = open_entity(named)
                log(_under(stream))
            stream.entity = named or stream.plan.entity
            return stream

        saved = load_state(state) if state is not None and Path(state).exists() else {}
        answered = _Answered()
        faulty = _restore(current, answered, reader, saved) if saved else 0
        usual = stream.rows >= stream.plan.window  # in states of before
        scored = bool(saved.get("scored", usual))
        watch = _Watch(stream.plan.window, scored=scored, faulty=faulty)
        write, mark = _open_output(stack, output, saved)
        alarms = saved.get("alarms") or {}
        outbox = Outbox(to, spool=spool, saved=alarms, log=log) if to else None
        if outbox:
            stack.callback(outbox.close)
        digest = _detector_digest(Path(detector)) if to else ""
        if outbox and state is None:
            log(
                "without a state, alarm messages that are not delivered are lost "
                f"{LAST_WAIT:g} s after the input ends."
            )
        silence = _Silence()
        read = reader.rows(_until_signal(lines, silence))
        log(_under(stream))
        if saved:
            log(f"{state}: going on after {counted(stream.rows, 'row')}")

        def kept() -> dict[str, Any]:
            stream = current()
            return {
                "stream": stream.state(),
                "answered": answered.state(),
                "readings": reader.state(),
                "faulty": watch.faulty,
                "scored": watch.scored,
                "alarms": outbox.state() if outbox else alarms,
            }

        def save(state_of: Mapping[str, Any]) -> None:
            if state is not None:
                # The mark flushes the answers that the state counts.
                save_state(state, {**state_of, "output": mark()})
            if outbox:
                outbox.release(state_of["alarms"])

        def announce(events: Sequence[Mapping[str, Any]]) -> bool:
            """Puts messages of events into the outbox; `save` sends them."""
            if outbox and events:
                outbox.add(_alarm(event, digest) for event in events)
            return bool(outbox and events)

        def tell() -> None:
            if events := current().silent(time.monotonic() - silence.since):
                write("\n".join(map(_event, events)))
                announce(events)
                save(kept())

        answers = _answers(current, read, answered, on_error=on_error)
        try:
            with _watching(silence, tell, log):
                _write(answers, current, write, watch, kept, save, announce, log)
            if state is None and (events := current().finish()):
                _put(write, "\n".join(map(_event, events)))
                announce(events)
            with contextlib.suppress(Stopped), signals_held():
                save(kept())
        finally:
            if outbox:
                outbox.drain(SIGNAL_WAIT if silence.stopped else math.inf)
        again = watch.again + reader.again
        summary = Summary(current().rows, watch.faulty, again)
        with contextlib.suppress(Stopped), signals_held():
            save(kept())
        text = f"{counted(summary.rows, 'row')} in all"
        if summary.faulty:
            text += f", {counted(summary.faulty, 'invalid line')}"
        if reader.repeated:
            text += f", {counted(reader.repeated, 'repeated reading')} left out"
        if summary.again:
            text += f", {counted(summary.again, 'line')} skipped that had been answered before"
        log(text)
        if problem := watch.finished(current()):
            raise DataError(problem)
        return summary


def _detector_digest(path: Path) -> str:
    """The SHA-256 of a detector's manifest, which has those of its files, or of a file."""
    return sha256(path / MANIFEST if path.is_dir() else path)


def _alarm(event: Mapping[str, Any], digest: str) -> str:
    """The message of an event that begins or ends."""
    phase = "begin" if event["end"] is None else "end"
    return _ENCODE({**event, "detector": digest, "phase": phase})


def _under(stream: StreamDetector) -> str:
    return f"scoring under the threshold of {stream.plan.entity}: {stream.plan.tau:g}"


def _lock(stack: contextlib.ExitStack, state: Path) -> None:
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


def _restore(
    current: Callable[[], StreamDetector],
    answered: _Answered,
    reader: RowReader,
    saved: Mapping[str, Any],
) -> int:
    """Restores a saved state; the number of lines that were at fault."""
    try:
        if "readings" in saved:
            reader.restore(saved["readings"])
        stream = current()
        stream.restore(saved["stream"])
        # Version 0.1.0 has only the time up to which rows were answered.
        usual = {"lines": ["", ""], "since": [[*stream.last]] * 2}
        answered.restore(saved.get("answered", usual))
        faulty = int(saved["faulty"])
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the state was not written by `stream` ({error}): remove it to start anew."
        ) from error
    # Rows without times can't be told from rows sent again.
    answered.next = 0 if stream.last.clock else None
    return faulty


def _open_output(
    stack: contextlib.ExitStack,
    output: TextIO | str | os.PathLike[str],
    saved: Mapping[str, Any],
) -> tuple[Callable[[str], None], Callable[[], list[Any] | None]]:
    """Writes a line without buffering; gives path and flushed length, None for no file.

    A file is truncated to the length in the saved state.
    """
    if not isinstance(output, (str, os.PathLike)):

        def write(text: str) -> None:
            output.write(text + "\n")
            output.flush()

        return write, lambda: None
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
            f"{path} can't be written ({error}): check its rights, or give another file."
        ) from error
    size = file.seek(0, os.SEEK_END)
    name, length = saved.get("output") or (None, 0)
    if name == str(path):
        if size < length:
            raise ArtifactError(
                f"{path} has {size} bytes, {length} when the state was written: restore "
                "it, or remove the state to start anew."
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

    return append, mark


def _answers(
    current: Callable[[], StreamDetector],
    lines: Iterable[Line],
    answered: _Answered,
    *,
    on_error: str,
) -> Iterator[_Answer]:
    """What comes of each line; one that an earlier run answered is skipped."""
    check_choice("on_error", on_error, ON_ERROR)
    for line in lines:
        stream = current()
        fault, instant, row = line.error, None, None
        try:
            if not (fault and line.time is None):
                instant = parse_timestamp(line.time)
        except DataError as error:
            fault = fault or str(error)
        if answered.comes_again(line, instant):
            yield _Answer("")
            continue
        if not fault and _is_late(instant, stream.last) and answered.has(line, instant):
            fault = (
                "its time is not after that of the row before, and the same row was "
                "answered before; remove rows that came twice."
            )
        if not fault:
            try:
                said = line.time if instant and instant.clock else None
                row = stream.update(line.row, instant, said=said)
                answered.next = None
            except DataError as error:
                fault = str(error)
        if fault and on_error == "stop":
            raise DataError(f"line {line.number}: {fault}")
        answered.add(line, instant, stream.last)
        events = map(_event, row.events if row else ())
        text = "\n".join([_answer(line, row, fault, moves=stream.moves), *events])
        if row and row.taken_back:
            fault = (
                f"row {row.row - 1} was ahead of its time: row {row.row} is earlier, and "
                "the stream goes on without it."
            )
        scored = row is not None and not math.isnan(row.score)
        yield _Answer(text, fault, scored, row.events if row else ())


def _event(found: Mapping[str, Any]) -> str:
    return _ENCODE({"row": None, "event": found})


def _is_late(instant: Timestamp | None, last: Timestamp) -> bool:
    """Whether a time is on the clock of the last row and not later."""
    return instant is not None and instant.clock == last.clock != "" and instant <= last


def _answer(line: Line, row: StreamRow | None, fault: str, *, moves: bool) -> str:
    """The JSON text of a row, or of a line at fault."""
    known = row is not None or line.time is None or isinstance(line.time, (str, int))
    answer: dict[str, Any] = {
        "row": row and row.row,
        "time": line.time if known else str(line.time),
        "score": row and json_number(row.score),
        "window_score": row and json_number(row.window_score),
        "alarm": int(row.alarm) if row else 0,
        "state": row.state if row else "unknown",
    }
    if not row:
        answer |= {"line": line.number, "error": fault}
    elif moves:
        answer["tau"] = json_number(row.tau)
    if row and row.taken_back:
        answer["taken_back"] = row.row - 1
    if row and row.alarm:
        answer["channels"] = row.channels
    return _ENCODE(answer)


def _put(write: Callable[[str], None], text: str) -> None:
    """Writes a text, or raises KdjaxError."""
    try:
        write(text)
    except OSError as error:
        raise KdjaxError(
            f"the output can't be written ({error}): make room or free its reader, then "
            "run the same command again; with a state it resumes."
        ) from error


def _write(
    answers: Iterator[_Answer],
    current: Callable[[], StreamDetector],
    write: Callable[[str], None],
    watch: _Watch,
    kept: Callable[[], dict[str, Any]],
    save: Callable[[Mapping[str, Any]], None],
    announce: Callable[[Sequence[Mapping[str, Any]]], bool],
    log: Callable[[str], None],
) -> None:
    """Writes the answers and, at intervals or to send alarms, the state."""
    before = kept()  # The first answer comes after its row was taken in.
    due, drifted, begun = time.monotonic() + SAVE_EVERY, False, False
    try:
        for answer in answers:
            if not begun:
                save(before)  # Before anything is written to the output.
                begun = True
            if answer.text:
                # If it can't, the state is not saved, and a restart answers this row again.
                _put(write, answer.text)
            if answer.fault and not watch.faulty:
                log(f"an invalid line: {answer.fault} Further ones are only counted.")
            if problem := watch.report(answer):
                log(problem)
            stream = current()
            if stream.rows % stream.plan.window == 0:
                found = stream.drift()
                if found.drifted and not drifted:
                    log(
                        f"the scores of the last {found.n} windows have drifted from "
                        f"those of calibration (distance {found.distance:.2f}): the "
                        "wanted false-alarm rate no longer holds. Recalibrate on recent "
                        "clean rows by `kdjax calibrate`."
                    )
                drifted = found.drifted
            if announce(answer.events) or time.monotonic() >= due:
                save(kept())
                due = time.monotonic() + SAVE_EVERY
    except DataError:
        if begun:
            save(kept())
        raise


class _Silence:
    """How long no line has come; one thread at a time may use the stream."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.since = time.monotonic()
        self.stopped = False  # by a signal


@contextlib.contextmanager
def _watching(
    silence: _Silence, tell: Callable[[], None], log: Callable[[str], None]
) -> Iterator[None]:
    """Calls `tell` each second from another thread, since a read may wait for long."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(TELL_EVERY):
            # Who holds the lock answers a line, so there is no silence.
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


def _until_signal(lines: Iterable[str], silence: _Silence) -> Iterator[str]:
    """The lines up to SIGTERM or SIGINT; a row in progress is finished first."""
    try:
        for line in lines:
            with signals_held(), silence.lock:
                silence.since = time.monotonic()
                yield line
    except KeyboardInterrupt:
        silence.stopped = True
        return
    except UnicodeDecodeError as error:
        raise DataError(f"the input is not UTF-8 text ({error}).") from None
