"""The fit loop: order, early stopping, its log, bad losses, and interruptions."""

import contextlib
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdjax.errors import TrainingError
from kdjax.models.autoencoder import Architecture, network
from kdjax.training.batching import WindowDataset, memory_batches
from kdjax.training.loop import (
    TrainingProgress,
    fit,
    resume,
)
from kdjax.training.steps import (
    init_state,
    make_optimizer,
    make_step,
    make_validate,
    teacher_loss,
    validation_loss,
)

WINDOW, WINDOWS, BATCH = 3, 7, 3  # 3 steps an epoch
NET = network(Architecture(2, (3,)))
ROWS = np.random.default_rng(0).uniform(size=(30, 2)).astype(np.float32)
CORPUS = WindowDataset(jnp.asarray(ROWS), jnp.arange(0, 28, 4, dtype=jnp.int32))
KEY = jax.random.key(11)


def adam(rate=0.02):
    return make_optimizer(
        learning_rate=rate, schedule="constant", steps=9, warmup_steps=0, clip_norm=1.0
    )


@pytest.fixture(scope="module")
def step():
    """The real step; its state must be fresh for each fit, since it is donated."""
    return make_step(teacher_loss(NET), adam(), window=WINDOW)


@pytest.fixture(scope="module")
def validate():
    return make_validate(
        validation_loss(NET),
        memory_batches(CORPUS, key=None, batch_size=WINDOWS),
        window=WINDOW,
    )


@pytest.fixture(scope="module")
def init():
    params = jax.tree.map(np.asarray, jax.jit(NET.init)(jax.random.key(0)))
    return lambda: init_state(jax.tree.map(jnp.asarray, params), adam())


def copied(tree):
    return jax.tree.map(np.array, tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def run(start, step, validate, *, key=KEY, **changes):
    options = {"epochs": 3, "patience": None}
    batch_source = memory_batches(CORPUS, key=key, batch_size=BATCH)
    return fit(start, step, batch_source, validate, **options | changes)


def script(losses, seen):
    """A validation with these losses, epoch by epoch, that keeps what it was given."""
    remaining = iter(losses)

    def validate(params):
        seen.append(copied(params))
        return next(remaining)

    return validate


@pytest.mark.parametrize(
    ("losses", "patience", "best", "ran"),
    [
        ([3.0, 1.0, 2.0], None, 2, 3),
        ([3.0, 2.0, 1.0], 1, 3, 3),
        ([1.0, 2.0, 0.5], 1, 1, 2),
        ([2.0, 1.0, 1.0, 1.0, 0.5], 2, 2, 4),
        ([2.0, 3.0, 1.0, 4.0, 5.0, 0.1], 2, 3, 5),
        ([1.0], 5, 1, 1),
    ],
)
def test_parameters_of_lowest_validation_are_kept(
    step, init, losses, patience, best, ran
):
    seen = []
    fitted = run(
        resume(None, init()),
        step,
        script(losses, seen),
        epochs=len(losses),
        patience=patience,
    )
    assert len(seen) == ran
    assert_same(fitted.params, seen[best - 1])
    assert fitted.progress == TrainingProgress(
        step=3 * ran,
        best_loss=losses[best - 1],
        best_epoch=best,
        stale=ran - best,
        done=True,
    )


def orders(key, epochs=3):
    """Windows of each epoch as a fit visits them."""
    visited = []

    def step(state, batch):
        index, weight = np.asarray(batch.positions), np.asarray(batch.weight)
        visited.append(index[weight == 1].tolist())
        return state.replace(weight_sum=state.weight_sum + weight.sum()), {}

    optimizer = adam()
    state = init_state({"x": jnp.zeros(1)}, optimizer)
    run(resume(None, state), step, lambda params: 1.0, key=key, epochs=epochs)
    assert [len(batch) for batch in visited] == [3, 3, 1] * epochs
    return [list(itertools.chain(*visited[n : n + 3])) for n in range(0, 3 * epochs, 3)]


def test_each_epoch_visits_all_windows_in_its_own_order():
    visited = orders(KEY)
    for order in visited:
        assert sorted(order) == list(range(WINDOWS))
    assert len({tuple(order) for order in visited}) == 3
    assert orders(KEY) == visited
    assert orders(KEY, epochs=2) == visited[:2]
    assert orders(jax.random.key(12)) != visited


def test_the_log_has_the_mean_loss_so_far_and_each_epochs_validation(
    step, init, validate
):
    lines, advances, losses = [], [], []
    per_window = jax.jit(jax.vmap(lambda p, x: NET.outputs(p, x[None]), (None, 0)))

    def watched(state, batch):
        index, weight = np.asarray(batch.positions), batch.weight
        windows = np.array([ROWS[4 * i : 4 * i + WINDOW] for i in index])
        outputs = np.asarray(per_window(state.params, jnp.asarray(windows)))[:, 0]
        errors = np.mean((outputs - windows) ** 2, axis=(1, 2))
        losses.append(errors[np.asarray(weight) == 1].tolist())
        return step(state, batch)

    fitted = run(
        resume(None, init()),
        watched,
        validate,
        epochs=2,
        log_every=2,
        log=lines.append,
        advance=lambda *report: advances.append(report),
    )
    assert [(line["epoch"], line["step"]) for line in lines] == [
        (1, 2),
        (1, 3),
        (2, 5),
        (2, 6),
    ]
    for line, counted in zip(
        lines, [losses[:2], losses[:3], losses[3:5], losses[3:6]], strict=True
    ):
        expected = np.mean(list(itertools.chain(*counted)))
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    for line in lines[::2]:
        assert set(line) == {"epoch", "step", "loss"}
    ends = lines[1::2]
    for line in ends:
        assert line["train_loss"] == line["loss"]
        assert line["windows_per_second"] > 0
        assert len(line) == 6
    assert validate(fitted.params) == min(line["validation_loss"] for line in ends)
    assert json.loads(json.dumps(lines)) == lines
    assert [windows for windows, _ in advances] == [3, 3, 1] * 2
    shown = [loss for _, loss in advances]
    assert shown == [None, lines[0]["loss"], None, None, lines[2]["loss"], None]


def test_training_lowers_the_loss_and_leaves_the_start_usable(step, init, validate):
    start = resume(None, init())
    before = validate(start.best)
    first = copied(start.best)
    fitted = run(start, step, validate)
    assert fitted.progress.best_loss < before
    assert_same(start.best, first)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("log_every", [1, 2, 20])
def test_a_bad_loss_is_named_with_its_step(
    tmp_path, step, init, validate, value, log_every
):
    # The window that the first epoch visits at its second step.
    bad = orders(KEY)[0][BATCH + 1]
    rows = ROWS.copy()
    rows[4 * bad, 0] = value
    spoiled = CORPUS.replace(rows=jnp.asarray(rows))

    def on_spoiled(state, batch):
        return step(state, batch._replace(dataset=spoiled))

    with pytest.raises(TrainingError, match=r"training loss .* at step 2\. Lower"):
        run(
            resume(tmp_path, init()),
            on_spoiled,
            validate,
            directory=tmp_path,
            checkpoint_seconds=0,
            log_every=log_every,
        )
    kept = [path.name for path in tmp_path.iterdir()]
    assert kept == (["1"] if log_every == 1 else [])
    again = resume(tmp_path, init())
    assert again.progress.step == len(kept)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(again.state.params))


def test_parameters_that_became_nan_are_not_saved(tmp_path, init, validate):
    broken = make_step(teacher_loss(NET), adam(rate=math.inf), window=WINDOW)
    options = {"directory": tmp_path, "checkpoint_seconds": 0, "log_every": 1}
    with pytest.raises(TrainingError, match=r"gradient .* at step 1\. Lower"):
        run(resume(tmp_path, init()), broken, validate, **options)
    assert not list(tmp_path.iterdir())


def test_a_bad_validation_loss_is_named_with_its_step(tmp_path, step, init):
    with pytest.raises(TrainingError, match=r"validation loss .* at step 6\. Lower"):
        run(
            resume(tmp_path, init()),
            step,
            script([1.0, math.nan], []),
            directory=tmp_path,
            checkpoint_seconds=0,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_fit_compiles_its_step_once(tmp_path, init, validate):
    objective, traces = teacher_loss(NET), []

    def counting(params, batch):
        traces.append(batch.windows.shape)
        return objective(params, batch)

    counted = make_step(counting, adam(), window=WINDOW)
    options = {"directory": tmp_path, "checkpoint_seconds": 0, "log_every": 2}
    run(resume(tmp_path, init()), counted, validate, **options)
    assert traces == [(BATCH, WINDOW, 2)]
    assert counted._cache_size() == 1


def test_checkpoints_wait_for_their_time(tmp_path, step, init, validate):
    run(
        resume(tmp_path, init()),
        step,
        validate,
        directory=tmp_path,
        checkpoint_seconds=1e9,
        log_every=1,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["9"]


class Interrupted(Exception):
    """What stops a fit in these tests."""


class Bomb:
    """Lets calls of a kind pass until its fuse is burnt."""

    def __init__(self, kind, fuse):
        self.kind = kind
        self.fuse = fuse

    def tick(self, kind):
        if kind == self.kind:
            self.fuse -= 1
            if self.fuse == 0:
                raise Interrupted


DUD = Bomb("", 0)


@pytest.fixture(scope="module")
def interruptible(step, init, validate):
    """Goes on with a fit below a folder; a bomb may stop it."""

    def go_on(directory, lines, *, log_every, bomb=DUD):
        def bombed_step(*args):
            bomb.tick("before step")
            state = step(*args)
            bomb.tick("after step")
            return state

        def bombed_validate(params):
            bomb.tick("validate")
            return validate(params)

        def log(line):
            lines.append(line)
            bomb.tick("log")

        start = resume(directory, init())
        lines[:] = [line for line in lines if line["step"] <= start.progress.step]
        return run(
            start,
            bombed_step,
            bombed_validate,
            directory=directory,
            checkpoint_seconds=0,
            log_every=log_every,
            epochs=2,
            log=log,
            advance=lambda *report: bomb.tick("advance"),
        )

    return go_on


def timeless(lines):
    return [
        {key: value for key, value in line.items() if key != "windows_per_second"}
        for line in lines
    ]


@pytest.fixture(scope="module")
def undisturbed(interruptible, tmp_path_factory):
    """Result, log and last state by `log_every`, of fits that nothing stops."""
    outcomes = {}
    for log_every in (1, 2):
        directory, lines = tmp_path_factory.mktemp("whole"), []
        fitted = interruptible(directory, lines, log_every=log_every)
        outcomes[log_every] = copied(fitted), timeless(lines), last_state(directory)
    return outcomes


def last_state(directory):
    """The state in a finished fit's last checkpoint."""
    state = init_state(jax.jit(NET.init)(jax.random.key(0)), adam())
    return copied(resume(directory, state).state)


bombs = st.tuples(
    st.sampled_from(["before step", "after step", "advance", "log", "validate"]),
    st.integers(1, 6),
)


@settings(deadline=None, max_examples=6)
@given(st.lists(bombs, min_size=1, max_size=2), st.sampled_from([1, 2]))
@example([("log", 1), ("after step", 4)], 1)  # before a checkpoint; in the next epoch
@example([("log", 3), ("log", 1)], 1)  # at an epoch's end, before it is saved
@example([("before step", 4), ("validate", 1)], 2)  # right after an epoch
def test_an_interrupted_fit_ends_like_an_undisturbed_one(
    interruptible, undisturbed, tmp_path_factory, bombs, log_every
):
    directory, lines = tmp_path_factory.mktemp("cut"), []
    for bomb in bombs:
        with contextlib.suppress(Interrupted):
            interruptible(directory, lines, log_every=log_every, bomb=Bomb(*bomb))
    fitted = interruptible(directory, lines, log_every=log_every)
    expected, log, state = undisturbed[log_every]
    assert fitted.progress == expected.progress
    assert_same(fitted.params, expected.params)
    assert timeless(lines) == log
    assert_same(last_state(directory), state)


def test_an_interrupted_fit_remembers_its_best_epoch(tmp_path, step, init):
    """The lowest loss lies before the interruption; patience counts across it."""
    seen, options = [], {"directory": tmp_path, "checkpoint_seconds": 0, "epochs": 9}
    losses = script([2.0, 1.0, 3.0], seen)
    with pytest.raises(StopIteration):
        run(resume(tmp_path, init()), step, losses, patience=3, **options)
    start = resume(tmp_path, init())
    assert start.progress == TrainingProgress(
        step=9, best_loss=1.0, best_epoch=2, stale=1
    )
    fitted = run(start, step, script([4.0, 5.0], []), patience=3, **options)
    assert_same(fitted.params, seen[1])
    assert fitted.progress == TrainingProgress(15, 1.0, 2, 3, True)
    # Asked again, a finished phase says so.
    assert resume(tmp_path, init()).progress == fitted.progress
