"""Splits of rows into fit, validation and calibration, as half-open spans of rows.

A spans array is int64 `[S, 2]`: each line is `start, stop`, `stop` excluded. Train rows
are split in time: the end calibrates thresholds, blocks spread over the rest validate
(early stopping and the error moments of Eq. 1), the other rows fit the networks.
"""

import itertools
from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError

BLOCKS = 5  # most blocks of validation rows


class Split(NamedTuple):
    """Spans of one series' train rows; each row is in one of them unless excluded.

    Attributes:
        fit: `[S, 2]` spans that train the networks and the scaler.
        validation: `[S, 2]` spans for early stopping and the error moments.
        calibration: `[S, 2]` spans for thresholds only; the last rows of the series.
    """

    fit: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray


class SplitRows(NamedTuple):
    """The blocks of rows of a split, each `[n, D]`, in order of time."""

    fit: list[np.ndarray]
    validation: list[np.ndarray]
    calibration: list[np.ndarray]


def split(
    rows: np.ndarray,
    *,
    window: int,
    validation: float = 0.15,
    calibration: float = 0.15,
) -> SplitRows:
    """Blocks of rows `[N, D]` for fit, validation and calibration, as views.

    Calibration is the last share of the rows. Of the rest, the share `validation` lies in
    up to five blocks spread over it, see `split_rows`. Windows are to be cut from each
    block, so that none crosses a border.

    Args:
        rows: `[N, D]` of one series without gaps.
        window: L.
        validation: share of the rows before calibration.
        calibration: share of all rows.

    >>> blocks = split(np.zeros((100, 2)), window=5)
    >>> [[len(block) for block in part] for part in blocks]
    [[36, 36], [13], [15]]
    """
    spans = split_rows(
        len(rows), window=window, validation=validation, calibration=calibration
    )
    return SplitRows(*([rows[start:stop] for start, stop in part] for part in spans))


def segments(
    time: np.ndarray | None, rows: int, *, max_gap: float, step: float | None = None
) -> np.ndarray:
    """Spans without a gap: cut where a step exceeds `max_gap` median steps.

    Args:
        time: `[N]` datetime64 or numbers, increasing; None gives one span.
        rows: N.
        max_gap: longest step inside a span, in median steps.
        step: the median step, in seconds for datetimes, else in the unit of `time`; by
            default (None or 0) that of `time`.

    >>> segments(np.array([0.0, 1, 2, 9, 10]), 5, max_gap=5)
    array([[0, 3],
           [3, 5]])
    """
    if not max_gap > 0:
        raise ConfigError(f"data.max_gap={max_gap} must be above 0 median steps.")
    if time is not None and len(time) != rows:
        raise DataError(f"{len(time)} times for {rows} rows: give one time per row.")
    cuts = np.empty(0, np.int64)
    if time is not None and rows > 1:
        # In whole ns for datetimes, so that rounding adds no gap.
        dated = np.issubdtype(time.dtype, np.datetime64)
        if dated:
            time = time.astype("datetime64[ns]").astype(np.int64)
        steps = np.diff(time).astype(np.float64)
        typical = np.rint(step * 1e9) if step and dated else step or np.median(steps)
        cuts = np.flatnonzero(steps > max_gap * typical) + 1
    return _spans(np.concatenate([[0], cuts]), np.concatenate([cuts, [rows]]))


def split_rows(
    rows: int, *, window: int, validation: float = 0.15, calibration: float = 0.15
) -> Split:
    """The split of `rows` train rows; `calibration` is the last share of them.

    Of the rest, the share `validation` lies in up to five blocks of at least three
    windows each; block i is centred in part i of equal parts. A drift then affects the
    error moments less.

    >>> split_rows(1000, window=50).calibration
    array([[ 850, 1000]])
    """
    _check_rows(window=window)
    for name, share in (("validation", validation), ("calibration", calibration)):
        if not 0 <= share < 1:
            raise ConfigError(
                f"data.{name}={share} must be a share of the rows: 0 <= share < 1."
            )
    rest = rows - round(rows * calibration)
    held_out = round(rest * validation)
    count = max(1, min(BLOCKS, held_out // (3 * window)))
    index = np.arange(count)
    # Both give remainders to the first parts, so that a block always fits its part.
    lengths = held_out // count + (index < held_out % count)
    parts = rest // count + (index < rest % count)
    starts = np.cumsum(parts) - parts + (parts - lengths) // 2
    blocks = _spans(starts, starts + lengths)
    edges = np.concatenate([[0], blocks.ravel(), [rest]])
    return Split(
        fit=_spans(edges[::2], edges[1::2]),
        validation=blocks,
        calibration=_spans(np.array([rest]), np.array([rows])),
    )


def intersect(spans: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The parts of `spans` `[S, 2]` inside `segments` `[K, 2]`, in order of the spans."""
    spans, segments = np.reshape(spans, (-1, 2)), np.reshape(segments, (-1, 2))
    starts = np.maximum(spans[:, None, 0], segments[None, :, 0])
    stops = np.minimum(spans[:, None, 1], segments[None, :, 1])
    return _spans(starts.ravel(), stops.ravel())


def merge(spans: np.ndarray) -> np.ndarray:
    """Sorted spans of the same rows; spans that touch are joined.

    >>> merge(np.array([[6, 9], [0, 3], [2, 4], [4, 5]]))
    array([[0, 5],
           [6, 9]])
    """
    spans = np.reshape(spans, (-1, 2))
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reached = np.maximum.accumulate(spans[:, 1])
    first = np.append(True, spans[1:, 0] > reached[:-1])[: len(spans)]
    last = np.append(first[1:], True)[: len(spans)]
    return _spans(spans[first, 0], reached[last])


def kept(rows: int, excluded: np.ndarray | None) -> np.ndarray:
    """The spans of the `rows` rows that remain without the excluded ones `[S, 2]`."""
    gone = merge(np.empty((0, 2), np.int64) if excluded is None else excluded)
    return _spans(np.append(0, gone[:, 1]), np.append(gone[:, 0], rows))


def unfold(spans: np.ndarray, remaining: np.ndarray) -> np.ndarray:
    """Spans `[S, 2]` over the rows inside `remaining` `[K, 2]` as spans of all rows.

    >>> unfold(np.array([[1, 5]]), np.array([[2, 5], [6, 9]]))
    array([[3, 5],
           [6, 8]])
    """
    lengths = remaining[:, 1] - remaining[:, 0]
    stops = np.cumsum(lengths)
    parts = intersect(spans, np.stack([stops - lengths, stops], axis=1))
    part = np.searchsorted(stops, parts[:, 0], side="right")
    return np.asarray(parts + (remaining[:, 1] - stops)[part, None])


def folds(spans: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows inside `spans` `[S, 2]` in `count` consecutive folds, each as spans.

    >>> [fold.tolist() for fold in folds(np.array([[0, 4], [6, 8]]), 2)]
    [[[0, 3]], [[3, 4], [6, 8]]]
    """
    edges = np.arange(count + 1) * int(np.diff(spans, axis=1).sum()) // count
    return [unfold(np.array([pair]), spans) for pair in itertools.pairwise(edges)]


def window_starts(spans: np.ndarray, *, window: int, stride: int) -> np.ndarray:
    """First rows of the windows inside the spans, `[S, 2] -> [M]` int64.

    Each span has windows at start, start + stride, …; none extends beyond its span.

    >>> window_starts(np.array([[0, 7], [10, 12]]), window=3, stride=2)
    array([0, 2, 4])
    """
    _check_rows(window=window, stride=stride)
    runs = [
        np.arange(start, stop - window + 1, stride, dtype=np.int64)
        for start, stop in np.reshape(spans, (-1, 2))
    ]
    return np.concatenate([np.empty(0, np.int64), *runs])


def cover_starts(spans: np.ndarray, *, window: int, stride: int) -> np.ndarray:
    """`window_starts` and one right-aligned window a span, so that all rows are covered.

    A stride above the window counts as the window. Spans shorter than the window have no
    window.

    >>> cover_starts(np.array([[0, 8]]), window=3, stride=2)
    array([0, 2, 4, 5])
    """
    _check_rows(window=window, stride=stride)
    step = min(stride, window)
    runs = [
        np.append(np.arange(start, stop - window, step), stop - window)
        for start, stop in np.reshape(spans, (-1, 2))
        if stop - start >= window
    ]
    return np.concatenate([np.empty(0, np.int64), *runs])


def _spans(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The spans that are not empty, `[S], [S] -> [S', 2]` int64."""
    spans = np.stack([starts, stops], axis=1).astype(np.int64)
    return spans[starts < stops]


def _check_rows(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"data.{name}={value} must be at least 1 row.")
