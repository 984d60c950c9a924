"""Score tables: scores and alarms of each row of a series, and events of alarms."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.readers import match_channels
from kdjax.data.series import Series
from kdjax.data.splits import cover_starts, intersect, kept, segments
from kdjax.data.times import format_times
from kdjax.data.unchanged import frozen_events, frozen_limits
from kdjax.data.windowing import (
    add_scores,
    empty_sums,
    latest_window,
    mean_of_sums,
    window_labels,
)
from kdjax.detection.alarming import alarm_rule, event_table, events, row_alarms
from kdjax.detection.cadence import check_cadence, other_rows
from kdjax.detection.detector import Detector, entity_index, score_batches
from kdjax.detection.occurrences import (
    ALL,
    FROZEN,
    MOVED,
    NO_DATA,
    SCORE,
    event_id,
    has_moved,
)
from kdjax.detection.reading import CONTRIBUTION
from kdjax.detection.scores import window_scores
from kdjax.errors import DataError, counted
from kdjax.metrics.checks import runs

STATES = ("normal", "anomaly", "unknown")  # by their codes in `score_table`


class Windows(NamedTuple):
    """The windows of a series."""

    starts: np.ndarray  # [M] first rows, ascending
    # [N] index of the latest window that ended at or before the row without a gap
    # between; −1 for none.
    latest: np.ndarray
    first: int  # position in a window from which on its points count in rows


def score_table(
    detector: Detector,
    series: Series,
    *,
    entity: str,
    causal: bool = False,
    contributions: bool = False,
) -> pd.DataFrame:
    """One line per row of `series`, in its order.

    Columns: `entity`; `time` as in the input (or the row's number); `score` (mean of a_t over the
    windows that cover the row); `window_score` (of the latest window that ended at or
    before the row); `tau`, the threshold of window scores; `alarm` (1 where the window score is above τ, after the detector's
    minimum duration and cool-down); `state` (`anomaly` in alarm, else `unknown` before
    the end of the first window and where a score is missing, else `normal`); on request
    `contribution:CHANNEL`, each channel's part of `score`.

    Args:
        detector: the detector.
        series: raw rows, NaN where a value is missing; channels are matched by name.
        entity: of the scaler, Gaussian and threshold; `pooled` for none.
        causal: stride 1, and `score` is a_t in the window that ends at the row.
        contributions: adds D columns.

    Raises:
        DataError: the channels are not the detector's, rows have another step or less
            precision, or no span without a gap is as long as the window.

    >>> table = score_table(detector, series, entity="plant")  # doctest: +SKIP
    >>> table.columns.tolist()[:4]  # doctest: +SKIP
    ['entity', 'time', 'score', 'window_score']
    """
    index = entity_index(detector, entity)
    series = match_channels(series, detector.channels)
    rows, values = len(series.values), series.values
    starts, latest, first = find_windows(detector, series, causal=causal)
    found, sums, done = np.empty(len(starts)), empty_sums(rows), 0
    part_sums = empty_sums(rows, len(detector.channels)) if contributions else None
    # In batches, since all point scores together may not fit into memory.
    for piece in score_batches(detector, index, values, starts, explain=contributions):
        points = piece.points if contributions else piece
        batch = slice(done, done + len(points))
        done = batch.stop
        found[batch] = window_scores(points, count=detector.allowed_points)
        add_scores(sums, points[:, first:], starts[batch] + first)
        if part_sums is not None:
            parts = piece.contributions[:, first:]
            add_scores(part_sums, parts, starts[batch] + first)
    score = mean_of_sums(sums)
    window_score = np.append(found, np.nan)[latest]  # NaN for none, -1
    tau = detector.thresholds[index].tau
    alarm = row_alarms(window_score, tau, alarm_rule(detector))
    unknown = np.isnan(window_score) | np.isnan(score)
    columns: dict[str, Any] = {
        "entity": _categories(np.zeros(rows), [series.entity]),
        "time": (
            np.arange(rows)
            if series.time is None
            else format_times(series.time, series.form)
        ),
        "score": score,
        "window_score": window_score,
        "tau": np.full(rows, tau),
        "alarm": alarm.astype(np.int8),
        "state": _categories(np.where(unknown & ~alarm, 2, alarm), STATES),
    }
    if part_sums is not None:
        shares = mean_of_sums(part_sums)
        shares[np.isnan(score)] = np.nan
        for place, name in enumerate(detector.channels):
            columns[CONTRIBUTION + name] = shares[:, place]
    return pd.DataFrame(columns)


def score_events(
    detector: Detector,
    series: Series,
    table: pd.DataFrame,
    *,
    entity: str,
    causal: bool = False,
    name: str = "",
) -> pd.DataFrame:
    """The alarms of a score table as events; see `kdjax.detection.alarming.event_table`.

    `table` is from `score_table` with the same other arguments. Further columns are `id`
    and `kind`, see `kdjax.detection.occurrences`; `name` is the entity in ids, by default
    that of the series. Events of other kinds than `score` have no severity; their peak is
    their start. A `no_data` event lasts from the last row before a gap to the first after.
    """
    index = entity_index(detector, entity)
    series = match_channels(series, detector.channels)

    def windows() -> tuple[np.ndarray, int]:
        starts, _, first = find_windows(detector, series, causal=causal)
        return starts, first

    every = events_of_all_kinds(detector, index, series, table, windows, name=name)
    return every.drop(columns=["first", "stop"])


def events_of_all_kinds(
    detector: Detector,
    index: int,
    series: Series,
    table: pd.DataFrame,
    windows: Callable[[], tuple[np.ndarray, int]],
    *,
    name: str = "",
) -> pd.DataFrame:
    """The events of alarms in a table of rows, and those of other kinds, in order of start.

    `table` has `time`, `score`, `window_score` and `alarm`; `windows` are the starts of the
    windows, and the position in them from which on points count in rows. Columns are
    those of `event_table`, `id`, `kind`, and the half-open span of rows `first`, `stop`;
    `name` is the entity in ids, by default the series'.
    """

    def explain(rows: np.ndarray) -> np.ndarray:
        starts, first = windows()
        values = series.values
        parts = explain_rows(detector, index, values, starts, rows, first=first)
        return np.delete(parts, detector.model.context, axis=1)

    alarm, time = table["alarm"].to_numpy() > 0, table["time"].array
    found = event_table(
        alarm,
        entity=series.entity,
        time=time,
        window_score=table["window_score"].to_numpy(),
        score=table["score"].to_numpy(),
        tau=detector.thresholds[index].tau,
        window=detector.window,
        explain=explain,
        channels=np.delete(detector.channels, detector.model.context).tolist(),
    )
    first, last = events(alarm, gap=detector.window).T
    spans = [(SCORE, "", *own) for own in zip(first, last - 1, strict=True)]
    others = _other_events(detector, index, series)
    rows = np.array([one[2:] for one in others], int).reshape(-1, 2)
    further = {
        "entity": [series.entity] * len(others),
        "start": time[rows[:, 0]],
        "end": time[rows[:, 1]],
        "severity": np.full(len(others), np.nan),
        "peak": time[rows[:, 0]],
        "channels": [subject for _, subject, *_ in others],
    }
    every, frames = [*spans, *others], [found, pd.DataFrame(further)]
    found = pd.concat([frame for frame in frames if len(frame)] or frames[:1])
    instants = np.arange(len(alarm)) if series.time is None else series.time
    if instants.dtype.kind == "M":
        instants = instants.astype("M8[ns]").astype(np.int64)
    found["id"] = [
        event_id(name or series.entity, kind, instants[start], subject)
        for kind, subject, start, _ in every
    ]
    found["kind"] = [kind for kind, *_ in every]
    found["first"] = [start for *_, start, _ in every]
    found["stop"] = [end + 1 for *_, end in every]
    found = found.astype({"entity": str, "channels": str, "id": str, "kind": str})
    order = np.argsort([one[2] for one in every], kind="stable")
    return found.iloc[order].reset_index(drop=True)


def _other_events(
    detector: Detector, index: int, series: Series
) -> list[tuple[str, str, int, int]]:
    """Kind, channel, first and last row of the events that don't come from scores."""
    spans, values = usable_spans(detector, series), series.values
    names, found = (*detector.channels, ALL), []
    if detector.unchanged is not None:
        limits = frozen_limits(detector.unchanged[index], window=detector.window)
        for column, start, stop in frozen_events(values, spans, limits):
            found.append((FROZEN, names[column], start, stop - 1))
    if detector.constant is not None:
        used = np.concatenate([np.arange(start, stop) for start, stop in spans])
        for column in np.flatnonzero(~np.isnan(detector.constant[index])).tolist():
            own = values[used, column]
            away = has_moved(detector.constant[index, column].astype(own.dtype), own)
            # A missing value counts as unchanged.
            known = pd.Series(away).where(~np.isnan(own)).ffill().eq(True)
            for start, stop in zip(*runs(known.to_numpy()), strict=True):
                own_rows = int(used[start]), int(used[stop - 1])
                found.append((MOVED, names[column], *own_rows))
    if detector.no_data and detector.step and series.time is not None:
        options = {"max_gap": detector.max_gap, "step": detector.step}
        for start in segments(series.time, len(values), **options)[1:, 0].tolist():
            found.append((NO_DATA, "", start - 1, start))
    return found


def usable_spans(detector: Detector, series: Series) -> np.ndarray:
    """Spans of rows `[S, 2]` without a gap, at the step of training, and not excluded."""
    rows, other = len(series.values), other_rows(series.time, detector.step)
    return intersect(
        intersect(kept(rows, series.excluded), kept(rows, np.c_[other, other + 1])),
        segments(series.time, rows, max_gap=detector.max_gap, step=detector.step),
    )


def find_windows(detector: Detector, series: Series, *, causal: bool) -> Windows:
    """The windows of a series: inside spans without a gap, and covering each span.

    Raises:
        DataError: no span is as long as the window, or rows have another step or less
            precision than in training.
    """
    rows, window = len(series.values), detector.window
    check_precision(detector, series.values.dtype)
    check_cadence(series.time, detector.step)
    spans = usable_spans(detector, series)
    if (spans[:, 1] - spans[:, 0]).max(initial=0) < window:
        step = f" (rows are expected every {detector.step:g})" if detector.step else ""
        raise DataError(
            f"series {series.entity!r} has {counted(rows, 'row')}, but not the {window} "
            f"successive rows of a window without a gap{step}: give more rows."
        )
    starts = cover_starts(spans, window=window, stride=1 if causal else detector.stride)
    latest = latest_window(starts, spans, window=window, rows=rows)
    return Windows(starts, latest, window - 1 if causal else 0)


def check_precision(detector: Detector, dtype: Any) -> None:
    """Raises DataError for rows in float32 where the detector needs float64."""
    needed = detector.scalers.offset.dtype
    if dtype == np.float32 and needed != dtype:
        raise DataError(
            f"the rows are float32, but this detector needs {needed}: float32 rounds away "
            f"small changes. Give rows in {needed}, as read_table does with "
            f"dtype={str(needed)!r}."
        )


def explain_rows(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    rows: np.ndarray,
    *,
    first: int = 0,
) -> np.ndarray:
    """Contributions `[K, D]` to the scores of K different rows; NaN without a score.

    Means over the windows at `starts` `[M]`, from the position `first` on.
    """
    place = np.full(len(values), -1)
    place[rows] = np.arange(len(rows))
    used = window_labels(place >= 0, starts + first, window=detector.window - first)
    starts, done = starts[used], 0
    total = np.zeros((len(rows), len(detector.channels)))
    score, count = np.zeros((2, len(rows)))
    for points, parts in score_batches(detector, index, values, starts, explain=True):
        own = starts[done : done + len(parts), None]
        done += len(parts)
        places = place[own + np.arange(first, detector.window)]
        hit = places >= 0
        np.add.at(total, places[hit], parts[:, first:][hit])
        np.add.at(score, places[hit], points[:, first:][hit])
        np.add.at(count, places[hit], 1)
    unknown = (count == 0) | np.isnan(score)
    mean = total / np.maximum(count, 1)[:, None]
    mean[unknown] = np.nan
    return mean


def _categories(codes: np.ndarray, names: Sequence[str]) -> Any:
    """A column of few different names, one byte a row."""
    return pd.Categorical.from_codes(codes.astype(np.int8), pd.Index(names))
