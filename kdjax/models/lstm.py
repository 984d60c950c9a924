"""The LSTM cell: a pure function, a Flax cell, and a layer over time.

Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000; one bias
vector per layer, as Table 1 of the paper counts:

    i, f, o = σ(W x_t + R h_{t−1} + b)     (each gate its own quarter of W, R and b)
    g       = tanh(W x_t + R h_{t−1} + b)
    c_t     = f ⊙ c_{t−1} + i ⊙ g
    h_t     = o ⊙ tanh(c_t)

`lstm_cell` and `LSTMCell` are batch-major, `[B, F]`. `LSTM`, the layer of the networks,
is feature-major, `[F, L, B]`, for speed (`kdjax.models._recurrence`); tests hold it to
`lstm_cell`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from kdjax.models._recurrence import (
    Kernels,
    activate_gates,
    next_state,
    project,
    run_layer,
    run_repeated,
)


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
    i, f, g, o = jnp.split(gates + params["bias"], 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return Carry(cell, hidden), hidden


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Four orthogonal `[H, H]` matrices side by side, `[H, 4H]`, as in Flax's cell."""
    hidden = shape[0]
    initializer = nn.initializers.orthogonal()
    keys = jax.random.split(key, shape[1] // hidden)
    return jnp.concatenate(
        [initializer(key, (hidden, hidden), dtype) for key in keys], axis=1
    )


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
        params = {
            name: self.param(name, initializer, *arguments)
            for name, initializer, *arguments in _parameters(
                inputs.shape[-1], self.features
            )
        }
        return lstm_cell(params, carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """c = h = 0 for inputs of shape `[…, I]`."""
        zeros = jnp.zeros((*input_shape[:-1], self.features))
        return Carry(zeros, zeros)

    @property
    def num_feature_axes(self) -> int:
        """Axes of an input that are features: 1."""
        return 1


def _parameters(width: int, hidden: int) -> tuple[tuple, ...]:  # type: ignore[type-arg]
    """Name, initializer and its arguments of each parameter of a cell."""
    return (
        ("input_kernel", nn.initializers.lecun_normal(), (width, 4 * hidden)),
        ("recurrent_kernel", orthogonal_gates, (hidden, 4 * hidden), jnp.float32),
        ("bias", nn.initializers.zeros, (4 * hidden,)),
    )


class LSTM(nn.Module):
    """One LSTM layer, feature-major; parameters as of `LSTMCell`.

    Attributes:
        width: I, size of the input vector.
        hidden: H, size of the state.
    """

    width: int
    hidden: int

    def setup(self) -> None:
        self.kernels = Kernels(
            *(
                self.param(name, initializer, *arguments)
                for name, initializer, *arguments in _parameters(
                    self.width, self.hidden
                )
            )
        )

    def step(self, carry: Carry, inputs: Array) -> Carry:
        """One time step on inputs `[I, B]`."""
        kernel, recurrent, bias = self.kernels
        gates = project(kernel, bias, inputs) + recurrent.T @ carry.hidden
        return Carry(*next_state(activate_gates(gates), carry.cell))

    def __call__(self, inputs: Array) -> tuple[Carry, Array]:
        """Last carry and all hidden states of inputs `[I, L, B] -> [H, L, B]`."""
        cell, states = run_layer(self.kernels, inputs)
        return Carry(cell, states[:, -1]), states

    def repeat(self, inputs: Array, length: int) -> Array:
        """All hidden states, `[H, L, B]`, under the same input `[I, B]` at each step."""
        return run_repeated(self.kernels, inputs, length).states


class Head(nn.Module):
    """The dense layer after the decoder, over features along the first axis.

    Attributes:
        width: H, size of its input.
        outputs: D, size of its output.
    """

    width: int
    outputs: int

    def setup(self) -> None:
        shape = (self.width, self.outputs)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape[1:])

    def __call__(self, states: Array) -> Array:
        """`[H, …] -> [D, …]`."""
        return project(self.kernel, self.bias, states)
