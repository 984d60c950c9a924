"""What teacher and student minimise (paper, section 3).

The teacher: MSE(X_T, X). The student, Eq. 2:

    L_S = (1 − α)·MSE(X_S, X) + α·MSE(X_S, X_T)

Eq. 2 leaves the temperature T out. Two readings of it (Hinton et al., 2015, soften a
network's outputs by T):

* `output`: the soft term is MSE(X_S / T, X_T / T), that is its weight is α / T².
* `logit`: the soft term is MSE(σ(z_S / T), σ(z_T / T)) of the sigmoid heads' inputs z.

At T = 1 both are Eq. 2.

The soft term may compare something else than X_S with X_T:

* `errors`: |X − X_S| with |X − X_T|.
* `hidden`: the student's code with the leading principal components of the teacher's
  (hints, after Romero et al., 2015).
* `scores`: the logarithm of the student's mean squared error at each row with the
  teacher's score there. Both are standardised over the batch, since calibration makes
  up for any offset and factor, which leaves 2·(1 − ρ) of their Pearson correlation ρ
  (Huang et al., 2022, "Knowledge Distillation from a Stronger Teacher"). In units of
  the hard term, so that α means the same.

Of windows that were disturbed on purpose only the soft term counts, with weight 1: their
data are nothing to learn. α and T may change evenly from the first step to the last.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kdjax.models.autoencoder import Network, Params

TEMPERATURE_MODES = ("output", "logit")

# Mean squares of a row below this are told apart no more: of data scaled to about 1.
_FAINT = 1e-6


class Batch(NamedTuple):
    """What one training step sees.

    Attributes:
        windows: X, `[B, L, D]`.
        weight: `[B]`, 1, or 0 for a window that only pads the batch.
        targets: what the teacher says: its head's outputs before their activation or
            its errors, `[B, L, D]`, its codes, `[B, K]`, or its scores, `[B, L]`. None
            for a teacher's own training.
        observed: `[B, L, D]` bool, False in cells that were missing and have been
            filled; None where all were there.
        sound: `[B]`, 1, or 0 for a window whose data were disturbed on purpose; None
            where none were.
        progress: share of the training's steps that are done; None where nothing
            depends on it.
    """

    windows: Array
    weight: Array
    targets: Array | None = None
    observed: Array | None = None
    recorded: Array | None = None
    progress: Array | None = None


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
    alpha_end: ArrayLike | None = None,
    temperature_end: ArrayLike | None = None,
) -> Objective:
    """L_S of Eq. 2; `batch.targets` holds what the teacher says.

    α and T may be traced. A plain α of 0 needs no targets.

    Args:
        network: the student.
        teacher: whose `activate` makes X_T of targets.
        alpha: α, at the first step.
        temperature: T, at the first step; of no effect on `scores`.
        temperature_mode: one of `TEMPERATURE_MODES`.
        target: one of `kdjax.training.targets.TARGETS`.
        alpha_end: α after the last step; None: the same throughout.
        temperature_end: T after the last step.
    """
    soft_loss = {
        "reconstruction": _logit_loss if temperature_mode == "logit" else _output_loss,
        "errors": _errors_loss,
        "hidden": _hidden_loss,
        "scores": _scores_loss,
    }[target]
    untaught = alpha_end is None and not isinstance(alpha, Array) and alpha == 0

    def objective(params: Params, batch: Batch) -> Array:
        answer = _answer(network, params, batch, coded=target == "hidden")
        hard = _squared_errors(answer.expected, batch.windows, batch)
        if untaught:
            return _mean(hard, batch)
        weight = _at(alpha, alpha_end, batch.progress)
        heat = _at(temperature, temperature_end, batch.progress)
        soft = soft_loss(answer, teacher, batch, heat, hard)
        distilled = jnp.asarray((1 - weight) * hard + weight * soft)
        if batch.recorded is not None:
            distilled = jnp.where(batch.recorded > 0, distilled, soft)
        return _mean(distilled, batch)

    return objective


class _Answer(NamedTuple):
    """What the student makes of a batch: head outputs, X_S, and its code, if asked."""

    outputs: Array
    expected: Array
    code: Array | None


def _answer(network: Network, params: Params, batch: Batch, *, coded: bool) -> _Answer:
    code = None
    if coded:
        assert network.coded is not None
        outputs, code = network.coded(params, batch.windows, forced=True)
    else:
        outputs = network.outputs(params, batch.windows, forced=True)
    return _Answer(outputs, network.activate(outputs), code)


def _at(start: ArrayLike, end: ArrayLike | None, progress: Array | None) -> ArrayLike:
    """A number that changes evenly from `start` to `end`."""
    if end is None:
        return start
    assert progress is not None
    change: Array = jnp.asarray(end) - start
    return start + change * progress


# Soft terms of each window, `[B]`.


def _output_loss(
    answer: _Answer, teacher: Network, batch: Batch, heat: ArrayLike, hard: Array
) -> Array:
    said = teacher.activate(_targets(batch)) / heat
    return _squared_errors(answer.expected / heat, said, batch)


def _logit_loss(
    answer: _Answer, teacher: Network, batch: Batch, heat: ArrayLike, hard: Array
) -> Array:
    own, said = (
        jax.nn.sigmoid(outputs / heat) for outputs in (answer.outputs, _targets(batch))
    )
    return _squared_errors(own, said, batch)


def _errors_loss(
    answer: _Answer, teacher: Network, batch: Batch, heat: ArrayLike, hard: Array
) -> Array:
    own = jnp.abs(batch.windows / heat - answer.expected / heat)
    return _squared_errors(own, _targets(batch) / heat, batch)


def _hidden_loss(
    answer: _Answer, teacher: Network, batch: Batch, heat: ArrayLike, hard: Array
) -> Array:
    assert answer.code is not None
    said = _targets(batch)
    own = answer.code[:, : said.shape[1]]
    return jnp.mean((own / heat - said / heat) ** 2, axis=1)


def _scores_loss(
    answer: _Answer, teacher: Network, batch: Batch, heat: ArrayLike, hard: Array
) -> Array:
    squares = (answer.expected - batch.windows) ** 2
    seen = jnp.ones_like(squares) if batch.observed is None else batch.observed
    counts = jnp.sum(seen, axis=2)
    means = jnp.sum(jnp.where(seen, squares, 0.0), axis=2) / jnp.maximum(counts, 1)
    known = batch.weight[:, None] * (counts > 0)
    own = _standardised(jnp.log(means + _FAINT), known)
    gaps = jnp.where(known > 0, (own - _standardised(_targets(batch), known)) ** 2, 0.0)
    # Rows count the same, wherever they lie; windows without any as 0.
    share = jnp.sum(batch.weight) / jnp.maximum(jnp.sum(known), 1)
    return _usual(hard, batch) * share * jnp.sum(gaps, axis=1)


def _standardised(values: Array, weight: Array) -> Array:
    """Values of mean 0 and deviation 1 over all rows, `[B, L]`; 0 if they are alike."""
    total = jnp.maximum(jnp.sum(weight), 1)
    values = values - jnp.sum(weight * values) / total
    variance = jnp.sum(weight * values**2) / total
    alike = variance < _FAINT
    # Not `where` around the quotient alone: its gradient would be no number.
    return jnp.where(alike, 0.0, values) / jnp.sqrt(jnp.where(alike, 1.0, variance))


def _usual(hard: Array, batch: Batch) -> Array:
    """The mean hard term of windows as they were recorded, which no gradient changes."""
    recorded = batch.weight if batch.recorded is None else batch.weight * batch.recorded
    mean = jnp.sum(recorded * hard) / jnp.maximum(jnp.sum(recorded), 1)
    return jax.lax.stop_gradient(mean)


def _targets(batch: Batch) -> Array:
    assert batch.targets is not None
    return batch.targets


def validation_loss(network: Network) -> Objective:
    """MSE(X', X) of the network as a detector runs it, feeding on its own outputs."""

    def loss(params: Params, batch: Batch) -> Array:
        outputs = network.outputs(params, batch.windows)
        return mean_squared_error(network.activate(outputs), batch.windows, batch)

    return loss
