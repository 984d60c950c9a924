"""Series of one entity each, data sets of them, and properties of their channels.

Functions of channels take rows `[N, D]` or, for rows on disk, a list of chunks of them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.scaler import is_constant
from kdjax.data.times import TimeForm, format_times

_COPY = 1 - 1e-6  # above this |correlation| a channel is an affine map of another
_ENOUGH_ROWS = 3  # two points always lie on a line
_ENOUGH_STEPS = 10
_CHUNK = 16_384  # rows whose products are summed at once

Rows = np.ndarray | Sequence[np.ndarray]


class Series(NamedTuple):
    """One entity's rows in time order.

    Attributes:
        entity: name of the machine, service or channel recorded.
        values: `[N, D]` in the units of the file, float32, or float64 where a channel
            needs it (`needs_float64`); NaN where a value is missing (not with
            `missing="error"`), never infinite.
        channels: the D channel names.
        time: `[N]` datetime64[ns] (in UTC if `form` has a zone) or numbers, strictly
            increasing; None without a time column: rows are then one step apart.
        labels: `[N]` bool, True in anomalous rows; None without labels.
        excluded: `[S, 2]` spans of rows that are not used, such as maintenance; None for
            none.
        notes: changes of the rows while reading, such as how many were sorted or filled.
        form: how results write the times.
        time_column: name of the column that `time` comes from; empty if unknown.
    """

    entity: str
    values: np.ndarray
    channels: tuple[str, ...]
    time: np.ndarray | None = None
    labels: np.ndarray | None = None
    excluded: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    form: TimeForm = TimeForm()
    time_column: str = ""

    def frame(self) -> pd.DataFrame:
        """The values `[N, D]` under their channels' names, by time if there is one."""
        index = None if self.time is None else format_times(self.time, self.form)
        return pd.DataFrame(self.values, index, [*self.channels])


class Dataset(NamedTuple):
    """Train and test series of one data set.

    `test` has the entities of `train` in the same order, or is empty.
    """

    name: str
    train: tuple[Series, ...]
    test: tuple[Series, ...]


class Ranges(NamedTuple):
    """Smallest and largest values of channels, NaN for a channel without values.

    Attributes:
        low: `[D]` or, for entities, `[E + 1, D]`, in the units of the file.
        high: the same shape.
    """

    low: np.ndarray
    high: np.ndarray


def ranges_of(values: Rows) -> Ranges:
    """The ranges of rows; NaN is ignored.

    >>> ranges_of(np.array([[1.0, 5.0], [np.nan, 7.0]])).high
    array([1., 7.])
    """
    pieces = _pieces(values)
    low, high = (
        limit.reduce([limit.reduce(piece, axis=0, initial=np.nan) for piece in pieces])
        for limit in (np.fmin, np.fmax)
    )
    return Ranges(low, high)


def outside(ranges: Ranges, values: np.ndarray) -> np.ndarray:
    """Whether values lie outside the ranges `[D]`, `[N, D] -> [N, D]` bool.

    NaN is never outside; any value of a channel without a range is outside.

    >>> outside(ranges_of(np.array([[0.0], [1.0]])), np.array([[0.5], [2.0], [np.nan]]))
    array([[False],
           [ True],
           [False]])
    """
    values = np.asarray(values, np.asarray(ranges.low).dtype)
    inside = (values >= ranges.low) & (values <= ranges.high)
    return ~inside & ~np.isnan(values)


def dead_channels(values: Rows, channels: tuple[str, ...]) -> list[str]:
    """The channels that are constant in the rows; NaN is ignored.

    >>> dead_channels(np.array([[1.0, 5.0], [2.0, np.nan]]), ("cpu", "mode"))
    ['mode']
    """
    return [channels[i] for i in np.flatnonzero(is_constant(*ranges_of(values)))]


def monotonic_channels(values: Rows, channels: tuple[str, ...]) -> list[str]:
    """The channels that only rise or only fall, except for one step in 1,000.

    Typical are counters, ids and times. At least ten steps are needed.

    >>> rows = np.stack([np.arange(20.0), np.arange(20) % 4], axis=1)
    >>> monotonic_channels(rows, ("count", "phase"))
    ['count']
    """
    up, down = np.zeros((2, len(channels)), np.int64)
    for rows in _chunks(values, np.arange(len(channels))):
        steps = np.diff(rows, axis=0)
        up += (steps > 0).sum(axis=0)
        down += (steps < 0).sum(axis=0)
    one_way = 1000 * np.minimum(up, down) <= up + down
    return [channels[i] for i in np.flatnonzero(one_way & (up + down >= _ENOUGH_STEPS))]


def duplicate_channels(
    values: Rows, channels: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Channels that copy an earlier one up to an affine map, as (copy, original).

    Copies have |correlation| > 1 − 1e-6 with the first such channel over the rows with
    both values, at least three. Constant channels are left out.

    >>> rows = np.array([[1.0, 5.0, 9.0], [2.0, 7.0, 8.0], [3.0, 9.0, 8.5]])
    >>> duplicate_channels(rows, ("a", "b", "c"))
    [('b', 'a')]
    """
    ranges = ranges_of(values)
    alive = np.flatnonzero(~is_constant(*ranges))
    if not len(alive):
        return []
    alike = np.abs(_correlation(values, alive, ranges)) > _COPY
    originals = np.argmax(alike, axis=1)  # the first one
    return [
        (channels[alive[later]], channels[alive[first]])
        for later, first in enumerate(originals)
        if first < later and alike[later, first]
    ]


def _correlation(values: Rows, columns: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Pearson correlations over the rows that have both values; 0 without such rows.

    `[N, D], [K] -> [K, K]` float64, from sums over the standardised columns.
    """
    shape = (len(columns), len(columns))
    low, high = (side[columns].astype(np.float64) for side in ranges)
    # Mean and range are removed first, so that sums of products keep their digits.
    centre, spread = _mean(values, columns), high - low
    count, total, squares, products = (np.zeros(shape) for _ in range(4))
    for rows in _chunks(values, columns):
        rows = (rows - centre) / spread
        seen = ~np.isnan(rows)
        if seen.all():  # Faster: all rows have both values.
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
    # A column can be constant over the shared rows, up to rounding.
    moving = np.minimum(variance, variance.T) > 1e-9 * count
    covariance = products - total * total.T / shared
    return np.divide(
        covariance, scale, out=np.zeros(shape), where=moving & (count >= _ENOUGH_ROWS)
    )


def _mean(values: Rows, columns: np.ndarray) -> np.ndarray:
    """Mean of each column's values, `[K]` float64; each has one."""
    total, count = np.zeros(len(columns)), np.zeros(len(columns))
    for rows in _chunks(values, columns):
        total += np.nansum(rows, axis=0)
        count += (~np.isnan(rows)).sum(axis=0)
    return total / count


def _chunks(values: Rows, columns: np.ndarray) -> Iterator[np.ndarray]:
    """The columns in float64, in chunks of rows."""
    for piece in _pieces(values):
        for first in range(0, len(piece), _CHUNK):
            yield piece[first : first + _CHUNK, columns].astype(np.float64)


def _pieces(values: Rows) -> Sequence[np.ndarray]:
    return [values] if isinstance(values, np.ndarray) else values
