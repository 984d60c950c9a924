"""Precision and recall of ranges (Tatbul et al., NeurIPS 2018).

Recall is the mean over labelled ranges of the share that alarms cover; precision the mean
over ranges of alarms of the share that is labelled. Long events count no more than short
ones. The options are those of the `prts` package.
"""

import math

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
from kdjax.metrics.points import PrecisionRecallF1, harmonic_mean

CARDINALITIES = ("reciprocal", "one")
BIASES = ("flat", "front", "middle", "back")


def range_precision_recall(
    labels: npt.ArrayLike,
    predictions: npt.ArrayLike,
    *,
    alpha: float = 0.0,
    cardinality: str = "reciprocal",
    bias: str = "flat",
) -> PrecisionRecallF1:
    """Range precision, range recall and their harmonic mean; rows in order.

    Where nothing was predicted precision is NaN, recall and F1 are 0; without positive
    labels all are NaN; an `UndefinedMetricWarning` says so.

    Args:
        labels: `[N]`, 1 in anomalous rows.
        predictions: `[N]`, 1 in rows with an alarm.
        alpha: 0 to 1, weight in recall of an event being hit at all; the rest is the
            weight of the covered share. Not used in precision.
        cardinality: `reciprocal` divides a range's reward by the number of ranges that
            overlap it, `one` does not.
        bias: which rows of a range count most: `flat` none, `front` the first, `middle`,
            `back` the last.

    Raises:
        ConfigError: another `alpha`, `cardinality` or `bias`.

    >>> range_precision_recall([0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0, 0])
    PrecisionRecallF1(precision=0.75, recall=0.25, f1=0.375)
    """
    truth, alarms = with_alarms(labels, predictions)
    found = ranges_of(truth, alarms, alpha=alpha, cardinality=cardinality, bias=bias)
    warn_undefined(nan_reasons(found._asdict(), why_undefined(truth, alarms)))
    return found


def ranges_of(
    truth: np.ndarray,
    alarms: np.ndarray,
    *,
    alpha: float = 0.0,
    cardinality: str = "reciprocal",
    bias: str = "flat",
) -> PrecisionRecallF1:
    """`range_precision_recall` of checked `[N]` bool arrays, without a warning."""
    _check(alpha, cardinality, bias)
    if not truth.any():
        return PrecisionRecallF1(math.nan, math.nan, math.nan)
    if not alarms.any():
        return PrecisionRecallF1(math.nan, 0.0, 0.0)
    options = {"cardinality": cardinality, "bias": bias}
    recall = _mean_reward(truth, alarms, alpha=alpha, **options)
    precision = _mean_reward(alarms, truth, alpha=0.0, **options)
    return PrecisionRecallF1(precision, recall, harmonic_mean(precision, recall))


def _mean_reward(
    ranges: np.ndarray,
    others: np.ndarray,
    *,
    alpha: float,
    cardinality: str,
    bias: str,
) -> float:
    """Mean over the runs of `ranges` of their reward from the runs of `others`."""
    starts, stops = runs(ranges)
    lengths = stops - starts
    firsts = np.cumsum(lengths) - lengths  # where each run begins among its own rows
    place = np.arange(lengths.sum()) - np.repeat(firsts, lengths) + 1  # 1, 2, ...
    weights = _weights(place, np.repeat(lengths, lengths), bias)
    covered = others[ranges]
    share = np.add.reduceat(weights * covered, firsts) / np.add.reduceat(
        weights, firsts
    )
    begins = covered & ((place == 1) | ~np.append(False, covered[:-1]))
    overlaps = np.add.reduceat(begins.astype(int), firsts)
    factor = 1 / np.maximum(overlaps, 1) if cardinality == "reciprocal" else 1.0
    rewards = alpha * (overlaps > 0) + (1 - alpha) * factor * share
    return float(rewards.mean())


def _weights(place: np.ndarray, length: np.ndarray, bias: str) -> np.ndarray:
    """Weight of the rows at `place` 1..n of ranges of `length` n."""
    from_end = length - place + 1
    if bias == "flat":
        weights = np.ones(len(place))
    elif bias == "front":
        weights = from_end
    elif bias == "back":
        weights = place
    else:
        weights = np.where(place <= length / 2, place, from_end)
    return weights.astype(np.float64)


def _check(alpha: float, cardinality: str, bias: str) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha}: expected a number from 0 to 1.")
    if cardinality not in CARDINALITIES:
        raise ConfigError(
            f"cardinality={cardinality!r}: expected one of {', '.join(CARDINALITIES)}."
        )
    if bias not in BIASES:
        raise ConfigError(f"bias={bias!r}: expected one of {', '.join(BIASES)}.")
