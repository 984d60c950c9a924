"""What teacher and student minimise (paper, section 3).

The teacher: MSE(X_T, X). The student, Eq. 2:

    L_S = (1 − α)·MSE(X_S, X) + α·MSE(X_S, X_T)

Eq. 2 leaves the temperature T out. Two readings of it (Hinton et al., 2015, soften a
network's outputs by T):

* `output`: the soft term is MSE(X_S / T, X_T / T), that is its weight is α / T².
* `logit`: the soft term is MSE(σ(z_S / T), σ(z_T / T)) of the sigmoid heads' inputs z.

At T = 1 both are Eq. 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kdjax.models.autoencoder import Network, Params

TEMPERATURE_MODES = ("output", "logit")


class Batch(NamedTuple):
    """What one training step sees.

    Attributes:
        windows: X, `[B, L, D]`.
        weight: `[B]`, 1, or 0 for a window that only pads the batch.
        targets: the teacher's head outputs before their activation, `[B, L, D]`; None
            for a teacher's own training.
        observed: `[B, L, D]` bool, False in cells that were missing and have been
            filled; None where all were there.
    """

    windows: Array
    weight: Array
    targets: Array | None = None
    observed: Array | None = None


Objective = Callable[[Params, Batch], Array]


def mean_squared_error(prediction: Array, target: Array, batch: Batch) -> Array:
    """Mean of squares `[B, L, D]` over the windows of weight 1 and their observed cells.

    Each window counts the same, however many of its cells were observed; one without
    any counts as 0.

    >>> mean_squared_error(jnp.ones((2, 1, 1)), 0.0, Batch(jnp.ones(2), jnp.ones(2)))
    Array(1., dtype=float32)
    """
    squares = (prediction - target) ** 2
    if batch.observed is None:
        per_window = jnp.mean(squares, axis=(1, 2))
    else:
        seen = jnp.sum(batch.observed, axis=(1, 2))
        total = jnp.sum(jnp.where(batch.observed, squares, 0.0), axis=(1, 2))
        per_window = total / jnp.maximum(seen, 1)
    return jnp.sum(batch.weight * per_window) / jnp.sum(batch.weight)


def teacher_objective(network: Network) -> Objective:
    """MSE(X_T, X)."""

    def objective(params: Params, batch: Batch) -> Array:
        outputs = network.outputs(params, batch.windows, forced=True)
        return mean_squared_error(network.activate(outputs), batch.windows, batch)

    return objective


def student_objective(
    network: Network,
    teacher: Network,
    *,
    alpha: ArrayLike,
    temperature: ArrayLike,
    temperature_mode: str,
) -> Objective:
    """L_S of Eq. 2; `batch.targets` holds the teacher's head outputs.

    α and T may be traced. A plain α of 0 needs no targets.
    """

    def objective(params: Params, batch: Batch) -> Array:
        outputs = network.outputs(params, batch.windows, forced=True)
        hard = mean_squared_error(network.activate(outputs), batch.windows, batch)
        if not isinstance(alpha, Array) and alpha == 0:
            return hard
        assert batch.targets is not None
        if temperature_mode == "logit":
            student_soft = jax.nn.sigmoid(outputs / temperature)
            teacher_soft = jax.nn.sigmoid(batch.targets / temperature)
        else:
            student_soft = network.activate(outputs) / temperature
            teacher_soft = teacher.activate(batch.targets) / temperature
        soft = mean_squared_error(student_soft, teacher_soft, batch)
        return jnp.asarray((1 - alpha) * hard + alpha * soft)

    return objective


def validation_loss(network: Network) -> Objective:
    """MSE(X', X) of the network as a detector runs it, feeding on its own outputs."""

    def loss(params: Params, batch: Batch) -> Array:
        outputs = network.outputs(params, batch.windows)
        return mean_squared_error(network.activate(outputs), batch.windows, batch)

    return loss
