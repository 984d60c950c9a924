"""What teacher and student minimise (paper, section 3).

The teacher: MSE(X_T, X). The student, Eq. 2:

    L_S = (1 − α)·MSE(X_S, X) + α·MSE(X_S, X_T)

Eq. 2 leaves the temperature T out. Two readings of it (Hinton et al., 2015, soften a
network's outputs by T):

* `output`: the soft term is MSE(X_S / T, X_T / T), that is its weight is α / T².
* `logit`: the soft term is MSE(σ(z_S / T), σ(z_T / T)) of the sigmoid heads' inputs z.

At T = 1 both are Eq. 2.

With the target `errors` the soft term compares |X − X_S| with |X − X_T| instead of X_S
with X_T. Of windows that were disturbed on purpose only the soft term counts, with weight
1: their data are nothing to learn.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kdjax.models.autoencoder import Network, Params

TEMPERATURE_MODES = ("output", "logit")
TARGETS = ("reconstruction", "errors")


class Batch(NamedTuple):
    """What one training step sees.

    Attributes:
        windows: X, `[B, L, D]`.
        weight: `[B]`, 1, or 0 for a window that only pads the batch.
        targets: the teacher's head outputs before their activation, `[B, L, D]`; None
            for a teacher's own training.
        observed: `[B, L, D]` bool, False in cells that were missing and have been
            filled; None where all were there.
        sound: `[B]`, 1, or 0 for a window whose data were disturbed on purpose; None
            where none were.
    """

    windows: Array
    weight: Array
    targets: Array | None = None
    observed: Array | None = None
    sound: Array | None = None


Objective = Callable[[Params, Batch], Array]


def mean_squared_error(prediction: Array, target: Array, batch: Batch) -> Array:
    """Mean of squares `[B, L, D]` over the windows of weight 1 and their observed cells.

    Each window counts the same, however many of its cells were observed; one without
    any counts as 0.

    >>> mean_squared_error(jnp.ones((2, 1, 1)), 0.0, Batch(jnp.ones(2), jnp.ones(2)))
    Array(1., dtype=float32)
    """
    return _mean(_squared_errors(prediction, target, batch), batch)


def _squared_errors(prediction: Array, target: Array, batch: Batch) -> Array:
    """Mean of squares over each window's observed cells, `[B, L, D] -> [B]`."""
    squares = (prediction - target) ** 2
    if batch.observed is None:
        return jnp.mean(squares, axis=(1, 2))
    seen = jnp.sum(batch.observed, axis=(1, 2))
    total = jnp.sum(jnp.where(batch.observed, squares, 0.0), axis=(1, 2))
    return total / jnp.maximum(seen, 1)


def _mean(per_window: Array, batch: Batch) -> Array:
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
    target: str = "reconstruction",
) -> Objective:
    """L_S of Eq. 2; `batch.targets` holds the teacher's head outputs.

    α and T may be traced. A plain α of 0 needs no targets. `target` is one of `TARGETS`.
    """

    def objective(params: Params, batch: Batch) -> Array:
        outputs = network.outputs(params, batch.windows, forced=True)
        hard = _squared_errors(network.activate(outputs), batch.windows, batch)
        if not isinstance(alpha, Array) and alpha == 0:
            return _mean(hard, batch)
        assert batch.targets is not None
        if temperature_mode == "logit":
            student_soft = jax.nn.sigmoid(outputs / temperature)
            teacher_soft = jax.nn.sigmoid(batch.targets / temperature)
        else:
            student_soft = network.activate(outputs) / temperature
            teacher_soft = teacher.activate(batch.targets) / temperature
            if target == "errors":
                scaled = batch.windows / temperature
                student_soft = jnp.abs(scaled - student_soft)
                teacher_soft = jnp.abs(scaled - teacher_soft)
        soft = _squared_errors(student_soft, teacher_soft, batch)
        taught = jnp.asarray((1 - alpha) * hard + alpha * soft)
        if batch.sound is not None:
            taught = jnp.where(batch.sound > 0, taught, soft)
        return _mean(taught, batch)

    return objective


def validation_loss(network: Network) -> Objective:
    """MSE(X', X) of the network as a detector runs it, feeding on its own outputs."""

    def loss(params: Params, batch: Batch) -> Array:
        outputs = network.outputs(params, batch.windows)
        return mean_squared_error(network.activate(outputs), batch.windows, batch)

    return loss
