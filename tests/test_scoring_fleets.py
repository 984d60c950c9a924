"""Files that are scored with a fleet: each machine by its own detector."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.detection.fleet import BUDGET
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.scoring import machines
from kdjax.scoring.files import score_file, score_fleet
from kdjax.scoring.opening import open_streams
from kdjax.scoring.streams import run_stream

START = "2024-03-01"


def machine_rows(seed, rows=40, machine=None):
    values = 3 * np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    frame = pd.DataFrame(values, columns=["x", "y"])
    frame.insert(0, "time", pd.date_range(START, periods=rows, freq="1s"))
    if machine is not None:
        frame.insert(0, "pump", machine)
    return frame


@pytest.fixture
def files(tmp_path):
    """A file of each of two machines, and one of a machine with few rows."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for seed, name in enumerate(("m1", "m2", "few")):
        machine_rows(seed).to_csv(folder / f"{name}.csv", index=False)
    return folder


def same(first, second):
    for ending in ("", ".events.csv"):
        names = [Path(f"{path}{ending}") for path in (first, second)]
        assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize("options", [{}, {"causal": True, "contributions": True}])
def test_a_folder_has_the_bytes_of_single_detectors(fleet, files, tmp_path, options):
    score_fleet([files], detector=fleet.path, output=tmp_path / "all", **options)
    for name, entity in (("m1", None), ("m2", None), ("few", "pooled")):
        alone = tmp_path / f"{name}.csv"
        score_file(
            files / f"{name}.csv",
            detector=fleet.of(name),
            output=alone,
            entity=entity,
            **options,
        )
        found = tmp_path / "all" / f"{name}.csv"
        assert found.read_bytes() == alone.read_bytes()
        if name != "few":  # whose events have the machine's name in their ids
            same(found, alone)
    taus = [pd.read_csv(tmp_path / "all" / f"{n}.csv")["tau"][0] for n in ("m1", "m2")]
    assert taus == [3.0, 5.0]


def test_a_restart_scores_what_changed_only(fleet, files, tmp_path):
    """A new machine leaves the outputs of others as they are; a new detector does not."""
    output = tmp_path / "all"
    score_fleet([files], detector=fleet.path, output=output)
    machine_rows(7).to_csv(files / "m3.csv", index=False)
    fleet.add("m3", tau=4.0)
    said = score_fleet([files], detector=fleet.path, output=output)
    assert [line for line in said if line.endswith("verified")] == [
        "few.csv: verified", "m1.csv: verified", "m2.csv: verified"
    ]  # fmt: skip
    assert said[-1].endswith("4 of 4 files: 1 scored, 3 verified, 0 failed")
    fleet.add("m2", tau=6.0, scale=2.0)
    said = score_fleet([files], detector=fleet.path, output=output)
    assert said[-1].endswith("1 scored, 3 verified, 0 failed")
    assert pd.read_csv(output / "m2.csv")["tau"][0] == 6.0
    record = json.loads((output / "m2.csv.done.json").read_text())
    assert [*record["detectors"]] == ["m2"]


def test_a_machine_that_failed_or_is_unknown_is_named(fleet, files, tmp_path, capsys):
    machine_rows(8).to_csv(files / "bad.csv", index=False)
    machine_rows(9).to_csv(files / "new.csv", index=False)
    arguments = ["kdjax", "score", str(files), f"--detector={fleet.path}"]
    assert main([*arguments, f"--output={tmp_path / 'all'}"]) == 2
    said = capsys.readouterr().out
    assert "failed: bad.csv: bad: its detector failed (3 rows, fewer" in said
    assert f"failed: new.csv: new: the fleet {fleet.path} has no such machine" in said
    assert "5 of 5 files: 3 scored, 0 verified, 2 failed" in said
    assert not (tmp_path / "all" / "bad.csv").exists()
    with pytest.raises(DataError, match="^new: the fleet .* has no such machine: add"):
        score_file(files / "new.csv", detector=fleet.path, output=tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()
    score_file(
        files / "new.csv", detector=fleet.path, output=tmp_path / "o.csv", entity="m1"
    )
    assert pd.read_csv(tmp_path / "o.csv")["tau"][0] == 3.0


def test_a_table_of_many_machines(fleet, tmp_path):
    """Each machine's rows are scored as its own file; faulty machines spoil no other."""
    names = ("m2", "bad", "m1", "few", "m9")
    parts = [machine_rows(seed, machine=name) for seed, name in enumerate(names)]
    parts.append(machine_rows(5, rows=2, machine="m3"))
    fleet.add("m3", tau=3.0)
    table = pd.concat(parts).sample(frac=1, random_state=1).sort_values("time")
    table.to_parquet(tmp_path / "long.parquet", index=False)
    output = tmp_path / "o.csv"
    options = {"detector": fleet.path, "output": output, "entity_column": "pump"}
    said = []
    with pytest.raises(
        DataError, match="^3 of 6 machines not scored; the first is bad: "
    ):
        score_file(tmp_path / "long.parquet", log=said.append, **options)
    assert [line[:11] for line in said if line.startswith("failed")] == [
        "failed: bad", "failed: m3:", "failed: m9:"
    ]  # fmt: skip
    found = pd.read_csv(output, dtype=str)
    assert [*dict.fromkeys(found["entity"])] == ["few", "m1", "m2"]
    for seed, name in ((0, "m2"), (2, "m1")):
        machine_rows(seed).to_csv(tmp_path / f"{name}.csv", index=False)
        alone = tmp_path / "alone.csv"
        score_file(tmp_path / f"{name}.csv", detector=fleet.of(name), output=alone)
        own = found[found["entity"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, pd.read_csv(alone, dtype=str))
    fleet.configure(**{"data.entity_column": "pump"})  # as a fleet of one table has it
    del options["entity_column"]
    before = output.read_bytes()
    with pytest.raises(DataError, match="^3 of 6 machines"):
        score_file(tmp_path / "long.parquet", **options)
    assert output.read_bytes() == before


def test_a_partitioned_folder(fleet, tmp_path):
    """The parts of a machine are one series."""
    whole, folder = machine_rows(3), tmp_path / "rows" / "pump=m1"
    folder.mkdir(parents=True)
    whole[:17].to_parquet(folder / "part-0.parquet", index=False)
    whole[17:].to_parquet(folder / "part-1.parquet", index=False)
    whole.to_parquet(tmp_path / "m1.parquet", index=False)
    options = {"detector": fleet.path}
    said = score_fleet([tmp_path / "rows"], output=tmp_path / "all", **options)
    assert said[-1].endswith("1 of 1 file: 1 scored, 0 verified, 0 failed")
    alone = tmp_path / "alone.parquet"
    score_file(tmp_path / "m1.parquet", detector=fleet.of("m1"), output=alone)
    same(tmp_path / "all" / "m1.parquet", alone)
    said = score_fleet([tmp_path / "rows"], output=tmp_path / "all", **options)
    assert said[0] == "pump=m1: verified"
    whole[:5].to_parquet(folder / "part-2.parquet", index=False)
    with pytest.raises(DataError, match="m1"):  # times run backwards now
        score_fleet([tmp_path / "rows"], output=tmp_path / "all", **options)


def test_spans_of_other_machines_are_theirs(fleet, files, tmp_path):
    spans = tmp_path / "spans.csv"
    spans.write_text(
        f"start,end,entity\n{START} 00:00:10,{START} 00:00:12,m1\n"
        f"{START} 00:00:20,{START} 00:00:21,\n"
    )
    said = score_fleet(
        [files], detector=fleet.path, output=tmp_path / "all", exclude=spans
    )
    assert [line for line in said if "excluded" in line] == [
        "few: 2 of 40 rows excluded (spans.csv)",
        "m1: 5 of 40 rows excluded (spans.csv)",
        "m2: 2 of 40 rows excluded (spans.csv)",
    ]


def test_a_shared_budget_is_compared_at_the_end(fleet, files, tmp_path):
    """Also after a restart that scores nothing: records have the numbers."""
    fleet.configure(**{
        "threshold.budget_scope": "fleet", "threshold.method": "budget",
        "threshold.budget": "50/day", "entity_mode": "per_entity",
    })  # fmt: skip
    whole = {"budget": 50.0, "machines": 3,
             "expected": {"number": 48.0, "low": 30.0, "high": 61.0}}  # fmt: skip
    (fleet.path / BUDGET).write_text(json.dumps(whole))
    for _ in range(2):
        said = score_fleet([files], detector=fleet.path, output=tmp_path / "all")
        assert said[-2] == (
            "Budget: 50 events a day for 3 machines of the fleet; expect 48 (30–61)."
        )
        observed = 0.0
        for name in ("m1", "m2", "few"):
            events = pd.read_csv(tmp_path / "all" / f"{name}.csv.events.csv")
            observed += (events["kind"] == "score").sum() / (39 / 86_400)
        assert observed > 0
        assert said[-1].startswith(
            f"The 3 machines scored: expect 900 events a day, observed {observed:,.0f}."
        )


def test_verbs_of_one_detector_name_the_machines_folders(fleet, files, capsys):
    for verb in (
        ["calibrate", str(files / "m1.csv"), f"--output={files}"],
        ["export", f"--output={files}"],
        ["plot", "s.csv", f"--data={files / 'm1.csv'}", "--output=p.html"],
    ):
        assert main(["kdjax", *verb, f"--detector={fleet.path}"]) == 2
        assert f"such as {fleet.path}/detectors/MACHINE" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="is the folder of a fleet"):
        load_detector(fleet.path)


# Streams.


def lines_of(machines, rows=40):
    """Lines of many machines, in turn, as JSON."""
    frames = {name: machine_rows(seed, rows) for name, seed in machines.items()}
    for place in range(rows):
        for name, frame in frames.items():
            row = frame.iloc[place]
            cells = {"time": str(row["time"]), "pump": name}
            yield json.dumps(cells | {"x": float(row["x"]), "y": float(row["y"])})


def streamed(lines, fleet, **options):
    output, said = io.StringIO(), []
    options = {"reading": {"entity_column": "pump"}} | options
    summary = run_stream(lines, output, detector=fleet.path, log=said.append, **options)
    return [*map(json.loads, output.getvalue().splitlines())], said, summary


def rows_by(answers, name):
    keys = ("time", "score", "window_score", "alarm", "state")
    rows = [one for one in answers if one.get("entity") == name and "score" in one]
    return [tuple(row[key] for key in keys) for row in rows]


@pytest.mark.parametrize("most", [1, 1000])
def test_a_stream_answers_as_causal_scores(fleet, tmp_path, most):
    """Machines have their own detectors; lines of others are refused one by one."""
    names = {"m1": 0, "m2": 1, "few": 2, "m9": 3, "bad": 4}
    lines = [[*lines_of(names)]]
    answers, said, summary = streamed(lines, fleet, most_open=most)
    assert said[0] == "scoring each machine with its own detector of the fleet"
    assert summary.rows == 120 and summary.faulty == 80
    for name in ("m1", "m2", "few"):
        machine_rows(names[name]).to_csv(tmp_path / f"{name}.csv", index=False)
        alone = tmp_path / f"{name}.scores.csv"
        score_file(
            tmp_path / f"{name}.csv", detector=fleet.path, output=alone, causal=True
        )
        wanted = pd.read_csv(alone)
        found = rows_by(answers, name)
        assert [row[0] for row in found] == wanted["time"].tolist()
        assert [row[3:] for row in found] == [
            *zip(wanted["alarm"], wanted["state"], strict=True)
        ]
        for place, column in ((1, "score"), (2, "window_score")):
            values = [math.nan if row[place] is None else row[place] for row in found]
            np.testing.assert_allclose(values, wanted[column], rtol=2e-6)
        begun = [
            one["event"]["id"]
            for one in answers
            if "event" in one and one["event"]["entity"] == name
            and one["event"]["end"] is None and one["event"]["kind"] == "score"
        ]  # fmt: skip
        events = pd.read_csv(f"{alone}.events.csv")
        assert begun == events["id"][events["kind"] == "score"].tolist() != []
    for name, word in (("m9", "has no such machine"), ("bad", "its detector failed")):
        faults = [one for one in answers if one.get("entity") == name]
        assert len(faults) == 40 and all(word in one["error"] for one in faults)


def test_a_stream_goes_on_with_new_machines_and_detectors(fleet, tmp_path):
    """Rows of a machine carry over to its new detector; a new machine needs no restart."""
    early, late = [*lines_of({"m1": 0, "m2": 1, "m9": 2}, 20)], [
        *lines_of({"m1": 0, "m2": 1, "m9": 2})
    ][60:]  # fmt: skip

    def lines():
        yield early
        fleet.add("m9", tau=4.0)
        fleet.add("m1", tau=0.5)
        yield late

    found, said, _ = streamed(lines(), fleet)
    assert "m1: another detector is used; its rows are kept." in said
    never, *_ = streamed([[*lines_of({"m2": 1})]], fleet)
    assert rows_by(found, "m2") == rows_by(never, "m2")
    after, *_ = streamed([[*lines_of({"m1": 0})]], fleet)
    assert rows_by(found, "m1")[20:] == rows_by(after, "m1")[20:]
    fleet.add("m1", tau=3.0)
    before, *_ = streamed([early], fleet)
    assert rows_by(found, "m1")[:20] == rows_by(before, "m1")
    new = [one for one in found if one.get("entity") == "m9"]
    assert [("error" in one) for one in new] == [True] * 20 + [False] * 20


def test_a_stream_resumes_from_its_state(fleet, tmp_path):
    """A restart skips what was answered, refused lines too; machines that left are refused."""
    every = [*lines_of({"m1": 0, "m2": 1, "m9": 2})]
    whole, *_ = streamed([every], fleet)
    output, state = tmp_path / "answers", tmp_path / "state"
    reading = {"entity_column": "pump"}
    options = {"detector": fleet.path, "state": state, "reading": reading}
    run_stream([every[:70]], output, most_open=1, **options)
    run_stream([every], output, **options)
    found = [*map(json.loads, output.read_text().splitlines())]
    for name in ("m1", "m2"):
        assert rows_by(found, name) == rows_by(whole, name)
    fleet.add("m1", state="failed", reason="its file is empty")
    more = [json.dumps({"time": "2024-03-02", "pump": "m1", "x": 1, "y": 2})]
    with pytest.raises(
        DataError, match="of the last 2 lines are faulty, the latest: m1: "
    ):
        run_stream([[*more, *every[-3:]]], output, **options)
    (last,) = [one for one in map(json.loads, output.read_text().splitlines())
               if one.get("time") == "2024-03-02"]  # fmt: skip
    assert (
        last["entity"] == "m1"
        and "its detector failed (its file is empty" in last["error"]
    )


def test_messages_of_alarms_have_the_machines_digest(fleet, tmp_path):
    file = tmp_path / "messages"
    streamed([[*lines_of({"m1": 0, "few": 2})]], fleet, on_alarm=[f"file:{file}"])
    messages = [*map(json.loads, file.read_text().splitlines())]
    digests = {one["entity"]: one["detector"] for one in messages}
    assert digests == {name: fleet.digest(name) for name in ("m1", "few")}


def test_one_machine_of_a_fleet_in_a_stream(fleet, capsys, monkeypatch):
    lines = [*lines_of({"m2": 1}, 12)]
    lines = [line.replace('"pump": "m2", ', "") for line in lines]
    found, *_ = streamed([lines], fleet, entity="m2", reading={})
    wanted, *_ = streamed([[*lines_of({"m2": 1}, 12)]], fleet)
    assert [one["score"] for one in found if "score" in one] == [
        row[1] for row in rows_by(wanted, "m2")
    ]
    with pytest.raises(
        ConfigError, match="backend=onnxruntime, or for one entity, give"
    ):
        open_streams(fleet.path, backend="onnxruntime")
    assert main(["kdjax", "stream", f"--detector={fleet.path}", "--entity=m7"]) == 2
    assert "m7: the fleet" in capsys.readouterr().err


def test_streams_of_a_fleet_are_refused_one_by_one(fleet):
    streams = open_streams(fleet.path)
    for _ in range(5):
        found = streams.update({"m1": [1.0, 2.0], "m9": [1.0, 2.0], "m2": [5.0, 2.0]})
    assert isinstance(found["m9"], DataError)
    assert found["m1"].tau == 3.0 and found["m2"].tau == 5.0
    alone = open_streams(fleet.of("m2"))
    for _ in range(5):
        other = alone.update({"m2": [5.0, 2.0]})
    assert other["m2"].window_score == found["m2"].window_score


def test_a_detector_leaves_the_memory_with_its_last_stream(fleet):
    streams = open_streams(fleet.path)
    first = streams.another("m1")
    assert streams.another("m1").source is first.source
    other = streams.another("few").source
    assert other is streams.another("").source
    assert len(streams._detectors) == 2
    del first
    assert len(streams._detectors) == 1


def test_a_fleet_without_a_detector_is_refused(fleet):
    for name in ("m1", "m2", "few"):
        fleet.add(name, state="failed", reason="no rows")
    (fleet.path / "shared").rename(fleet.path / "other")
    with pytest.raises(
        ArtifactError, match="has no detector: all of its machines failed"
    ):
        open_streams(fleet.path)


def test_each_machine_is_silent_by_its_own_cadence(fleet, monkeypatch):
    fleet.add("slow", tau=3.0, step=3600.0)
    now = [1000.0]
    monkeypatch.setattr(machines.time, "monotonic", lambda: now[0])
    told = {}
    with contextlib.closing(machines.Store(None)) as store:
        found = machines.Machines(
            open_streams(fleet.path), {}, store=store, most=9, log=told.setdefault
        )
        for name in ("slow", "m1"):
            found.of(name).stream.update([1.0, 2.0], "2024-03-01")
            found.came(name)
        for now[0], silent in ((1004.0, []), (1006.0, ["m1"]), (19_000.0, []),
                               (19_001.0, ["slow"]), (99_000.0, [])):  # fmt: skip
            assert [one["entity"] for one in found.silent(0.0)] == silent


def test_readings_of_a_fleet_are_put_on_the_grid(fleet, tmp_path):
    """Long layout: a machine has a grid of its own, and refused readings leave none."""
    names = {"m1": 0, "m9": 1, "m2": 2, "few": 3}
    lines = []
    for line in lines_of(names, 12):
        row = json.loads(line)
        for tag in ("x", "y"):
            about = {"time": row["time"], "pump": row["pump"]}
            lines.append(json.dumps(about | {"tag": tag, "value": row[tag]}))
    reading = {"entity_column": "pump", "layout": "long", "step": "1s"}
    found, _, summary = streamed([lines], fleet, reading=reading)
    wanted, *_ = streamed([[*lines_of(names, 12)]], fleet)
    for name in ("m1", "m2"):  # a row is complete with the next step's readings
        rows = [row[1:] for row in rows_by(found, name)]
        assert rows == [row[1:] for row in rows_by(wanted, name)][:11]
    faults = [one for one in found if one.get("entity") == "m9"]
    assert len(faults) == summary.faulty == 24
    assert all("has no such machine" in one["error"] for one in faults)


def test_an_unknown_machine_for_a_whole_folder_is_refused(fleet, files, tmp_path):
    with pytest.raises(DataError, match="^m9: the fleet"):
        score_fleet([files], detector=fleet.path, output=tmp_path / "all", entity="m9")
    assert not (tmp_path / "all").exists()
    score_fleet([files], detector=fleet.path, output=tmp_path / "all", entity="m2")
    taus = [pd.read_csv(path)["tau"][0] for path in (tmp_path / "all").glob("??.csv")]
    assert taus == [5.0, 5.0]
