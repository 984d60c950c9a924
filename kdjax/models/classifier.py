"""Small convolutional networks that tell disturbed windows from normal ones.

`kdjax.training.classifier` trains them. A window's score is −log p, with p the probability
of a normal window. Half of the networks see the values, the other half the values less
their mean over the window, which drifts of level don't touch.

    x [L, D] → a: 16 channels (8 where D > 40), width 5, ReLU
             → b: 16 channels, width 5, dilation 4, ReLU
             → mean and maximum over time of a and of b → 16 units, ReLU → 1
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.disturb import HIGHEST, LOWEST
from kdjax.models.model import Params

_WIDTH, _DILATION, _UNITS = 5, 4, 16
SHORTEST = (_WIDTH - 1) * (1 + _DILATION) + 1  # rows that both convolutions need


def classifier_scores(params: Params, windows: Array) -> Array:
    """−log p of a normal window, the mean over the networks, `[B, L, D] -> [B]`.

    Args:
        params: from `fit_classifier`.
        windows: scaled as those it learnt from, of as many channels; nothing missing.

    >>> params = {"low": np.zeros(2), "scale": np.ones(2), "level": np.zeros(1)}
    >>> network = init_network(np.random.default_rng(0), 2)
    >>> params["networks"] = {name: leaf[None] for name, leaf in network.items()}
    >>> classifier_scores(params, np.zeros((3, 24, 2), np.float32)).shape
    (3,)
    """
    values = in_ranges(params, jnp.asarray(windows))
    networks = jax.tree.map(jnp.asarray, params["networks"])
    logits = jax.vmap(logits_of, (0, 0, None))(
        networks, jnp.asarray(params["level"]), values
    )
    return jnp.mean(jax.nn.softplus(logits), axis=0)


def in_ranges(params: Mapping[str, Any], windows: Any) -> Array:
    """Windows in ranges of the training rows: mostly in [0, 1]."""
    return jnp.clip((windows - params["low"]) / params["scale"], LOWEST, HIGHEST)


def _convolve(values: Array, kernel: Array, dilation: int) -> Array:
    """`[B, L, I]` with a kernel `[W, I, O]`, without padding.

    As one product, which a CPU runs many times as fast as a convolution's gradient.
    """
    width = len(kernel)
    rows = values.shape[1] - (width - 1) * dilation
    taps = [values[:, i * dilation : i * dilation + rows] for i in range(width)]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def logits_of(params: Params, level: Array, values: Array) -> Array:
    """The network's output for values in ranges, `[B, L, D] -> [B]`; positive: disturbed."""
    middle = jnp.where(level > 0, values.mean(axis=1, keepdims=True), 0.5)
    first = jax.nn.relu(
        _convolve(2 * (values - middle), params["first"], 1) + params["first_bias"]
    )
    second = jax.nn.relu(
        _convolve(first, params["second"], _DILATION) + params["second_bias"]
    )
    pooled = [
        pool(part, axis=1) for part in (first, second) for pool in (jnp.mean, jnp.max)
    ]
    hidden = jax.nn.relu(
        jnp.concatenate(pooled, axis=-1) @ params["dense"] + params["dense_bias"]
    )
    logits: Array = (hidden @ params["head"] + params["head_bias"])[:, 0]
    return logits


def init_network(rng: np.random.Generator, width: int) -> dict[str, np.ndarray]:
    """He et al., 2015."""
    first = 8 if width > 40 else 16
    shapes = {
        "first": (_WIDTH, width, first),
        "second": (_WIDTH, first, _UNITS),
        "dense": (2 * (first + _UNITS), _UNITS),
        "head": (_UNITS, 1),
    }
    params = {}
    for name, shape in shapes.items():
        kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        params[name] = kernel.astype(np.float32)
        params[f"{name}_bias"] = np.zeros(shape[-1], np.float32)
    return params
