"""The LSTM: a pure function, a Flax cell, and a layer over time arranged for speed.

Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000; one bias
vector per layer, as Table 1 of the paper counts:

    i, f, o = σ(W x_t + R h_{t−1} + b)     (each gate its own quarter of W, R and b)
    g       = tanh(W x_t + R h_{t−1} + b)
    c_t     = f ⊙ c_{t−1} + i ⊙ g
    h_t     = o ⊙ tanh(c_t)

`lstm_cell` and `LSTMCell` are batch-major, `[B, F]`. `LSTM`, the layer of the networks,
is feature-major, `[F, L, B]`: each matrix product then has a kernel on its left and the
batch on its right, which is fastest on CPUs, and no transpose is needed. Three
arrangements of the same arithmetic, each compared with the cell by tests
(docs/performance.md has the measurements):

* without a gradient, the kernels of the input and of the state act in one product a
  step, and nothing but the hidden states is kept;
* for a gradient, the input's projection is one product over all steps. The gates'
  values replace it in place, and their gradient replaces those, so that a layer keeps 6H
  numbers per step; the kernels' gradients are one product over time and batch;
* for a few windows, rows are multiplied by kernels, which are then read along their rows.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Up to so many windows a network runs on rows, 1.3 to 2.1 times as fast as on columns for
# 16 to 200 units on a CPU. At 8 and 16 windows it is 1.0 to 1.4, from 32 on less than 1
# for 200 units; exported StableHLO pads its batches past this number, so it stays small.
FEW = 4


class Kernels(NamedTuple):
    """A layer's parameters; quarters of the last axis belong to the gates i, f, g, o."""

    input: Array  # W, [I, 4H]
    recurrent: Array  # R, [H, 4H]
    bias: Array  # b, [4H]


class Carry(NamedTuple):
    """State of an LSTM between two time steps."""

    cell: Array  # [B, H], or [H, B] in a feature-major layer
    hidden: Array


def lstm_cell(
    params: Mapping[str, Array], carry: tuple[Array, Array], x: Array
) -> tuple[Carry, Array]:
    """One time step of an LSTM: the new carry and h_t `[B, H]`.

    Args:
        params: `input_kernel` W `[I, 4H]`, `recurrent_kernel` R `[H, 4H]` and `bias` b
            `[4H]`; quarters of the last axis belong to the gates i, f, g, o.
        carry: c and h of the step before, `[B, H]` each.
        x: inputs `[B, I]`.

    >>> zeros = {"input_kernel": jnp.zeros((3, 8)), "bias": jnp.zeros(8)}
    >>> zeros["recurrent_kernel"] = jnp.zeros((2, 8))
    >>> carry = (jnp.ones((1, 2)), jnp.zeros((1, 2)))
    >>> lstm_cell(zeros, carry, jnp.ones((1, 3)))[0].cell
    Array([[0.5, 0.5]], dtype=float32)
    """
    cell, hidden = carry
    gates = x @ params["input_kernel"] + hidden @ params["recurrent_kernel"]
    i, f, g, o = jnp.split(gates + params["bias"][None], 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return Carry(cell, hidden), hidden


def _orthogonal_gates(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Four orthogonal `[H, H]` matrices side by side, `[H, 4H]`, as in Flax's cell."""
    make, keys = nn.initializers.orthogonal(), jax.random.split(key, 4)
    gates = [make(key, (shape[0], shape[0]), dtype) for key in keys]
    return jnp.concatenate(gates, axis=1)


class LSTMCell(nn.RNNCellBase):
    """`lstm_cell` as a Flax cell, for `nn.RNN`; inputs `[B, I]`, outputs `[B, H]`.

    Parameters have the names and shapes of a layer of `lstm_autoencoder`.

    Attributes:
        features: H, size of the state.

    >>> rnn = nn.RNN(LSTMCell(4))
    >>> states, _ = rnn.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> states.shape
    (2, 7, 4)
    """

    features: int

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[Carry, Array]:
        """One time step: the new carry and h_t."""
        params = _parameters(self, inputs.shape[-1], self.features)
        return lstm_cell(params, carry, inputs.astype(params["bias"].dtype))

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """c = h = 0 for inputs of shape `[…, I]`."""
        zeros = jnp.zeros((*input_shape[:-1], self.features), jnp.float32)
        return Carry(zeros, zeros)

    @property
    def num_feature_axes(self) -> int:
        """Axes of an input that are features: 1."""
        return 1


def _parameters(module: nn.Module, width: int, hidden: int) -> dict[str, Array]:
    """Declares the parameters of a cell in a module."""
    shapes: dict[str, Any] = {
        "input_kernel": (nn.initializers.lecun_normal(), (width, 4 * hidden)),
        "recurrent_kernel": (_orthogonal_gates, (hidden, 4 * hidden)),
        "bias": (nn.initializers.zeros, (4 * hidden,)),
    }
    # float32 also under `jax.enable_x64`.
    return {name: module.param(name, *own, jnp.float32) for name, own in shapes.items()}


class LSTM(nn.Module):
    """One LSTM layer, feature-major; parameters as of `LSTMCell`."""

    width: int  # I, size of the input vector
    hidden: int  # H, size of the state

    def setup(self) -> None:
        self.kernels = Kernels(*_parameters(self, self.width, self.hidden).values())

    def step(self, carry: Carry, inputs: Array) -> Carry:
        """One time step on inputs `[I, B]`."""
        kernel, recurrent, bias = self.kernels
        gates = _project(kernel, bias, inputs) + recurrent.T @ carry.hidden
        return Carry(*_next_state(_activate_gates(gates), carry.cell))

    def __call__(self, inputs: Array) -> tuple[Carry, Array]:
        """Last carry and all hidden states of inputs `[I, L, B] -> [H, L, B]`."""
        cell, states = _run_layer(self.kernels, inputs, inputs.shape[1])
        return Carry(cell, states[:, -1]), states

    def repeat(self, inputs: Array, length: int) -> Array:
        """All hidden states, `[H, L, B]`, under the same input `[I, B]` at each step."""
        return _run_layer(self.kernels, inputs, length)[1]


class Head(nn.Module):
    """The dense layer after the decoder, over features along the first axis."""

    width: int  # H, size of its input
    outputs: int  # D, size of its output

    def setup(self) -> None:
        shape = (self.width, self.outputs)
        make, dtype = nn.initializers.lecun_normal(), jnp.float32
        self.kernel = self.param("kernel", make, shape, dtype)
        self.bias = self.param("bias", nn.initializers.zeros, shape[1:], dtype)

    def __call__(self, states: Array) -> Array:
        """`[H, …] -> [D, …]`."""
        return _project(self.kernel, self.bias, states)


# One layer over time.


# The output of a layer: c_L [H, B] and h_1 … h_L [H, L, B].
LayerOutput = tuple[Array, Array]


class _Kept(NamedTuple):
    """What a forward pass keeps for the backward pass."""

    gates: Array  # σ(i), σ(f), tanh(g), σ(o) at each step, [4H, L, B]
    cells: Array  # [H, L, B]
    states: Array  # [H, L, B]


def _project(kernel: Array, bias: Array, inputs: Array) -> Array:
    """Wᵀx + b for features along the first axis, `[I, …] -> [O, …]`."""
    values = (kernel.T @ _flat(inputs)).reshape(-1, *inputs.shape[1:])
    return values + bias.reshape(-1, *[1] * (inputs.ndim - 1))


def _activate_gates(gates: Array, axis: int = 0) -> Array:
    """σ of the quarters i, f, o and tanh of g, as one tanh over all four.

    σ(x) = ½ tanh(½ x) + ½: only constants differ between the quarters, and no array is
    split and joined.
    """
    scale = _quarters(gates, axis, (0.5, 0.5, 1, 0.5))
    shift = _quarters(gates, axis, (0.5, 0.5, 0, 0.5))
    return scale * jnp.tanh(scale * gates) + shift


def _next_state(activated: Array, cell: Array, axis: int = 0) -> tuple[Array, Array]:
    """c_t and h_t from c_{t−1} and the gates' values; `axis` has the features."""
    i, f, g, o = jnp.split(activated, 4, axis)
    cell = f * cell + i * g
    return cell, o * jnp.tanh(cell)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _run_layer(kernels: Kernels, inputs: Array, length: int) -> LayerOutput:
    """A layer over L = `length` inputs `[I, L, B]` from c = h = 0.

    If the inputs are `[I, B]`, equal at each step, their projection is computed once.
    """
    repeated, few = inputs.ndim == 2, inputs.shape[-1] <= FEW
    if repeated:
        projected = _project(kernels.input, kernels.bias, inputs)
        if few:
            return _run_rows(kernels.recurrent, projected.T, length)
        recurrent = kernels.recurrent.T
    elif few:
        rows = jnp.moveaxis(inputs, 0, 2) @ kernels.input + kernels.bias[None, None]
        return _run_rows(kernels.recurrent, rows, length)
    else:
        both = jnp.concatenate([kernels.input, kernels.recurrent]).T  # [4H, I + H]
        bias = kernels.bias[:, None]

    def step(t: Array, state: Any) -> Any:
        cell, hidden, states = state
        if repeated:
            gates = projected + recurrent @ hidden
        else:
            gates = both @ jnp.concatenate([_at(inputs, t), hidden]) + bias
        cell, hidden = _next_state(_activate_gates(gates), cell)
        return cell, hidden, _put(states, hidden, t)

    zeros = _zeros(kernels, inputs)
    start = (zeros, zeros, _stack(zeros, length))
    cell, _, states = lax.fori_loop(0, length, step, start)
    return cell, states


def _run_rows(recurrent: Array, projected: Array, length: int) -> LayerOutput:
    """`projected` has Wᵀx + b as rows: `[L, B, 4H]`, or `[B, 4H]` for all steps."""

    def step(state: Any, given: Array | None) -> Any:
        cell, hidden = state
        gates = (projected if given is None else given) + hidden @ recurrent
        cell, hidden = _next_state(_activate_gates(gates, 1), cell, 1)
        return (cell, hidden), hidden

    zeros = jnp.zeros((projected.shape[-2], len(recurrent)), projected.dtype)
    given = projected if projected.ndim == 3 else None
    (cell, _), states = lax.scan(step, (zeros, zeros), given, length=length)
    return cell.T, jnp.moveaxis(states, 2, 0)


def _layer_forward(kernels: Kernels, inputs: Array, length: int) -> Any:
    projected = _project(kernels.input, kernels.bias, inputs)
    if inputs.ndim == 2:
        gates = _stack(projected, length)
        outcome, kept = _run_and_keep(kernels, gates, lambda *_: projected, length)
    else:
        outcome, kept = _run_and_keep(kernels, projected, _at, length)
    return outcome, (kernels, inputs, kept)


def _run_and_keep(
    kernels: Kernels, gates: Array, given: Callable[[Array, Array], Array], length: int
) -> tuple[LayerOutput, _Kept]:
    """The forward pass that writes the gates' values into `gates` `[4H, L, B]`.

    `given(gates, t)` is what step t adds to the state's part, read before it is
    overwritten.
    """
    recurrent = kernels.recurrent.T
    zeros = _zeros(kernels, gates)

    def step(t: Array, state: Any) -> Any:
        cell, hidden, kept = state
        values = _activate_gates(given(kept.gates, t) + recurrent @ hidden)
        cell, hidden = _next_state(values, cell)
        kept = _Kept(*(_put(a, b, t) for a, b in zip(kept, (values, cell, hidden))))
        return cell, hidden, kept

    stack = _stack(zeros, length)
    start = (zeros, zeros, _Kept(gates, stack, stack))
    cell, _, kept = lax.fori_loop(0, length, step, start)
    return (cell, kept.states), kept


def _layer_backward(
    length: int, saved: Any, cotangents: LayerOutput
) -> tuple[Kernels, Array]:
    """Gradients of the kernels and of the inputs.

    Backwards in time, with ' for the gradient of a value (Werbos, 1990):

        h'_t += R z'_{t+1}
        c'_t  = f_{t+1} c'_{t+1} + h'_t o (1 − tanh² c_t)
        z'_t  = (c' g i(1−i), c' c_{t−1} f(1−f), c' i (1−g²), h' tanh(c_t) o(1−o))
    """
    kernels, inputs, kept = saved
    hidden, recurrent = len(kernels.recurrent), kernels.recurrent

    def step(number: Array, state: Any) -> Any:
        cell_gradient, gradient, activated, cell, gradients, total = state
        t = length - 1 - number
        before = jnp.maximum(t - 1, 0)
        last_cell = jnp.where(t > 0, _at(kept.cells, before), 0)
        i, f, g, o = jnp.split(activated, 4)
        squashed = jnp.tanh(cell)
        state_gradient = _at(cotangents[1], t) + recurrent @ gradient
        cell_gradient += state_gradient * o * (1 - squashed**2)
        quarters = (
            cell_gradient * g * i * (1 - i),
            cell_gradient * last_cell * f * (1 - f),
            cell_gradient * i * (1 - g**2),
            state_gradient * squashed * o * (1 - o),
        )
        for place, quarter in enumerate(quarters):
            gradients = lax.dynamic_update_slice(
                gradients, quarter[:, None], (place * hidden, t, 0)
            )
        # The gates of the step before are read after this step's gradient is written,
        # or XLA would copy the whole array to keep the two apart.
        gradient = _at(gradients, t)
        activated = _at(gradients, before)
        total += gradient
        return cell_gradient * f, gradient, activated, last_cell, gradients, total

    last = length - 1
    zeros = jnp.zeros_like(kept.gates[:, 0])
    latest = _at(kept.gates, last), _at(kept.cells, last)
    start = (cotangents[0], zeros, *latest, kept.gates, zeros)
    # z' [4H, L, B], and its sum over the steps [4H, B].
    *_, gates, total = lax.fori_loop(0, length, step, start)
    first = jnp.zeros_like(kept.states[:, :1])
    earlier = jnp.concatenate([first, kept.states[:, :-1]], axis=1)
    flat = _flat(gates)
    of_state, of_bias = _flat(earlier) @ flat.T, total.sum(1)
    if inputs.ndim == 2:
        gradient = Kernels(inputs @ total.T, of_state, of_bias)
        return gradient, kernels.input @ total
    gradient = Kernels(_flat(inputs) @ flat.T, of_state, of_bias)
    return gradient, (kernels.input @ flat).reshape(inputs.shape)


_run_layer.defvjp(_layer_forward, _layer_backward)


def _at(stack: Array, t: Array | int) -> Array:
    """`[F, L, B] -> [F, B]`."""
    return lax.dynamic_index_in_dim(stack, t, axis=1, keepdims=False)


def _put(stack: Array, values: Array, t: Array) -> Array:
    return lax.dynamic_update_index_in_dim(stack, values, t, axis=1)


def _stack(values: Array, length: int) -> Array:
    """Room for `[F, B]` at each of L steps."""
    return jnp.zeros((len(values), length, values.shape[1]), values.dtype)


def _zeros(kernels: Kernels, inputs: Array) -> Array:
    return jnp.zeros((len(kernels.recurrent), inputs.shape[-1]), inputs.dtype)


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1)


def _quarters(gates: Array, axis: int, values: tuple[float, ...]) -> Array:
    """One constant for each gate, in the shape that multiplies `gates`."""
    shape = [1] * gates.ndim
    shape[axis] = -1
    constants = np.repeat(values, gates.shape[axis] // 4).reshape(shape)
    return jnp.asarray(constants, gates.dtype)
