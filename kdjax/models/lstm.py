"""The LSTM cell as a pure function, and a linen layer that scans it over time.

Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000; one bias
vector per layer, which is how Table 1 of the paper counts:

    i, f, o = σ(W x_t + R h_{t−1} + b)     (each gate its own quarter of W, R and b)
    g       = tanh(W x_t + R h_{t−1} + b)
    c_t     = f ⊙ c_{t−1} + i ⊙ g
    h_t     = o ⊙ tanh(c_t)

Arrays inside the network are time-major, `[L, B, …]`, so that the scan slices its
leading axis and no layer transposes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class Carry(NamedTuple):
    """What an LSTM remembers between two time steps."""

    cell: Array  # [B, H]
    hidden: Array  # [B, H]


def lstm_cell(recurrent_kernel: Array, carry: Carry, projected: Array) -> Carry:
    """The carry after one time step.

    Args:
        recurrent_kernel: R, `[H, 4H]`; quarters in the order i, f, g, o.
        carry: c and h of the step before, `[B, H]` each.
        projected: W x_t + b, `[B, 4H]`.
    """
    gates = projected + carry.hidden @ recurrent_kernel
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(f) * carry.cell + nn.sigmoid(i) * jnp.tanh(g)
    return Carry(cell, nn.sigmoid(o) * jnp.tanh(cell))


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

    def zero_carry(self, inputs: Array) -> Carry:
        """The state before the first step; `inputs` `[…, B, I]` gives B and dtype."""
        zeros = jnp.zeros((inputs.shape[-2], self.hidden), inputs.dtype)
        return Carry(zeros, zeros)

    def project(self, inputs: Array) -> Array:
        """W x + b, `[…, I] -> […, 4H]`."""
        return inputs @ self.input_kernel + self.bias

    def step(self, carry: Carry, inputs: Array) -> Carry:
        """One time step on inputs `[B, I]`."""
        return lstm_cell(self.recurrent_kernel, carry, self.project(inputs))

    def __call__(self, inputs: Array) -> tuple[Carry, Array]:
        """Last carry and all hidden states of inputs `[L, B, I] -> [L, B, H]`.

        The input's projection doesn't depend on the state: one product over all time
        steps outside the scan replaces L small ones inside.
        """
        recurrent_kernel = self.recurrent_kernel

        def step(carry: Carry, projected: Array) -> tuple[Carry, Array]:
            carry = lstm_cell(recurrent_kernel, carry, projected)
            return carry, carry.hidden

        return jax.lax.scan(step, self.zero_carry(inputs), self.project(inputs))

    def repeat(self, inputs: Array, length: int) -> Array:
        """All hidden states, `[L, B, H]`, under the same input `[B, I]` at each step."""
        recurrent_kernel = self.recurrent_kernel
        projected = self.project(inputs)

        def step(carry: Carry, _: None) -> tuple[Carry, Array]:
            carry = lstm_cell(recurrent_kernel, carry, projected)
            return carry, carry.hidden

        return jax.lax.scan(step, self.zero_carry(inputs), None, length=length)[1]
