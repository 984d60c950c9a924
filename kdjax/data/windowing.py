"""Between rows and windows: gathering windows, and folding their scores back to rows.

Windows are given by their first rows `starts` `[M]` (see `kdjax.data.splits`); window m
holds the rows `starts[m]` to `starts[m] + L - 1`.
"""

from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError

# Windows folded at once: bounds the index array of stride 1 over a long series.
_CHUNK = 8192


def gather(values: np.ndarray, starts: np.ndarray, window: int) -> np.ndarray:
    """The windows of `values`, `[N, D], [M] -> [M, L, D]`.

    >>> gather(np.arange(4)[:, None], np.array([0, 2]), 2)[:, :, 0]
    array([[0, 1],
           [2, 3]])
    """
    windows: np.ndarray = values[_rows(starts, window)]
    return windows


def has_missing(values: np.ndarray) -> bool:
    """Whether a cell of `[N, D]` is NaN, which stands for a missing value.

    >>> has_missing(np.array([[1.0, np.inf]]))
    False
    """
    # The minimum carries a NaN along and needs no array of its own.
    return bool(np.isnan(np.min(values, initial=np.inf)))


def window_labels(
    labels: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    min_anomalous_points: int = 1,
) -> np.ndarray:
    """Whether each window holds that many anomalous rows, `[N], [M] -> [M]` bool.

    >>> window_labels(np.array([0, 0, 1, 1]), np.array([0, 1, 2]), window=2)
    array([False,  True,  True])
    """
    if not 1 <= min_anomalous_points <= window:
        raise ConfigError(
            f"min_anomalous_points={min_anomalous_points} must lie between 1 and the "
            f"window of {window} rows."
        )
    starts = np.asarray(starts, np.int64)
    total = np.concatenate([[0], np.cumsum(labels, dtype=np.int64)])
    count: np.ndarray = total[starts + window] - total[starts]
    return count >= min_anomalous_points


def row_mean(point_scores: np.ndarray, starts: np.ndarray, rows: int) -> np.ndarray:
    """Mean score of each row over the windows that cover it, `[M, L], [M] -> [N]`.

    float64; NaN where no window covers a row; an infinite score stays infinite.

    >>> row_mean(np.array([[1.0, 2.0], [4.0, 8.0]]), np.array([0, 1]), 4)
    array([ 1.,  3.,  8., nan])
    """
    sums = empty_sums(rows)
    for first in range(0, len(starts), _CHUNK):
        part = slice(first, first + _CHUNK)
        add_scores(sums, point_scores[part], starts[part])
    return mean_of_sums(sums)


class RowSums(NamedTuple):
    """Scores of each row added up over the windows that came so far.

    Attributes:
        total: `[N]` float64, or `[N, D]` for D numbers a row.
        covering: `[N]` int32, windows that cover the row.
    """

    total: np.ndarray
    covering: np.ndarray


def empty_sums(rows: int, *width: int) -> RowSums:
    """Nothing added yet."""
    return RowSums(np.zeros((rows, *width)), np.zeros(rows, np.int32))


def add_scores(sums: RowSums, point_scores: np.ndarray, starts: np.ndarray) -> None:
    """Adds the scores `[M, L]`, or `[M, L, D]`, of windows to their rows, in place."""
    index = _rows(starts, point_scores.shape[1])
    np.add.at(sums.total, index, np.asarray(point_scores, np.float64))
    np.add.at(sums.covering, index, 1)


def mean_of_sums(sums: RowSums) -> np.ndarray:
    """`[N]`, or `[N, D]`; NaN where no window covers a row.

    The mean takes the place of the totals, so sums serve once: beside millions of rows a
    second array of them may not fit.
    """
    with np.errstate(invalid="ignore"):
        covering = sums.covering.reshape(-1, *[1] * (sums.total.ndim - 1))
        mean: np.ndarray = np.divide(sums.total, covering, out=sums.total)
    return mean


def latest_window(starts: np.ndarray, *, window: int, rows: int) -> np.ndarray:
    """Index of the latest window that ended at or before each row, `[M] -> [N]` int64.

    What a live system knew at that row; -1 before the end of the first window.

    >>> latest_window(np.array([0, 2]), window=2, rows=5)
    array([-1,  0,  0,  1,  1])
    """
    ends = np.asarray(starts, np.int64) + window - 1
    order = np.argsort(ends, kind="stable")
    position = np.searchsorted(ends[order], np.arange(rows), side="right") - 1
    return np.concatenate([order, [-1]])[position].astype(np.int64)


def _rows(starts: np.ndarray, window: int) -> np.ndarray:
    """Row numbers of each window, `[M] -> [M, L]`."""
    return np.asarray(starts, np.int64)[:, None] + np.arange(window)
