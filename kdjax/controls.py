"""Residual models fitted to a data set without training, and joined with those that are."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from kdjax.data.prepared import Prepared, fit_rows, windows_source
from kdjax.data.windows import has_missing
from kdjax.models.fits import CENTRES, fit_kmeans, fit_pca
from kdjax.models.missing import fill_missing
from kdjax.models.residual import NETWORK, ResidualModel, join

# Windows that are clustered, spread evenly over all that fit.
CLUSTERED = 2000

Fits = dict[str, ResidualModel]


def fit_control(kind: str, prepared: Prepared) -> ResidualModel:
    """A control of a kind, fitted once on the fit rows of all entities together."""
    fits = {
        "pca": lambda: fit_pca(fit_rows(prepared)),
        "kmeans": lambda: fit_kmeans(_fit_windows(prepared)),
    }
    return ResidualModel(kind, fits.get(kind, dict)())


def fit_parts(
    kinds: Sequence[str],
    prepared: Prepared,
    network: ResidualModel | None,
    *,
    fits: Fits,
) -> ResidualModel:
    """The model that joins these kinds, with a network where one is named.

    Args:
        kinds: of its parts, in order.
        prepared: the data.
        network: a trained one; None where none is named.
        fits: controls that were fitted to these data before; new ones are put into it.
    """
    models = []
    for kind in kinds:
        if kind == NETWORK:
            assert network is not None
            models.append(network)
        else:
            if kind not in fits:
                fits[kind] = fit_control(kind, prepared)
            models.append(fits[kind])
    return join(models)


def _fit_windows(prepared: Prepared) -> np.ndarray:
    """At most `CLUSTERED` scaled fit windows, `[M, L, D]`, their gaps filled."""
    source = windows_source(prepared, "fit", stride=prepared.stride)
    number = min(CLUSTERED, source.windows)
    places = np.linspace(0, source.windows - 1, number).astype(np.int64)
    windows = source.read(places)
    if not has_missing(windows):
        return windows
    return np.asarray(fill_missing(jnp.asarray(windows)).windows)


def count_control(kind: str, *, window: int, width: int) -> int:
    """The most numbers that a control of a kind can have, for windows `[L, D]`."""
    most = {"pca": width * (1 + width), "kmeans": CENTRES * window * width}
    return most.get(kind, 0)
