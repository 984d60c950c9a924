"""Parameters of the controls that have some, from scaled fit rows or windows."""

import itertools
from collections.abc import Iterable

import numpy as np
from threadpoolctl import threadpool_limits

# Clusters of windows, as TSB-AD's KMeansAD has by default.
CENTRES = 20
ROUNDS = 50


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


def fit_kmeans(
    windows: np.ndarray, *, centres: int = CENTRES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Parameters of `kmeans` from scaled windows `[M, L, D]`.

    Fewer centres where fewer windows differ. Lloyd's algorithm from k-means++ (Arthur
    and Vassilvitskii, 2007), on one thread, since several would add up in another order
    each time.
    """
    from sklearn.cluster import KMeans

    flat = windows.reshape(len(windows), -1)
    different = len({row.tobytes() for row in flat})
    with threadpool_limits(1):
        found = KMeans(
            min(centres, different), n_init=1, max_iter=ROUNDS, random_state=seed
        ).fit(flat)
    shape = (-1, *windows.shape[1:])
    return {"centres": found.cluster_centers_.reshape(shape).astype(np.float32)}
