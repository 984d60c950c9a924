"""Baselines: models that need no training or nearly none.

    mahalanobis     x                                    (Eq. 1 on the rows themselves)
    difference      |x_t − x_{t−1}|, 0 at the window's first row
    moving_average  |x_t − mean of the up to 60 rows that end at t|
    pca             |x − its projection on the leading components of the fit rows|
    kmeans          |x − the nearest of the fit windows' cluster centres|
    memory          |x − the mean of the 3 nearest fit windows|
    classifier      no residuals but scores, see `kdjax.models.classifier`
    cnn_forecast, gru_forecast
                    |x − a network's forecast|, see `kdjax.models.forecasters`
    random          uniform noise drawn from a hash of the window

A new baseline is an entry of `BASELINES`; `config.BASELINES` lists those that a run has
by default. An ONNX form is an entry in `kdjax.export.onnx`.
Functions take `(params, windows [B, L, D])` and return `[B, L, D]`.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from threadpoolctl import threadpool_limits

from kdjax.data.scaler import along
from kdjax.data.windowing import spread_evenly
from kdjax.errors import ConfigError
from kdjax.models import forecasters
from kdjax.models.classifier import classifier_contributions, classifier_points
from kdjax.models.model import Model, Params, Places

MOVING_AVERAGE_ROWS = 60


def difference(params: Params, windows: Array) -> Array:
    """|x_t − x_{t−1}|; the window's first row has no row before it and has 0."""
    # Not by `row_before`: in the first row ∞ − ∞ would be NaN.
    steps = jnp.abs(windows[:, 1:] - windows[:, :-1])
    return jnp.pad(steps, ((0, 0), (1, 0), (0, 0)))


def pca(params: Params, windows: Array) -> Array:
    """|x − its projection|; `params` has `mean` `[D]` and `components` `[K, D]`."""
    centred = windows - along(params["mean"], windows)
    return jnp.abs(centred - _projected(params, centred))


def random(params: Params, windows: Array) -> Array:
    """Uniform noise in [0, 1), the same for the same window, however windows are batched."""

    def draw(window: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(window, jnp.uint32).ravel()
        # Multiples of the golden ratio distinguish windows with the same values in
        # another order.
        places = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
        digest = jnp.sum(_mix(_mix(bits) ^ places), dtype=jnp.uint32)
        key = jax.random.fold_in(jax.random.key(0), digest)
        return jax.random.uniform(key, window.shape, window.dtype)

    return jax.vmap(draw)(windows.astype(jnp.float32))


def row_before(params: Params, windows: Array) -> Array:
    """Reconstruction of `difference`: the row before; of the first row itself."""
    return jnp.concatenate([windows[:, :1], windows[:, :-1]], axis=1)


def running_mean(params: Params, windows: Array) -> Array:
    """Reconstruction of `moving_average`: the mean of the up to 60 rows ending at t."""
    # Each sum adds its own rows. Differences of a running total would be cheaper, but
    # one huge value would corrupt all later means.
    sums = jax.lax.reduce_window(
        windows,
        jnp.zeros((), windows.dtype),
        jax.lax.add,
        window_dimensions=(1, MOVING_AVERAGE_ROWS, 1),
        window_strides=(1, 1, 1),
        padding=((0, 0), (MOVING_AVERAGE_ROWS - 1, 0), (0, 0)),
    )
    counts = jnp.minimum(jnp.arange(1, windows.shape[1] + 1), MOVING_AVERAGE_ROWS)
    return sums / counts[None, :, None].astype(windows.dtype)


def projection(params: Params, windows: Array) -> Array:
    """Reconstruction of `pca`."""
    mean = along(jnp.asarray(params["mean"]), windows)
    return mean + _projected(params, windows - mean)


def nearest_centre(params: Params, windows: Array) -> Array:
    """Reconstruction of `kmeans`: the centre closest to the whole window.

    `params` has `centres` `[K, L, D]`. Whole windows are clustered, as in TSB-AD's KMeansAD
    (after Yairi et al., 2001).
    """
    centres = jnp.asarray(params["centres"])
    return centres[jnp.argmin(_distances(windows, centres), axis=1)]


def nearest_windows(params: Params, windows: Array) -> Array:
    """Reconstruction of `memory`: the mean of the fit windows closest to the whole window.

    `params` has `windows` `[K, L, D]`. Distances to the k nearest neighbours are those of
    Ramaswamy et al., 2000.
    """
    known = jnp.asarray(params["windows"])
    count = min(NEIGHBOURS, len(known))
    nearest = jax.lax.top_k(-_distances(windows, known), count)[1]
    return jnp.mean(known[nearest], axis=1)


def _distances(windows: Array, known: Array) -> Array:
    """‖x − c‖² less a term that is equal for all c: `[B, L, D]`, `[K, L, D]` to `[B, K]`."""
    # A common offset would use up the digits in which the windows differ. It is that of one
    # of them: compilers round a mean differently in different places.
    offset = known[:1]
    around = known - offset
    products = jnp.einsum("bld,kld->bk", windows - offset, around, precision="highest")
    distances = jnp.sum(around**2, axis=(1, 2))[None] - 2 * products
    # NaN comes from an overflow.
    return jnp.where(jnp.isnan(distances), jnp.inf, distances)


def _projected(params: Params, centred: Array) -> Array:
    components = jnp.asarray(params["components"])
    codes = jnp.matmul(centred, components.T, precision="highest")
    return jnp.matmul(codes, components, precision="highest")


def _mix(bits: Array) -> Array:
    """Mixes the bits of each uint32 (the last step of Appleby's MurmurHash3).

    Round numbers such as 0 and 1 differ in their upper bits only, which a sum of
    multiples would mostly lose.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


# Clusters of windows, as TSB-AD's KMeansAD has by default.
CENTRES = 20
ROUNDS = 50
# Most windows that `memory` keeps, and number of windows in a mean.
KEPT = 1500
NEIGHBOURS = 3
_RANK = 1e-12  # variance, as a share of the largest, that may be rounding to float32


def fit_pca(
    rows: np.ndarray | Iterable[np.ndarray], *, variance: float = 0.95
) -> dict[str, np.ndarray]:
    """Parameters of `pca` from scaled fit rows `[N, D]`, keeping `variance` of 1.

    The components are fewer than the rank of the rows, so that residuals don't vanish:
    none for a single channel, whose projection is its mean. Rows may come in pieces; with
    more than one the components are those of their covariance, summed in float64.
    """
    pieces = iter([rows] if isinstance(rows, np.ndarray) else rows)
    first, second = next(pieces), next(pieces, None)
    if second is not None:
        mean, covariance = _covariance(itertools.chain([first, second], pieces))
        values, vectors = np.linalg.eigh(covariance)
        components = _leading(values[::-1], vectors.T[::-1], variance)
    else:
        from sklearn.decomposition import PCA

        whole = np.asarray(first, np.float64)
        mean, components = whole.mean(axis=0), np.zeros((1, whole.shape[1]))
        if whole.var(axis=0).any():  # else the projection is the mean
            found = PCA(svd_solver="full").fit(whole)
            components = _leading(
                found.explained_variance_, found.components_, variance
            )
    found = {"mean": mean, "components": components}
    return {name: values.astype(np.float32) for name, values in found.items()}


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


def _leading(values: np.ndarray, vectors: np.ndarray, variance: float) -> np.ndarray:
    """The components `[K, D]` of eigenvectors with descending eigenvalues.

    K as scikit-learn counts it, but below the rank: residuals of all would be rounding.
    """
    values = np.maximum(values, 0)
    rank = int((values > _RANK * values.max()).sum())
    if rank <= 1:
        return np.zeros((1, vectors.shape[1]))
    reached = np.cumsum(values / values.sum())
    wanted = int(np.searchsorted(reached, variance, side="right")) + 1
    return vectors[: min(wanted, rank - 1)]


def fit_kmeans(windows: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters of `kmeans` from scaled windows `[M, L, D]`, fewer centres if few differ.

    Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii, 2007), on one thread: the
    order of sums on several threads varies.
    """
    from sklearn.cluster import KMeans

    flat = windows.reshape(len(windows), -1)
    different = len({row.tobytes() for row in flat})
    with threadpool_limits(1):
        found = KMeans(
            min(CENTRES, different), n_init=1, max_iter=ROUNDS, random_state=seed
        ).fit(flat)
    found_centres = found.cluster_centers_.astype(np.float32)
    return {"centres": found_centres.reshape(-1, *windows.shape[1:])}


def fit_memory(windows: np.ndarray, *, most: int = KEPT) -> dict[str, np.ndarray]:
    """Parameters of `memory`: scaled windows `[M, L, D]`, or `most` of them spread evenly."""
    return {"windows": windows[spread_evenly(len(windows), most)].astype(np.float32)}


class Baseline(NamedTuple):
    """A baseline; functions are `(params, windows) -> [B, L, D]`, except `scores`."""

    # What a student can be distilled from; None without one.
    reconstruct: Callable[[Params, Array], Array] | None
    residuals: Callable[[Params, Array], Array] | None = None  # None for |x − x'|
    # Parameters from scaled fit rows in pieces [n, D], or from windows [M, L, D].
    fit_rows: Callable[[Iterable[np.ndarray]], Params] | None = None
    fit_windows: Callable[[np.ndarray], Params] | None = None
    # Most numbers of its parameters for windows [L, D].
    most: Callable[[int, int], int] = lambda length, width: 0
    # Scores `[B, L]` of one that needs no Gaussian, and the channels' shares `[B, L, D]`.
    scores: Callable[[Params, Array, Places], Array] | None = None
    contributions: Callable[[Params, Array, Places], Array] | None = None


BASELINES = {
    "classifier": Baseline(
        None, scores=classifier_points, contributions=classifier_contributions
    ),
    "cnn_forecast": Baseline(forecasters.reconstruct, forecasters.forecast_errors),
    "difference": Baseline(row_before, difference),
    "gru_forecast": Baseline(forecasters.reconstruct, forecasters.forecast_errors),
    "kmeans": Baseline(
        nearest_centre,
        fit_windows=fit_kmeans,
        most=lambda length, width: CENTRES * length * width,
    ),
    # Eq. 1 then is the Mahalanobis distance of raw rows.
    "mahalanobis": Baseline(
        lambda params, windows: jnp.zeros_like(windows), lambda params, windows: windows
    ),
    "memory": Baseline(
        nearest_windows,
        fit_windows=fit_memory,
        most=lambda length, width: KEPT * length * width,
    ),
    "moving_average": Baseline(running_mean),
    "pca": Baseline(
        projection,
        pca,
        fit_rows=fit_pca,
        most=lambda length, width: width * (1 + width),
    ),
    "random": Baseline(None, random),
}


def baseline(name: str) -> Model:
    """A baseline as a `Model`, whose `init` fits its parameters to windows.

    Args:
        name: one of `BASELINES`; `init` of a forecaster returns it untrained.

    >>> model = baseline("difference")
    >>> windows = np.array([[[1.0], [3.0]]], np.float32)
    >>> params = model.init(jax.random.key(0), windows)
    >>> model.residuals(params, windows)[0, :, 0]
    Array([0., 2.], dtype=float32)
    """
    if name not in BASELINES:
        raise ConfigError(
            f"baseline {name!r} is unknown: use one of {', '.join(BASELINES)}."
        )
    found = BASELINES[name]
    if found.scores is not None:
        raise ConfigError(
            f"baseline {name!r} gives scores, not residuals: use fit_classifier and "
            "classifier_scores."
        )

    def init(key: Array, windows: Any) -> Params:
        fit_x = np.asarray(windows)
        if name in forecasters.FORECASTERS:
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
            return forecasters.init_forecaster(name, rng, fit_x)
        if found.fit_rows is not None:
            return found.fit_rows([fit_x.reshape(-1, fit_x.shape[-1])])
        return found.fit_windows(fit_x) if found.fit_windows else {}

    def apply(params: Params, windows: Array) -> Array:
        if found.reconstruct is None:
            raise ConfigError(f"baseline {name!r} has no reconstruction.")
        return found.reconstruct(params, windows)

    return Model(init, apply, residuals=found.residuals)
