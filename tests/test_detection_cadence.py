"""Rows at another step than in training are refused by every entry, and jitter is not."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdjax import KDDetector
from kdjax.cli import main
from kdjax.data.series import Series
from kdjax.detection.cadence import check_cadence
from kdjax.detection.detector import stream_detector
from kdjax.detection.storage import save_detector
from kdjax.detection.tables import score_table
from kdjax.errors import DataError
from kdjax.export.onnx import onnx_file
from kdjax.scoring.files import score_file
from kdjax.scoring.opening import open_stream
from kdjax.scoring.streams import stream_rows

MINUTE = 60.0


def dates(steps):
    """Times with steps of so many seconds."""
    seconds = np.cumsum([0, *steps]).astype(np.float64)
    start = np.datetime64("2026-04-01", "ns")
    return start + (seconds * 1e9).astype("m8[ns]")


@pytest.mark.parametrize("step", [41, 60, 89])
def test_steps_near_the_one_in_training_pass(step):
    check_cadence(dates([step] * 30), MINUTE)
    check_cadence(np.cumsum([float(step)] * 30), MINUTE)


def test_jitter_and_gaps_pass():
    rng = np.random.default_rng(0)
    check_cadence(dates(60 + rng.uniform(-50, 50, 300)), MINUTE)
    # Every third step is a gap.
    check_cadence(dates([60, 60, 36_000] * 30), MINUTE)
    check_cadence(dates([1] * 29 + [60] * 31), MINUTE)


def test_nothing_is_checked_without_steps_to_compare():
    check_cadence(None, MINUTE)
    check_cadence(dates([1] * 30), 0.0)
    check_cadence(dates([1] * 19), MINUTE)
    with pytest.raises(DataError):
        check_cadence(dates([1] * 20), MINUTE)


@pytest.mark.parametrize(
    ("time", "step", "message"),
    [
        (
            dates([1] * 30),
            60.0,
            "every 1 s (median), but every 60 s in training: train a",
        ),
        (
            dates([900] * 30),
            60.0,
            "every 900 s (median), but every 60 s in training: tr",
        ),
        (
            np.arange(30) * 6e4,
            60.0,
            "if the times are milliseconds, divide them by 1,000",
        ),
        (
            np.arange(30) * 6e7,
            60.0,
            "are microseconds, divide them by 1,000,000; else tr",
        ),
        (np.arange(30) * 6e10, 60.0, "nanoseconds, divide them by 1,000,000,000; else"),
        (
            dates([60] * 30),
            6e4,
            "in training were milliseconds, give such numbers; else train",
        ),
        (
            np.arange(30) * 60.0,
            6e4,
            "in training were milliseconds, multiply these by 1,000; else train",
        ),
        (
            dates([86_400] * 30),
            60.0,
            "every 86400 s (median), but every 60 s in training: train a",
        ),
        (np.arange(30) * 40.0, 60.0, "train a detector for this step, or resample"),
    ],
)
def test_both_steps_and_what_to_do_are_named(time, step, message):
    with pytest.raises(DataError) as refusal:
        check_cadence(time, step)
    assert message in str(refusal.value)


def test_the_step_that_is_named_occurs():
    with pytest.raises(DataError, match=r"every 10 s \(median\), but every 60 s"):
        check_cadence(dates([60] * 50 + [10] * 50), MINUTE)


# 100 rows a minute apart, a pause, 100 rows at 10 s, and minutes once more.
MIXED = [*[60] * 99, 7200, *[10] * 99, *[60] * 30]


def test_a_file_and_streams_leave_out_the_same_rows(minutes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).normal(size=(len(MIXED) + 1, 2))
    rows = pd.DataFrame(values, columns=["x", "y"]).astype(np.float32)
    rows.insert(0, "time", dates(MIXED))
    rows.to_csv("rows.csv", index=False)
    rows.to_parquet("rows.parquet")
    save_detector("detector", minutes)
    for name in ("rows.csv", "rows.parquet"):
        said = []
        options = {"detector": "detector", "output": "out.csv", "log": said.append}
        score_file(name, causal=True, entity="a", **options)
        assert "warning: 50 rows at another step than in training (60)" in str(said)
        table = pd.read_csv("out.csv")
        # From the row with which half of the last 100 steps are others.
        unknown = [*range(3), *range(100, 103), *range(150, 203)]
        assert table.index[table["state"] == "unknown"].tolist() == unknown
    Path("detector.onnx").write_bytes(onnx_file(minutes, 0))
    as_json = rows.assign(time=rows["time"].astype(str)).to_dict("records")
    for text in (rows.to_csv(index=False), "\n".join(map(json.dumps, as_json))):
        for backend, path in (("jax", "detector"), ("onnxruntime", "detector.onnx")):
            stream = open_stream(path, backend=backend)
            found = [
                json.loads(row)
                for row in stream_rows(stream, text.splitlines())
                if '"event"' not in row
            ]
            assert [i for i, row in enumerate(found) if "error" in row] == [
                *range(150, 200)
            ]
            assert all("every 10 s" in row["error"] for row in found[150:200])
            for column in ("score", "window_score"):
                scores = pd.Series([row[column] for row in found], dtype=float)
                np.testing.assert_allclose(scores, table[column], rtol=1e-4)


# All entries.


@pytest.fixture
def minutes(small):
    """A detector for rows a minute apart."""
    calibration = (np.arange(20.0), np.arange(40.0))
    return small._replace(step=MINUTE, calibration=calibration)


def frame(step, count=60):
    values = np.random.default_rng(0).normal(size=(count, 2))
    time = pd.date_range("2026-04-01", periods=count, freq=step, name="time")
    return pd.DataFrame(values, columns=["x", "y"], index=time)


@pytest.mark.parametrize("step", ["1s", "15min"])
@pytest.mark.parametrize("causal", [False, True])
def test_score_tables_refuse(minutes, step, causal):
    rows = frame(step)
    series = Series("a", rows.to_numpy(np.float32), ("x", "y"), rows.index.to_numpy())
    with pytest.raises(
        DataError, match="a row comes every .* but every 60( s)? in training"
    ):
        score_table(minutes, series, entity="a", causal=causal)


@pytest.mark.parametrize(
    "command",
    [
        ("score", "rows.csv", "--output=out.csv"),
        ("score", "rows.csv", "--output=out.csv", "--causal"),
        ("calibrate", "rows.csv", "--output=out", "--entity=a"),
        ("calibrate", "rows.csv", "--output=out", "--entity=new"),
    ],
)
def test_verbs_refuse(minutes, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    card = {"title": "a", "settings": {"data": {"path": "a.csv"}}}
    save_detector("detector", minutes._replace(card=card))
    frame("1s").to_csv("rows.csv")
    assert main(["kdjax", *command, "--detector=detector"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a row comes every 1 s (median), but every 60 s in training" in last
    assert not [*tmp_path.glob("out*")]


def test_the_estimator_refuses():
    options = {"detector": "mahalanobis", "window_size": 10, "stride": 2}
    detector = KDDetector(**options, false_alarm_rate=0.1).fit(frame("1min", 400))
    assert detector.detector_.step == MINUTE
    other = frame("1s", 60)
    for use in (detector.predict, detector.decision_function, detector.calibrate):
        with pytest.raises(
            DataError, match="a row comes every 1 s .* every 60 s in train"
        ):
            use(other)
    assert set(detector.predict(other.reset_index(drop=True))) <= {0, 1}


# Streams.


def told(stream, time):
    """The states of rows with these times, and the errors of those refused."""
    found = []
    for at in time:
        try:
            found.append(stream.update([0.1, 0.2], at).state)
        except DataError as error:
            found.append(str(error))
    return found


def refused(step):
    return f"a row comes every {step} s (median), but every 60 s in training"


def test_a_stream_refuses_once_enough_steps_have_come(minutes):
    found = told(stream_detector(minutes, entity="a"), dates([1] * 40))
    assert found[:20] == ["unknown"] * 3 + ["normal"] * 17
    assert all(refused("1") in said for said in found[20:]) and len(found) == 41
    stream = stream_detector(minutes, entity="a")
    found = told(stream, np.arange(40) * 6e4)
    assert found[:20] == ["unknown"] * 20
    assert all("milliseconds, divide them by 1,000" in said for said in found[20:])


def test_a_step_that_changes_is_noticed_and_one_that_comes_back_too(minutes):
    steps = [60] * 200 + [1] * 100 + [60] * 10
    found = told(stream_detector(minutes, entity="a"), dates(steps))
    at_fault = [place for place, said in enumerate(found) if "comes every" in said]
    # From the row with which half of the last 100 steps are others.
    assert at_fault == [*range(250, 301)]
    assert found[301:] == ["unknown"] * 3 + ["normal"] * 7


def test_a_stream_passes_jitter_gaps_and_rows_without_times(minutes):
    jitter = 60 + np.random.default_rng(0).uniform(-50, 50, 150)
    steps = np.concatenate([jitter, [60, 60, 36_000] * 30])
    found = told(stream_detector(minutes, entity="a"), dates(steps))
    assert set(found) <= {"normal", "unknown"} and found[:151].count("normal") == 148
    found = told(stream_detector(minutes, entity="a"), [None] * 40)
    assert found == ["unknown"] * 3 + ["normal"] * 37
