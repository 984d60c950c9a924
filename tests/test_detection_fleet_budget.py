"""One budget of alarms for many machines."""

import numpy as np
import pandas as pd
import pytest

import kdjax
from kdjax.detection.alarming import EventRule
from kdjax.detection.fleet_budget import (
    LEVELS,
    Tail,
    choose_level,
    event_rates,
    tail_of,
    tau_at,
)
from kdjax.detection.thresholds import BLOCKS

RULE = EventRule(gap=20, spacing=1, rows_per_day=1440.0)


def events_by_hand(scores, tau, gap):
    """Events of alarms nearer than `gap` rows, counted one by one."""
    count, last = 0, -np.inf
    for row in np.flatnonzero(scores > tau):
        count += row - last >= gap
        last = row
    return count


def machine(seed, scale):
    return scale * np.random.default_rng(seed).exponential(size=3000)


def test_the_tail_is_quantile_and_mean_excess():
    scores = machine(0, 3.0)
    level = np.quantile(scores, 0.9)
    tail = tail_of(scores)
    assert tail.level == pytest.approx(level)
    assert tail.excess == pytest.approx((scores[scores > level] - level).mean())
    # Of an exponential distribution the mean excess is its mean.
    assert tail.excess == pytest.approx(3.0, rel=0.2)
    assert tail_of(np.zeros(50)) == Tail(0.0, 1.0)


def test_rates_count_events_of_each_block():
    scores, tail = machine(1, 2.0), tail_of(machine(1, 2.0))
    rates = event_rates(scores, tail, RULE)
    assert rates.shape == (BLOCKS, len(LEVELS))
    days = len(scores) / 1440
    for place, block in enumerate(np.array_split(scores, BLOCKS)):
        for k in (0, 10, 30, 60, 90):
            count = events_by_hand(block, tau_at(tail, LEVELS[k]), 20)
            assert rates[place, k] == pytest.approx(count * BLOCKS / days)


@pytest.mark.parametrize("per_day", [0.5, 3.0, 40.0])
def test_the_level_is_the_least_within_the_budget(per_day):
    """On scales that differ a thousandfold, all machines share the events."""
    found = [machine(i, 10.0**i) for i in range(4)]
    tails = [tail_of(scores) for scores in found]
    rates = sum(event_rates(s, t, RULE) for s, t in zip(found, tails, strict=True))
    level, expected = choose_level(rates, per_day, len(found[0]) / 1440)

    def total(level):
        # By blocks, as rates are counted.
        return sum(
            events_by_hand(block, tau_at(tail, level), 20)
            for scores, tail in zip(found, tails, strict=True)
            for block in np.array_split(scores, BLOCKS)
        ) / (len(found[0]) / 1440)

    at = int(np.searchsorted(LEVELS, level))
    assert total(level) <= per_day < total(LEVELS[at - 1])
    shares = [
        events_by_hand(scores, tau_at(tail, LEVELS[40]), 20)
        for scores, tail in zip(found, tails, strict=True)
    ]
    assert min(shares) > 0.5 * max(shares)
    assert expected.low <= expected.number <= expected.high
    assert expected.number < 3 * per_day + 2


def test_a_budget_that_no_level_keeps_is_refused():
    rates = np.full((BLOCKS, len(LEVELS)), 7.0)
    with pytest.raises(kdjax.ConfigError, match="exceeded by the fleet at any level"):
        choose_level(rates, 3.0, 2.0)


def test_fleet_scope_needs_a_budget_and_a_fleet(tmp_path):
    config = kdjax.override(kdjax.get_config(), {"data.path": "a.csv"})
    scope = {"threshold.budget_scope": "fleet"}
    with pytest.raises(kdjax.ConfigError, match=r"needs threshold.method='budget'"):
        kdjax.resolve(kdjax.override(config, scope))
    budget = kdjax.override(config, scope | {"threshold.method": "budget"})
    with pytest.raises(kdjax.ConfigError, match="is for kdjax fleet"):
        kdjax.run(kdjax.resolve(budget), tmp_path)


def test_a_fleet_with_one_budget(tmp_path):
    """τ of each machine is its tail at one level; events in the clean rows keep to it."""
    from tests.test_fleet import fit, open_machine, rows

    folder, output = tmp_path / "plants", tmp_path / "fleet"
    folder.mkdir()
    for i in range(4):
        part = rows(i, 3000)
        part[["a", "b", "c"]] *= 10.0**i
        part.to_csv(folder / f"m{i}.csv", index=False)
    rows(5, 150).to_csv(folder / "young.csv", index=False)
    changes = {
        "threshold__method": "budget",
        "threshold__budget": "4/day",
        "threshold__budget_scope": "fleet",
    }
    catalogue = fit(folder, output, **changes)
    level = pd.read_json(output / "budget.json", typ="series")
    assert level["machines"] == 5
    rates = []
    for i in range(4):
        detector, _ = open_machine(output, f"m{i}")
        tau = detector.thresholds[0].tau
        assert catalogue.loc[f"m{i}", "threshold"] == tau
        scores = detector.calibration[0].astype(np.float64)
        expected = tau_at(tail_of(scores), level["level"])
        assert tau == pytest.approx(expected, rel=1e-5)
        days = len(scores) / 1440
        blocks = np.array_split(scores, BLOCKS)
        rates.append(sum(events_by_hand(b, tau, 20) for b in blocks) / days)
    np.testing.assert_allclose(catalogue["events_a_day"][:4], rates, rtol=1e-6)
    assert sum(rates) <= 4
    again = fit(folder, output, **changes)
    pd.testing.assert_frame_equal(catalogue, again)
