"""Training of small networks: all steps in one call, with nothing to validate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from kdjax.models.forecasters import forecast, init_forecaster, standardised
from kdjax.models.model import Params, Places

# Windows `[M, L, D]` and those of each step, `[steps, B]`.
Draws = tuple[Array, Array]
BATCH, RATE = 32, 3e-3  # of forecasters


def minimise(
    loss: Callable[..., Array], params: Params, *draws: Draws, rate: float
) -> Params:
    """Parameters after Adam on `loss(params, *batches)`, with a cosine from `rate` to 0.

    A step has a batch of each of `draws`. Call it under `jax.jit`.
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
    without the channels at the places `context`.
    """
    rng = np.random.default_rng(seed)
    params = init_forecaster(kind, rng, windows, units=units)
    values = np.asarray(standardised(params, jnp.asarray(windows, jnp.float32)))
    places = rng.integers(len(values), size=(steps, BATCH))
    scored = np.delete(np.arange(values.shape[-1]), context)
    trained = _train_forecaster(params["network"], (values, places), scored)
    return params | {"network": jax.tree.map(np.asarray, trained)}


@jax.jit
def _train_forecaster(network: Params, draws: Draws, scored: Array) -> Params:
    def loss(network: Params, rows: Array) -> Array:
        errors = rows[:, 1:] - forecast(network, rows[:, :-1])
        return jnp.mean(errors[..., scored] ** 2)

    return minimise(loss, network, draws, rate=RATE)
