"""Point-adjusted F1, and PA%K: inflated measures, for comparison with papers only.

Point adjustment counts every row of an event as found once one of them is: uniformly
random scores then reach an F1 of 0.78 on the labels of SMD, and 0.96 on its first
machine (Kim et al., AAAI 2022, arXiv 2109.05257). Compare with random scores. PA%K
adjusts an event only if more than K % of its rows are found.
"""

import numpy as np
import numpy.typing as npt

from kdjax.errors import ConfigError
from kdjax.metrics.checks import (
    nan_reasons,
    runs,
    warn_undefined,
    why_undefined,
    with_alarms,
)
from kdjax.metrics.points import count, from_counts


def point_adjusted_f1(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """F1 (Eq. 5) after each event with an alarm counts as found throughout; inflated.

    NaN with a warning if nothing is labelled.

    >>> point_adjusted_f1([0, 1, 1, 1, 1], [1, 0, 1, 0, 0])  # TP 4, FP 1
    0.8888888888888888
    """
    truth, alarms = with_alarms(labels, predictions)
    value = adjusted_f1_of(truth, alarms, k=0)
    reasons = nan_reasons({"point_adjusted_f1": value}, why_undefined(truth, alarms))
    warn_undefined(reasons)
    return value


def pa_k_f1(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, *, k: float = 20
) -> float:
    """F1 (Eq. 5) after each event with more than `k` % alarms counts as found; inflated.

    `k=0` is point adjustment and `k=100` plain F1. NaN with a warning if nothing is
    labelled; ConfigError unless `k` is a percentage.

    >>> pa_k_f1([0, 1, 1, 1, 1], [1, 0, 1, 0, 0], k=25)  # 25 % aren't more: TP 1, FP 1
    0.3333333333333333
    """
    truth, alarms = with_alarms(labels, predictions)
    value = adjusted_f1_of(truth, alarms, k=k)
    warn_undefined(nan_reasons({"pa_k_f1": value}, why_undefined(truth, alarms)))
    return value


def adjusted_f1_of(truth: np.ndarray, alarms: np.ndarray, *, k: float) -> float:
    """F1 after PA%K of checked `[N]` bool arrays, without a warning."""
    if not 0 <= k <= 100:
        raise ConfigError(f"k={k}: expected a percentage from 0 to 100.")
    starts, stops = runs(truth)
    found = np.append(0, np.cumsum(alarms))
    hits, lengths = found[stops] - found[starts], stops - starts
    adjusted = alarms.copy()
    adjusted[truth] |= np.repeat(100 * hits > k * lengths, lengths)
    return from_counts(count(truth, adjusted)).f1
