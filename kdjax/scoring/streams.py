"""Scores rows of a text stream: one JSON line per row, each exactly once.

The state file holds the stream, the time of the last answered row and the length of the
output at that moment. A restart truncates the output to that length and skips input rows
up to that time, so input that is sent again neither loses nor repeats a row.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import filelock
import numpy as np

from kdjax.data.lines import Line, read_lines
from kdjax.detection.stream_rules import Plan
from kdjax.detection.streaming import (
    StreamDetector,
    StreamRow,
    Timestamp,
    WindowResult,
    parse_timestamp,
)
from kdjax.errors import ArtifactError, ConfigError, DataError, KdjaxError
from kdjax.io.files import check_target, clear_leftovers, load_state, save_state
from kdjax.io.signals import SIGNALS

BACKENDS = ("jax", "onnxruntime")
ON_ERROR = ("skip", "stop")
SAVE_EVERY = 1.0  # seconds between two writes of the state
_ENCODE = json.JSONEncoder(allow_nan=False).encode


class Summary(NamedTuple):
    """Rows scored and invalid lines, with earlier runs, and rows skipped as answered."""

    rows: int
    faulty: int
    again: int


class Progress(NamedTuple):
    """Position of a stream in its input."""

    last: Timestamp = Timestamp("", 0)  # latest time of an answered row
    after: int = 0  # lines answered since, whose times are no later
    faulty: int = 0  # invalid lines in all
    again: int = 0  # rows skipped because an earlier run had answered them
    # How many of `after` are still to be skipped; -1 before `last` has come, None when
    # nothing is left to skip.
    catching_up: int | None = None


class _Output(NamedTuple):
    """Writes a line without buffering; path and flushed length, None for no file."""

    write: Callable[[str], None]
    mark: Callable[[], list[Any] | None] = lambda: None


def open_stream(
    path: str | os.PathLike[str],
    *,
    backend: str = "jax",
    entity: str | None = None,
    adaptive_step: float = 0.0,
    rolling: float = 0.0,
) -> StreamDetector:
    """The stream of a saved detector, ready for its first row.

    Args:
        path: a detector's folder, or an ONNX file of one for `onnxruntime`.
        backend: one of `BACKENDS`.
        entity: whose scaler, Gaussian and threshold to use; by default those of the only
            entity, else the pooled ones, or those in the file.
        adaptive_step, rolling: see `StreamDetector`.

    >>> stream = open_stream("runs/plant/detectors/student")  # doctest: +SKIP
    >>> stream.update([0.5, 21.0, 3.2]).state  # doctest: +SKIP
    'unknown'
    """
    if backend not in BACKENDS:
        raise ConfigError(
            f"backend={backend!r} is unknown: use one of {', '.join(BACKENDS)}."
        )
    moving: dict[str, Any] = {"adaptive_step": adaptive_step, "rolling": rolling}
    if backend == "onnxruntime":
        plan, score = _onnx_scorer(Path(path), entity)
        stream = StreamDetector(plan, score, **moving)
    elif Path(path).is_file():
        raise ConfigError(
            f"{path} is a file: give the detector's folder, or backend=onnxruntime for "
            "an ONNX file."
        )
    else:
        from kdjax.detection.detector import stream_detector, usual_entity
        from kdjax.detection.storage import load_detector

        loaded = load_detector(path)
        stream = stream_detector(
            loaded, entity=entity or usual_entity(loaded), **moving
        )
    stream.drift()  # imports what it needs now rather than between two rows
    return stream


def stream_rows(
    stream: StreamDetector,
    lines: Iterable[str],
    *,
    time_column: str = "",
    ignored: Sequence[str] = (),
    on_error: str = "skip",
) -> Iterator[str]:
    """A JSON text for each row among the lines; `docs/stream.md` lists its keys.

    Lines, `time_column` and `ignored` are those of `kdjax.data.lines.read_lines`. By
    `skip` an invalid line is answered with its error and the state `unknown`; `stop`
    raises a DataError.
    """
    read = read_lines(
        lines, stream.plan.channels, time_column=time_column, ignored=ignored
    )
    for text, _, _ in _answers(stream, read, Progress(), on_error=on_error):
        yield text


def run_stream(
    lines: Iterable[str],
    output: TextIO | str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    state: str | os.PathLike[str] | None = None,
    time_column: str = "",
    ignored: Sequence[str] = (),
    on_error: str = "skip",
    log: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Summary:
    """Answers lines as `stream_rows` does until they end, or until SIGTERM or SIGINT.

    The output is a text stream, or the path of a file to append to. The stream resumes
    from the file `state` if it exists; it is written at the end, and at most once a second
    before. `log` is called with messages for the user; options are for `open_stream`.
    """
    with contextlib.ExitStack() as stack:
        _check_on_error(on_error)
        if isinstance(output, (str, os.PathLike)):
            check_target(output, inputs=(state or "", detector))
        if state is not None:
            check_target(state, inputs=(detector,), name="state")
            _lock(stack, Path(state))
        stream = open_stream(detector, **options)
        saved = load_state(state) if state is not None and Path(state).exists() else {}
        progress = _resumed(stream, saved) if saved else Progress()
        sink = _open_output(stack, output, saved)
        read = read_lines(
            stack.enter_context(_until_signal(lines)),
            stream.plan.channels,
            time_column=time_column,
            ignored=ignored,
        )
        log(f"scoring under the threshold of {stream.plan.entity}: {stream.plan.tau:g}")
        if saved:
            log(f"{state}: going on after {stream.rows:,} rows")

        def save(progress: Progress, before: Mapping[str, Any] | None = None) -> None:
            if state is not None:
                kept = {
                    "stream": before or stream.state(),
                    "last": progress.last,
                    "after": progress.after,
                    "faulty": progress.faulty,
                    "output": sink.mark(),  # flushes the answers that the state counts
                }
                save_state(state, kept)

        answers = _answers(stream, read, progress, on_error=on_error)
        progress = _write(answers, progress, stream, sink, save, log)
        save(progress)
        text = f"{stream.rows:,} rows in all"
        if progress.faulty:
            text += f", {progress.faulty:,} invalid lines"
        if progress.again:
            text += f", {progress.again:,} rows skipped that had been answered before"
        log(text)
        return Summary(stream.rows, progress.faulty, progress.again)


def _onnx_scorer(
    path: Path, entity: str | None
) -> tuple[Plan, Callable[[np.ndarray], WindowResult]]:
    """Plan and scorer of an ONNX file, or of a folder that is exported in memory."""
    from kdjax.export.container import load_onnx

    if path.is_dir():
        from kdjax.detection.detector import entity_index, usual_entity
        from kdjax.detection.storage import load_detector
        from kdjax.export.onnx import onnx_file

        detector = load_detector(path)
        used = entity or usual_entity(detector)
        scorer = load_onnx(onnx_file(detector, entity_index(detector, used)))
    else:
        scorer = load_onnx(path)
    if entity not in (None, scorer.plan.entity):
        raise ConfigError(
            f"{path} was exported for entity {scorer.plan.entity!r}, not {entity!r}: "
            "leave the entity out, or export the detector for it."
        )

    def score(windows: np.ndarray) -> WindowResult:
        points, found, _, parts = scorer.run(windows)
        return WindowResult(points[0], float(found[0]), parts[0])

    return scorer.plan, score


def _check_on_error(word: str) -> None:
    if word not in ON_ERROR:
        raise ConfigError(
            f"on_error={word!r} is unknown: use one of {', '.join(ON_ERROR)}."
        )


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


def _resumed(stream: StreamDetector, saved: Mapping[str, Any]) -> Progress:
    """Restores the stream from a saved state."""
    try:
        stream.restore(saved["stream"])
        last = Timestamp(*saved["last"])
        after, faulty = int(saved["after"]), int(saved["faulty"])
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the state was not written by `stream` ({error}): remove it to start anew."
        ) from error
    return Progress(last, after, faulty, catching_up=-1 if last.clock else None)


def _open_output(
    stack: contextlib.ExitStack,
    output: TextIO | str | os.PathLike[str],
    saved: Mapping[str, Any],
) -> _Output:
    """Opens the output; truncates a file to the length in the saved state."""
    if not isinstance(output, (str, os.PathLike)):

        def write(text: str) -> None:
            output.write(text + "\n")
            output.flush()

        return _Output(write)
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

    return _Output(append, mark)


def _answers(
    stream: StreamDetector,
    lines: Iterable[Line],
    progress: Progress,
    *,
    on_error: str,
) -> Iterator[tuple[str, Progress, str]]:
    """For each line its answer (empty if skipped), the progress, and its fault."""
    _check_on_error(on_error)
    for line in lines:
        fault, instant, found = line.error, None, None
        try:
            if not (fault and line.time is None):
                instant = parse_timestamp(line.time)
        except DataError as error:
            fault = fault or str(error)
        skipped, progress = _skipped(progress, instant)
        if skipped:
            progress = progress._replace(again=progress.again + 1)
            yield "", progress, ""
            continue
        if not fault:
            try:
                found = stream.update(line.row, instant)
            except DataError as error:
                fault = str(error)
        if fault and on_error == "stop":
            raise DataError(f"line {line.number}: {fault}")
        progress = _advanced(progress, instant, stream.last, faulty=bool(fault))
        yield _answer(line, found, fault, moves=stream.moves), progress, fault


def _skipped(progress: Progress, instant: Timestamp | None) -> tuple[bool, Progress]:
    """Whether an earlier run answered a line; `instant` is None for an unreadable time.

    Lines no later than `last` are identified by their number.
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
    """Progress after an answer; the time of an invalid line counts if it is usable."""
    last, after = progress.last, progress.after + 1
    usable = instant is not None and instant.clock == accepted.clock != ""
    if instant and usable and (not last.clock or instant.value > last.value):
        last, after = instant, 0
    return progress._replace(last=last, after=after, faulty=progress.faulty + faulty)


def _answer(line: Line, row: StreamRow | None, fault: str, *, moves: bool) -> str:
    """The JSON text of a row, or of a line at fault."""
    known = row is not None or line.time is None or isinstance(line.time, (str, int))
    answer: dict[str, Any] = {
        "row": row and row.row,
        "time": line.time if known else str(line.time),
        "score": row and _number(row.score),
        "window_score": row and _number(row.window_score),
        "alarm": int(row.alarm) if row else 0,
        "state": row.state if row else "unknown",
    }
    if not row:
        answer |= {"line": line.number, "error": fault}
    elif moves:
        answer["tau"] = _number(row.tau)
    if row and row.alarm:
        answer["channels"] = row.channels
    return _ENCODE(answer)


def _number(value: float) -> float | str | None:
    """A number as JSON: null for NaN, a string for infinite."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _write(
    answers: Iterator[tuple[str, Progress, str]],
    progress: Progress,
    stream: StreamDetector,
    sink: _Output,
    save: Callable[..., None],
    log: Callable[[str], None],
) -> Progress:
    """Writes the answers and, at intervals, the state; the final progress."""
    before = stream.state()  # The first answer comes after its row was taken in.
    due, drifted, begun = time.monotonic() + SAVE_EVERY, False, False
    try:
        for text, after, fault in answers:
            if not begun:
                save(progress, before)  # Before anything is written to the output.
                begun = True
            try:
                if text:
                    sink.write(text)
            except OSError as error:
                # The state is not saved, so a restart answers this row again.
                raise KdjaxError(
                    f"the output can't be written ({error}): make room or free its "
                    "reader, then run the same command again; with a state it resumes."
                ) from error
            if fault and not progress.faulty:
                log(f"an invalid line: {fault} Further ones are only counted.")
            progress = after
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
            if time.monotonic() >= due:
                save(progress)
                due = time.monotonic() + SAVE_EVERY
    except DataError:
        if begun:
            save(progress)
        raise
    return progress


class _Stopped(BaseException):
    """A signal came while waiting for a line."""


@contextlib.contextmanager
def _until_signal(lines: Iterable[str]) -> Iterator[Iterator[str]]:
    """The lines up to SIGTERM or SIGINT; a row in progress is finished first."""
    waiting = stop = False

    def stopped(number: int, frame: Any) -> None:
        nonlocal stop
        first, stop = not stop, True
        if waiting and first:
            raise _Stopped

    def read() -> Iterator[str]:
        nonlocal waiting
        source = iter(lines)
        try:
            while True:
                waiting = True
                line = None if stop else next(source, None)
                waiting = False
                if line is None:
                    return
                yield line
        except _Stopped:
            return
        except UnicodeDecodeError as error:
            raise DataError(f"the input is not UTF-8 text ({error}).") from None

    if threading.current_thread() is not threading.main_thread():
        yield read()  # only the main thread may handle signals
        return
    old = {number: signal.signal(number, stopped) for number in SIGNALS}
    try:
        yield read()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
