"""Residual models by name: windows `[B, L, D]` to errors `[B, L, D]`.

One idea carries kdjax: whatever turns windows into errors can be calibrated, scored,
saved and compared in the same way. Networks reconstruct and give |x − x'| (e_t of
Eq. 1); the controls are filters that need no training or nearly none:

    autoencoder     |x − x'|
    mahalanobis     x                                    (Eq. 1 on the rows themselves)
    difference      |x_t − x_{t−1}|, 0 at the window's first row
    moving_average  |x_t − mean of the up to 60 rows that end at t|
    pca             |x − its projection on the leading components of the fit rows|
    random          uniform noise drawn from a hash of the window

A new detector is one function here and a test.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.errors import ArtifactError
from kdjax.models.autoencoder import Architecture, Params, reconstruct

MOVING_AVERAGE_ROWS = 60

Errors = Callable[[Params, Array], Array]


class ResidualModel(NamedTuple):
    """A residual model: which function, and its parameters.

    Attributes:
        kind: `autoencoder` or one of the controls listed above.
        params: a pytree of arrays; empty for most controls.
        architecture: of the network, for `autoencoder` only.
    """

    kind: str
    params: Params
    architecture: Architecture | None = None

    @property
    def parameters(self) -> int:
        """Number of numbers that were fitted."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))


@functools.lru_cache
def errors_function(kind: str, architecture: Architecture | None = None) -> Errors:
    """The function `(params, windows [B, L, D]) -> errors [B, L, D]` of a kind."""
    if kind == "autoencoder":
        assert architecture is not None

        def errors(params: Params, windows: Array) -> Array:
            return jnp.abs(windows - reconstruct(architecture, params, windows))

        return errors
    if kind not in CONTROLS:
        raise ArtifactError(
            f"residual model {kind!r} is unknown: expected one of "
            f"{', '.join(('autoencoder', *CONTROLS))}. A newer kdjax may have it."
        )
    return CONTROLS[kind]


def mahalanobis(params: Params, windows: Array) -> Array:
    """The rows themselves: Eq. 1 then is the Mahalanobis distance of raw rows."""
    return windows


def difference(params: Params, windows: Array) -> Array:
    """|x_t − x_{t−1}|; the window's first row has no row before it and counts 0."""
    steps = jnp.abs(windows[:, 1:] - windows[:, :-1])
    return jnp.pad(steps, ((0, 0), (1, 0), (0, 0)))


def moving_average(params: Params, windows: Array) -> Array:
    """|x_t − mean of the up to 60 rows ending at and including t inside the window|."""
    length = windows.shape[1]
    # Each sum adds its own rows. Differences of a running total would be cheaper, but
    # one huge value would spoil all later means.
    sums = jax.lax.reduce_window(
        windows,
        jnp.zeros((), windows.dtype),
        jax.lax.add,
        window_dimensions=(1, MOVING_AVERAGE_ROWS, 1),
        window_strides=(1, 1, 1),
        padding=((0, 0), (MOVING_AVERAGE_ROWS - 1, 0), (0, 0)),
    )
    counts = jnp.minimum(jnp.arange(1, length + 1), MOVING_AVERAGE_ROWS)
    return jnp.abs(windows - sums / counts[:, None].astype(windows.dtype))


def pca(params: Params, windows: Array) -> Array:
    """|x − its projection|; `params` has `mean` `[D]` and `components` `[K, D]`."""
    centred = windows - params["mean"]
    codes = jnp.matmul(centred, params["components"].T, precision="highest")
    projected = jnp.matmul(codes, params["components"], precision="highest")
    return jnp.abs(centred - projected)


def random(params: Params, windows: Array) -> Array:
    """Uniform noise in [0, 1), the same for the same window.

    Drawn from a hash of the window, so that the control is a function like the others
    and its scores don't depend on how windows were batched.
    """

    def draw(window: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(window, jnp.uint32).ravel()
        # Multiples of the golden ratio tell apart windows that hold the same values in
        # another order.
        places = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
        digest = jnp.sum(_mix(_mix(bits) ^ places), dtype=jnp.uint32)
        key = jax.random.fold_in(jax.random.key(0), digest)
        return jax.random.uniform(key, window.shape, window.dtype)

    return jax.vmap(draw)(windows)


def _mix(bits: Array) -> Array:
    """Bits spread over all of each uint32 (the finish of Appleby's MurmurHash3).

    Round numbers such as 0 and 1 differ in their upper bits only, which a sum of
    multiples would mostly lose.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def fit_pca(
    rows: np.ndarray | Iterable[np.ndarray], *, variance: float = 0.95
) -> dict[str, np.ndarray]:
    """Parameters of `pca` from scaled fit rows `[N, D]`, keeping `variance` of 1.

    Rows may come in pieces; from more than one the components are those of their
    covariance, gathered in float64, so that no more than a piece is held.
    """
    pieces = iter([rows] if isinstance(rows, np.ndarray) else rows)
    first, second = next(pieces), next(pieces, None)
    if second is None:
        mean, components = _components(np.asarray(first, np.float64), variance)
    else:
        found = _covariance(itertools.chain([first, second], pieces))
        mean, components = _leading(*found, variance)
    return {
        "mean": mean.astype(np.float32),
        "components": components.astype(np.float32),
    }


def _components(rows: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]` and leading components `[K, D]` of rows."""
    from sklearn.decomposition import PCA

    if not rows.var(axis=0).any():
        # No variance to keep: the projection is the mean.
        return rows.mean(axis=0), np.zeros((1, rows.shape[1]))
    found = PCA(n_components=variance, svd_solver="full").fit(rows).components_
    return rows.mean(axis=0), found


def _covariance(pieces: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]` and covariance `[D, D]` of rows in pieces (Chan et al., 1983)."""
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for rows in pieces:
        if not len(rows):
            continue
        own = rows.mean(axis=0, dtype=np.float64)
        centred, shift = rows - own, own - mean
        share = len(rows) / (count + len(rows))
        mean = mean + shift * share
        between = np.outer(shift, shift) * (count * share)
        scatter = scatter + centred.T @ centred + between
        count += len(rows)
    return mean, scatter / count


def _leading(
    mean: np.ndarray, covariance: np.ndarray, variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and the components `[K, D]` of a covariance as scikit-learn counts K."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors.T[::-1]
    if not values.any():
        return mean, np.zeros((1, len(mean)))
    reached = np.cumsum(values / values.sum())
    return mean, vectors[: int(np.searchsorted(reached, variance, side="right")) + 1]


CONTROLS: dict[str, Errors] = {
    "difference": difference,
    "mahalanobis": mahalanobis,
    "moving_average": moving_average,
    "pca": pca,
    "random": random,
}
