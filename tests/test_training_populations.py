"""Members of a population against the same members trained alone."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.autoencoder import Architecture, network
from kdjax.training import populations as population
from kdjax.training.batching import WindowDataset, memory_batches
from kdjax.training.loop import fit, resume
from kdjax.training.populations import (
    Member,
    fit_together,
    make_population_step,
    make_population_validate,
    resume_together,
    stack_members,
)
from kdjax.training.sharding import batch_mesh, divide, place
from kdjax.training.steps import (
    init_state,
    make_optimizer,
    make_step,
    make_validate,
    student_loss,
    validation_loss,
)

WINDOW, BATCH = 4, 5


class Hyper(NamedTuple):
    """Numbers that differ between members: of `make_optimizer`, then α and T."""

    learning_rate: float
    steps: int
    warmup_steps: int
    clip_norm: float
    alpha: float
    temperature: float


NET = network(Architecture(2, (3,)))
# A member's windows (first, number), validation windows, epochs, patience, and Hyper.
PLANS = (
    ((0, 12), 3, 3, None, Hyper(0.01, 9, 0, 1.0, 0.4, 1.0)),
    ((0, 12), 3, 3, None, Hyper(0.03, 9, 2, 1.0, 0.4, 1.0)),
    ((12, 7), 6, 4, None, Hyper(0.01, 8, 0, 0.1, 0.9, 2.0)),
    ((12, 7), 6, 2, None, Hyper(0.01, 4, 1, 1.0, 1.0, 1.0)),
    ((0, 30), 3, 5, 1, Hyper(0.3, 30, 0, 9.0, 0.1, 0.5)),
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CORPUS = WindowDataset(
    jnp.asarray(random(40, 2)),
    jnp.arange(30, dtype=jnp.int32),
    targets=jnp.asarray(random(30, WINDOW, 2, seed=1)),
)


def step_of(hyper):
    objective = student_loss(
        NET, NET, alpha=hyper.alpha, temperature=hyper.temperature,
        temperature_mode="output",
    )  # fmt: skip
    rate = {name: getattr(hyper, name) for name in Hyper._fields[:4]}
    optimizer = make_optimizer(schedule="cosine", **rate)
    return make_step(objective, optimizer, window=WINDOW)


def first_state(seed):
    optimizer = make_optimizer(
        learning_rate=1.0, schedule="cosine", steps=9, warmup_steps=0, clip_norm=1.0
    )
    return init_state(NET.init(jax.random.key(seed)), optimizer)


def members():
    return [
        Member(
            f"m{number}", jax.random.key(number), first, windows,
            np.arange(validation, dtype=np.int32), epochs, patience,
        )
        for number, ((first, windows), validation, epochs, patience, _) in enumerate(
            PLANS
        )
    ]  # fmt: skip


HYPER = Hyper(
    *(np.array(values) for values in zip(*(plan[-1] for plan in PLANS), strict=True))
)


@functools.cache
def alone(number):
    """The member trained by the loop of a single network."""
    member, hyper = members()[number], PLANS[number][-1]
    own = slice(member.first, member.first + member.windows)
    dataset = CORPUS.replace(starts=CORPUS.starts[own], targets=CORPUS.targets[own])
    checked = CORPUS.replace(starts=jnp.asarray(member.validation), targets=None)
    lines = []
    fitted = fit(
        resume(None, first_state(number)),
        step_of(Hyper(*map(float, hyper))._replace(steps=hyper.steps)),
        memory_batches(dataset, key=member.key, batch_size=BATCH),
        make_validate(
            validation_loss(NET),
            memory_batches(checked, key=None, batch_size=len(member.validation)),
            window=WINDOW,
        ),
        epochs=member.epochs,
        patience=member.patience,
    )
    return fitted, lines


def together(mesh=None, *, hyper=HYPER, directory=None, **options):
    dataset = place(CORPUS, mesh)
    return fit_together(
        resume_together(directory, [first_state(i) for i in range(len(PLANS))], mesh),
        make_population_step(step_of, mesh),
        hyper,
        dataset,
        make_population_validate(
            validation_loss(NET), dataset, window=WINDOW, batch_size=BATCH, mesh=mesh
        ),
        members(),
        batch_size=BATCH,
        directory=directory,
        **options,
    )


def assert_close(found, expected, **tolerance):
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected
    )


@pytest.mark.parametrize(
    ("devices", "backend"),
    [
        (1, "cpu"),
        (3, "cpu"),
        pytest.param(1, "gpu", marks=pytest.mark.slow),
        pytest.param(3, "gpu", marks=pytest.mark.slow),
    ],
)
def test_members_are_trained_as_if_alone(devices, backend, monkeypatch):
    """Other seeds, windows, rates, α and T, epochs and patience side by side.

    On an accelerator members are batched; the arithmetic of that runs anywhere.
    """
    monkeypatch.setattr(population.jax, "default_backend", lambda: backend)
    mesh = batch_mesh(3, least_share=1) if devices > 1 else None
    assert mesh is None or mesh.size == devices  # five members on three: one repeated
    for number, found in enumerate(together(mesh)):
        expected = alone(number)[0]
        assert found.progress._replace(best_loss=0) == expected.progress._replace(
            best_loss=0
        )
        assert found.progress.best_loss == pytest.approx(
            expected.progress.best_loss, rel=1e-4
        )
        assert_close(found.params, expected.params)
    assert found.progress.step < 30, "the patient member was to stop early"


def test_the_log_has_each_member_s_own_epochs():
    lines = []
    found = together(log=lambda name, line: lines.append((name, line)))
    for number, fitted in enumerate(found):
        own = [line for name, line in lines if name == f"m{number}"]
        steps = math.ceil(PLANS[number][0][1] / BATCH)
        assert [line["epoch"] for line in own] == list(range(1, len(own) + 1))
        assert [line["step"] for line in own] == [
            steps * (i + 1) for i in range(len(own))
        ]
        assert min(line["validation_loss"] for line in own) == fitted.progress.best_loss
        assert all(line["train_loss"] > 0 for line in own)


def test_a_bad_member_is_frozen_and_the_others_go_on():
    rates = HYPER.learning_rate.copy()
    rates[1] = 1e38
    found = together(hyper=HYPER._replace(learning_rate=rates))
    usual = together()
    assert found[1].progress.done
    # The parameters overflow in the first steps; the loss tells in one after it.
    assert 2 <= found[1].progress.bad_step <= 3
    for number in (0, 2, 3, 4):
        assert found[number].progress == usual[number].progress
        assert_close(found[number].params, usual[number].params, rtol=0, atol=0)


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "after"),
    [
        ((3, 3), 1),
        pytest.param((3, 3), 6, marks=pytest.mark.slow),
        ((3, 1), 3),
        pytest.param((1, 3), 3, marks=pytest.mark.slow),
    ],
)
def test_a_population_goes_on_where_it_was_killed(tmp_path, after, devices):
    """Also on another number of devices."""
    meshes = [batch_mesh(d, least_share=1) if d > 1 else None for d in devices]
    seen = []

    def on_epoch(progress):
        seen.append(progress)
        if len(seen) == after + 1:
            raise Killed

    with pytest.raises(Killed):
        together(
            meshes[0],
            directory=tmp_path,
            on_epoch=on_epoch,
            checkpoint_seconds=0,
        )
    lines = []
    found = together(
        meshes[1],
        directory=tmp_path,
        log=lambda name, line: lines.append((name, line["step"])),
    )
    usual = together(meshes[1])
    tolerance = {"rtol": 0, "atol": 0} if devices == (3, 3) else {}
    for one, other in zip(found, usual, strict=True):
        assert one.progress.step == other.progress.step
        assert_close(one.params, other.params, **tolerance)
    assert len(lines) < sum(fitted.progress.step for fitted in usual)
    again = []
    together(meshes[1], directory=tmp_path, log=lambda *a: again.append(a))
    assert again == [], "a finished population trained again"


def test_validation_asks_only_whom_it_is_asked():
    params = stack_members([NET.init(jax.random.key(i)) for i in range(3)])
    validate = make_population_validate(
        validation_loss(NET), CORPUS, window=WINDOW, batch_size=BATCH
    )
    asked = [np.arange(7, dtype=np.int32), np.empty(0, np.int32), np.int32([3])]
    found = validate(params, asked)
    assert math.isnan(found[1])
    for number in (0, 2):
        one = CORPUS.replace(starts=jnp.asarray(asked[number]), targets=None)
        expected = make_validate(
            validation_loss(NET),
            memory_batches(one, key=None, batch_size=BATCH),
            window=WINDOW,
        )(jax.tree.map(lambda leaf, i=number: leaf[i], params))
        assert found[number] == pytest.approx(expected, rel=1e-5)


def test_members_lie_on_their_devices():
    mesh = batch_mesh(6, least_share=1)
    states = divide(stack_members([first_state(k) for k in range(6)]), mesh)
    step = make_population_step(step_of, mesh)
    hyper = jax.tree.map(lambda v: np.resize(v, 6), HYPER)
    index = np.zeros((6, BATCH), np.int32)
    found = step(
        states, hyper, place(CORPUS, mesh), index, np.ones((6, BATCH), np.float32),
        np.ones(6, bool),
    )  # fmt: skip
    kernel = jax.tree.leaves(found.params)[0]
    devices = mesh.size
    assert devices > 1 and len(kernel.sharding.device_set) == devices
    assert kernel.addressable_shards[0].data.shape[0] == 6 // devices
