"""Many trainings of real settings at once, against each of them alone."""

import itertools
import json
import logging

import jax
import numpy as np
import pytest
from rich.console import Console

from kdjax.data.datasets import load_dataset
from kdjax.errors import ConfigError
from kdjax.experiment import jobs, populations
from kdjax.experiment.jobs import (
    make_training_data,
    recorded_mask,
    student_job,
    teacher_job,
)
from kdjax.experiment.pipeline import prepare_dataset
from kdjax.experiment.populations import (
    fits_in_memory,
    group_jobs,
    join_datasets,
    train_all,
    train_in_memory,
)
from kdjax.experiment.train import train_networks
from kdjax.experiment.workdir import append_line, read_lines
from kdjax.training import targets

pytestmark = pytest.mark.slow

QUIET = Console(quiet=True)
# Each differs from the others in something that a population may differ in.
MEMBERS = (
    {},
    {"seed": 3},
    {"distill.alpha": 0.8, "train.learning_rate": 1e-2},
    {"distill.temperature": 2.0, "student.epochs": 3},
    {"distill.alpha": 0.0, "seed": 3},
)


@pytest.fixture(scope="module")
def known(plant_changes, tiny, tmp_path_factory):
    """The plant, and a run's teacher."""
    settings = tiny(plant_changes)
    prepared = prepare_dataset(load_dataset(settings["data"]), settings)
    folder = tmp_path_factory.mktemp("teacher")
    models = train_networks(prepared, settings, folder, QUIET, names=("teacher",))
    return prepared, make_training_data(prepared, settings["data"]), models["teacher"]


@pytest.fixture(scope="module")
def students(known, plant_changes, tiny):
    """Makes the trainings of `MEMBERS` with further changes for all."""
    _, training_data, teacher = known

    def make(changes=None, members=MEMBERS, scorers=()):
        return [
            student_job(
                training_data,
                tiny(plant_changes | (changes or {}) | own),
                name=f"student-{number}",
                teacher=teacher,
                scorers=scorers,
            )
            for number, own in enumerate(members)
        ]

    return make


def assert_close(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected
    )


def test_students_side_by_side_are_those_of_their_runs(
    known, students, plant_changes, tiny, tmp_path
):
    prepared, _, teacher = known
    found = train_all(students(), tmp_path / "together", QUIET, way="together")
    assert list(found) == [f"student-{i}" for i in range(5)]
    for number, changes in enumerate(MEMBERS):
        alone = train_networks(
            prepared,
            tiny(plant_changes | changes),
            tmp_path / str(number),
            QUIET,
            names=("teacher", "student"),
            teacher=teacher,
        )["student"]
        params, progress = found[f"student-{number}"]
        assert_close(params, alone.params, rtol=1e-3, atol=1e-5)
        lines = read_lines(tmp_path / str(number))
        losses = [
            line["validation_loss"] for line in lines if "validation_loss" in line
        ]
        assert progress.best_loss == pytest.approx(min(losses), rel=1e-4)
        assert progress.step == lines[-1]["step"]


def test_teachers_of_each_entity_side_by_side(plant_changes, tiny, tmp_path):
    """Other rows, other numbers of windows, another length of the schedule."""
    settings = tiny(plant_changes | {"threshold.false_alarm_rate": 0.4})
    dataset = load_dataset(settings["data"])
    trainings = []
    for place, series in enumerate(dataset.train):
        own = dataset._replace(train=(series,), test=dataset.test[place : place + 1])
        training_data = make_training_data(
            prepare_dataset(own, settings), settings["data"]
        )
        trainings.append(teacher_job(training_data, settings, name=series.entity))
    assert len(group_jobs(trainings)) == 1
    assert len({len(t.data.fit) for t in trainings}) == 2
    together = train_all(trainings, tmp_path / "together", QUIET, way="together")
    alone = train_all(trainings, tmp_path / "alone", QUIET, way="alone")
    for name in ("press", "saw"):
        assert together[name].progress.step == alone[name].progress.step
        assert_close(together[name].params, alone[name].params, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", ["reconstruction", "hidden"])
def test_populations_of_one_form_are_compiled_once(students, caplog, target):
    """Else a process that fits population after population grows with each."""
    first = students({"distill.target": target}, MEMBERS[:2])
    again = students({"distill.target": target, "seed": 5}, MEMBERS[:2])
    train_in_memory(first)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        fitted = train_in_memory(again)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]
    assert fitted.keys() == {job.name for job in again}


def test_other_shapes_are_other_groups(students):
    changes = [
        {}, {"seed": 1}, {"student.hidden": (3,)}, {"train.batch_size": 8},
        {"train.schedule": "constant"}, {"distill.alpha": 0.0}, {"distill.alpha": 0.1},
    ]  # fmt: skip
    found = [[t.name for t in group] for group in group_jobs(students(None, changes))]
    assert found == [
        # The student of the data alone is among those with a teacher.
        ["student-0", "student-1", "student-6", "student-5"],
        ["student-2"], ["student-3"], ["student-4"],
    ]  # fmt: skip


def test_finished_trainings_are_not_run_again(students, tmp_path):
    first = train_all(students(), tmp_path, QUIET, way="together")
    log = (tmp_path / "metrics.jsonl").read_text()
    again = train_all(students(), tmp_path, QUIET, way="together")
    assert (tmp_path / "metrics.jsonl").read_text() == log
    for name, (params, progress) in first.items():
        assert again[name].progress == progress
        assert_close(again[name].params, params, rtol=0)
    assert not list((tmp_path / "checkpoints").glob("together-*"))
    # More members later train by themselves.
    more = [*MEMBERS, {"seed": 9}]
    train_all(students(None, more), tmp_path, QUIET, way="together")
    added = (tmp_path / "metrics.jsonl").read_text().removeprefix(log)
    assert {json.loads(line)["phase"] for line in added.splitlines()} == {"student-5"}


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_killed_population_goes_on(students, tmp_path, epochs):
    def on_epoch(courses):
        assert sorted(courses) == [f"student-{i}" for i in range(5)]
        if (
            max(progress.best_epoch + progress.stale for progress in courses.values())
            > epochs
        ):
            raise Killed

    options = {"train.checkpoint_seconds": 0.0, "student.epochs": 3}
    members = students(options)
    with pytest.raises(Killed):
        train_all(
            members,
            tmp_path / "a",
            QUIET,
            way="together",
            on_epoch=on_epoch,
        )
    assert list((tmp_path / "a" / "checkpoints").glob("together-*"))
    found = train_all(members, tmp_path / "a", QUIET, way="together")
    usual = train_all(members, tmp_path / "b", QUIET, way="together")
    for name, (params, progress) in usual.items():
        assert found[name].progress == progress
        assert_close(found[name].params, params, rtol=0)
    assert read_lines(tmp_path / "a") == read_lines(tmp_path / "b")


@pytest.mark.parametrize("way", ["together", "alone"])
def test_a_diverging_member_is_reported_and_stays_so(students, tmp_path, way):
    members = students(None, [{}, {"train.learning_rate": 1e38}])
    found = train_all(members, tmp_path, QUIET, way=way)
    assert found["student-1"].progress.bad_step in (2, 3)
    assert found["student-0"].progress.bad_step == 0
    again = train_all(members, tmp_path, QUIET, way=way)
    assert again["student-1"].progress == found["student-1"].progress


@pytest.mark.parametrize(
    ("batch_size", "members", "devices", "way"),
    [
        # Small batches: side by side, unless that leaves many cores idle.
        (32, 2, 2, "together"),
        (32, 3, 2, "together"),
        (32, 8, 2, "together"),
        (32, 2, 8, "together"),
        (64, 2, 8, "alone"),
        # With large shares of a batch one after the other.
        (128, 8, 2, "alone"),
        (1024, 8, 8, "alone"),
        (32, 1, 8, "alone"),
    ],
)
def test_the_faster_way(students, monkeypatch, batch_size, members, devices, way):
    if devices > jax.local_device_count():
        pytest.skip("needs 8 devices, which the slow lane has")
    local = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    changes = {"train.batch_size": batch_size}
    group = students(changes, [{"seed": seed} for seed in range(members)])
    assert populations.faster_way(group) == way
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert populations.faster_way(group) == ("together" if members > 1 else "alone")


@pytest.mark.parametrize("way", ["together", "alone"])
def test_an_interrupted_group_continues_in_the_same_way(
    students, tmp_path, monkeypatch, way
):
    """Whatever the faster way is by then."""
    members = students(
        {"train.checkpoint_seconds": 0.0, "student.epochs": 3}, MEMBERS[:2]
    )
    first = members[0].name
    monkeypatch.setattr(populations, "faster_way", lambda group: way)

    def kill(line):
        if line["step"] > 6:
            raise Killed

    for module in (jobs, populations):
        monkeypatch.setattr(
            module,
            "append_line",
            lambda folder, line: (append_line(folder, line), kill(line)),
        )
    with pytest.raises(Killed):
        train_all(members, tmp_path / "a", QUIET)
    names = [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()]
    assert (first in names) == (way == "alone") and len(names) == 1
    for module in (jobs, populations):
        monkeypatch.setattr(module, "append_line", append_line)
    monkeypatch.setattr(populations, "faster_way", lambda group: pytest.fail("chosen"))
    found = train_all(members, tmp_path / "a", QUIET)
    usual = train_all(members, tmp_path / "b", QUIET, way=way)
    for name, (params, progress) in usual.items():
        assert found[name].progress == progress
        assert_close(found[name].params, params, rtol=0)


def test_teachers_outputs_that_are_too_many_are_made_in_each_step(students, known):
    members = students({"distill.cache_bytes": 1})
    assert not fits_in_memory(members) and fits_in_memory(students())
    assert populations.faster_way(members) == "alone"


def test_a_way_that_is_none_is_refused(students, tmp_path):
    with pytest.raises(ConfigError, match="auto, together, alone"):
        train_all(students(), tmp_path, QUIET, way="sideways")


def test_members_share_rows_and_targets(students, known):
    dataset, _ = join_datasets(students(), {})
    assert dataset.rows.shape == known[1].rows.shape
    assert dataset.targets.shape[0] == len(known[1].fit)


def test_teachers_outputs_are_made_once(students, known, tmp_path, monkeypatch):
    """For all shapes, and members trained alone."""
    seen = []
    made = targets.dataset_outputs
    monkeypatch.setattr(
        targets, "dataset_outputs", lambda *a, **o: (seen.append(1), made(*a, **o))[1]
    )
    train_all(students(None, SHAPES), tmp_path, QUIET)
    assert len(seen) == 1


SHAPES = ({}, {"seed": 1}, {"student.hidden": (3,)}, {"train.batch_size": 16})


@pytest.mark.parametrize(
    ("target", "times"), [("errors", 1), ("hidden", 2), ("scores", 1)]
)
def test_other_answers_are_made_once_as_well(students, monkeypatch, target, times):
    """Codes once for each width of a student's."""
    seen = []
    made = targets.dataset_outputs
    monkeypatch.setattr(
        targets, "dataset_outputs", lambda *a, **o: (seen.append(1), made(*a, **o))[1]
    )

    def scorer(windows):
        seen.extend([1] * (len(windows) > 1))
        return np.abs(windows).sum(axis=2)

    whole = {"distill.target": target, "detection.batch_size": 10_000}
    outputs = {}
    for group in group_jobs(students(whole, SHAPES, scorers=(scorer,))):
        join_datasets(group, outputs)
    assert len(seen) == times == len(outputs)


DISTURBED = ({}, {"seed": 3}, {"distill.target": "errors"}, {"distill.alpha": 0.0})


def test_augmented_copies_follow_the_rows_and_only_their_teacher_counts(
    known, plant_changes, tiny
):
    _, training_data, teacher = known
    settings = tiny(plant_changes | {"distill.augmented_copies": 2})
    shared = {}
    first, second = (
        student_job(
            training_data, settings, name=name, teacher=teacher, known=shared
        ).data
        for name in "ab"
    )
    assert first is second
    rows, windows = len(training_data.rows), len(training_data.fit)
    assert len(first.rows) == 3 * rows and len(first.fit) == 3 * windows
    np.testing.assert_array_equal(first.rows[:rows], training_data.rows)
    copies = first.rows[rows : 2 * rows], first.rows[2 * rows :]
    assert all((copy != training_data.rows).any() for copy in copies)
    assert (copies[0] != copies[1]).any()
    np.testing.assert_array_equal(
        first.fit[windows : 2 * windows] - rows, training_data.fit
    )
    assert (
        recorded_mask(first).sum() == windows and recorded_mask(first)[:windows].all()
    )
    assert first.share == pytest.approx(training_data.share / 3)
    # A student of the data alone sees nothing of it, and as many steps come of it.
    alone = student_job(training_data, settings, name="c", teacher=None)
    assert alone.data is training_data


@pytest.mark.slow
def test_students_of_disturbed_rows_side_by_side(
    students, known, plant_changes, tiny, tmp_path
):
    changes = {"distill.augmented_copies": 1}
    members = students(changes, DISTURBED)
    assert sorted(map(len, group_jobs(members))) == [1, 1, 2]
    found = train_all(members, tmp_path / "together", QUIET, way="together")
    for number, own in enumerate(DISTURBED[:3]):
        alone = train_networks(
            known[0],
            tiny(plant_changes | changes | own),
            tmp_path / str(number),
            QUIET,
            names=("teacher", "student"),
            teacher=known[2],
        )["student"]
        params = found[f"student-{number}"].params
        assert_close(params, alone.params, rtol=1e-3, atol=1e-5)
    # The teacher makes a difference.
    plain = students(None, DISTURBED[:1])
    undisturbed = train_all(plain, tmp_path / "plain", QUIET)["student-0"].params
    with pytest.raises(AssertionError):
        assert_close(found["student-0"].params, undisturbed, rtol=1e-3, atol=1e-5)


# Steps that lead far, so that what a teacher says shows.
LIVELY = {"train.learning_rate": 0.02, "train.warmup_steps": 0, "student.epochs": 1}
OF_EQ_2 = (
    {"distill.alpha": 0.4},
    {"distill.alpha": 0.9, "distill.temperature": 3.0},
    {"distill.alpha": 0.9, "seed": 3},
    {"distill.alpha": 0.0},
)
OF_ONE_TARGET = (
    {"distill.alpha": 0.9},
    {"distill.alpha": 0.4, "seed": 3},
    {"distill.alpha": 0.0},
)


NEAR = {"rtol": 2e-4, "atol": 1e-5}


def loudness(windows):
    return np.abs(windows).sum(axis=2)


@pytest.mark.parametrize(
    ("target", "members"),
    [
        ("reconstruction", OF_EQ_2),
        pytest.param("errors", OF_ONE_TARGET, marks=pytest.mark.slow),
        pytest.param("hidden", OF_ONE_TARGET, marks=pytest.mark.slow),
        pytest.param("scores", OF_ONE_TARGET, marks=pytest.mark.slow),
    ],
)
def test_students_of_any_distillation_side_by_side(students, tmp_path, target, members):
    """Also the one of the data alone, who is among those that are taught."""
    changes = LIVELY | {"distill.target": target}
    together, alone = (
        train_all(
            students(changes, members, (loudness,)), tmp_path / way, QUIET, way=way
        )
        for way in ("together", "alone")
    )
    assert len(group_jobs(students(changes, members, (loudness,)))) == 1
    for name, (params, _) in alone.items():
        assert_close(together[name].params, params, **NEAR)
    plain = train_all(students(LIVELY, members[-1:]), tmp_path / "plain", QUIET)
    untaught = f"student-{len(members) - 1}"
    assert_close(plain["student-0"].params, alone[untaught].params, rtol=0)
    # What they learned, α and T show at that distance.
    for one, other in itertools.combinations(together.values(), 2):
        with pytest.raises(AssertionError):
            assert_close(one.params, other.params, **NEAR)


def test_distillations_that_differ_are_other_groups(students):
    changes = [
        {"distill.target": "errors"}, {"distill.target": "hidden"},
        {"distill.target": "scores"}, {"distill.target": "scores", "seed": 1},
        {"distill.alpha": 0.9}, {},
        {"distill.weights": (1.0,)}, {"distill.weights": (2.0,)},
    ]  # fmt: skip
    found = [
        [t.name[-1] for t in group] for group in group_jobs(students(None, changes))
    ]
    assert found == [["0"], ["1"], ["2", "3"], ["4", "5"], ["6"], ["7"]]
