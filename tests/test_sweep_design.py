"""The members of a sweep, from config files and by hand."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.model_selection import ParameterGrid, ParameterSampler

from kdjax.config import get_config, override, resolve
from kdjax.errors import ConfigError
from kdjax.experiment.sweeps.design import Member, make_design, value_text
from kdjax.experiment.sweeps.members import (
    SweepData,
    data_key,
    student_name,
    tasks_of,
    teacher_name,
)
from kdjax.experiment.train import Group

CONFIGS = Path(__file__).parent.parent / "configs"


def base(**changes):
    return override(get_config(), {"data.path": "plant.csv", **changes})


def test_members_have_their_changes_and_the_base_else():
    def sweep(add):
        add({"student.hidden": (8,), "distill.alpha": 0.0})
        add({"distill.alpha": 1.0}, seed=3)

    design = make_design("two", base(), sweep)
    assert design.name == "two"
    assert design.fields == ("student.hidden", "distill.alpha", "seed")
    assert [member.name for member in design.members] == ["000", "001"]
    assert design.members[0].changes == {
        "student.hidden": [8], "distill.alpha": 0.0, "seed": 0,
    }  # fmt: skip
    assert design.members[1].changes == {
        "student.hidden": [16], "distill.alpha": 1.0, "seed": 3,
    }  # fmt: skip
    changed = override(base(), {"distill.alpha": 1.0, "seed": 3})
    assert design.members[1].settings == resolve(changed)
    assert design.base == resolve(base())


def test_grids_and_random_designs_are_scikit_learns():
    fields = {"seed": [0, 1, 2], "distill.alpha": [0.1, 0.2]}
    grid = make_design("g", base(), lambda add: [add(c) for c in ParameterGrid(fields)])
    assert len(grid.members) == 6
    drawn = ParameterSampler(fields, 4, random_state=0)
    chosen = make_design("r", base(), lambda add: [add(c) for c in drawn])
    again = make_design("r", base(), lambda add: [add(c) for c in drawn])
    assert chosen == again and len(chosen.members) == 4


@pytest.mark.slow
def test_names_sort_as_numbers():
    design = make_design("m", base(), lambda add: [add(seed=i) for i in range(1001)])
    names = [member.name for member in design.members]
    assert names[:2] == ["0000", "0001"] and names == sorted(names)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (lambda add: None, "s: sweep.add. added no member"),
        (lambda add: [add(seed=1), add(seed=1)], "members 000 and 001 have the same"),
        (lambda add: [add(), add(seed=0)], "same settings"),
        (lambda add: add(sede=1), "member 0 .sede=1.*did you mean seed"),
        (lambda add: add({"distill.alpha": 2.0}), "distill.alpha=2.0 must lie in"),
        (lambda add: add({"student.hidden": 8}), "student.hidden"),
        (
            lambda add: add(seed=np.int64(1)),
            "seed must be a whole number, got np.int64",
        ),
    ],
)
def test_faulty_designs_are_refused(sweep, message):
    with pytest.raises(ConfigError, match=message):
        make_design("s", base(), sweep)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, 1), (0.5, 0.5), ([64, 64], "64,64"), ((8,), "8"), (True, "True"), (None, "none"),
     ("pot", "pot")],
)  # fmt: skip
def test_values_of_fields_are_numbers_or_texts(value, text):
    assert value_text(value) == text


def names(*changes):
    minmax = {"data.scaler": "minmax"}
    found = [resolve(override(base(), minmax | own)) for own in changes]
    return [(teacher_name(s), student_name(s)) for s in found]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        # Whether the teacher, the student stay the same.
        ({}, (True, True)),
        ({"seed": 1}, (False, False)),
        ({"teacher.seed": 0}, (True, True)),
        ({"teacher.seed": 1}, (False, False)),
        ({"distill.alpha": 0.5}, (True, False)),
        ({"distill.temperature": 2.0}, (True, False)),
        ({"distill.cache_bytes": 5}, (True, True)),
        ({"student.epochs": 5}, (True, False)),
        ({"teacher.epochs": 5}, (False, False)),
        ({"train.learning_rate": 0.1}, (False, False)),
        ({"train.checkpoint_seconds": 5.0}, (True, True)),
        ({"threshold.false_alarm_rate": 0.1}, (True, True)),
        ({"detection.ridge": 0.2}, (True, True)),
        ({"data.window": 50}, (False, False)),
        ({"entity_mode": "per_entity"}, (False, False)),
        ({"model.head": "sigmoid"}, (False, False)),
    ],
)
def test_networks_are_shared_where_nothing_that_makes_them_differs(changes, same):
    (teacher, student), other = names({}, changes)
    assert (other[0] == teacher, other[1] == student) == same


def test_students_of_the_data_alone_need_no_teacher():
    first, second = (
        resolve(override(base(), {"distill.alpha": 0.0, "teacher.epochs": epochs}))
        for epochs in (3, 4)
    )
    assert data_key(first) == data_key(second)
    groups = {
        data_key(first): [Group(name, None, None, {}, {}) for name in ("", "m/1")]
    }
    members = [Member(name, {}, own) for name, own in (("a", first), ("b", second))]
    tasks = tasks_of(members, SweepData({}, groups, {}, {}))
    assert [task.teacher for task in tasks] == [None] * 4
    assert [task.student for task in tasks] == [
        student_name(first), f"{student_name(first)}/m%2F1",
    ] * 2  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "teacher", "student"),
    [
        ({}, "9bddc2585e14", "aa3cb7f6da7b"),
        ({"seed": 3, "teacher.seed": 1}, "83c3c38c158f", "33b6337fa965"),
        ({"distill.alpha": 0.0}, "9bddc2585e14", "98e87e04a941"),
        ({"teacher.components": ("kmeans", "difference")}, "a6f68bfeb12d", "8240a88656de"),
        ({"student.components": ("autoencoder", "pca")}, "9bddc2585e14", "aa3cb7f6da7b"),
        ({"distill.augmented_copies": 1}, "9bddc2585e14", "cf5b05c386e3"),
        (
            {
                "distill.target": "scores", "distill.weights": (1.0, 2.0),
                "teacher.components": ("kmeans", "difference"),
            },
            "a6f68bfeb12d", "cb96aa8c4fe9",
        ),
    ],
)  # fmt: skip
def test_networks_have_the_names_of_version_0_1(changes, teacher, student):
    """Else a sweep of that version would train again what it has trained."""
    assert names(changes) == [(f"teacher-{teacher}", f"student-{student}")]


def test_renamed_fields_are_read_under_their_old_names():
    def sweep(add):
        add({"teacher.parts": ("kmeans",)})
        add({"teacher.components": ("pca",)})

    with pytest.warns(FutureWarning, match="teacher.parts is now called"):
        design = make_design("old", base(), sweep)
    assert design.fields == ("teacher.components",)
    assert design.members[0].changes == {"teacher.components": ["kmeans"]}


@pytest.mark.parametrize(
    ("name", "argument", "members", "shapes"),
    [
        ("sweep_quick", (), 4, 1),
        ("frontier", ("sample",), 36, 6),
        ("frontier", (), 48, 8),
    ],
)
def test_config_files_are_sound_and_share_one_teacher(name, argument, members, shapes):
    defined = runpy.run_path(str(CONFIGS / f"{name}.py"))
    config = defined["get_config"](*argument)
    assert isinstance(config, ConfigDict)
    design = make_design("x", config, lambda add: defined["sweep"](add, *argument))
    assert len(design.members) == members
    settings = [member.settings for member in design.members]
    assert len({teacher_name(s) for s in settings}) == 1
    assert len({tuple(s["student"]["hidden"]) for s in settings}) == shapes
