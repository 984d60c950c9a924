"""Teacher, student and `student_alone` of a small plant, trained as a run trains them."""

import json
import logging
import shutil

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from kdjax.config import get_config, override, resolve
from kdjax.data.datasets import load_dataset
from kdjax.data.prepared import training_windows
from kdjax.experiment.jobs import (
    STUDENT_INIT,
    STUDENT_ORDER,
    architecture,
    training_stride,
)
from kdjax.experiment.pipeline import prepare_dataset
from kdjax.experiment.train import train_networks
from kdjax.experiment.workdir import read_lines
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel
from kdjax.training.batching import epoch_order

pytestmark = pytest.mark.slow

CHANGES = {
    "data.stride": 15,
    "threshold.false_alarm_rate": 0.2,
    "train.log_every": 1,
    "train.checkpoint_seconds": 1e9,
    "model.head": "sigmoid",
    "data.scaler": "minmax",
    "teacher.hidden": (3,),
    "teacher.epochs": 3,
}


@pytest.fixture(scope="module")
def train(plant_changes, tiny, tmp_path_factory):
    """Trains with changes; `teacher` is a folder to take the trained teacher from."""

    def run(changes, *, teacher=None):
        settings = tiny(plant_changes | CHANGES | changes)
        prepared = prepare_dataset(load_dataset(settings["data"]), settings)
        workdir = tmp_path_factory.mktemp("phases")
        if teacher is not None:
            shutil.copytree(teacher / "checkpoints", workdir / "checkpoints")
            shutil.rmtree(workdir / "checkpoints" / "student")
        quiet = Console(quiet=True)
        models = train_networks(prepared, settings, workdir, quiet)
        return models, workdir, prepared, settings

    return run


@pytest.fixture(scope="module")
def plain(train):
    """Eq. 2 with α = 1 and T = 1."""
    return train({"distill.alpha": 1.0})


@pytest.fixture(scope="module")
def after_the_teacher(train, plain):
    """Trains another student of the same teacher; gives models and the log."""

    def run(changes):
        models, workdir, *_ = train(changes, teacher=plain[1])
        return models, read_lines(workdir)

    return run


def student_losses(lines):
    return [line["loss"] for line in lines if line["phase"] == "student"]


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_trains_three_networks(plain):
    models, workdir, prepared, settings = plain
    small = Architecture(3, (2,), "joint", "repeat", "sigmoid")
    assert list(models) == ["teacher", "student", "student_alone"]
    assert models["teacher"].architecture == Architecture(3, (3,), head="sigmoid")
    assert models["student"].architecture == small
    assert models["student_alone"].architecture == small
    assert architecture(settings, "student", width=3) == small
    for model in models.values():
        assert isinstance(model, ResidualModel)
        assert model.kind == "autoencoder"
    windows = len(training_windows(prepared, "fit", stride=15)[1])
    batches = -(-windows // 32)
    lines = read_lines(workdir)
    for phase, epochs in [("teacher", 3), ("student", 2), ("student_alone", 2)]:
        steps = [line["step"] for line in lines if line["phase"] == phase]
        assert steps == list(range(1, batches * epochs + 1))
    assert [line["phase"] for line in lines] == sorted(
        (line["phase"] for line in lines),
        key=["teacher", "student", "student_alone"].index,
    )


def test_the_teachers_parameters_are_its_best_on_validation(plain):
    models, workdir, prepared, _ = plain
    rows, starts = training_windows(prepared, "validation", stride=15)
    windows = np.array([rows[start : start + 10] for start in starts])
    for name, model in models.items():
        net = network(model.architecture)
        found = net.activate(net.outputs(model.params, windows))
        losses = [
            line["validation_loss"]
            for line in read_lines(workdir)
            if line["phase"] == name and "validation_loss" in line
        ]
        error = np.mean((np.float64(found) - windows) ** 2)
        assert error == pytest.approx(min(losses), rel=1e-5)


def test_alpha_0_is_student_alone(after_the_teacher):
    models, lines = after_the_teacher({"distill.alpha": 0.0})
    assert_same(models["student"].params, models["student_alone"].params)
    losses = [line["loss"] for line in lines if line["phase"] == "student_alone"]
    # The log of `student_alone` was not copied; that of `student` is new.
    assert losses == []
    assert len(student_losses(lines)) > 2


def test_a_taught_student_differs_from_student_alone(plain):
    models = plain[0]
    difference = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        models["student"].params,
        models["student_alone"].params,
    )
    assert max(jax.tree.leaves(difference)) > 1e-4


def test_a_teacher_in_each_step_gives_the_same_student(
    plain, after_the_teacher, caplog
):
    with caplog.at_level(logging.WARNING, logger="kdjax"):
        models, lines = after_the_teacher(
            {"distill.alpha": 1.0, "distill.cache_bytes": 0}
        )
    assert "distill.cache_bytes: each step computes its own" in caplog.text
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        models["student"].params,
        plain[0]["student"].params,
    )
    expected = student_losses(read_lines(plain[1]))
    np.testing.assert_allclose(student_losses(lines), expected, atol=1e-6)


def test_temperature_reaches_the_student(plain, after_the_teacher):
    changes = {"distill.alpha": 1.0, "distill.temperature": 2.0}
    first = student_losses(read_lines(plain[1]))[0]
    output = after_the_teacher(changes | {"distill.temperature_mode": "output"})
    assert student_losses(output[1])[0] == pytest.approx(first / 4, rel=1e-5)
    logit = after_the_teacher(changes | {"distill.temperature_mode": "logit"})
    # σ(z/2) near z = 0 has half the slope of σ(z): nearly a quarter, but not quite.
    assert student_losses(logit[1])[0] == pytest.approx(first / 4, rel=0.2)
    assert student_losses(logit[1])[0] != pytest.approx(first / 4, rel=1e-4)


def test_finished_phases_are_not_trained_again(train, plain):
    models, workdir, *_ = plain
    before = (workdir / "metrics.jsonl").read_text()
    settings, prepared = plain[3], plain[2]
    again = train_networks(prepared, settings, workdir, Console(quiet=True))
    for name, model in models.items():
        assert_same(again[name].params, model.params)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_the_seed_decides_all_networks(train, plain):
    models, _, _, _ = train({"distill.alpha": 1.0, "seed": 1, "teacher.epochs": 1})
    for name, model in models.items():
        kernel = model.params["head"]["kernel"]
        assert (kernel != plain[0][name].params["head"]["kernel"]).any()


def test_checkpoints_hold_their_phase(plain):
    for name in ("teacher", "student", "student_alone"):
        (folder,) = (plain[1] / "checkpoints" / name).iterdir()
        meta = json.loads((folder / "meta" / "metadata").read_text())
        assert meta["done"] is True
        assert meta["step"] == int(folder.name)


# The student's loss.


def test_a_student_minimises_eq_2_over_the_batches_of_a_run(train, plain):
    """Against Adam in a loop of its own."""
    changes = {
        "distill.alpha": 0.3, "distill.temperature": 1.5,
        "train.learning_rate": 0.02, "train.warmup_steps": 0, "student.epochs": 1,
        "train.schedule": "constant", "train.batch_size": 8, "train.clip_norm": 1e9,
        "model.head": "linear", "teacher.epochs": 1,
    }  # fmt: skip
    models, _, prepared, settings = train(changes)
    rows, starts = training_windows(prepared, "fit", stride=15)
    teacher, student = models["teacher"], models["student"]
    nets = network(teacher.architecture), network(student.architecture)
    steps = -(-len(starts) // 8)
    assert steps > 4

    @jax.jit
    def slope(params, windows, alpha):
        def loss(params):
            x_t = nets[0].outputs(teacher.params, windows)
            x_s = nets[1].outputs(params, windows, forced=True)
            soft = ((x_s - x_t) / 1.5) ** 2
            return ((1 - alpha) * (x_s - windows) ** 2 + alpha * soft).mean()

        return jax.grad(loss)(params)

    key = jax.random.key(settings["seed"])
    first = nets[1].init(jax.random.fold_in(key, STUDENT_INIT))
    order = epoch_order(jax.random.fold_in(key, STUDENT_ORDER), 0, len(starts))

    def by_hand(alpha):
        optimizer = optax.adam(0.02)
        params, state = first, optimizer.init(first)
        for number in range(steps):
            own = starts[order[8 * number : 8 * number + 8]]
            windows = rows[own[:, None] + np.arange(10)]
            updates, state = optimizer.update(slope(params, windows, alpha), state)
            params = optax.apply_updates(params, updates)
        return params

    def close(found):
        return all(
            np.allclose(a, b, rtol=1e-3, atol=1e-5)
            for a, b in zip(
                jax.tree.leaves(found), jax.tree.leaves(student.params), strict=True
            )
        )

    assert close(by_hand(alpha=0.3)) and not close(by_hand(alpha=0.7))


# How often training looks at a row.


@pytest.mark.parametrize(
    ("changes", "rows", "pace"),
    [
        ({}, 840, (15, 1.0)),
        ({"data.dense_below": 840}, 840, (15, 1.0)),
        ({"data.dense_below": 841}, 840, (1, 1 / 15)),
        ({"data.dense_below": 841, "data.train_stride": 4}, 840, (4, 1.0)),
    ],
)
def test_few_rows_are_looked_at_in_every_window(
    tiny, plant_changes, changes, rows, pace
):
    settings = tiny(
        plant_changes | {"data.stride": 15, "threshold.false_alarm_rate": 0.2}
    )
    settings = resolve(override(get_config(), flat(settings) | changes))
    prepared = prepare_dataset(load_dataset(settings["data"]), settings)
    assert sum(len(entity.train.values) for entity in prepared.entities) == rows
    assert training_stride(prepared, settings["data"]) == pytest.approx(pace)


def flat(settings):
    """Dotted fields, lists as the tuples that a config has."""
    return {
        f"{group}.{field}": tuple(value) if isinstance(value, list) else value
        for group, fields in settings.items()
        if isinstance(fields, dict)
        for field, value in fields.items()
        if value is not None
    }


def test_first_parameters_are_where_training_starts(train, plain, tmp_path):
    """Steps too small to see leave each network at the parameters given."""
    models, _, prepared, settings = plain
    given = {name: models[name].params for name in ("teacher", "student")}
    still = json.loads(json.dumps(settings))
    still["train"]["learning_rate"] = 1e-12
    still["teacher"]["epochs"] = still["student"]["epochs"] = 1
    found = train_networks(prepared, still, tmp_path, Console(quiet=True), first=given)
    for name, start in (
        ("teacher", "teacher"), ("student", "student"), ("student_alone", "student"),
    ):  # fmt: skip
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-8),
            found[name].params,
            given[start],
        )
