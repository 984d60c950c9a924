"""The LSTM cell as a pure function, and the linen modules of the networks.

Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000; one bias
vector per layer, which is how Table 1 of the paper counts:

    i, f, o = σ(W x_t + R h_{t−1} + b)     (each gate its own quarter of W, R and b)
    g       = tanh(W x_t + R h_{t−1} + b)
    c_t     = f ⊙ c_{t−1} + i ⊙ g
    h_t     = o ⊙ tanh(c_t)

Arrays inside the network are feature-major, `[F, L, B]` (see `kdjax.models._recurrence`).
"""

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
    """What an LSTM remembers between two time steps."""

    cell: Array  # [H, B]
    hidden: Array  # [H, B]


def lstm_cell(recurrent_kernel: Array, carry: Carry, projected: Array) -> Carry:
    """The carry after one time step.

    Args:
        recurrent_kernel: R, `[H, 4H]`; quarters in the order i, f, g, o.
        carry: c and h of the step before, `[H, B]` each.
        projected: W x_t + b, `[4H, B]`.
    """
    gates = projected + recurrent_kernel.T @ carry.hidden
    return Carry(*next_state(activate_gates(gates), carry.cell))


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Four orthogonal `[H, H]` matrices side by side, `[H, 4H]`, as Flax's cell has."""
    hidden = shape[0]
    initializer = nn.initializers.orthogonal()
    keys = jax.random.split(key, shape[1] // hidden)
    return jnp.concatenate(
        [initializer(key, (hidden, hidden), dtype) for key in keys], axis=1
    )


class LSTM(nn.Module):
    """One LSTM layer; its parameters are `input_kernel`, `recurrent_kernel`, `bias`.

    Attributes:
        width: I, size of the input vector.
        hidden: H, size of the state.
    """

    width: int
    hidden: int

    def setup(self) -> None:
        shape = (self.width, 4 * self.hidden)
        self.input_kernel = self.param(
            "input_kernel", nn.initializers.lecun_normal(), shape
        )
        self.recurrent_kernel = self.param(
            "recurrent_kernel", orthogonal_gates, (self.hidden, shape[1]), jnp.float32
        )
        self.bias = self.param("bias", nn.initializers.zeros, shape[1:])

    @property
    def kernels(self) -> Kernels:
        """The parameters as `kdjax.models._recurrence` takes them."""
        return Kernels(self.input_kernel, self.recurrent_kernel, self.bias)

    def step(self, carry: Carry, inputs: Array) -> Carry:
        """One time step on inputs `[I, B]`."""
        projected = project(self.input_kernel, self.bias, inputs)
        return lstm_cell(self.recurrent_kernel, carry, projected)

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
