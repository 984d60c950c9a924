"""Thresholds against their definitions, exact ranks, other fits and simulation."""

import math
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from kdjax.detection.alarming import AlarmRule, EventRule
from kdjax.detection.false_alarms import expected_events
from kdjax.detection.thresholds import (
    METHODS,
    Rule,
    blocks_threshold,
    choose_threshold,
    conformal_threshold,
    entity_thresholds,
    find_threshold,
    needed,
    parse_budget,
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
    got = choose_threshold(scores, Rule("conformal", float(text)))
    below = {s: int((scores <= s).sum()) for s in scores}
    tau = min(s for s in scores if below[s] >= (n + 1) * (1 - rate))
    assert (got.tau, got.rank) == (tau, below[tau])
    assert (got.method, got.rate, got.n) == ("conformal", float(text), n)
    assert got.source == "own"


@settings(deadline=None)
@given(rates)
def test_needed_is_the_least_n_with_a_rank(text):
    least = needed(Rule("conformal", float(text)))
    rate = Fraction(text)
    assert math.ceil((least + 1) * (1 - rate)) <= least
    assert least == 0 or math.ceil(least * (1 - rate)) > least - 1


@pytest.mark.parametrize(
    ("rate", "least"),
    [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.5, 1), (0.03, 33)],
)
def test_needed_by_hand(rate, least):
    assert needed(Rule("conformal", rate)) == least


def test_99_scores_at_one_percent_give_the_largest():
    scores = np.random.default_rng(0).normal(size=99)
    threshold = find_threshold(scores, Rule("conformal", 0.01), source="shared")
    assert threshold.tau == scores.max()
    assert (threshold.rank, threshold.n, threshold.source) == (99, 99, "shared")
    assert conformal_threshold(np.append(scores, 9.0), rate=0.01) == 9.0
    assert conformal_threshold(np.arange(199.0), rate=0.01) == 197.0


def test_98_scores_are_too_few_for_one_percent():
    message = (
        "threshold.false_alarm_rate=0.01 needs at least 99 calibration windows, have 98:"
        " give more rows, or accept a higher rate, of 0.0102 or above."
    )
    assert too_few_message(98, Rule("conformal", 0.01)) == message
    with pytest.raises(
        ConfigError, match="needs at least 99 calibration windows, have 98"
    ):
        choose_threshold(np.arange(98.0), Rule("conformal", 0.01))


@pytest.mark.parametrize("rate", [0.05, 0.1])
@pytest.mark.parametrize("n", [19, 50, 137])
def test_realised_rate_on_exchangeable_scores(rate, n):
    """P(new > τ) = 1 − rank/(n+1), at most `rate`, whatever the distribution."""
    rng = np.random.default_rng(1)
    trials = 4000
    scores = rng.chisquare(3, size=(trials, n + 1))
    alarms = [conformal_threshold(row[:n], rate=rate) < row[n] for row in scores]
    rank = choose_threshold(scores[0, :n], Rule("conformal", rate)).rank
    wanted = 1 - rank / (n + 1)
    assert wanted <= rate + 1e-12
    assert np.mean(alarms) == pytest.approx(wanted, abs=4 * math.sqrt(rate / trials))


def test_equal_scores_raise_no_alarm_among_themselves():
    threshold = choose_threshold(np.full(40, 2.0), Rule("conformal", 0.1))
    assert threshold.tau == 2.0
    assert not 2.0 > threshold.tau


def test_an_infinite_score_is_refused_where_it_would_be_tau():
    scores = np.arange(99.0)
    scores[40] = np.inf
    with pytest.raises(DataError, match="the threshold is inf.*huge values.*scaler"):
        choose_threshold(scores, Rule("conformal", 0.01))
    # Of 199 scores the two largest lie above τ: one infinite one does no harm.
    assert conformal_threshold(np.append(scores, np.arange(100.0)), rate=0.01) == 99.0


def test_a_score_that_is_no_number_never_gives_a_threshold():
    with pytest.raises(DataError, match="1 of [59]+0*9* calibration scores are NaN"):
        choose_threshold(np.append(np.arange(98.0), np.nan), Rule("conformal", 0.01))


# The other rules.


def rule(method, rate=0.01, value=math.nan):
    return Rule(method, rate, value)


def test_names_of_methods():
    assert METHODS == ("blocks", "conformal", "budget", "pot", "quantile", "fixed")
    assert Rule().method == "conformal" and Rule().rate == 0.01
    assert math.isnan(Rule().value)
    with pytest.raises(
        ConfigError, match="threshold.method='best' is unknown: use one of"
    ):
        choose_threshold(np.arange(200.0), rule("best"))


def test_blocks_take_the_median_quantile_of_five():
    scores = np.random.default_rng(0).exponential(size=503)
    scores[210:240] += 5
    # Blocks of 101, 101, 101, 100 and 100: ⌈102 · 0.9⌉ = 92 and ⌈101 · 0.9⌉ = 91.
    levels = [np.sort(scores[:101])[91], np.sort(scores[101:202])[91],
              np.sort(scores[202:303])[91], np.sort(scores[303:403])[90],
              np.sort(scores[403:])[90]]  # fmt: skip
    assert max(levels) == levels[2] > 2 * np.median(levels)
    middle = np.median(levels)
    plain = find_threshold(scores, rule("blocks", 0.1))
    assert (plain.tau, plain.n, plain.rank) == (middle, 503, 0)
    raised = find_threshold(scores, rule("blocks", 0.1)._replace(caution=503))
    assert raised.tau == 2 * middle
    most = find_threshold(scores, rule("blocks", 0.1)._replace(caution=9999))
    assert most.tau == 9 * middle
    assert raised.detail == "2 times the median quantile of 5 blocks of time"
    assert blocks_threshold(scores, rate=0.1, overlap=503 / 32) == raised.tau


@settings(deadline=None, max_examples=300)
@given(rates, st.integers(0, 200), st.integers(0, 2**32 - 1))
@example("0.7", 8, 0)
def test_the_quantile_leaves_at_most_its_share_above(text, extra, seed):
    """By definition: the least score with #{s > τ} ≤ n · rate."""
    rate = Fraction(text)
    n = math.ceil(1 / rate) + extra
    scores = np.random.default_rng(seed).choice(2 * n + 1, n, replace=False) / 2
    got = choose_threshold(scores, rule("quantile", float(text)))
    tau = min(s for s in scores if (scores > s).sum() <= n * rate)
    assert (got.tau, got.rank) == (tau, (scores <= tau).sum())
    assert (got.method, got.rate, got.n, got.detail) == ("quantile", float(text), n, "")
    # numpy's 1 − rate is rounded, and may miss an integer by a hair.
    if (n * rate).denominator > 1:
        assert tau == np.quantile(scores, 1 - float(text), method="inverted_cdf")


@pytest.mark.parametrize(
    ("method", "rate", "least"),
    [
        ("conformal", 0.01, 99),
        ("blocks", 0.01, 5),
        ("quantile", 0.01, 100),
        ("quantile", 0.03, 34),
        ("pot", 0.01, 100),
        ("pot", 0.001, 300),
        ("fixed", 0.01, 0),
    ],
)
def test_needed_by_rule(method, rate, least):
    assert needed(rule(method, rate)) == least
    if least:
        scores = np.random.default_rng(0).normal(size=least)
        assert choose_threshold(scores, rule(method, rate)).n == least
        message = f"needs at least {least} calibration windows, have {least - 1}"
        with pytest.raises(ConfigError, match=message):
            choose_threshold(scores[:-1], rule(method, rate))


@pytest.mark.parametrize("method", ["conformal", "blocks", "quantile", "pot"])
@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 7.0])
def test_rates_outside_0_to_1_are_refused(method, rate):
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        choose_threshold(np.arange(200.0), rule(method, rate))


@pytest.mark.parametrize("method", sorted({*METHODS} - {"budget"}))
def test_no_rule_takes_a_score_that_is_no_number(method):
    scores = np.arange(500.0)
    scores[3] = np.nan
    with pytest.raises(DataError, match="1 of [59]+0*9* calibration scores are NaN"):
        choose_threshold(scores, rule(method, value=1.0))


def test_fixed_is_the_number_given():
    got = choose_threshold(np.arange(40.0), rule("fixed", value=30.5))
    assert got == (
        30.5,
        "fixed",
        0.0,
        40,
        0,
        "own",
        "9 of 40 calibration windows lie above",
        0,
    )
    assert (
        "9 of 40" in choose_threshold(np.arange(40.0), rule("fixed", value=30)).detail
    )
    assert choose_threshold(np.empty(0), rule("fixed", value=-1.0)).tau == -1.0
    for value in (math.nan, math.inf):
        with pytest.raises(ConfigError, match="needs a finite number"):
            choose_threshold(np.arange(40.0), rule("fixed", value=value))


# The Pareto tail.


def grimshaw(scores, rate):
    """τ of peaks over threshold by Grimshaw's one-dimensional profile likelihood."""
    level = np.sort(scores)[math.ceil(0.9 * len(scores)) - 1]
    excess = scores[scores > level] - level

    def shape(theta):
        return np.log1p(theta * excess).mean()

    def loss(theta):
        ratio = shape(theta) / theta if abs(theta) > 1e-12 else excess.mean()
        return math.log(ratio) + shape(theta)

    thetas = np.linspace(-0.999 / excess.max(), 20 / excess.mean(), 4001)
    best = thetas[np.argmin([loss(theta) for theta in thetas])]
    width = thetas[1] - thetas[0]
    theta = optimize.minimize_scalar(
        loss,
        bounds=(best - width, best + width),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    gamma, share = shape(theta), rate * len(scores) / len(excess)
    return level + gamma / theta / gamma * (share**-gamma - 1)


SAMPLES = {
    "chi2": stats.chi2(38),
    "exponential": stats.expon(),
    "beta": stats.beta(2, 4),
    "student": stats.t(5),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("n", [400, 3000])
def test_pot_is_the_most_likely_tail(name, n):
    scores = SAMPLES[name].rvs(size=n, random_state=n)
    got = choose_threshold(scores, rule("pot", 0.001))
    assert got.tau == pytest.approx(grimshaw(scores, 0.001), rel=2e-3)
    assert (got.method, got.n, got.rank) == ("pot", n, 0)
    assert f"on {n // 10} scores above" in got.detail


@pytest.mark.parametrize("name", ["chi2", "exponential", "beta"])
def test_pot_finds_quantiles_past_its_scores(name):
    """1 in 10,000 from samples of 2,000, in the middle of many samples."""
    true = SAMPLES[name].isf(1e-4)
    samples = [SAMPLES[name].rvs(size=2000, random_state=seed) for seed in range(20)]
    taus = [find_threshold(scores, rule("pot", 1e-4)).tau for scores in samples]
    assert np.median(taus) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1e3, 1e12])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_pot_does_not_depend_on_the_unit(unit, offset):
    scores = stats.chi2(3).rvs(size=1000, random_state=1)
    plain = find_threshold(scores, rule("pot", 1e-4)).tau
    got = find_threshold(unit * (scores + offset), rule("pot", 1e-4)).tau
    assert got / unit - offset == pytest.approx(plain, rel=1e-5)


def heavy(n):
    return stats.pareto(0.8).rvs(size=n, random_state=0)


@pytest.mark.parametrize(
    ("scores", "rate", "reason"),
    [
        (
            np.arange(299.0),
            0.01,
            "29 scores with 29 distinct values lie above its level, but it",
        ),
        (
            np.arange(2000.0) // 30,
            0.01,
            r"\d+ scores with [67] distinct values lie above",
        ),
        (
            np.full(500, 3.0),
            0.01,
            "0 scores with 0 distinct values lie above its level",
        ),
        (np.arange(500.0), 0.1, "a rate of 0.1 needs no tail, since τ lies below its"),
        (heavy(3000), 0.01, r"its shape 1\.\d+ is outside -0.5 to 0.5"),
        (np.append(np.arange(500.0), np.inf), 0.01, "a score is not finite"),
    ],
    ids=["few", "tied", "constant", "rate", "shape", "infinite"],
)
def test_pot_falls_back_to_the_quantile_and_warns(scores, rate, reason, caplog):
    got = choose_threshold(scores, rule("pot", rate))
    expected = find_threshold(scores, rule("quantile", rate))
    assert got[:6] == expected._replace(method="pot")[:6]
    assert re.match(f"pot fell back to the quantile of {len(scores)} scores: {reason}",
                    got.detail)  # fmt: skip
    assert "largest" not in got.detail
    (record,) = caplog.records
    assert record.levelname == "WARNING" and got.detail in record.getMessage()


def test_a_fallback_to_the_largest_score_says_what_that_is_worth():
    got = find_threshold(heavy(500), rule("pot", 0.001))
    assert got.tau == heavy(500).max()
    assert got.detail.endswith(
        "; it is the largest of them: 500 scores are too few for a rate of 0.001"
    )


def test_only_a_fallback_warns(caplog):
    scores = stats.expon().rvs(size=1000, random_state=0)
    for method in {*METHODS} - {"budget"}:
        choose_threshold(scores, rule(method, value=1.0))
    find_threshold(np.full(500, 3.0), rule("pot"))
    assert not caplog.records


# Budgets.

EVERY_ROW = AlarmRule()


@pytest.mark.parametrize(
    ("text", "per_day"),
    [("2/day", 2), ("1/week", 1 / 7), ("0.5/hour", 12), ("3/month", 0.1),
     (" 1.5 / day ", 1.5), (".5/day", 0.5), ("10/week", 10 / 7)],
)  # fmt: skip
def test_budgets_in_words(text, per_day):
    assert parse_budget(text) == pytest.approx(per_day, rel=1e-15)


@pytest.mark.parametrize(
    "text", ["", "2", "day", "2/year", "0/day", "-1/day", "two/day", "1e3/day", "2/Day",
             "nan/day", "2//day", "1/2/day"]
)  # fmt: skip
def test_what_is_no_budget(text):
    with pytest.raises(
        ConfigError, match=r"is not a budget .* such as 2/day, 1/week or "
    ):
        parse_budget(text)


def budget(per_day, *, spacing=1, alarm=EVERY_ROW):
    event = EventRule(gap=10, spacing=spacing, rows_per_day=100, alarm=alarm)
    return Rule("budget", per_day=per_day, events=event)


def peaks(*heights, every=25):
    """A peak of three rows in each 25, on low scores."""
    scores = np.random.default_rng(0).uniform(size=len(heights) * every)
    for place, height in enumerate(heights):
        scores[place * every + 11 : place * every + 14] += height
    return scores


def test_a_budget_is_a_number_of_events():
    scores = peaks(9, 2, 7, 3, 8, 4, 6, 5)  # two days
    for per_day, heights in ((0.5, 9), (1, 8), (1.5, 7), (3, 4)):
        found = find_threshold(scores, budget(per_day))
        # As low as it may be: below the next highest peak there is one event more.
        assert heights - 1 <= found.tau <= heights and found.tau in scores
        assert found.detail == (
            f"{int(2 * per_day)} event{'s' * (per_day > 0.5)} in 2 days of calibration"
        )
        assert found.rate == pytest.approx((scores > found.tau).mean())
    # Windows every other row: four days.
    found = find_threshold(scores, budget(1, spacing=2))
    assert found.detail == "4 events in 4 days of calibration"
    # A peak of three rows is no event of four.
    strict = budget(1, alarm=AlarmRule(min_duration=4))
    assert find_threshold(scores, strict).detail.startswith("0 events")


def test_a_budget_is_not_met_by_alarms_without_end():
    """At the lowest τ all rows are one event, which a budget of two would allow."""
    scores = np.random.default_rng(0).uniform(size=1000)
    scores[::40] += 1
    found = find_threshold(scores, budget(2))
    assert (scores > found.tau).mean() <= 0.1
    assert found.detail.startswith("20 events in 10 days")


def test_a_budget_needs_days_enough_for_one_event():
    assert needed(budget(0.5)) == 200
    with pytest.raises(
        ConfigError,
        match="^threshold.budget, 0.5 events a day, needs 2 days of calibration windows "
        "for one event, have 1.99: give more rows, or accept more events: threshold.budget=4/week",
    ):
        find_threshold(np.arange(199.0), budget(0.5))
    with pytest.raises(
        ConfigError, match="needs the time between rows: give rows with dates"
    ):
        find_threshold(np.arange(199.0), Rule("budget", per_day=1))


def test_expected_events_are_those_of_blocks_that_tau_did_not_see():
    scores = np.floor(
        peaks(*[9, 2, 7, 3] * 5)
    )  # 500 rows, five days with four peaks each
    found = expected_events(scores, budget(1))
    # Four days allow four events, τ lies above 7 in all of them: one a day.
    assert (found.number, found.unit, found.mode) == (1, "a day", "stream")
    counts = np.ones(5)
    half = stats.t.ppf(0.95, 4) * math.sqrt(counts.var() / 5 + 1 / 5)
    assert found.low == pytest.approx(1 - half) and found.high == pytest.approx(
        1 + half
    )
    assert str(found) == "expect 1 events a day (0.047–2) by stream"
    quiet = expected_events(np.ones(500), budget(1))
    assert quiet.number == 0 and quiet.low == 0 and quiet.high == pytest.approx(0.6)
    assert expected_events(scores[:110], budget(1)) is None
    assert expected_events(scores, Rule("conformal", 0.01)) is None


@pytest.mark.parametrize(
    ("names", "scope", "reason"),
    [
        (["press"], "per_entity", "few rows for Gaussian and τ"),
        (["press"], "pooled", "pooled Gaussian and τ"),
        (["press", "saw"], "per_entity", "pooled Gaussian and τ"),
    ],
)
def test_the_note_on_few_rows_names_no_pool_for_one_entity(names, scope, reason):
    entities = [SimpleNamespace(name=name, pooled=True) for name in names]
    scores = [np.arange(19.0)] * len(names)
    rule = Rule("conformal", 0.1)
    tau = find_threshold(scores[0], rule, source="pooled")
    _, (note,) = entity_thresholds(
        SimpleNamespace(entities=entities), scores, tau, rule, scope=scope
    )
    assert note.startswith(f"{reason} (the ")
    assert "press (19 calibration windows)" in note
