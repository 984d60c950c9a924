"""Networks that forecast each row of a window from the rows before it.

    cnn_forecast    dilated causal convolutions over up to 31 rows (Bai et al., 2018)
    gru_forecast    a GRU over all rows of the window before (Cho et al., 2014)

They read rows in standard deviations from the mean of the training rows, at most 10, so
that a huge value doesn't cause a huge forecast. A window's first row is its own forecast.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.scaler import along
from kdjax.models.classifier import convolve
from kdjax.models.model import Params

FORECASTERS = ("cnn_forecast", "gru_forecast")
WIDTH, DILATIONS = 3, (1, 2, 4, 8)
LIMIT = 10.0  # standard deviations


def reconstruct(params: Params, windows: Array) -> Array:
    """Each row's forecast from the rows before, `[B, L, D] -> [B, L, D]`."""
    found = forecast(params["network"], standardised(params, windows[:, :-1]))
    later = along(params["mean"], found) + along(params["scale"], found) * found
    return jnp.concatenate([windows[:, :1], later], axis=1)


def forecast_errors(params: Params, windows: Array) -> Array:
    """|x_t − x'_t|, `[B, L, D] -> [B, L, D]`; the window's first row has 0."""
    errors = jnp.abs(windows - reconstruct(params, windows))
    return errors.at[:, 0].set(0)  # ∞ − ∞ would be NaN


def standardised(params: Params, windows: Array) -> Array:
    """Windows in standard deviations from the mean, in [−10, 10]."""
    mean, scale = along(params["mean"], windows), along(params["scale"], windows)
    return jnp.clip((windows - mean) / scale, -LIMIT, LIMIT)


def forecast(network: Params, rows: Array) -> Array:
    """The row after each of standardised rows, `[B, L, D] -> [B, L, D]`."""
    states = _gru_states if "recurrent" in network else _cnn_states
    return _dense(network, "head", states(network, rows))


def _cnn_states(network: Params, rows: Array) -> Array:
    states = rows
    for number, dilation in enumerate(DILATIONS):
        before = ((0, 0), ((WIDTH - 1) * dilation, 0), (0, 0))
        layer = convolve(jnp.pad(states, before), network[f"layer_{number}"], dilation)
        layer = jax.nn.relu(layer + along(network[f"layer_{number}_bias"], layer))
        states = states + layer if number else layer
    return states


def _gru_states(network: Params, rows: Array) -> Array:
    """h' = (1 − z) ⊙ n + z ⊙ h with n = tanh(W x + b + r ⊙ (U h + c))."""

    def step(hidden: Array, inputs: Array) -> tuple[Array, Array]:
        z, r, n = jnp.split(inputs, 3, axis=-1)
        gates = _dense(network, "recurrent", hidden)
        own_z, own_r, own_n = jnp.split(gates, 3, axis=-1)
        update, reset = jax.nn.sigmoid(z + own_z), jax.nn.sigmoid(r + own_r)
        hidden = (1 - update) * jnp.tanh(n + reset * own_n) + update * hidden
        return hidden, hidden

    inputs = jnp.swapaxes(_dense(network, "input", rows), 0, 1)
    start = jnp.zeros_like(inputs[0, :, : len(network["recurrent"])])
    states: Array = jax.lax.scan(step, start, inputs)[1]
    return jnp.swapaxes(states, 0, 1)


def _dense(network: Params, name: str, values: Array) -> Array:
    return values @ network[name] + along(network[f"{name}_bias"], values)


def init_forecaster(
    kind: str, rng: np.random.Generator, windows: Any, *, units: int = 24
) -> dict[str, Any]:
    """The parameters before training, for windows `[M, L, D]`."""
    width = windows.shape[-1]
    rows = np.asarray(windows, np.float64).reshape(-1, width)
    shapes: dict[str, tuple[int, ...]] = {"head": (units, width)}
    if kind == "cnn_forecast":
        for number in range(len(DILATIONS)):
            shapes[f"layer_{number}"] = (WIDTH, units if number else width, units)
    else:
        # The gates z, r and n side by side.
        shapes |= {"input": (width, 3 * units), "recurrent": (units, 3 * units)}
    network = {}
    for name, shape in shapes.items():
        kernel = rng.normal(0, np.sqrt(1 / np.prod(shape[:-1])), shape)
        network[name] = kernel.astype(np.float32)
        network[f"{name}_bias"] = np.zeros(shape[-1], np.float32)
    mean = rows.mean(axis=0)
    scale = np.where(np.ptp(rows, axis=0) > 0, rows.std(axis=0), 1)
    return {"mean": np.float32(mean), "scale": np.float32(scale), "network": network}
