"""The threshold of best F1, found with the test labels in hand.

The paper doesn't say how τ of section 2.1 was chosen; the literature's custom is this
one. It uses the answers, so no detector in service can have it: every table names it
`oracle` and puts a label-free threshold beside it.
"""

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdjax.evaluation.labels import (
    NO_POSITIVES,
    UndefinedMetricWarning,
    with_scores,
)


class OracleThreshold(NamedTuple):
    """τ of best F1, alarm meaning score > τ, and that F1; NaN without positives."""

    threshold: float
    f1: float


def oracle_threshold(labels: npt.ArrayLike, scores: npt.ArrayLike) -> OracleThreshold:
    """τ of best F1 (Eq. 5) for `[N]` labels and scores, exact over all scores.

    τ is one of the scores or, where alarming on everything is best, the float just
    below the smallest. Of equally good thresholds the largest is taken: fewest alarms.
    O(N log N).

    >>> oracle_threshold([0, 0, 1, 1], [0.1, 0.3, 0.2, 0.9])
    OracleThreshold(threshold=0.1, f1=0.8)
    """
    truth, values = with_scores(labels, scores)
    if not truth.any():
        warnings.warn(
            f"the oracle threshold is NaN: {NO_POSITIVES}",
            UndefinedMetricWarning,
            stacklevel=2,
        )
        return OracleThreshold(float("nan"), float("nan"))
    thresholds, f1 = _candidates(truth, values)
    best = int(np.argmax(f1))
    return OracleThreshold(float(thresholds[best]), float(f1[best]))


def _candidates(
    labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each τ that changes the alarms, in falling order, with its F1."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    # Equal scores raise alarms together: a τ lies only where the score falls.
    last_of_ties = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    alarms = last_of_ties + 1
    hits = np.cumsum(labels[order])[last_of_ties]
    below_all = np.nextafter(ordered[-1], np.array(-np.inf, dtype=ordered.dtype))
    thresholds = np.concatenate(([ordered[0]], ordered[last_of_ties[1:]], [below_all]))
    # First candidate: τ = the largest score, no alarm. No τ lies below a score of -inf.
    alarms, hits = np.append(0, alarms), np.append(0, hits)
    stop = len(alarms) - int(ordered[-1] == -np.inf)
    f1 = 2 * hits / (alarms + np.count_nonzero(labels))
    return thresholds[:stop], f1[:stop]
