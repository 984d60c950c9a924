"""Losses of teacher and student (paper, section 3), as functions of arrays.

The teacher minimises MSE(X_T, X). The student minimises Eq. 2:

    L_S = (1 − α)·MSE(X_S, X) + α·MSE(X_S, X_T)

Eq. 2 leaves the temperature T out. Two readings of it (Hinton et al., 2015):

* `output`: the soft term is MSE(X_S / T, X_T / T), so its weight is α / T².
* `logit`: the soft term is MSE(σ(z_S / T), σ(z_T / T)) of the sigmoid heads' inputs z.

At T = 1 both are Eq. 2. The soft term can compare other targets:

* `errors`: |X − X_S| with the teacher's residuals.
* `hidden`: the student's code with the leading principal components of the teacher's
  (hints, after Romero et al., 2015).
* `scores`: the logarithm of the student's mean squared error at each row with the
  teacher's score there. Both are standardised over the batch, which leaves 2·(1 − ρ) of
  their Pearson correlation ρ (Huang et al., 2022, "Knowledge Distillation from a Stronger
  Teacher"), in units of the hard term.

Shapes: windows `[B, L, D]`, `weight` `[B]`, `observed` `[B, L, D]` bool. Each window
has the same weight, for any number of observed cells.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kdjax.errors import ConfigError, check_choice

TEMPERATURE_MODES = ("output", "logit")
# What a student can be distilled towards.
TARGETS = ("reconstruction", "errors", "hidden", "scores")

# Smaller mean squares of a row count as equal; data are scaled to about 1.
_FAINT = 1e-6


def squared_errors(
    prediction: ArrayLike, target: ArrayLike, observed: Array | None = None
) -> Array:
    """Mean squared error of each window over its observed cells, `[B, L, D] -> [B]`.

    >>> squared_errors(jnp.ones((2, 1, 1)), jnp.zeros((2, 1, 1)))
    Array([1., 1.], dtype=float32)
    """
    squares = (jnp.asarray(prediction) - jnp.asarray(target)) ** 2
    if observed is None:
        return jnp.mean(squares, axis=(1, 2))
    seen = jnp.sum(observed, axis=(1, 2))
    total = jnp.sum(jnp.where(observed, squares, 0.0), axis=(1, 2))
    return total / jnp.maximum(seen, 1)


def weighted_mean(values: Array, weight: ArrayLike | None = None) -> Array:
    """Mean over the windows, `[B] -> []`, with weights `[B]`; None: all count 1."""
    if weight is None:
        return jnp.mean(values)
    weight = jnp.asarray(weight)
    return jnp.sum(weight * values) / jnp.sum(weight)


def reconstruction_loss(
    reconstruction: ArrayLike,
    windows: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    observed: Array | None = None,
) -> Array:
    """MSE(X', X), the teacher's loss.

    Args:
        reconstruction: X', `[B, L, D]`.
        windows: X, `[B, L, D]`.
        weight: `[B]`, 0 for a window that only pads the batch.
        observed: False in cells that were missing and have been filled.

    >>> reconstruction_loss(jnp.ones((2, 1, 1)), jnp.zeros((2, 1, 1)))
    Array(1., dtype=float32)
    """
    return weighted_mean(squared_errors(reconstruction, windows, observed), weight)


def distillation_loss(
    reconstruction: Array,
    windows: Array,
    targets: Array,
    *,
    alpha: ArrayLike,
    temperature: ArrayLike = 1.0,
    temperature_mode: str = "output",
    target: str = "reconstruction",
    logits: Array | None = None,
    code: Array | None = None,
    weight: ArrayLike | None = None,
    observed: Array | None = None,
    recorded: Array | None = None,
) -> Array:
    """L_S of Eq. 2, the student's loss.

    L_S with `output` at T = 1 equals MSE(X_S, (1 − α)·X + α·X_T) plus a constant for the
    student.

    Args:
        reconstruction: X_S, `[B, L, D]`.
        windows: X, `[B, L, D]`.
        targets: of the teacher: X_T `[B, L, D]`; with `logit` its z_T; for the other
            targets its residuals `[B, L, D]`, codes `[B, K]` or scores `[B, L]`.
        alpha: α, weight of the teacher's term; may be traced.
        temperature: T; may be traced. No effect on `scores`.
        temperature_mode: `output` or `logit`.
        target: one of `TARGETS`.
        logits: z_S `[B, L, D]`, for `logit`.
        code: the student's code `[B, H]`, for `hidden`.
        weight: `[B]`, 0 for a window that only pads the batch.
        observed: False in cells that were missing and have been filled.
        recorded: `[B]`, 0 for augmented windows, where only the teacher's term counts.

    >>> x, x_t = jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 2.0)
    >>> distillation_loss(jnp.ones((1, 1, 1)), x, x_t, alpha=0.25, temperature=2.0)
    Array(0.8125, dtype=float32)
    """
    check_distillation(target, temperature_mode)
    hard = squared_errors(reconstruction, windows, observed)
    if target == "scores":
        counted = jnp.ones_like(hard) if weight is None else jnp.asarray(weight)
        squares = (reconstruction - windows) ** 2
        seen = jnp.ones_like(squares) if observed is None else observed
        cells = jnp.sum(seen, axis=2)
        means = jnp.sum(jnp.where(seen, squares, 0.0), axis=2) / jnp.maximum(cells, 1)
        known = counted[:, None] * (cells > 0)
        own = _standardised(jnp.log(means + _FAINT), known)
        gaps = jnp.where(known > 0, (own - _standardised(targets, known)) ** 2, 0.0)
        # Rows count the same, wherever they lie; windows without any as 0.
        share = jnp.sum(counted) / jnp.maximum(jnp.sum(known), 1)
        # The unit: mean hard term of recorded windows, which no gradient changes.
        counted = counted if recorded is None else counted * recorded
        unit = jnp.sum(counted * hard) / jnp.maximum(jnp.sum(counted), 1)
        soft = jax.lax.stop_gradient(unit) * share * jnp.sum(gaps, axis=1)
    elif target == "hidden":
        if code is None:
            raise ConfigError("target='hidden' needs the student's code.")
        own = code[:, : targets.shape[1]]
        soft = jnp.mean((own / temperature - targets / temperature) ** 2, axis=1)
    elif target == "errors":
        own = jnp.abs(windows / temperature - reconstruction / temperature)
        soft = squared_errors(own, targets / temperature, observed)
    elif temperature_mode == "logit":
        if logits is None:
            raise ConfigError("temperature_mode='logit' needs the student's logits.")
        own = jax.nn.sigmoid(logits / temperature)
        soft = squared_errors(own, jax.nn.sigmoid(targets / temperature), observed)
    else:
        own = reconstruction / temperature
        soft = squared_errors(own, targets / temperature, observed)
    mixed = jnp.asarray((1 - alpha) * hard + alpha * soft)
    if recorded is not None:
        mixed = jnp.where(recorded > 0, mixed, soft)
    return weighted_mean(mixed, weight)


def check_distillation(
    target: str, temperature_mode: str, targets: tuple[str, ...] = TARGETS
) -> None:
    """Raises ConfigError for a target or temperature mode that is unknown."""
    check_choice("target", target, targets)
    check_choice("temperature_mode", temperature_mode, TEMPERATURE_MODES)


def _standardised(values: Array, weight: Array) -> Array:
    """Values of mean 0 and deviation 1 over all rows, `[B, L]`; 0 if they are alike."""
    total = jnp.maximum(jnp.sum(weight), 1)
    values = values - jnp.sum(weight * values) / total
    variance = jnp.sum(weight * values**2) / total
    alike = variance < _FAINT
    # Not `where` around the quotient alone: its gradient would be NaN.
    return jnp.where(alike, 0.0, values) / jnp.sqrt(jnp.where(alike, 1.0, variance))
