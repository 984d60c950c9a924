"""Further kinds of detectors as short functions, for `benchmarks/kinds.py`.

    gru_forecast, cnn_forecast  those of kdjax, with other sizes, steps and rates
    lstm_forecast       an LSTM over the rows before (Malhotra et al., 2015)
    mingru_forecast     minGRU, an associative scan over the rows before (Feng et al., 2024)
    transformer         an encoder that reconstructs its window (Vaswani et al., 2017)
    tcn_autoencoder     causal convolutions around a code of every fourth row (Thill et al., 2021)
    fourier             least squares on sines and cosines of the time in the window
    patches             embeddings by triplet loss, distance to a memory bank (as PaAno)

and kdjax's own ones beside them. A kind is `fit(rows, options, seed) -> Scorer`; rows are
scaled, and nothing but a series' own prefix is seen. Networks predict the rows of a window,
and |row − prediction| is scored under kdjax's Gaussian, which the last 15 % of the rows
give. `patches`, `classifier` and `memory` learn from the same rows as the networks.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax import (
    baseline,
    fit_classifier,
    fit_gaussian,
    lstm_cell,
    point_scores,
    windows,
)
from kdjax.models.classifier import classifier_points, convolve
from kdjax.models.forecasters import forecast, init_forecaster, standardised
from kdjax.models.lstm import Carry
from kdjax.models.model import Params
from kdjax.training.fitting import STEPS, minimise

MOST = 1500  # windows that are learnt from
BATCH = 32
WIDE = 56  # channels that networks are trained with, so that they are compiled once
HELD = 0.15  # share of the prefix, its end, that gives the Gaussian
CHUNK = 256  # windows scored at once
HEADS = 2
POOLED = 4  # rows of a window that share a code
DILATIONS = (1, 2, 4, 8)
NEIGHBOURS = 3
MARGIN = 0.5  # of the triplet loss, in cosines

Options = Mapping[str, Any]


class Scorer(NamedTuple):
    """A model that was fitted."""

    points: Callable[[Array], Array]  # scaled windows [B, L, D] to scores [B, L]
    numbers: int  # that it stores
    length: int  # L, rows of a window


class Kind(NamedTuple):
    """How a kind is fitted, and the options that may be chosen."""

    fit: Callable[[np.ndarray, Options, int], Scorer]
    space: dict[str, tuple[Any, ...]]


# -- parts of all ------------------------------------------------------------------


def kernel(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers of a variance of 1 over the number of inputs."""
    found: np.ndarray = rng.normal(0, np.sqrt(1 / np.prod(shape[:-1])), shape)
    return found.astype(np.float32)


def layer(rng: np.random.Generator, *shape: int) -> dict[str, np.ndarray]:
    """A linear map that `linear` applies, or a kernel over time."""
    return {"kernel": kernel(rng, *shape), "bias": np.zeros(shape[-1], np.float32)}


def linear(params: Params, values: Array) -> Array:
    """`[…, I] -> […, O]`."""
    found: Array = values @ params["kernel"] + params["bias"]
    return found


def sampled(found: np.ndarray) -> np.ndarray:
    """`MOST` windows spread evenly, some repeated where there are fewer: one shape for all."""
    places = np.linspace(0, len(found) - 1, MOST).round().astype(int)
    return np.ascontiguousarray(found[places], np.float32)


def in_chunks(function: Callable[[Array], Array], found: np.ndarray) -> np.ndarray:
    """A function of windows `[B, L, D]`, in chunks of one shape; the last one is padded."""
    parts = []
    for first in range(0, len(found), CHUNK):
        part = np.asarray(found[first : first + CHUNK], np.float32)
        padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0), (0, 0)))
        parts.append(np.asarray(function(padded))[: len(part)])
    return np.concatenate(parts)


def widened(tree: Any, like: Any) -> Any:
    """Leaves with zeros at the end of their axes, as long as those of a wider tree.

    Channels that are 0 in and out add nothing to a loss, and their weights stay 0.
    """

    def wide(leaf: Any, other: Any) -> np.ndarray:
        missing = np.subtract(np.shape(other), np.shape(leaf))
        return np.pad(leaf, [(0, number) for number in missing])

    return jax.tree.map(wide, tree, like)


def narrowed(tree: Any, like: Any) -> Any:
    """Leaves without what `widened` added."""
    return jax.tree.map(
        lambda leaf, other: np.asarray(leaf)[tuple(map(slice, np.shape(other)))],
        tree,
        like,
    )


def with_channels(pool: Array) -> np.ndarray:
    """Windows `[M, L, D]` with channels of zeros up to `WIDE`."""
    return np.pad(pool, ((0, 0), (0, 0), (0, max(0, WIDE - pool.shape[-1]))))


def leaves(params: Any) -> int:
    """How many numbers a tree holds."""
    return sum(map(np.size, jax.tree.leaves(params)))


def parted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are learnt from, and those that give the Gaussian."""
    cut = len(rows) - int(HELD * len(rows))
    return rows[:cut], rows[cut:]


@functools.partial(jax.jit, static_argnums=0)
def residual_errors(predict: Callable[..., Array], params: Params, x: Array) -> Array:
    """|x − x'| of scaled windows, `[B, L, D] -> [B, L, D]`, by a network in standard units."""
    found = predict(params["network"], standardised(params, x))
    return jnp.abs(x - (params["mean"] + params["scale"] * found))


def residual_scorer(
    errors: Callable[..., Array], params: Params, held: np.ndarray, length: int
) -> Scorer:
    """The scorer of errors `(params, windows) -> [B, L, D]`."""
    own_errors = functools.partial(errors, params)
    gaussian = fit_gaussian(in_chunks(own_errors, windows(held, length=length)))
    width = held.shape[1]
    # And the offset and scale of the scaler, and a threshold.
    numbers = leaves(params) + 2 * width + leaves(gaussian) + 1
    return Scorer(lambda x: point_scores(gaussian, own_errors(x)), numbers, length)


# -- networks that predict the rows of a window -------------------------------------


class Network(NamedTuple):
    """A network as functions; windows are in standard units."""

    init: Callable[[np.random.Generator, int, Options], Params]  # of D channels
    predict: Callable[[Params, Array], Array]  # [B, L, D] -> [B, L, D]


@functools.partial(jax.jit, static_argnums=0)
def train(
    predict: Callable[..., Array],
    network: Params,
    pool: Array,
    kept: Array,
    order: Array,
    rate: Array,
) -> Params:
    """Adam on the mean square error of the predictions from windows with rows masked.

    `pool` has windows `[MOST, L, D]`, `kept` a mask `[MOST, L, 1]` for each, `order` the
    windows of each step `[steps, B]`.
    """

    def loss(network: Params, x: Array, kept: Array) -> Array:
        return jnp.mean((x - predict(network, x * kept)) ** 2)

    return minimise(loss, network, (pool, order), (kept, order), rate=rate)


def fit_network(kind: Network, rows: np.ndarray, options: Options, seed: int) -> Scorer:
    """A network's scorer. Options: `window`, `steps`, `rate`, `masked`, and the network's."""
    rng = np.random.default_rng(seed)
    learnt, held = parted(rows)
    length, width = options["window"], rows.shape[1]
    spread = np.where(np.ptp(learnt, axis=0) > 0, learnt.std(axis=0), 1)
    params = {"mean": np.float32(learnt.mean(axis=0)), "scale": np.float32(spread)}
    pool = standardised(params, jnp.asarray(sampled(windows(learnt, length=length))))
    kept = rng.random((MOST, length, 1)) >= options.get("masked", 0)
    order = rng.integers(MOST, size=(options["steps"], BATCH))
    start = kind.init(rng, width, options)
    pool = with_channels(pool)
    wide = kind.init(np.random.default_rng(0), pool.shape[-1], options)
    trained = train(
        kind.predict, widened(start, wide), pool, np.float32(kept), order,
        np.float32(options["rate"]),
    )  # fmt: skip
    params["network"] = narrowed(trained, start)
    errors = errors_by(kind.predict)
    return residual_scorer(errors, params, held, length)


@functools.cache
def errors_by(predict: Callable[..., Array]) -> Callable[..., Array]:
    """The errors of a network, one function for all that are alike, so that jit knows it."""
    return functools.partial(residual_errors, predict)


def next_rows(
    states: Callable[[Params, Array], Array],
) -> Callable[[Params, Array], Array]:
    """Predictions by a network that sees the rows before; the first row predicts itself."""

    def predict(network: Params, x: Array) -> Array:
        found = linear(network["head"], states(network, x[:, :-1]))
        return jnp.concatenate([x[:, :1], found], axis=1)

    return predict


def kdjax_predict(network: Params, x: Array) -> Array:
    """Forecasts by a network of `kdjax.models.forecasters`."""
    return jnp.concatenate([x[:, :1], forecast(network, x[:, :-1])], axis=1)


def kdjax_forecaster(kind: str) -> Network:
    """`cnn_forecast` or `gru_forecast`."""

    def init(rng: np.random.Generator, width: int, options: Options) -> Params:
        empty = np.zeros((1, 2, width))
        made: Params = init_forecaster(kind, rng, empty, units=options["units"])
        network: Params = made["network"]
        return network

    return Network(init, kdjax_predict)


def init_lstm(rng: np.random.Generator, width: int, options: Options) -> Params:
    """An LSTM with a bias of 1 in its forget gate, and its head."""
    units = options["units"]
    bias = np.zeros(4 * units, np.float32)
    bias[units : 2 * units] = 1
    return {
        "input_kernel": kernel(rng, width, 4 * units),
        "recurrent_kernel": kernel(rng, units, 4 * units),
        "bias": bias,
        "head": layer(rng, units, width),
    }


def lstm_states(network: Params, x: Array) -> Array:
    """Hidden states, `[B, L, D] -> [B, L, H]`."""
    zeros = jnp.zeros((len(x), len(network["recurrent_kernel"])))
    step = functools.partial(lstm_cell, network)
    states: Array = jax.lax.scan(step, Carry(zeros, zeros), jnp.swapaxes(x, 0, 1))[1]
    return jnp.swapaxes(states, 0, 1)


def init_mingru(rng: np.random.Generator, width: int, options: Options) -> Params:
    """Layers of minGRU, and the head."""
    units = options["units"]
    sizes = [width] + [units] * options["layers"]
    layers = [layer(rng, size, 2 * units) for size in sizes[:-1]]
    return {"layers": layers, "head": layer(rng, units, width)}


def mingru_states(network: Params, x: Array) -> Array:
    """h_t = (1 − z_t) ⊙ h_{t−1} + z_t ⊙ n_t, with z and n of the inputs alone."""
    for params in network["layers"]:
        gate, candidate = jnp.split(linear(params, x), 2, axis=-1)
        update = jax.nn.sigmoid(gate)
        x = linear_recurrence(1 - update, update * jnp.tanh(candidate))
    return x


def linear_recurrence(decay: Array, inputs: Array) -> Array:
    """h_t = a_t ⊙ h_{t−1} + b_t with h_0 = b_0, along the second axis of `[B, L, H]`."""

    def joined(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    states: Array = jax.lax.associative_scan(joined, (decay, inputs), axis=1)[1]
    return states


def init_transformer(rng: np.random.Generator, width: int, options: Options) -> Params:
    """Positions, blocks and the maps from and to the channels."""
    units = options["units"]
    blocks = [
        {
            "attention": layer(rng, units, 3 * units),
            "mixed": layer(rng, units, units),
            "wide": layer(rng, units, 2 * units),
            "narrow": layer(rng, 2 * units, units),
        }
        for _ in range(options["layers"])
    ]
    return {
        "embed": layer(rng, width, units),
        "positions": 0.1 * kernel(rng, 1, options["window"], units),
        "blocks": blocks,
        "head": layer(rng, units, width),
    }


def transformer(network: Params, x: Array) -> Array:
    """The window reconstructed from all of its rows."""
    states = linear(network["embed"], x) + network["positions"]
    for block in network["blocks"]:
        states = states + linear(block["mixed"], attention(block, norm(states)))
        wide = jax.nn.relu(linear(block["wide"], norm(states)))
        states = states + linear(block["narrow"], wide)
    return linear(network["head"], norm(states))


def attention(block: Params, states: Array) -> Array:
    """Each row's mean of the rows' values, weighted by query and key; `HEADS` of them."""
    batch, length, units = states.shape
    parts = linear(block["attention"], states)
    query, key, value = parts.reshape(batch, length, 3, HEADS, -1).swapaxes(0, 2)
    # [L, B, heads, units of a head] each.
    logits = jnp.einsum("qbhu,kbhu->bhqk", query, key) / np.sqrt(units // HEADS)
    found = jnp.einsum("bhqk,kbhu->bqhu", jax.nn.softmax(logits), value)
    return found.reshape(states.shape)


def norm(states: Array) -> Array:
    """Each row with mean 0 and variance 1."""
    return jax.nn.standardize(states, axis=-1)


def init_tcn(rng: np.random.Generator, width: int, options: Options) -> Params:
    """Two stacks of convolutions, and the maps to the code and to the channels."""
    units, code = options["units"], options["code"]

    def stack(inputs: int) -> list[Params]:
        sizes = [inputs] + [units] * len(DILATIONS)
        return [layer(rng, 3, size, units) for size in sizes[:-1]]

    return {
        "encoder": stack(width),
        "code": layer(rng, units, code),
        "decoder": stack(code),
        "head": layer(rng, units, width),
    }


def tcn_autoencoder(network: Params, x: Array) -> Array:
    """The window from the mean codes of each `POOLED` rows."""
    codes = linear(network["code"], causal(network["encoder"], x))
    batch, length, units = codes.shape
    means = codes.reshape(batch, length // POOLED, POOLED, units).mean(axis=2)
    states = causal(network["decoder"], jnp.repeat(means, POOLED, axis=1))
    return linear(network["head"], states)


def causal(stack: list[Params], x: Array) -> Array:
    """Convolutions over the rows before, each with twice the reach of the last."""
    for number, (params, dilation) in enumerate(zip(stack, DILATIONS, strict=True)):
        padded = jnp.pad(x, ((0, 0), (2 * dilation, 0), (0, 0)))
        found = convolve(padded, params["kernel"], dilation) + params["bias"]
        x = x + jax.nn.relu(found) if number else jax.nn.relu(found)
    return x


# -- kinds without gradient steps ----------------------------------------------------


def fourier_basis(length: int, options: Options) -> np.ndarray:
    """Orthonormal columns that span sines and cosines of time, `[L, K]` float32.

    Options: `harmonics`, how many; `span`, the longest period in windows; `constant`,
    whether the window's level is fitted too.
    """
    time = np.arange(length) / length
    angles = [
        2 * np.pi * k * time / options["span"]
        for k in range(1, options["harmonics"] + 1)
    ]
    columns = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    if options["constant"]:
        columns.append(np.ones(length))
    basis: np.ndarray = np.linalg.qr(np.stack(columns, axis=1))[0]
    return basis.astype(np.float32)


def fourier_predict(basis: Array, x: Array) -> Array:
    """The least-squares fit of each channel of each window."""
    found: Array = jnp.einsum("lk,mk,bmd->bld", basis, basis, x, precision="highest")
    return found


def fit_fourier(rows: np.ndarray, options: Options, seed: int) -> Scorer:
    """Residuals of the regression; rows are less their mean, so that no level is 0."""
    learnt, held = parted(rows)
    width = rows.shape[1]
    params = {
        "mean": np.float32(learnt.mean(axis=0)),
        "scale": np.ones(width, np.float32),
        "network": fourier_basis(options["window"], options),
    }
    return residual_scorer(errors_by(fourier_predict), params, held, options["window"])


def fit_baseline(name: str, rows: np.ndarray, options: Options, seed: int) -> Scorer:
    """A baseline of kdjax with residuals."""
    learnt, held = parted(rows)
    model = baseline(name)
    params = model.init(jax.random.key(0), windows(learnt, length=options["window"]))
    return residual_scorer(baseline_errors(name), params, held, options["window"])


@functools.cache
def baseline_errors(name: str) -> Callable[..., Array]:
    """Its errors, one function for all fits, so that jit knows it."""
    model = baseline(name)

    def errors(params: Params, x: Array) -> Array:
        if model.residuals is not None:
            return model.residuals(params, x)
        return jnp.abs(x - model.apply(params, x))

    return jax.jit(errors)


# -- kinds whose scores are no residuals ---------------------------------------------


def fit_classifier_kind(rows: np.ndarray, options: Options, seed: int) -> Scorer:
    """kdjax's classifier of disturbed windows, as `benchmarks/tsbad.py` fits it."""
    length = min(options["window"], len(rows) // 8)
    found = windows(rows, length=length)
    steps = options.get("steps", STEPS)
    params = fit_classifier(found, networks=options["networks"], steps=steps, seed=seed)
    points = functools.partial(jax.jit(classifier_points), params)
    return Scorer(points, leaves(params) + 2 * rows.shape[1] + 1, length)


def init_patches(rng: np.random.Generator, width: int, options: Options) -> Params:
    """Two convolutions, and a map of their means and maxima over time."""
    units = options["units"]
    return {
        "first": layer(rng, 5, width, units),
        "second": layer(rng, 5, units, units),
        "head": layer(rng, 2 * units, options["size"]),
    }


def embed(network: Params, x: Array) -> Array:
    """Embeddings of length 1, `[B, L, D] -> [B, E]`."""
    for name, dilation in (("first", 1), ("second", 2)):
        params = network[name]
        x = jax.nn.relu(convolve(x, params["kernel"], dilation) + params["bias"])
    pooled = jnp.concatenate([x.mean(axis=1), x.max(axis=1)], axis=-1)
    found = linear(network["head"], pooled)
    return found / jnp.sqrt(jnp.sum(found**2, axis=-1, keepdims=True) + 1e-9)


@jax.jit
def train_patches(network: Params, pool: Array, order: Array, rate: Array) -> Params:
    """Adam on the triplet loss; `order` has anchors, positives, negatives `[3, steps, B]`."""

    def loss(network: Params, *triplet: Array) -> Array:
        anchor, positive, negative = (embed(network, part) for part in triplet)
        gain = jnp.sum(anchor * (negative - positive), axis=-1)
        return jnp.mean(jax.nn.relu(gain + MARGIN))

    return minimise(loss, network, *((pool, part) for part in order), rate=rate)


@jax.jit
def patch_points(params: Params, level: Array, x: Array) -> Array:
    """Mean cosine distance to the nearest of the bank, the same in all rows of a window."""
    known = embed(params["network"], in_view(params, level, x)) @ params["bank"].T
    nearest = jax.lax.top_k(known, NEIGHBOURS)[0]
    return jnp.repeat(1 - nearest.mean(axis=1, keepdims=True), x.shape[1], axis=1)


def in_view(params: Params, level: Array, x: Array) -> Array:
    """Windows in standard units, less their mean where `level` is false."""
    found = standardised(params, x)
    return found - jnp.where(level, 0, found.mean(axis=1, keepdims=True))


def fit_patches(rows: np.ndarray, options: Options, seed: int) -> Scorer:
    """Options: `window`, `units`, `size` of an embedding, `bank`, `level`, `steps`, `rate`.

    A positive is up to an eighth of a window away, a negative is any window. PaAno's
    second loss and its choice of the bank by clusters are left out.
    """
    rng = np.random.default_rng(seed)
    length, width = options["window"], rows.shape[1]
    spread = np.where(np.ptp(rows, axis=0) > 0, rows.std(axis=0), 1)
    params = {"mean": np.float32(rows.mean(axis=0)), "scale": np.float32(spread)}
    found = windows(rows, length=length)
    pool = in_view(params, options["level"], jnp.asarray(sampled(found)))
    shape = (options["steps"], BATCH)
    anchors = rng.integers(len(found), size=shape)
    moves = rng.integers(1, length // 8 + 1, size=shape) * rng.choice([-1, 1], shape)
    positives = np.clip(anchors + moves, 0, len(found) - 1)
    starts = np.stack([anchors, positives, rng.integers(len(found), size=shape)])
    order = np.rint(starts * ((MOST - 1) / (len(found) - 1))).astype(int)
    start = init_patches(rng, width, options)
    wide = init_patches(np.random.default_rng(0), max(WIDE, width), options)
    trained = train_patches(
        widened(start, wide), with_channels(pool), order, np.float32(options["rate"])
    )
    params["network"] = narrowed(trained, start)
    bank = np.linspace(0, MOST - 1, options["bank"]).round().astype(int)
    params["bank"] = embed_all(params["network"], pool)[bank]
    numbers = leaves(params) + 2 * width + 1
    points = functools.partial(patch_points, params, np.bool_(options["level"]))
    return Scorer(points, numbers, length)


embed_all = jax.jit(embed)


# -- the list --------------------------------------------------------------------------

SIZES = {"window": (16, 32, 64), "units": (8, 32)}
RATES = {"rate": (1e-3, 3e-3, 1e-2, 3e-2)}
FEW_OR_MANY = {"steps": (300, 600)}
USUAL_STEPS = {"steps": (300,)}


def by_network(network: Network, **space: tuple[Any, ...]) -> Kind:
    """The kind of a network."""
    return Kind(functools.partial(fit_network, network), SIZES | RATES | space)


KINDS = {
    "gru_forecast": by_network(kdjax_forecaster("gru_forecast"), **FEW_OR_MANY),
    "cnn_forecast": by_network(kdjax_forecaster("cnn_forecast"), **FEW_OR_MANY),
    "lstm_forecast": by_network(Network(init_lstm, next_rows(lstm_states)), **FEW_OR_MANY),
    "mingru_forecast": by_network(
        Network(init_mingru, next_rows(mingru_states)), layers=(1, 2), **USUAL_STEPS
    ),
    "transformer": by_network(
        Network(init_transformer, transformer),
        layers=(1,), masked=(0.0, 0.2, 0.5), steps=(600,),
    ),
    "tcn_autoencoder": by_network(
        Network(init_tcn, tcn_autoencoder), code=(1, 4), **USUAL_STEPS
    ),
    "fourier": Kind(
        fit_fourier,
        {
            "window": SIZES["window"],
            "harmonics": (1, 2, 4, 7),
            "span": (1, 2),
            "constant": (False, True),
        },
    ),
    "patches": Kind(
        fit_patches,
        SIZES | RATES | USUAL_STEPS
        | {"size": (32,), "bank": (100, 1000), "level": (False, True)},
    ),
}  # fmt: skip

# kdjax's own, as they are.
OWN = {
    "mahalanobis": (functools.partial(fit_baseline, "mahalanobis"), {"window": 50}),
    "moving_average": (
        functools.partial(fit_baseline, "moving_average"),
        {"window": 50},
    ),
    "memory": (functools.partial(fit_baseline, "memory"), {"window": 50}),
    "classifier": (fit_classifier_kind, {"window": 96, "networks": 1}),
}
