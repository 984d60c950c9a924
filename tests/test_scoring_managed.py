"""Planned spans, shelved and acknowledged events of a stream, decided while it runs."""

import io
import json
import os

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.data.readers import read_table
from kdjax.detection.storage import save_detector
from kdjax.detection.tables import score_table
from kdjax.detection.timestamps import Timestamp
from kdjax.errors import ConfigError
from kdjax.export.onnx import onnx_file
from kdjax.notify import outbox
from kdjax.scoring import managed
from kdjax.scoring.managed import Managed, Spans
from kdjax.scoring.streams import run_stream

QUIET, SPIKE = (2.0, 1.0), (10.0, 1.0)  # a_t of `small`: 0 and 80, at a τ of 8
START = pd.Timestamp("2026-05-01")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(managed, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr("kdjax.scoring.streams.SAVE_EVERY", 0.0)


@pytest.fixture
def timed(small):
    scores = (np.arange(20.0), np.arange(40.0))
    return small._replace(step=1.0, no_data=True, calibration=scores)


@pytest.fixture
def file(timed, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_file(timed, 0))
    return path


def write(path, text):
    """A changed file, whatever the clock of the file system."""
    path.write_text(text)
    write.stamps = getattr(write, "stamps", 0) + 1
    os.utime(path, ns=(write.stamps, write.stamps))
    return path


def at(row):
    return str(START + pd.Timedelta(seconds=row))


def lines(rows=40, spikes=(), first=0, entity=""):
    header = "time,x,y" + ",unit" * bool(entity)
    cells = [SPIKE if row in spikes else QUIET for row in range(rows)]
    return [
        header,
        *(
            f"{at(row)},{x},{y}" + f",{entity}" * bool(entity)
            for row, (x, y) in enumerate(cells)
            if row >= first
        ),
    ]


def streamed(source, file, log=None, **options):
    output, said = io.StringIO(), [] if log is None else log
    options = {"backend": "onnxruntime"} | options
    run_stream(source, output, detector=file, log=said.append, **options)
    found = [json.loads(line) for line in output.getvalue().splitlines()]
    return [one for one in found if "event" not in one]


def sent(path):
    """Phase, first row and last row of each message."""
    if not path.exists():
        return []
    found = map(json.loads, path.read_text().splitlines())
    return [(one["phase"], row_of(one["start"]), row_of(one["end"])) for one in found]


def row_of(time):
    return time and int((pd.Timestamp(time) - START).total_seconds())


# Spans.


def moment(row):
    return Timestamp("local", START.value + row * 10**9)


def test_spans_are_read_again_when_they_change(tmp_path):
    path, said = tmp_path / "spans.csv", []
    write(path, f"start,end,entity\n{at(5)},{at(7)},saw\n")
    spans = Spans(path, said.append)
    assert [spans("saw", moment(row)) for row in (4, 5, 7, 8)] == [0, 1, 1, 0]
    assert not spans("press", moment(6))
    write(path, f"start,end\n{at(20)},{at(20)}\n")
    assert [spans("press", moment(row)) for row in (6, 19, 20, 21)] == [0, 0, 1, 0]
    assert said == [f"{path} changed and was read again"]
    # A faulty file, or none, changes nothing, and is said once.
    write(path, "from,to\n1,2\n")
    assert [spans("press", moment(20)) for _ in range(3)] == [True] * 3
    path.unlink()
    assert [spans("press", moment(20)) for _ in range(3)] == [True] * 3
    assert len(said) == 3 and all(
        "The last valid content of" in one for one in said[1:]
    )
    # A header alone ends all spans.
    write(path, "start,end\n")
    assert not spans("press", moment(20))


def test_spans_of_another_clock_are_refused(tmp_path):
    path = write(tmp_path / "spans.csv", f"start,end\n{at(5)},{at(7)}\n")
    spans = Spans(path, print)
    with pytest.raises(ConfigError, match="the data have a time zone"):
        spans("a", Timestamp("zoned", START.value))
    with pytest.raises(ConfigError, match="the data need row numbers from 0"):
        spans("a", Timestamp("", 5))
    with pytest.raises(ConfigError, match=r"none.csv does not exist"):
        Spans(tmp_path / "none.csv", print)
    numbers = write(tmp_path / "rows.csv", "start,end\n5,7\n")
    assert Spans(numbers, print)("a", Timestamp("", 7))


@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_a_stream_leaves_out_what_a_file_leaves_out(timed, tmp_path, backend):
    save_detector(tmp_path / "detector", timed)
    spans = write(
        tmp_path / "spans.csv", f"start,end\n{at(12)},{at(14)}\n{at(30)},{at(30)}\n"
    )
    rows = lines(spikes=(5, 13, 14, 20, 29))
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(rows) + "\n")
    (series,) = read_table(path, time_column="time", exclude=spans)
    table = score_table(timed, series, entity="a", causal=True)
    found = streamed(rows, tmp_path / "detector", exclude=spans, backend=backend)
    assert [one["alarm"] for one in found] == table["alarm"].tolist()
    assert [one["state"] for one in found] == table["state"].tolist()
    scores = [np.nan if one["score"] is None else one["score"] for one in found]
    np.testing.assert_allclose(scores, table["score"], rtol=1e-5)
    left_out = [row for row, one in enumerate(found) if one.get("excluded")]
    assert left_out == [12, 13, 14, 30]
    assert sum(one["alarm"] for one in found) == 4 + 4 + 1


def test_entities_have_spans_of_their_own(timed, tmp_path):
    save_detector(tmp_path / "detector", timed)
    spans = write(tmp_path / "spans.csv", f"start,end,entity\n{at(0)},{at(9)},saw\n")
    rows = [*lines(10, entity="saw"), *lines(10, entity="press")[1:]]
    reading = {"entity_column": "unit"}
    found = streamed(
        rows, tmp_path / "detector", exclude=spans, reading=reading, backend="jax"
    )
    assert [one["entity"] for one in found if one.get("excluded")] == ["saw"] * 10
    states = [one["state"] for one in found if one["entity"] == "press"]
    assert states == ["unknown"] * 3 + ["normal"] * 7


def test_a_stream_without_times_leaves_out_rows_by_their_numbers(timed, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_file(timed._replace(step=0.0, no_data=False), 0))
    spans = write(tmp_path / "spans.csv", "start,end\n6,7\n")
    found = streamed(["x,y", *["2.0,1.0"] * 12], path, exclude=spans)
    assert [n for n, one in enumerate(found) if one.get("excluded")] == [6, 7]
    assert [one["state"] for one in found][5:12] == [
        "normal", *["unknown"] * 5, "normal",
    ]  # fmt: skip


# Messages.


def test_an_event_in_a_shelved_span_is_not_sent(file, tmp_path):
    spans = write(tmp_path / "spans.csv", f"start,end\n{at(8)},{at(20)}\n")
    log = tmp_path / "log"
    found = streamed(
        lines(spikes=(10, 30)), file, shelve=spans, on_alarm=(f"file:{log}",)
    )
    assert sent(log) == [("begin", 30, None), ("end", 30, 33)]
    # Rows are scored as ever.
    assert [n for n, one in enumerate(found) if one["alarm"]] == [
        *range(10, 14), *range(30, 34),
    ]  # fmt: skip


def test_a_shelved_event_begins_once_the_span_is_over(file, tmp_path):
    spans = write(tmp_path / "spans.csv", f"start,end\n{at(8)},{at(14)}\n")
    log = tmp_path / "log"
    spikes = range(10, 20)
    streamed(lines(spikes=spikes), file, shelve=spans, on_alarm=(f"file:{log}",))
    assert sent(log) == [("begin", 10, None), ("end", 10, 22)]


def test_an_event_that_began_before_the_span_ends_aloud(file, tmp_path):
    spans = write(tmp_path / "spans.csv", f"start,end\n{at(11)},{at(30)}\n")
    log = tmp_path / "log"
    streamed(lines(spikes=(10,)), file, shelve=spans, on_alarm=(f"file:{log}",))
    assert sent(log) == [("begin", 10, None), ("end", 10, 13)]


def test_decisions_hold_over_a_restart_and_can_be_taken_back(file, tmp_path):
    spans = write(tmp_path / "spans.csv", f"start,end\n{at(8)},{at(39)}\n")
    log, rows = tmp_path / "log", lines(spikes=range(10, 24))
    options = {"state": tmp_path / "state", "on_alarm": (f"file:{log}",)}
    streamed(rows[:16], file, shelve=spans, **options)
    assert sent(log) == []
    write(spans, "start,end\n")  # the event is still open
    streamed(rows[:20], file, shelve=spans, **options)
    assert sent(log) == [("begin", 10, None)]
    seen = write(tmp_path / "seen.csv", "id,start\nsomething,else\n")
    streamed(rows[:22], file, shelve=spans, acknowledged=seen, **options)
    (begun,) = map(json.loads, log.read_text().splitlines())
    write(seen, f"id,start\n{begun['id']},{begun['start']}\n")
    for stop in (23, 24):  # one message, whatever the restarts
        streamed(rows[:stop], file, acknowledged=seen, **options)
    streamed(rows, file, **options)
    assert sent(log) == [
        ("begin", 10, None), ("acknowledged", 10, None), ("end", 10, 26),
    ]  # fmt: skip
    last = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one.get("acknowledged") for one in last] == [None, True, True]
    assert {one["id"] for one in last} == {begun["id"]}


def test_shelving_ends_while_the_stream_waits_for_rows(tmp_path):
    """By the file, without a row: `due` is asked each second."""
    spans = write(tmp_path / "spans.csv", f"start,end\n{at(0)},{at(99)}\n")
    read = Spans(spans, print)
    one = Managed(lambda e, at: read(e["entity"], at), lambda name: False, saved=())
    event = {"id": "x", "entity": "a", "start": at(5), "end": None}
    assert one.changed(event, "local") == []
    assert one.due(lambda entity: moment(6)) == []
    write(spans, "start,end\n")
    assert one.due(lambda entity: moment(6)) == [(event, "begin")]
    assert one.due(lambda entity: moment(6)) == []
    ended = event | {"end": at(7)}
    assert one.changed(ended, "local") == [(ended, "end")]
    assert one.state() == []


def test_faulty_lists_of_ids_are_refused_or_said(file, tmp_path):
    seen = write(tmp_path / "seen.csv", "name\nx\n")
    options = {"on_alarm": (f"file:{tmp_path / 'log'}",)}
    with pytest.raises(ConfigError, match="seen.csv has no column id"):
        streamed(lines(), file, acknowledged=seen, **options)
    with pytest.raises(ConfigError, match="none.csv"):
        streamed(lines(), file, acknowledged=tmp_path / "none.csv", **options)
    with pytest.raises(ConfigError, match="give on_alarm too"):
        streamed(lines(), file, acknowledged=seen)


def test_the_program_takes_the_three_files(file, tmp_path, monkeypatch, capsys):
    spans = write(tmp_path / "spans.csv", f"start,end\n{at(8)},{at(20)}\n")
    log = tmp_path / "log"
    text = "\n".join(lines(spikes=(10, 30))) + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    given = ["stream", f"--detector={file}", "--backend=onnxruntime"]
    given += [f"--shelve={spans}", f"--on_alarm=file:{log}"]
    assert main(["kdjax", *given]) == 0
    assert sent(log) == [("begin", 30, None), ("end", 30, 33)]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["kdjax", *given[:3], f"--exclude={spans}"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(bool(one.get("excluded")) for one in said) == 13


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--shelve=spans.csv"],
            "--shelve selects messages of --on_alarm: give --on_alarm",
        ),
        (["--exclude=none.csv"], "--exclude=none.csv is not a file: correct the path"),
        (["--acknowledged=none.csv", "--on_alarm=file:log"], "none.csv is not a file"),
    ],
)
def test_the_program_refuses_before_it_reads(
    file, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "spans.csv", "start,end\n")
    monkeypatch.setattr("kdjax.commands.common.start_jax", lambda: pytest.fail("late"))
    command = ["kdjax", "stream", f"--detector={file}", "--backend=onnxruntime"]
    assert main([*command, *flags]) == 2
    assert message in capsys.readouterr().err
