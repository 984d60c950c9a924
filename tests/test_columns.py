"""How rows are read stays with the detector, for each entry, and can be overridden."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest

from kdjax.config import get_config, override, resolve
from kdjax.data.datasets import load_dataset
from kdjax.data.grid import step_time
from kdjax.data.readers import read_table
from kdjax.data.schema import Reading
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.stream_rules import plan_from_json, plan_of, plan_to_json
from kdjax.errors import ConfigError, DataError
from kdjax.estimator import KDDetector
from kdjax.experiment.recalibrate import calibrate_file
from kdjax.export.files import export_file
from kdjax.export.onnx import onnx_file
from kdjax.io.files import load_state
from kdjax.scoring.files import score_file, score_fleet
from kdjax.scoring.streams import run_stream

WIDE = {
    "entity_column": "machine",
    "label_column": "fault",
    "ignore": ["note", "gone"],
    "missing_values": ["Bad Input"],
    "missing": "mask",
}
LONG = {
    "layout": "long",
    "tag_column": "sensor",
    "value_column": "reading",
    "step": "10s",
    "ignore": ["quality", "z"],
    "missing_values": ["Bad Input"],
    "missing": "mask",
    "fill_limit": 3,
}


@pytest.fixture
def make(small, tmp_path):
    """Saves the detector `small` with settings of `data`; gives its folder."""

    def save(data, step=10.0, name="detector", dated=True):
        model = small.model._replace(kind="difference")
        settings = resolve(override(get_config(), {"data.path": "plant.csv"}))
        settings["data"] |= data
        settings["threshold"]["false_alarm_rate"] = 0.1
        card = {
            "title": "by hand",
            "data": {"name": "none", "time_column": "when", "dated": dated},
            "settings": settings,
        }
        detector = small._replace(model=model, step=step, card=card, min_duration=2)
        detector = detector._replace(
            calibration=(np.arange(20.0), np.arange(40.0)), reference=np.ones((9, 2))
        )
        save_detector(tmp_path / name, detector)
        return tmp_path / name

    return save


def wide(rows=40):
    """A table with a column of each role, and one missing cell under a marker."""
    rng = np.random.default_rng(3)
    time = pd.date_range("2026-03-01", periods=rows, freq="10s")
    cells = (2 * rng.normal(size=(rows, 2))).round(3).astype(object)
    cells[rows // 2, 0] = "Bad Input"
    return pd.DataFrame(
        {
            "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "machine": "a",
            "y": cells[:, 1],
            "note": ["a text", "1.000"] * (rows // 2),
            "x": cells[:, 0],
            "fault": "?",
        }
    )


def plain(frame):
    """The same rows without columns that only the detector knows."""
    kept = frame[["when", "x", "y"]].replace("Bad Input", np.nan)
    return kept.rename(columns={"when": "time"})


def readings(seed=0, rows=60):
    """Readings of x each 3 to 5 s and y each 24 to 40 s, with a pause, in order of time."""
    rng = np.random.default_rng(seed)
    parts = []
    for tag, step in (("x", 4.0), ("y", 32.0), ("z", 50.0)):
        count = int(10 * rows / step)
        time = np.cumsum(step * rng.uniform(0.75, 1.25, count))
        time[count // 2 :] += 95.0  # longer than the limit of a held value
        value = np.round(3 * rng.normal(size=count), 3).astype(object)
        value[count // 3] = "Bad Input"
        if tag == "z":
            value[:] = "off"
        parts.append(
            pd.DataFrame({"at": time.round(1), "sensor": tag, "reading": value})
        )
    frame = pd.concat(parts).sort_values("at", kind="stable", ignore_index=True)
    moment = pd.Timestamp("2026-03-01") + pd.to_timedelta(frame["at"], unit="s")
    frame.insert(0, "when", moment.dt.strftime("%Y-%m-%dT%H:%M:%S.%f"))
    return frame.drop(columns="at").assign(quality="ok")


def scored(frame, folder, tmp_path, name="a.csv", **options):
    """The score table of a frame, written in the format of the name, and lines said."""
    path, output = tmp_path / name, tmp_path / "scores.csv"
    if name.endswith(".parquet"):
        typed = frame.assign(**{frame.columns[0]: pd.to_datetime(frame.iloc[:, 0])})
        for column in ("x", "y", "reading"):
            if column in typed and name.startswith("b"):
                numbers = pd.to_numeric(typed[column], errors="coerce")
                typed[column] = numbers
            elif column in typed:
                typed[column] = typed[column].astype(str)
        typed.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    options = {"causal": True, **options}
    said = [*score_file(path, detector=folder, output=output, **options)]
    return pd.read_csv(output), said


def streamed(frame, folder, backend="jax", as_json=False, **options):
    lines = io.StringIO(frame.to_csv(index=False)).read().splitlines()
    if as_json:
        lines = [json.dumps(row) for row in frame.to_dict("records")]
    output = io.StringIO()
    options = {"entity": "a", **options}
    run_stream(lines, output, detector=folder, backend=backend, **options)
    return answers_in(output.getvalue())


def answers_in(text):
    """The answers to lines, without events."""
    return [json.loads(line) for line in text.splitlines() if '"event"' not in line]


def same(answers, table, rtol=1e-4):
    """Whether answers are the first rows of a score table."""
    table = table.iloc[: len(answers)]
    for name in ("score", "window_score"):
        found = [math.nan if a[name] is None else float(a[name]) for a in answers]
        np.testing.assert_allclose(found, table[name], rtol=rtol)
    assert [a["state"] for a in answers] == table["state"].tolist()
    assert [a["alarm"] for a in answers] == table["alarm"].tolist()
    times = pd.to_datetime([a["time"] for a in answers])
    assert (times == pd.to_datetime(table["time"])).all()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_columns_of_training_are_known_to_score(make, tmp_path, name):
    wanted, _ = scored(plain(wide()), make({"missing": "mask"}), tmp_path)
    folder, frame = make(WIDE, name="other"), wide()
    table, said = scored(frame, folder, tmp_path, name)
    pd.testing.assert_frame_equal(table, wanted)
    assert "a: 1 of 80 values missing" in said
    # A file without entities, labels and notes is read as well, or with another time.
    left = frame.drop(columns=["machine", "fault", "note"])
    pd.testing.assert_frame_equal(scored(left, folder, tmp_path, name)[0], wanted)
    other = left.rename(columns={"when": "Timestamp"})
    pd.testing.assert_frame_equal(scored(other, folder, tmp_path, name)[0], wanted)


def test_entities_of_training_are_known_to_score(make, tmp_path):
    """Two machines in one file, whose times repeat."""
    both = pd.concat([wide(), wide().assign(machine="b")])
    both = both.sort_values("when", kind="stable")
    table, said = scored(both, make(WIDE), tmp_path, "plant.csv")
    assert table["entity"].unique().tolist() == ["a", "b"]
    assert said[0] == "a: 40 rows scored with the threshold of a"
    assert "b: 40 rows scored with the detector's threshold" in said


def test_flags_override_what_is_known(make, tmp_path):
    folder, frame = make(WIDE), wide()
    wanted, _ = scored(frame, folder, tmp_path)
    moved = frame.rename(columns={"when": "at", "machine": "unit", "note": "text"})
    moved["x"] = moved["x"].replace("Bad Input", "Shutdown")
    given = {
        "time_column": "at",
        "entity_column": "unit",
        "ignore": ["text"],
        "missing_values": ["Shutdown"],
    }
    found, _ = scored(moved, folder, tmp_path, **given)
    pd.testing.assert_frame_equal(found, wanted)
    same(streamed(moved, folder, reading=given), wanted)
    for flag in ("time_column", "entity_column"):
        with pytest.raises(DataError, match="has no column 'when2'|missing: when2"):
            scored(frame, folder, tmp_path, **{flag: "when2"})
        with pytest.raises(DataError, match="missing: when2"):
            streamed(frame, folder, reading={flag: "when2"})


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_columns_of_training_are_known_to_streams(make, tmp_path, backend, as_json):
    folder, frame = make(WIDE), wide()
    wanted, _ = scored(frame, folder, tmp_path)
    same(streamed(frame, folder, backend, as_json), wanted)
    left = frame.drop(columns=["machine", "fault", "note"])
    same(streamed(left, folder, backend, as_json), wanted)


def test_an_exported_file_knows_what_a_stream_needs(make, tmp_path):
    folder = make(LONG)
    file = tmp_path / "student.onnx"
    file.write_bytes(onnx_file(load_detector(folder), 0))
    wanted, _ = scored(readings(), folder, tmp_path)
    answers = streamed(readings(), file, "onnxruntime")
    same(answers, wanted)
    assert len(answers) == len(wanted) - 1


def test_a_stream_takes_rows_of_one_entity(make):
    frame = wide(8)
    frame.loc[3, "machine"] = "b"
    folder = make(WIDE)
    with pytest.raises(DataError, match=r"missing: x, y; .*need --layout=long"):
        streamed(readings(), folder)
    with pytest.raises(TypeError, match="unknown options: tags"):
        streamed(frame, folder, reading={"tags": "x"})
    answers = streamed(frame, folder)
    assert [a["row"] for a in answers] == [0, 1, 2, None, 3, 4, 5, 6]
    assert answers[3]["error"].startswith(
        "a row of 'b' in the stream of 'a': give each"
    )
    answers = streamed(frame, folder, reading={"ignore": ["machine"]})
    assert [a["row"] for a in answers] == [*range(8)]


@pytest.fixture
def several(make):
    """A detector of the machines a and b with thresholds of their own."""
    known = load_detector(make(WIDE, name="one"))
    own = [0, 0, 1]

    def taken(fields):
        return type(fields)(*(field[own] for field in fields))

    detector = known._replace(
        entities=("a", "b"),
        scalers=taken(known.scalers),
        gaussians=taken(known.gaussians),
        thresholds=[known.thresholds[0]._replace(tau=tau) for tau in (4.0, 9.0, 6.0)],
        calibration=(np.arange(20.0), np.arange(30.0), np.arange(40.0)),
        ranges=None,
    )
    save_detector(known_folder := make(WIDE).parent / "several", detector)
    return known_folder


@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
@pytest.mark.parametrize("machine", ["a", "b", "new"])
def test_a_stream_has_the_threshold_of_the_entity_that_rows_name(
    several, tmp_path, backend, machine
):
    frame = wide(60).assign(machine=machine)
    table, _ = scored(frame, several, tmp_path)
    tau = {"a": 4.0, "b": 9.0}.get(machine, 6.0)
    # The rows tell this threshold from the others.
    scores = table["window_score"]
    assert all(
        ((scores > tau) != (scores > other)).any() for other in {4, 6, 9} - {tau}
    )
    lines, said = frame.to_csv(index=False).splitlines(), []
    lines.insert(
        1, lines[1].replace("2026", "soon")
    )  # at fault, before an entity is known
    output, state = tmp_path / "answers", tmp_path / "state"
    options = {"detector": several, "backend": backend, "state": state}
    run_stream(lines[:20], output, log=said.append, **options)
    run_stream(lines[:1] + lines[15:], output, **options)  # some come again
    fault, *answers = answers_in(output.read_text("utf-8"))
    assert "error" in fault
    same(answers, table)
    assert len(answers) == len(table)
    used = machine if machine != "new" else "pooled"
    assert [text for text in said if "threshold" in text][-1].endswith(
        f"{used}: {tau:g}"
    )
    # An entity that is given overrides what rows name.
    forced, _ = scored(frame, several, tmp_path, entity="b")
    same(streamed(frame, several, backend, entity="b"), forced)


def test_columns_of_training_are_known_to_calibrate_export_and_fleets(make, tmp_path):
    folder = make(WIDE)
    wide().to_csv(tmp_path / "plant.csv", index=False)
    options = {"detector": folder, "output": tmp_path / "again"}
    said = [*calibrate_file(tmp_path / "plant.csv", threshold={}, **options)]
    assert said[0] == "a: 1 of 80 values missing" and said[1].startswith("a: τ 8 -> ")
    options = {"format": "onnx", "output": tmp_path / "a.onnx", "entity": "a"}
    said = [*export_file(folder, data=tmp_path / "plant.csv", **options)]
    assert said[1].startswith("checked on 37 of 37 windows")
    (tmp_path / "files").mkdir()
    wide().to_csv(tmp_path / "files" / "a.csv", index=False)
    options = {"detector": folder, "output": tmp_path / "fleet", "ignore": ["more"]}
    first, again = ([*score_fleet([tmp_path / "files"], **options)] for _ in range(2))
    assert first[0].startswith("a: 40 rows") and again[0] == "a.csv: verified"


def test_rows_of_a_long_layout_calibrate_and_export(make, tmp_path):
    folder, path = make(LONG), tmp_path / "a.csv"
    readings().to_csv(path, index=False)
    options = {"detector": folder, "output": tmp_path / "again"}
    said = [*calibrate_file(path, threshold={}, **options)]
    assert said[0].endswith("rows at steps of 10")
    again = load_detector(tmp_path / "again")
    assert plan_of(again, 0).reading.layout == "long"
    options = {"format": "onnx", "output": tmp_path / "a.onnx", "entity": "a"}
    assert "checked on" in [*export_file(folder, data=path, **options)][1]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_readings_have_the_scores_of_their_grid(make, tmp_path, backend, as_json):
    folder, frame = make(LONG), readings()
    table, said = scored(frame, folder, tmp_path)
    assert {*table["state"]} == {"normal", "anomaly", "unknown"}
    assert (table["time"].str[-1] == "0").all()
    answers = streamed(frame, folder, backend, as_json)
    same(answers, table)
    assert len(answers) == len(table) - 1  # the last step may not be complete
    shuffled = frame.sample(frac=1, random_state=1)
    for name in ("a.csv", "a.parquet"):
        again, more = scored(shuffled, folder, tmp_path, name)
        pd.testing.assert_frame_equal(again, table)
        assert more == said
    # The same by hand: means, then the last value for three rows.
    own = frame[(frame["sensor"] != "z") & (frame["reading"] != "Bad Input")]
    ends = pd.to_datetime(own["when"]).dt.ceil("10s")
    cells = own["reading"].astype(float).groupby([ends, own["sensor"]]).mean().unstack()
    cells = cells.asfreq("10s").ffill(limit=3).dropna(how="all").reset_index()
    direct, _ = scored(cells, make({"missing": "mask"}, name="direct"), tmp_path)
    pd.testing.assert_frame_equal(direct, table)


def test_a_wide_table_with_a_step(make, tmp_path):
    rows = readings()
    rows = rows[rows["sensor"] != "z"]
    frame = rows.pivot(index="when", columns="sensor", values="reading").reset_index()
    data = {"step": "10s", "missing_values": ["Bad Input"], "missing": "mask"}
    folder = make({**data, "fill_limit": 3})
    wanted, _ = scored(readings(), make(LONG, name="long"), tmp_path)
    table, _ = scored(frame, folder, tmp_path)
    pd.testing.assert_frame_equal(table, wanted)
    same(streamed(frame.fillna(""), folder), wanted)
    data = {"missing": "mask", "missing_values": ["Bad Input"], "fill_limit": 2}
    coarse = make(data, name="coarse")
    given = {"step": "10s"}
    table, _ = scored(frame, coarse, tmp_path, **given)
    same(streamed(frame.fillna(""), coarse, reading=given), table)
    with pytest.raises(DataError, match="every 10 s in training"):
        scored(frame, coarse, tmp_path)


@pytest.mark.parametrize("at", [1, 40, 41, 92, 120])
def test_a_stream_of_readings_goes_on_where_it_ended(make, tmp_path, at):
    """Whether the source sends all again, some, or only what comes next."""
    folder, frame = make(LONG), readings()
    frame = frame.iloc[np.r_[0:40, 39, 40:150]]  # one comes twice
    wanted = streamed(frame, folder, "onnxruntime")
    for first in (0, max(0, at - 9), at):
        state, output = tmp_path / f"state{first}", tmp_path / f"answers{first}"
        options = {"detector": folder, "backend": "onnxruntime", "entity": "a"}
        options |= {"state": state}
        for part in (frame.iloc[:at], frame.iloc[first:]):
            lines = part.to_csv(index=False).splitlines()
            try:
                run_stream(lines, output, **options)
            except DataError as error:  # after the first reading
                assert at == 1 and "no row has a score: 0 rows" in str(error)
        found = answers_in(output.read_text("utf-8"))
        assert found == wanted
        assert load_state(state)["readings"]["cells"]


def test_late_readings_are_faults_and_move_nothing(make):
    folder, frame = make(LONG), readings()
    wanted = streamed(frame, folder)
    late = frame.iloc[[5]]
    found = streamed(pd.concat([frame.iloc[:60], late, frame.iloc[60:]]), folder)
    (fault,) = [a for a in found if "error" in a]
    assert fault["line"] == 62 and fault["error"].startswith("a late reading: the row")
    assert fault["error"].endswith("or set a larger step.")
    assert [a for a in found if "error" not in a] == wanted


@pytest.mark.parametrize("other", ["same", "marked", "another"])
def test_repeated_readings_are_the_same_in_files_and_streams(make, tmp_path, other):
    """Of the same value, missing beside a value, or of another value."""
    folder, frame = make(LONG), readings()
    wanted, _ = scored(frame, folder, tmp_path)
    again = (
        frame[frame["sensor"] != "z"].query("reading != 'Bad Input'").iloc[[7, 7, 60]]
    )
    if other != "same":
        again = again.assign(reading="Bad Input" if other == "marked" else 77.0)
    twice = pd.concat([frame, again]).sort_values("when", kind="stable")
    said = [[], []]
    for as_json in (False, True):
        answers = streamed(twice, folder, as_json=as_json, log=said[as_json].append)
        same([answer for answer in answers if "error" not in answer], wanted)
        faults = [answer["error"] for answer in answers if "error" in answer]
        assert len(faults) == (3 if other == "another" else 0)
        assert all("has another value at this time" in fault for fault in faults)
    if other == "another":
        for name in ("a.csv", "a.parquet"):
            with pytest.raises(DataError, match="has two values at 2026-03-01T00:00"):
                scored(twice, folder, tmp_path, name)
        return
    for name in ("a.csv", "a.parquet"):
        table, notes = scored(twice, folder, tmp_path, name)
        pd.testing.assert_frame_equal(table, wanted)
        told = [note for note in notes if "repeated reading" in note]
        assert told == (
            ["a: 3 repeated readings left out (the last of each kept)"]
            if other == "same"
            else []
        )
    for log in said:
        assert ("3 repeated readings left out" in log[-1]) == (other == "same")


def test_a_reading_far_ahead_is_taken_back(make):
    folder, frame = make(LONG), readings()
    wanted = streamed(frame, folder)
    ahead = frame.iloc[[60]].assign(when="2027-03-01T00:00:00", sensor="x", reading=1.0)
    found = streamed(pd.concat([frame.iloc[:60], ahead, frame.iloc[60:]]), folder)
    (fault,) = [a for a in found if "error" in a]
    assert (
        fault["line"] == 62
        and "later than that of the readings after it" in fault["error"]
    )
    assert [a for a in found if "error" not in a] == wanted


def test_faults_of_readings(make):
    lines = [
        "when,sensor,reading,quality",
        "2026-03-01T00:00:01+02:00,x,1,ok",
        "2026-03-01T00:00:02+02:00,w,1,ok",
        "2026-03-01T00:00:02+02:00,x,high,ok",
        "2026-03-01T00:00:02+02:00,z,high,ok",
        "2026-03-01T00:00:02+02:00,,1,ok",
        "2026-03-01T00:00:02+02:00,y,1e39,ok",
        "2026-03-01T00:00:01+02:00,x,2,ok",
        "2026-03-01T00:00:02,x,2,ok",
        "17,x,2,ok",
        "2026-03-01T00:00:11+02:00,x,3,ok",
    ]
    output = io.StringIO()
    with pytest.raises(DataError, match="of the last 8 lines are faulty"):
        run_stream(lines, output, detector=make(LONG))
    *faults, row = answers_in(output.getvalue())
    parts = (
        "the tag 'w' is none of the 2 channels",
        "column 3 ('reading'): 'high' is not a number",
        "the tag is missing",
        "'y': 1e+39 is infinite or beyond float32",
        "'x' already has another value at this time",
        "a time without zone, but readings need a time with zone",
        "a number as time, but readings need a time with zone",
    )
    for fault, part in zip(faults, parts, strict=True):
        assert part in fault["error"]
    assert row["time"] == "2026-03-01T00:00:10+02:00"


def test_numbers_as_times_have_no_unit(make, tmp_path):
    frame = readings().assign(when=range(len(readings())))
    with pytest.raises(DataError, match="step=10s is a duration, but the times"):
        scored(frame, make(LONG), tmp_path)
    numbers = make({**LONG, "step": "10"}, name="numbers")
    with pytest.raises(DataError, match="step=10s is a duration"):
        scored(frame, numbers, tmp_path)  # trained on dates
    with pytest.raises(DataError, match="lines are faulty"):
        streamed(frame, numbers)


@pytest.mark.parametrize("step", [10, 10.5])
def test_times_of_a_grid_are_whole_where_its_step_is(make, tmp_path, step):
    first = 1_772_323_255
    frame = pd.DataFrame({"when": first + np.arange(40) * 5, "x": 0.5, "y": 1.0})
    begun = math.ceil(first / step)
    wanted = [(begun + row) * step for row in range(19)]
    folder = make({"step": str(step), "missing": "mask"}, float(step), dated=False)
    for name in ("a.csv", "b.parquet"):
        path = tmp_path / name
        write = frame.to_csv if name == "a.csv" else frame.to_parquet
        write(path, index=False)
        for output in ("scores.csv", "scores.parquet"):
            target = tmp_path / output
            score_file(path, detector=folder, output=target, causal=True)
            read = pd.read_csv if output.endswith("csv") else pd.read_parquet
            times = read(target)["time"].tolist()
            assert list(map(repr, times[: len(wanted)])) == list(map(repr, wanted))
    for as_json in (False, True):
        times = [answer["time"] for answer in streamed(frame, folder, as_json=as_json)]
        assert list(map(repr, times[: len(wanted)])) == list(map(repr, wanted))


def test_steps_of_large_whole_numbers_are_exact(tmp_path):
    """Readings a nanosecond behind the end of a step belong to the next one."""
    end = 1_772_323_260_000_000_000
    (tmp_path / "a.csv").write_text(f"time,a\n{end},1\n{end + 1},2\n", "utf-8")
    (series,) = read_table(tmp_path / "a.csv", step=10_000_000_000)
    assert series.time.tolist() == [end, end + 10_000_000_000]
    np.testing.assert_array_equal(series.values, [[1], [2]])
    huge = step_time(np.array([2**50]), 2.0**20, dated=False)
    assert huge.dtype == float and huge[0] == 2.0**70


def test_a_tag_of_scoring_is_refused_or_missing(make, tmp_path):
    folder, frame = make(LONG), readings()
    other = frame.replace({"sensor": {"z": "w"}})
    with pytest.raises(
        DataError, match=r"the tag 'w' is none of the 2 channels .*ignore"
    ):
        scored(other, folder, tmp_path)
    wanted, _ = scored(frame, folder, tmp_path)
    table, _ = scored(other, folder, tmp_path, ignore=["w"])
    pd.testing.assert_frame_equal(table, wanted)
    alone = frame[frame["sensor"] == "y"]
    table, _ = scored(alone, folder, tmp_path)
    same(streamed(alone, folder), table)
    assert table["score"].notna().sum() > 10
    with pytest.raises(ConfigError, match="x can't be ignored: the detector needs it"):
        scored(frame, folder, tmp_path, ignore=["x"])
    with pytest.raises(ConfigError, match="x can't be ignored: the detector needs it"):
        streamed(frame, folder, reading={"ignore": ["x"]})


def test_plans_keep_how_rows_are_read(make):
    plan = plan_of(load_detector(make(LONG)), 0)
    assert plan.reading == Reading(
        time_column="when",
        ignore=("quality", "z"),
        missing_values=("Bad Input",),
        layout="long",
        tag_column="sensor",
        value_column="reading",
        step="10s",
    )
    assert plan_from_json(plan_to_json(plan)) == plan
    assert "reading" not in plan_to_json(plan._replace(reading=Reading()))
    assert plan.fill_limit == 3


def test_settings_reach_the_reader(tmp_path):
    readings().to_csv(tmp_path / "a.csv", index=False)
    changes = {f"data.{name}": value for name, value in LONG.items()}
    changes |= {"data.path": str(tmp_path / "a.csv"), "data.ignore": ("quality", "z")}
    settings = resolve(
        override(get_config(), changes | {"data.missing_values": ("Bad Input",)})
    )
    (series,) = load_dataset(settings["data"]).train
    assert (series.channels, series.time_column) == (("x", "y"), "when")
    for change in ({"data.step": ""}, {"data.step": "10x"}, {"data.name": "smd"}):
        with pytest.raises(ConfigError, match="data.step|is for your own file only"):
            resolve(override(get_config(), changes | change))


# The estimator.


def test_the_estimator_leaves_ignored_columns_out():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(800, 2)), columns=["x", "y"])
    noted = frame.assign(note="a text")[["note", "x", "y"]]
    options = {"detector": "mahalanobis", "window_size": 10, "false_alarm_rate": 0.1}
    one = KDDetector(**options).fit(frame)
    two = KDDetector(**options, settings={"data.ignore": ("note",)}).fit(noted)
    wanted = one.decision_function(frame)
    for given in (noted, frame):
        np.testing.assert_array_equal(two.decision_function(given), wanted)
    assert two.n_features_in_ == 2 and list(two.explain(noted).columns) == ["x", "y"]
    with pytest.raises(
        DataError, match="X has no column note: remove it from data.ignore"
    ):
        KDDetector(**options, settings={"data.ignore": ("note",)}).fit(frame)


def test_a_loaded_estimator_knows_the_columns_of_the_file(make, tmp_path):
    folder = make(WIDE)
    wanted, _ = scored(wide(), folder, tmp_path, causal=False)
    loaded = KDDetector.load(folder).set_params(missing="mask")
    frame = wide().replace("Bad Input", np.nan).astype({"x": float, "y": float})
    frame = frame[["when", "machine", "x", "note", "y", "fault"]]
    card = loaded.detector_.card
    card["settings"]["data"]["missing_values"] = ["-999"]
    frame["x"] = frame["x"].fillna(-999)
    found = loaded.decision_function(frame)
    np.testing.assert_allclose(found[3:], wanted["window_score"][3:])
    with pytest.raises(DataError, match="rows of several entities, 'a' among them"):
        loaded.predict(frame.assign(machine=["a", "b"] * 20))
    with pytest.raises(DataError, match="row 2 is at .*sort the rows"):
        loaded.predict(frame[::-1])


@pytest.mark.parametrize("layout", ["table", "readings"])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("form", ["plain", "quality", "epoch", "repeated", "NA"])
def test_a_long_frame_is_told_how_to_become_a_table(
    make, tmp_path, layout, index, form
):
    """By a detector of a table, of readings, and by `fit`; what is told works."""
    folder = make(WIDE if layout == "table" else LONG)
    table = wide().assign(x=np.arange(40) % 7.0)
    frame = readings().replace("Bad Input", np.nan).dropna()
    if layout == "table":
        values = {
            "value_vars": ["x", "y"],
            "var_name": "sensor",
            "value_name": "reading",
        }
        frame = table.melt("when", **values).sort_values("when", kind="stable")
    wanted, _ = scored(
        table if layout == "table" else frame, folder, tmp_path, causal=False
    )
    X = frame[frame["sensor"] != "z"].astype({"reading": float})
    if form == "quality":
        X = X.assign(quality=192, flags=np.arange(len(X)) % 3)
    elif form == "epoch":
        since = pd.to_datetime(X["when"]) - pd.Timestamp(0)
        X["when"] = since.dt.total_seconds()
        if index:
            pytest.skip("an index of numbers only labels rows")
    elif form == "repeated":
        again = X.iloc[:9].assign(reading=99.0)
        X = pd.concat([again, X]).sort_values("when", kind="stable")
    elif form == "NA":
        absent = X.iloc[::5].assign(reading="NA")
        absent.iloc[::2, absent.columns.get_loc("reading")] = "Bad Input"
        X = pd.concat([X.astype({"reading": str}), absent])
        X = X.sort_values("when", kind="stable")
    X = X.set_index(pd.to_datetime(X.pop("when"))) if index else X
    loaded = KDDetector.load(folder).set_params(missing="mask")
    with pytest.raises(
        DataError, match="X looks like long layout .one row per reading"
    ) as error:
        loaded.predict(X)
    told = str(error.value).split("each channel: ")[1].rstrip(".")
    found, score = loaded.decision_function(eval(told)), wanted["window_score"]
    assert len(found) == len(score) and score.notna().sum() > 30
    np.testing.assert_allclose(found[score.notna()], score.dropna(), rtol=1e-5)
    with pytest.raises(DataError, match="X looks like long layout.*pivot"):
        settings = {"data.missing_values": ("Bad Input",)}
        KDDetector(settings=settings).fit(X)
    # A table is none.
    rows = pd.DataFrame({"x": [0.5, 1, 2] * 9, "mode": ["a", "b", "a"] * 9})
    with pytest.raises(DataError, match="'mode'.: 'a' is not a number"):
        loaded.predict(rows)
