"""Windows with missing cells: filled for the model, and remembered as unobserved.

A missing cell takes the last value before it in the window, else the first after it,
else 0 (the middle or the bottom of the scaler's range): a rule that needs nothing but
the window, so that batch, stream and exported file agree. What the model makes of such
a cell counts nowhere: losses, moments and scores look at observed cells only.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Filled(NamedTuple):
    """Windows ready for a model.

    Attributes:
        windows: `[B, L, D]`, finite where the cells were.
        observed: `[B, L, D]` bool, False where a cell was NaN.
    """

    windows: Array
    observed: Array


def fill_missing(windows: Array) -> Filled:
    """Windows `[B, L, D]` with their NaN cells filled along time.

    >>> fill_missing(jnp.array([[[jnp.nan], [3.0], [jnp.nan]]])).windows[0, :, 0]
    Array([3., 3., 3.], dtype=float32)
    """
    observed = ~jnp.isnan(windows)
    forward = _carried(windows)
    both = jnp.flip(_carried(jnp.flip(forward, axis=1)), axis=1)
    return Filled(jnp.where(jnp.isnan(both), 0.0, both), observed)


def _carried(values: Array) -> Array:
    """The nearest value at or before each step: NaN only before the first one.

    Each round looks twice as far back as the one before, so that log2(L) rounds do.
    """
    length, reach = values.shape[1], 1
    while reach < length:
        earlier = jnp.pad(
            values[:, :-reach], ((0, 0), (reach, 0), (0, 0)), constant_values=jnp.nan
        )
        values = jnp.where(jnp.isnan(values), earlier, values)
        reach *= 2
    return values
