"""Scores of residuals: a_t of each point (Eq. 1), of each window, of each row."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.scaler import along
from kdjax.data.windowing import add_scores, empty_sums, mean_of_sums
from kdjax.detection.gaussian import Gaussian

# Iterations of conjugate gradients for missing cells. As many as a row has missing cells
# are exact; with the ridge, this many are close.
ROUNDS = 50


def point_scores(
    gaussian: Gaussian, errors: Array, observed: Array | None = None
) -> Array:
    """a_t = ‖W(e_t − μ)‖², `[…, D] -> […]`: squared Mahalanobis distances (Eq. 1).

    A NaN from an overflow, as after a value of 1e30, counts as infinite.

    Args:
        gaussian: from `fit_gaussian`.
        errors: residuals e, `[…, D]`.
        observed: `[…, D]` bool; a_t is the distance of the observed channels only, and NaN
            in rows without an observed channel that counts. None: all are observed.

    >>> gaussian = Gaussian(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    >>> point_scores(gaussian, jnp.array([[3.0, 4.0]]))
    Array([25.], dtype=float32)
    """
    return scores_of(gaussian, deviations(gaussian, errors, observed), observed)


def deviations(
    gaussian: Gaussian, errors: Array, observed: Array | None = None
) -> Array:
    """e − μ, `[…, D]`; a missing channel has its most likely value given the others.

    That minimises ‖W d‖², to the squared Mahalanobis distance of the observed entries under
    their own marginal Gaussian. Conjugate gradients (Hestenes and Stiefel, 1952) on P = WᵀW,
    scaled to a diagonal of 1, restricted to the missing entries.
    """
    away = errors - along(gaussian.mean, errors)
    if observed is None:
        return away
    whiten = jnp.asarray(gaussian.whiten)
    precision = jnp.matmul(whiten.T, whiten, precision="highest")
    root = jnp.sqrt(jnp.diag(precision))
    root = jnp.where(root > 0, root, 1.0)  # 0 for a channel that is not scored
    scaled = precision / (root[:, None] * root[None])
    root = along(root, away)
    missing = ~observed
    known = jnp.where(missing, 0.0, away * root)

    def product(values: Array) -> Array:
        return jnp.where(missing, jnp.matmul(values, scaled, precision="highest"), 0.0)

    def round_(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        found, residual, direction, square = state
        image = product(direction)
        step = _ratio(square, jnp.sum(direction * image, axis=-1, keepdims=True))
        residual = residual - step * image
        smaller = jnp.sum(residual**2, axis=-1, keepdims=True)
        ahead = residual + _ratio(smaller, square) * direction
        return found + step * direction, residual, ahead, smaller

    residual = -product(known)
    square = jnp.sum(residual**2, axis=-1, keepdims=True)
    start = (jnp.zeros_like(known), residual, residual, square)
    rounds = min(ROUNDS, known.shape[-1])
    found: Array = jax.lax.fori_loop(0, rounds, round_, start)[0]
    return (known + found) / root


def scores_of(
    gaussian: Gaussian, deviations: Array, observed: Array | None = None
) -> Array:
    """‖W d‖² of deviations `[…, D] -> […]`; NaN where nothing was observed."""
    whitened = jnp.matmul(
        deviations, jnp.asarray(gaussian.whiten).T, precision="highest"
    )
    scores = jnp.sum(whitened**2, axis=-1)
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    if observed is None:
        return scores
    scored = along((jnp.asarray(gaussian.whiten) != 0).any(axis=0), observed)
    return jnp.where((observed & scored).any(axis=-1), scores, jnp.nan)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient; 0 once a row has converged."""
    safe = jnp.where(denominator > 0, denominator, 1.0)
    return jnp.where(denominator > 0, numerator / safe, 0.0)


def window_scores(points: Array | np.ndarray, *, count: int = 0) -> Any:
    """The (count + 1)-th largest point score of each window, `[M, L] -> [M]`.

    "More than `count` points of the window lie above τ" (paper, section 2.1) is the
    same as "this number lies above τ", so that τ can be chosen on it. Points without a
    score (NaN) are left out; NaN where at most `count` points have one.

    Args:
        points: a_t, `[M, L]`; a numpy array gives a numpy array, a JAX array a JAX array.
        count: points of a window that may lie above τ without an alarm.

    >>> window_scores(np.array([[1.0, 5.0, 3.0]]), count=1)
    array([3.])
    """
    rank = points.shape[-1] - 1 - count
    if isinstance(points, jax.Array):
        known = jnp.where(jnp.isnan(points), -jnp.inf, points)
        largest = jnp.sort(known, axis=-1)[..., rank]
        return jnp.where(jnp.isneginf(largest), jnp.nan, largest)
    unknown = np.isnan(points)
    if not unknown.any():
        return np.partition(points, rank, axis=-1)[..., rank]
    lowest = np.where(unknown, -np.inf, points)
    found = np.partition(lowest, rank, axis=-1)[..., rank]
    return np.where(np.isneginf(found), np.nan, found)


def row_scores(points: np.ndarray, *, starts: np.ndarray, rows: int) -> np.ndarray:
    """Mean a_t of each row over the windows that cover it, `[M, L] -> [N]` float64.

    Args:
        points: a_t, `[M, L]`.
        starts: first rows of the windows, `[M]`.
        rows: N.

    Returns:
        NaN in rows that no window covers; an infinite score stays infinite.

    >>> row_scores(np.array([[1.0, 2.0], [4.0, 8.0]]), starts=np.array([0, 1]), rows=4)
    array([ 1.,  3.,  8., nan])
    """
    sums = empty_sums(rows)
    add_scores(sums, np.asarray(points), np.asarray(starts))
    return mean_of_sums(sums)


def alarms(points: Array | np.ndarray, tau: float, *, count: int = 0) -> Any:
    """Whether more than `count` points of each window lie above τ, `[M, L] -> [M]` bool.

    Paper, section 2.1. A window without a score raises no alarm.

    >>> alarms(np.array([[1.0, 5.0, 3.0], [1.0, 1.0, 9.0]]), 2.0, count=1)
    array([ True, False])
    """
    return window_scores(points, count=count) > tau
