"""The conformal threshold against its definition, exact ranks and simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdjax.detection.threshold import (
    METHODS,
    conformal,
    needed_scores,
    too_few_message,
)
from kdjax.errors import ConfigError, DataError

# Rates as decimal text: what a user means by 0.1 is a tenth.
rates = st.sampled_from(
    ["0.001", "0.003", "0.005", "0.01", "0.02", "0.03", "0.05", "0.07", "0.1", "0.15",
     "0.2", "0.25", "0.29", "0.3", "0.35", "0.4", "0.45", "0.5", "0.57", "0.9", "0.99"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(rates, st.integers(0, 300), st.integers(0, 2**32 - 1))
# Where (n + 1)(1 − rate) is whole, floats put it just above: n is 9, 19 and 24 here.
@example("0.7", 8, 0)
@example("0.95", 18, 0)
@example("0.96", 23, 0)
@example("0.1", 0, 0)
@example("0.01", 0, 0)
def test_tau_is_the_smallest_score_that_enough_scores_reach(text, extra, seed):
    """By definition: the least τ among the scores with #{s ≤ τ} ≥ (n+1)(1−rate)."""
    rate = Fraction(text)
    n = math.ceil(1 / rate - 1) + extra
    scores = np.random.default_rng(seed).choice(2 * n + 1, n, replace=False) / 2
    got = conformal(scores, rate=float(text))
    below = {s: int((scores <= s).sum()) for s in scores}
    tau = min(s for s in scores if below[s] >= (n + 1) * (1 - rate))
    assert (got.tau, got.rank) == (tau, below[tau])
    assert (got.method, got.rate, got.n) == ("conformal", float(text), n)
    assert got.source == "own"


@settings(deadline=None)
@given(rates)
def test_needed_is_the_least_n_with_a_rank(text):
    needed = needed_scores(float(text))
    rate = Fraction(text)
    assert math.ceil((needed + 1) * (1 - rate)) <= needed
    assert needed == 0 or math.ceil(needed * (1 - rate)) > needed - 1


@pytest.mark.parametrize(
    ("rate", "needed"),
    [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.5, 1), (0.03, 33)],
)
def test_needed_by_hand(rate, needed):
    assert needed_scores(rate) == needed


def test_99_scores_at_one_percent_give_the_largest():
    scores = np.random.default_rng(0).normal(size=99)
    threshold = conformal(scores, rate=0.01, source="shared")
    assert threshold.tau == scores.max()
    assert (threshold.rank, threshold.n, threshold.source) == (99, 99, "shared")
    assert conformal(np.append(scores, 9.0), rate=0.01).tau == 9.0
    assert conformal(np.arange(199.0), rate=0.01).tau == 197.0


def test_98_scores_are_too_few_for_one_percent():
    message = (
        "threshold.false_alarm_rate=0.01 needs at least 99 calibration windows, have 98:"
        " give more training rows, raise data.calibration, lower data.stride, or accept"
        " a higher rate."
    )
    assert too_few_message(98, 0.01) == message
    with pytest.raises(
        ConfigError, match="needs at least 99 calibration windows, have 98"
    ):
        conformal(np.arange(98.0), rate=0.01)


@pytest.mark.parametrize("rate", [0.05, 0.1])
@pytest.mark.parametrize("n", [19, 50, 137])
def test_realised_rate_on_exchangeable_scores(rate, n):
    """P(new > τ) = 1 − rank/(n+1), at most `rate`, whatever the distribution."""
    rng = np.random.default_rng(1)
    trials = 4000
    scores = rng.chisquare(3, size=(trials, n + 1))
    alarms = [conformal(row[:n], rate=rate).tau < row[n] for row in scores]
    rank = conformal(scores[0, :n], rate=rate).rank
    wanted = 1 - rank / (n + 1)
    assert wanted <= rate + 1e-12
    assert np.mean(alarms) == pytest.approx(wanted, abs=4 * math.sqrt(rate / trials))


def test_equal_scores_raise_no_alarm_among_themselves():
    threshold = conformal(np.full(40, 2.0), rate=0.1)
    assert threshold.tau == 2.0
    assert not 2.0 > threshold.tau


def test_an_infinite_score_is_refused_where_it_would_be_tau():
    scores = np.arange(99.0)
    scores[40] = np.inf
    with pytest.raises(DataError, match="the threshold is inf.*huge values.*scaler"):
        conformal(scores, rate=0.01)
    # Of 199 scores the two largest lie above τ: one infinite one does no harm.
    assert conformal(np.append(scores, np.arange(100.0)), rate=0.01).tau == 99.0


def test_a_score_that_is_no_number_never_gives_a_threshold():
    with pytest.raises(DataError, match="the threshold is nan"):
        conformal(np.append(np.arange(98.0), np.nan), rate=0.01)


def test_names_of_methods():
    assert METHODS == ("conformal",)
