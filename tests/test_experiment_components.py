"""Joined kinds through whole runs: teachers without a network, students beside controls."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest

from kdjax.config import get_config, override
from kdjax.data.datasets import load_dataset
from kdjax.data.series import Series
from kdjax.detection.detector import stream_detector
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_table
from kdjax.errors import ConfigError
from kdjax.experiment.jobs import job_targets, make_training_data, student_job
from kdjax.experiment.pipeline import count_networks, prepare_dataset, run
from kdjax.experiment.sweeps.design import make_design
from kdjax.experiment.sweeps.sweep import run_sweep
from kdjax.models.residual import component
from kdjax.training.components import FIT_WINDOWS, fit_baseline, fit_components

pytestmark = pytest.mark.slow

L, D = 10, 3
TEACHER = ("kmeans", "difference", "moving_average")
STUDENT = ("autoencoder", "difference", "moving_average")
PARTS = {
    "teacher.components": TEACHER,
    "student.components": STUDENT,
    "baselines": ("kmeans",),
    "distill.alpha": 0.5,
}
MACHINES = ("press", "saw")


@pytest.fixture(scope="module")
def settings(tiny, plant_changes):
    return tiny(plant_changes | PARTS)


@pytest.fixture(scope="module")
def prepared(settings):
    return prepare_dataset(load_dataset(settings["data"]), settings)


@pytest.fixture(scope="module")
def joined(settings, tmp_path_factory):
    """A run of one teacher for both machines: its folder and results."""
    workdir = tmp_path_factory.mktemp("joined") / "run"
    return workdir, run(settings, workdir)


@pytest.fixture(scope="module")
def apart(tiny, plant_changes, tmp_path_factory):
    """A run of a teacher for each machine: its settings, folder and results."""
    changes = {"threshold.false_alarm_rate": 0.3, "entity_mode": "per_entity"}
    made = tiny(plant_changes | PARTS | changes)
    workdir = tmp_path_factory.mktemp("apart") / "run"
    return made, workdir, run(made, workdir)


def phases(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return list(dict.fromkeys(json.loads(line)["phase"] for line in lines))


def files(workdir):
    return {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def model_of(workdir, name):
    return load_detector(workdir / "detectors" / name).model


def alike(first, second, **near):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), first, second)


# One teacher for all.


def test_a_run_whose_teacher_has_no_network(joined):
    workdir, results = joined
    assert {row["model"] for row in results["rows"]} == {
        "teacher", "student", "student_alone", "kmeans",
    }  # fmt: skip
    assert all(row["f1"] is not None for row in results["rows"])
    assert phases(workdir) == ["student", "student_alone"]
    checkpoints = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert checkpoints == {"student", "student_alone"}
    for name, kinds in [("teacher", TEACHER), ("student", STUDENT)]:
        detector = load_detector(workdir / "detectors" / name)
        assert detector.model.kind == "+".join(kinds) == detector.card["model"]["kind"]
        assert detector.gaussians.mean.shape == (3, 9)
        # The constant channel's errors of all parts.
        dead = [f"{kind} of dead" for kind in kinds[1:]]
        assert set(dead) <= set(detector.card["floored_channels"]["press"])
    assert model_of(workdir, "student_alone").kind == "+".join(STUDENT)


def test_parameters_are_those_of_all_parts(joined, settings):
    rows = {row["model"]: row["parameters"] for row in joined[1]["rows"]}
    lstm = 4 * 2 * (3 + 2 + 1) + 4 * 2 * (2 + 2 + 1) + 2 * 3 + 3
    assert rows["student"] == rows["student_alone"] == lstm
    assert rows["teacher"] == rows["kmeans"] == 20 * L * D
    assert count_networks(settings) == {"teacher": 20 * L * D, "student": lstm}


def test_networks_are_counted_with_the_most_that_controls_have(tiny):
    changes = {
        "data.name": "smd",
        "teacher.components": ("kmeans", "pca", "difference"),
    }
    found = count_networks(tiny(changes))["teacher"]
    assert found == 20 * L * 38 + 38 + 38 * 38


def test_a_finished_run_is_left_alone(joined, settings):
    workdir, results = joined
    before = files(workdir)
    assert run(settings, workdir) == json.loads(json.dumps(results))
    assert files(workdir) == before


def test_an_interrupted_run_comes_to_the_same(joined, settings, tmp_path):
    """Without the results and detectors of a run whose networks are there."""
    copy = tmp_path / "run"
    shutil.copytree(joined[0], copy)
    shutil.rmtree(copy / "detectors")
    (copy / "results.json").unlink()
    again = run(settings, copy)
    assert again["rows"] == joined[1]["rows"]
    assert phases(copy) == phases(joined[0])


def test_the_teachers_centres_are_those_of_the_fit_windows(joined, prepared):
    fitted = fit_baseline("kmeans", prepared)
    centres = component(model_of(joined[0], "teacher"), "kmeans").params["centres"]
    assert centres.tobytes() == fitted.params["centres"].tobytes()
    starts = [
        (entity, start)
        for entity in prepared.entities
        for low, high in entity.split.fit
        for start in range(low, high - L + 1, 5)
    ]
    assert len(starts) < FIT_WINDOWS
    scaled = [
        (entity.train.values[start : start + L] - entity.scaler.offset)
        / entity.scaler.scale
        for entity, start in starts
    ]
    owner = nearest(np.stack(scaled), centres)
    means = [np.stack(scaled)[owner == k].mean(axis=0) for k in range(20)]
    # Lloyd's algorithm has come to rest.
    np.testing.assert_allclose(centres, np.stack(means), atol=1e-4)


def nearest(windows, centres):
    apart = np.float64(windows)[:, None] - np.float64(centres)
    return (apart**2).sum(axis=(2, 3)).argmin(axis=1)


@pytest.mark.parametrize("first", ["kmeans", "moving_average", "difference"])
def test_a_student_is_told_what_the_teachers_first_part_expects(
    settings, prepared, first
):
    kinds = (first, *(kind for kind in TEACHER if kind != first))
    teacher = fit_components(kinds, prepared, None, fits={})
    training_data = make_training_data(prepared, settings["data"])
    training = student_job(training_data, settings, name="student", teacher=teacher)
    targets = job_targets(training, {})
    windows = np.stack([training_data.rows[s : s + L] for s in training_data.fit])
    if first == "kmeans":
        centres = component(teacher, "kmeans").params["centres"]
        wanted = centres[nearest(windows, centres)]
    elif first == "difference":
        wanted = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    else:
        counts = np.arange(1, L + 1)[:, None]
        wanted = windows.cumsum(axis=1, dtype=float) / counts
    assert len(np.unique(wanted)) > 10
    np.testing.assert_allclose(targets, wanted, rtol=1e-5, atol=1e-6)


def test_distillation_settings_change_the_student_and_nothing_else(joined, finished):
    """The student without a teacher is that of any run on these data."""
    alone = component(model_of(joined[0], "student_alone"), "autoencoder").params
    alike(alone, model_of(finished.workdir, "student_alone").params, rtol=0, atol=0)
    distilled = component(model_of(joined[0], "student"), "autoencoder").params
    assert (distilled["head"]["kernel"] != alone["head"]["kernel"]).any()


def test_a_joined_detector_streams_what_its_table_says(joined):
    detector = load_detector(joined[0] / "detectors" / "student")
    rows = np.random.default_rng(2).normal(size=(40, D)).astype(np.float32)
    rows[[15, 16, 30], [0, 1, 2]] = np.nan
    table = score_table(
        detector, Series("press", rows, detector.channels), entity="press", causal=True
    )
    stream = stream_detector(detector, entity="press")
    scores = [stream.update(row, None).score for row in rows]
    assert table["score"].notna().sum() == 40 - L + 1
    np.testing.assert_allclose(
        [np.nan if score is None else score for score in scores],
        table["score"],
        rtol=1e-4,
    )


# A teacher for each machine.


def test_each_machine_has_a_teacher_without_a_network(apart):
    _, workdir, results = apart
    centres = []
    for machine in MACHINES:
        teacher = model_of(workdir, f"teacher/{machine}")
        assert teacher.kind == "+".join(TEACHER)
        centres.append(component(teacher, "kmeans").params["centres"])
        for name in ("student", "student_alone"):
            assert model_of(workdir, f"{name}/{machine}").kind == "+".join(STUDENT)
        baseline = model_of(workdir, f"kmeans/{machine}").params["centres"]
        assert baseline.tobytes() == centres[-1].tobytes()
    assert centres[0].tobytes() != centres[1].tobytes()
    trained = {name.split("/")[0] for name in phases(workdir)}
    assert trained == {"student", "student_alone"}
    assert {row["model"] for row in results["rows"]} == {
        "teacher", "student", "student_alone", "kmeans",
    }  # fmt: skip


def test_a_finished_run_of_each_machine_is_left_alone(apart):
    made, workdir, results = apart
    before = files(workdir)
    assert run(made, workdir) == json.loads(json.dumps(results))
    assert files(workdir) == before


@pytest.mark.slow
def test_a_machine_learns_from_its_own_centres(
    apart, tiny, plant, plant_changes, tmp_path
):
    """As a run of this machine's rows alone, though trained in a population."""
    _, workdir, _ = apart
    rows = pd.read_csv(plant.train)
    rows[rows["machine"] == "saw"].to_csv(tmp_path / "saw.csv", index=False)
    own = {"data.path": str(tmp_path / "saw.csv"), "data.test_path": ""}
    own |= {"threshold.false_alarm_rate": 0.3, "data.label_column": "", "baselines": ()}
    run(tiny(plant_changes | PARTS | own), tmp_path / "run")
    for name in ("teacher", "student", "student_alone"):
        alike(
            model_of(workdir, f"{name}/saw").params,
            model_of(tmp_path / "run", name).params,
            rtol=1e-3,
            atol=1e-4,
        )


# Sweeps, and going on from a run.


@pytest.mark.slow
def test_a_sweep_over_students_of_such_a_teacher(
    plant_changes, joined, settings, tmp_path
):
    from conftest import TINY

    def sweep(add):
        add({"distill.alpha": 0.5})
        add({"distill.alpha": 0.9})
        add({"distill.alpha": 0.0})

    config = override(get_config(), TINY | plant_changes | PARTS)
    design = make_design("alphas", config, sweep)
    table = run_sweep(design, tmp_path, way="together").members
    assert (table["status"] == "done").all() and len(table) == 3 * len(MACHINES)
    wanted = {
        row["entity"]: row["f1"]
        for row in joined[1]["entities"]
        if (row["model"], row["threshold"]) == ("teacher", "oracle")
        and row["level"] == "window"
    }
    for line in table[table["member"] != "002"].to_dict("records"):
        assert line["teacher_f1_oracle"] == pytest.approx(wanted[line["entity"]])
    assert table[table["member"] == "002"]["teacher_f1_oracle"].isna().all()
    names = ("000", "001", "002")
    students = [model_of(tmp_path / "members" / name, "student") for name in names]
    assert {model.kind for model in students} == {"+".join(STUDENT)}
    assert table["parameters"].eq(students[0].parameters).all()
    alike(
        students[0].params,
        model_of(joined[0], "student").params,
        rtol=1e-3,
        atol=1e-4,
    )
    kernels = {
        one.params["autoencoder"]["head"]["kernel"].tobytes() for one in students
    }
    assert len(kernels) == 3
    assert not any(name.startswith("teacher") for name in phases(tmp_path))


@pytest.mark.parametrize(
    "folder", [pytest.param("detectors", marks=pytest.mark.slow), "detectors/student"]
)
def test_training_goes_on_from_a_student_without_a_trained_teacher(
    joined, tiny, plant_changes, tmp_path, folder
):
    changes = {
        "init_from": str(joined[0] / folder),
        "train.learning_rate": 1e-12,
        "student.epochs": 1,
    }
    results = run(tiny(plant_changes | PARTS | changes), tmp_path / "run")
    old = model_of(joined[0], "student").params
    for name in ("student", "student_alone"):
        alike(model_of(tmp_path / "run", name).params, old, rtol=0, atol=1e-8)
    assert phases(tmp_path / "run") == ["student", "student_alone"]
    before = [row for row in results["rows"] if row["model"] == "previous"]
    assert [row["f1"] for row in before] == [
        row["f1"]
        for row in joined[1]["rows"]
        if row["model"] == "student" and row["threshold"] != "rolling"
    ]


def test_a_teacher_needs_a_network_to_start_from(joined, tiny, plant_changes, tmp_path):
    changes = PARTS | {
        "teacher.components": ("autoencoder",),
        "init_from": str(joined[0]),
    }
    message = (
        "the teacher has no network to start from: set teacher.components as in its run"
    )
    with pytest.raises(ConfigError, match=message):
        run(tiny(plant_changes | changes), tmp_path / "run")
