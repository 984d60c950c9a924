"""Lines of a stream to JSON answers, each exactly once also across a restart.

`Progress` is what has to outlive a restart: the time of the last line that was answered,
by which input that is sent again is told from what is new.

Where the answers of a stream go, and how a file of them is taken up again.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from kdjax.data.lines import Line
from kdjax.detection.streaming import (
    StreamDetector,
    StreamRow,
    Timestamp,
    parse_timestamp,
)
from kdjax.errors import ArtifactError, ConfigError, DataError, KdjaxError

ON_ERROR = ("skip", "stop")

_ENCODE = json.JSONEncoder(allow_nan=False).encode


class Progress(NamedTuple):
    """How far a stream has come in its input.

    Attributes:
        last: the latest time of a row that was answered.
        after: lines at fault answered since, whose times are no later.
        faulty: lines at fault in all.
        again: rows passed over since they had been answered before a restart.
        catching_up: how many of `after` are still to be passed over; -1 before `last`
            has come, None where nothing is.
    """

    last: Timestamp = Timestamp("", 0)
    after: int = 0
    faulty: int = 0
    again: int = 0
    catching_up: int | None = None


class Answer(NamedTuple):
    """What a line leads to.

    Attributes:
        text: JSON; empty for a row that had been answered before.
        progress: with this line.
        fault: what is wrong with it; empty if nothing.
    """

    text: str
    progress: Progress
    fault: str = ""


def answers(
    stream: StreamDetector,
    lines: Iterable[Line],
    progress: Progress,
    *,
    on_error: str,
) -> Iterator[Answer]:
    """What each line leads to, in order.

    Args:
        stream: takes the rows in.
        lines: of the input.
        progress: how far the stream has come.
        on_error: `skip` answers a line at fault and goes on, `stop` ends with a
            DataError.
    """
    check_on_error(on_error)
    for line in lines:
        fault, instant = line.error, None
        try:
            if not (fault and line.time is None):
                instant = parse_timestamp(line.time)
        except DataError as error:
            fault = fault or str(error)
        passed, progress = _passed(progress, instant)
        if passed:
            progress = progress._replace(again=progress.again + 1)
            yield Answer("", progress)
            continue
        try:
            found = None if fault else stream.update(line.row, instant)
        except DataError as error:
            found, fault = None, str(error)
        if found is None and on_error == "stop":
            raise DataError(f"line {line.number}: {fault}")
        progress = _advanced(progress, instant, stream.last, faulty=found is None)
        if found is None:
            yield Answer(_fault_json(line, fault), progress, fault)
        else:
            yield Answer(_row_json(found, line.time, moves=stream.moves), progress)


def check_on_error(word: str) -> None:
    """Refuses a word that means nothing."""
    if word not in ON_ERROR:
        raise ConfigError(
            f"on_error={word!r} is unknown: use one of {', '.join(ON_ERROR)}."
        )


def _passed(progress: Progress, instant: Timestamp | None) -> tuple[bool, Progress]:
    """Whether a line was answered before a restart.

    Lines that are no later than `last` are told by their number; `instant` is None where
    the time is not legible.
    """
    left, last = progress.catching_up, progress.last
    if left is None or (instant is not None and instant.clock != last.clock):
        return False, progress
    if instant is not None and instant.value > last.value:
        return False, progress._replace(catching_up=None)
    if left < 0:
        met = instant == last
        return True, progress._replace(catching_up=progress.after if met else -1)
    return left > 0, progress._replace(catching_up=max(left - 1, 0))


def _advanced(
    progress: Progress, instant: Timestamp | None, accepted: Timestamp, *, faulty: bool
) -> Progress:
    """After an answer. A line at fault counts by its time too, if it has a usable one."""
    last, after = progress.last, progress.after + 1
    if (
        instant is not None
        and instant.clock == accepted.clock != ""
        and (not last.clock or instant.value > last.value)
    ):
        last, after = instant, 0
    return progress._replace(last=last, after=after, faulty=progress.faulty + faulty)


def _row_json(row: StreamRow, moment: Any, *, moves: bool) -> str:
    said: dict[str, Any] = {
        "row": row.row,
        "time": moment,
        "score": _number(row.score),
        "window_score": _number(row.window_score),
        "alarm": int(row.alarm),
        "state": row.state,
    }
    if moves:
        said["tau"] = _number(row.tau)
    if row.alarm:
        said["channels"] = row.channels
    return _ENCODE(said)


def _fault_json(line: Line, fault: str) -> str:
    moment = line.time if isinstance(line.time, (str, int)) else str(line.time)
    said = {
        "row": None,
        "time": None if line.time is None else moment,
        "score": None,
        "window_score": None,
        "alarm": 0,
        "state": "unknown",
        "line": line.number,
        "error": fault,
    }
    return _ENCODE(said)


def _number(value: float) -> float | str | None:
    """As valid JSON: null for NaN, a word for infinite."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


class AnswerOutput(NamedTuple):
    """A place for answers.

    Attributes:
        write: takes one line, which is there at once.
        mark: the path and how much of the file is safe; None if it is no file.
    """

    write: Callable[[str], None]
    mark: Callable[[], list[Any] | None]


def open_output(
    stack: contextlib.ExitStack,
    output: TextIO | str | os.PathLike[str],
    saved: Mapping[str, Any],
) -> AnswerOutput:
    """Where answers go: to a text stream, or behind those that a file has.

    Args:
        stack: closes the file.
        output: the text stream, or the path of the file.
        saved: the state that tells how much of the file is to stay; empty without one.

    Raises:
        ArtifactError: the file can't be written, or isn't what the state says.
    """
    if not isinstance(output, (str, os.PathLike)):

        def say(text: str) -> None:
            output.write(text + "\n")
            output.flush()

        return AnswerOutput(say, lambda: None)
    path = Path(output).resolve()
    mode = "r+b" if path.exists() else "w+b"
    if mode == "w+b":
        stack.push(_removing(path))
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

    return AnswerOutput(append, mark)


def _removing(path: Path) -> Callable[..., None]:
    """The end of a stream into a new file: one without an answer goes with the fault."""

    def end(kind: type[BaseException] | None, *_: object) -> None:
        fault = kind is not None and issubclass(kind, KdjaxError)
        if fault and path.is_file() and not path.stat().st_size:
            path.unlink()

    return end
