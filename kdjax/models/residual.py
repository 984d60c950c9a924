"""Residual models by name: windows `[B, L, D]` to errors `[B, L, F]`.

One idea carries kdjax: whatever turns windows into errors can be calibrated, scored,
saved and compared in the same way. Networks reconstruct and give |x − x'| (e_t of
Eq. 1, F = D); so do the baselines of `kdjax.models.baselines`. A kind such as

    kmeans+difference+moving_average

joins several: their errors stand side by side, F = D · (number of parts), and one Gaussian
learns how they go together. A new detector is one function, or one such name, and a test.

Residual models fitted to a data set without training, and joined with those that are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.prepared import Prepared, fit_rows, windows_source
from kdjax.data.windowing import has_missing
from kdjax.errors import ArtifactError
from kdjax.models.autoencoder import Architecture, Params, reconstruct
from kdjax.models.baselines import BASELINES, CENTRES, fit_kmeans, fit_pca
from kdjax.models.missing import fill_missing

NETWORK = "autoencoder"
JOINT = "+"

ResidualFunction = Callable[[Params, Array], Array]


class ResidualModel(NamedTuple):
    """A residual model: which function, and its parameters.

    Attributes:
        kind: `autoencoder`, a baseline, or several joined by `+`.
        params: a pytree of arrays; empty for most baselines. Of a joined kind: that of
            each part by its name.
        architecture: of the network, where there is one.
    """

    kind: str
    params: Params
    architecture: Architecture | None = None

    @property
    def parameters(self) -> int:
        """Number of numbers that were fitted."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))


def components_of(kind: str) -> tuple[str, ...]:
    """The kinds that a kind joins; itself alone where it joins none.

    >>> components_of("kmeans+difference")
    ('kmeans', 'difference')
    """
    return tuple(kind.split(JOINT))


def join_models(models: Sequence[ResidualModel]) -> ResidualModel:
    """One residual model of several different kinds, in their order."""
    if len(models) == 1:
        return models[0]
    shapes = [model.architecture for model in models if model.architecture]
    return ResidualModel(
        JOINT.join(model.kind for model in models),
        {model.kind: model.params for model in models},
        shapes[0] if shapes else None,
    )


def component(model: ResidualModel, kind: str) -> ResidualModel:
    """The part of a kind of a joined model, or the model itself."""
    if model.kind == kind:
        return model
    shape = model.architecture if kind == NETWORK else None
    return ResidualModel(kind, model.params.get(kind, {}), shape)


def residual_names(kind: str, channels: Sequence[str]) -> tuple[str, ...]:
    """Names of the F errors of a kind, for messages.

    >>> residual_names("difference", ["cpu"]), residual_names("pca+difference", ["cpu"])
    (('cpu',), ('pca of cpu', 'difference of cpu'))
    """
    parts = components_of(kind)
    if len(parts) == 1:
        return tuple(channels)
    return tuple(f"{name} of {channel}" for name in parts for channel in channels)


@functools.lru_cache
def residual_function(
    kind: str, architecture: Architecture | None = None
) -> ResidualFunction:
    """The function `(params, windows [B, L, D]) -> errors [B, L, F]` of a kind."""
    parts = components_of(kind)
    if len(parts) > 1:
        functions = {name: residual_function(name, architecture) for name in parts}

        def side_by_side(params: Params, windows: Array) -> Array:
            # Saved parameters have no entry for a part that has none.
            found = [f(params.get(name, {}), windows) for name, f in functions.items()]
            return jnp.concatenate(found, axis=-1)

        return side_by_side
    if kind == NETWORK:
        assert architecture is not None

        def errors(params: Params, windows: Array) -> Array:
            return jnp.abs(windows - reconstruct(architecture, params, windows))

        return errors
    if kind not in BASELINES:
        raise ArtifactError(
            f"residual model {kind!r} is unknown: expected one of "
            f"{', '.join((NETWORK, *BASELINES))}, or several joined by {JOINT}. A newer "
            "kdjax may have it."
        )
    return BASELINES[kind]


# Windows that are clustered, spread evenly over all that fit.
CLUSTERED = 2000

Fits = dict[str, ResidualModel]


def fit_baseline(kind: str, prepared: Prepared) -> ResidualModel:
    """A baseline of a kind, fitted once on the fit rows of all entities together."""
    fits = {
        "pca": lambda: fit_pca(fit_rows(prepared)),
        "kmeans": lambda: fit_kmeans(_fit_windows(prepared)),
    }
    return ResidualModel(kind, fits.get(kind, dict)())


def fit_components(
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
        fits: baselines that were fitted to these data before; new ones are put into it.
    """
    models = []
    for kind in kinds:
        if kind == NETWORK:
            assert network is not None
            models.append(network)
        else:
            if kind not in fits:
                fits[kind] = fit_baseline(kind, prepared)
            models.append(fits[kind])
    return join_models(models)


def _fit_windows(prepared: Prepared) -> np.ndarray:
    """At most `CLUSTERED` scaled fit windows, `[M, L, D]`, their gaps filled."""
    source = windows_source(prepared, "fit", stride=prepared.stride)
    number = min(CLUSTERED, source.windows)
    places = np.linspace(0, source.windows - 1, number).astype(np.int64)
    windows = source.read(places)
    if not has_missing(windows):
        return windows
    return np.asarray(fill_missing(jnp.asarray(windows)).windows)


def count_baseline(kind: str, *, window: int, width: int) -> int:
    """The most numbers that a baseline of a kind can have, for windows `[L, D]`."""
    most = {"pca": width * (1 + width), "kmeans": CENTRES * window * width}
    return most.get(kind, 0)
