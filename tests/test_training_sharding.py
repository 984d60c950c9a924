"""Batches shared among devices: the same numbers as on one, up to rounding."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data.scaler import Scaler
from kdjax.detection.detector import score_scaled
from kdjax.detection.gaussian import Gaussian
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel
from kdjax.training.batching import (
    IndexedBatch,
    WindowDataset,
    map_windows,
    memory_batches,
    padded_batches,
)
from kdjax.training.sharding import (
    batch_mesh,
    cores,
    map_over_batch,
    mean_over_batch,
    place,
)
from kdjax.training.steps import (
    dataset_outputs,
    init_state,
    make_optimizer,
    make_step,
    make_validate,
    student_loss,
    teacher_loss,
    validation_loss,
)

WINDOW = 5
ARCH = Architecture(3, (4,))
NET = network(ARCH)


@pytest.fixture(scope="module")
def dataset():
    rows = np.random.default_rng(0).uniform(size=(150, 3)).astype(np.float32)
    return WindowDataset(jnp.asarray(rows), jnp.arange(0, 140, 2, dtype=jnp.int32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "devices"),
    [(1, 1), (31, 1), (32, 2), (64, 4), (128, 8), (1024, 8), (33, 1), (51, 3), (80, 5)],
)
def test_equal_shares_of_at_least_sixteen_windows(batch_size, devices):
    mesh = batch_mesh(batch_size)
    assert (1 if mesh is None else mesh.size) == devices


def optimizer():
    return make_optimizer(
        learning_rate=0.01,
        schedule="constant",
        steps=10,
        warmup_steps=0,
        clip_norm=1.0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("distilled", [False, True])
def test_training_on_eight_devices_is_training_on_one(dataset, distilled):
    """Two epochs; the last batch is padded so far that a device has padding only."""
    objective = teacher_loss(NET)
    if distilled:
        objective = student_loss(
            NET, NET, alpha=0.7, temperature=1.5, temperature_mode="output"
        )
        targets = np.random.default_rng(1).normal(size=(70, WINDOW, 3))
        dataset = dataset.replace(targets=jnp.asarray(targets, jnp.float32))
    params = NET.init(jax.random.key(0))
    finished = []
    for mesh in (None, batch_mesh(128)):
        state = place(init_state(jax.tree.map(jnp.copy, params), optimizer()), mesh)
        step = make_step(objective, optimizer(), window=WINDOW, mesh=mesh)
        shared = place(dataset, mesh)
        for epoch in range(2):
            order = np.random.default_rng(epoch).permutation(70)
            for index, weight in padded_batches(order, 128):
                state, _ = step(state, IndexedBatch(shared, index, weight))
        finished.append(jax.device_get(state))
    alone, together = finished
    assert together.weight_sum == alone.weight_sum == 140
    assert together.bad_step == -1
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_a_bad_loss_on_one_device_is_seen(dataset):
    spoilt = dataset.replace(rows=dataset.rows.at[10].set(jnp.nan))
    mesh = batch_mesh(128)
    step = make_step(teacher_loss(NET), optimizer(), window=WINDOW, mesh=mesh)
    state = place(init_state(NET.init(jax.random.key(0)), optimizer()), mesh)
    index, weight = next(padded_batches(np.arange(70), 128))
    assert (
        step(state, IndexedBatch(place(spoilt, mesh), index, weight))[0].bad_step == 1
    )


def test_validation_and_targets_are_those_of_one_device(dataset):
    params = NET.init(jax.random.key(2))
    found = []
    for batch_size in (8, 64):
        mesh = batch_mesh(batch_size)
        own, shared = place((params, dataset), mesh)
        options = {"window": WINDOW, "batch_size": batch_size}
        held_out = memory_batches(shared, key=None, batch_size=batch_size)
        validate = make_validate(
            validation_loss(NET), held_out, window=WINDOW, mesh=mesh
        )
        targets = dataset_outputs(NET, params, dataset, **options)
        found.append((validate(own), targets))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


def test_scores_are_those_of_one_device_whatever_the_batch(dataset):
    model = ResidualModel("autoencoder", NET.init(jax.random.key(3)), ARCH)
    gaussian = Gaussian(np.full(3, 0.1, np.float32), np.eye(3, dtype=np.float32) * 3)
    rows, starts = np.asarray(dataset.rows), np.arange(140)

    def scores(batch_size):
        return score_scaled(
            model, gaussian, rows, starts, window=WINDOW, batch_size=batch_size
        )

    assert batch_mesh(16) is None and batch_mesh(128).size == jax.local_device_count()
    np.testing.assert_allclose(scores(128), scores(16), rtol=1e-5, atol=1e-6)


def test_means_are_weighted_by_their_shares():
    mesh = batch_mesh(32)

    def mean(shift, items, weight):
        return jnp.sum(weight * items) / jnp.sum(weight) + shift

    items = np.arange(32.0, dtype=np.float32)
    weight = np.array([1] * 3 + [0] * 29, np.float32)
    function = jax.jit(mean_over_batch(mean, mesh))
    assert function(np.float32(2), items, weight) == 3
    weight[20:25] = 1
    expected = (0 + 1 + 2 + 20 + 21 + 22 + 23 + 24) / 8
    assert function(np.float32(0), items, weight) == pytest.approx(expected)


def test_mapped_items_keep_their_order():
    function = jax.jit(map_over_batch(lambda add, item: item + add, batch_mesh(64)))
    found = function(np.float32(1), np.arange(64.0))
    np.testing.assert_array_equal(found, np.arange(1.0, 65))
    assert len(found.sharding.device_set) == batch_mesh(64).size


def test_without_a_mesh_things_stay_as_they_are():
    def function(common, items):
        return items

    assert map_over_batch(function, None) is function
    assert mean_over_batch(function, None) is function
    values = {"a": np.ones(2)}
    assert place(values, None) is values


def test_stretches_reach_all_devices():
    """A jitted window function over a mesh gives what a loop gives."""
    rows = np.random.default_rng(4).normal(size=(400, 2)).astype(np.float32)
    starts = np.arange(0, 390, 3)
    scaler = Scaler(np.float32([0, 1]), np.float32([1, 2]))
    parts = map_windows(
        _first_rows, (), rows, starts, window=WINDOW, batch_size=64, scaler=scaler
    )
    expected = (rows[starts] - scaler.offset) / scaler.scale
    np.testing.assert_array_equal(np.concatenate(list(parts)), expected)


def _first_rows(common, windows):
    return windows[:, 0]


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    return done.stdout.split()


@pytest.mark.slow
def test_the_program_takes_a_device_a_core_unless_told_otherwise(tmp_path):
    code = (
        "from kdjax.training.sharding import *; use_all_cores(); keep_compiled(); import jax;"
        "print(len(jax.local_devices()), jax.config.jax_compilation_cache_dir)"
    )
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    assert run(code, **cache) == [str(cores()), str(tmp_path / "kdjax" / "xla")]
    told = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    told["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "own")
    assert run(code, **told) == ["3", str(tmp_path / "own")]
    late = f"import jax; jax.devices(); {code}"
    assert run(late, **cache)[0] == "1"
