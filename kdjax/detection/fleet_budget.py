"""One budget of alarms for many machines.

Scores of different machines have different scales. Each machine's calibration scores
give its upper tail: the 90 % quantile q and the mean m of what lies above it. A score s
has the tail value u = (s − q) / m, whose p-value is about 0.1 · exp(−u) where the tail is
exponential. The level u* is shared by all machines and is chosen on their calibration
rows: the least above which all of them together have no more events than the budget
allows. So alarms of all machines compete by p-value, and τ = q + u* · m.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.detection.alarming import EventRule, count_events
from kdjax.detection.false_alarms import ExpectedEvents, with_interval
from kdjax.detection.thresholds import BLOCKS
from kdjax.errors import ConfigError

SHARE = 0.1  # of scores in the tail
LEVELS = np.concatenate([[0.0], np.geomspace(0.1, 1e4, 232)])  # 5 % apart
LEAST = 20  # scores for which a machine has a tail


class Tail(NamedTuple):
    """The upper tail of a machine's calibration scores."""

    level: float  # their 90 % quantile
    excess: float  # mean of what lies above it


def tail_of(scores: np.ndarray) -> Tail:
    """The tail of window scores `[n]` of clean rows.

    >>> tail_of(np.arange(101.0))
    Tail(level=90.0, excess=5.5)
    """
    level = float(np.quantile(scores, 1 - SHARE))
    above = scores[scores > level] - level
    # Where the upper tenth is one value, its size is the unit.
    excess = float(above.mean()) if len(above) else abs(level)
    return Tail(level, excess or 1.0)


def tau_at(tail: Tail, level: float) -> float:
    """τ of a machine at the level u of the fleet."""
    return tail.level + level * tail.excess


def event_rates(scores: np.ndarray, tail: Tail, rule: EventRule) -> np.ndarray:
    """Events a day above each of `LEVELS` in five blocks of time, `[BLOCKS, K]`.

    `scores` `[n]` are in order of time, one every `rule.spacing` rows. NaN where rows have
    no times.
    """
    found = np.zeros((BLOCKS, len(LEVELS)))
    for place, block in enumerate(np.array_split(scores, BLOCKS)):
        for k, level in enumerate(LEVELS):
            count = count_events(block, tau_at(tail, level), rule)
            found[place, k] = count
            if not count and level > 0 and not (block > tau_at(tail, level)).any():
                break  # nor above higher ones
    days = len(scores) * rule.spacing / (rule.rows_per_day or math.nan)
    return found * BLOCKS / days


def cut_rates(rates: np.ndarray) -> list[list[float]]:
    """Rates without the levels that nothing exceeds."""
    last = int(np.flatnonzero(rates.any(axis=0)).max(initial=-1)) + 1
    found: list[list[float]] = rates[:, :last].tolist()
    return found


def all_rates(rates: Sequence[Sequence[float]]) -> np.ndarray:
    """The rates at all levels again."""
    found = np.zeros((BLOCKS, len(LEVELS)))
    for place, own in enumerate(rates):
        found[place, : len(own)] = own
    return found


def rate_at(rates: Sequence[Sequence[float]], at: int) -> float:
    """Events a day above one level: the mean of the blocks, of which some are cut."""
    return sum(own[at] for own in rates if at < len(own)) / BLOCKS


def choose_level(
    rates: np.ndarray, per_day: float, days: float
) -> tuple[float, ExpectedEvents]:
    """The fleet's level, and what events it lets expect.

    Args:
        rates: sums over machines of their `event_rates`, `[BLOCKS, K]`.
        per_day: the budget.
        days: mean length of the machines' calibration.

    Expected are the events of each block above the level of the other blocks, with a 90 %
    interval over blocks as in `kdjax.detection.false_alarms.expected_events`.
    """
    level = _least(rates.mean(axis=0), per_day)
    if level is None:
        raise ConfigError(
            f"threshold.budget={per_day:g}/day is exceeded by the fleet at any level: give a "
            "higher budget, or check the machines with most events."
        )
    held_out = np.empty(BLOCKS)
    for place in range(BLOCKS):
        other = _least(np.delete(rates, place, axis=0).mean(axis=0), per_day)
        at = len(LEVELS) - 1 if other is None else int(np.searchsorted(LEVELS, other))
        held_out[place] = rates[place, at]
    mean, days = float(held_out.mean()), max(days, 1e-9)
    return level, with_interval(mean, held_out, days, "a day", "stream")


def _least(rates: np.ndarray, per_day: float) -> float | None:
    """The least of `LEVELS` from which on no rate exceeds the budget; None for none."""
    over = np.flatnonzero(rates > per_day * (1 + 1e-9))
    first = int(over[-1]) + 1 if len(over) else 0
    return float(LEVELS[first]) if first < len(LEVELS) else None
