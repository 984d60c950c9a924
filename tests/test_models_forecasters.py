"""Forecasters against loops in float64, and what training does to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kdjax
from kdjax.models.forecasters import (
    FORECASTERS,
    forecast_errors,
    init_forecaster,
    reconstruct,
)
from kdjax.models.residual import ResidualModel
from kdjax.training.fitting import fit_forecaster, minimise

D = 3
each_kind = pytest.mark.parametrize("kind", FORECASTERS)


def made_up(kind, *, units=5, seed=0):
    """Random parameters, biases too, of channels with different units."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, D)) * [1, 10, 100] + [0, 50, -200]
    params = init_forecaster(kind, rng, rows[None], units=units)
    for name, leaf in params["network"].items():
        params["network"][name] = leaf + rng.normal(0, 0.3, leaf.shape).astype("f")
    return params


def windows_like(params, *shape, seed=1):
    values = np.random.default_rng(seed).normal(size=(*shape, D))
    return (params["mean"] + params["scale"] * values).astype(np.float32)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def cnn_loop(net, rows):
    """The forecast after the last of rows `[n, D]`, by recursion over the layers."""

    def state(layer, t):
        if t < 0:
            return 0.0
        kernel, apart = net[f"layer_{layer}"], 2**layer
        below = rows if layer == 0 else [state(layer - 1, i) for i in range(t + 1)]
        total = net[f"layer_{layer}_bias"].copy()
        for tap in range(3):
            place = t - (2 - tap) * apart
            if place >= 0:
                total += below[place] @ kernel[tap]
        return np.maximum(total, 0) + (below[t] if layer else 0)

    return state(3, len(rows) - 1) @ net["head"] + net["head_bias"]


def gru_loop(net, rows):
    """The same by PyTorch's formulas of a GRU, gate by gate."""
    w_z, w_r, w_n = np.split(net["input"], 3, axis=1)
    u_z, u_r, u_n = np.split(net["recurrent"], 3, axis=1)
    b_z, b_r, b_n = np.split(net["input_bias"], 3)
    c_z, c_r, c_n = np.split(net["recurrent_bias"], 3)
    hidden = np.zeros(len(net["recurrent"]))
    for x in rows:
        reset = sigmoid(x @ w_r + b_r + hidden @ u_r + c_r)
        update = sigmoid(x @ w_z + b_z + hidden @ u_z + c_z)
        new = np.tanh(x @ w_n + b_n + reset * (hidden @ u_n + c_n))
        hidden = (1 - update) * new + update * hidden
    return hidden @ net["head"] + net["head_bias"]


LOOPS = {"cnn_forecast": cnn_loop, "gru_forecast": gru_loop}


@each_kind
def test_residuals_against_a_loop_over_rows(kind):
    params = made_up(kind)
    windows = windows_like(params, 2, 12)
    windows[1, 5, 1] += 1e4  # seen as 10 deviations
    wide = jax.tree.map(np.float64, params)
    wanted = np.zeros(windows.shape)
    for m, window in enumerate(windows.astype(np.float64)):
        seen = np.clip((window - wide["mean"]) / wide["scale"], -10, 10)
        for t in range(1, 12):
            after = LOOPS[kind](wide["network"], seen[:t])
            wanted[m, t] = np.abs(window[t] - wide["mean"] - wide["scale"] * after)
    found = jax.jit(forecast_errors)(params, windows)
    np.testing.assert_allclose(
        found / params["scale"], wanted / wide["scale"], atol=1e-4
    )
    forecasts = np.asarray(reconstruct(params, windows))
    np.testing.assert_allclose(np.abs(windows - forecasts), found, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(forecasts[:, 0], windows[:, 0])


@each_kind
def test_a_forecast_sees_earlier_rows_only(kind):
    params = made_up(kind)
    windows = windows_like(params, 1, 40)
    before = np.asarray(reconstruct(params, windows))
    for row in (0, 7, 38):
        changed = windows.copy()
        changed[:, row:] = windows_like(params, 1, 40 - row, seed=2)
        after = np.asarray(reconstruct(params, changed))
        # The first row is its own.
        np.testing.assert_array_equal(after[:, 1 : row + 1], before[:, 1 : row + 1])
        assert (after[:, row + 1] != before[:, row + 1]).all()
    # 1 + 2·(1 + 2 + 4 + 8) rows.
    changed = windows.copy()
    changed[:, 4] += params["scale"]
    moved = (np.asarray(reconstruct(params, changed)) != before).any(axis=(0, 2))
    last = 4 + 31 if kind == "cnn_forecast" else 39
    assert moved[5 : last + 1].mean() > 0.9 and not moved[last + 1 :].any()


@each_kind
@pytest.mark.parametrize("value", [np.inf, 3e38, -np.inf])
def test_an_overflow_is_seen_in_its_own_row(kind, value):
    params = made_up(kind)
    windows = windows_like(params, 2, 12)
    windows[0, 0, 1] = windows[1, 5, 1] = value
    found = np.asarray(forecast_errors(params, windows))
    assert not np.isnan(found).any() and not found[:, 0].any()
    huge = found > 1e6
    assert huge.sum() == 1 and huge[1, 5, 1]


def sines(rows, *, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    clean = np.sin(np.arange(rows)[:, None] / 2 + np.arange(2))
    return (clean + rng.normal(0, noise, clean.shape)).astype(np.float32)


@each_kind
def test_training_forecasts_a_sine_far_better_than_the_row_before(kind):
    learnt = kdjax.windows(sines(700), length=24, stride=1)
    params = fit_forecaster(kind, learnt, units=12, steps=400)
    fresh = kdjax.windows(sines(300, seed=1), length=24, stride=4)[:, 4:]
    start = init_forecaster(kind, np.random.default_rng(0), learnt, units=12)
    before, after = (
        float(forecast_errors(own, fresh)[:, 4:].mean()) for own in (start, params)
    )
    steps = float(np.abs(np.diff(fresh, axis=1)).mean())
    assert after < 0.25 * steps < steps < before
    again = fit_forecaster(kind, learnt, units=12, steps=400)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    other = fit_forecaster(kind, learnt, units=12, steps=1, seed=1)
    assert (other["network"]["head"] != params["network"]["head"]).all()
    # Mean and deviation are those of the rows that it learnt from.
    rows = np.float64(learnt).reshape(-1, 2)
    np.testing.assert_allclose(params["mean"], rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(params["scale"], rows.std(axis=0), rtol=1e-6)


@each_kind
def test_constant_channels_and_windows_of_two_rows(kind):
    windows = np.full((4, 2, 2), 0.1, np.float32)
    windows[:, :, 1] = np.arange(8).reshape(4, 2)
    params = fit_forecaster(kind, windows, units=3, steps=5)
    assert params["scale"][0] == 1
    found = np.asarray(forecast_errors(params, windows))
    assert np.isfinite(found).all() and found[:, 1].all() and not found[:, 0].any()


def test_units_of_channels_do_not_matter():
    learnt = np.asarray(kdjax.windows(sines(300), length=12, stride=2))
    units = np.float32([1024, 0.125])
    one = fit_forecaster("gru_forecast", learnt, units=4, steps=50)
    other = fit_forecaster("gru_forecast", learnt * units, units=4, steps=50)
    np.testing.assert_allclose(
        forecast_errors(other, learnt * units) / units,
        forecast_errors(one, learnt),
        atol=1e-3,
    )


def test_numbers_of_forecasters():
    def count(kind):
        drawn = init_forecaster(kind, np.random.default_rng(0), np.zeros((1, 38)))
        return ResidualModel(kind, drawn).parameters

    # 3·38·24 + 24, three times 3·24·24 + 24, 24·38 + 38 and two for each channel.
    assert count("cnn_forecast") == 2760 + 3 * 1752 + 950 + 76
    # 38·72 + 72 and 24·72 + 72.
    assert count("gru_forecast") == 2808 + 1800 + 950 + 76


@each_kind
def test_one_trains_them_as_any_model(kind):
    learnt = kdjax.windows(sines(300), length=12, stride=1)
    model, tx = kdjax.baseline(kind), optax.adam(1e-2)
    state = kdjax.init_state(model.init(jax.random.key(0), learnt), tx)
    step, losses = kdjax.make_teacher_step(model, tx), []
    for batch in kdjax.batches(learnt, 32, epochs=4, key=jax.random.key(1)):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    other = model.init(jax.random.key(1), learnt)["network"]["head"]
    assert (other != model.init(jax.random.key(0), learnt)["network"]["head"]).all()


def test_minimise_takes_the_steps_of_adam_one_by_one():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 9, 4, 1)).astype(np.float32)
    orders = rng.integers(9, size=(2, 30, 5))
    params = {"a": np.float32(0.5), "b": np.float32(-1)}

    def loss(params, one, other):
        return jnp.mean((params["a"] * one - 1) ** 2) + jnp.mean(
            (params["b"] - other) ** 2
        )

    draws = zip((first, second), orders, strict=True)
    found = jax.jit(lambda p, *d: minimise(loss, p, *d, rate=0.1))(params, *draws)
    moments = {name: np.zeros(2) for name in params}
    wanted = {name: float(value) for name, value in params.items()}
    for number in range(30):
        one, other = first[orders[0, number]], second[orders[1, number]]
        slopes = {
            "a": np.mean(2 * (wanted["a"] * one - 1) * one),
            "b": np.mean(2 * (wanted["b"] - other)),
        }
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * number / 30))
        for name, slope in slopes.items():
            moments[name] = [0.9, 0.999] * moments[name] + [0.1, 0.001] * np.array(
                [slope, slope**2]
            )
            mean, square = moments[name] / (1 - np.power([0.9, 0.999], number + 1))
            wanted[name] -= rate * mean / (np.sqrt(square) + 1e-8)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
