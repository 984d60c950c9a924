"""Thresholds chosen without labels, on the window scores of clean calibration rows.

Split conformal prediction (Vovk et al., 2005; Lei et al., 2018): with the n scores of
calibration and a new one exchangeable, the new one exceeds the ⌈(n+1)(1−rate)⌉-th
smallest with probability at most `rate`. Time series are exchangeable at best nearly,
and the promise is one on average over calibration sets: compare the realised rate.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError

METHODS = ("conformal",)


class Threshold(NamedTuple):
    """A threshold and how it came about.

    Attributes:
        tau: τ; a window alarms when its score is above.
        method: the rule's name.
        rate: the wanted share of false alarms among normal windows.
        n: number of calibration scores.
        rank: τ is the rank-th smallest of them.
        source: whose scores they are: `own` of the entity, `shared` by all entities,
            each under its own Normal, or `pooled`: of all under the pooled Normal.
    """

    tau: float
    method: str
    rate: float
    n: int
    rank: int
    source: str


def needed_scores(rate: float) -> int:
    """The least n for which `conformal` can hold `rate`: n ≥ 1/rate − 1.

    >>> needed_scores(0.01)
    99
    """
    return math.ceil(1 / Fraction(str(rate)) - 1)


def conformal(scores: np.ndarray, *, rate: float, source: str = "own") -> Threshold:
    """τ = the ⌈(n+1)(1−rate)⌉-th smallest calibration window score `[n]`.

    Raises:
        ConfigError: n is too small for the rate.
        DataError: τ would not be finite.

    >>> conformal(np.arange(99.0), rate=0.01).tau
    98.0
    """
    n = len(scores)
    if n < needed_scores(rate):
        raise ConfigError(too_few_message(n, rate))
    # Exact in fractions: (n + 1)(1 − rate) in floats can round up past an integer.
    rank = math.ceil((n + 1) * (1 - Fraction(str(rate))))
    tau = float(np.sort(scores)[rank - 1])
    if not math.isfinite(tau):
        raise DataError(
            f"the threshold is {tau}: calibration scores are not finite. Look for huge "
            "values in the calibration rows, or scale them (data.scaler)."
        )
    return Threshold(tau, "conformal", rate, n, rank, source)


def too_few_message(n: int, rate: float) -> str:
    """What to say where n calibration windows can't hold the rate."""
    return (
        f"threshold.false_alarm_rate={rate:g} needs at least {needed_scores(rate)} "
        f"calibration windows, have {n}: give more training rows, raise "
        "data.calibration, lower data.stride, or accept a higher rate."
    )
