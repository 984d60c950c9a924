"""Windows of rows in memory or on disk, and sums of window scores per row.

Windows are given by their first rows `starts` `[M]` (see `kdjax.data.splits`); window m
holds the rows `starts[m]` to `starts[m] + L - 1`. Rows that are too large for the memory
are `np.memmap` arrays, read in chunks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.raw import as_array
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.errors import ConfigError, DataError, counted

CHUNK_BYTES = 16_000_000  # read at once of a memory map; smaller maps are read whole
_CHUNK = 8192  # windows summed at once, which bounds the index array


def windows(rows: Any, *, length: int, stride: int = 1) -> np.ndarray:
    """The windows of rows, `[N, D] -> [M, L, D]` with M = (N - L) // stride + 1.

    A read-only view; only a masked array is copied, with NaN for masked cells.

    Args:
        rows: `[N, D]` array-like.
        length: L, rows of a window.
        stride: rows between the starts of windows.

    Raises:
        ConfigError: `length` or `stride` is below 1.
        DataError: `rows` has another shape or fewer than L rows.

    >>> windows(np.arange(10).reshape(5, 2), length=3, stride=2)[1]
    array([[4, 5],
           [6, 7],
           [8, 9]])
    """
    for name, value in (("length", length), ("stride", stride)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1 row.")
    rows = as_array(rows)
    if rows.ndim != 2:
        raise DataError(f"rows have shape {rows.shape}, expected [N, D]: reshape them.")
    if len(rows) < length:
        raise DataError(
            f"{counted(len(rows), 'row')} for length={length}: give more rows or a "
            "smaller length."
        )
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    return view[::stride].swapaxes(1, 2)


def gather(values: np.ndarray, starts: np.ndarray, window: int) -> np.ndarray:
    """The windows of `values` at `starts`, `[N, D], [M] -> [M, L, D]`.

    >>> gather(np.arange(4)[:, None], np.array([0, 2]), 2)[:, :, 0]
    array([[0, 1],
           [2, 3]])
    """
    return values[_rows(starts, window)]


def has_missing(values: np.ndarray) -> bool:
    """Whether a value of `[N, D]` is missing, that is NaN."""
    # NaN propagates to the minimum, without a second array.
    return bool(np.isnan(np.min(values, initial=np.inf)))


def window_labels(
    labels: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    min_anomalous_points: int = 1,
) -> np.ndarray:
    """Whether each window has at least so many anomalous rows, `[N], [M] -> [M]` bool.

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


def spread_evenly(count: int, most: int) -> np.ndarray:
    """Indices of `most` of `count` items, or of all, evenly spaced, `[min(count, most)]`.

    >>> spread_evenly(10, 4), spread_evenly(2, 4)
    (array([0, 3, 6, 9]), array([0, 1]))
    """
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


class RowSums(NamedTuple):
    """Sums of window scores of each row."""

    total: np.ndarray  # [N] float64, or [N, D] for D numbers a row
    covering: np.ndarray  # [N] int32, windows that cover the row


def empty_sums(rows: int, *width: int) -> RowSums:
    """Sums of no windows yet."""
    return RowSums(np.zeros((rows, *width)), np.zeros(rows, np.int32))


def add_scores(sums: RowSums, point_scores: np.ndarray, starts: np.ndarray) -> None:
    """Adds the scores `[M, L]`, or `[M, L, D]`, of windows to their rows, in place."""
    for first in range(0, len(starts), _CHUNK):
        part = slice(first, first + _CHUNK)
        index = _rows(starts[part], point_scores.shape[1])
        np.add.at(sums.total, index, np.asarray(point_scores[part], np.float64))
        np.add.at(sums.covering, index, 1)


def mean_of_sums(sums: RowSums) -> np.ndarray:
    """Means `[N]`, or `[N, D]`; NaN where no window covers a row.

    The result overwrites the totals to save memory: `sums` can't be used again.
    """
    covering = sums.covering.reshape(-1, *[1] * (sums.total.ndim - 1))
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.divide(sums.total, covering, out=sums.total)
    return mean


def latest_window(
    starts: np.ndarray, spans: np.ndarray, *, window: int, rows: int
) -> np.ndarray:
    """Index of the latest window that ended at or before each row, `[M] -> [N]` int64.

    Both lie in one of the spans `[S, 2]`; −1 for none. Starts ascend.

    >>> latest_window(np.array([0, 2, 5]), np.array([[0, 4], [5, 7]]), window=2, rows=7)
    array([-1,  0,  0,  1, -1, -1,  2])
    """
    begin = np.full(rows, rows)  # of each row's span
    for first, stop in spans:
        begin[first:stop] = first
    found = np.searchsorted(starts, np.arange(rows) - window + 1, side="right") - 1
    return np.where(np.append(starts, -1)[found] >= begin, found, -1)


def _rows(starts: np.ndarray, window: int) -> np.ndarray:
    """Row numbers of each window, `[M] -> [M, L]`."""
    return np.asarray(starts, np.int64)[:, None] + np.arange(window)


class WindowSource(NamedTuple):
    """Windows of several entities, read and scaled on request."""

    values: tuple[np.ndarray, ...]  # raw rows [N, D], most often memory maps
    scalers: tuple[Scaler, ...]
    starts: tuple[np.ndarray, ...]  # first rows of the windows
    window: int
    missing: bool = False  # whether values may be NaN
    context: tuple[int, ...] = ()  # indices of channels that are read, but not scored

    @property
    def windows(self) -> int:
        """M, of all entities together."""
        return sum(map(len, self.starts))

    def read(self, places: np.ndarray) -> np.ndarray:
        """The windows with the indices `places` `[B]`, `[B, L, D]` float32."""
        places = np.asarray(places)
        stops = np.cumsum([len(starts) for starts in self.starts])
        owners = np.searchsorted(stops, places, side="right")
        shape = (len(places), self.window, self.values[0].shape[1])
        found = np.empty(shape, np.float32)
        for owner in np.unique(owners):
            own = owners == owner
            first = stops[owner] - len(self.starts[owner])
            starts = self.starts[owner][places[own] - first]
            raw = gather(self.values[owner], starts, self.window)
            found[own] = apply_scaler(self.scalers[owner], raw)
        return found


def on_disk(values: np.ndarray) -> bool:
    """Whether rows are a memory map of more than a chunk."""
    return isinstance(values, np.memmap) and values.nbytes > CHUNK_BYTES


def chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Rows `[N, D]` in chunks, as views."""
    size = chunk_rows(values)
    for first in range(0, len(values), size):
        yield values[first : first + size]


def chunk_rows(values: np.ndarray) -> int:
    """Rows of a chunk."""
    row = values.itemsize * int(np.prod(values.shape[1:]))
    return max(1, CHUNK_BYTES // max(row, 1))


def span_pieces(values: np.ndarray, spans: np.ndarray) -> list[np.ndarray]:
    """The rows of spans `[S, 2]`: one array, or chunks of rows on disk."""
    if on_disk(values):
        return [part for a, b in spans for part in chunks(values[a:b])]
    empty = np.empty((0, values.shape[1]), values.dtype)
    return [np.concatenate([empty, *(values[start:stop] for start, stop in spans)])]


class Piece(NamedTuple):
    """Some rows of a series, and the windows inside them."""

    rows: np.ndarray  # [n, D] float32, scaled
    starts: np.ndarray  # [m] first rows of the windows in `rows`
    at: np.ndarray  # [m] first rows of the windows in the whole series


def scaled_pieces(
    values: np.ndarray, scaler: Scaler, starts: np.ndarray, *, window: int
) -> Iterator[Piece]:
    """The windows of raw rows `[N, D]` in scaled pieces, in order.

    Rows in memory are one piece, rows on disk have pieces of about a chunk. Rows between
    windows that are far apart are not read.
    """
    if not on_disk(values):
        yield Piece(apply_scaler(scaler, values), starts, starts)
        return
    rows = max(chunk_rows(values), window)
    apart = len(starts) > 1 and np.median(np.diff(starts)) >= window
    most = min(rows, CHUNK_BYTES // 4) if apart else CHUNK_BYTES // 4
    done = 0
    while done < len(starts):
        at = starts[done : done + max(1, most // window)]
        if apart:
            found = gather(values, at, window).reshape(-1, values.shape[1])
            inside = np.arange(len(at)) * window
        else:
            beyond = (at < at[0]) | (at - at[0] + window > rows)
            at = at[: np.argmax(beyond)] if beyond.any() else at
            found, inside = values[at[0] : at[-1] + window], at - at[0]
        yield Piece(apply_scaler(scaler, found), inside, at)
        done += len(at)
