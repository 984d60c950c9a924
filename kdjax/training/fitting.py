"""Training of small networks: all steps in one call, without validation.

A classifier (`kdjax.models.classifier`) is trained on normal windows only, to distinguish
them from disturbed copies, with binary cross-entropy. A forecaster
(`kdjax.models.forecasters`) is trained to forecast each row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from kdjax.data.disturb import disturb_windows
from kdjax.data.windowing import spread_evenly
from kdjax.errors import ConfigError, DataError
from kdjax.models.classifier import (
    CHANNELS,
    NETWORKS,
    SHORTEST,
    in_ranges,
    init_network,
    logits_of,
)
from kdjax.models.forecasters import forecast, init_forecaster, standardised
from kdjax.models.model import Params, Places

# Windows `[M, L, D]` and those of each step, `[steps, B]`.
Draws = tuple[Array, Array]
RATE = 3e-3
# For a classifier: most windows, most of their cells (4 bytes each), copies of each.
MOST, CELLS, COPIES = 1500, 25_000_000, 6
STEPS, BATCH = 1500, 128
GAPS = 0.5  # share of windows without a channel, where channels may be missing
FORECAST_BATCH = 32


def minimise(
    loss: Callable[..., Array], params: Params, *draws: Draws, rate: float
) -> Params:
    """Parameters after Adam on `loss(params, *batches)`, with a cosine from `rate` to 0.

    A step has one batch of each of `draws`. Call it under `jax.jit`.
    """
    tx = optax.adam(optax.cosine_decay_schedule(rate, len(draws[0][1])))
    windows, order = zip(*draws, strict=True)

    def step(state: Any, places: tuple[Array, ...]) -> Any:
        params, opt_state = state
        batches = [own[place] for own, place in zip(windows, places, strict=True)]
        slope = jax.grad(loss)(params, *batches)
        updates, opt_state = tx.update(slope, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), order)
    return trained


def fit_classifier(
    windows: np.ndarray,
    *,
    networks: int = NETWORKS,
    channels: int = CHANNELS,
    steps: int = STEPS,
    seed: int = 0,
    context: Places = (),
    teacher: Params | None = None,
    alpha: float = 0.5,
    missing: bool = False,
) -> dict[str, Any]:
    """Parameters of `classifier_scores`, from normal windows `[M, L, D]`.

    Args:
        windows: with any scale, none missing; of more than 1,500 an evenly spaced subset
            is used.
        networks: V, half of them for each view.
        channels: C, of their convolutions.
        steps: of Adam, 128 windows each.
        seed: of all random numbers.
        context: indices of channels that are read, but never disturbed.
        teacher: parameters of a classifier of the same channels on other machines, for
            few windows.
        alpha: share of the probability that the teacher's networks give to a disturbed
            window in a window's label (Hinton et al., 2015).
        missing: whether scored windows may lack a channel: then half of these do, so
            that its absence is no disturbance.

    Raises:
        ConfigError: `alpha` is not in [0, 1].
        DataError: too few rows, values that are not finite, or other channels.

    >>> rows = np.sin(np.arange(200.0))[:, None]
    >>> from kdjax import windows
    >>> params = fit_classifier(windows(rows, length=32), networks=2, steps=2)
    >>> params["level"]
    array([0., 1.], dtype=float32)
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha={alpha} must be in [0, 1]: it is the teacher's share."
        )
    if windows.shape[1] < SHORTEST:
        raise DataError(
            f"windows have {windows.shape[1]} rows: a classifier needs at least "
            f"{SHORTEST}."
        )
    if not np.isfinite(windows).all():
        raise DataError(
            "windows have missing or infinite values: fill them, or leave "
            "these windows out."
        )
    if teacher and teacher["networks"]["first"].shape[2] != windows.shape[2]:
        raise DataError(
            f"windows have {windows.shape[2]} channels, but the teacher has "
            f"{teacher['networks']['first'].shape[2]}: give the same channels."
        )
    chosen = spread_evenly(len(windows), most_windows(*windows.shape[1:]))
    low, high = windows.min(axis=(0, 1)), windows.max(axis=(0, 1))
    scale = np.where(high > low, high - low, 1)
    params: dict[str, Any] = {"low": low, "scale": scale}
    params = {name: values.astype(np.float32) for name, values in params.items()}
    clean = np.asarray(in_ranges(params, windows[chosen]))
    params["mean"] = clean.mean(axis=(0, 1))  # in ranges
    if missing:
        clean = _without_channels(params, clean, seed)
    disturbed = disturb_windows(clean, copies=COPIES, seed=seed, context=context)
    rng = np.random.default_rng(seed)
    level = np.arange(networks, dtype=np.float32) % 2
    number = BATCH // 3
    labels = _labels((clean, disturbed), teacher, alpha)
    trained = [
        _train(
            init_network(rng, windows.shape[-1], channels),
            view,
            (clean, rng.integers(len(clean), size=(steps, number))),
            (disturbed, rng.integers(len(disturbed), size=(steps, BATCH - number))),
            labels,
        )
        for view in level
    ]
    params["networks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *trained)
    return params | {"level": level}


def _without_channels(params: Params, clean: np.ndarray, seed: int) -> np.ndarray:
    """Windows in ranges, of which some have a moving channel as `fill_missing` leaves it."""
    rng, found = np.random.default_rng(seed), np.array(clean)
    moving = np.flatnonzero(np.ptp(clean, axis=(0, 1)) > 0)
    if len(moving) > 1:
        filled = np.asarray(in_ranges(params, jnp.zeros(clean.shape[-1])))
        some = np.flatnonzero(rng.random(len(clean)) < GAPS)
        channels = rng.choice(moving, len(some))
        found[some, :, channels] = filled[channels, None]
    return found


def most_windows(length: int, width: int, most: int = MOST) -> int:
    """Most windows `[L, D]` for training; fewer if they are huge."""
    return max(100, min(most, CELLS // (length * width)))


def _labels(
    parts: Sequence[np.ndarray], teacher: Params | None, alpha: float
) -> list[np.ndarray]:
    """Labels `[M]` of clean and of disturbed windows in ranges, softened by a teacher."""
    labels = [np.full(len(part), i, np.float32) for i, part in enumerate(parts)]
    if teacher is None:
        return labels
    networks = jax.tree.map(jnp.asarray, teacher["networks"])
    level = jnp.asarray(teacher["level"])

    def probability(window: Array) -> Array:
        logits = jax.vmap(logits_of, (0, 0, None))(networks, level, window[None])
        return jax.nn.sigmoid(logits).mean()

    soft = (jax.lax.map(probability, jnp.asarray(p), batch_size=BATCH) for p in parts)
    pairs = zip(labels, soft, strict=True)
    return [(1 - alpha) * hard + alpha * np.asarray(own) for hard, own in pairs]


@jax.jit
def _train(
    params: Params, level: Array, clean: Draws, disturbed: Draws, labels: list[Array]
) -> Params:
    """The trained network; each batch has clean windows and disturbed ones, labelled."""
    places = clean[1], disturbed[1]

    def loss(params: Params, clean: Array, disturbed: Array, *labels: Array) -> Array:
        logits = logits_of(params, level, jnp.concatenate([clean, disturbed]))
        wanted = jnp.concatenate(labels)
        return optax.sigmoid_binary_cross_entropy(logits, wanted).mean()

    soft = zip(labels, places, strict=True)
    return minimise(loss, params, clean, disturbed, *soft, rate=RATE)


def fit_forecaster(
    kind: str,
    windows: np.ndarray,
    *,
    units: int = 24,
    steps: int = 1000,
    seed: int = 0,
    context: Places = (),
) -> dict[str, Any]:
    """Parameters of a forecaster from scaled windows `[M, L, D]`, all values finite.

    The loss of a step is the mean square of the errors of 32 windows, in standard units,
    without the channels at the indices `context`.
    """
    rng = np.random.default_rng(seed)
    params = init_forecaster(kind, rng, windows, units=units)
    values = np.asarray(standardised(params, jnp.asarray(windows, jnp.float32)))
    places = rng.integers(len(values), size=(steps, FORECAST_BATCH))
    scored = np.delete(np.arange(values.shape[-1]), context)
    trained = _train_forecaster(params["network"], (values, places), scored)
    return params | {"network": jax.tree.map(np.asarray, trained)}


@jax.jit
def _train_forecaster(network: Params, draws: Draws, scored: Array) -> Params:
    def loss(network: Params, rows: Array) -> Array:
        errors = rows[:, 1:] - forecast(network, rows[:, :-1])
        return jnp.mean(errors[..., scored] ** 2)

    return minimise(loss, network, draws, rate=RATE)
