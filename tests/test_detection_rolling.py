"""Adaptive conformal inference against its theorem, plain sorting and a fixed τ."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.detection import rolling as adaptive
from kdjax.detection.rolling import (
    adapt,
    adaptive_tau,
    rolling_taus,
    shuffled,
    start_adaptive,
    start_rolling,
)
from kdjax.detection.thresholds import conformal_threshold
from kdjax.errors import ConfigError, DataError


def follow(state, scores):
    alarms = []
    for score in scores:
        alarms.append(score > adaptive_tau(state))
        state = adapt(state, score)
    return state, np.array(alarms, bool)


@pytest.mark.parametrize(("n", "rate"), [(9, 0.1), (99, 0.29), (346, 0.01), (29, 0.1)])
def test_the_first_threshold_is_the_conformal_one(n, rate):
    scores = np.random.default_rng(n).normal(size=n)
    state = start_adaptive(scores, rate)
    assert adaptive_tau(state) == conformal_threshold(scores, rate=rate)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=8),
    st.lists(st.integers(0, 8).map(float) | st.just(math.inf), max_size=30),
    st.floats(0.05, 0.95),
    st.floats(0.01, 0.6),
)
def test_each_update_is_the_formula_on_the_last_n_scores(first, scores, rate, step):
    state, seen, alpha = start_adaptive(np.array(first), rate, step=step), first, rate
    for score in scores:
        last = sorted(seen[-len(first) :])
        tau = adaptive_tau(state)
        alarm = score > tau
        state = adapt(state, score)
        # The least threshold that enough of [scores, the new one, …] reach.
        rank = math.ceil(round((len(last) + 1) * (1 - alpha), 9))
        expected = math.inf if rank > len(last) else -math.inf
        if 1 <= rank <= len(last):
            expected = last[rank - 1]
        assert (tau, alarm) == (expected, score > expected)
        alpha += step * (rate - alarm)
        seen = [*seen, score]
        assert state.alpha == pytest.approx(alpha)
        assert state.recent.tolist() == seen[-len(first) :]
        assert state.ordered.tolist() == sorted(seen[-len(first) :])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-9, 9), min_size=1, max_size=20),
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=200),
    st.floats(0.01, 0.99),
    st.floats(0.001, 2.0),
)
def test_the_bound_of_the_theorem_holds_for_any_scores(first, scores, rate, step):
    """Gibbs and Candès 2021, Proposition 4.1."""
    _, alarms = follow(start_adaptive(np.array(first), rate, step=step), scores)
    bound = (max(rate, 1 - rate) + step) / (len(scores) * step)
    assert abs(alarms.mean() - rate) <= bound + 1e-9


def test_it_holds_the_rate_where_a_fixed_threshold_fails():
    """A mean that climbs, then a spread that doubles."""
    rng = np.random.default_rng(0)
    calibration = rng.normal(size=400)
    level = np.concatenate([np.linspace(0, 4, 4000), np.full(4000, 4.0)])
    spread = np.concatenate([np.ones(4000), np.full(4000, 2.0)])
    scores = level + spread * rng.normal(size=8000)
    state, alarms = follow(start_adaptive(calibration, 0.05), scores)
    assert np.mean(scores > conformal_threshold(calibration, rate=0.05)) > 0.6
    bound = (0.95 + 0.005) / (8000 * 0.005)
    assert abs(alarms.mean() - 0.05) < min(bound, 0.005)
    for part in np.split(alarms, 8):
        assert 0.02 < part.mean() < 0.08
    assert adaptive_tau(state) == pytest.approx(4 + 2 * 1.645, abs=1)


def test_an_old_state_stays_as_it_was():
    state = start_adaptive(np.arange(5.0), 0.5)
    before = (state.alpha, state.recent.copy(), state.ordered.copy())
    adapt(state, 2.5)
    assert state.alpha == before[0]
    np.testing.assert_array_equal(state.recent, before[1])
    np.testing.assert_array_equal(state.ordered, before[2])


def test_a_score_that_is_no_number_is_refused():
    state = start_adaptive(np.arange(5.0), 0.5)
    with pytest.raises(DataError, match="a score of NaN"):
        adapt(state, math.nan)
    with pytest.raises(DataError, match="2 calibration scores, 1 of them NaN"):
        start_adaptive(np.array([1.0, np.nan]), 0.5)
    with pytest.raises(DataError, match="needs at least one score"):
        start_adaptive(np.empty(0), 0.5)


@pytest.mark.parametrize(
    ("rate", "step"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, np.inf)]
)
def test_rates_and_steps_out_of_range_are_refused(rate, step):
    with pytest.raises(ConfigError, match="a rate between 0 and 1 and a step above 0"):
        start_adaptive(np.arange(5.0), rate, step=step)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=8),
    st.lists(st.integers(0, 8).map(float) | st.sampled_from([math.inf, math.nan])),
    st.floats(0.05, 0.95),
)
def test_a_following_threshold_is_the_conformal_one_of_all_so_far(first, new, rate):
    taus = rolling_taus(np.array(first), np.array(new), rate)
    seen = first
    for tau, score in zip(taus, new, strict=True):
        rank = math.ceil(round((len(seen) + 1) * (1 - rate), 9))
        assert tau == (sorted(seen)[rank - 1] if rank <= len(seen) else math.inf)
        seen = seen if math.isnan(score) else [*seen, score]


def test_a_following_threshold_remembers_so_many(monkeypatch):
    monkeypatch.setattr(adaptive, "REMEMBERED", 12)
    state = start_rolling(np.arange(20.0), 0.2)
    assert state.recent.tolist() == [*range(12)]
    state, _ = follow(state, [30.0, 31.0])
    assert state.recent.tolist() == [*range(2, 12), 30.0, 31.0]
    assert state.ordered.tolist() == state.recent.tolist() and state.alpha == 0.2
    state, _ = follow(start_rolling(np.arange(11.0), 0.2), [30.0, 31.0])
    assert state.recent.tolist() == [*range(1, 11), 30.0, 31.0]


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan])
def test_a_following_threshold_wants_a_share(rate):
    with pytest.raises(ConfigError, match="a share of windows between 0 and 1"):
        start_rolling(np.arange(9.0), rate)


def test_sorted_scores_are_mixed_always_alike():
    scores = np.arange(100.0)
    mixed = shuffled(scores)
    assert sorted(mixed) == [*scores] and mixed.tolist() == shuffled(scores).tolist()
    assert 35 < mixed[:50].mean() < 65
