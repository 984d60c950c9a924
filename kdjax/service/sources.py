"""Sources: rows that the service fetches itself, from brokers, Prometheus or OPC UA.

Each source has a thread. It hands over rows in parts, waits until they are answered and
committed, then confirms them at their origin. It reads no further rows while the detector
is busy.
"""

import collections
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from kdjax.data.lines import Line
from kdjax.detection.stream_rules import Plan
from kdjax.errors import ConfigError, KdjaxError, counted
from kdjax.notify.brokers import digest_of
from kdjax.notify.outbox import Receiver
from kdjax.scoring.streams import TWICE
from kdjax.service.answers import KNOWN, Answers, texts_of
from kdjax.service.bodies import (
    CSV,
    JSON,
    LINES,
    Body,
    RequestError,
    check_entity,
    read_rows,
)
from kdjax.service.engine import Engine

PART = KNOWN  # rows that are handed over together
MOST_ROWS = 100_000  # of a message
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before the next connection; doubled
FULL_PAUSE = 0.1  # seconds until rows are handed over again to a queue that is full
SAY_EVERY = 60.0  # seconds between two reports of a kind of fault
DEAD_BYTES = 16_000_000  # most bytes of a file of dead letters, and of the older one
DEAD_TEXT = 64_000  # most characters of a message in a dead letter
END = 1.0  # seconds for a source to end
Marks = Mapping[str, Any]
NOTHING: Marks = MappingProxyType({})


class Message(NamedTuple):
    """One message: a body of rows."""

    data: bytes
    entity: str = ""  # of all rows; empty if they name their own
    marks: Marks = NOTHING  # the place after it, which the state keeps with its rows


class Spec(NamedTuple):
    """A source before it runs."""

    name: str  # for messages, without secrets
    detector: str  # empty for the only one
    channels: tuple[str, ...]  # of the source; empty if messages name them
    follow: "Callable[[Source], None]"  # puts messages until the source is stopping


class StopError(KdjaxError):
    """The service ends."""


class DeadLetters:
    """A file of refused messages, one JSON line each; its size is bounded.

    If it would exceed `DEAD_BYTES` it is renamed to `FILE.1`, which replaces an older
    one.
    """

    def __init__(self, path: Path | None, log: Callable[[str], None]) -> None:
        self._path, self._log, self._lock = path, log, threading.Lock()

    def add(self, source: str, letters: Iterable[tuple[str, bytes]]) -> None:
        """Adds messages with reasons; OSError if the file can't be written."""
        if self._path is None:
            return
        lines = list[str]()
        for reason, data in letters:
            text = data.decode("utf-8", "backslashreplace")
            letter = {"time": time.time(), "source": source, "reason": reason}
            letter["text"] = text[:DEAD_TEXT]
            if len(text) > DEAD_TEXT:
                letter["characters"] = len(text)
            lines.append(json.dumps(letter))
        if not lines:
            return
        written = "".join(f"{line}\n" for line in lines).encode()
        with self._lock:
            size = self._path.stat().st_size if self._path.exists() else 0
            if size and size + len(written) > DEAD_BYTES:
                old = self._path.with_name(f"{self._path.name}.1")
                os.replace(self._path, old)
                self._log(
                    f"{self._path} was full and is {old} now; the older file was removed."
                )
            with self._path.open("ab") as file:
                file.write(written)
                file.flush()
                os.fsync(file.fileno())


class _Row(NamedTuple):
    line: Line
    sequence: int | None
    message: Message
    alone: bool  # whether its message has no other row
    last: bool  # whether it is the last one of its message


class Source:
    """A source that feeds a detector in service.

    Args:
        spec: what it reads.
        engine: the detector.
        dead: receives messages that are refused for good.
        scores: receivers of the answers to its rows.
        kept: whether the state is kept after the process ends.
        most: most bytes of a message.
        log: called with messages for the user.
    """

    def __init__(
        self,
        spec: Spec,
        engine: Engine,
        *,
        dead: DeadLetters,
        scores: tuple[Receiver, ...] = (),
        kept: str = "",
        most: int,
        log: Callable[[str], None],
    ) -> None:
        self.name, self.engine, self._spec = spec.name, engine, spec
        self._dead, self._scores, self._most, self._log = dead, scores, most, log
        self.rows, self.up = 0, False
        self.errors = collections.Counter({"row": 0, "connection": 0})
        # The broker recognises this source by it.
        self.key = digest_of(kept, spec.name, engine.name) if kept else ""
        self._stop, self._said = threading.Event(), dict[str, float]()
        self.check_channels()
        self._thread = threading.Thread(
            target=self._run, name=f"kdjax-{spec.name}", daemon=True
        )

    def start(self) -> None:
        """Starts reading."""
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end; it confirms answered rows."""
        self._stop.set()

    def close(self, most: float = END) -> None:
        """Waits for the end."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(most)

    # For the functions that follow a source.

    @property
    def stopping(self) -> bool:
        """Whether it should end."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> None:
        """Waits for a time; StopError if it should end."""
        if self._stop.wait(max(0.0, seconds)):
            raise StopError("the service ends.")

    @property
    def plan(self) -> Plan:
        """The current rules of the detector."""
        return self.engine.loaded.plan

    def check_channels(self) -> None:
        """Raises ConfigError if the source lacks channels of the detector."""
        has = {*self._spec.channels}
        lack = [name for name in self.plan.channels if has and name not in has]
        more = sorted(has - {*self.plan.channels})
        if lack or more:
            what = f"lacks {', '.join(lack)}" if lack else f"has {', '.join(more)} too"
            raise ConfigError(
                f"{self.name} {what}: give the channels of {self.engine.name!r}, "
                f"{', '.join(self.plan.channels)}."
            )

    def fault(self, kind: str, error: object) -> None:
        """Counts a fault, and reports it at most once a minute."""
        self.errors[kind] += 1
        now = time.monotonic()
        if now >= self._said.get(kind, 0.0):
            self._said[kind] = now + SAY_EVERY
            self._log(f"{self.name}: {error}")

    def put(
        self, messages: Sequence[Message], idle: Callable[[], None] = lambda: None
    ) -> None:
        """Hands messages over; returns when their rows are committed or dead letters.

        StopError if the service ends before: then the messages must be sent again.
        `idle` is called regularly while it waits.
        """
        letters, rows = list[tuple[str, bytes]](), list[_Row]()
        for message in messages:
            try:
                body = self._read(message)
            except RequestError as error:
                letters.append((str(error), message.data))
                continue
            last = len(body.lines) - 1
            rows += [
                _Row(line, number, message, not last, place == last)
                for place, (line, number) in enumerate(
                    zip(body.lines, body.sequence, strict=True)
                )
            ]
        try:
            for first in range(0, len(rows), PART):
                self._hand_over(rows[first : first + PART], idle, letters)
        finally:
            if letters:
                self._bury(letters)

    def _bury(self, letters: Sequence[tuple[str, bytes]]) -> None:
        self.errors["row"] += len(letters)
        try:
            self._dead.add(self.name, letters)
        except OSError as error:
            self.fault("dead_letters", f"the dead letters can't be written ({error})")
        now = time.monotonic()
        if now >= self._said.get("row", 0.0):
            self._said["row"] = now + SAY_EVERY
            count = counted(len(letters), "message")
            self._log(f"{self.name}: {count} refused, such as: {letters[0][0]}")

    def _read(self, message: Message) -> Body:
        if len(message.data) > self._most:
            raise RequestError(413, f"a message of more than {self._most} bytes.")
        entity = message.entity and check_entity(message.entity)
        media = media_by(message.data, self.plan)
        return read_rows(message.data, media, self.plan, most=MOST_ROWS, entity=entity)

    def _hand_over(
        self,
        rows: Sequence[_Row],
        idle: Callable[[], None],
        letters: list[tuple[str, bytes]],
    ) -> None:
        """Commits rows; those that the detector refuses become dead letters."""
        marks = dict[str, Any]()
        for row in rows:
            if row.last:
                marks |= row.message.marks
        # By its number an answer names the faulty line, of any message.
        lines = [row.line._replace(number=n) for n, row in enumerate(rows)]
        body = Body(lines, [row.sequence for row in rows], marks)
        try:
            answers = self._answers(body, idle)
        except StopError:
            raise
        except Exception as error:  # noqa: BLE001 - one row may be at fault
            if len(rows) == 1:
                letters.append(_letter(rows[0], str(error) or type(error).__name__))
                return
            half = len(rows) // 2
            self._hand_over(rows[:half], idle, letters)
            self._hand_over(rows[half:], idle, letters)
            return
        self._deliver(answers)
        self.rows += len(rows)
        for text in answers.texts:
            answer = json.loads(text) if '"error": ' in text else {}
            if answer.get("error", TWICE) != TWICE:
                letters.append(_letter(rows[answer["line"]], answer["error"]))
                self.rows -= 1

    def _answers(self, body: Body, idle: Callable[[], None]) -> Answers:
        """The committed answers; waits while the queue or the disk is full."""
        while True:
            self.wait(0)
            try:
                future = self.engine.submit(body)
                while True:
                    try:
                        return future.result(timeout=1.0)
                    except TimeoutError:
                        if future.done():
                            raise
                        idle()
            except RequestError as error:
                if error.status == 503:
                    self.fault("state", error)
                elif error.status != 429:
                    raise
                self.wait(FULL_PAUSE if error.status == 429 else FIRST_PAUSE)
            idle()

    def _deliver(self, answers: Answers) -> None:
        """Sends answers to receivers of scores; returns when all have accepted them."""
        lines = texts_of(answers).encode() if self._scores else b""
        for receiver in self._scores:
            pause = FIRST_PAUSE
            while True:
                try:
                    receiver.deliver(lines)
                    break
                except Exception as error:  # noqa: BLE001 - of any kind of receiver
                    self.fault("scores", f"{receiver.name} refuses answers ({error})")
                    if self._stop.wait(pause):
                        number = counted(len(answers.texts), "answer")
                        self._log(f"{receiver.name} did not accept {number}: lost.")
                        break
                pause = min(2 * pause, LONGEST_PAUSE)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self.stopping:
            try:
                self._spec.follow(self)
            except StopError:
                break
            except Exception as error:  # noqa: BLE001 - of any client library
                text = str(error) or type(error).__name__
                self.fault("connection", f"{text}; trying again.")
            pause = FIRST_PAUSE if self.up else pause
            self.up = False
            self._stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.up = False


def _letter(row: _Row, reason: str) -> tuple[str, bytes]:
    where = "" if row.alone else f"row {row.line.number}: "
    return f"{where}{reason}", row.message.data


def media_by(data: bytes, plan: Plan) -> str:
    """The media type of a message by its content.

    A JSON object with `rows` is a body as of requests; other objects are rows, one a line.
    """
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return CSV
    if b'"rows"' not in data or "rows" in plan.channels:
        return LINES
    try:
        found = json.loads(data)
    except (RecursionError, UnicodeDecodeError, ValueError):
        return LINES if b"\n" in data.strip() else JSON
    return JSON if isinstance(found, dict) and "rows" in found else LINES


def open_sources(
    specs: Sequence[Spec], engines: Mapping[str, Engine], **options: Any
) -> list[Source]:
    """The sources of detectors in service, not started yet; `options` of `Source`."""
    found = list[Source]()
    for spec in specs:
        name = spec.detector or (min(engines) if len(engines) == 1 else "")
        if name not in engines:
            raise ConfigError(
                f"{spec.name}: give its detector as detector=, one of "
                f"{', '.join(engines)}."
            )
        found.append(Source(spec, engines[name], **options))
    return found
