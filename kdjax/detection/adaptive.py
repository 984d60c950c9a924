"""A threshold that follows its stream: adaptive conformal inference.

Gibbs and Candès, "Adaptive Conformal Inference Under Distribution Shift", NeurIPS 2021,
Eq. 2: after each score the level moves against the error,

    α_{t+1} = α_t + γ (rate − err_t),   err_t = 1 if score_t > τ_t else 0,

and τ_t is the conformal threshold at level α_t of the last n scores, which begin with
those of calibration. Whatever the scores do, the share of alarms among the first T is
within (max(α_1, 1 − α_1) + γ) / (Tγ) of the rate (Proposition 4.1).

That promise is one about **all** scores, so it has a price: an anomaly that lasts uses
the alarms up, and after a few of them τ is infinite for a while. It suits streams whose
normal behaviour drifts, watched for what is short; a fixed τ suits the rest.

Update it on one window every `stride` rows, the stride of the calibration windows, and
hold τ in between. Then the n scores cover as much time as calibration did. On every
window of a stride-1 stream they would cover the last n rows only, nearly all one
window, and the errors would come in clusters that use up α for long.
"""

import math
from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError


class Adaptive(NamedTuple):
    """What is remembered from score to score.

    Attributes:
        alpha: α_t; may leave [0, 1] by up to γ.
        rate: the wanted share of alarms.
        step: γ.
        recent: `[n]` last scores, the oldest first.
        ordered: the same, smallest first.
    """

    alpha: float
    rate: float
    step: float
    recent: np.ndarray
    ordered: np.ndarray


class Adapted(NamedTuple):
    """What a score led to.

    Attributes:
        state: for the next score.
        tau: τ_t, chosen before the score was seen; -inf and inf are possible.
        alarm: whether the score is above it.
    """

    state: Adaptive
    tau: float
    alarm: bool


def start_adaptive(scores: np.ndarray, rate: float, *, step: float = 0.005) -> Adaptive:
    """The state before the first score, from calibration window scores `[n]` in time.

    Args:
        scores: the oldest first. Their number stays; an update copies them, some 20 µs
            for ten thousand.
        rate: the wanted share of alarms, also α_1.
        step: γ. Larger ones follow faster and alarm less evenly; the paper uses 0.005.
    """
    if not (0 < rate < 1 and 0 < step < math.inf):
        raise ConfigError(
            f"an adaptive threshold with rate={rate:g} and step={step:g}: expected a "
            "rate between 0 and 1 and a step above 0."
        )
    recent = np.array(scores, np.float64)
    if len(recent) == 0 or np.isnan(recent).any():
        raise DataError(
            f"{len(recent)} calibration scores, {int(np.isnan(recent).sum())} of them "
            "no number: an adaptive threshold needs at least one score, and numbers."
        )
    return Adaptive(rate, rate, step, recent, np.sort(recent))


def adaptive_tau(state: Adaptive) -> float:
    """τ for the next score: the ⌈(n+1)(1−α)⌉-th smallest of the last n.

    Infinite where α asks for more scores than there are, -inf where for none.

    >>> adaptive_tau(start_adaptive(np.arange(99.0), 0.02))
    97.0
    """
    n = len(state.ordered)
    # Rounded down as exact numbers are: 100 · 0.29 in floats is below 29.
    rank = n + 1 - math.floor((n + 1) * state.alpha + 1e-9)
    if rank > n:
        return math.inf
    return float(state.ordered[rank - 1]) if rank > 0 else -math.inf


def adapt(state: Adaptive, score: float) -> Adapted:
    """The verdict on the next score, and the state after it.

    Raises:
        DataError: the score is no number. Leave such windows out.

    >>> adapted = adapt(start_adaptive(np.arange(99.0), 0.02), 200.0)
    >>> adapted.tau, adapted.alarm, round(adapted.state.alpha, 4)
    (97.0, True, 0.0151)
    """
    if math.isnan(score):
        raise DataError(
            "an adaptive threshold met a score that is no number: leave out windows "
            "without a score."
        )
    tau = adaptive_tau(state)
    alarm = bool(score > tau)
    recent = np.empty_like(state.recent)
    recent[:-1], recent[-1] = state.recent[1:], score
    after = Adaptive(
        alpha=state.alpha + state.step * (state.rate - alarm),
        rate=state.rate,
        step=state.step,
        recent=recent,
        ordered=_exchanged(state.ordered, state.recent[0], score),
    )
    return Adapted(after, tau, alarm)


def _exchanged(ordered: np.ndarray, old: float, new: float) -> np.ndarray:
    """Sorted scores with `new` in the place of one that equals `old`."""
    out, into = np.searchsorted(ordered, (old, new))
    after = ordered.copy()
    if into > out:
        after[out : into - 1] = ordered[out + 1 : into]
        after[into - 1] = new
    else:
        after[into + 1 : out + 1] = ordered[into:out]
        after[into] = new
    return after
