"""What a teacher says of windows, in the form in which a student is to match it.

A student can learn from whatever expects something of a row, not only from networks:
`reconstructor` puts X_T of Eq. 2 in a network's place. `teaching` does so for the other
targets of distillation, and for several teachers with weights.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from kdjax.errors import ConfigError
from kdjax.models.autoencoder import Architecture, Network, Params, network
from kdjax.models.controls import RECONSTRUCTIONS
from kdjax.models.residual import NETWORK, Errors, errors_function, parts_of

# `scores` have no function here: any callable gives them.
TARGETS = ("reconstruction", "errors", "hidden", "scores")


@functools.lru_cache
def reconstructor(kind: str, architecture: Architecture | None = None) -> Network:
    """What a kind expects of windows, as a network without a head's activation.

    Of joined kinds it is what the first part expects.
    """
    first = parts_of(kind)[0]
    if first == NETWORK:
        assert architecture is not None
        return network(architecture)
    if first not in RECONSTRUCTIONS:
        raise ConfigError(
            f"{first!r} expects nothing of a row, so no student can learn from it: "
            f"name one of {', '.join((NETWORK, *RECONSTRUCTIONS))} first."
        )
    return _untrained(RECONSTRUCTIONS[first], first)


@functools.lru_cache
def teaching(
    kind: str,
    architecture: Architecture | None = None,
    *,
    target: str = "reconstruction",
    weights: tuple[float, ...] = (),
) -> Network:
    """What a kind says of windows for a target; its `activate` makes that X_T.

    Args:
        kind: of the teacher.
        architecture: of its network, where it has one.
        target: `reconstruction`, `errors` for |X − X_T|, or `hidden` for the code
            `[B, H]` of a network.
        weights: of each of the kind's parts; () for the first part alone, whose
            parameters then are the only ones. Σ wᵢ·MSE(y, yᵢ) and MSE(y, Σ wᵢ·yᵢ) with
            weights that sum to 1 differ by what no student can change, so several
            teachers say their weighted mean.
    """
    if target == "hidden":
        return _encoder(kind, architecture)
    if not weights:
        first = parts_of(kind)[0]
        if target == "errors":
            return _untrained(_absolute_errors(first, architecture), first)
        return reconstructor(first, architecture)
    functions = [
        _absolute_errors(name, architecture)
        if target == "errors"
        else _expectation(name, architecture)
        for name in parts_of(kind)
    ]
    return _untrained(_blend(parts_of(kind), functions, weights), kind)


def _encoder(kind: str, architecture: Architecture | None) -> Network:
    first = parts_of(kind)[0]
    if first != NETWORK or architecture is None:
        raise ConfigError(
            f"distill.target='hidden' compares what encoders make of a window, and "
            f"{first!r} has none: name {NETWORK} first in teacher.parts."
        )
    net = network(architecture)

    def codes(params: Params, windows: Array) -> Array:
        assert net.coded is not None
        return net.coded(params, windows)[1]

    return _untrained(codes, kind)


def _absolute_errors(kind: str, architecture: Architecture | None) -> Errors:
    function = errors_function(kind, architecture)

    def errors(params: Params, windows: Array) -> Array:
        return jnp.abs(function(params, windows))

    return errors


def _expectation(kind: str, architecture: Architecture | None) -> Errors:
    net = reconstructor(kind, architecture)

    def expected(params: Params, windows: Array) -> Array:
        return net.activate(net.outputs(params, windows))

    return expected


def _blend(
    kinds: Sequence[str], functions: Sequence[Errors], weights: tuple[float, ...]
) -> Errors:
    total = sum(weights)

    def blended(params: Params, windows: Array) -> Array:
        said = [
            weight / total * function(params.get(kind, {}), windows)
            for kind, function, weight in zip(kinds, functions, weights, strict=True)
            if weight
        ]
        return functools.reduce(jnp.add, said)

    return blended


def _untrained(function: Errors, kind: str) -> Network:
    """A function of parameters and windows in a network's place."""

    def outputs(params: Params, windows: Array, forced: bool = False) -> Array:
        return function(params, windows)

    def init(key: Array) -> Params:
        raise ConfigError(f"{kind!r} is fitted, not trained.")

    return Network(init, outputs, lambda values: values)
