"""Rows that can be read and are odd, and files larger than the memory: what comes of them.

By the index in `test_bad_input.py`, which has the rows and files that are refused.
"""

import gzip
import io
import json
import os
import re
import sys

import numpy as np
import pandas as pd
import pytest
from test_bad_input import (
    TINY,
    command,
    csv,
    good,
    one_line,
    refusal,
    saved_detector,  # noqa: F401 - the fixture `saved`
)

from kdjax import DataError, KDDetector
from kdjax.cli import main
from kdjax.data import raw as memory
from kdjax.data import readers as files
from kdjax.data import schema


@pytest.fixture
def place(tmp_path):
    """The path of a file, and the folder beside it for what is written."""
    (tmp_path / "out").mkdir()
    return tmp_path / "a.csv", tmp_path / "out"


@pytest.fixture
def score(saved, place, capsys):
    """Scores rows by the verb; the table, as text, and what was said."""

    def run(frame, *options):
        path, out = place
        frame.to_csv(path, index=False)
        assert (
            main([*map(str, ("kdjax", *command("score", path, saved, out))), *options])
            == 0
        )
        said = capsys.readouterr().out
        return pd.read_csv(out / "s.csv", dtype=str, keep_default_na=False), said

    return run


@pytest.fixture
def stream(saved, monkeypatch, capsys):
    """Streams bytes by the verb; its exit code, answers and last words."""

    def run(data, *options):
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(data), newline="\n")
        )
        code = main(["kdjax", "stream", f"--detector={saved.detector}", *options])
        out, err = capsys.readouterr()
        return (
            code,
            [json.loads(line) for line in out.splitlines() if '"event"' not in line],
            err.splitlines(),
        )

    return run


# What rows do that can be read.


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_may_end_in_any_way(stream, end):
    text = csv(good()[:30]).decode()
    code, expected, _ = stream(text.encode())
    assert (code, len(expected)) == (0, 30)
    assert stream(text.replace("\n", end).encode())[:2] == (0, expected)


def test_a_row_without_a_score_is_unknown_and_never_normal(score):
    frame = good()
    frame.loc[250] = np.nan
    frame.loc[100, "heat"] = np.nan
    table, _ = score(frame, "--missing=mask")
    assert table["state"][250] == "unknown" and table["score"][250] == ""
    assert table["state"][100] != "unknown" and table["score"][100] != ""
    assert set(table["alarm"]) <= {"0", "1"}


def test_a_huge_spike_is_an_alarm_and_written_as_inf(score, stream, saved):
    frame = good()
    frame.loc[250, "heat"] = 1e30
    table, _ = score(frame, "--causal")
    assert table["score"][250] == table["window_score"][250] == "inf"
    assert set(table["state"][250:260]) == {"anomaly"} and set(
        table["alarm"][250:260]
    ) == {"1"}
    assert not (table[9:] == "").any(axis=None)
    code, answers, _ = stream(csv(frame))
    assert code == 0
    assert {a["window_score"] for a in answers[250:260]} == {"inf"}
    assert {a["state"] for a in answers[250:260]} == {"anomaly"}
    predicted = KDDetector.load(saved.detector).predict(frame)
    assert predicted[250:255].any() and predicted.dtype.kind == "i"


def test_a_constant_column_that_moves_is_an_event_of_its_own(score, place):
    frame = good()
    before, _ = score(frame, "--contributions")
    frame.loc[250, "dead"] += 1
    after, said = score(frame, "--contributions")
    pd.testing.assert_frame_equal(after, before)
    assert {float(part) for part in after["contribution:dead"] if part} == {0.0}
    events = pd.read_csv(
        place[1] / "s.csv.events.csv", dtype=str, keep_default_na=False
    )
    (moved,) = events[events["kind"] == "constant_moved"].to_dict("records")
    assert (moved["start"], moved["end"]) == (after["time"][250],) * 2
    assert (moved["channels"], moved["severity"]) == ("dead", "")
    assert "outside the training range: dead 1" in said


def test_copies_of_a_column_leave_scores_finite():
    frame = good().assign(copy=good()["load"], twice=2 * good()["load"])
    detector = KDDetector(
        detector="mahalanobis", window_size=10, stride=5, false_alarm_rate=0.2
    ).fit(frame)
    scores = detector.decision_function(frame)
    assert np.isfinite(scores).all() and scores.min() >= 0
    frame.loc[250, "copy"] += 9  # the copies part
    assert detector.predict(frame)[255] == 1


def test_fewer_rows_than_columns_leave_scores_finite():
    rows = np.random.default_rng(1).normal(size=(60, 90))
    detector = KDDetector(
        detector="mahalanobis", window_size=2, stride=1, false_alarm_rate=0.2
    ).fit(rows)
    assert np.isfinite(detector.decision_function(rows)).all()


def test_another_unit_is_warned_of(score):
    frame = good()
    frame["heat"] *= 1e5
    _, said = score(frame)
    assert "warning: 400 of 400 rows (100.0%) have values outside the training" in said
    assert "heat 4" in said


# Too few rows.


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [(12, 3, "there is only one fit window"), (5, 20, "no entity has a fit window")],
)
def test_rows_for_fewer_than_two_windows_are_refused(
    rows,
    columns,
    said,
    saved,
    place,
    capsys,
):
    path, out = place
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(rows, columns)))
    frame.add_prefix("c").to_csv(path, index=False)
    fixed = ["--config.threshold.method=fixed", "--config.threshold.value=9"]
    small = {"data.window": 4, "data.validation": 0.4, "data.calibration": 0.05}
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    line = one_line([*command("run", path, saved, out), *fixed, *flags], capsys)
    assert line.startswith(f"{path}: {said}")
    assert re.search(r"[Gg]ive \d+ rows or more", line)
    assert list(out.iterdir()) == []
    with pytest.raises(DataError, match=r"fit window.*[Gg]ive \d+ rows or more"):
        KDDetector(window_size=small.pop("data.window"), settings=small).fit(frame)


def test_too_few_rows_for_the_rate_are_refused(saved, place, capsys):
    path, out = place
    path.write_bytes(csv())
    rate = "--config.threshold.false_alarm_rate=0.001"
    method = "--config.threshold.method=conformal"
    line = one_line([*command("run", path, saved, out), rate, method], capsys)
    assert "needs at least 999 calibration" in line and list(out.iterdir()) == []
    assert "data.stride=" not in line and re.search(r"give [\d,]+ rows or more", line)
    path.write_bytes(csv(good()[:15]))
    line = one_line(command("calibrate", path, saved, out), capsys)
    assert "needs at least 5 " in line and list(out.iterdir()) == []
    assert line.endswith("give more rows.")


# Labels.


@pytest.mark.parametrize("verb", ["run", "score", "calibrate"])
@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("2", "label 2 is neither 0 (normal) nor 1 (anomaly); correct it"),
        ("0.5", "label 0.5 is neither 0"),
        ("", "label nan is neither 0"),
        ("yes", "'yes' is not a number; labels are 0 (normal) or 1 (anomaly)"),
        (None, "has no column 'fault': its columns are load, heat, dead"),
    ],
)
def test_bad_labels_are_refused(verb, cell, said, saved, place, capsys):
    path, out = place
    frame = good()
    if cell is not None:
        frame["fault"] = "0"
        frame.loc[250, "fault"] = cell
        said = f"row 251 (line 252), column 4 ('fault'): {said}"
    frame.to_csv(path, index=False)
    arguments = command("test" if verb == "run" else verb, path, saved, out)
    flag = "config.data.label_column" if verb == "run" else "label_column"
    line = one_line([*arguments, f"--{flag}=fault"], capsys)
    assert line.startswith(str(path)) and said in line
    assert list(out.iterdir()) == []


# Files larger than the memory.


@pytest.mark.parametrize(
    "verb", ["run", "test", "score", "calibrate", "export", "exclude", "info", "api"]
)
def test_text_larger_than_the_memory_is_refused(verb, saved, tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_bytes(csv())
    try:
        os.truncate(path, 10**13)  # takes no room on disk
    except OSError:
        pytest.skip("the disk has no sparse files")
    line = refusal(verb, path, saved, tmp_path / "out", capsys)
    assert line.startswith(f"{path} needs at least 1e+04 GB of memory, and only ")
    assert line.endswith(
        "convert it to Parquet, which is read in pieces, or give it in parts."
    )


@pytest.mark.parametrize("verb", ["run", "test", "score", "fleet", "calibrate", "api"])
def test_packed_text_larger_than_the_memory_is_refused(
    verb,
    saved,
    tmp_path,
    capsys,
    monkeypatch,
):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"load,heat,dead\n" + b"1,2,3\n" * 10**6, 1))
    monkeypatch.setattr(memory, "available_memory", lambda: 1e6)
    line = refusal(verb, path, saved, tmp_path / "out", capsys)
    assert (
        f"{path} needs at least 0.006 GB of memory, and only 0.001 GB are free: "
        in line
    )


def test_free_memory_is_that_of_the_machine_or_its_share(tmp_path):
    psutil = pytest.importorskip("psutil")
    there = psutil.virtual_memory().available
    assert abs(memory._of_machine() - there) < 0.3 * psutil.virtual_memory().total
    assert memory.available_memory() <= memory._of_machine() * 1.1
    limit, taken = tmp_path / "memory.max", tmp_path / "memory.stat"
    taken.write_text("file 100\nanon 300\n")
    paths = str(limit), str(taken), "anon"
    assert memory._of_group(*paths) == np.inf
    limit.write_text("max\n")
    assert memory._of_group(*paths) == np.inf
    limit.write_text("1000\n")
    assert memory._of_group(*paths) == 700


def test_text_whose_numbers_have_no_room_is_refused(tmp_path, monkeypatch):
    """Short cells take more as numbers than as text."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 10_000)
    monkeypatch.setattr(memory, "available_memory", lambda: 200_000)
    with pytest.raises(DataError, match="at least 0.0004 GB .* convert it to Parquet"):
        files.read_table(path)


def test_a_packed_array_larger_than_the_memory_is_refused(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "channels").mkdir()
    path = tmp_path / "channels" / "A-1.npz"
    np.savez_compressed(path, train=np.zeros((10**5, 25), np.float32), test=0)
    (tmp_path / "labeled_anomalies.csv").write_text(
        "chan_id,spacecraft,anomaly_sequences,num_values\nA-1,SMAP,[],9\n"
    )
    monkeypatch.setattr(memory, "available_memory", lambda: 1e6)
    data = ["--config.data.name=smap", f"--config.data.root={tmp_path}"]
    line = one_line(["run", *data, f"--workdir={tmp_path / 'w'}", *TINY], capsys)
    assert line.startswith(
        f"{path} needs at least 0.01 GB of memory, and only 0.001 GB"
    )


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_tables_larger_than_the_memory_are_scored_from_disk(
    kind,
    saved,
    tmp_path,
    monkeypatch,
):
    path, mapped = tmp_path / f"a.{kind}", []
    if kind == "npy":
        np.save(path, good().to_numpy())
    else:
        good().to_parquet(path)
    arguments = ["kdjax", *map(str, command("score", path, saved, tmp_path))]
    assert main(arguments) == 0
    whole = (tmp_path / "s.csv").read_bytes()
    monkeypatch.setattr(files, "available_memory", lambda: 28 * 1000)
    room = schema.mapped_rows
    monkeypatch.setattr(
        schema, "mapped_rows", lambda *shape: mapped.append(shape) or room(*shape)
    )
    assert main(arguments) == 0
    assert (tmp_path / "s.csv").read_bytes() == whole and mapped


def test_more_channels_than_covariances_have_room_for_are_refused(
    saved,
    place,
    capsys,
    monkeypatch,
):
    path, out = place
    path.write_bytes(csv())
    from kdjax.experiment import pipeline

    def wide(channels):
        return memory.check_width(100_000 * channels)

    monkeypatch.setattr(pipeline, "check_width", wide)
    line = one_line(command("run", path, saved, out), capsys)
    assert line.startswith(f"{path}: 300,000 channels need 2.88e+03 GB of memory for")
    assert list(out.iterdir()) == []


# Lines of a stream.


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"1,word,5", "column 2 ('heat'): 'word' is not a number; correct it"),
        (b"1,1e400,5", "channel 'heat': inf is infinite or beyond float32 (3.4e38)"),
        (b"1,1e39,5", "channel 'heat': 1e+39 is infinite or beyond float32 (3.4e38)"),
        (b"1,2", "2 cells, expected 3: complete it"),
        (b"1,2,5,4", "4 cells, expected 3: complete it"),
        (b"1,\xff,5", "column 2 ('heat'): '\ufffd' is not a number; correct it"),
        (b"1,\x00,5", "column 2 ('heat'): '\\x00' is not a number; correct it"),
    ],
)
def test_a_bad_line_of_a_stream_is_unknown_or_ends_it(line, said, stream):
    head = b"load,heat,dead\n" + b"1,2,5\n" * 12
    code, answers, last = stream(head + line + b"\n1,2,5\n")
    assert code == 0 and len(answers) == 14
    assert said in answers[12]["error"] and answers[12]["line"] == 14
    assert answers[12]["state"] == "unknown" and answers[12]["score"] is None
    assert answers[13]["state"] != "unknown" and "1 invalid line" in last[-1]
    code, answers, last = stream(head + line + b"\n1,2,5\n", "--on_error=stop")
    assert (code, len(answers)) == (2, 12)
    assert last[-1].startswith("kdjax: line 14: ") and said in last[-1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("load,heat\n1,2\n", "expected; missing: dead. The"),
        ("load,heat,dead,new\n1,2,5,4\n", "expected; not expected: new. The"),
        ("load,heat,heat,dead\n1,2,3,5\n", "there twice: heat"),
        (f"{','.join(map(str, range(20_000)))}\n", "missing: load, heat, dead"),
        ('{"load": 1, "heat": 2}\n{"load": 1, "heat": 2}\n', None),
    ],
)
def test_a_stream_of_other_columns_leaves_no_file(text, said, stream, tmp_path):
    output, state = tmp_path / "o.jsonl", tmp_path / "state"
    options = [f"--output={output}", f"--state={state}"]
    if said is None:  # JSON tells in each line anew what it holds
        options, said = [*options, "--on_error=stop"], "missing: dead"
        output.write_text("old\n")
    code, _, last = stream(text.encode(), *options)
    assert code == 2 and last[-1].startswith("kdjax: ") and said in last[-1]
    assert len(last[-1]) < 2100
    if output.exists():
        assert output.read_text() == "old\n"
    else:
        assert not state.exists()
