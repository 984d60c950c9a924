"""Which channels an alarm is about: two splits of a_t (Eq. 1) into channels.

With the deviations d = e − μ, P = Σ⁻¹ = WᵀW, and Σ = S R S where S holds the standard
deviations and R is the correlation matrix, both splits are the squares (B d)ᵢ²:

    correlation   B = R^(−1/2) S⁻¹      BᵀB = P, so the squares sum to a_t
    conditional   B = diag(P)^(−1/2) P  what a_t would lose without channel i

The first is the correlation-maximising transformation of Garthwaite and Koch, 2016,
"Evaluating the Contributions of Individual Variables to a Quadratic Form": of all
whitened vectors, the one whose entries are closest to the standardised d, channel by
channel. The second asks what a channel adds to all others: it vanishes for two channels
that say the same, since either is told by the other.
"""

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from kdjax.detection.gaussian import Gaussian
from kdjax.errors import ConfigError

METHODS = ("correlation", "conditional")


def attribution_matrix(gaussian: Gaussian, *, method: str) -> np.ndarray:
    """B `[D, D]` float32 of one of the `METHODS`; see `contributions`.

    Computed in float64, once.

    >>> normal = Gaussian(np.zeros(2), np.array([[0.5, 0.0], [0.0, 2.0]]))
    >>> attribution_matrix(normal, method="conditional")
    array([[0.5, 0. ],
           [0. , 2. ]], dtype=float32)
    """
    check_attribution(method)
    whiten = np.asarray(gaussian.whiten, np.float64)
    matrix: np.ndarray
    if method == "correlation":
        deviation = error_deviations(gaussian)
        # (W S)ᵀ(W S) is the inverse of R, so its root is W S without a rotation.
        _, root = scipy.linalg.polar(whiten * deviation)
        matrix = root / deviation
    else:
        precision = whiten.T @ whiten
        matrix = precision / np.linalg.norm(whiten, axis=0)[:, None]
    return matrix.astype(np.float32)


def check_attribution(method: str) -> None:
    """Refuses what is none of the `METHODS`."""
    if method not in METHODS:
        raise ConfigError(
            f"detection.attribution={method!r} is unknown: use one of {', '.join(METHODS)}."
        )


def error_deviations(gaussian: Gaussian) -> np.ndarray:
    """The standard deviations `[D]` in Σ, float64: roots of the diagonal of (WᵀW)⁻¹.

    >>> error_deviations(Gaussian(np.zeros(2), np.array([[0.5, 0.0], [0.0, 2.0]])))
    array([2. , 0.5])
    """
    inverse = np.linalg.inv(np.asarray(gaussian.whiten, np.float64))
    deviations: np.ndarray = np.linalg.norm(inverse, axis=1)
    return deviations


def contributions(matrix: Array | np.ndarray, deviations: Array) -> Array:
    """(B d)ᵢ² of deviations d = e − μ, `[D, D], […, D] -> […, D]`; never negative.

    As in scores, what is no number stands for an overflow and counts as infinite.

    >>> contributions(np.eye(2, dtype=np.float32), jnp.array([[3.0, 4.0]]))
    Array([[ 9., 16.]], dtype=float32)
    """
    parts = jnp.matmul(deviations, jnp.asarray(matrix).T, precision="highest") ** 2
    return jnp.where(jnp.isnan(parts), jnp.inf, parts)
