"""Streams of many entities in one input: as so many streams, in one process."""

import io
import json
import math
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import kdjax
from kdjax.cli import main
from kdjax.detection import detector as detectors
from kdjax.detection.storage import save_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.export.onnx import onnx_file
from kdjax.scoring import machines, opening, streams
from kdjax.scoring.streams import run_stream

BACKENDS = ("jax", "onnxruntime")
COLUMN = {"entity_column": "machine"}


@pytest.fixture
def detector(small):
    """Knows `a` and `b`; others are pooled. Its scores depend on the window."""
    two = np.array([0, 1, 1])
    return small._replace(
        model=small.model._replace(kind="difference"),
        entities=("a", "b"),
        scalers=type(small.scalers)(*(field[two] for field in small.scalers)),
        gaussians=type(small.gaussians)(*(field[two] for field in small.gaussians)),
        thresholds=tuple(small.thresholds[0]._replace(tau=tau) for tau in (8.0, 12, 9)),
        calibration=(np.arange(20.0), np.arange(30.0), np.arange(40.0)),
        step=1.0,
        no_data=True,
        unchanged=np.full((3, 3), 3),
        min_duration=2,
    )


@pytest.fixture
def folder(detector, tmp_path):
    save_detector(tmp_path / "detector", detector)
    return tmp_path / "detector"


@pytest.fixture
def file(detector, tmp_path):
    """Opens faster than the folder; all entities have the values of `a`."""
    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_file(detector, 0))
    return path


def rows_of(name, count, seed):
    """Lines of an entity, each on its own clock, with what can happen to a stream."""
    rng = np.random.default_rng(seed)
    values = (2 * rng.normal(size=(count, 2))).round(3)
    values[count // 3 : count // 3 + 12, 1] = 0.5  # frozen
    seconds = np.arange(count, dtype=float)
    cells = [[repr(float(cell)) for cell in row] for row in values]
    if name == "a":
        cells[7][0] = ""  # missing
    if name == "b":
        seconds[20:] += 60  # a gap
        cells[9][1] = "oops"
    times = [f"{at}" for at in seconds]
    if name != "c":
        start = np.datetime64("2026-03-01T00:00:00" if name == "a" else "2031-05-01")
        times = [str(start + np.timedelta64(int(at), "s")) for at in seconds]
    if name == "c":
        times[11] = "900"  # a row ahead, which is taken back
        times[15] = times[14]  # late
    return [f"{at},{name},{y},{x}" for at, (x, y) in zip(times, cells, strict=True)]


NAMES = ("a", "b", "c", "däs 4")
HEAD = "time,machine,y,x"


def mixed(count=40, seed=0):
    """Lines of four entities in a random order; those of each keep theirs."""
    lines = {name: rows_of(name, count, n) for n, name in enumerate(NAMES)}
    order = np.random.default_rng(seed).permutation([*NAMES] * count)
    return [lines[name].pop(0) for name in order]


def streamed(lines, folder, output=None, **options):
    """What a stream of many entities wrote."""
    said = io.StringIO() if output is None else output
    options = {"reading": COLUMN, **options}
    run_stream(lines, said, detector=folder, **options)
    text = said.getvalue() if output is None else Path(output).read_text("utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def owner(found):
    return found["event"]["entity"] if "event" in found else found["entity"]


def alike(found, wanted):
    """The same answers, but for rounding of scores."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        one, other = (dict(part.get("event") or part) for part in (one, other))
        for key in ("score", "window_score", "severity", "shares", "tau"):
            numbers = [part.pop(key, None) for part in (one, other)]
            if not any(number in ("inf", None) for number in numbers):
                np.testing.assert_allclose(*numbers, rtol=2e-5, atol=2e-4)
            else:
                assert numbers[0] == numbers[1]
        assert {**one, "line": 0, "entity": 0} == {**other, "line": 0, "entity": 0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("moving", [{}, {"rolling": 0.2}])
def test_each_entity_has_the_answers_of_its_own_stream(folder, backend, moving):
    lines = mixed()
    options = {"backend": backend, **moving}
    log = []
    found = streamed([[HEAD], lines], folder, log=log.append, **options)
    asked = [line.split(",")[1] for line in lines]
    assert [one["entity"] for one in found if "event" not in one] == asked
    kinds = {one["event"]["kind"] for one in found if "event" in one}
    assert kinds == {"score", "frozen", "no_data"}
    for name in NAMES:
        own = [line for line in lines if f",{name}," in line]
        options["reading"] = {"ignore": ["machine"]}
        said, known = io.StringIO(), name if name in "ab" else "pooled"
        run_stream(
            [HEAD, *own], said, detector=folder, entity=known, **options
        )  # under its threshold; so the ids of pooled ones differ
        wanted = [json.loads(line) for line in said.getvalue().splitlines()]
        mine = [one for one in found if owner(one) == name]
        assert all(one["entity"] == name for one in mine if "event" not in one)
        assert sum(one.get("alarm", 0) for one in mine) > 1
        for one in [*mine, *wanted] if name not in "ab" else []:
            one.get("event", {}).pop("id", None)
        alike(mine, wanted)
    assert log[0].endswith("own threshold, or if it has none with that of pooled: 9")
    assert log[1].endswith("of 'pooled'; further such entities are not reported.")
    assert log[-1].startswith("158 rows in all of 4 streams, 3 invalid lines")


@pytest.mark.parametrize("backend", BACKENDS)
def test_lines_that_come_together_are_scored_in_few_calls(folder, backend, monkeypatch):
    calls = []
    if backend == "jax":
        make = detectors.entity_streams

        def counting(*arguments, **options):
            found = make(*arguments, **options)
            score = found.score
            found.score = lambda names, w: calls.append(len(w)) or score(names, w)
            return found

        monkeypatch.setattr(detectors, "entity_streams", counting)
    else:
        score = opening._onnx_scores
        monkeypatch.setattr(
            opening, "_onnx_scores", lambda s, w: calls.append(len(w)) or score(s, w)
        )
    names = [f"m{number}" for number in range(300)]
    lines = [f"{at},{name},{at},1" for at in range(5) for name in names]
    found = streamed([[HEAD, *lines]], folder, backend=backend, log=[].append)
    assert len(found) == 1500
    # The first 900 rows have no whole window.
    assert calls == [4 * 256 - 900, 256, 1500 - 5 * 256]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_line_waits_for_others(folder, backend):
    said = io.StringIO()

    def lines():
        yield HEAD
        for number, line in enumerate(mixed(20)):
            assert said.getvalue().count('"entity": "') >= number
            yield [line, "", "   "] if number % 2 else line

    run_stream(lines(), said, detector=folder, backend=backend, reading=COLUMN)
    rows = [line for line in said.getvalue().splitlines() if '"event"' not in line]
    assert len(rows) == 80


def test_lines_at_fault_disturb_no_other_entity(folder):
    lines = mixed()
    wanted = streamed([HEAD, *lines], folder, backend="onnxruntime")
    bad = ["5,a", "soon,b,1,1", "7,,1,1", ",c,1,1", "2026-03-01,a,x,1", "1,new,inf,1"]
    rng, worse = random.Random(3), [*lines]
    for line in bad * 3:
        worse.insert(rng.randrange(len(worse)), line)
    found = streamed([[HEAD], worse], folder, backend="onnxruntime")
    faults = [one for one in found if "error" in one and one["line"]]
    again = [one for one in found if one not in faults]
    alike(again, [one for one in wanted if "error" not in one])
    own = [(one["entity"], one["error"]) for one in faults]
    assert len(own) == 3 * len(bad) + 2
    for name, words in (
        (None, "2 cells, expected 4"),
        ("b", "'soon' is neither"),
        (None, "the entity is missing"),
        ("c", "the time is missing"),
        ("a", "'x' is not a number"),
        ("new", "'y': inf"),
        ("b", "'oops' is not a number"),
        ("c", "not after that of the row before"),
    ):
        assert any(who == name and words in text for who, text in own), words
    with pytest.raises(DataError, match="^line 3: 2 cells"):
        streamed([[HEAD, lines[0], "5,a"]], folder, on_error="stop")


def test_answers_before_a_stop_are_written(folder, tmp_path):
    good = [f"0,m{n},1,1" for n in range(9)]
    output, state = tmp_path / "out", tmp_path / "state"
    with pytest.raises(DataError, match="'x' is not a number"):
        streamed(
            [[HEAD, *good, "0,m9,x,1"]],
            folder, output, on_error="stop", state=state, backend="onnxruntime",
        )  # fmt: skip
    assert len(output.read_text().splitlines()) == 9


def test_objects_name_their_entity(folder):
    lines = [
        json.dumps({"machine": name, "time": at, "x": at, "y": 1})
        for at in range(6)
        for name in ("a", 7, "n\udc80")
    ]
    found = streamed([lines], folder)
    assert [one["entity"] for one in found] == ["a", "7", "n\udc80"] * 6
    assert {one["state"] for one in found[9:]} == {"normal"}


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [False, True])
def test_entities_that_wait_on_disk_answer_alike(folder, tmp_path, backend, most, kept):
    chunks = [[HEAD], *(mixed()[at : at + 7] for at in range(0, 160, 7))]
    wanted = streamed(chunks, folder, backend=backend)
    state = tmp_path / "state" if kept else None
    found = streamed(chunks, folder, backend=backend, most_open=most, state=state)
    if kept:  # then open events have no end at the end of the input
        ends = [one for one in wanted if one not in found]
        assert ends and all("event" in one and one["event"]["end"] for one in ends)
        wanted = [one for one in wanted if one not in ends]
    assert found == wanted


# Restarts.

OPTIONS = {"backend": "onnxruntime", "reading": COLUMN}


@pytest.fixture
def replayed(file, tmp_path):
    """Runs lines with a state, appending to a file; what lies there then."""

    def run(lines, **options):
        output, said = tmp_path / "out.jsonl", []
        try:
            run_stream(
                [[HEAD], lines], output, detector=file, state=tmp_path / "state",
                log=said.append, **OPTIONS, **options,
            )  # fmt: skip
        except DataError as error:
            if "no row has a score" not in str(error):
                raise
        return output.read_text("utf-8"), said

    return run


def clear(tmp_path):
    for path in (*tmp_path.glob("state*"), tmp_path / "out.jsonl"):
        path.unlink(missing_ok=True)


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("most", [1, 1000])
def test_lines_sent_again_are_neither_lost_nor_doubled(replayed, tmp_path, most):
    lines = mixed(24)
    lines[30:30] = ["x,x", "x,x", "soon,b,1,1"]
    lines.insert(70, "x,x")
    whole, _ = replayed(lines)
    for cut in (2, 32, 33, 50, 97):
        for first in (0, cut // 2, max(cut - 3, 0)):
            clear(tmp_path)
            replayed(lines[:cut], most_open=most)
            text, said = replayed(lines[first:], most_open=most)
            alike(objects(text), objects(whole))
            again = cut - first
            assert f"{again} line" in said[-1] or not again


class CrashError(Exception):
    """In place of a kill: nothing is saved behind it."""


def crashing(lines, together):
    for at in range(0, len(lines), together):
        yield lines[at : at + together]
    raise CrashError


@pytest.fixture
def saving(monkeypatch):
    """States are saved behind all lines that are answered together."""
    monkeypatch.setattr(streams, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(streams, "SAVE_SHARE", math.inf)


@pytest.mark.parametrize("most", [1, 1000])
@pytest.mark.parametrize("together", [1, 5])
def test_a_crash_loses_and_doubles_no_line(
    replayed, file, tmp_path, saving, most, together
):
    lines = mixed(24)
    whole, _ = replayed(lines)
    for cut in (3, 8, 40, 77):
        clear(tmp_path)
        for lost in (cut, cut + 12):
            with pytest.raises(CrashError):
                run_stream(
                    crashing([HEAD, *lines[:lost]], together), tmp_path / "out.jsonl",
                    detector=file, state=tmp_path / "state", most_open=most,
                    **OPTIONS,
                )  # fmt: skip
        text, _ = replayed(lines, most_open=most)
        alike(objects(text), objects(whole))


def test_a_source_that_goes_on_loses_no_row(replayed, tmp_path):
    lines = mixed(24)
    whole, _ = replayed(lines)
    for cut in (5, 33, 60):
        clear(tmp_path)
        replayed(lines[:cut])
        text, said = replayed(lines[cut:])
        alike(objects(text), objects(whole))
        assert "skipped" not in said[-1]


def test_a_clock_that_was_set_back_is_of_its_entity(replayed, tmp_path):
    """Rows of `a` begin anew at an earlier time, which no other entity's tells."""
    both = [f"{at},{name},{at % 3},1" for at in range(300, 320) for name in "ab"]
    back = [f"{at},a,{at % 3},1" for at in range(20)]
    replayed([*both, *back[:12]])
    text, said = replayed([*back[12:], "320,b,1,1"])
    rows = [one for one in objects(text) if "event" not in one]
    assert len(rows) == 61 and "skipped" not in said[-1]
    numbers = [one["row"] for one in rows if one["entity"] == "a"]
    assert [n for n in numbers if n is not None] == [*range(20 + 11)]


def test_entities_without_times_go_on_by_their_counts(file, tmp_path):
    lines = [f"{name},{n % 5},1" for n in range(9) for name in "ab"]
    output, state = tmp_path / "out", tmp_path / "state"
    for part in (lines[:7], lines[7:]):
        run_stream(
            [["machine,y,x", *part]], output, detector=file, state=state, **OPTIONS
        )
    found = [json.loads(line) for line in output.read_text().splitlines()]
    rows = [one["row"] for one in found if one.get("entity") == "b"]
    assert rows == [*range(9)]


def test_a_save_writes_what_changed(replayed, tmp_path):
    names = [f"m{number}" for number in range(50)]
    replayed([f"{at},{name},1,1" for at in range(9) for name in names])

    def kept():
        with sqlite3.connect(tmp_path / "state") as file:
            found = dict(file.execute("SELECT name, state FROM entities"))
        file.close()
        return found

    before = kept()
    assert len(before) == 51  # with that of faults without an entity
    replayed(["9,m7,1,1", "9,m8,1,1"])
    after = kept()
    assert {name for name in after if after[name] != before[name]} == {
        b"", b"m7", b"m8",
    }  # fmt: skip


def test_states_of_others_and_damaged_ones_are_refused(
    replayed, detector, folder, tmp_path
):
    lines = [f"{at},{name},1,1" for at in range(9) for name in "ab"]
    replayed(lines)
    state = tmp_path / "state"

    def changed(statement):
        with sqlite3.connect(state) as file:
            file.execute(statement)
        file.close()

    message = r"is the state of a stream of several entities \(--entity_column\): give"
    with pytest.raises(ArtifactError, match=message):
        run_stream(["time,y,x"], io.StringIO(), detector=folder, state=state)
    save_detector(tmp_path / "other", detector._replace(thresholds=tuple(
        one._replace(tau=7.0) for one in detector.thresholds
    )))  # fmt: skip
    with pytest.raises(ArtifactError, match="of another detector"):
        streamed([HEAD], tmp_path / "other", state=state)
    changed("UPDATE rows SET cells = zeroblob(8) WHERE entity = 2 AND place = 1")
    with pytest.raises(ArtifactError, match="the rows are not those of the state"):
        replayed(["9,a,1,1", "9,b,1,1"])
    changed("DELETE FROM rows")
    with pytest.raises(ArtifactError, match="can't be restored"):
        replayed(["9,a,1,1", "9,b,1,1"])
    changed("""UPDATE entities SET state = replace(state, '"run": 1', '"run": 2')""")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        replayed(["9,a,1,1"])
    changed("UPDATE whole SET state = 'x'")
    with pytest.raises(ArtifactError, match="is not a state of a stream"):
        replayed(["9,a,1,1"])
    state.unlink()
    run_stream(
        ["time,y,x", *(f"{at},1,1" for at in range(9))], io.StringIO(),
        detector=folder, state=state,
    )  # fmt: skip
    message = "is the state of a stream without --entity_column: remove that flag"
    with pytest.raises(ArtifactError, match=message):
        streamed([HEAD], folder, state=state)
    state.write_text("damaged" * 999)
    with pytest.raises(ArtifactError, match="not a database.* with --entity_column"):
        streamed([HEAD], folder, state=state)
    with pytest.raises(ConfigError, match="most_open=0"):
        streamed([HEAD], folder, most_open=0)


def test_names_of_machines_without_their_flag_are_said(folder):
    for head, name in (("time,y,x,plant", "plant"), ("time,y,x,plant,b", "NAME")):
        with pytest.raises(DataError, match=f"machines need --entity_column={name}"):
            run_stream([head, "0,1,1,a,b"], io.StringIO(), detector=folder)
    with pytest.raises(DataError, match="missing: x; not expected: z") as error:
        run_stream(["time,y,z", "0,1,1"], io.StringIO(), detector=folder)
    assert "--entity_column" not in str(error.value)  # it may be another name of x


# Events and alarms.


def test_messages_name_the_entity_of_their_event(folder, tmp_path):
    target, state = tmp_path / "alarms", tmp_path / "state"
    lines, half = mixed(), 70
    parts = [[HEAD], lines[:half]], [[HEAD], lines[half:]]
    found = []
    for part in parts:
        found += streamed(
            part, folder, state=state, backend="onnxruntime",
            on_alarm=(f"file:{target}",),
        )  # fmt: skip
    sent = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    told = [one["event"] for one in found if "event" in one]
    keys = ("id", "entity", "kind", "end")
    assert [[one[key] for key in keys] for one in sent] == [
        [one[key] for key in keys] for one in told
    ]
    assert {one["entity"] for one in sent} == {*NAMES}
    assert {one["phase"] for one in sent} == {"begin", "end"}


class Clock:
    """In place of the module `time`, moved by hand."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_silence_is_told_of_the_entity_that_is_silent(folder, monkeypatch, tmp_path):
    """Five steps of a second are no gap: `b` is silent for 8, and `a` for 4."""
    clock, said = Clock(), io.StringIO()
    monkeypatch.setattr(machines, "time", clock)
    monkeypatch.setattr(streams, "TELL_EVERY", 0.01)
    stamp = "2026-01-01T00:00:0"

    def lines():
        yield HEAD
        yield [f"{stamp}{at},{name},1,1" for at in range(4) for name in "ab"]
        yield "1,c,1,1"  # times that are numbers don't tell
        clock.now = 4
        time.sleep(0.1)  # looked at, and not yet told
        yield f"{stamp}4,a,1,1"
        clock.now = 8
        until = time.monotonic() + 20
        while "no_data" not in said.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        yield f"{stamp}5,a,1,1"

    run_stream(
        lines(), said, detector=folder, reading=COLUMN, most_open=1,
        backend="onnxruntime", state=tmp_path / "state",
    )  # fmt: skip
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    events = [one["event"] for one in events if "event" in one]
    assert [(one["entity"], one["kind"]) for one in events] == [("b", "no_data")]
    # It ends with the next row, after a restart too.
    (end,) = [
        one["event"]
        for one in streamed(
            [HEAD, f"{stamp}9,b,1,1"], folder, state=tmp_path / "state",
            backend="onnxruntime",
        )
        if "event" in one
    ]  # fmt: skip
    assert end["id"] == events[0]["id"] and end["end"] == f"{stamp}9"


def test_a_few_lines_of_many_entities_are_no_problem(folder):
    """Their first windows have no score: 60 entities' 180 rows are no lack of scores."""
    names, log = [f"m{number}" for number in range(60)], []
    lines = [f"{at},{name},1,{at % 2}" for at in range(5) for name in names]
    streamed([[HEAD, *lines]], folder, log=log.append)
    assert log[-1] == "300 rows in all of 60 streams"
    with pytest.raises(DataError, match="no row has a score: 120 rows in all"):
        streamed([[HEAD, *lines[:120]]], folder)


# Readings on an even grid.


def test_readings_of_entities_lie_on_their_own_grids(
    small, tmp_path, saving, monkeypatch
):
    data = {"layout": "long", "step": "10s", "fill_limit": 3, "missing": "mask"}
    data |= {"tag_column": "tag", "value_column": "value"}
    card = {"title": "by hand", "settings": {"data": data}, "data": {"dated": True}}
    small = small._replace(step=10.0, card=card, calibration=(np.arange(20.0),) * 2)
    file = tmp_path / "long.onnx"
    file.write_bytes(onnx_file(small, 0))
    rng = np.random.default_rng(5)

    def lines(name, offset):
        at = np.cumsum(rng.uniform(1, 5, 200)) + offset
        at[120:] += 200  # a pause
        moments = np.datetime64("2026-01-01") + (1000 * at).astype("m8[ms]")
        return [
            f"{moment},{name},{'xy'[int(rng.integers(2))]},{rng.normal():.3f}"
            for moment in moments
        ]

    own = {name: lines(name, 1000 * n) for n, name in enumerate(("a", "p", "q"))}
    own["p"].insert(90, own["p"][10])  # late
    own["q"].insert(50, own["q"][49])  # repeated
    every = {name: [*found] for name, found in own.items()}
    order = np.random.default_rng(1).permutation([n for n in own for _ in own[n]])
    every = [every[name].pop(0) for name in order]
    head, log = "time,machine,tag,value", []
    options = {"backend": "onnxruntime", "log": log.append}
    found = streamed([[head], every], file, **options)
    assert "1 repeated reading left out" in log[-1]
    for name, mine in own.items():
        said = io.StringIO()
        texts = [head.replace("machine,", "")]
        texts += [line.replace(f",{name},", ",") for line in mine]
        run_stream(texts, said, detector=file, backend="onnxruntime")
        wanted = [json.loads(line) for line in said.getvalue().splitlines()]
        answers = [one for one in found if one.get("entity") == name]
        wanted = [one for one in wanted if "event" not in one]
        assert len(answers) > 40
        alike(answers, wanted)
    # Restarts and entities on disk change nothing.
    output, state = tmp_path / "out", tmp_path / "state"
    with pytest.raises(CrashError):
        run_stream(
            crashing([head, *every[:300]], 1), output, detector=file,
            state=state, most_open=1, **OPTIONS,
        )  # fmt: skip
    for part in (every[:350], every[200:]):
        parted = streamed(
            [[head], part], file, output, state=state, most_open=1,
            backend="onnxruntime",
        )  # fmt: skip
    wanted = [one for one in found if "event" not in one]
    alike([one for one in parted if "event" not in one], wanted)
    # A source that goes on, behind readings that completed a row.
    monkeypatch.setattr(streams, "AT_ONCE", 1)
    said = io.StringIO()
    completing = []

    def followed():
        yield head
        for number, line in enumerate(every, start=1):
            before = said.getvalue().count('"score": ')
            yield line
            if said.getvalue().count('"score": ') > before:
                completing.append(number)

    run_stream(followed(), said, detector=file, **OPTIONS)
    for cut in completing[40:100:20]:
        clear(tmp_path)
        for part in (every[:cut], every[cut:]):
            parted = streamed(
                [[head], *([line] for line in part)], file,
                tmp_path / "out.jsonl", state=state, backend="onnxruntime",
            )  # fmt: skip
        alike([one for one in parted if "event" not in one], wanted)


# The program, and Python.


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_program_streams_entities(folder, tmp_path, monkeypatch, capsys, ending):
    lines = mixed()
    path = tmp_path / "rows.csv"
    path.write_bytes(ending.join(["\ufeff" + HEAD, *lines]).encode())
    command = ["kdjax", "stream", f"--detector={folder}", "--most_open=2"]
    with path.open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main([*command, "--entity_column=machine"]) == 0
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    alike(found, streamed([[HEAD], lines], folder))
    assert "of 4 streams" in said.err.splitlines()[-1]
    with path.open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main([*command, "--entity_column=nothing"]) == 2
    assert "missing: nothing" in capsys.readouterr().err


def test_lines_are_cut_where_they_end(tmp_path):
    """Whatever pieces a pipe gives: several lines, half a line, half a character."""
    from kdjax.commands.stream import _lines

    data = "é,1\r\nb\rc\n\n" + "x" * 200_000 + "\nlast"
    wanted = ["é,1", "b", "c", "", "x" * 200_000, "last"]

    class Pieces(io.RawIOBase):
        def __init__(self):
            self.pieces = [data.encode()[:1], data.encode()[1:4], data.encode()[4:]]

        def readable(self):
            return True

        def readinto(self, target):
            if not self.pieces:
                return 0
            piece = self.pieces.pop(0)
            part = piece[: len(target)]
            if piece[len(part) :]:
                self.pieces.insert(0, piece[len(part) :])
            target[: len(part)] = part
            return len(part)

    source = io.TextIOWrapper(io.BufferedReader(Pieces()))
    assert [line for lines in _lines(source) for line in lines] == wanted


@pytest.mark.parametrize("backend", BACKENDS)
def test_python_updates_several_streams_at_once(folder, backend):
    found = kdjax.open_streams(folder, backend=backend)
    rng = np.random.default_rng(0)
    single = {
        name: kdjax.open_stream(folder, backend=backend, entity=known)
        for name, known in (("a", "a"), ("b", "b"), ("c", "pooled"))
    }
    for at in range(12):
        rows = {name: 3 * rng.normal(size=2) for name in single}
        times = {"a": at, "b": f"2026-01-01T00:00:{at:02d}", "c": 2 * at}
        answers = found.update(rows, times)
        assert [*answers] == [*rows]
        for name, stream in single.items():
            one, other = answers[name], stream.update(rows[name], times[name])
            np.testing.assert_allclose(one[2:4], other[2:4], rtol=1e-5)
            assert (one.row, one.alarm, one.state) == (at, other.alarm, other.state)
    answers = found.update({"a": [1, 2], "b": [1, 2], "c": [math.inf, 1]}, 50)
    assert answers["a"].row == 12 and "infinite" in str(answers["c"])
    assert isinstance(answers["b"], DataError)  # a number, where the others were dates
    other = kdjax.open_streams(folder, backend=backend)
    other["a"].restore(found["a"].state())
    assert other.update({"a": [1, 2]}, 51)["a"] == found.update({"a": [1, 2]}, 51)["a"]


def test_one_file_serves_all_entities(detector, folder, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_file(detector, 1))
    lines = [line for line in mixed() if ",b," not in line]
    log = []
    found = streamed([HEAD, *lines], path, backend="onnxruntime", log=log.append)
    assert log[0] == "scoring all entities with the threshold of b: 12"
    forced = streamed([HEAD, *lines], folder, backend="onnxruntime", entity="b")
    alike(found, forced)
    with pytest.raises(ConfigError, match="was exported for entity 'b', not 'a'"):
        streamed([HEAD], path, backend="onnxruntime", entity="a")


# Kills.

PROGRAM = """
import sys, time
import kdjax.scoring.streams
kdjax.scoring.streams.SAVE_EVERY = 0.02
rows, detector, output, state, last = sys.argv[1:]
def lines():
    together = open(rows).read().splitlines()
    for at in range(0, len(together), 5):
        time.sleep(2e-3)
        if at >= int(last) > 0:
            time.sleep(600)  # until the kill
        yield together[at : at + 5]
kdjax.scoring.streams.run_stream(
    lines(), output, detector=detector, backend="onnxruntime", state=state,
    reading={"entity_column": "machine"}, most_open=3,
    on_alarm=("file:" + state + ".told",),
)
"""


@pytest.mark.slow
def test_kills_lose_and_double_no_line(folder, tmp_path):
    rng = random.Random(0)
    lines = [*mixed(300), "x,x"]
    rows, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    state = tmp_path / "state"
    rows.write_text("\n".join([HEAD, *lines]), "utf-8")
    arguments = [rows, folder, output, state]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    for last in (250, 500, 750, 1000):
        size = output.stat().st_size if output.exists() else 0
        with subprocess.Popen([*command, str(last)]) as child:
            while child.poll() is None and (
                not output.exists() or output.stat().st_size <= size
            ):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            child.kill()
        assert child.returncode == -signal.SIGKILL
    assert len(output.read_text("utf-8").splitlines()) < 1201
    subprocess.run([*command, "0"], check=True)
    run_stream(
        [[HEAD], lines], tmp_path / "whole", detector=folder, **OPTIONS,
        state=tmp_path / "whole.state",
    )  # fmt: skip
    events = objects(output.read_text("utf-8"))
    alike(events, objects((tmp_path / "whole").read_text("utf-8")))
    told = [
        (one["event"]["id"], one["event"]["end"]) for one in events if "event" in one
    ]
    sent = [
        json.loads(line) for line in (tmp_path / "state.told").read_text().splitlines()
    ]
    sent = [(one["id"], one["end"]) for one in sent]
    assert list(dict.fromkeys(sent)) == told  # each, and few twice


def test_a_thread_can_run_many_streams(folder):
    said = io.StringIO()
    worker = threading.Thread(
        target=run_stream,
        args=([HEAD, *mixed(20)], said),
        kwargs={"detector": folder, **OPTIONS},
    )
    worker.start()
    worker.join()
    rows = [line for line in said.getvalue().splitlines() if '"event"' not in line]
    assert len(rows) == 80
