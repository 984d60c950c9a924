"""The program `stream`: lines in, answers out, and restarts at any moment."""

import io
import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.data.lines import read_lines
from kdjax.data.schema import Reading
from kdjax.data.series import Series
from kdjax.detection.false_alarms import Drift
from kdjax.detection.storage import save_detector
from kdjax.detection.stream_rules import plan_of
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.detection.tables import score_table
from kdjax.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    KdjaxError,
)
from kdjax.export.onnx import onnx_file
from kdjax.io.files import load_state, save_state
from kdjax.scoring.opening import open_stream
from kdjax.scoring.streams import run_stream, stream_rows


@pytest.fixture
def steps(small):
    """A detector whose scores depend on the window, for rows a second apart."""
    model = small.model._replace(kind="difference")
    scores = (np.arange(20.0), np.arange(40.0))
    return small._replace(
        model=model, step=1.0, min_duration=2, clear=0.8, calibration=scores
    )


@pytest.fixture
def folder(steps, tmp_path):
    save_detector(tmp_path / "detector", steps)
    return tmp_path / "detector"


@pytest.fixture
def file(steps, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_file(steps, 0))
    return path


@pytest.fixture
def plain(small):
    """A stream whose a_t is |x|, without a backend."""

    def score(window):
        points = np.abs(window[0, :, 0])
        return WindowResult(points, float(np.fmax.reduce(points)), np.abs(window[0]))

    return StreamDetector(plan_of(small._replace(step=1.0), 0), score)


def table_text(values, *, first=0):
    lines = ["time,y,x"]
    for number, (x, y) in enumerate(values, start=first):
        cells = ["" if math.isnan(cell) else repr(float(cell)) for cell in (y, x)]
        lines.append(
            f"2024-01-01T00:{number // 60:02d}:{number % 60:02d},{cells[0]},{cells[1]}"
        )
    return "\n".join(lines) + "\n"


def answered(text, **options):
    """Answers to rows of a run that writes to memory, as objects."""
    said = io.StringIO()
    run_stream(io.StringIO(text), said, **options)
    found = [
        json.loads(line, parse_constant=pytest.fail)
        for line in said.getvalue().splitlines()
    ]
    return [answer for answer in found if "event" not in answer]


def as_number(value):
    return math.nan if value is None else float(value)


@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_both_backends_answer_as_the_causal_table(steps, folder, backend):
    values = (2 * np.random.default_rng(0).normal(size=(60, 2))).astype(np.float32)
    values[20, 0] = values[30] = np.nan
    values[40] = 1e30
    time = np.datetime64("2024-01-01", "ns") + np.arange(60) * np.timedelta64(1, "s")
    table = score_table(
        steps, Series("a", values, ("x", "y"), time), entity="a", causal=True
    )
    found = answered(table_text(values), detector=folder, backend=backend, entity="a")
    for name in ("score", "window_score"):
        np.testing.assert_allclose(
            [as_number(row[name]) for row in found], table[name], rtol=1e-4
        )
    assert {row["window_score"] for row in found} >= {None, "inf"}
    assert [row["alarm"] for row in found] == table["alarm"].tolist()
    assert [row["state"] for row in found] == table["state"].tolist()
    assert [row["row"] for row in found] == [*range(60)]
    assert found[7]["time"] == "2024-01-01T00:00:07"
    for row in found:
        assert ("channels" in row) == (row["alarm"] == 1)
    assert sum(row["alarm"] for row in found) > 2


def gappy_file(path):
    """Two channels with a late start, missing cells and rows, and gaps in time."""
    rng = np.random.default_rng(4)
    values = 2 * rng.normal(size=(160, 2))
    values[rng.uniform(size=values.shape) < 0.1] = np.nan
    values[:7, 0] = values[:2] = np.nan  # Both start late, one later.
    values[40:52, 1] = values[70:79] = np.nan
    steps = np.ones(160)
    steps[[30, 75, 110]] = [6, 40, 5]
    seconds = np.cumsum(steps).astype("m8[s]")
    frame = pd.DataFrame(values, columns=["x", "y"])
    frame.insert(0, "time", np.datetime64("2024-01-01T00:00:00") + seconds)
    frame.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%S")
    return values


@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
@pytest.mark.parametrize("missing", ["mask", "ffill"])
def test_score_causal_and_stream_give_the_same_of_a_file(
    steps, tmp_path, monkeypatch, missing, backend
):
    monkeypatch.chdir(tmp_path)
    data = {"missing": missing, "fill_limit": 3}
    card = {"title": "a", "settings": {"data": data}}
    save_detector("detector", steps._replace(card=card))
    values = gappy_file("a.csv")
    command = ["kdjax", "score", "a.csv", "--detector=detector", "--causal"]
    assert main([*command, "--output=scores.csv"]) == 0
    table = pd.read_csv("scores.csv")
    lines = Path("a.csv").read_text("utf-8")
    found = answered(lines, detector="detector", backend=backend, entity="a")
    for name in ("score", "window_score"):
        numbers = [as_number(row[name]) for row in found]
        np.testing.assert_allclose(numbers, table[name], rtol=1e-4)
    assert [row["alarm"] for row in found] == table["alarm"].tolist()
    assert [row["state"] for row in found] == table["state"].tolist()
    assert table["state"].value_counts().min() > 5 and table["state"].nunique() == 3
    # Rows without any value have a score where a value was near enough.
    empty = np.isnan(values).all(axis=1)
    assert (empty & table["score"].notna()).any() == (missing == "ffill")
    assert table["score"][78:79].isna().all()


def test_a_stream_fills_cells_as_files_do_and_not_for_longer(plain):
    """By hand: a_t is the first channel, and |x| of a filled cell that of the last one."""
    plan = plain.plan._replace(window=1, fill_limit=2, tau=50.0)
    stream = StreamDetector(plan, plain._score)
    cells = ["", "7", "", "inf", "", "", "3", ""]
    lines = [f"{n},{cell},1" for n, cell in enumerate(cells)]
    found = [
        json.loads(text)
        for text in stream_rows(stream, ["time,x,y", *lines])
        if '"event"' not in text
    ]
    scores = [row["score"] for row in found]
    assert scores == [None, 7, 7, 7, None, None, 3, 3]
    assert [row["state"] == "unknown" for row in found] == [s is None for s in scores]
    # A fault and a row that is taken back fill nothing.
    more = ["8,x,1", "900,40,1", "9,,1", "10,,1"]
    found = [
        json.loads(text)
        for text in stream_rows(stream, ["time,x,y", *more])
        if '"event"' not in text
    ]
    assert [row["score"] for row in found] == [None, 40, 3, None]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_stream_goes_on_filling_from_its_state(plain, cut):
    plan = plain.plan._replace(window=1, fill_limit=2)
    first, second = (StreamDetector(plan, plain._score) for _ in range(2))
    rows = [[math.nan, 1], [7, 1], [math.nan, 1], [40, 1], *[[math.nan, 1]] * 5]
    times = [0, 1, 2, 900, 3, 4, 5, 6, 7]
    scores = []
    for row, at in zip(rows[:cut], times[:cut], strict=True):
        scores.append(first.update(row, at).score)
    state = json.loads(json.dumps(first.state(), allow_nan=False))
    second.restore(state)
    assert second.state() == state
    for row, at in zip(rows[cut:], times[cut:], strict=True):
        scores.append(second.update(row, at).score)
    nan = math.nan
    np.testing.assert_array_equal(scores, [nan, 7, 7, 40, 7, nan, nan, nan, nan])


def test_a_state_from_before_cells_were_filled_goes_on(plain):
    filling = StreamDetector(plain.plan._replace(fill_limit=2), plain._score)
    plain.update([1, 2], 0)
    state = plain.state()
    del state["before"]
    filling.restore(state | {"schema": 1})
    assert filling.rows == 1 and filling.update([math.nan, 2], 1).state == "unknown"


def test_a_file_and_a_folder_answer_alike(folder, file):
    text = table_text(np.random.default_rng(0).normal(size=(9, 2)))
    options = {"backend": "onnxruntime", "entity": "a"}
    assert answered(text, detector=file, **options) == answered(
        text, detector=folder, **options
    )


def test_what_can_not_be_opened(folder, file, tmp_path):
    with pytest.raises(
        ConfigError, match="backend='torch' is unknown: use one of auto"
    ):
        open_stream(folder, backend="torch")
    with pytest.raises(ConfigError, match="is a file: give the detector's folder"):
        open_stream(file, backend="jax")
    assert open_stream(file).plan.entity == open_stream(folder).plan.entity == "a"
    with pytest.raises(ConfigError, match="was exported for entity 'a', not 'b'"):
        open_stream(file, backend="onnxruntime", entity="b")
    with pytest.raises(DataError, match="has no entity 'b'"):
        open_stream(folder, entity="b")
    with pytest.raises(ArtifactError):
        open_stream(tmp_path / "nothing", backend="onnxruntime")


# Lines.


def rows_of(text, *, may_lack=(), **options):
    lines, reading = text.splitlines(), Reading(**options)
    return [*read_lines(lines, ("a", "b"), reading, may_lack=may_lack)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1,2.5\n3,4", [[1, 2.5], [3, 4]]),
        ("1;2,5\n3;4", [[1, 2.5], [3, 4]]),
        ("1,5\t2,5", [[1.5, 2.5]]),
        ("b|a\n1|2", [[2, 1]]),
        ("a;b\n0,5;1,5", [[0.5, 1.5]]),
    ],
)
def test_rows_without_a_header_and_decimal_commas(text, rows):
    found = rows_of(text)
    assert [line.row for line in found] == rows
    assert not any(line.error for line in found)


def test_names_that_are_numbers_are_a_header_and_thousands_are_faults():
    (line,) = read_lines(["2;1", "5;6"], ("1", "2"))
    assert line.row == [6, 5] and line.number == 2
    (line,) = rows_of("a;b\n1,234,567;2")
    assert "'1,234,567' is not a number" in line.error
    (line,) = rows_of("a,b\n1 5,2")
    assert "'1 5' is not a number" in line.error


@pytest.mark.parametrize("mark", [".", ","])
def test_a_number_that_may_be_in_thousands_is_one_fault_that_names_it(mark):
    first = f"1{mark}049"
    found = rows_of(f"a;b\n{first};2\n50;2\n51;2\n1{mark}050;2\n;2\n52;2\n0{mark}5;2")
    assert [line.row[:1] for line in found[:3]] == [[1.049], [], [51.0]]
    errors = [line.error for line in found]
    assert [bool(error) for error in errors] == [False, True, False, True, *[False] * 3]
    text = f"column 1 ('a'): '{first}' of an earlier line among whole numbers may be in"
    assert errors[1].startswith(text) and f"'1{mark}050' among whole" in errors[3]
    assert found[-1].row == [0.5, 2.0]
    found = rows_of(f"a;b\n{first};2\n2{mark}5;2\n50;2\n{first};2")
    assert [line.row[0] for line in found] == [1.049, 2.5, 50, 1.049]


def objects(text):
    """The rows of CSV as lines of JSON."""
    names, *rows = [line.split(",") for line in text.splitlines()]
    return "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)


@pytest.mark.parametrize("form", [str, objects])
@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_a_time_column_is_known_by_what_it_holds(folder, form, backend):
    text = table_text(np.random.default_rng(0).normal(size=(12, 2)))
    expected = answered(text, detector=folder, entity="a")
    text = text.replace("time,", "ts,")
    options = {"detector": folder, "entity": "a", "backend": backend}
    found = answered(form(text), **options)
    assert [row["time"] for row in found] == [row["time"] for row in expected]
    assert [row["state"] for row in found] == [row["state"] for row in expected]


def test_other_columns_are_no_time():
    for cells in ("3", "word", ""):
        lines = "\n".join(["ts,a,b", f"{cells},1,2"])
        with pytest.raises(DataError, match="not expected: ts.* by data.time_column"):
            rows_of(lines)
        (line,) = rows_of(objects(lines))
        assert "not expected: ts" in line.error
    with pytest.raises(DataError, match=r"several time columns \(ts, at\)"):
        rows_of("ts,at,a,b\n2024-01-01,2024-01-02,1,2")
    with pytest.raises(DataError, match="not expected: ts"):
        rows_of("ts,a,b\n")


@pytest.mark.parametrize("cell", ["", " ", "NaN", "null"])
def test_a_missing_time_is_a_fault_that_says_so(cell):
    text = f"time,a,b\n7,1,2\n{cell},1,2\n{cell},,\n8,3,4"
    for form in (str, objects):
        found = rows_of(form(text), missing_values=("7",))  # of channels only
        said = [line.error for line in found]
        assert said == [
            "",
            *["the time is missing; complete or remove the line."] * 2,
            "",
        ]
        assert found[-1].row == [3.0, 4.0]
    for last in ('{"time": null, "a": 1, "b": 2}', '{"a": 1, "b": 2}'):
        assert "time is missing" in rows_of(f"{objects(text)}\n{last}")[-1].error


@pytest.mark.parametrize(
    "text",
    [
        "time,b,a\n5,2,1\n",
        "\ufeffDate;a;b\r\n5;1;2\r\n\r\n",
        "a\tb\ttimestamp\n1.0\t 2 \t5\n",
        '"time","a","b"\n"5","1","2"\n',
        '{"time": 5, "b": 2, "a": 1}',
        '\n{"a": 1.0, "b": 2.0, "Timestamp": 5}\n',
    ],
)
def test_rows_in_all_their_forms(text):
    (line,) = rows_of(text)
    assert (line.time, line.row, line.error) == (5, [1.0, 2.0], "")


def test_missing_values_and_columns_to_ignore():
    text = "a,b,note\n,1,x\nNaN,NA,\n"
    found = rows_of(text, ignore=("note",))
    np.testing.assert_array_equal(
        [line.row for line in found], [[np.nan, 1], [np.nan] * 2]
    )
    assert [line.time for line in found] == [None, None]
    (line,) = rows_of('{"a": null, "b": NaN, "note": {}}', ignore=("note", "other"))
    assert np.isnan(line.row).all()
    assert rows_of("") == []


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("time,a", "expected; missing: b. The"),
        ("a,b,c", "expected; not expected: c. The"),
        ("a,b,b", "there twice: b"),
        ("time,date,a,b", "several time columns"),
    ],
)
def test_a_header_at_fault_ends_at_once(header, message):
    with pytest.raises(DataError, match=message):
        rows_of(f"{header}\n1,2\n")
    with pytest.raises(DataError, match="missing: when"):
        rows_of("a,b\n1,2\n", time_column="when")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7,1", "2 cells, expected 3"),
        ("7,1,2,3", "4 cells, expected 3"),
        ("7,1,x", "column 3 \\('b'\\): 'x' is not a number"),
        ("7,1_0,2", "column 2 \\('a'\\): '1_0' is not a number"),
        ('7,"1,2', "correct its quotes"),
    ],
)
def test_a_line_at_fault_is_handed_on(line, message):
    first, second = rows_of(f"time,a,b\n{line}\n8,1,2\n")
    assert re.search(message, first.error)
    assert first.number == 2 and first.row == []
    assert second.row == [1.0, 2.0] and second.number == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1', "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ('{"time": 7, "a": 1}', "missing: b"),
        ('{"time": 7, "a": 1, "b": 2, "c": 3}', "not expected: c"),
        ('{"time": 7, "a": 1, "a": 1, "b": 2}', "a key occurs twice"),
        ('{"time": 7, "a": "1 bar", "b": 2}', "'a': '1 bar' is not a number"),
        ('{"time": 7, "a": [1], "b": 2}', r"'a': \[1\] is not a number"),
    ],
)
def test_an_object_at_fault_is_handed_on(line, message):
    good = '{"time": 6, "a": 1, "b": 2}'
    before, first, second = rows_of(f"{good}\n{line}\n{good}\n")
    assert re.search(message, first.error) and first.row == []
    assert before.row == second.row == [1.0, 2.0]


@pytest.mark.parametrize("first", ["{}", '{"b": 2}', '{"time": 6, "entity": "e"}'])
def test_an_incomplete_object_is_one_fault_and_changes_no_columns(first):
    good = '{"time": 7, "entity": "e", "a": 1, "b": 2}'
    options = {"entity_column": "entity", "may_lack": {"entity", "time"}}
    faults = [
        rows_of(text, **options) for text in (f"{first}\n{good}", f"{good}\n{{}}")
    ]
    for found, place in zip(faults, (0, 1), strict=True):
        fault, row = found[place], found[1 - place]
        assert "missing: a" in fault.error and fault.row == []
        assert (row.time, row.row, row.entity, row.error) == (7, [1.0, 2.0], "e", "")


# Answers.

BAD = [
    "time,x,y",
    "0,1,1",
    "1,oops,1",
    "2,1,inf",
    "1,1e39,1",
    "0,1,1",
    "nan,1,1",
    "3,1",
    "4,20,1",
]


def test_lines_at_fault_are_answered_as_unknown(plain):
    found = [
        json.loads(text) for text in stream_rows(plain, BAD) if '"event"' not in text
    ]
    assert [row["row"] for row in found] == [0, *[None] * 6, 1]
    for row in found[1:7]:
        assert (row["state"], row["alarm"], row["score"]) == ("unknown", 0, None)
    assert [row["line"] for row in found[1:7]] == [3, 4, 5, 6, 7, 8]
    assert [row["time"] for row in found] == [0, 1, 2, 1, 0, "nan", None, 4]
    for row, words in zip(
        found[1:7],
        [
            "'oops'",
            "'y': inf",
            "'x': 1e+39",
            "not after",
            "the time is missing",
            "2 cells",
        ],
        strict=True,
    ):
        assert words in row["error"]


def test_or_end_the_stream(plain):
    told = stream_rows(plain, BAD, on_error="stop")
    assert json.loads(next(told))["row"] == 0
    with pytest.raises(DataError, match="^line 3: column 2 .*'oops' is not a number"):
        next(told)
    with pytest.raises(ConfigError, match="on_error='ignore' is unknown"):
        next(stream_rows(plain, BAD, on_error="ignore"))


@pytest.mark.parametrize("moving", [{"adaptive_step": 0.2}, {"rolling": 0.2}])
def test_a_threshold_that_moves_is_told(folder, moving):
    text = table_text(np.random.default_rng(0).normal(size=(30, 2)))
    found = answered(text, detector=folder, entity="a", **moving)
    assert len({row["tau"] for row in found}) > 1


@pytest.mark.parametrize(("scale", "where"), [(9, "higher"), (0.01, "lower")])
def test_drift_is_told_once_with_its_direction(folder, scale, where):
    text = table_text(np.random.default_rng(0).normal(size=(300, 2)) * scale)
    told = []
    answered(text, detector=folder, entity="a", log=told.append)
    (line,) = [line for line in told if "kdjax calibrate" in line]
    assert line.startswith(f"scores are {where} than in calibration (distance ")


def test_drift_is_told_again_after_scores_were_normal(folder, monkeypatch):
    """Distances that go around the limit are one drift; the other direction is a new one."""
    distances = [0.5, 0.24, 0.5, 0.1, 0.5, 0.5]
    looks = iter([Drift(9, d, d > 0.25, higher=True) for d in distances])
    last = Drift(9, 0.6, drifted=True, higher=False)

    def scripted(stream):
        return next(looks, last) if stream.rows else Drift(0, math.nan, False)

    monkeypatch.setattr(StreamDetector, "drift", scripted)
    told = []
    text = table_text(np.zeros((300, 2)))
    answered(text, detector=folder, entity="a", log=told.append)
    found = [line.split()[2] for line in told if "than in calibration" in line]
    assert found == ["higher", "higher", "lower"]


# Restarts.


@pytest.fixture
def replayed(file, tmp_path):
    """Runs lines with a state file, appending to a file; what lies there then."""

    def run(text, **options):
        output, summary = tmp_path / "out.jsonl", None
        try:
            summary = run_stream(
                io.StringIO(text),
                output,
                detector=file,
                backend="onnxruntime",
                state=tmp_path / "state.json",
                **options,
            )
        except (
            DataError
        ) as error:  # The start of a stream may be too short for a score.
            if "no row has a score" not in str(error):
                raise
        return summary, output.read_text("utf-8")

    return run


FAULTY = (
    [(2 * x, -x) for x in np.random.default_rng(1).normal(size=12)],
    {
        2: "oops,1,1",
        5: "2024-01-01T00:00:05,x,1",
        6: ",,",
        9: "2024-01-01T00:00:01,1,1",
    },
)


def faulty_lines():
    lines = table_text(FAULTY[0]).splitlines()
    for place, line in FAULTY[1].items():
        lines.insert(place + 1, line)
    return lines


def test_lines_sent_again_are_neither_lost_nor_doubled(replayed, file, tmp_path):
    """Cut after each line, then all again from the start."""
    lines = faulty_lines()
    whole = io.StringIO()
    options = {"backend": "onnxruntime", "state": tmp_path / "whole.json"}
    run_stream(lines, whole, detector=file, **options)  # without it an end ends events
    rows = [line for line in whole.getvalue().splitlines() if '"event"' not in line]
    assert len(rows) == len(lines) - 1 < len(whole.getvalue().splitlines())
    for cut in range(2, len(lines) + 1):
        for name in ("out.jsonl", "state.json"):
            (tmp_path / name).unlink(missing_ok=True)
        replayed("\n".join(lines[:cut]))
        summary, found = replayed("\n".join(lines))
        assert found == whole.getvalue()
        assert (summary.rows, summary.faulty, summary.again) == (12, 4, cut - 1)


def rows_text(times, values=None):
    """Rows of two channels with these times, as text, without the header."""
    values = range(len(times)) if values is None else values
    return [f"{time},{value},1" for time, value in zip(times, values, strict=True)]


def second(number):
    return str(np.datetime64("2024-01-01T10:00") + np.timedelta64(number, "s"))


# What comes before a restart and after it, and the lines at fault among them.
HISTORIES = {
    "a fault ahead": ([*range(6), "2036-01-01T00:00:00,x,1"], range(6, 12), 1),
    "a row ahead": ([*range(6), 90_000], range(6, 12), 1),
    "a gap of days": (range(6), range(90_000, 90_006), 0),
    "a clock set back": (range(3600, 3620), range(20), 9),
    "only new rows": (range(6), range(6, 12), 0),
    "late and repeated": ([*range(6), 3, 5, 5], [2, 5, 4, *range(6, 12)], 6),
    "faults without a time": (
        [*range(6), "x,x,x", "x,x,x"],
        ["x,x,x", *range(6, 9)],
        3,
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_each_line_has_one_answer_over_a_restart(replayed, tmp_path, name):
    """The rows after it alone, or with all that came before once more."""
    before, after, faulty = HISTORIES[name]
    lines = [
        f"{second(one)},{number},1" if isinstance(one, int) else one
        for number, one in enumerate([*before, *after])
    ]
    head, count = "time,y,x", len(before)
    for again in ([], lines[:count], lines[count // 2 : count]):
        for file in ("out.jsonl", "state.json"):
            (tmp_path / file).unlink(missing_ok=True)
        replayed("\n".join([head, *lines[:count]]))
        summary, found = replayed("\n".join([head, *again, *lines[count:]]))
        answers = [
            json.loads(line) for line in found.splitlines() if '"event"' not in line
        ]
        assert len(answers) == len(lines)
        numbers = [answer["row"] for answer in answers if answer["row"] is not None]
        assert numbers == [*range(summary.rows)]
        assert (summary.faulty, summary.again) == (faulty, len(again))
        assert answers[-1]["state"] == "normal"


def test_a_row_ahead_is_named_by_the_next_one(folder):
    lines = rows_text([0, 1, 2, 3, 4, 900, 5, 6], [1] * 8)
    told = []
    found = answered("\n".join(["time,y,x", *lines]), detector=folder, log=told.append)
    assert [row.get("taken_back") for row in found] == [None] * 6 + [5, None]
    assert [row["state"] for row in found[5:]] == ["unknown", "normal", "normal"]
    assert "row 5 was ahead of its time: row 6 is earlier" in told[1]
    assert told[2] == "8 rows in all, 1 invalid line"


def test_lines_older_than_the_known_ones_were_answered(replayed, monkeypatch):
    """Of a hundred lines five to ten are known; what is sent again starts anywhere."""
    monkeypatch.setattr("kdjax.scoring.streams.KNOWN", 5)
    lines = rows_text(range(100))
    lines[50], lines[97] = "50,x,1", "200,x,1"
    _, first = replayed("\n".join(["time,y,x", *lines[:98]]))
    for start in (0, 48, 60, 90, 97):
        summary, found = replayed("\n".join(["time,y,x", *lines[start:98]]))
        assert found == first and summary.again == 98 - start
    summary, found = replayed("\n".join(["time,y,x", *lines[90:]]))
    assert summary.rows == 98 and len(found.splitlines()) == 100


def test_rows_behind_a_clock_set_back_are_not_older_than_the_known(
    replayed, monkeypatch
):
    monkeypatch.setattr("kdjax.scoring.streams.KNOWN", 50)
    before = rows_text([*range(1000, 1110), *range(20)])
    replayed("\n".join(["time,y,x", *before]))
    summary, found = replayed("\n".join(["time,y,x", *rows_text(range(20, 50))]))
    # Nine rows were refused before the stream began anew.
    assert (summary.rows, summary.faulty, summary.again) == (151, 9, 0)
    assert sum('"event"' not in line for line in found.splitlines()) == 160


def test_after_a_new_row_none_is_passed_over(replayed):
    lines = ["time,y,x", *rows_text(range(9))]
    replayed("\n".join(lines[:6]))
    summary, found = replayed("\n".join([*lines, lines[-1]]))
    assert (summary.faulty, summary.again) == (1, 5)
    assert "the same row was answered" in json.loads(found.splitlines()[-1])["error"]


def test_rows_sent_twice_are_not_answered_anew(plain):
    """Ten rows that follow each other begin anew, but not rows that were answered."""
    lines = rows_text(range(30), [1] * 30)
    again = [line.replace(",", ".0,", 1) for line in lines[5:]]  # the same times
    text = ["time,x,y", *lines, *again, "30,1,1"]
    found = [
        json.loads(answer)
        for answer in stream_rows(plain, text)
        if '"event"' not in answer
    ]
    assert ["error" in row for row in found] == [False] * 30 + [True] * 25 + [False]
    assert "the same row was answered before" in found[40]["error"]
    assert found[-1]["row"] == 30 and found[-1]["state"] == "normal"


# Each pair writes the same instants.
WRITTEN = {
    "blank": ("2026-04-01T10:00:{:02}", "2026-04-01 10:00:{:02}"),
    "slashes": ("2026-04-01T10:00:{:02}", "2026/04/01 10:00:{:02}.000"),
    "offsets": ("2026-04-01T10:00:{:02}Z", "2026-04-01T12:00:{:02}+02:00"),
    "numbers": ("17567712{:02}", "17567712{:02}.0"),
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_rows_whose_times_are_written_otherwise_are_known(replayed, name, as_json):
    first, other = WRITTEN[name]
    before = rows_text([first.format(at) for at in range(9)])
    after = rows_text([other.format(at) for at in range(12)])
    _, found = replayed("\n".join(["time,y,x", *before]))
    lines = ["time,y,x", *after]
    if as_json:
        cells = [line.split(",") for line in after]
        rows = [{"time": at, "y": int(y), "x": int(x)} for at, y, x in cells]
        lines = [*map(json.dumps, rows)]
    summary, all_found = replayed("\n".join(lines))
    assert (summary.rows, summary.faulty, summary.again) == (12, 0, 9)
    assert all_found.startswith(found) and len(all_found.splitlines()) == 12


def test_a_state_of_the_first_version_skips_rows_up_to_its_time(replayed, tmp_path):
    lines = ["time,y,x", *rows_text(range(20))]
    _, first = replayed("\n".join(lines[:11]))
    path = tmp_path / "state.json"
    state = load_state(path)
    del state["answered"], state["stream"]["before"]
    state["stream"]["schema"] = 1
    # A fault had moved its mark.
    save_state(path, state | {"last": ["number", 1e9], "after": 3})
    summary, found = replayed("\n".join(lines))
    assert (summary.rows, summary.again) == (20, 10) and found.startswith(first)


@pytest.mark.parametrize("change", [{"answered": 3}, {"answered": {}}, {"faulty": "x"}])
def test_a_state_that_is_none_is_refused(replayed, tmp_path, change):
    replayed("x,y\n1,2\n")
    save_state(tmp_path / "state.json", load_state(tmp_path / "state.json") | change)
    with pytest.raises(ArtifactError, match="was not written by `stream`"):
        replayed("x,y\n1,2\n")


# Streams that hardly answer.


def watched(lines, folder, every, monkeypatch):
    """What a stream says of its lines, with its last words, and its answers."""
    monkeypatch.setattr("kdjax.scoring.streams.SAY_EVERY", every)
    told, said = [], io.StringIO()
    try:
        run_stream(["time,y,x", *lines], said, detector=folder, log=told.append)
    except DataError as error:
        told.append(f"error: {error}")
    return told, said.getvalue().splitlines()


def test_mostly_faults_are_said_again_and_end_in_an_error(folder, monkeypatch):
    lines = rows_text(range(150), ["x" if n % 30 >= 10 else 1 for n in range(150)])
    told, found = watched(lines, folder, 60, monkeypatch)
    assert len(found) == 150
    problems = [line for line in told if "lines are faulty" in line]
    assert problems[0].startswith("60 of the last 100 lines are faulty, the latest: ")
    assert problems[1].startswith("error: 70 of the last 100") and len(problems) == 2
    told, _ = watched(lines, folder, 0, monkeypatch)
    assert sum("lines are faulty" in line for line in told) == 52
    # What was said once ends in an error, though all is well again.
    good = rows_text(range(150, 400), [1] * 250)
    told, _ = watched(lines + good, folder, 60, monkeypatch)
    assert told[-1].startswith("error: 60 of the last 100")


@pytest.mark.parametrize(("faulty", "total"), [(1, 1), (3, 5), (60, 99)])
def test_few_lines_count_at_the_end(folder, monkeypatch, faulty, total):
    values = ["x"] * faulty + [1] * (total - faulty)
    told, _ = watched(rows_text(range(total), values), folder, 60, monkeypatch)
    assert told[-1].startswith(f"error: {faulty} of the last {total} line")
    # Half of them are not most.
    values = ["x"] * 50 + [1] * 50
    told, _ = watched(rows_text(range(100), values), folder, 60, monkeypatch)
    assert told[-1] == "50 rows in all, 50 invalid lines"


def test_rows_without_a_score_for_long_are_said(folder, monkeypatch):
    """Windows of four rows, with a gap before each third row."""
    times = [number + 10 * (number // 3) for number in range(120)]
    told, _ = watched(rows_text(times), folder, 60, monkeypatch)
    assert told[1].startswith("the last 100 lines have no score: check the answers")
    assert told[-1].startswith("error: the last 120 lines have no score")
    told, _ = watched(rows_text(times[:99]), folder, 60, monkeypatch)
    assert told[-1].startswith("error: no row has a score: 99 rows in all, but a score")
    told, _ = watched(rows_text([*range(4), *times[4:99]]), folder, 60, monkeypatch)
    assert told[-1] == "99 rows in all"


@pytest.mark.parametrize("text", ["", "time,y,x\n", table_text([(1, 2)] * 3)])
@pytest.mark.parametrize("form", [str, objects])
@pytest.mark.parametrize("name", ["folder", "file"])
def test_a_stream_without_any_score_says_so_at_the_end(
    request, tmp_path, monkeypatch, capsys, text, form, name
):
    detector = request.getfixturevalue(name)
    backend = "jax" if name == "folder" else "onnxruntime"
    command = ["kdjax", "stream", f"--detector={detector}", f"--backend={backend}"]
    command += [f"--state={tmp_path / 'state'}"]

    def run(text):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return main(command), capsys.readouterr().err.splitlines()[-1]

    code, said = run(form(text) if text else "")
    rows = "3 rows" if "2024" in text else "0 rows"
    assert (
        code == 2 and f"no row has a score: {rows} in all, but a score needs 4" in said
    )
    # Once a row has a score no later run of the same stream needs one.
    assert run(table_text([(1, 2)] * 4))[0] == 0
    assert run("")[0] == run("time,y,x\n")[0] == 0


def test_a_state_that_does_not_know_of_scores_goes_on(replayed, tmp_path):
    replayed(table_text([(1, 2)] * 4))
    state = load_state(tmp_path / "state.json")
    assert state.pop("scored")
    save_state(tmp_path / "state.json", state)
    summary, _ = replayed("")
    assert summary.rows == 4


def test_without_times_the_count_goes_on(replayed):
    _, one = replayed("x,y\n" + "1,2\n" * 5)
    summary, found = replayed("x,y\n" + "1,2\n" * 3)
    assert summary.rows == 8 and summary.again == 0 and found.startswith(one)
    rows = [json.loads(line) for line in found.splitlines() if '"event"' not in line]
    assert [row["row"] for row in rows] == [*range(8)]
    assert [row["state"] for row in rows] == ["unknown"] * 3 + ["normal"] * 5


def test_what_the_state_does_not_know_is_cut_off(replayed, tmp_path):
    lines = table_text(np.ones((9, 2))).splitlines()
    _, five = replayed("\n".join(lines[:6]))
    path = tmp_path / "out.jsonl"
    path.write_text(five * 3 + five[:70], "utf-8")  # as after a kill
    _, found = replayed("\n".join(lines))
    assert found.startswith(five) and len(found.splitlines()) == 9
    path.write_text(five[:-9], "utf-8")
    with pytest.raises(ArtifactError, match="bytes, .* when the state was written"):
        replayed("\n".join(lines))


def test_an_output_that_ends_inside_a_line_is_left_alone(replayed, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"row": 1', "utf-8")
    with pytest.raises(ArtifactError, match="ends inside a line"):
        replayed("x,y\n1,2\n")


def test_a_state_is_held_by_one_stream_and_belongs_to_one_detector(
    replayed, small, file, tmp_path
):
    replayed("x,y\n1,2\n")

    def lines():
        yield "x,y\n"
        with pytest.raises(ArtifactError, match="in use by another stream"):
            replayed("x,y\n1,2\n")
        yield "1,2\n"

    options = {"backend": "onnxruntime", "state": tmp_path / "state.json"}
    with pytest.raises(DataError, match="no row has a score: 2 rows"):
        run_stream(lines(), io.StringIO(), detector=file, **options)
    other = tmp_path / "other.onnx"
    other.write_bytes(onnx_file(small, 1))
    with pytest.raises(ArtifactError, match="of another detector"):
        run_stream([], io.StringIO(), detector=other, **options)


def test_what_was_not_delivered_is_answered_after_a_restart(file, tmp_path):
    class Closing(io.StringIO):
        def write(self, text):
            if self.getvalue().count("\n") == 3:
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

    lines = table_text(np.ones((9, 2))).splitlines()
    options = {
        "detector": file,
        "backend": "onnxruntime",
        "state": tmp_path / "state.json",
    }
    first, second = Closing(), io.StringIO()
    with pytest.raises(KdjaxError, match="the output can't be written .*Broken pipe"):
        run_stream(lines, first, **options)
    run_stream(lines, second, **options)
    found = {json.loads(line)["row"] for line in second.getvalue().splitlines()}
    assert found >= {*range(3, 9)}


SIGNALLED = """
import io, os, signal, sys, time
from kdjax.io import signals
from kdjax.scoring.streams import run_stream
signals.install_handlers()
file, state, when = sys.argv[1:]
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
def lines():
    yield "x,y\\n"
    for number in range(9):
        if number == 5 and when == "waiting":
            stop()
        yield "1,2\\n"
class Output(io.StringIO):
    def write(self, text):
        if self.getvalue().count("\\n") == 4 and when == "writing":
            stop()
        return super().write(text)
said = Output()
summary = run_stream(
    lines(), said, detector=file, backend="onnxruntime", state=state
)
print(summary.rows, len(said.getvalue().splitlines()))
"""


@pytest.mark.parametrize("when", ["waiting", "writing"])
def test_signals_end_a_stream_cleanly(file, tmp_path, when):
    """While it waits for a line, and in a row, which is finished first."""
    command = [sys.executable, "-c", SIGNALLED, str(file), str(tmp_path / "s"), when]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["5", "5"] and not done.stderr
    assert load_state(tmp_path / "s")["stream"]["rows"] == 5


def test_a_thread_can_run_a_stream(file):
    said = io.StringIO()
    options = {"detector": file, "backend": "onnxruntime"}
    worker = threading.Thread(
        target=run_stream, args=(["x,y", *["1,2"] * 4], said), kwargs=options
    )
    worker.start()
    worker.join()
    assert len(said.getvalue().splitlines()) == 4


PROGRAM = """
import sys, time
import kdjax.scoring.streams
kdjax.scoring.streams.SAVE_EVERY = 0.02
rows, detector, output, state, last = sys.argv[1:]
def lines():
    for number, line in enumerate(open(rows)):
        time.sleep(3e-4)  # as slow as a source
        if number == int(last):
            time.sleep(600)  # until the kill: no machine is so fast that it ends first
        yield line
kdjax.scoring.streams.run_stream(
    lines(), output, detector=detector, backend="onnxruntime", state=state
)
"""


@pytest.mark.slow
def test_kills_lose_and_double_no_line(file, tmp_path):
    rng = random.Random(0)
    values = np.random.default_rng(2).normal(size=(1000, 2))
    rows, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    rows.write_text(table_text(values), "utf-8")
    arguments = [rows, file, output, tmp_path / "state.json"]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    for last in (300, 600, 900):
        size = output.stat().st_size if output.exists() else 0
        with subprocess.Popen([*command, str(last)]) as child:
            while child.poll() is None and (
                not output.exists() or output.stat().st_size <= size
            ):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            child.kill()
        assert child.returncode == -signal.SIGKILL
    assert len(output.read_text("utf-8").splitlines()) < 1000
    subprocess.run([*command, "-1"], check=True)
    whole = io.StringIO()
    run_stream(
        rows.read_text("utf-8").splitlines(),
        whole,
        detector=file,
        backend="onnxruntime",
    )
    assert output.read_text("utf-8") == whole.getvalue()


@pytest.mark.slow
def test_memory_does_not_grow(plain):
    def lines():
        yield "time,x,y\n"
        for number in range(20_000):
            yield f"{number},{number % 7},1\n"

    told = stream_rows(plain, lines())
    for _ in range(2000):
        next(told)
    tracemalloc.start()
    try:
        next(told)
        before = tracemalloc.get_traced_memory()[0]
        rest = sum(1 for _ in told)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert rest == 20_000 - 2001
    assert grown < rest / 2  # bytes
