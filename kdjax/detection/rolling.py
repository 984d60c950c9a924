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

`start_rolling` is plainer: τ_t is the conformal threshold at a fixed level of **all**
scores so far, calibration's and the stream's, γ = 0. It moves as slowly as the past is
long, so an anomaly moves it little, and behaviour that changed for good moves it until the
wanted share of all scores lies above. It promises nothing.
"""

import math
from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError

# Scores that a threshold of all so far remembers: ten weeks at a window every ten minutes.
REMEMBERED = 10_000


class Adaptive(NamedTuple):
    """What is remembered from score to score.

    Attributes:
        alpha: α_t; may leave [0, 1] by up to γ.
        rate: the wanted share of alarms.
        step: γ.
        most: scores that are remembered; from then on the oldest leaves for each new one.
        recent: `[n]` last scores, the oldest first.
        ordered: the same, smallest first.
    """

    alpha: float
    rate: float
    step: float
    most: int
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
    return _start(scores, rate, step, len(scores))


def start_rolling(scores: np.ndarray, rate: float) -> Adaptive:
    """The state of a threshold that is one of all scores so far.

    Args:
        scores: `[n]` of calibration, `shuffled` where their order in time is gone.
        rate: the wanted share of alarms among all scores, anomalies too.

    >>> state = adapt(start_rolling(np.arange(99.0), 0.02), 200.0).state
    >>> len(state.recent), adaptive_tau(state)
    (100, 98.0)
    """
    if not 0 < rate < 1:
        raise ConfigError(
            f"a following threshold with rate={rate:g}: expected a share of windows "
            "between 0 and 1."
        )
    return _start(scores[:REMEMBERED], rate, 0.0, REMEMBERED)


def shuffled(scores: np.ndarray) -> np.ndarray:
    """Sorted scores in an order, always the same, in which small and large mix.

    Old ones then leave evenly, as they would in the order of time.
    """
    return scores[np.random.default_rng(0).permutation(len(scores))]


def rolling_taus(scores: np.ndarray, new: np.ndarray, rate: float) -> np.ndarray:
    """τ in force before each of the new scores `[M]`, as `start_rolling` has it, `[M]`.

    A new score that is NaN moves nothing.

    >>> rolling_taus(np.arange(9.0), np.array([20.0, 0.0, 0.0]), 0.2)
    array([7., 8., 8.])
    """
    state, taus = start_rolling(scores, rate), np.empty(len(new))
    for place, score in enumerate(np.asarray(new, np.float64)):
        taus[place] = adaptive_tau(state)
        if not math.isnan(score):
            state = adapt(state, float(score)).state
    return taus


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
    grows = len(state.recent) < state.most
    after = state._replace(
        alpha=state.alpha + state.step * (state.rate - alarm),
        recent=np.append(state.recent if grows else state.recent[1:], score),
        ordered=_added(state.ordered, score)
        if grows
        else _exchanged(state.ordered, state.recent[0], score),
    )
    return Adapted(after, tau, alarm)


def _start(scores: np.ndarray, rate: float, step: float, most: int) -> Adaptive:
    recent = np.array(scores, np.float64)
    if len(recent) == 0 or np.isnan(recent).any():
        raise DataError(
            f"{len(recent)} calibration scores, {int(np.isnan(recent).sum())} of them "
            "no number: an adaptive threshold needs at least one score, and numbers."
        )
    return Adaptive(rate, rate, step, most, recent, np.sort(recent))


def _added(ordered: np.ndarray, new: float) -> np.ndarray:
    return np.insert(ordered, np.searchsorted(ordered, new), new)


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
