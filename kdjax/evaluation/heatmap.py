"""What channels contribute to the scores of a long series, in few columns of time."""

import numpy as np

from kdjax.data.windowing import add_scores, empty_sums, mean_of_sums
from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import Detector, explain_batches, gaussian_of

BLOCK = 65_536  # rows whose contributions are held at once


def contribution_bins(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    bins: np.ndarray,
    *,
    block: int = BLOCK,
) -> np.ndarray:
    """The largest contribution of each channel among the rows of each bin, `[K, D]`.

    A row's contributions are those to its score: means over the windows that cover it.
    NaN in bins without a row that has a score.

    Args:
        detector: the detector.
        index: from `entity_index`.
        values: `[N, D]` raw rows; may be a memory map.
        starts: `[M]` first rows of windows.
        bins: `[N]` from 0 to K − 1, the bin of each row.
        block: rows at once; those of the windows on their edges come on top.
    """
    width = len(detector.channels)
    attribution = attribution_matrix(
        gaussian_of(detector, index), method=detector.attribution
    )
    largest = np.full((int(bins.max(initial=-1)) + 1, width), np.nan)
    for first in range(0, len(values), block):
        last = min(first + block, len(values))
        own = starts[(starts > first - detector.window) & (starts < last)]
        if len(own):
            rows = _row_means(detector, index, values, own, attribution, first, last)
            np.fmax.at(largest, bins[first:last], rows)
    return largest


def _row_means(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    attribution: np.ndarray,
    first: int,
    last: int,
) -> np.ndarray:
    """Contributions to the scores of the rows from `first` to before `last`."""
    begin = min(first, int(starts.min()))
    length = max(last, int(starts.max()) + detector.window) - begin
    points, parts = empty_sums(length), empty_sums(length, len(detector.channels))
    done = 0
    for found in explain_batches(
        detector, index, values, starts, attribution=attribution
    ):
        batch = starts[done : done + len(found.points)] - begin
        done += len(batch)
        add_scores(points, found.points, batch)
        add_scores(parts, found.contributions, batch)
    means = mean_of_sums(parts)
    means[np.isnan(mean_of_sums(points))] = np.nan  # no score, no parts of it
    return means[first - begin : last - begin]
