"""Volumes under the surface, VUS-ROC and VUS-PR (Paparrizos et al., VLDB 2022).

Each event gets a buffer in which the label falls off with distance. The areas under ROC
and precision-recall curves of these soft labels are averaged over all widths w = 0..W of
the buffer. The definition is that of TSB-AD 1.5, with its loops over widths and
thresholds as sums over counts: a row's soft label depends on its distances to the two
nearest events only.

With w = 0 this isn't AUC-ROC: recall is multiplied by the share of events that are hit.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kdjax.errors import ConfigError
from kdjax.metrics.checks import one_class, runs, warn_undefined, with_scores


class Volumes(NamedTuple):
    """VUS-ROC and VUS-PR; NaN where undefined."""

    roc: float
    pr: float


def vus(
    labels: ArrayLike, scores: ArrayLike, *, window: int, thresholds: int = 250
) -> Volumes:
    """VUS-ROC and VUS-PR; NaN with a warning if only one class is labelled.

    Args:
        labels: `[N]`, 1 in anomalous rows.
        scores: `[N]`, larger = more anomalous; rows in order.
        window: W, the widest buffer, in rows; half of it lies on each side of an event.
        thresholds: how many, evenly spaced among the sorted scores.

    Raises:
        ConfigError: a `window` below 0 or `thresholds` below 1.

    >>> volumes = vus([0, 0, 1, 1, 0, 0], [1, 2, 9, 8, 3, 1], window=2)
    >>> [round(volume, 4) for volume in volumes]
    [1.0, 1.0]
    """
    return _checked(labels, scores, window, thresholds, "vus_roc", "vus_pr")


def vus_roc(
    labels: ArrayLike, scores: ArrayLike, *, window: int, thresholds: int = 250
) -> float:
    """Volume under the ROC surface; arguments and the undefined case as in `vus`.

    >>> vus_roc([0, 1, 0, 0], [1, 3, 2, 4], window=0)
    0.6666666666666667
    """
    return _checked(labels, scores, window, thresholds, "vus_roc").roc


def vus_pr(
    labels: ArrayLike, scores: ArrayLike, *, window: int, thresholds: int = 250
) -> float:
    """Volume under the precision-recall surface; arguments as in `vus`.

    >>> vus_pr([0, 1, 0, 0], [1, 3, 2, 4], window=0)
    0.5
    """
    return _checked(labels, scores, window, thresholds, "vus_pr").pr


def _checked(
    labels: ArrayLike, scores: ArrayLike, window: int, thresholds: int, *names: str
) -> Volumes:
    """Both volumes; warns of the metrics `names` if undefined."""
    truth, values = with_scores(labels, scores)
    if window < 0 or window != int(window):
        raise ConfigError(
            f"window={window}: expected a whole number of rows, 0 or more."
        )
    if thresholds < 1 or thresholds != int(thresholds):
        raise ConfigError(
            f"thresholds={thresholds}: expected a whole number, 1 or more, such as 250."
        )
    if reason := one_class(truth):
        warn_undefined(dict.fromkeys(names, reason), stacklevel=4)
        return Volumes(float("nan"), float("nan"))
    # Of each row the number of the first threshold, from the highest, that flags it.
    places = np.linspace(0, len(values) - 1, thresholds).astype(int)  # as TSB-AD's
    first = np.searchsorted(np.sort(-values)[places], -values)
    flagged = _totals(first, thresholds)  # [T] rows
    soft = _buffer_hits(truth, first, window, thresholds)  # [W + 1, T]
    share = _shares_of_events(truth, first, window // 2, thresholds)  # [W // 2 + 1, T]
    hits = _totals(first[truth], thresholds) + soft
    # Half-way between what is labelled and what is labelled or rightly found nearby.
    positives = np.count_nonzero(truth) + soft / 2
    recall = np.minimum(hits / positives, 1)
    tpr = recall * share[np.arange(window + 1) // 2]
    fpr = (flagged - hits) / (len(truth) - positives)
    ends = ((0, 0), (1, 1))
    roc = np.trapezoid(
        np.pad(tpr, ends, constant_values=(0, 1)),
        np.pad(fpr, ends, constant_values=(0, 1)),
    )
    pr = (np.diff(tpr, prepend=0) * (hits / flagged)).sum(axis=1)
    return Volumes(float(roc.mean()), float(pr.mean()))


def _totals(first: np.ndarray, thresholds: int) -> np.ndarray:
    """How many of the rows each threshold flags, `[K] -> [T]`."""
    return np.cumsum(np.bincount(first, minlength=thresholds)[:thresholds])


def _buffer_hits(
    truth: np.ndarray, first: np.ndarray, window: int, thresholds: int
) -> np.ndarray:
    """Soft labels of flagged rows outside events, added up, `[W + 1, T]`.

    With buffers of width w, h = w // 2 rows on each side, the soft label at distance d
    is sqrt(1 - d / w). That of two buffers is clipped to 1, and no label of a buffer is
    below sqrt(1/2): so where two buffers meet it is 1.
    """
    reach = window // 2
    near, second = _distances(truth, beyond=2 * (len(truth) + window))
    close = near <= reach
    near, second, first = near[close], second[close], first[~truth][close]
    cells = near * (thresholds + 1) + first
    shape = (reach + 1, thresholds + 1)
    size = shape[0] * shape[1]
    single = np.bincount(cells, minlength=size).reshape(shape)
    double = np.zeros(thresholds + 1)
    hits = np.zeros((window + 1, thresholds + 1))
    for h in range(1, reach + 1):
        met = second == h
        single -= np.bincount(cells[met], minlength=size).reshape(shape)
        double += np.bincount(first[met], minlength=thresholds + 1)
        for w in range(2 * h, min(2 * h + 1, window) + 1):
            falling = np.sqrt(1 - np.arange(1, h + 1) / w)
            hits[w] = falling @ single[1 : h + 1] + double
    return np.cumsum(hits[:, :thresholds], axis=1)


def _distances(truth: np.ndarray, *, beyond: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows from each row outside events to the nearest event, and to the second one."""
    starts, stops = runs(truth)
    rows = np.flatnonzero(~truth)
    past = np.searchsorted(stops, rows, side="right")  # events that are over
    ends = np.concatenate([[-beyond, -beyond], stops - 1])
    begins = np.concatenate([starts, [beyond, beyond]])
    left, right = rows - ends[past + 1], begins[past] - rows
    further = np.minimum(rows - ends[past], begins[past + 1] - rows)
    return np.minimum(left, right), np.minimum(np.maximum(left, right), further)


def _shares_of_events(
    truth: np.ndarray, first: np.ndarray, reach: int, thresholds: int
) -> np.ndarray:
    """Share of the events, widened by h = 0..reach rows, that are hit, `[H + 1, T]`.

    Events whose widened rows meet count as one.
    """
    starts, stops = runs(truth)
    shares = np.empty((reach + 1, thresholds))
    closed = np.append(first, thresholds)  # an event may end with the last row
    for h in range(reach + 1):
        apart = stops[:-1] - 1 + h < starts[1:] - h
        begin = np.maximum(starts[np.append(True, apart)] - h, 0)
        end = np.minimum(stops[np.append(apart, True)] + h, len(truth))
        edges = np.column_stack([begin, end]).ravel()
        earliest = np.minimum.reduceat(closed, edges)[::2]
        shares[h] = _totals(earliest, thresholds) / len(begin)
    return shares
