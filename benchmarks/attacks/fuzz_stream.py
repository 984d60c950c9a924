"""The target `stream` of the fuzzers: lines, and the rows that a detector gets of them."""

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_readers import WORDS, cells_of, number_of

from kdjax.detection.stream_rules import Plan
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.errors import DataError
from kdjax.scoring.streams import stream_rows

PLAN = Plan(
    entity="pooled", channels=("a", "b"), window=1, stride=1, tau=3.0, rate=0.1,
    threshold_method="conformal", allowed_points=0, max_gap=5.0, step=1.0,
    min_duration=1, cooldown=0, calibration=(), disjoint=0,
)  # fmt: skip


def recorder(taken: list[np.ndarray]) -> StreamDetector:
    """A stream without a network that keeps the rows it is asked about."""

    def score(window: np.ndarray) -> WindowResult:
        taken.append(window[0, -1].copy())
        points = np.abs(window[0]).max(axis=1)
        return WindowResult(points, float(points[0]), np.abs(window[0]))

    return StreamDetector(PLAN, score)


def stream(data: bytes, folder: Path) -> str:
    """Lines of a stream: options, lines."""
    options, content = data[0], data[1:]
    taken: list[np.ndarray] = []
    detector = recorder(taken)
    answers: list[dict[str, Any]] = []
    refused = False
    try:
        for text in stream_rows(
            detector,
            _as_stdin(content),
            time_column="t" if options & 1 else "",
            ignore=("note",) if options & 2 else (),
            on_error="stop" if options & 4 else "skip",
        ):
            answer = json.loads(text, parse_constant=_no_constant)
            if "event" not in answer:  # begins or ends between the answers
                answers.append(answer)
    except DataError as error:
        refused = True
        assert "\n" not in str(error) or options & 4
    lines = [*enumerate(_as_stdin(content), start=1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        return "right"
    first = lines[0][1].lstrip("\ufeff").lstrip()
    if not first.startswith("{") and not _is_bare(first):
        lines = lines[1:]
    assert len(answers) == len(lines) or refused, "lines without an answer"
    _check_answers(answers, lines, taken, first)
    _check_state(detector, taken)
    return "refused" if refused else "right"


def _is_bare(first: str) -> bool:
    """Whether a first line holds a number for each channel and thus is a row."""
    for mark in ",;\t|":
        with contextlib.suppress(AssertionError, LookupError, ValueError):
            cells = first.rstrip("\r\n").split(mark)
            numbers = [
                _liberal(cell, mark) for cell in cells if cell.strip() not in WORDS
            ]
            words = [cell for cell in cells if cell.strip().lower() == "nan"]
            if len(cells) == len(numbers) + len(words) == len(PLAN.channels):
                return True
    return False


def _as_stdin(content: bytes) -> Iterator[str]:
    """The lines as the verb reads them."""
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", errors="replace")


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _check_answers(
    answers: list[dict[str, Any]],
    lines: list[tuple[int, str]],
    taken: list[np.ndarray],
    first: str,
) -> None:
    accepted = []
    for answer, (number, line) in zip(answers, lines, strict=False):
        if answer["row"] is None:
            assert answer["line"] == number and answer["error"], "line number"
            assert (answer["alarm"], answer["state"]) == (0, "unknown")
        else:
            assert answer["row"] == len(accepted), "row number"
            accepted.append(line)
    rows = np.array(taken, np.float32).reshape(-1, 2)
    assert len(rows) == len(accepted), "rows taken in"
    assert not np.isinf(rows).any(), "an infinite value was taken in"
    if not accepted:
        return
    if first.startswith("{"):
        np.testing.assert_array_equal(rows, [_json_row(line) for line in accepted])
        return
    faults = []
    for mark in ",;\t|":
        try:
            expected = [*_csv_rows(first, accepted, mark)]
            np.testing.assert_array_equal(rows, np.array(expected).astype(np.float32))
        except (AssertionError, LookupError, ValueError) as error:
            faults.append(str(error)[:200])
        else:
            return
    raise AssertionError(f"no reading of the lines gives these numbers: {faults}")


def _json_row(line: str) -> list[np.float32]:
    pairs = json.loads(line.lstrip("\ufeff"), object_pairs_hook=list)
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), "a key occurs twice"
    row = []
    for name in PLAN.channels:
        value = dict(pairs)[name]
        assert value is None or type(value) in (int, float), f"{value!r} is no number"
        row.append(np.float32(math.nan if value is None else value))
    return row


def _csv_rows(first: str, lines: list[str], mark: str) -> Iterator[list[float]]:
    names = [cell.strip() for cell in cells_of(first.rstrip("\r\n"), mark)[0]]
    places = [0, 1]
    if set(PLAN.channels) <= set(names):
        places = [names.index(name) for name in PLAN.channels]
        assert len(set(names)) == len(names)
    for line in lines:
        (cells,) = cells_of(line.lstrip("\ufeff").rstrip("\r\n"), mark)
        assert len(cells) == len(names)
        yield [_liberal(cells[place], mark) for place in places]


def _liberal(cell: str, mark: str) -> float:
    """As `number_of`, with any digits and blanks of Unicode, and NAN for missing."""
    cell = cell.strip()
    if cell.lower().lstrip("+-") == "nan":
        return math.nan
    assert "_" not in cell
    plain = "".join(str(int(c)) if c.isdecimal() else c for c in cell)
    return number_of(plain, mark)


def _check_state(detector: StreamDetector, taken: list[np.ndarray]) -> None:
    """A state goes through JSON and gives the same answers afterwards."""
    state = json.loads(json.dumps(detector.state(), allow_nan=False))
    other = recorder(taken)
    other.restore(state)
    assert json.dumps(other.state()) == json.dumps(state)
