"""Count, mean and scatter of errors, gathered in pieces and merged.

Chan, Golub and LeVeque, 1983, "Algorithms for Computing the Sample Variance": pieces
are centred before they are squared, in float64, so that neither a large mean nor the
number of rows costs digits. Merging in a fixed order gives the same bits each time.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kdjax.errors import DataError


class Moments(NamedTuple):
    """What a Normal needs to know of n error vectors.

    Attributes:
        n: their number.
        mean: μ, `[D]` float64.
        scatter: sum of (e − μ)(e − μ)ᵀ, `[D, D]` float64.
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Σ `[D, D]` by maximum likelihood: the scatter over n."""
        return self.scatter / self.n

    @property
    def deviation(self) -> np.ndarray:
        """σ `[D]`: the roots of Σ's diagonal."""
        return np.sqrt(np.diag(self.covariance))


def moments_of(errors: np.ndarray) -> Moments:
    """Moments of errors `[…, D]`; each leading position is one error vector.

    >>> moments_of(np.array([[1.0], [3.0]])).covariance
    array([[1.]])
    """
    rows = np.asarray(errors, np.float64).reshape(-1, errors.shape[-1])
    if not np.isfinite(rows).all():
        channel = int(np.argmax(~np.isfinite(rows).all(axis=0)))
        raise DataError(
            f"errors of channel {channel + 1} are not finite, so they have no mean. "
            "Look for huge values in the validation rows, or scale them "
            "(data.scaler)."
        )
    if len(rows) == 0:
        return Moments(0, np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2))
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of both pieces together."""
    n = first.n + second.n
    if n == 0:
        return first
    shift = second.mean - first.mean
    mean = first.mean + shift * (second.n / n)
    between = np.outer(shift, shift) * (first.n * second.n / n)
    return Moments(n, mean, first.scatter + second.scatter + between)


def merge_all(pieces: Iterable[Moments]) -> Moments:
    """Moments of all pieces, merged from the first to the last."""
    return functools.reduce(merge, pieces)
