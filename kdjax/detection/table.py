"""A detector's verdict on each row of a series, as a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.files import match_channels
from kdjax.data.series import Series
from kdjax.data.splits import cover_starts, segments
from kdjax.data.windows import (
    RowSums,
    add_scores,
    empty_sums,
    latest_window,
    mean_of_sums,
)
from kdjax.detection.detector import Detector, entity_index, score_batches
from kdjax.detection.scores import window_scores
from kdjax.errors import DataError

STATES = ("normal", "anomaly", "unknown")  # by their codes in `_span_table`


def score_table(
    detector: Detector, series: Series, *, entity: str, causal: bool = False
) -> pd.DataFrame:
    """One line per row of `series`, in its order.

    Columns: `entity`, `time` (or the row's number), `score` (mean of a_t over the
    windows that cover the row), `window_score` and `alarm` (of the latest window that
    ended at or before the row: what a live system knew then), `state` (`normal`,
    `anomaly`; `unknown` before the first window has ended and where no score exists).

    Args:
        detector: the detector.
        series: raw rows; its channels are matched by name.
        entity: whose scaler, Normal and threshold to use; `pooled` for none.
        causal: stride 1, and `score` is a_t in the window that ends at the row.

    Raises:
        DataError: its channels are others than the detector's, or no stretch of it is
            as long as the window.
    """
    index = entity_index(detector, entity)
    series = match_channels(series, detector.channels)
    rows = len(series.values)
    spans = segments(series.time, rows, max_gap=detector.max_gap)
    if (spans[:, 1] - spans[:, 0]).max(initial=0) < detector.window:
        raise DataError(
            f"series {series.entity!r} has {rows} rows and no stretch of the "
            f"detector's window of {detector.window} rows without a gap: give more "
            "rows."
        )
    parts = [
        _span_table(detector, index, series.values[start:stop], causal)
        for start, stop in spans
    ]
    table = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    time = np.arange(rows) if series.time is None else series.time
    table.insert(0, "time", time)
    table.insert(0, "entity", _named(np.zeros(rows), [series.entity]))
    return table


def _span_table(
    detector: Detector, index: int, values: np.ndarray, causal: bool
) -> pd.DataFrame:
    """The columns from `score` on for rows `[N, D]` without a gap."""
    rows, window = len(values), detector.window
    stride = 1 if causal else detector.stride
    starts = cover_starts(np.array([[0, rows]]), window=window, stride=stride)
    folded = _fold(detector, index, values, starts)
    latest = latest_window(starts, window=window, rows=rows)
    known = latest >= 0
    window_score = np.full(rows, np.nan)
    window_score[known] = folded.windows[latest[known]]
    if causal:
        score = np.full(rows, np.nan)
        score[known] = folded.last[latest[known]]
    else:
        score = mean_of_sums(folded.sums)
    alarm = window_score > detector.thresholds[index].tau
    return pd.DataFrame(
        {
            "score": score,
            "window_score": window_score,
            "alarm": alarm.astype(np.int8),
            "state": _named(np.where(known, alarm, 2), STATES),
        }
    )


class _Folded(NamedTuple):
    """What remains of the windows' point scores."""

    windows: np.ndarray  # window scores, [M]
    last: np.ndarray  # a_t of the window's last row, [M]
    sums: RowSums


def _fold(
    detector: Detector, index: int, values: np.ndarray, starts: np.ndarray
) -> _Folded:
    """Point scores taken in batch by batch: all of them may be more than memory holds."""
    count = len(starts)
    folded = _Folded(np.empty(count), np.empty(count), empty_sums(len(values)))
    done = 0
    for points in score_batches(detector, index, values, starts):
        part = slice(done, done + len(points))
        folded.windows[part] = window_scores(points, count=detector.allowed_points)
        folded.last[part] = points[:, -1]
        add_scores(folded.sums, points, starts[part])
        done += len(points)
    return folded


def _named(codes: np.ndarray, names: Sequence[str]) -> Any:
    """A column of few names that takes a byte a row."""
    return pd.Categorical.from_codes(codes.astype(np.int8), pd.Index(names))
