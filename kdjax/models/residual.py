"""Residual models by name: windows `[B, L, D]` to residuals `[B, L, F]`.

Every function from windows to residuals can be calibrated, scored, saved, exported and
compared in the same way: a network (|x − x'|, e_t of Eq. 1, F = D), a baseline, or an
ensemble of both such as

    kmeans+difference+moving_average

whose residuals stand side by side, F = D · (number of components), under one Gaussian.
A kind that returns scores itself, such as `classifier`, has no residuals: F = 0.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.errors import ArtifactError
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.baselines import BASELINES, baseline
from kdjax.models.model import Params, Places, residuals

NETWORK = "autoencoder"
JOINT = "+"

ResidualFunction = Callable[[Params, Array], Array]


class ResidualModel(NamedTuple):
    """A residual model with its parameters."""

    kind: str  # `autoencoder`, a baseline, or several joined by `+`
    # A pytree of arrays, empty for most baselines; of an ensemble: those of each
    # component by its name.
    params: Params
    architecture: Architecture | None = None  # of the network, where there is one
    context: Places = ()  # indices of channels without scores; F counts the others

    @property
    def form(self) -> "ResidualModel":
        """The model without its parameters, which can be hashed."""
        return self._replace(params=None)  # type: ignore[arg-type]

    @property
    def parameters(self) -> int:
        """The number of fitted parameters."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))


def components_of(kind: str) -> tuple[str, ...]:
    """The components of a kind; the kind itself if it is not an ensemble.

    >>> components_of("kmeans+difference")
    ('kmeans', 'difference')
    """
    return tuple(kind.split(JOINT))


def join_models(models: Sequence[ResidualModel]) -> ResidualModel:
    """An ensemble of residual models of different kinds, in their order."""
    if len(models) == 1:
        return models[0]
    shapes = [model.architecture for model in models if model.architecture]
    return ResidualModel(
        JOINT.join(model.kind for model in models),
        {model.kind: model.params for model in models},
        shapes[0] if shapes else None,
        models[0].context,
    )


def component(model: ResidualModel, kind: str) -> ResidualModel:
    """The component of a kind of an ensemble, or the model itself."""
    if model.kind == kind:
        return model
    shape = model.architecture if kind == NETWORK else None
    return ResidualModel(kind, model.params.get(kind, {}), shape, model.context)


def gives_scores(kind: str) -> bool:
    """Whether a kind returns scores itself, without residuals and a Gaussian."""
    return kind in BASELINES and BASELINES[kind].scores is not None


def residual_names(kind: str, channels: Sequence[str]) -> tuple[str, ...]:
    """Names of the F residuals of a kind, for messages.

    >>> residual_names("difference", ["cpu"]), residual_names("pca+difference", ["cpu"])
    (('cpu',), ('pca of cpu', 'difference of cpu'))
    """
    kinds = components_of(kind)
    if gives_scores(kind):
        return ()
    if len(kinds) == 1:
        return tuple(channels)
    return tuple(f"{name} of {channel}" for name in kinds for channel in channels)


@functools.lru_cache
def residual_function(
    kind: str, architecture: Architecture | None = None
) -> ResidualFunction:
    """The function `(params, windows [B, L, D]) -> residuals [B, L, F]` of a kind."""
    kinds = components_of(kind)
    if len(kinds) > 1:
        functions = {name: residual_function(name, architecture) for name in kinds}

        def side_by_side(params: Params, windows: Array) -> Array:
            # Saved parameters have no entry for a component without parameters.
            found = [f(params.get(name, {}), windows) for name, f in functions.items()]
            return jnp.concatenate(found, axis=-1)

        return side_by_side
    if kind == NETWORK:
        assert architecture is not None
        return functools.partial(residuals, network(architecture))
    if kind not in BASELINES:
        raise ArtifactError(
            f"residual model {kind!r} is unknown: expected one of "
            f"{', '.join((NETWORK, *BASELINES))}, or several joined by {JOINT}. A newer "
            "kdjax may support it."
        )
    return functools.partial(residuals, baseline(kind))
