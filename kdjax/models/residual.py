"""Residual models by name: windows `[B, L, D]` to errors `[B, L, F]`.

One idea carries kdjax: whatever turns windows into errors can be calibrated, scored,
saved and compared in the same way. Networks reconstruct and give |x − x'| (e_t of
Eq. 1, F = D); so do the controls of `kdjax.models.controls`. A kind such as

    kmeans+difference+moving_average

joins several: their errors stand side by side, F = D · (number of parts), and one Normal
learns how they go together. A new detector is one function, or one such name, and a test.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.errors import ArtifactError
from kdjax.models.autoencoder import Architecture, Params, reconstruct
from kdjax.models.controls import CONTROLS

NETWORK = "autoencoder"
JOIN = "+"

Errors = Callable[[Params, Array], Array]


class ResidualModel(NamedTuple):
    """A residual model: which function, and its parameters.

    Attributes:
        kind: `autoencoder`, a control, or several joined by `+`.
        params: a pytree of arrays; empty for most controls. Of a joined kind: that of
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


def parts_of(kind: str) -> tuple[str, ...]:
    """The kinds that a kind joins; itself alone where it joins none.

    >>> parts_of("kmeans+difference")
    ('kmeans', 'difference')
    """
    return tuple(kind.split(JOIN))


def join(models: Sequence[ResidualModel]) -> ResidualModel:
    """One residual model of several different kinds, in their order."""
    if len(models) == 1:
        return models[0]
    shapes = [model.architecture for model in models if model.architecture]
    return ResidualModel(
        JOIN.join(model.kind for model in models),
        {model.kind: model.params for model in models},
        shapes[0] if shapes else None,
    )


def part(model: ResidualModel, kind: str) -> ResidualModel:
    """The part of a kind of a joined model, or the model itself."""
    if model.kind == kind:
        return model
    shape = model.architecture if kind == NETWORK else None
    return ResidualModel(kind, model.params.get(kind, {}), shape)


def error_names(kind: str, channels: Sequence[str]) -> tuple[str, ...]:
    """Names of the F errors of a kind, for messages.

    >>> error_names("difference", ["cpu"]), error_names("pca+difference", ["cpu"])
    (('cpu',), ('pca of cpu', 'difference of cpu'))
    """
    parts = parts_of(kind)
    if len(parts) == 1:
        return tuple(channels)
    return tuple(f"{name} of {channel}" for name in parts for channel in channels)


@functools.lru_cache
def errors_function(kind: str, architecture: Architecture | None = None) -> Errors:
    """The function `(params, windows [B, L, D]) -> errors [B, L, F]` of a kind."""
    parts = parts_of(kind)
    if len(parts) > 1:
        functions = {name: errors_function(name, architecture) for name in parts}

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
    if kind not in CONTROLS:
        raise ArtifactError(
            f"residual model {kind!r} is unknown: expected one of "
            f"{', '.join((NETWORK, *CONTROLS))}, or several joined by {JOIN}. A newer "
            "kdjax may have it."
        )
    return CONTROLS[kind]
