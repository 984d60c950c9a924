"""`entity_mode=per_entity`: each entity as if it were alone, in one run."""

import functools

import numpy as np
import pandas as pd
import pytest

from kdjax.data.datasets import load_dataset
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError
from kdjax.experiment.pipeline import run
from kdjax.experiment.train import group_name, split_groups
from kdjax.scoring.files import score_file

MACHINES = ("press", "saw")
CHANGES = {"threshold.false_alarm_rate": 0.3, "entity_mode": "per_entity"}


@pytest.fixture(scope="module")
def apart(plant_changes, tiny, tmp_path_factory):
    """A run of one teacher and one student a machine: its folder and results."""
    workdir = tmp_path_factory.mktemp("apart") / "run"
    return workdir, run(tiny(plant_changes | CHANGES), workdir)


@pytest.fixture(scope="module")
def alone(plant, plant_changes, tiny, tmp_path_factory):
    """Runs a machine's rows by themselves: folder and results."""

    @functools.cache
    def made(machine):
        folder = tmp_path_factory.mktemp(machine)
        paths = {}
        for part, path in plant._asdict().items():
            rows = pd.read_csv(path)
            paths[part] = folder / f"{part}.csv"
            rows[rows["machine"] == machine].to_csv(paths[part], index=False)
        own = {"data.path": str(paths["train"]), "data.test_path": str(paths["test"])}
        changes = plant_changes | own | {"threshold.false_alarm_rate": 0.3}
        return folder / "run", run(tiny(changes), folder / "run")

    return made


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_an_entity_gets_what_it_would_get_alone(apart, alone, machine):
    workdir, results = apart
    own = [row for row in results["entities"] if row["entity"] == machine]
    folder, expected = alone(machine)[0], alone(machine)[1]["entities"]
    assert [row["model"] for row in own] == [row["model"] for row in expected]
    for found, wanted in zip(own, expected, strict=True):
        for key in ("tau", "f1", "precision", "recall", "average_precision"):
            near = pytest.approx(wanted[key], rel=2e-3) if wanted[key] else wanted[key]
            assert found[key] == near, key
    for name in ("teacher", "student", "student_alone", "pca"):
        found = load_detector(workdir / "detectors" / name / machine)
        wanted = load_detector(folder / "detectors" / name)
        assert found.entities == wanted.entities == (machine,)
        for one, other in zip(found.gaussians, wanted.gaussians, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-2, atol=1e-3)
        for one, other in zip(found.scalers, wanted.scalers, strict=True):
            np.testing.assert_array_equal(one, other)
        assert found.card["data"]["sha256"] == wanted.card["data"]["sha256"]


@pytest.mark.slow
def test_the_machines_have_networks_of_their_own(apart):
    kernels = [
        load_detector(apart[0] / "detectors/student" / m).model.params["head"]["kernel"]
        for m in MACHINES
    ]
    assert (kernels[0] != kernels[1]).any()


@pytest.mark.slow
def test_tables_hold_all_entities(apart, finished):
    _, results = apart
    assert results["dataset"]["entities"] == list(MACHINES)
    for field in ("train_rows", "test_rows", "windows", "positive_windows"):
        assert results["dataset"][field] == finished.results["dataset"][field]
    (row,) = (
        row
        for row in results["rows"]
        if (row["model"], row["scope"], row["threshold"], row["level"])
        == ("student", "per_entity_mean", "oracle", "window")
    )
    of_each = [
        row["f1"]
        for row in results["entities"]
        if (row["model"], row["threshold"], row["level"])
        == ("student", "oracle", "window")
    ]
    assert len(of_each) == 2
    assert row["f1"] == pytest.approx(np.mean(of_each))
    assert any("2 teachers and as many students" in note for note in results["notes"])


@pytest.mark.slow
def test_the_run_is_resumed_and_written_as_any_other(apart, plant_changes, tiny):
    workdir, results = apart
    assert run(tiny(plant_changes | CHANGES), workdir) == results
    for name in ("report.html", "learning_curve.png", "config.json"):
        assert (workdir / name).stat().st_size
    phases = {line.name for line in (workdir / "checkpoints" / "teacher").iterdir()}
    assert phases == set(MACHINES)


@pytest.mark.slow
def test_a_machine_s_detector_scores_its_rows(apart, plant, tmp_path):
    folder = apart[0] / "detectors" / "student"
    with pytest.raises(ArtifactError, match=r"\(2 near it: .*press"):
        load_detector(folder)
    rows = pd.read_csv(plant.test).query("machine == 'saw'").drop(columns="fault")
    rows.to_csv(tmp_path / "saw.csv", index=False)
    said = score_file(
        tmp_path / "saw.csv", detector=folder / "saw", output=tmp_path / "out.csv",
        entity_column="machine",
    )  # fmt: skip
    assert "with the threshold of saw" in " ".join(said)
    assert len(pd.read_csv(tmp_path / "out.csv")) == len(rows)


def test_too_few_rows_of_one_entity_are_named(plant_changes, tiny, tmp_path):
    settings = tiny(plant_changes | CHANGES | {"threshold.false_alarm_rate": 0.1})
    with pytest.raises(ConfigError, match=r"^saw: .*entity_mode=shared"):
        run(settings, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_no_name_leaves_its_folder(plant_changes, tiny):
    assert group_name("teacher", "") == "teacher"
    assert group_name("teacher", "machine 1") == "teacher/machine 1"
    for name in ("..", "a/b", ".hidden", "a\\b"):
        assert group_name("x", name).count("/") == 1
        assert not group_name("x", name).split("/")[1].startswith(".")
    assert group_name("x", "a.b") != group_name("x", "a%2Eb")
    settings = tiny(plant_changes)
    dataset = load_dataset(settings["data"])
    assert list(split_groups(dataset, "shared")) == [""]
    assert list(split_groups(dataset, "per_entity")) == list(MACHINES)
