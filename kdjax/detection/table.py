"""A detector's verdict on each row of a series, as a table."""

import numpy as np
import pandas as pd

from kdjax.data.files import match_channels
from kdjax.data.series import Series
from kdjax.data.splits import cover_starts, segments
from kdjax.data.windows import latest_window, row_mean
from kdjax.detection.detector import Detector, entity_index, score_windows
from kdjax.detection.scores import window_scores
from kdjax.errors import DataError


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
    table = pd.concat(parts, ignore_index=True)
    time = np.arange(rows) if series.time is None else series.time
    table.insert(0, "time", time)
    table.insert(0, "entity", series.entity)
    return table


def _span_table(
    detector: Detector, index: int, values: np.ndarray, causal: bool
) -> pd.DataFrame:
    """The columns from `score` on for rows `[N, D]` without a gap."""
    rows, window = len(values), detector.window
    stride = 1 if causal else detector.stride
    starts = cover_starts(np.array([[0, rows]]), window=window, stride=stride)
    points = score_windows(detector, index, values, starts)
    latest = latest_window(starts, window=window, rows=rows)
    known = latest >= 0
    window_score = np.full(rows, np.nan)
    score = np.full(rows, np.nan)
    window_score[known] = window_scores(points, count=detector.allowed_points)[
        latest[known]
    ]
    if causal:
        score[known] = points[latest[known], -1]
    elif len(starts):
        score = row_mean(points, starts, rows)
    alarm = window_score > detector.thresholds[index].tau
    state = np.where(known, np.where(alarm, "anomaly", "normal"), "unknown")
    return pd.DataFrame(
        {
            "score": score,
            "window_score": window_score,
            "alarm": alarm.astype(np.int8),
            "state": state,
        }
    )
