"""The LSTM layer against Flax's cell and a float64 loop written from the equations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.models.autoencoder import lstm_autoencoder
from kdjax.models.lstm import LSTM, Carry, LSTMCell, lstm_cell

shapes = st.tuples(*[st.integers(1, 7)] * 4)  # L, B, I, H; B on both sides of FEW


def random_params(width, hidden, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "input_kernel": rng.normal(size=(width, 4 * hidden)),
        "recurrent_kernel": rng.normal(size=(hidden, 4 * hidden)),
        "bias": rng.normal(size=4 * hidden),
    }


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive_layer(params, inputs):
    """Cells and hidden states of inputs `[L, B, I]`, gate by gate."""
    kernel, recurrent, bias = (
        np.split(params[name], 4, axis=-1)
        for name in ("input_kernel", "recurrent_kernel", "bias")
    )
    batch, hidden = inputs.shape[1], recurrent[0].shape[0]
    cell, state = np.zeros((batch, hidden)), np.zeros((batch, hidden))
    cells, states = [], []
    for x in inputs:
        i, f, g, o = (
            x @ kernel[gate] + state @ recurrent[gate] + bias[gate] for gate in range(4)
        )
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        state = sigmoid(o) * np.tanh(cell)
        cells.append(cell)
        states.append(state)
    return np.array(cells), np.array(states)


def flax_params(params):
    """The same numbers under the names of `OptimizedLSTMCell`."""
    parts = {name: np.split(value, 4, axis=-1) for name, value in params.items()}
    named = {}
    for place, gate in enumerate("ifgo"):
        named[f"i{gate}"] = {"kernel": parts["input_kernel"][place]}
        named[f"h{gate}"] = {
            "kernel": parts["recurrent_kernel"][place],
            "bias": parts["bias"][place],
        }
    return {"cell": named}


class FlaxLayer(nn.Module):
    """The oracle: Flax's cell under Flax's scan."""

    hidden: int

    @nn.compact
    def __call__(self, inputs):
        cell = nn.OptimizedLSTMCell(self.hidden, name="cell")
        zeros = jnp.zeros((inputs.shape[1], self.hidden), inputs.dtype)
        layer = nn.RNN(cell, time_major=True, return_carry=True)
        return layer(inputs, initial_carry=(zeros, zeros))


def apply(params, inputs, method=None, **arguments):
    layer = LSTM(inputs.shape[-1], params["recurrent_kernel"].shape[0])

    # The layer is feature-major, [I, L, B]; the loops above are time-major.
    def outputs(params, inputs):
        inputs = jnp.moveaxis(inputs, -1, 0)
        result = layer.apply({"params": params}, inputs, method=method, **arguments)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), result)

    return jax.jit(outputs)(params, inputs)


@settings(deadline=None, max_examples=6)
@given(shapes, st.integers(0, 2**32 - 1))
def test_layer_is_the_loop_of_its_equations(shape, seed):
    length, batch, width, hidden = shape
    params = random_params(width, hidden, seed)
    inputs = np.random.default_rng(seed).normal(size=(length, batch, width))
    cells, expected = naive_layer(params, inputs)
    with jax.enable_x64(True):
        carry, states = apply(params, jnp.asarray(inputs))
    assert states.shape == (length, batch, hidden)
    np.testing.assert_allclose(states, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(carry.cell, cells[-1], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(carry.hidden, states[-1])


def test_layer_in_float32_stays_near_the_float64_loop():
    params = random_params(38, 16)
    inputs = np.random.default_rng(1).normal(size=(100, 3, 38))
    small = jax.tree.map(lambda leaf: (0.3 * leaf).astype(np.float32), params)
    _, states = apply(small, jnp.asarray(inputs, jnp.float32))
    assert states.dtype == jnp.float32
    _, expected = naive_layer(jax.tree.map(np.float64, small), np.float32(inputs))
    np.testing.assert_allclose(states, expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(7, 3, 2, 5), (1, 1, 4, 1)])
def test_values_and_gradients_are_those_of_flax(shape):
    length, batch, width, hidden = shape
    params = random_params(width, hidden)
    inputs = np.random.default_rng(2).normal(size=(length, batch, width))
    mix = np.random.default_rng(3).normal(size=(length, batch, hidden))

    def ours(params, inputs):
        carry, states = apply(params, inputs)
        return jnp.sum(mix * states) + jnp.sum(carry.cell**2), states

    def theirs(params, inputs):
        (cell, _), states = FlaxLayer(hidden).apply({"params": params}, inputs)
        return jnp.sum(mix * states) + jnp.sum(cell**2), states

    with jax.enable_x64(True):
        inputs = jnp.asarray(inputs)
        grad = jax.jit(jax.grad(ours, argnums=(0, 1), has_aux=True))
        (own, own_inputs), states = grad(jax.tree.map(jnp.asarray, params), inputs)
        grad = jax.jit(jax.grad(theirs, argnums=(0, 1), has_aux=True))
        mapped = jax.tree.map(jnp.asarray, flax_params(params))
        (other, other_inputs), expected = grad(mapped, inputs)
    np.testing.assert_allclose(states, expected, rtol=1e-12)
    np.testing.assert_allclose(own_inputs, other_inputs, rtol=1e-10, atol=1e-13)
    own = flax_params(jax.tree.map(np.asarray, own))
    assert jax.tree.structure(own) == jax.tree.structure(other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13),
        own,
        other,
    )


def test_gradient_is_the_slope_of_the_loop():
    params, inputs = (
        random_params(3, 4),
        np.random.default_rng(4).normal(size=(6, 2, 3)),
    )
    mix = np.random.default_rng(5).normal(size=(6, 2, 4))
    step = 1e-6

    def slope(name, place):
        sums = []
        for sign in (1, -1):
            moved = {key: value.copy() for key, value in params.items()}
            moved[name].flat[place] += sign * step
            sums.append(np.sum(mix * naive_layer(moved, inputs)[1]))
        return (sums[0] - sums[1]) / (2 * step)

    with jax.enable_x64(True):
        total = jax.grad(lambda p: jnp.sum(mix * apply(p, jnp.asarray(inputs))[1]))
        gradient = jax.jit(total)(jax.tree.map(jnp.asarray, params))
    for name, value in gradient.items():
        slopes = [slope(name, place) for place in range(value.size)]
        np.testing.assert_allclose(np.ravel(value), slopes, rtol=1e-6, atol=1e-8)


@settings(deadline=None, max_examples=6)
@given(shapes, st.integers(0, 2**32 - 1))
def test_repeat_is_the_layer_on_copies_of_its_input(shape, seed):
    length, batch, width, hidden = shape
    params = random_params(width, hidden, seed)
    inputs = np.random.default_rng(seed).normal(size=(batch, width))
    with jax.enable_x64(True):
        states = apply(params, jnp.asarray(inputs), method="repeat", length=length)
    _, expected = naive_layer(params, np.stack([inputs] * length))
    np.testing.assert_allclose(states, expected, rtol=1e-12, atol=1e-14)


def test_gradient_of_repeat_is_that_of_the_layer_on_copies():
    params = random_params(3, 4)
    inputs = np.random.default_rng(8).normal(size=(5, 3))
    mix = np.random.default_rng(9).normal(size=(6, 5, 4))

    def repeated(params, inputs):
        return jnp.sum(mix * apply(params, inputs, method="repeat", length=6))

    def copies(params, inputs):
        return jnp.sum(mix * apply(params, jnp.stack([inputs] * 6))[1])

    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, params), jnp.asarray(inputs)
        found = jax.jit(jax.grad(repeated, argnums=(0, 1)))(*given)
        expected = jax.jit(jax.grad(copies, argnums=(0, 1)))(*given)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13),
        found,
        expected,
    )


def test_step_goes_on_from_a_carry():
    params, inputs = (
        random_params(2, 3),
        np.random.default_rng(6).normal(size=(5, 4, 2)),
    )
    cells, states = naive_layer(params, inputs)
    with jax.enable_x64(True):
        before = Carry(jnp.asarray(cells[-2].T), jnp.asarray(states[-2].T))
        layer = LSTM(2, 3)
        after = layer.apply({"params": params}, before, inputs[-1].T, method="step")
    np.testing.assert_allclose(after.cell, cells[-1].T, rtol=1e-12)
    np.testing.assert_allclose(after.hidden, states[-1].T, rtol=1e-12)


# Each gate alone driven open or shut, from c = 0.5, h = 0; the others at σ(0) and g = 0.
@pytest.mark.parametrize(
    ("gate", "cell", "hidden"),
    [
        ("i", 0.25, 0.5 * np.tanh(0.25)),  # nothing to let in, since g = 0
        ("f", 0.5, 0.5 * np.tanh(0.5)),
        ("g", 0.75, 0.5 * np.tanh(0.75)),
        ("o", 0.25, np.tanh(0.25)),
    ],
)
def test_quarters_are_the_gates_i_f_g_o(gate, cell, hidden):
    bias = jnp.zeros((4,)).at["ifgo".index(gate)].set(50.0)
    params = {
        "input_kernel": jnp.zeros((1, 4)),
        "recurrent_kernel": jnp.zeros((1, 4)),
        "bias": bias,
    }
    carry = Carry(jnp.full((1, 1), 0.5), jnp.zeros((1, 1)))
    after, output = lstm_cell(params, carry, jnp.zeros((1, 1)))
    np.testing.assert_allclose(after.cell[0, 0], cell, rtol=1e-6)
    np.testing.assert_allclose(after.hidden[0, 0], hidden, rtol=1e-6)
    assert output is after.hidden


def test_the_cell_is_the_loop_of_its_equations():
    params, inputs = (
        random_params(2, 3),
        np.random.default_rng(6).normal(size=(5, 4, 2)),
    )
    cells, states = naive_layer(params, inputs)
    with jax.enable_x64(True):
        carry = (jnp.zeros((4, 3)), jnp.zeros((4, 3)))
        for x, cell, state in zip(inputs, cells, states, strict=True):
            carry, output = lstm_cell(params, carry, jnp.asarray(x))
            np.testing.assert_allclose(carry.cell, cell, rtol=1e-12)
            np.testing.assert_allclose(output, state, rtol=1e-12)


def test_the_flax_cell_runs_in_an_rnn_with_the_parameters_of_a_layer():
    params, inputs = (
        random_params(2, 3),
        np.random.default_rng(7).normal(size=(4, 5, 2)).astype(np.float32),
    )
    params = jax.tree.map(np.float32, params)
    rnn = nn.RNN(LSTMCell(3, name="cell"))
    shapes = jax.eval_shape(rnn.init, jax.random.key(0), inputs)["params"]["cell"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    found = rnn.apply({"params": {"cell": params}}, inputs)
    _, expected = naive_layer(params, np.float64(inputs).swapaxes(0, 1))
    np.testing.assert_allclose(found.swapaxes(0, 1), expected, atol=2e-6)


def test_a_layer_of_the_autoencoder_is_the_cell():
    model = lstm_autoencoder(hidden=(3,))
    windows = np.random.default_rng(8).normal(size=(4, 5, 2)).astype(np.float32)
    params = model.init(jax.random.key(1), windows)
    rnn = nn.RNN(LSTMCell(3, name="cell"))
    states = rnn.apply({"params": {"cell": params["encoder_0"]}}, windows)
    np.testing.assert_allclose(model.encode(params, windows), states[:, -1], atol=2e-6)


@pytest.mark.parametrize(("width", "hidden"), [(3, 5), (38, 1)])
def test_first_parameters(width, hidden):
    inputs = jnp.zeros((width, 2, 1))
    params = jax.jit(LSTM(width, hidden).init)(jax.random.key(1), inputs)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "input_kernel": (width, 4 * hidden),
        "recurrent_kernel": (hidden, 4 * hidden),
        "bias": (4 * hidden,),
    }
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
    assert not params["bias"].any()
    gates = np.split(np.asarray(params["recurrent_kernel"]), 4, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate @ gate.T, np.eye(hidden), atol=1e-5)
    if hidden > 1:
        assert len(np.unique([gate.ravel() for gate in gates], axis=0)) == 4


def test_input_kernel_has_the_spread_of_lecun():
    init = jax.jit(LSTM(100, 8).init)
    params = init(jax.random.key(0), jnp.zeros((100, 2, 1)))["params"]
    np.testing.assert_allclose(params["input_kernel"].std(), 0.1, rtol=0.05)
