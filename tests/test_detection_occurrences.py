"""Events of all kinds: a stream announces those that `score --causal` lists."""

import io
import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest

from kdjax.data.prepared import prepare
from kdjax.data.series import Dataset, Series
from kdjax.data.unchanged import (
    frozen_rows,
    longest_unchanged,
    next_unchanged,
    start_unchanged,
    unchanged_runs,
)
from kdjax.detection.detector import stream_detector
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.stream_rules import plan_from_json, plan_of, plan_to_json
from kdjax.errors import ArtifactError
from kdjax.estimator import KDDetector
from kdjax.experiment.recalibrate import recalibrated
from kdjax.export.onnx import onnx_file
from kdjax.scoring.files import score_file
from kdjax.scoring.streams import run_stream

LENGTH = 10
NAMES = ("load", "flow", "temp", "dead")
COLUMNS = ("id", "kind", "start", "end", "peak", "channels")


def signals(rows, seed=0):
    rng, t = np.random.default_rng(seed), np.arange(rows)
    waves = [np.sin(t / 9), np.cos(t / 7), np.sin(t / 13)]
    frame = pd.DataFrame(dict(zip(NAMES, waves, strict=False)))
    frame += rng.normal(0, 0.1, frame.shape)
    frame["dead"] = 1.5
    frame.index = pd.date_range("2026-04-01", periods=rows, freq="min", name="time")
    return frame.astype(np.float32)


def fitted(**settings):
    options = {"window_size": LENGTH, "stride": 2, "false_alarm_rate": 0.02}
    made = KDDetector(detector="mahalanobis", settings=settings, **options)
    return made.fit(signals(1500)).detector_


@pytest.fixture(scope="module")
def detector():
    return fitted()._replace(entities=("pump",))


@pytest.fixture(scope="module")
def plant():
    """Rows with one event or more of each kind, and missing cells."""
    frame = signals(700, 1)
    frame.iloc[50:60, 3] = 2.5
    frame.iloc[55, 3] = np.nan
    frame.iloc[80:83, 3] = 1.6
    frame.iloc[100:160, 2] = frame.iloc[100, 2]  # one channel, with a missing cell
    frame.iloc[130, 2] = np.nan
    frame.iloc[200:300, :3] = frame.iloc[200, :3].to_numpy()
    frame.iloc[290:340, 2] = frame.iloc[290, 2]  # it stays when the others move again
    frame.iloc[400:403, 0] += 4
    frame.iloc[408, 0] += 9  # nearer than L rows: the same event, and its peak
    frame.iloc[440, 1] -= 6
    frame.iloc[500:560, :3] = frame.iloc[500, :3].to_numpy()  # a gap is in it
    frame.iloc[650:, 0] += 5  # still in alarm at the end
    stamps = frame.index.to_numpy(copy=True)
    stamps[530:] += np.timedelta64(3, "h")
    stamps[600:] += np.timedelta64(30, "m")
    return frame.set_index(pd.DatetimeIndex(stamps, name="time"))


@pytest.fixture(scope="module")
def listed(detector, plant, tmp_path_factory):
    """The events that `score --causal` writes, of CSV and Parquet."""
    folder = tmp_path_factory.mktemp("listed")
    save_detector(folder / "detector", detector)
    plant.to_csv(folder / "pump.csv")
    plant.reset_index().to_parquet(folder / "pump.parquet")
    tables = []
    for ending in ("csv", "parquet"):
        output = folder / f"scores.{ending}"
        score_file(
            folder / f"pump.{ending}",
            detector=folder / "detector",
            output=output,
            causal=True,
            missing="mask",
        )
        tables.append(pd.read_csv(f"{output}.events.csv", keep_default_na=False))
    pd.testing.assert_frame_equal(*tables)
    return folder, tables[0]


def told(text):
    """Events by id as they ended, and the ids in the order of their lines."""
    lines = [json.loads(line) for line in text.splitlines()]
    found = [line["event"] for line in lines if line["row"] is None and "event" in line]
    return {event["id"]: event for event in found}, [event["id"] for event in found]


def as_set(rows):
    return {
        tuple(
            str(pd.Timestamp(row[name]))
            if name in ("start", "end", "peak")
            else row[name]
            for name in COLUMNS
        )
        for row in rows
    }


def test_events_of_each_kind_have_their_rows(listed, plant):
    _, events = listed
    assert events.columns.tolist() == [
        "entity", "start", "end", "severity", "peak", "channels", "id", "kind"
    ]  # fmt: skip
    others = events[events["kind"] != "score"]
    assert (others["severity"] == "").all() and (
        others["peak"] == others["start"]
    ).all()
    row = {str(stamp): place for place, stamp in enumerate(plant.index)}
    found = [
        (e.kind, e.channels, row[e.start], row[e.end]) for e in others.itertuples()
    ]
    # Known at 2 × 1 + 10 + 1 rows; a missing cell does not count.
    assert found == [
        ("constant_moved", "dead", 50, 59),
        ("constant_moved", "dead", 80, 82),
        ("frozen", "temp", 112, 159),
        ("frozen", "all", 212, 299),
        ("frozen", "temp", 300, 339),
        ("frozen", "all", 512, 529),
        ("no_data", "", 529, 530),
        ("frozen", "all", 542, 559),
        ("no_data", "", 599, 600),
    ]
    scores = events[events["kind"] == "score"]
    peaks = [row[peak] for peak in scores["peak"]]
    assert {408, 440} <= set(peaks)
    assert row[scores["end"].iloc[-1]] == 699
    assert events["id"].is_unique


def test_ids_are_those_of_a_stream_whatever_the_file_is_called(listed):
    """Rows that name no entity have the one whose threshold is used, in both."""
    folder, events = listed
    (pump,) = folder.glob("pump.csv")
    shutil.copy(pump, folder / "week.csv")
    score_file(
        folder / "week.csv",
        detector=folder / "detector",
        output=folder / "week_scores.csv",
        causal=True,
        entity="pump",
        missing="mask",
    )
    found = pd.read_csv(folder / "week_scores.csv.events.csv", keep_default_na=False)
    assert set(found["entity"]) == {"week"}
    assert found["id"].tolist() == events["id"].tolist()


@pytest.mark.parametrize("form", ["csv", "json"])
@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_a_stream_announces_the_events_of_score_causal(
    detector, plant, listed, backend, form
):
    folder, events = listed
    path = folder / "detector"
    if backend == "onnxruntime":
        path = folder / "pump.onnx"
        path.write_bytes(onnx_file(detector, 0))
    lines = (folder / "pump.csv").read_text().splitlines()
    if form == "json":
        rows = plant.astype(object).where(plant.notna(), None)
        lines = [
            json.dumps({"time": str(stamp)} | row)
            for stamp, row in zip(plant.index, rows.to_dict("records"), strict=True)
        ]
    output = io.StringIO()
    run_stream(lines, output, detector=path, backend=backend)
    found, order = told(output.getvalue())
    wanted = events.to_dict("records")
    ended = [e | {"channels": ";".join(e["channels"])} for e in found.values()]
    assert as_set(ended) == as_set(wanted)
    assert sorted(order) == sorted(
        [*found] * 2
    )  # one line at its begin, one at its end
    severities = {
        row["id"]: float(row["severity"]) for row in wanted if row["severity"]
    }
    for event in found.values():
        if event["kind"] == "score":
            assert event["severity"] == pytest.approx(severities[event["id"]], rel=1e-4)
        else:
            assert event["severity"] is None
    text = {event["kind"]: event.get("text") for event in found.values()}
    assert text["no_data"].startswith("no data since 2026-04-01")
    # To the end: from row 100 but a missing cell, 200 (all, then temp), 500 and 530 on.
    frozen = [one for one in found.values() if one["kind"] == "frozen"]
    assert [one["text"] for one in sorted(frozen, key=lambda one: one["start"])] == [
        f"unchanged for {rows} rows, at most 1 in training"
        for rows in (59, 100, 140, 30, 30)
    ]
    first = next(line for line in output.getvalue().splitlines() if "frozen" in line)
    assert "unchanged for 13 rows, at most 1" in first  # as it began
    assert text["constant_moved"] == "constant at 1.5 in training, now 1.6"


@pytest.mark.parametrize("cut", [56, 120, 250, 299, 404, 520, 530, 531, 660])
def test_a_restart_keeps_what_is_open(listed, tmp_path, cut):
    folder, _ = listed
    lines = (folder / "pump.csv").read_text().splitlines()
    options = {"detector": folder / "detector"}
    whole = io.StringIO()
    run_stream(lines, whole, state=tmp_path / "whole", **options)
    output = tmp_path / "parts"
    for part in (lines[: cut + 1], lines[:1] + lines[cut - 3 :]):
        run_stream(part, output, state=tmp_path / "state", **options)
    assert output.read_text() == whole.getvalue()


def test_states_of_before_still_load(detector, plant):
    first, second = (stream_detector(detector, entity="pump") for _ in range(2))
    rows = [*zip(plant.to_numpy(), plant.index, strict=True)]
    for values, stamp in rows[:40]:
        first.update(values, stamp)
    state = json.loads(json.dumps(first.state(), allow_nan=False)) | {"schema": 2}
    for name in ("said", "last_known", "unchanged", "event", "others"):
        del state[name]
    second.restore(state)
    moved = np.where(np.arange(4) == 3, 9, rows[40][0])
    (event,) = second.update(moved, rows[40][1]).events
    assert event["kind"] == "constant_moved" and event["channels"] == ["dead"]
    with pytest.raises(ArtifactError):
        second.restore(first.state() | {"unchanged": [1, 2]})
    with pytest.raises(ArtifactError):
        second.restore(first.state() | {"others": [{"kind": "odd"}]})


def test_silence_is_told_while_it_lasts(detector, plant):
    stream = stream_detector(detector, entity="pump")
    assert stream.silent(1e9) == ()  # before the first row
    stamps = [*plant.index[:3]]
    stream.update(plant.iloc[0].to_numpy(), str(stamps[0]))
    assert stream.silent(300) == ()  # five steps of a minute
    (begun,) = stream.silent(301)
    assert begun["kind"] == "no_data" and begun["end"] is None
    assert begun["text"] == f"no data since {stamps[0]}"
    assert stream.silent(900) == ()  # it is known
    again = stream_detector(detector, entity="pump")
    again.restore(stream.state())
    assert again.silent(900) == ()
    for one in (stream, again):
        (ended,) = one.update(plant.iloc[1].to_numpy(), str(stamps[1])).events
        assert ended["id"] == begun["id"] and ended["end"] == str(stamps[1])
    # Numbers don't tell how long a step is.
    numbers = stream_detector(detector, entity="pump")
    numbers.update(plant.iloc[0].to_numpy(), 0)
    assert numbers.silent(1e9) == ()


def test_the_program_tells_of_silence_by_itself(detector, plant, tmp_path, monkeypatch):
    monkeypatch.setattr("kdjax.scoring.streams.TELL_EVERY", 0.02)
    save_detector(tmp_path / "d", detector._replace(step=0.04))  # 0.2 s of silence
    output = io.StringIO()
    seen = []

    def lines():
        yield "time," + ",".join(NAMES)
        for place in range(4):
            if place == 2:
                time.sleep(1)
            seen.append(output.getvalue().count("no_data"))
            stamp = pd.Timestamp("2026-04-01") + place * pd.Timedelta("40ms")
            yield f"{stamp.isoformat()}," + ",".join(map(str, plant.iloc[place]))

    with pytest.raises(Exception, match="no row has a score"):
        run_stream(lines(), output, detector=tmp_path / "d")
    found, order = told(output.getvalue())
    assert seen == [0, 0, 1, 2]  # begun before the row came, ended by it
    (event,) = found.values()
    assert len(order) == 2 and event["end"] == "2026-04-01T00:00:00.080000"


def test_kinds_can_be_turned_off(plant, tmp_path):
    quiet = fitted(**{"alarm.frozen": False, "alarm.no_data": False})
    assert quiet.unchanged is None and not quiet.no_data
    save_detector(tmp_path / "d", quiet)
    loaded = load_detector(tmp_path / "d")
    stream = stream_detector(loaded, entity="X")
    rows = zip(plant.to_numpy(), plant.index, strict=True)
    events = [e for values, stamp in rows for e in stream.update(values, stamp).events]
    assert {event["kind"] for event in events} == {"score", "constant_moved"}
    assert stream.silent(1e9) == ()


def test_plans_keep_what_events_need(detector):
    plan = plan_of(detector, 0)
    assert plan.constant == (None, None, None, 1.5)
    assert plan.unchanged == (1, 1, 1, 0, 1) and plan.no_data
    assert plan_from_json(plan_to_json(plan)) == plan
    for field, value in (("constant", [1.0]), ("unchanged", [1] * 4), ("no_data", 1)):
        text = json.dumps(json.loads(plan_to_json(plan)) | {field: value})
        with pytest.raises(ArtifactError):
            plan_from_json(text)


def by_hand(rows):
    last, runs = [None] * rows.shape[1], [0] * (rows.shape[1] + 1)
    found = []
    for row in rows:
        changed = False
        for place, value in enumerate(row):
            if np.isnan(value):
                continue
            own = value != last[place]
            changed = changed or own
            runs[place] = 1 if own else runs[place] + 1
            last[place] = value
        if not np.isnan(row).all():
            runs[-1] = 1 if changed else runs[-1] + 1
        found.append([*runs])
    return np.array(found)


def test_runs_of_unchanged_rows():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (300, 4)).astype(float)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    rows[100:105] = np.nan
    wanted = by_hand(rows)
    start = start_unchanged(4, float)
    first, state = unchanged_runs(start, rows[:77])
    second, _ = unchanged_runs(state, rows[77:])
    np.testing.assert_array_equal(np.concatenate([first, second]), wanted)
    for row, own in zip(rows, wanted, strict=True):
        start = next_unchanged(start, row)
        np.testing.assert_array_equal(start.runs, own)
    spans = np.array([[0, 150], [150, 300]])
    longest = longest_unchanged(rows, spans, (2,))
    halves = [by_hand(half[:, [0, 1, 3]]).max(axis=0) for half in np.split(rows, 2)]
    assert longest.tolist() == np.insert(np.max(halves, axis=0), 2, 0).tolist()


def test_frozen_rows_are_left_out_of_calibration():
    frame = signals(1000)
    options = {
        "window": LENGTH, "stride": 2, "max_gap": 5.0, "validation": 0.15,
        "calibration": 0.15, "scaler": "quantile",
    }  # fmt: skip
    frame.iloc[900:940, :3] = frame.iloc[900, :3].to_numpy()
    frame.iloc[960:990, 1] = frame.iloc[960, 1]
    series = Series("pump", frame.to_numpy(), NAMES)
    (entity,) = prepare(Dataset("plant", (series,), ()), **options).entities
    assert entity.split.calibration.tolist() == [[850, 900], [940, 960], [990, 1000]]
    # Nor do they choose τ by folds of all rows.
    assert entity.train_spans.tolist() == [[0, 900], [940, 960], [990, 1000]]
    assert entity.unchanged.tolist() == [1, 1, 1, 0, 1]
    assert entity.notes == (
        "pump: left out of calibration: flow unchanged from row 960 to 989 (from 0), at "
        + "most 1 in training",
        "pump: left out of calibration: all channels unchanged from row 900 to 939 (from "
        + "0), at most 1 in training",
    )
    own = {"window": LENGTH, "channels": NAMES}
    whole = np.array([[0, 1000]])
    rows, texts = frozen_rows(frame.to_numpy(), whole, entity.unchanged, **own)
    assert np.flatnonzero(rows).tolist() == [*range(900, 940), *range(960, 990)]
    assert len(texts) == 2


def test_frozen_rows_do_not_move_a_new_threshold(detector):
    frame = signals(800, 5)
    frozen = frame.copy()
    frozen.iloc[300:340, 1] = 4  # a stuck sensor far off
    made = [
        recalibrated(
            detector,
            Series("pump", rows.to_numpy(), NAMES),
            threshold={"method": "quantile", "false_alarm_rate": 0.01},
        )
        for rows in (frame, frozen)
    ]
    taus = [found.thresholds[0].tau for found, _ in made]
    assert taus[1] == pytest.approx(taus[0], rel=0.2)
    assert made[0][1].count("left out: ") == 0
    assert made[1][1].endswith(
        "\n  left out: flow unchanged from row 300 to 339 (from 0), at most 1 in training"
    )
