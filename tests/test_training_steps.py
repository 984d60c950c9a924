"""The optimizer and the jitted steps against numpy, and how often they are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from kdjax.models.autoencoder import Architecture, network
from kdjax.training.batching import (
    IndexedBatch,
    WindowDataset,
    memory_batches,
    padded_batches,
)
from kdjax.training.sharding import batch_mesh, place
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

ARCH = Architecture(2, (3,))
NET = network(ARCH)
WINDOW = 4


def rates(**changes):
    """The learning rate of each step, read off Adam under a constant gradient."""
    options = {"learning_rate": 0.5, "warmup_steps": 0, "clip_norm": 1e9} | changes
    optimizer = make_optimizer(**options)
    state, seen = optimizer.init(jnp.zeros(1)), []
    for _ in range(options["steps"]):
        updates, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
        seen.append(-float(updates[0]))
    return seen


def numpy_adam(gradients, rate, clip_norm):
    """Parameters after each step from 0, by Kingma and Ba, 2015, algorithm 1."""
    position, m, v, path = np.zeros(2), np.zeros(2), np.zeros(2), []
    for t, gradient in enumerate(gradients, start=1):
        gradient = gradient * min(1, clip_norm / np.linalg.norm(gradient))
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        position = position - rate * step
        path.append(position)
    return path


def test_rate_rises_to_its_peak_and_falls_along_a_cosine():
    found = rates(schedule="cosine", steps=14, warmup_steps=4)
    warmup = [0.1, 0.2, 0.3, 0.4]
    after = [0.25 * (1 + np.cos(np.pi * k / 10)) for k in range(10)]
    np.testing.assert_allclose(found, warmup + after, rtol=1e-4)
    assert max(found) == pytest.approx(0.5, rel=1e-4)
    assert found[4] == max(found)
    assert found[-1] < 0.013


def test_constant_rate_stays_at_its_peak():
    found = rates(schedule="constant", steps=6, warmup_steps=2)
    np.testing.assert_allclose(found, [1 / 6, 2 / 6, *[0.5] * 4], rtol=1e-4)
    assert rates(schedule="constant", steps=2) == pytest.approx([0.5] * 2, rel=1e-4)


def test_warmup_longer_than_the_phase_ends_at_the_peak():
    found = rates(schedule="cosine", steps=3, warmup_steps=100)
    np.testing.assert_allclose(found, [1 / 6, 2 / 6, 0.5], rtol=1e-4)
    assert rates(schedule="cosine", steps=1, warmup_steps=5) == pytest.approx(
        [0.5], rel=1e-4
    )


@pytest.mark.parametrize("clip_norm", [1.0, 1e9])
def test_optimizer_is_adam_behind_a_clip(clip_norm):
    gradients = np.array([[3.0, -4.0], [0.3, 0.1], [-60.0, 80.0], [0.0, 0.5]])
    optimizer = make_optimizer(
        learning_rate=0.1,
        schedule="constant",
        steps=4,
        warmup_steps=0,
        clip_norm=clip_norm,
    )
    position = jnp.zeros(2)
    state = optimizer.init(position)
    for gradient, expected in zip(
        gradients, numpy_adam(gradients, 0.1, clip_norm), strict=True
    ):
        updates, state = optimizer.update(jnp.asarray(gradient), state, position)
        position = position + updates
        np.testing.assert_allclose(position, expected, rtol=1e-4)


def optimizer_of(steps, **changes):
    options = {"learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 2}
    return make_optimizer(**options | {"clip_norm": 1.0} | changes, steps=steps)


@pytest.fixture(scope="module")
def dataset():
    rows = np.random.default_rng(0).uniform(size=(40, 2)).astype(np.float32)
    starts = np.array([0, 3, 5, 11, 17, 20, 36], np.int32)
    return WindowDataset(jnp.asarray(rows), jnp.asarray(starts))


def windows_of(dataset):
    rows = np.asarray(dataset.rows)
    return np.array([rows[start : start + WINDOW] for start in dataset.starts.tolist()])


def init_params(seed):
    return jax.jit(NET.init)(jax.random.key(seed))


def test_a_step_moves_down_the_gradient_of_its_batch(dataset):
    optimizer = optimizer_of(10, warmup_steps=0, clip_norm=1e9)
    params = init_params(0)
    step = make_step(teacher_loss(NET), optimizer, window=WINDOW)
    index, weight = jnp.array([6, 2, 2]), jnp.array([1.0, 1.0, 0.0])
    real = jnp.asarray(windows_of(dataset)[[6, 2]])

    def loss(params):
        return jnp.mean((NET.outputs(params, real) - real) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    before = jax.tree.map(np.array, params)
    batch = IndexedBatch(dataset, index, weight)
    state, _ = step(init_state(params, optimizer), batch)
    # Adam's first step is the gradient's sign, but for its ε.
    jax.tree.map(
        lambda new, old, slope: np.testing.assert_allclose(
            new, old - 0.01 * slope / (abs(slope) + 1e-8), atol=1e-5
        ),
        state.params,
        before,
        jax.tree.map(np.asarray, gradient),
    )
    assert int(state.step) == 1
    assert float(state.weight_sum) == 2
    np.testing.assert_allclose(state.loss_sum, 2 * value, rtol=1e-6)
    assert int(state.bad_step) == -1


def test_the_first_bad_step_is_remembered(dataset):
    optimizer = optimizer_of(10)

    def objective(params, batch):
        return jnp.sum(batch.weight) / jnp.sum(params["x"] * batch.weight - 2)

    step = make_step(objective, optimizer, window=WINDOW)
    index, full, half = jnp.array([0, 1]), jnp.ones(2), jnp.array([1.0, 0.0])
    state = init_state({"x": jnp.float32(2)}, optimizer)
    state, _ = step(state, IndexedBatch(dataset, index, half))
    assert int(state.bad_step) == -1
    # 2 / (2 + 2 − 2 · 2): not finite; nor is anything after it.
    state, _ = step(
        state.replace(params={"x": jnp.float32(2)}), IndexedBatch(dataset, index, full)
    )
    assert int(state.bad_step) == 2
    state, _ = step(state, IndexedBatch(dataset, index, full))
    assert int(state.bad_step) == 2
    assert int(state.step) == 3


def train(dataset, *, objective, epochs=3, teacher=None):
    """Parameters and mean loss after epochs over the 7 windows in batches of 3."""
    optimizer = optimizer_of(3 * epochs)
    step = make_step(objective, optimizer, window=WINDOW, teacher=teacher)
    state = init_state(init_params(1), optimizer)
    for _ in range(epochs):
        for index, weight in padded_batches(np.arange(7), 3):
            state, _ = step(
                state, IndexedBatch(dataset, jnp.asarray(index), jnp.asarray(weight))
            )
    assert float(state.weight_sum) == 7 * epochs
    return state.params, float(state.loss_sum) / (7 * epochs)


def test_cached_targets_and_a_teacher_in_the_step_are_the_same(dataset):
    large = network(Architecture(2, (4,), head="sigmoid"))
    taught_by = jax.jit(large.init)(jax.random.key(5))
    kept = jax.tree.map(np.array, taught_by)
    objective = student_loss(
        NET, large, alpha=0.9, temperature=1.5, temperature_mode="output"
    )
    targets = dataset_outputs(large, taught_by, dataset, window=WINDOW, batch_size=3)
    direct = large.outputs(taught_by, jnp.asarray(windows_of(dataset)))
    np.testing.assert_allclose(targets, direct, atol=1e-6)
    cached, cached_loss = train(dataset.replace(targets=targets), objective=objective)
    live, live_loss = train(
        dataset.replace(teacher=taught_by), objective=objective, teacher=large
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), cached, live)
    assert cached_loss == pytest.approx(live_loss, abs=1e-6)
    jax.tree.map(np.testing.assert_array_equal, taught_by, kept)


def counted(function, traces):
    """The function, noting each of its traces."""

    def counting(params, batch):
        traces.append(batch.windows.shape)
        return function(params, batch)

    return counting


def test_an_uneven_run_traces_each_function_once(dataset):
    shape, trained, validated, output = (3, WINDOW, 2), [], [], []
    train(dataset, objective=counted(teacher_loss(NET), trained))
    assert trained == [shape]
    loss = counted(validation_loss(NET), validated)
    validate = make_validate(
        loss, memory_batches(dataset, key=None, batch_size=3), window=WINDOW
    )
    for seed in (0, 1):
        validate(init_params(seed))
    assert validated == [shape]

    def outputs(params, windows, forced=False):
        output.append(windows.shape)
        return windows

    net = NET._replace(outputs=outputs)
    dataset_outputs(net, init_params(0), dataset, window=WINDOW, batch_size=3)
    assert output == [shape]


@pytest.mark.parametrize("batch_size", [3, 7, 10])
def test_validation_is_the_mean_over_windows(dataset, batch_size):
    validate = make_validate(
        validation_loss(NET),
        memory_batches(dataset, key=None, batch_size=batch_size),
        window=WINDOW,
    )
    params = init_params(2)
    windows = windows_of(dataset)
    outputs = np.asarray(NET.outputs(params, jnp.asarray(windows)), np.float64)
    expected = np.mean((outputs - windows) ** 2)
    assert validate(params) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [3, 10])
def test_head_outputs_are_those_before_the_activation(dataset, batch_size):
    net = network(ARCH._replace(head="sigmoid"))
    params = init_params(3)
    found = dataset_outputs(net, params, dataset, window=WINDOW, batch_size=batch_size)
    assert found.shape == (7, WINDOW, 2)
    direct = net.outputs(params, jnp.asarray(windows_of(dataset)))
    np.testing.assert_allclose(found, direct, atol=1e-6)


def test_a_batch_holds_its_windows_targets(dataset):
    marks = jnp.broadcast_to(10.0 ** jnp.arange(7)[:, None, None], (7, WINDOW, 2))

    def objective(params, batch):
        return params["x"] * jnp.sum(batch.weight * batch.targets[:, -1, 1]) / 2

    optimizer = optimizer_of(1)
    step = make_step(objective, optimizer, window=WINDOW)
    state = init_state({"x": jnp.ones(())}, optimizer)
    index, weight = jnp.array([5, 2, 0]), jnp.array([1.0, 1.0, 0.0])
    state, _ = step(state, IndexedBatch(dataset.replace(targets=marks), index, weight))
    assert float(state.loss_sum) == 100_100


def test_batches_without_a_teacher_have_no_targets(dataset):
    seen = []

    def objective(params, batch):
        seen.append(batch.targets)
        return jnp.sum(params["x"] ** 2)

    optimizer = optimizer_of(1)
    step = make_step(objective, optimizer, window=WINDOW)
    state = init_state({"x": jnp.ones(1)}, optimizer)
    step(state, IndexedBatch(dataset, jnp.array([0]), jnp.ones(1)))
    assert seen == [None]


# Missing cells.


@pytest.fixture(scope="module")
def gappy(dataset):
    """The corpus with gaps: the window at 17 misses much, the one at 36 everything."""
    rows = np.array(dataset.rows)
    rows[[1, 4, 12], 0] = np.nan
    rows[17:20, 1] = np.nan
    rows[36:] = np.nan
    return dataset.replace(rows=jnp.asarray(rows), missing=True)


def filled(dataset):
    """Its windows `[M, L, D]` without gaps, and which cells were there."""
    windows = windows_of(dataset)
    frames = [pd.DataFrame(w).ffill().bfill().fillna(0.0) for w in windows]
    return np.stack([f.to_numpy() for f in frames]), ~np.isnan(windows)


def masked_loss(params, windows, observed):
    """The teacher's loss `[M]` of each window in float64, 0 without any cell."""
    outputs = NET.outputs(params, jnp.asarray(windows, jnp.float32))
    squares = (np.asarray(outputs, np.float64) - windows) ** 2
    seen = observed.sum(axis=(1, 2))
    return (squares * observed).sum(axis=(1, 2)) / np.maximum(seen, 1)


def test_a_step_over_gaps_has_the_loss_of_the_observed_cells(gappy):
    optimizer = optimizer_of(10)
    step = make_step(teacher_loss(NET), optimizer, window=WINDOW)
    params = init_params(0)
    windows, observed = filled(gappy)
    assert observed[6].sum() == 0 and 0 < observed[4].sum() < WINDOW * 2
    wanted = masked_loss(params, windows, observed)
    index, weight = jnp.array([0, 4, 6, 1]), jnp.array([1.0, 1.0, 1.0, 0.0])
    batch = IndexedBatch(gappy, index, weight)
    state, _ = step(init_state(params, optimizer), batch)
    assert float(state.loss_sum) == pytest.approx(wanted[[0, 4, 6]].sum(), rel=1e-5)
    assert int(state.bad_step) == -1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_whatever_stood_in_a_missing_cell_does_not_matter(gappy):
    """The gradient is that of the filled windows, with weights on observed cells."""
    optimizer = optimizer_of(10, warmup_steps=0, clip_norm=1e9)
    step = make_step(teacher_loss(NET), optimizer, window=WINDOW)
    params = init_params(0)
    windows, observed = (jnp.asarray(part[[0, 4]]) for part in filled(gappy))

    def loss(params):
        squares = (NET.outputs(params, windows) - windows) ** 2
        per_window = [jnp.mean(squares[i][observed[i]]) for i in range(2)]
        return sum(per_window) / 2

    gradient = jax.grad(loss)(params)
    before = jax.tree.map(np.array, params)
    batch = IndexedBatch(gappy, jnp.array([0, 4]), jnp.ones(2))
    state, _ = step(init_state(params, optimizer), batch)
    jax.tree.map(
        lambda new, old, slope: np.testing.assert_allclose(
            new, old - 0.01 * slope / (abs(slope) + 1e-8), atol=1e-5
        ),
        state.params,
        before,
        jax.tree.map(np.asarray, gradient),
    )


def test_complete_rows_train_the_same_whether_gaps_are_expected_or_not(dataset):
    objective = teacher_loss(NET)
    plain, plain_loss = train(dataset, objective=objective)
    masked, masked_loss = train(dataset.replace(missing=True), objective=objective)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        plain,
        masked,
    )
    assert masked_loss == pytest.approx(plain_loss, rel=1e-6)


@pytest.mark.parametrize("batch_size", [3, 10])
def test_validation_over_gaps_is_the_mean_over_windows(gappy, batch_size):
    validate = make_validate(
        validation_loss(NET),
        memory_batches(gappy, key=None, batch_size=batch_size),
        window=WINDOW,
    )
    params = init_params(2)
    wanted = masked_loss(params, *filled(gappy)).mean()
    assert validate(params) == pytest.approx(wanted, rel=1e-5)


def test_head_outputs_over_gaps_are_those_of_filled_windows(gappy, dataset):
    params = init_params(3)
    found = dataset_outputs(NET, params, gappy, window=WINDOW, batch_size=3)
    windows = jnp.asarray(filled(gappy)[0], jnp.float32)
    np.testing.assert_allclose(found, NET.outputs(params, windows), atol=1e-6)
    plain = dataset_outputs(NET, params, dataset, window=WINDOW, batch_size=3)
    expected = dataset.replace(missing=True)
    again = dataset_outputs(NET, params, expected, window=WINDOW, batch_size=3)
    np.testing.assert_allclose(again, plain, atol=1e-6)


def test_a_teacher_in_the_step_sees_the_filled_windows(gappy):
    taught_by = init_params(5)
    objective = student_loss(
        NET, NET, alpha=0.9, temperature=1.0, temperature_mode="output"
    )
    targets = dataset_outputs(NET, taught_by, gappy, window=WINDOW, batch_size=3)
    cached, cached_loss = train(gappy.replace(targets=targets), objective=objective)
    live, live_loss = train(
        gappy.replace(teacher=taught_by), objective=objective, teacher=NET
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), cached, live)
    assert cached_loss == pytest.approx(live_loss, abs=1e-6)
    assert np.isfinite(cached_loss)


def test_devices_that_share_batches_with_gaps_give_what_one_gives(gappy):
    starts = jnp.asarray(np.r_[0:33, 34:36, [36] * 5], jnp.int32)
    gappy = gappy.replace(starts=starts)
    index = np.arange(40)
    weight = np.ones(40, np.float32)
    weight[37:] = 0
    mesh = batch_mesh(40, least_share=5)
    assert mesh is not None and mesh.size == jax.local_device_count()
    states, losses = [], []
    for devices in (None, mesh):
        optimizer = optimizer_of(4)
        step = make_step(teacher_loss(NET), optimizer, window=WINDOW, mesh=devices)
        state = place(init_state(init_params(6), optimizer), devices)
        own = place(gappy, devices)
        for _ in range(3):
            state, _ = step(state, IndexedBatch(own, index, weight))
        validate = make_validate(
            validation_loss(NET),
            memory_batches(own, key=None, batch_size=40),
            window=WINDOW,
            mesh=devices,
        )
        states.append(jax.tree.map(np.asarray, state))
        losses.append(validate(state.params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *states
    )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert np.isfinite(losses[0])
