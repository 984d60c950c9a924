"""Whole sweeps of small networks, against runs of their members by themselves."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from test_sweep_tables import read_table

from kdjax.cli import main
from kdjax.config import get_config, override
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.experiment.pipeline import run
from kdjax.experiment.sweeps.design import make_design
from kdjax.experiment.sweeps.members import load_sweep_data
from kdjax.experiment.sweeps.sweep import describe_sweep, run_sweep, write_record
from kdjax.experiment.workdir import check_data, read_lines
from kdjax.export.files import export_file

pytestmark = pytest.mark.slow

# Two seeds, a student without a teacher, another shape, one that diverges, and one that
# differs in its threshold only.
CHANGES = (
    {},
    {"seed": 5},
    {"distill.alpha": 0.0},
    {"student.hidden": (3,)},
    {"train.learning_rate": 1e38},
    {"threshold.false_alarm_rate": 0.2},
)
DIVERGED = 4
MACHINES = ["press", "saw"]


def listed(changes):
    def sweep(add):
        for own in changes:
            add(own)

    return sweep


@pytest.fixture(scope="module")
def design(plant_changes):
    """Makes the design of `CHANGES`, with further changes of the base."""
    from conftest import TINY

    def make(more=None, changes=CHANGES):
        config = override(get_config(), TINY | plant_changes | (more or {}))
        return make_design("small", config, listed(changes))

    return make


@pytest.fixture(scope="module")
def swept(design, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweeps") / "small"
    return workdir, run_sweep(design(), workdir, way="together")


def test_the_table_has_a_line_a_member_and_entity(swept):
    workdir, outcome = swept
    table = read_table(workdir / "members.csv")
    pd.testing.assert_frame_equal(table, outcome.members, check_dtype=False)
    assert list(table["member"]) == [f"{i:03d}" for i in range(6) for _ in MACHINES]
    assert list(table["entity"]) == MACHINES * 6
    assert outcome.fields == (
        "seed", "distill.alpha", "student.hidden", "train.learning_rate",
        "threshold.false_alarm_rate",
    )  # fmt: skip
    assert list(table["student.hidden"][5:8]) == ["2", "3", "3"]
    assert list(table["seed"][:4]) == [0, 0, 5, 5]


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))]
)
def test_a_member_is_the_run_of_its_settings(swept, design, number, tmp_path, finished):
    """Within the rounding of another order of sums, through all that follows."""
    table = swept[1].members
    member = design().members[number]
    if number:
        workdir, results = tmp_path, run(member.settings, tmp_path)
    else:
        assert member.settings == finished.settings
        workdir, results = finished.workdir, finished.results
    for entity in MACHINES:
        (line,) = table[
            (table["member"] == member.name) & (table["entity"] == entity)
        ].to_dict("records")
        for row in results["entities"]:
            if row["level"] != "window" or row["threshold"] == "rolling":
                continue
            wanted = f"f1_{row['threshold']}"
            if (row["model"], row["entity"]) == ("teacher", entity) and number != 2:
                assert line[f"teacher_{wanted}"] == pytest.approx(row["f1"], abs=1e-6)
            if (row["model"], row["entity"]) == ("student", entity):
                for key in ("f1", "precision", "alarm_rate"):
                    found = line[f"{key}_{row['threshold']}"]
                    assert found == pytest.approx(row[key], abs=0.05)
                assert line["average_precision"] == pytest.approx(
                    row["average_precision"], abs=0.02
                )
        lines = [one for one in read_lines(workdir) if one["phase"] == "student"]
        losses = [one["validation_loss"] for one in lines if "validation_loss" in one]
        assert line["validation_loss"] == pytest.approx(min(losses), rel=1e-4)
        assert line["steps"] == lines[-1]["step"]
        assert line["best_epoch"] == 1 + int(np.argmin(losses))
    detector = load_detector(
        swept[0] / "members" / member.name / "detectors" / "student"
    )
    assert line["parameters"] == detector.model.parameters
    alone = load_detector(workdir / "detectors" / "student")
    for one, other in zip(detector.gaussians, alone.gaussians, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-3)


def test_each_network_is_trained_once(swept):
    phases = {line["phase"] for line in read_lines(swept[0])}
    teachers = {p for p in phases if p.startswith("teacher")}
    # One for each seed and one for the rate that diverges.
    assert len(teachers) == 3
    # A member that differs in its threshold only has another's student; the diverging
    # teacher has none.
    assert len(phases - teachers) == 4
    first, last = (
        json.loads((swept[0] / f"members/{n}/results.json").read_text())
        for n in ("000", "005")
    )
    assert (
        first["measures"]["press"]["validation_loss"]
        == (last["measures"]["press"]["validation_loss"])
    )


def test_a_diverging_member_is_reported(swept):
    workdir, outcome = swept
    table = outcome.members[outcome.members["member"] == f"{DIVERGED:03d}"]
    assert set(table["status"]) == {"failed"}
    assert table["reason"].str.contains("not finite at step 2").all()
    assert table["f1_oracle"].isna().all()
    done = outcome.members[outcome.members["status"] == "done"]
    assert len(done) == 10 and done["f1_oracle"].notna().all()
    report = (workdir / "report.html").read_text()
    assert "member 004 failed" in report
    summary = pd.read_csv(workdir / "summary.csv")
    assert list(summary["members"]) == [2, 1, 1, 0, 1]
    assert list(summary["failed"]) == [0, 0, 0, 1, 0]


def test_teachers_stand_beside_their_students(swept):
    table = swept[1].members.set_index(["member", "entity"])
    seeds = table["teacher_average_precision"].xs("press", level="entity")
    assert seeds["000"] == seeds["003"] == seeds["005"] > 0
    assert math.isnan(seeds["002"])


def test_costs_are_those_of_the_exported_file(swept, tmp_path):
    table = swept[1].members.query("entity == 'press'").set_index("member")
    for member in ("000", "003"):
        folder = swept[0] / "members" / member / "detectors" / "student"
        output = tmp_path / f"{member}.onnx"
        list(export_file(folder, format="onnx", output=output, entity="press"))
        assert table.loc[member, "bytes"] == output.stat().st_size
        assert 0 < table.loc[member, "milliseconds"] < 100
    assert table.loc["003", "bytes"] > table.loc["000", "bytes"]


def test_costs_are_unknown_without_onnx(swept, design, tmp_path, monkeypatch, caplog):
    def missing(detector, index):
        raise ConfigError("needs the package onnx")

    monkeypatch.setattr("kdjax.export.onnx.onnx_file", missing)
    workdir = tmp_path / "again"
    shutil.copytree(swept[0], workdir)
    (workdir / "members/000/results.json").unlink()
    table = run_sweep(design(), workdir).members.set_index("member")
    assert table.loc["000", ["bytes", "milliseconds"]].isna().all(axis=None)
    assert table.loc["001", "bytes"].notna().all()
    assert "needs the package onnx" in caplog.text


def test_a_finished_sweep_is_not_run_again(swept, design):
    workdir, outcome = swept
    before = {p: p.stat().st_mtime_ns for p in (workdir / "members").rglob("*")}
    log = (workdir / "metrics.jsonl").read_text()
    again = run_sweep(design(), workdir)
    pd.testing.assert_frame_equal(again.members, outcome.members)
    assert (workdir / "metrics.jsonl").read_text() == log
    assert {p: p.stat().st_mtime_ns for p in (workdir / "members").rglob("*")} == before


def test_a_killed_sweep_goes_on(swept, design, tmp_path):
    """As it is after a kill while the third member was evaluated."""
    workdir = tmp_path / "killed"
    shutil.copytree(swept[0], workdir)
    for name in (
        "members.csv",
        "summary.csv",
        "report.html",
        "members/002/results.json",
    ):
        (workdir / name).unlink()
    for number in (3, 4, 5):
        shutil.rmtree(workdir / f"members/{number:03d}")
    log = (workdir / "metrics.jsonl").read_text()
    found = run_sweep(design(), workdir, way="together").members
    assert (workdir / "metrics.jsonl").read_text() == log, "trained again"
    # Milliseconds are measured anew, and differ.
    timed = ["milliseconds"]
    pd.testing.assert_frame_equal(
        found.drop(columns=timed), swept[1].members.drop(columns=timed)
    )


def test_a_sweep_of_version_0_1_goes_on(swept, design, tmp_path):
    """Its sweep.json has the old names of renamed fields."""
    workdir = tmp_path / "old"
    shutil.copytree(swept[0], workdir)
    record = json.loads((workdir / "sweep.json").read_text())
    record["base"]["controls"] = record["base"].pop("baselines")
    for model in ("teacher", "student"):
        own = record["base"][model]
        own["parts"] = own.pop("components")
    record["base"]["distill"]["alpha_end"] = None  # of a field that was removed
    (workdir / "sweep.json").write_text(json.dumps(record))
    found = run_sweep(design(), workdir).members
    pd.testing.assert_frame_equal(found, swept[1].members)


def test_other_sweeps_and_data_are_refused(swept, design, plant, tmp_path):
    workdir = swept[0]
    with pytest.raises(
        ConfigError, match=r"another sweep \(train.batch_size: 32 -> 16"
    ):
        run_sweep(design({"train.batch_size": 16}), workdir)
    with pytest.raises(ConfigError, match=r"member 005: .* -> None"):
        run_sweep(design(changes=CHANGES[:5]), workdir)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("…")
    with pytest.raises(ArtifactError, match=r"thesis.tex but no sweep.json"):
        run_sweep(design(), tmp_path / "foreign")
    rows = pd.read_csv(plant.train)
    rows.loc[3, "load"] += 1
    rows.to_csv(tmp_path / "train.csv", index=False)
    moved = tmp_path / "moved"
    changed = design({"data.path": str(tmp_path / "train.csv")}, changes=CHANGES[2:3])
    moved.mkdir()
    digests = load_sweep_data(changed.name, changed.members).digests
    check_data(moved, digests)
    write_record(moved / "sweep.json", describe_sweep(changed))
    rows.loc[3, "load"] += 1
    rows.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataError, match="the data changed"):
        run_sweep(changed, moved)


@pytest.mark.slow
def test_members_per_entity(design, tmp_path):
    more = {"entity_mode": "per_entity", "threshold.false_alarm_rate": 0.3}
    outcome = run_sweep(design(more, changes=[{}, {"seed": 1}]), tmp_path)
    table = outcome.members
    assert list(table["entity"]) == MACHINES * 2
    assert len(set(table["validation_loss"])) == 4
    assert (tmp_path / "members/001/detectors/student/saw/detector.json").exists()


def test_a_classifier_is_that_of_a_run_and_trains_no_network(design, tmp_path):
    more = {
        "data.window": 16,
        "student.components": ("classifier",),
        "distill.alpha": 0.0,
        "classifier.networks": 2,
        "classifier.steps": 5,
        "baselines": ("mahalanobis",),
    }
    made = design(more, changes=[{}])
    table = run_sweep(made, tmp_path / "sweep").members
    assert list(table["status"]) == ["done"] * 2
    assert table["validation_loss"].isna().all() and list(table["steps"]) == [0, 0]
    run(made.members[0].settings, tmp_path / "run")
    places = (f"sweep/members/{made.members[0].name}", "run")
    one, other = (
        load_detector(tmp_path / place / "detectors" / "student") for place in places
    )
    networks = one.model.params["networks"]
    assert len(networks["head_bias"]) == 2, "the one that learnt from all rows"
    for name, leaf in other.model.params["networks"].items():
        np.testing.assert_array_equal(networks[name], leaf)
    assert one.thresholds == other.thresholds
    assert not read_lines(tmp_path / "sweep"), "no network was trained"


CONFIG_FILE = """
from kdjax.config import get_config as defaults

def get_config(name="a"):
    config = defaults()
    config.data.window = 10
    config.data.stride = 5
    config.teacher.hidden = (3,)
    config.student.hidden = (2,)
    config.teacher.epochs = 1
    config.student.epochs = 1
    config.threshold.false_alarm_rate = 0.1
    return config
"""


@pytest.fixture
def program(tmp_path, plant, capsys):
    """Calls the program with a config file; gives exit code and both outputs."""

    def call(text, *flags, argument=""):
        path = tmp_path / "three.py"
        path.write_text(CONFIG_FILE + text)
        code = main(
            [
                "kdjax", "sweep", f"--config={path}{argument}",
                f"--config.data.path={plant.train}", "--config.data.entity_column=machine",
                f"--workdir={tmp_path / 'w'}", *flags,
            ]
        )  # fmt: skip
        return code, *capsys.readouterr()

    return call


def test_the_verb_sweeps_unlabelled_rows(program, tmp_path):
    code, out, _ = program("def sweep(add):\n    [add(seed=i) for i in range(2)]\n")
    assert code == 0
    assert "three: 2 members" in out and "members.csv" in out
    table = read_table(tmp_path / "w" / "members.csv")
    assert list(table["seed"]) == [0, 0, 1, 1]
    assert table["f1_oracle"].isna().all() and table["alarm_rate_blocks"].isna().all()
    assert (tmp_path / "w" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_sweep_of_the_base_alone_has_one_member(program, tmp_path):
    assert program("def sweep(add):\n    add()\n")[0] == 0
    assert list(read_table(tmp_path / "w" / "members.csv")["member"]) == ["000"] * 2
    assert "swept: nothing" in (tmp_path / "w" / "report.html").read_text()


@pytest.mark.slow
def test_a_config_files_argument_reaches_its_sweep(program, tmp_path):
    text = "def sweep(add, name):\n    add(seed=len(name))\n"
    assert program(text, argument=":long")[0] == 0
    assert list(read_table(tmp_path / "w" / "members.csv")["seed"]) == [4, 4]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("", (), "three has no sweep"),
        ("def sweep(add): pass", (), "added no member"),
        ("def sweep(add): add(seed=-1)", (), "member 0 (seed=-1)"),
        ("def sweep(add): add(seed=1)", ("--way=both",), "way='both'"),
        ("def sweep(add): add(seed=1)", ("--config.init_from=x",), "init_from"),
    ],
)
def test_faults_end_in_one_line(program, text, flags, message):
    code, _, err = program(text, *flags)
    assert code == 2
    assert message in err and len(err.splitlines()) == 1


def test_a_sweep_needs_a_config_file(capsys):
    assert main(["kdjax", "sweep"]) == 2
    assert "sweep needs --config" in capsys.readouterr().err
