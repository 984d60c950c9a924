"""Point scores a_t of errors (Eq. 1), and window scores of point scores."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.detection.normal import Normal


def point_scores(normal: Normal, errors: Array) -> Array:
    """a_t = ‖W(e_t − μ)‖², `[…, D] -> […]`: squared Mahalanobis distances (Eq. 1).

    Rows are finite when they come here, so a score that is no number stands for an
    overflow, as after a value of 1e30: it counts as infinite, never as normal.

    >>> normal = Normal(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    >>> point_scores(normal, jnp.array([[3.0, 4.0]]))
    Array([25.], dtype=float32)
    """
    whitened = jnp.matmul(
        errors - normal.mean, jnp.asarray(normal.whiten).T, precision="highest"
    )
    scores = jnp.sum(whitened**2, axis=-1)
    return jnp.where(jnp.isnan(scores), jnp.inf, scores)


def window_scores(points: np.ndarray, *, count: int) -> np.ndarray:
    """The (count + 1)-th largest point score of each window, `[M, L] -> [M]`.

    "More than `count` points of the window lie above τ" (paper, section 2.1) is the
    same as "this number lies above τ", so that τ can be chosen on it.

    >>> window_scores(np.array([[1.0, 5.0, 3.0]]), count=1)
    array([3.])
    """
    rank = points.shape[-1] - 1 - count
    return np.partition(points, rank, axis=-1)[..., rank]
