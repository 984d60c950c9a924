"""Small convolutional networks that distinguish disturbed windows from normal ones.

`kdjax.training.fitting` trains them. A window's score is −log p, with p the probability
of a normal window. Half of the networks read the values, the other half the values less
their mean over the window, so that level drifts don't affect them.

    x [L, D] → a: C channels (C/2 where D > 40), width 5, ReLU
             → b: C channels, width 5, dilation 4 (less in windows under 21 rows), ReLU
             → mean and maximum over time of a and of b → 16 units, ReLU → 1
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.disturb import HIGHEST, LOWEST
from kdjax.models.model import Params, Places

NETWORKS, CHANNELS = 4, 16  # by default
_WIDTH, _UNITS = 5, 16
SHORTEST = 2 * (_WIDTH - 1) + 1  # rows that both convolutions need
# How far a channel that is held at its mean is also moved towards that of training, so
# that a shifted level counts.
DRAWN = 0.25
SLACK = 1e-5  # allowed rounding of a constant value, relative to it or to 1
FAINT = 0.01  # additional share of the score for each channel, far above rounding


def classifier_scores(params: Params, windows: Array) -> Array:
    """−log p of a normal window, the mean over the networks, `[B, L, D] -> [B]`.

    Args:
        params: from `fit_classifier`.
        windows: scaled as the training windows, with as many channels; none missing.

    >>> params = {"low": np.zeros(2), "scale": np.ones(2), "level": np.zeros(1)}
    >>> network = init_network(np.random.default_rng(0), 2)
    >>> params["networks"] = {name: leaf[None] for name, leaf in network.items()}
    >>> classifier_scores(params, np.zeros((3, 24, 2), np.float32)).shape
    (3,)
    """
    values = in_ranges(params, jnp.asarray(windows))
    networks = jax.tree.map(jnp.asarray, params["networks"])
    levels = jnp.asarray(params["level"])
    return _mean_score(jax.vmap(logits_of, (0, 0, None))(networks, levels, values))


def _mean_score(logits: Array) -> Array:
    """Scores `[B]` of the outputs `[V, B]` of V networks."""
    return jnp.mean(jax.nn.softplus(logits), axis=0)


def classifier_points(params: Params, windows: Array, context: Places = ()) -> Array:
    """Scores of the rows, `[B, L, D] -> [B, L]`: the window's score plus the row's excess.

    The excess is log(1 + e), e the sum over channels of how far values lie beyond the
    networks' limits, 4 ranges below or above those of training. So every value that is
    large enough alarms. Channels at the indices `context` have none.
    """
    scores = classifier_scores(params, windows)
    return scores[:, None] + _excess(params, windows, context).sum(axis=-1)


def _excess(params: Params, windows: Array, context: Places) -> Array:
    """The channels' shares in the excess, `[B, L, D]`."""
    ranges = (windows - params["low"]) / params["scale"]
    beyond = jnp.abs(ranges - jnp.clip(ranges, LOWEST, HIGHEST))
    beyond = beyond.at[..., np.array(context, int)].set(0)
    total = beyond.sum(axis=-1, keepdims=True)
    # A drifting channel must not dominate the networks' score: log, not the sum.
    finite = (total > 0) & (total < jnp.inf)
    return beyond * jnp.where(finite, jnp.log1p(total) / jnp.where(finite, total, 1), 1)


def classifier_contributions(
    params: Params, windows: Array, context: Places = ()
) -> Array:
    """Shares of the channels in the scores of the rows, `[B, L, D] -> [B, L, D]`.

    The share is how much the window's score falls if a channel is held at its mean over the
    window, moved a quarter of the way to its mean in training. A hundredth of the score is
    added, so that all channels are equal if it falls for none, and the channel's excess in
    the row. Shares sum to the row's score. Channels at the indices `context`, and constant
    ones that keep their value (`with_constants`), have 0.
    """
    values = in_ranges(params, jnp.asarray(windows))
    flat = values.mean(axis=1, keepdims=True)
    held = flat + DRAWN * (jnp.asarray(params["mean"]) - flat)
    networks = jax.tree.map(jnp.asarray, params["networks"])
    levels = jnp.asarray(params["level"])
    first = jax.vmap(_first_layer, (0, 0, None))(networks, levels, values)

    def scores(first: Array) -> Array:
        later = jax.vmap(_later_layers, (0, 0, None))
        return _mean_score(later(networks, first, values.shape[1]))

    def without(channel: Array) -> Array:
        own, mean, away = (
            jax.lax.dynamic_slice_in_dim(part, channel, 1, axis=2)
            for part in (values, flat, held)
        )

        # The layer is linear: the channel's term is computed separately.
        def moved(network: Params, relative: Array) -> Array:
            kernel = jax.lax.dynamic_slice_in_dim(network["first"], channel, 1, axis=1)
            step = jnp.where(relative > 0, mean, away) - own
            return convolve(2 * step, kernel, 1)

        return scores(first + jax.vmap(moved)(networks, levels))

    lower = jax.lax.map(without, jnp.arange(values.shape[-1])).T
    whole = scores(first)[:, None]
    falls = jnp.maximum(whole - lower, 0) + FAINT * whole
    falls = falls.at[..., np.array(context, int)].set(0)
    if "still" in params:
        away = jnp.abs(jnp.asarray(windows) - params["still"]).max(axis=1)
        falls = jnp.where(away > params["slack"], falls, 0)
    total = falls.sum(axis=1, keepdims=True)
    shares = whole * falls / jnp.where(total > 0, total, 1.0)
    return shares[:, None] + _excess(params, windows, context)


def with_constants(params: Params, values: np.ndarray) -> Params:
    """Parameters with the scaled values `[D]` of channels that were constant.

    NaN for channels that changed in training. A constant channel doesn't count in scores
    while it keeps its value.
    """
    moving = np.isnan(values)
    if moving.all():
        return params
    still = np.where(moving, 0, values)
    slack = np.where(moving, -1, SLACK * np.maximum(1, np.abs(still)))
    found = {"moving": moving, "still": still, "slack": slack}
    return {**params, **{name: own.astype(np.float32) for name, own in found.items()}}


def dilation_of(length: int) -> int:
    """Dilation of the second convolution in windows of so many rows: 4 from 21 on."""
    return min(4, (length - _WIDTH) // (_WIDTH - 1))


def in_ranges(params: Mapping[str, Any], windows: Any) -> Array:
    """Windows in ranges of the training rows: mostly in [0, 1]."""
    return jnp.clip((windows - params["low"]) / params["scale"], LOWEST, HIGHEST)


def convolve(values: Array, kernel: Array, dilation: int) -> Array:
    """`[B, L, I]` with a kernel `[W, I, O]`, without padding.

    As one product, whose gradient is many times as fast on a CPU as a convolution's.
    """
    width = len(kernel)
    rows = values.shape[1] - (width - 1) * dilation
    taps = [values[:, i * dilation : i * dilation + rows] for i in range(width)]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def logits_of(params: Params, level: Array, values: Array) -> Array:
    """The network's output for values in ranges, `[B, L, D] -> [B]`; positive: disturbed."""
    first = _first_layer(params, level, values)
    return _later_layers(params, first, values.shape[1])


def _first_layer(params: Params, level: Array, values: Array) -> Array:
    """The first convolution of values in ranges, `[B, L, D] -> [B, T, C]`."""
    middle = jnp.where(level > 0, values.mean(axis=1, keepdims=True), 0.5)
    return convolve(2 * (values - middle), params["first"], 1) + params["first_bias"]


def _later_layers(params: Params, first: Array, length: int) -> Array:
    """From the first convolution, of windows of L = `length` rows, `[B, T, C] -> [B]`."""
    first = jax.nn.relu(first)
    second = jax.nn.relu(
        convolve(first, params["second"], dilation_of(length)) + params["second_bias"]
    )
    pooled = [
        pool(part, axis=1) for part in (first, second) for pool in (jnp.mean, jnp.max)
    ]
    hidden = jax.nn.relu(
        jnp.concatenate(pooled, axis=-1) @ params["dense"] + params["dense_bias"]
    )
    return (hidden @ params["head"] + params["head_bias"])[:, 0]


def init_network(
    rng: np.random.Generator, width: int, channels: int = CHANNELS
) -> dict[str, np.ndarray]:
    """Initial parameters (He et al., 2015)."""
    first = max(1, channels // 2) if width > 40 else channels
    shapes = {
        "first": (_WIDTH, width, first),
        "second": (_WIDTH, first, channels),
        "dense": (2 * (first + channels), _UNITS),
        "head": (_UNITS, 1),
    }
    params = {}
    for name, shape in shapes.items():
        kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        params[name] = kernel.astype(np.float32)
        params[f"{name}_bias"] = np.zeros(shape[-1], np.float32)
    return params


def count_numbers(
    width: int, networks: int = NETWORKS, channels: int = CHANNELS
) -> int:
    """The number of parameters of a classifier of D = `width` channels."""
    one = init_network(np.random.default_rng(0), width, channels)
    leaves: int = sum(map(np.size, one.values()))
    return networks * (leaves + 1) + 3 * width
