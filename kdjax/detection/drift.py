"""What scored rows say about whether a detector still fits: ranges, steps, drift.

A detector knows the rows that it was calibrated on. Rows outside their range, another
step in time, or scores from elsewhere than calibration's are no faults of the data; they
are reasons to look before one believes an alarm, or the lack of one.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from kdjax.data.series import Ranges, Series, outside
from kdjax.data.times import median_step
from kdjax.data.windowing import has_missing
from kdjax.detection.detector import Detector
from kdjax.detection.false_alarms import (
    Drift,
    disjoint,
    drift,
    p_values,
)

# Share of rows outside the training range that is worth a warning.
FOREIGN = 0.05
# Other factors than this between two median steps are another sampling rate.
SAME_STEP = 1.5
# Rows compared with the ranges at once.
_CHUNK = 100_000


def series_notes(
    detector: Detector, index: int, series: Series, table: pd.DataFrame
) -> list[str]:
    """Sentences on the rows of a series, warnings first; few or none if all is well.

    Args:
        detector: the detector.
        index: whose calibration was used, from `entity_index`.
        series: the rows, with the detector's channels.
        table: their `score_table`.
    """
    notes = [
        *_step(detector, series),
        *_foreign(detector, index, series),
        *_missing(series, table),
        *_drift(detector, index, series, table),
    ]
    return sorted(notes, key=lambda note: "warning" not in note)


def score_drift(
    detector: Detector, index: int, window_score: np.ndarray
) -> Drift | None:
    """Whether the window scores of rows `[N]` come from where calibration's did.

    Looked at so many rows apart that the windows share none: L, rounded up to whole
    strides. None where the detector keeps no calibration scores.
    """
    if len(detector.calibration) <= index or not len(detector.calibration[index]):
        return None
    # Windows start every `stride` rows: so many on, the next shares no row.
    strides = math.ceil(detector.window / detector.stride)
    known = np.flatnonzero(~np.isnan(window_score))
    apart = known[disjoint(known, strides * detector.stride)]
    calibration = detector.calibration[index]
    return drift(
        p_values(calibration, window_score[apart]),
        calibration=max(1, round(len(calibration) / strides)),
    )


def _step(detector: Detector, series: Series) -> Iterator[str]:
    step = median_step(series.time)
    if not detector.step or not step:
        return
    if not 1 / SAME_STEP < step / detector.step < SAME_STEP:
        yield (
            f"{series.entity}: warning: a row every {step:g}, but {detector.step:g} in "
            "training: the model has learned another sampling rate"
        )


def _foreign(detector: Detector, index: int, series: Series) -> Iterator[str]:
    """Rows with values that training never saw."""
    if detector.ranges is None:
        return
    ranges = Ranges(*(side[index] for side in detector.ranges))
    rows, by_channel = 0, np.zeros(len(detector.channels), np.int64)
    for first in range(0, len(series.values), _CHUNK):
        found = outside(ranges, series.values[first : first + _CHUNK])
        rows += int(found.any(axis=1).sum())
        by_channel += found.sum(axis=0)
    if not rows:
        return
    share = rows / len(series.values)
    most = np.argsort(-by_channel, kind="stable")[:3]
    named = ", ".join(
        f"{detector.channels[i]} {by_channel[i]:,}{_was_dead(ranges, i)}"
        for i in most
        if by_channel[i]
    )
    word = "warning: " if share > FOREIGN else ""
    yield (
        f"{series.entity}: {word}{rows:,} of {len(series.values):,} rows ({share:.1%}) "
        f"have values outside the training range: {named}"
    )


def _was_dead(ranges: Ranges, channel: int) -> str:
    return (
        " (constant in training)" if ranges.low[channel] == ranges.high[channel] else ""
    )


def _missing(series: Series, table: pd.DataFrame) -> Iterator[str]:
    if not has_missing(series.values):
        return
    cells = int(np.isnan(series.values).sum())
    unscored = int(table["score"].isna().sum())
    yield (
        f"{series.entity}: {cells:,} cells are missing; {unscored:,} rows have no score "
        "and count as unknown"
    )


def _drift(
    detector: Detector, index: int, series: Series, table: pd.DataFrame
) -> Iterator[str]:
    found = score_drift(detector, index, table["window_score"].to_numpy())
    if found is not None and found.drifted:
        yield (
            f"{series.entity}: warning: scores have drifted from those of calibration "
            f"(distance {found.distance:.2f} over {found.n} separate windows), so the "
            "false-alarm rate no longer holds: kdjax calibrate on recent clean rows "
            "makes a new threshold"
        )
