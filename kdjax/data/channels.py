"""Facts on channels that an engineer wants to know: dead ones, copies, ranges."""

from typing import NamedTuple

import numpy as np

# Above this |correlation| a channel is an affine map of another.
_COPY = 1 - 1e-6
# Two points always lie on a line.
_ENOUGH_ROWS = 3
# Rows whose products are summed at once.
_CHUNK = 65_536


class Ranges(NamedTuple):
    """Smallest and largest values of channels, NaN where a channel has no value.

    Attributes:
        low: `[D]` or, for entities, `[E + 1, D]` float32, in the units of the file.
        high: the same shape.
    """

    low: np.ndarray
    high: np.ndarray


def ranges_of(values: np.ndarray) -> Ranges:
    """The ranges of rows `[N, D]`; NaN is ignored.

    >>> ranges_of(np.array([[1.0, 5.0], [np.nan, 7.0]])).high
    array([1., 7.], dtype=float32)
    """
    values = np.asarray(values, np.float32)
    none = np.float32(np.nan)
    return Ranges(
        np.fmin.reduce(values, axis=0, initial=none),
        np.fmax.reduce(values, axis=0, initial=none),
    )


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


def dead_channels(values: np.ndarray, channels: tuple[str, ...]) -> list[str]:
    """The channels that never change in the rows `[N, D]`; NaN is ignored.

    >>> dead_channels(np.array([[1.0, 5.0], [2.0, np.nan]]), ("cpu", "mode"))
    ['mode']
    """
    return [channels[index] for index in np.flatnonzero(_dead(values))]


def duplicate_channels(
    values: np.ndarray, channels: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Channels that copy an earlier one up to an affine map, as (copy, original).

    Copies have |correlation| > 1 − 1e-6 with the first such channel over the rows of
    `[N, D]` that have both values, three at least. Dead channels are left out.

    >>> rows = np.array([[1.0, 5.0, 9.0], [2.0, 7.0, 8.0], [3.0, 9.0, 8.5]])
    >>> duplicate_channels(rows, ("a", "b", "c"))
    [('b', 'a')]
    """
    alive = np.flatnonzero(~_dead(values))
    if not len(alive):
        return []
    alike = np.abs(_correlation(values, alive)) > _COPY
    originals = np.argmax(alike, axis=1)  # The first that is alike, if any is.
    return [
        (channels[alive[later]], channels[alive[first]])
        for later, first in enumerate(originals)
        if first < later and alike[later, first]
    ]


def _dead(values: np.ndarray) -> np.ndarray:
    """Which channels have no two values that differ, `[N, D] -> [D]` bool."""
    low, high = ranges_of(values)
    dead: np.ndarray = ~(high > low)
    return dead


def _correlation(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Pearson correlations over the rows that have both values; 0 where there is none.

    `[N, D], [K] -> [K, K]` float64, from sums of the standardised columns.
    """
    shape = (len(columns), len(columns))
    centre, spread = _centre(values, columns)
    count, total, squares, products = (np.zeros(shape) for _ in range(4))
    for first in range(0, len(values), _CHUNK):
        rows = values[first : first + _CHUNK, columns].astype(np.float64)
        seen = (~np.isnan(rows)).astype(np.float64)
        rows = np.where(seen, (rows - centre) / spread, 0.0)
        count += seen.T @ seen
        total += rows.T @ seen
        squares += (rows * rows).T @ seen
        products += rows.T @ rows
    shared = np.maximum(count, 1)
    variance = np.maximum(squares - total * total / shared, 0)
    scale = np.sqrt(variance * variance.T)
    # A column can stand still where the other has values; rounding is no movement.
    known = (count >= _ENOUGH_ROWS) & (np.minimum(variance, variance.T) > 1e-9 * count)
    covariance = products - total * total.T / shared
    found: np.ndarray = np.divide(covariance, scale, out=np.zeros(shape), where=known)
    return found


def _centre(values: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and range of columns, so that sums of products keep their digits."""
    low, high = (side[columns].astype(np.float64) for side in ranges_of(values))
    mean = np.nanmean(values[:, columns], axis=0, dtype=np.float64)
    return np.asarray(mean), high - low
