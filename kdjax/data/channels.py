"""Facts on channels that an engineer wants to know: dead ones, copies, ranges."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Above this |correlation| a channel is an affine map of another.
_COPY = 1 - 1e-6
# Two points always lie on a line.
_ENOUGH_ROWS = 3
# Rows whose products are summed at once.
_CHUNK = 16_384

# Rows `[N, D]`, or pieces of them.
Rows = np.ndarray | Sequence[np.ndarray]


class Ranges(NamedTuple):
    """Smallest and largest values of channels, NaN where a channel has no value.

    Attributes:
        low: `[D]` or, for entities, `[E + 1, D]` float32, in the units of the file.
        high: the same shape.
    """

    low: np.ndarray
    high: np.ndarray


def ranges_of(values: Rows) -> Ranges:
    """The ranges of rows `[N, D]`, or of pieces of them; NaN is ignored.

    >>> ranges_of(np.array([[1.0, 5.0], [np.nan, 7.0]])).high
    array([1., 7.], dtype=float32)
    """
    none = np.float32(np.nan)
    own = [
        (
            np.fmin.reduce(piece, axis=0, initial=none),
            np.fmax.reduce(piece, axis=0, initial=none),
        )
        for piece in (np.asarray(one, np.float32) for one in _pieces(values))
    ]
    low, high = zip(*own, strict=True)
    return Ranges(np.fmin.reduce(low), np.fmax.reduce(high))


def outside(ranges: Ranges, values: np.ndarray) -> np.ndarray:
    """Which values lie outside the ranges `[D]`, `[N, D] -> [N, D]` bool.

    NaN is never outside. A channel without a range was never seen, so that each of its
    values is.

    >>> outside(ranges_of(np.array([[0.0], [1.0]])), np.array([[0.5], [2.0], [np.nan]]))
    array([[False],
           [ True],
           [False]])
    """
    values = np.asarray(values, np.float32)
    inside = (values >= ranges.low) & (values <= ranges.high)
    found: np.ndarray = ~inside & ~np.isnan(values)
    return found


def dead_channels(values: Rows, channels: tuple[str, ...]) -> list[str]:
    """The channels that never change in the rows `[N, D]`; NaN is ignored.

    >>> dead_channels(np.array([[1.0, 5.0], [2.0, np.nan]]), ("cpu", "mode"))
    ['mode']
    """
    return [channels[index] for index in np.flatnonzero(_dead(ranges_of(values)))]


def duplicate_channels(
    values: Rows, channels: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Channels that copy an earlier one up to an affine map, as (copy, original).

    Copies have |correlation| > 1 − 1e-6 with the first such channel over the rows of
    `[N, D]` that have both values, three at least. Dead channels are left out.

    >>> rows = np.array([[1.0, 5.0, 9.0], [2.0, 7.0, 8.0], [3.0, 9.0, 8.5]])
    >>> duplicate_channels(rows, ("a", "b", "c"))
    [('b', 'a')]
    """
    ranges = ranges_of(values)
    alive = np.flatnonzero(~_dead(ranges))
    if not len(alive):
        return []
    alike = np.abs(_correlation(values, alive, ranges)) > _COPY
    originals = np.argmax(alike, axis=1)  # The first that is alike, if any is.
    return [
        (channels[alive[later]], channels[alive[first]])
        for later, first in enumerate(originals)
        if first < later and alike[later, first]
    ]


def _dead(ranges: Ranges) -> np.ndarray:
    """Which channels have no two values that differ, `[D]` bool."""
    dead: np.ndarray = ~(ranges.high > ranges.low)
    return dead


def _correlation(values: Rows, columns: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Pearson correlations over the rows that have both values; 0 where there is none.

    `[N, D], [K] -> [K, K]` float64, from sums of the standardised columns.
    """
    shape = (len(columns), len(columns))
    low, high = (side[columns].astype(np.float64) for side in ranges)
    # The mean and the range, so that sums of products keep their digits.
    centre, spread = _mean(values, columns), high - low
    count, total, squares, products = (np.zeros(shape) for _ in range(4))
    for rows in _chunks(values, columns):
        rows = (rows - centre) / spread
        seen = ~np.isnan(rows)
        if seen.all():  # Then rows that have both values are all the rows.
            count += len(rows)
            total += rows.sum(axis=0)[:, None]
            squares += (rows * rows).sum(axis=0)[:, None]
        else:
            rows, known = np.where(seen, rows, 0.0), seen.astype(np.float64)
            count += known.T @ known
            total += rows.T @ known
            squares += (rows * rows).T @ known
        products += rows.T @ rows
    shared = np.maximum(count, 1)
    variance = np.maximum(squares - total * total / shared, 0)
    scale = np.sqrt(variance * variance.T)
    # A column can stand still where the other has values; rounding is no movement.
    moving = np.minimum(variance, variance.T) > 1e-9 * count
    covariance = products - total * total.T / shared
    found: np.ndarray = np.divide(
        covariance, scale, out=np.zeros(shape), where=moving & (count >= _ENOUGH_ROWS)
    )
    return found


def _mean(values: Rows, columns: np.ndarray) -> np.ndarray:
    """Mean of each column's values, `[K]` float64; each has one."""
    total, count = np.zeros(len(columns)), np.zeros(len(columns))
    for rows in _chunks(values, columns):
        total += np.nansum(rows, axis=0)
        count += (~np.isnan(rows)).sum(axis=0)
    mean: np.ndarray = total / count
    return mean


def _chunks(values: Rows, columns: np.ndarray) -> Iterator[np.ndarray]:
    """The columns in float64, some rows at a time."""
    for piece in _pieces(values):
        for first in range(0, len(piece), _CHUNK):
            yield piece[first : first + _CHUNK, columns].astype(np.float64)


def _pieces(values: Rows) -> Sequence[np.ndarray]:
    return [values] if isinstance(values, np.ndarray) else values
