"""A detector's verdict on each row of a series, as a table, and its alarms as events."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.readers import match_channels
from kdjax.data.series import Series
from kdjax.data.splits import (
    cover_starts,
    intersect,
    kept,
    segments,
)
from kdjax.data.windowing import (
    add_scores,
    empty_sums,
    latest_window,
    mean_of_sums,
)
from kdjax.detection.alarming import AlarmRule, event_table, row_alarms
from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import (
    Detector,
    entity_index,
    explain_batches,
    gaussian_of,
    score_batches,
)
from kdjax.detection.scores import window_scores
from kdjax.errors import DataError

STATES = ("normal", "anomaly", "unknown")  # by their codes in `score_table`
CONTRIBUTION = "contribution:"


class Windows(NamedTuple):
    """Where a series is scored.

    Attributes:
        starts: `[M]` first rows, ascending in each span, spans in order.
        latest: `[N]` index of the latest window that ended at or before the row without
            a gap between; −1 for none.
        causal: whether a row's score is that of the window that ends there.
    """

    starts: np.ndarray
    latest: np.ndarray
    causal: bool


def score_table(
    detector: Detector,
    series: Series,
    *,
    entity: str,
    causal: bool = False,
    contributions: bool = False,
) -> pd.DataFrame:
    """One line per row of `series`, in its order.

    Columns: `entity`, `time` (or the row's number), `score` (mean of a_t over the
    windows that cover the row), `window_score` (of the latest window that ended at or
    before the row: what a live system knew then), `alarm` (1 where it is above τ, for
    as long and after as much quiet as the detector asks), `state` (`gaussian`, `anomaly`;
    `unknown` before the first window has ended and where no score exists), and, if
    asked for, `contribution:CHANNEL` for each channel's part in `score`.

    Args:
        detector: the detector.
        series: raw rows, NaN where a value is missing; its channels are matched by name.
        entity: whose scaler, Gaussian and threshold to use; `pooled` for none.
        causal: stride 1, and `score` is a_t in the window that ends at the row.
        contributions: adds D columns.

    Raises:
        DataError: its channels are others than the detector's, or no stretch of it is
            as long as the window.
    """
    index = entity_index(detector, entity)
    series = match_channels(series, detector.channels)
    rows, windows = len(series.values), find_windows(detector, series, causal=causal)
    folded = _fold(detector, index, series.values, windows, contributions)
    window_score = np.full(rows, np.nan)
    known = windows.latest >= 0
    window_score[known] = folded.windows[windows.latest[known]]
    alarm = row_alarms(
        window_score > detector.thresholds[index].tau,
        ~np.isnan(window_score),
        AlarmRule(detector.min_duration, detector.cooldown),
    )
    unknown = np.isnan(window_score) | np.isnan(folded.score)
    columns: dict[str, Any] = {
        "entity": _named(np.zeros(rows), [series.entity]),
        "time": np.arange(rows) if series.time is None else series.time,
        "score": folded.score,
        "window_score": window_score,
        "alarm": alarm.astype(np.int8),
        "state": _named(np.where(unknown, 2, alarm), STATES),
    }
    if folded.contributions is not None:
        for place, name in enumerate(detector.channels):
            columns[CONTRIBUTION + name] = folded.contributions[:, place]
    return pd.DataFrame(columns)


def score_events(
    detector: Detector,
    series: Series,
    table: pd.DataFrame,
    *,
    entity: str,
    causal: bool = False,
) -> pd.DataFrame:
    """The alarms of a score table as events; see `kdjax.detection.alarming.event_table`.

    Args:
        detector: the detector.
        series: the rows that `table` was made from.
        table: from `score_table` with the same `entity` and `causal`.
        entity: whose Gaussian and threshold.
        causal: as for the table.
    """
    index = entity_index(detector, entity)
    series = match_channels(series, detector.channels)

    def explain(rows: np.ndarray) -> np.ndarray:
        windows = find_windows(detector, series, causal=causal)
        return _explain_rows(detector, index, series.values, windows, rows)

    return event_table(
        table["alarm"].to_numpy() > 0,
        entity=series.entity,
        time=table["time"].to_numpy(),
        window_score=table["window_score"].to_numpy(),
        score=table["score"].to_numpy(),
        tau=detector.thresholds[index].tau,
        window=detector.window,
        explain=explain,
        channels=detector.channels,
    )


def find_windows(detector: Detector, series: Series, *, causal: bool) -> Windows:
    """The windows of a series: inside spans without a gap, and covering all of each.

    Raises:
        DataError: no span is as long as the window.
    """
    rows, window = len(series.values), detector.window
    spans = intersect(
        kept(rows, series.excluded),
        segments(series.time, rows, max_gap=detector.max_gap, step=detector.step),
    )
    if (spans[:, 1] - spans[:, 0]).max(initial=0) < window:
        step = f" (rows are expected every {detector.step:g})" if detector.step else ""
        raise DataError(
            f"series {series.entity!r} has {rows} rows and no stretch of the "
            f"detector's window of {window} rows without a gap{step}: give more rows."
        )
    stride = 1 if causal else detector.stride
    starts, count = [], 0
    latest = np.full(rows, -1)
    for start, stop in spans:
        length = stop - start
        own = cover_starts(np.array([[0, length]]), window=window, stride=stride)
        found = latest_window(own, window=window, rows=length)
        starts.append(own + start)
        latest[start:stop] = np.where(found < 0, -1, found + count)
        count += len(own)
    return Windows(np.concatenate(starts), latest, causal)


class _Folded(NamedTuple):
    """What remains of the windows' point scores.

    Attributes:
        windows: `[M]` window scores.
        score: `[N]`, NaN where a row has none.
        contributions: `[N, D]` of each row's score, if they were asked for.
    """

    windows: np.ndarray
    score: np.ndarray
    contributions: np.ndarray | None


def _fold(
    detector: Detector,
    index: int,
    values: np.ndarray,
    windows: Windows,
    contributions: bool,
) -> _Folded:
    """Point scores taken in batch by batch: all of them may be more than memory holds."""
    rows, starts, length = len(values), windows.starts, detector.window
    found = np.empty(len(starts))
    score = np.full(rows, np.nan)
    shares = np.full((rows, len(detector.channels)), np.nan) if contributions else None
    sums, share_sums = empty_sums(rows), None
    if shares is not None and not windows.causal:
        share_sums = empty_sums(rows, len(detector.channels))
    done = 0
    for points, parts in _pieces(detector, index, values, starts, contributions):
        own = starts[done : done + len(points)]
        found[done : done + len(points)] = window_scores(
            points, count=detector.allowed_points
        )
        done += len(points)
        if not windows.causal:
            add_scores(sums, points, own)
            if share_sums is not None:
                add_scores(share_sums, parts, own)
            continue
        score[own + length - 1] = points[:, -1]
        if shares is not None:
            shares[own + length - 1] = parts[:, -1]
    if not windows.causal:
        score = mean_of_sums(sums)
        shares = None if share_sums is None else mean_of_sums(share_sums)
    if shares is not None:
        shares[np.isnan(score)] = np.nan  # no score, no parts of it
    return _Folded(found, score, shares)


def _pieces(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    contributions: bool,
) -> Any:
    """Point scores `[B, L]` and, if asked for, contributions `[B, L, D]` of batches."""
    if not contributions:
        return ((p, None) for p in score_batches(detector, index, values, starts))
    return explain_batches(
        detector, index, values, starts, attribution=_blame(detector, index)
    )


def _explain_rows(
    detector: Detector,
    index: int,
    values: np.ndarray,
    windows: Windows,
    rows: np.ndarray,
) -> np.ndarray:
    """Contributions `[K, D]` to the scores of some rows, over the same windows."""
    length = detector.window
    ordered = np.argsort(windows.starts, kind="stable")
    starts = windows.starts[ordered]
    first = np.searchsorted(starts, rows - length + 1, side="left")
    last = np.searchsorted(starts, rows, side="right")
    if windows.causal:
        last = np.minimum(last, first + 1)  # the window that ends at the row
    covering = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
    used = np.unique(np.concatenate([np.empty(0, np.int64), *covering]))
    total = np.zeros((len(rows), len(detector.channels)))
    done = 0
    for _, parts in _pieces(detector, index, values, starts[used], True):
        batch = used[done : done + len(parts)]
        for place, row in enumerate(rows):
            mine = np.flatnonzero((batch >= first[place]) & (batch < last[place]))
            total[place] += parts[mine, row - starts[batch[mine]]].sum(axis=0)
        done += len(parts)
    counts = np.maximum(last - first, 1)
    mean: np.ndarray = total / counts[:, None]
    return mean


def _blame(detector: Detector, index: int) -> np.ndarray:
    return attribution_matrix(gaussian_of(detector, index), method=detector.attribution)


def _named(codes: np.ndarray, names: Sequence[str]) -> Any:
    """A column of few names that takes a byte a row."""
    return pd.Categorical.from_codes(codes.astype(np.int8), pd.Index(names))
