"""An exported file against the detector it came from, on real windows.

Both compute in float32, in another order. On the networks measured (6 to 200 units, 5
to 38 channels) scores differ by up to 3e-6 of max(1, score), and by up to 4e-5 where
missing cells are completed under a nearly singular Normal. A decision may differ where a
score lies that close to τ, and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.windows import gather
from kdjax.detection.blame import blame_matrix
from kdjax.detection.detector import (
    BATCH_SIZE,
    Detector,
    explain_batches,
    normal_of,
    scoring_batch,
)
from kdjax.detection.scores import window_scores
from kdjax.errors import ConfigError
from kdjax.export.scorer import Scored

# A window score within this share of τ may fall on either side of it.
ROUNDING = 1e-4
# Windows compared at most, spread evenly: enough to meet rounding.
WINDOWS = 1000


class Parity(NamedTuple):
    """How two ways to compute the same scores agree; scores relative to max(1, score).

    Attributes:
        windows: compared.
        available: at stride 1.
        max_difference: of point scores, window scores and contributions.
        median_shift: median difference of window scores.
        max_shift: largest difference of window scores.
        flips: windows that alarm in one way only, or have a score in one way only.
        flips_beyond_rounding: those whose score is further from τ than `ROUNDING`.
    """

    windows: int
    available: int
    max_difference: float
    median_shift: float
    max_shift: float
    flips: int
    flips_beyond_rounding: int


def check_export(
    detector: Detector,
    index: int,
    run: Callable[[np.ndarray], Scored],
    series: Sequence[np.ndarray],
) -> Parity:
    """Compares `run` with kdjax itself on windows at stride 1 of raw rows.

    Args:
        detector: the detector.
        index: from `entity_index`.
        run: windows `[B, L, D]` to their scores.
        series: rows `[N, D]` each.

    Raises:
        ConfigError: no series has a whole window.
    """
    available = sum(max(0, len(rows) - detector.window + 1) for rows in series)
    if not available:
        raise ConfigError(
            f"there is no window of {detector.window} rows to check the exported file "
            "on: give a file of such rows with --data=FILE."
        )
    pairs = list(_pairs(detector, index, run, series, available))
    tau = detector.thresholds[index].tau
    shifts = np.concatenate(
        [_difference(b.window_score, a.window_score) for a, b in pairs]
    )
    flips = [_flips(a, b, tau) for a, b in pairs]
    return Parity(
        windows=len(shifts),
        available=available,
        max_difference=max(_largest(ours, theirs) for ours, theirs in pairs),
        median_shift=float(np.median(shifts)),
        max_shift=float(shifts.max()),
        flips=sum(len(scores) for scores in flips),
        # NaN is nowhere near τ.
        flips_beyond_rounding=sum(
            int((~(np.abs(scores - tau) <= ROUNDING * tau)).sum()) for scores in flips
        ),
    )


def _pairs(
    detector: Detector,
    index: int,
    run: Callable[[np.ndarray], Scored],
    series: Sequence[np.ndarray],
    available: int,
) -> Iterator[tuple[Scored, Scored]]:
    """What kdjax and `run` say of the same windows, a batch at a time."""
    blame = blame_matrix(normal_of(detector, index), method=detector.blame)
    size = scoring_batch(detector.model, len(detector.channels), BATCH_SIZE)
    length, tau = detector.window, detector.thresholds[index].tau
    for rows, starts in _chosen(series, length, available):
        pieces = explain_batches(
            detector, index, rows, starts, blame=blame, batch_size=size
        )
        first = 0
        for piece in pieces:
            batch = starts[first : first + len(piece.points)]
            first += len(batch)
            largest = window_scores(piece.points, count=detector.allowed_points)
            alarm = (largest > tau).astype(np.int64)
            ours = Scored(piece.points, largest, alarm, piece.contributions)
            yield ours, run(gather(rows, batch, length))


def _chosen(
    series: Sequence[np.ndarray], length: int, available: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and starts of `WINDOWS` windows spread evenly over all there are."""
    count = min(available, WINDOWS)
    places = np.rint(np.linspace(0, available - 1, count)).astype(np.int64)
    for rows in series:
        here = max(0, len(rows) - length + 1)
        starts, places = places[places < here], places[places >= here] - here
        if len(starts):
            yield np.asarray(rows, np.float32), starts


def _largest(ours: Scored, theirs: Scored) -> float:
    """The largest difference; a contribution's is a share of the whole score."""
    points = ours.point_score
    differences = (
        _difference(theirs.point_score, points),
        _difference(theirs.window_score, ours.window_score),
        _difference(theirs.contribution, ours.contribution, points[..., None]),
    )
    return float(max(difference.max() for difference in differences))


def _difference(
    found: np.ndarray, expected: np.ndarray, unit: np.ndarray | None = None
) -> np.ndarray:
    """|found − expected| / max(1, unit); infinite where one alone is a finite number.

    The unit is `expected` if not given.
    """
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    unit = expected if unit is None else unit
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(found - expected) / np.maximum(1, unit)
    finite = np.isfinite(found) & np.isfinite(expected)
    result: np.ndarray = np.where(same, 0, np.where(finite, distance, np.inf))
    return result


def _flips(ours: Scored, theirs: Scored, tau: float) -> np.ndarray:
    """Our scores of the windows on which the decisions differ."""
    unknown = np.isnan(ours.window_score) != np.isnan(theirs.window_score)
    differs = unknown | (ours.alarm != theirs.alarm)
    scores: np.ndarray = ours.window_score[differs].astype(np.float64)
    return scores
