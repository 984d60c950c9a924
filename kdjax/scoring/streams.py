"""Rows in on a text stream, one JSON line out a row, and nothing lost in a restart.

A state file holds the stream, the time of the last row that was answered, and how long
the output was then. After a restart the output is cut back to that length, and rows up
to that time are passed over, so that input that is sent again neither loses a line nor
doubles one.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import filelock
import numpy as np

from kdjax.data.lines import read_lines
from kdjax.detection.stream_io import (
    Answer,
    AnswerOutput,
    Progress,
    answers,
    check_on_error,
    open_output,
)
from kdjax.detection.stream_rules import Plan
from kdjax.detection.streaming import StreamDetector, Timestamp, WindowResult
from kdjax.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    KdjaxError,
)
from kdjax.io.files import check_target, clear_leftovers, load_state, save_state
from kdjax.io.signals import SIGNALS

BACKENDS = ("jax", "onnxruntime")

SAVE_EVERY = 1.0  # seconds between two writes of the state


class Summary(NamedTuple):
    """What a run over a stream came to.

    Attributes:
        rows: rows taken in, those before a restart among them.
        faulty: lines at fault, likewise.
        again: rows that had been answered before.
    """

    rows: int
    faulty: int
    again: int


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
        adaptive_step: see `StreamDetector`.
        following: see `StreamDetector`.
    """
    if backend not in BACKENDS:
        raise ConfigError(
            f"backend={backend!r} is unknown: use one of {', '.join(BACKENDS)}."
        )
    if backend == "onnxruntime":
        plan, score = _onnx_scorer(Path(path), entity)
        stream = StreamDetector(
            plan, score, adaptive_step=adaptive_step, rolling=rolling
        )
    elif Path(path).is_file():
        raise ConfigError(
            f"{path} is a file: give the detector's folder, or backend=onnxruntime for "
            "an ONNX file."
        )
    else:
        from kdjax.detection.detector import usual_entity
        from kdjax.detection.storage import load_detector
        from kdjax.detection.streaming_jax import stream_detector

        loaded = load_detector(path)
        stream = stream_detector(
            loaded,
            entity=entity or usual_entity(loaded),
            adaptive_step=adaptive_step,
            rolling=rolling,
        )
    stream.drift()  # loads what it needs, now rather than between two rows
    return stream


def stream_rows(
    stream: StreamDetector,
    lines: Iterable[str],
    *,
    time_column: str = "",
    ignored: Sequence[str] = (),
    on_error: str = "skip",
) -> Iterator[str]:
    """A JSON text for each row among the lines; see `docs/stream.md` for its keys.

    Args:
        stream: takes the rows in.
        lines: CSV below a header, or JSON objects; see `kdjax.data.lines`.
        time_column: its name; if empty it is found by name.
        ignored: columns to pass over.
        on_error: `skip` answers a line at fault with its error and the state
            `unknown`, and goes on; `stop` ends with a DataError.
    """
    read = read_lines(
        lines, stream.plan.channels, time_column=time_column, ignored=ignored
    )
    for answer in answers(stream, read, Progress(), on_error=on_error):
        yield answer.text


def run_stream(
    lines: Iterable[str],
    output: TextIO | str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    backend: str = "jax",
    entity: str | None = None,
    state: str | os.PathLike[str] | None = None,
    time_column: str = "",
    ignored: Sequence[str] = (),
    adaptive_step: float = 0.0,
    rolling: float = 0.0,
    on_error: str = "skip",
    tell: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Answers lines until they end, or until SIGTERM or SIGINT.

    Args:
        lines: text, such as standard input.
        output: where answers go: a text stream, or the path of a file to append to.
        detector: see `open_stream`, also for `backend` and `entity`.
        backend: `jax` or `onnxruntime`.
        entity: whose threshold.
        state: file to go on from if it is there; written when this ends, and at most
            once a second before.
        time_column: see `stream_rows`, also for `ignored` and `on_error`.
        ignored: columns to pass over.
        adaptive_step: see `StreamDetector`, also for `rolling`.
        following: the other way to move τ.
        on_error: `skip` or `stop`.
        tell: takes what a user should read beside the answers.
    """
    with contextlib.ExitStack() as stack:
        check_on_error(on_error)
        if isinstance(output, (str, os.PathLike)):
            check_target(output, inputs=(state or "", detector))
        if state is not None:
            check_target(state, inputs=(detector,), name="state")
            _hold(stack, Path(state))
        stream = open_stream(
            detector,
            backend=backend,
            entity=entity,
            adaptive_step=adaptive_step,
            rolling=rolling,
        )
        saved = load_state(state) if state is not None and Path(state).exists() else {}
        progress = _resumed(stream, saved) if saved else Progress()
        sink = open_output(stack, output, saved)
        until = stack.enter_context(_until_signal(lines))
        read = read_lines(
            until, stream.plan.channels, time_column=time_column, ignored=ignored
        )
        found = answers(stream, read, progress, on_error=on_error)
        tell(
            f"scoring under the threshold of {stream.plan.entity}: {stream.plan.tau:g}"
        )
        if saved:
            tell(f"{state}: going on after {stream.rows:,} rows")
        keep = _keeper(stream, sink, state)
        progress = _write(found, progress, stream, sink, keep, tell)
        keep(progress)
        return _summary(stream, progress, tell)


def _onnx_scorer(
    path: Path, entity: str | None
) -> tuple[Plan, Callable[[np.ndarray], WindowResult]]:
    """What a stream needs of an ONNX file, or of a folder that is exported in memory."""
    from kdjax.export.onnx_scorer import load_onnx

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


def _hold(stack: contextlib.ExitStack, state: Path) -> None:
    """Keeps a second program from the same state; freed when this one dies."""
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
    """Puts a saved state into the stream."""
    try:
        stream.restore(saved["stream"])
        last = Timestamp(*saved["last"])
        after, faulty = int(saved["after"]), int(saved["faulty"])
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the state was not written by `stream` ({error}): remove it to start anew."
        ) from error
    return Progress(last, after, faulty, catching_up=-1 if last.clock else None)


# Writes how far a stream has come; the second is its state, if not that of now.
Keep = Callable[..., None]


def _keeper(
    stream: StreamDetector, sink: AnswerOutput, state: str | os.PathLike[str] | None
) -> Keep:
    """Writes the state after what it speaks of is safe in the output."""

    def keep(progress: Progress, before: Mapping[str, Any] | None = None) -> None:
        if state is not None:
            kept = {
                "stream": before or stream.state(),
                "last": progress.last,
                "after": progress.after,
                "faulty": progress.faulty,
                "output": sink.mark(),
            }
            save_state(state, kept)

    return keep


def _write(
    found: Iterator[Answer],
    progress: Progress,
    stream: StreamDetector,
    sink: AnswerOutput,
    keep: Keep,
    tell: Callable[[str], None],
) -> Progress:
    """Writes the answers and, now and then, the state; the progress in the end."""
    before = stream.state()  # The first answer comes after its row was taken in.
    due, drifted, begun = time.monotonic() + SAVE_EVERY, False, False
    try:
        for answer in found:
            if not begun:
                keep(progress, before)  # Now an answer may come into the output.
                begun = True
            if answer.text:
                _put(sink, answer.text)
            if answer.fault and answer.progress.faulty == progress.faulty + 1 == 1:
                tell(f"a line at fault: {answer.fault} Further ones are only counted.")
            progress = answer.progress
            if stream.rows % stream.plan.window == 0:
                drifted = _watched(stream, drifted, tell)
            if time.monotonic() >= due:
                keep(progress)
                due = time.monotonic() + SAVE_EVERY
    except DataError:
        if begun:
            keep(progress)
        raise
    return progress


def _put(sink: AnswerOutput, text: str) -> None:
    try:
        sink.write(text)
    except OSError as error:
        # The state stays behind: what was not delivered is answered after a restart.
        raise KdjaxError(
            f"the output can't be written ({error}): make room or free its reader, then "
            "run the same command again; with a state it goes on."
        ) from error


def _watched(
    stream: StreamDetector, drifted: bool, tell: Callable[[str], None]
) -> bool:
    found = stream.drift()
    if found.drifted and not drifted:
        tell(
            f"the last {found.n} windows score otherwise than those of calibration did "
            f"(distance {found.distance:.2f}): the wanted rate of false alarms no longer "
            "holds. Calibrate anew on recent clean rows by `kdjax calibrate`."
        )
    return found.drifted


def _summary(
    stream: StreamDetector, progress: Progress, tell: Callable[[str], None]
) -> Summary:
    summary = Summary(stream.rows, progress.faulty, progress.again)
    told = f"{summary.rows:,} rows in all"
    if summary.faulty:
        told += f", {summary.faulty:,} lines at fault"
    if summary.again:
        told += f", {summary.again:,} rows passed over that had been answered before"
    tell(told)
    return summary


class _Stopped(BaseException):
    """A signal came while waiting for a line."""


@contextlib.contextmanager
def _until_signal(lines: Iterable[str]) -> Iterator[Iterator[str]]:
    """The lines, which end at SIGTERM or SIGINT; a row under way is finished first."""
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
