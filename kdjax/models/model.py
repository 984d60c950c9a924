"""Models as functions of parameters and windows; windows with missing cells filled.

    model = kdjax.lstm_autoencoder(hidden=(16,))
    params = model.init(jax.random.key(0), windows)    # windows [M, L, D]
    reconstruction = model.apply(params, windows)      # [M, L, D]

A new architecture is a function that returns a `Model`; `init` and `apply` suffice for
training, distillation, calibration and scores.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

Params = Mapping[str, Any]
Places = tuple[int, ...]  # indices of channels


def identity(values: Array) -> Array:
    """The activation of a linear head: the values themselves."""
    return values


class Model(NamedTuple):
    """An architecture as functions; windows are `[B, L, D]`, scaled."""

    init: Callable[..., Params]  # `(key, windows) -> params`
    # The reconstruction X' [B, L, D].
    apply: Callable[[Params, Array], Array]
    # The code [B, H]; None without an encoder.
    encode: Callable[[Params, Array], Array] | None = None
    # `(params, windows, forced=False)`: the head's values [B, L, D] before `activate`;
    # `forced` gives a feedback decoder the window as input, as in training. None if `apply`
    # has no activation and no decoder to force.
    outputs: Callable[..., Array] | None = None
    activate: Callable[[Array], Array] = identity  # of the head
    # As `outputs`, with the code: ([B, L, D], [B, H]); None without one.
    coded: Callable[..., tuple[Array, Array]] | None = None
    # The residuals [B, L, D]; None for |x − x'|.
    residuals: Callable[[Params, Array], Array] | None = None


def head_outputs(
    model: Model, params: Params, windows: Array, *, forced: bool = False
) -> Array:
    """The head's values before their activation, `[B, L, D] -> [B, L, D]`."""
    if model.outputs is None:
        return model.apply(params, windows)
    return model.outputs(params, windows, forced)


def fill_missing(windows: Array) -> tuple[Array, Array]:
    """Windows `[B, L, D]` with their NaN cells filled, and which cells were observed.

    A missing cell takes the last value before it in the window, else the first after it,
    else 0. The rule uses the window only, so that batch, stream and exported file agree.
    Losses, moments and scores use observed cells only.

    >>> fill_missing(jnp.array([[[jnp.nan], [3.0], [jnp.nan]]]))[0][0, :, 0]
    Array([3., 3., 3.], dtype=float32)
    """
    observed = ~jnp.isnan(windows)
    forward = _carried(windows)
    both = jnp.flip(_carried(jnp.flip(forward, axis=1)), axis=1)
    return jnp.where(jnp.isnan(both), 0.0, both), observed


def _carried(values: Array) -> Array:
    """The nearest value at or before each step; NaN before the first value.

    Each round looks back twice as far as the one before, so that log2(L) rounds suffice.
    """
    reach = 1
    while reach < values.shape[1]:
        pads = ((0, 0), (reach, 0), (0, 0))
        earlier = jnp.pad(values[:, :-reach], pads, constant_values=jnp.nan)
        values = jnp.where(jnp.isnan(values), earlier, values)
        reach *= 2
    return values


def residuals(model: Model, params: Params, windows: Array) -> Array:
    """Residuals e of windows, `[B, L, D] -> [B, L, D]`: |x − x'| (Eq. 1).

    Args:
        model: such as `lstm_autoencoder(hidden=(16,))` or `baseline("pca")`.
        params: its parameters.
        windows: `[B, L, D]`, scaled.

    >>> half = Model(init=lambda key, x: {}, apply=lambda params, x: x / 2)
    >>> residuals(half, {}, jnp.array([[[2.0], [-4.0]]]))[0, :, 0]
    Array([1., 2.], dtype=float32)
    """
    windows = jnp.asarray(windows)
    if model.residuals is not None:
        return model.residuals(params, windows)
    return jnp.abs(windows - model.apply(params, windows))
