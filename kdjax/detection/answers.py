"""Lines of a stream to JSON answers, each exactly once also across a restart.

`Progress` is what has to outlive a restart: the time of the last line that was answered,
by which input that is sent again is told from what is new.
"""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kdjax.data.lines import Line
from kdjax.detection.instants import Instant, instant_of
from kdjax.detection.stream import StreamDetector, StreamRow
from kdjax.errors import ConfigError, DataError

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

    last: Instant = Instant("", 0)
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
                instant = instant_of(line.time)
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


def _passed(progress: Progress, instant: Instant | None) -> tuple[bool, Progress]:
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
    progress: Progress, instant: Instant | None, accepted: Instant, *, faulty: bool
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
