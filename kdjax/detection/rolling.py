"""Thresholds that change with a stream: adaptive conformal inference, and rolling ones.

Gibbs and Candès, "Adaptive Conformal Inference Under Distribution Shift", NeurIPS 2021,
Eq. 2: after each score the level moves against the error,

    α_{t+1} = α_t + γ (rate − err_t),   err_t = 1 if score_t > τ_t else 0,

and τ_t is the conformal threshold at level α_t of the last n scores, which start as those
of calibration. The share of alarms among the first T scores is within
(max(α_1, 1 − α_1) + γ) / (Tγ) of the rate, whatever the scores are (Proposition 4.1).

Anomalies count as scores too: after a long anomaly without pause, τ is infinite for a
while and nothing alarms. It suits streams with drift and short anomalies.

Updates once every `stride` rows, the stride of the calibration windows. With stride 1 the
n scores would cover only the last n rows, and errors would cluster.

A rolling threshold (`start_rolling`) is the conformal threshold at a fixed level of all
scores so far, calibration's and the stream's (γ = 0). It has no guarantee.
"""

import math
from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError

# Scores kept for a rolling threshold: ten weeks at a window every ten minutes.
REMEMBERED = 10_000


class Adaptive(NamedTuple):
    """State between scores."""

    alpha: float  # α_t; may leave [0, 1] by up to γ
    rate: float  # the wanted share of alarms
    step: float  # γ
    most: int  # number of scores kept; then each new one replaces the oldest
    recent: np.ndarray  # [n] last scores, the oldest first
    ordered: np.ndarray  # the same, smallest first


def start_adaptive(scores: np.ndarray, rate: float, *, step: float = 0.005) -> Adaptive:
    """The state before the first score, from calibration window scores `[n]` in time.

    n stays constant. `rate` is the wanted share of alarms, also α_1. A larger γ, `step`,
    adapts faster and alarms less evenly; the paper uses 0.005.
    """
    if not (0 < rate < 1 and 0 < step < math.inf):
        raise ConfigError(
            f"an adaptive threshold with rate={rate:g} and step={step:g}: expected a "
            "rate between 0 and 1 and a step above 0."
        )
    return _start(scores, rate, step, len(scores))


def start_rolling(scores: np.ndarray, rate: float) -> Adaptive:
    """The state of a rolling threshold before the first score.

    Scores `[n]` of calibration are `shuffled` where their order in time is unknown;
    `rate` is the wanted share of alarms among all scores, anomalies included.

    >>> state = adapt(start_rolling(np.arange(99.0), 0.02), 200.0)
    >>> len(state.recent), adaptive_tau(state)
    (100, 98.0)
    """
    if not 0 < rate < 1:
        raise ConfigError(
            f"a rolling threshold with rate={rate:g}: expected a share of windows "
            "between 0 and 1."
        )
    return _start(scores[:REMEMBERED], rate, 0.0, REMEMBERED)


def shuffled(scores: np.ndarray) -> np.ndarray:
    """Sorted scores in a fixed random order, so that dropping the oldest is unbiased."""
    return scores[np.random.default_rng(0).permutation(len(scores))]


def rolling_taus(scores: np.ndarray, new: np.ndarray, rate: float) -> np.ndarray:
    """The rolling τ before each of the new scores `[M] -> [M]`; NaN scores are skipped.

    >>> rolling_taus(np.arange(9.0), np.array([20.0, 0.0, 0.0]), 0.2)
    array([7., 8., 8.])
    """
    state, taus = start_rolling(scores, rate), np.empty(len(new))
    for place, score in enumerate(np.asarray(new, np.float64)):
        taus[place] = adaptive_tau(state)
        if not math.isnan(score):
            state = adapt(state, float(score))
    return taus


def adaptive_tau(state: Adaptive) -> float:
    """τ for the next score: the ⌈(n+1)(1−α)⌉-th smallest of the last n.

    Infinite if α needs more scores than there are, -inf if α is at least 1.

    >>> adaptive_tau(start_adaptive(np.arange(99.0), 0.02))
    97.0
    """
    n = len(state.ordered)
    # Exact arithmetic: 100 · 0.29 in floats is below 29.
    rank = n + 1 - math.floor((n + 1) * state.alpha + 1e-9)
    if rank > n:
        return math.inf
    return float(state.ordered[rank - 1]) if rank > 0 else -math.inf


def adapt(state: Adaptive, score: float) -> Adaptive:
    """The state after a score, which alarms if it exceeds `adaptive_tau(state)`.

    Raises:
        DataError: the score is NaN.

    >>> state = adapt(start_adaptive(np.arange(99.0), 0.02), 200.0)
    >>> round(state.alpha, 4), adaptive_tau(state)
    (0.0151, 200.0)
    """
    if math.isnan(score):
        raise DataError(
            "an adaptive threshold got a score of NaN: leave out windows without a "
            "score."
        )
    recent, ordered = state.recent, state.ordered
    if len(recent) == state.most:
        ordered = np.delete(ordered, np.searchsorted(ordered, recent[0]))
        recent = recent[1:]
    return state._replace(
        alpha=state.alpha + state.step * (state.rate - (score > adaptive_tau(state))),
        recent=np.append(recent, score),
        ordered=np.insert(ordered, np.searchsorted(ordered, score), score),
    )


def _start(scores: np.ndarray, rate: float, step: float, most: int) -> Adaptive:
    recent = np.array(scores, np.float64)
    missing = int(np.isnan(recent).sum())
    if len(recent) == 0 or missing:
        raise DataError(
            f"{len(recent)} calibration scores, {missing} of them NaN: an adaptive "
            "threshold needs at least one score and no NaN."
        )
    return Adaptive(rate, rate, step, most, recent, np.sort(recent))
