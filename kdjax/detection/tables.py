"""Score tables: the scores and alarms of each row of a series, and events of alarms."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.readers import match_channels, read_table
from kdjax.data.series import Series
from kdjax.data.splits import cover_starts, intersect, kept, segments
from kdjax.data.windowing import add_scores, empty_sums, latest_window, mean_of_sums
from kdjax.detection.alarming import AlarmRule, event_table, row_alarms
from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import (
    POOLED,
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

# How a detector's training file was read, where its card has no entry.
_READING = {"missing": "error", "order": "strict", "duplicates": "error"}


class Windows(NamedTuple):
    """The windows of a series.

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

    Columns: `entity`; `time` (or the row's number); `score` (mean of a_t over the
    windows that cover the row); `window_score` (of the latest window that ended at or
    before the row); `alarm` (1 where the window score is above τ, after the detector's
    minimum duration and cool-down); `state` (`normal`, `anomaly`, or `unknown` before
    the end of the first window and where there is no score); on request
    `contribution:CHANNEL`, each channel's part of `score`.

    Args:
        detector: the detector.
        series: raw rows, NaN where a value is missing; channels are matched by name.
        entity: whose scaler, Gaussian and threshold to use; `pooled` for none.
        causal: stride 1, and `score` is a_t in the window that ends at the row.
        contributions: adds D columns.

    Raises:
        DataError: the channels are not the detector's, or no part of the series without
            a gap is as long as the window.
    """
    index = entity_index(detector, entity)
    series = match_channels(series, detector.channels)
    rows, windows = len(series.values), find_windows(detector, series, causal=causal)
    found, score, parts = _fold(detector, index, series.values, windows, contributions)
    window_score = np.full(rows, np.nan)
    known = windows.latest >= 0
    window_score[known] = found[windows.latest[known]]
    alarm = row_alarms(
        window_score > detector.thresholds[index].tau,
        ~np.isnan(window_score),
        AlarmRule(detector.min_duration, detector.cooldown),
    )
    unknown = np.isnan(window_score) | np.isnan(score)
    columns: dict[str, Any] = {
        "entity": _categories(np.zeros(rows), [series.entity]),
        "time": np.arange(rows) if series.time is None else series.time,
        "score": score,
        "window_score": window_score,
        "alarm": alarm.astype(np.int8),
        "state": _categories(np.where(unknown, 2, alarm), STATES),
    }
    if parts is not None:
        for place, name in enumerate(detector.channels):
            columns[CONTRIBUTION + name] = parts[:, place]
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
        series: the rows of the table.
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


def read_like(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    missing: str = "",
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
    exclude: str = "",
) -> tuple[Series, ...]:
    """Reads a file as the detector's training file was read.

    Args:
        detector: its card has the options.
        path: CSV, Parquet or `.npy` file.
        missing: `error`, `ffill` or `mask` to override the card.
        time_column: name of the time column.
        entity_column: name of the entity column.
        label_column: name of a column with labels, which is ignored.
        exclude: CSV of spans to leave out.
    """
    data: dict[str, Any] = detector.card.get("settings", {}).get("data", {})
    reading = {name: data.get(name, usual) for name, usual in _READING.items()}
    if missing:
        reading["missing"] = missing
    return read_table(
        path,
        time_column=time_column,
        entity_column=entity_column,
        label_column=label_column,
        exclude=exclude,
        **reading,
    )


def known_entity(detector: Detector, entity: str) -> str:
    """The entity if the detector was calibrated on it, else `pooled`."""
    return entity if entity in detector.entities else POOLED


def _fold(
    detector: Detector,
    index: int,
    values: np.ndarray,
    windows: Windows,
    contributions: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Window scores `[M]`, scores of rows `[N]`, their contributions `[N, D]` or None.

    Batch by batch, since all point scores together may not fit into memory.
    """
    rows, starts, length = len(values), windows.starts, detector.window
    width = len(detector.channels)
    found = np.empty(len(starts))
    score = np.full(rows, np.nan)
    shares = np.full((rows, width), np.nan) if contributions else None
    sums = empty_sums(rows)
    share_sums = None
    if contributions and not windows.causal:
        share_sums = empty_sums(rows, width)
    done = 0
    for points, parts in _batches(detector, index, values, starts, contributions):
        own = starts[done : done + len(points)]
        found[done : done + len(points)] = window_scores(
            points, count=detector.allowed_points
        )
        done += len(points)
        if windows.causal:
            score[own + length - 1] = points[:, -1]
            if shares is not None:
                shares[own + length - 1] = parts[:, -1]
            continue
        add_scores(sums, points, own)
        if share_sums is not None:
            add_scores(share_sums, parts, own)
    if not windows.causal:
        score = mean_of_sums(sums)
        shares = None if share_sums is None else mean_of_sums(share_sums)
    if shares is not None:
        shares[np.isnan(score)] = np.nan
    return found, score, shares


def _batches(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    contributions: bool,
) -> Iterator[Any]:
    """Point scores `[B, L]` and, on request, contributions `[B, L, D]` of batches."""
    if not contributions:
        return ((p, None) for p in score_batches(detector, index, values, starts))
    attribution = attribution_matrix(
        gaussian_of(detector, index), method=detector.attribution
    )
    return explain_batches(detector, index, values, starts, attribution=attribution)


def _explain_rows(
    detector: Detector,
    index: int,
    values: np.ndarray,
    windows: Windows,
    rows: np.ndarray,
) -> np.ndarray:
    """Contributions `[K, D]` to the scores of some rows, over the same windows."""
    length = detector.window
    starts = np.sort(windows.starts)
    first = np.searchsorted(starts, rows - length + 1, side="left")
    last = np.searchsorted(starts, rows, side="right")
    if windows.causal:
        last = np.minimum(last, first + 1)  # the window that ends at the row
    covering = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
    used = np.unique(np.concatenate([np.empty(0, np.int64), *covering]))
    total = np.zeros((len(rows), len(detector.channels)))
    done = 0
    for _, parts in _batches(detector, index, values, starts[used], True):
        batch = used[done : done + len(parts)]
        for place, row in enumerate(rows):
            mine = np.flatnonzero((batch >= first[place]) & (batch < last[place]))
            total[place] += parts[mine, row - starts[batch[mine]]].sum(axis=0)
        done += len(parts)
    counts = np.maximum(last - first, 1)
    mean: np.ndarray = total / counts[:, None]
    return mean


def _categories(codes: np.ndarray, names: Sequence[str]) -> Any:
    """A column of few different names, one byte a row."""
    return pd.Categorical.from_codes(codes.astype(np.int8), pd.Index(names))
