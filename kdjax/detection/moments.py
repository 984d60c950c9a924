"""Count, mean and scatter of errors, gathered in pieces and merged.

Chan, Golub and LeVeque, 1983, "Algorithms for Computing the Sample Variance": pieces
are centred before they are squared, in float64, so that neither a large mean nor the
number of rows costs digits. Merging in a fixed order gives the same bits each time, also
where several processes computed the pieces (`merge_shares`).
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kdjax import hosts
from kdjax.errors import DataError

# Pieces of each process that travel at once.
_AT_ONCE = 32


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


def merge_shares(own: Iterable[Moments], *, width: int) -> Moments:
    """Moments of the pieces of all processes, merged from the first to the last.

    All call it; each brings its share of the pieces, in their order (`hosts.share`).

    Args:
        own: of this process: piece i is process i mod n's.
        width: D.
    """
    merged, pieces = moments_of(np.empty((0, width))), iter(own)
    while True:
        some = list(itertools.islice(pieces, _AT_ONCE))
        shares = hosts.gather(_stacked(some, width))
        most = max(len(share.n) for share in shares)
        turns = itertools.product(range(most), shares)
        merged = merge_all(
            [merged, *(_nth(share, i) for i, share in turns if i < len(share.n))]
        )
        if most < _AT_ONCE:
            return merged


class _Stack(NamedTuple):
    """k moments: n `[k]`, mean `[k, D]`, scatter `[k, D, D]`."""

    n: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray


def _stacked(some: Sequence[Moments], width: int) -> _Stack:
    return _Stack(
        np.array([piece.n for piece in some], np.int64),
        np.reshape([piece.mean for piece in some], (-1, width)),
        np.reshape([piece.scatter for piece in some], (-1, width, width)),
    )


def _nth(stack: _Stack, i: int) -> Moments:
    return Moments(int(stack.n[i]), stack.mean[i], stack.scatter[i])
