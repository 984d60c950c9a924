"""Contributions of channels to a score: two ways to split a_t (Eq. 1).

With the deviations d = e − μ, P = Σ⁻¹ = WᵀW, and Σ = S R S where S holds the standard
deviations and R is the correlation matrix, both give the squares (B d)ᵢ²:

    correlation   B = R^(−1/2) S⁻¹      BᵀB = P, so the squares sum to a_t
    conditional   B = diag(P)^(−1/2) P  the decrease of a_t without channel i

The first is the correlation-maximising transformation of Garthwaite and Koch, 2016,
"Evaluating the Contributions of Individual Variables to a Quadratic Form": the whitened
vector closest to the standardised d, channel by channel. The second is near 0 for each
of two channels with the same content, since the other one remains.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from kdjax.data.scaler import along
from kdjax.detection.gaussian import Gaussian
from kdjax.errors import check_choice

METHODS = ("correlation", "conditional")


def contributions(
    gaussian: Gaussian, residuals: Array, *, method: str = "correlation"
) -> Array:
    """Contribution of each channel to a_t, `[…, D] -> […, D]`; never negative.

    Args:
        gaussian: of the residuals.
        residuals: e, `[…, D]`.
        method: one of `METHODS`; with `correlation` the contributions sum to a_t.

    >>> gaussian = Gaussian(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    >>> contributions(gaussian, jnp.array([[3.0, 4.0]]))
    Array([[ 9., 16.]], dtype=float32)
    """
    matrix: Any
    if isinstance(gaussian.whiten, jax.core.Tracer):
        check_attribution(method)
        polar = functools.partial(jax.scipy.linalg.polar, method="svd")
        matrix = _matrix(gaussian.whiten, method, jnp, polar)
    else:
        matrix = attribution_matrix(gaussian, method=method)
    return split_deviations(matrix, residuals - along(gaussian.mean, residuals))


def split_deviations(matrix: Array | np.ndarray, deviations: Array) -> Array:
    """(B d)ᵢ² of deviations d = e − μ, `[D, D], […, D] -> […, D]`.

    NaN comes from an overflow and counts as infinite, as in scores.
    """
    parts = jnp.matmul(deviations, jnp.asarray(matrix).T, precision="highest") ** 2
    return jnp.where(jnp.isnan(parts), jnp.inf, parts)


def attribution_matrix(gaussian: Gaussian, *, method: str) -> np.ndarray:
    """B `[D, D]` float32 of one of the `METHODS`, computed in float64.

    >>> gaussian = Gaussian(np.zeros(2), np.array([[0.5, 0.0], [0.0, 2.0]]))
    >>> attribution_matrix(gaussian, method="conditional")
    array([[0.5, 0. ],
           [0. , 2. ]], dtype=float32)
    """
    check_attribution(method)
    whiten = np.asarray(gaussian.whiten, np.float64)
    if not whiten.size:  # a model that returns scores itself
        return gaussian.whiten
    # Channels that were constant in training have zeros, as in W.
    scored = np.ix_(whiten.any(axis=0), whiten.any(axis=0))
    matrix = np.zeros(whiten.shape, np.float32)
    matrix[scored] = _matrix(whiten[scored], method, np, scipy.linalg.polar)
    return matrix


def check_attribution(method: str) -> None:
    """Raises ConfigError for a method not in `METHODS`."""
    check_choice("detection.attribution", method, METHODS)


def error_deviations(whiten: Any, xp: Any = np) -> Any:
    """The standard deviations `[D]` in Σ: roots of the diagonal of (WᵀW)⁻¹.

    >>> error_deviations(np.array([[0.5, 0.0], [0.0, 2.0]]))
    array([2. , 0.5])
    """
    return xp.linalg.norm(xp.linalg.inv(whiten), axis=1)


def _matrix(whiten: Any, method: str, xp: Any, polar: Callable[..., Any]) -> Any:
    """B, by numpy or by `jax.numpy`."""
    if method == "conditional":
        return whiten.T @ whiten / xp.linalg.norm(whiten, axis=0)[:, None]
    deviations = error_deviations(whiten, xp)
    # (W S)ᵀ(W S) is the inverse of R, so its root is W S without a rotation.
    _, root = polar(whiten * deviations[None])
    return root / deviations[None]
