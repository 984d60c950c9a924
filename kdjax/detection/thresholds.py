"""Thresholds chosen without labels, on the window scores of clean rows.

    blocks     the median of five blocks' quantiles, raised where windows are few
    conformal  a rank of the calibration scores that allows for the new one
    budget     the least τ that has so many events a day in the scores
    quantile   the plain empirical quantile, 1 − rate
    pot        a generalised Pareto tail fitted to the largest scores, for rates that
               are too low for the scores at hand
    fixed      a number given by the user

Split conformal prediction (Vovk et al., 2005; Lei et al., 2018): with the n scores of
calibration and a new one exchangeable, the new one exceeds the ⌈(n+1)(1−rate)⌉-th
smallest with probability at most `rate`. Time series are exchangeable at best nearly,
and the promise is one on average over calibration sets: compare the realised rate
(`kdjax.detection.false_alarms`). Peaks over threshold: Siffer et al., KDD 2017, Eq. 1.

Thresholds of all entities, some of which have too few scores for one of their own.
"""

import logging
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from kdjax.data.prepared import Prepared
from kdjax.detection.alarming import EventRule, count_events
from kdjax.errors import ConfigError, DataError, check_choice, counted

# The tail that `pot` fits: the upper tenth (DuMouchel, Annals of Statistics 1983), if
# it has so many excesses and so many values among them, and a shape for which maximum
# likelihood is regular and the excesses have a variance.
TAIL = Fraction(1, 10)
EXCESSES = 30
DISTINCT = 10
SHAPES = (-0.5, 0.5)

METHODS = ("blocks", "conformal", "budget", "pot", "quantile", "fixed")

# Rules that take all training rows, in order of time, see `kdjax.detection.calibration`.
BY_FOLDS = ("blocks", "budget")

# Of `blocks`: blocks of time, and by how much τ is raised, in windows that share no row.
# Chosen on half of the entities, see docs/thresholds.md.
BLOCKS, CAUTION = 5, 32
# A classifier's held-out networks learnt from half of the rows, which raises their scores.
CLASSIFIER_CAUTION = 3
MOST_RAISED = 8.0
# Share of scores above τ that a `budget` never exceeds: past it alarms merge, and fewer
# events are no sign of fewer alarms.
MOST_ABOVE = 0.1

HOURS = {"hour": 1, "day": 24, "week": 24 * 7, "month": 24 * 30}


class Rule(NamedTuple):
    """How a threshold is to be chosen."""

    method: str = "conformal"  # one of `METHODS`
    # The wanted share of false alarms among normal windows; `budget` and `fixed` don't
    # read it.
    rate: float = 0.01
    value: float = math.nan  # τ of `fixed`
    # `blocks` raises τ by the share (caution · overlap / n)^1.5 of n scores, at most
    # `MOST_RAISED`.
    caution: float = 0.0
    overlap: float = 1.0  # scores whose windows share rows, L / stride
    per_day: float = 0.0  # events that `budget` may announce in a day
    events: EventRule | None = None  # what an event is; None where nobody counts them

    @property
    def each_row(self) -> bool:
        """Whether each row's window has a score, as in a stream, not one every stride."""
        return self.method == "budget" and _timed(self).spacing == 1


class Threshold(NamedTuple):
    """A threshold and how it came about."""

    tau: float  # τ; a window alarms when its score is above
    method: str  # the rule's name
    # The wanted share of false alarms among normal windows, of `budget` the share of its
    # scores above τ; 0 for `fixed`.
    rate: float
    n: int  # number of calibration scores
    rank: int  # τ is the rank-th smallest of them; 0 where it is none of them
    # Whose scores they are: `own` of the entity, `shared` by all entities, each under
    # its own Gaussian, or `pooled`: of all under the pooled Gaussian.
    source: str
    detail: str = ""  # what the rule has to say of itself, such as a fallback
    spacing: int = 0  # rows from one score to the next; 0 for the detector's stride


def choose_threshold(scores: np.ndarray, rule: Rule) -> Threshold:
    """The threshold that a rule gives for calibration window scores `[n]`.

    Logs a warning where `pot` falls back to the quantile.

    Raises:
        ConfigError: an unknown method, fewer scores than `needed`, or no fixed value.
        DataError: τ would not be finite, or a score is no number.

    >>> choose_threshold(np.arange(200.0), Rule("quantile", 0.01)).tau
    197.0
    """
    threshold = find_threshold(scores, rule)
    if rule.method == "pot" and threshold.rank:
        logging.getLogger(__name__).warning("threshold: %s", threshold.detail)
    return threshold


def find_threshold(scores: np.ndarray, rule: Rule, *, source: str = "own") -> Threshold:
    """`choose_threshold` without a warning, for those who choose many times."""
    check_choice("threshold.method", rule.method, METHODS)
    if len(scores) < needed(rule):
        raise ConfigError(too_few_message(len(scores), rule))
    check_numbers(scores, "calibration scores")
    scores, n = np.asarray(scores, np.float64), len(scores)
    if rule.method == "fixed":
        if not math.isfinite(rule.value):
            raise ConfigError(
                f"threshold.value={rule.value} can't be a threshold: "
                "threshold.method=fixed needs a finite number."
            )
        above = int((scores > rule.value).sum())
        detail = f"{above} of {n} calibration windows lie above"
        return Threshold(rule.value, rule.method, 0.0, n, 0, source, detail)
    tau: float | None = None
    rank, detail = 0, ""
    if rule.method == "budget":
        found, detail = _budget_threshold(scores, rule)
        share = float((scores > found).mean())
        spacing = int(rule.each_row)
        return Threshold(found, rule.method, share, n, 0, source, detail, spacing)
    if rule.method == "blocks":
        tau, detail = _blocks_threshold(scores, rule)
    if rule.method == "pot":
        tau, detail = _tail_threshold(scores, rule.rate)
    if tau is None:
        # With the new one of split conformal prediction.
        scored = n + 1 if rule.method == "conformal" else n
        rank = _quantile_rank(scored, _fraction(rule.rate))
        tau = float(np.partition(scores, rank - 1)[rank - 1])
        if rule.method == "pot":
            detail = f"pot fell back to the quantile of {n} scores: {detail}"
            if rank == n:
                detail += (
                    f"; it is the largest of them, and {n} can't show a rate of "
                    f"{rule.rate:g}"
                )
    if not math.isfinite(tau):
        raise DataError(
            f"the threshold is {tau}: calibration scores are not finite. Look for huge "
            "values in the calibration rows, or scale them (data.scaler)."
        )
    return Threshold(tau, rule.method, rule.rate, n, rank, source, detail)


def _blocks_threshold(scores: np.ndarray, rule: Rule) -> tuple[float, str]:
    """τ of scores `[n]` in order of time, and what it rests on."""
    share, levels = _fraction(rule.rate), []
    for block in np.array_split(scores, BLOCKS):
        rank = min(len(block), _quantile_rank(len(block) + 1, share))
        levels.append(np.partition(block, rank - 1)[rank - 1])
    factor = 1 + min(MOST_RAISED, (rule.caution * rule.overlap / len(scores)) ** 1.5)
    return float(np.median(levels)) * factor, (
        f"{factor:.3g} times the median quantile of {BLOCKS} blocks of time"
    )


def _budget_threshold(scores: np.ndarray, rule: Rule) -> tuple[float, str]:
    """The least τ, from above, at which scores `[n]` in order of time have few events."""
    event, days = _timed(rule), _days(len(scores), _timed(rule))
    most = math.floor(rule.per_day * days + 1e-9)
    ordered = np.sort(scores)[::-1]
    lowest = math.ceil(MOST_ABOVE * len(scores))
    # Ranks of τ: the number of events rises along them until alarms merge.
    ranks = np.unique(np.geomspace(1, lowest, 100).astype(np.int64)) - 1
    high, low = 0, 0
    for low in ranks.tolist():
        if count_events(scores, ordered[low], event) > most:
            break
        high = low
    while low - high > 1:
        middle = (low + high) // 2
        if count_events(scores, ordered[middle], event) > most:
            low = middle
        else:
            high = middle
    tau = float(ordered[high])
    found = counted(count_events(scores, tau, event), "event")
    return tau, f"{found} in {days:.3g} days of calibration"


def _timed(rule: Rule) -> EventRule:
    if rule.events is None or not rule.events.rows_per_day or not rule.per_day > 0:
        raise ConfigError(
            "threshold.method='budget' needs to know how long a row lasts: give a file with "
            "dates and times, or set data.step_seconds."
        )
    return rule.events


def _days(scores: int, event: EventRule) -> float:
    return scores * event.spacing / event.rows_per_day


def _tail_threshold(scores: np.ndarray, rate: float) -> tuple[float | None, str]:
    """τ of a Pareto tail above a level and what it rests on; None and why not."""
    from scipy.stats import genpareto

    n = len(scores)
    if not np.isfinite(scores).all():
        return None, "a score is not finite"
    level = float(np.sort(scores)[_quantile_rank(n, TAIL) - 1])
    excesses = scores[scores > level] - level
    count, distinct = len(excesses), len(np.unique(excesses))
    if count < EXCESSES or distinct < DISTINCT:
        return None, (
            f"{count} scores with {distinct} values lie above its level, it needs "
            f"{EXCESSES} with {DISTINCT}"
        )
    if n * rate >= count:
        why = f"a rate of {rate:g} lies below its level, there is nothing to extend"
        return None, why
    # In units of their mean, so that the unit of the scores doesn't matter.
    unit = float(excesses.mean())
    shape, _, scale = genpareto.fit(excesses / unit, floc=0)
    if not SHAPES[0] <= shape <= SHAPES[1]:
        return None, f"its shape {shape:.3g} is outside {SHAPES[0]} to {SHAPES[1]}"
    tau = level + unit * float(genpareto.isf(n * rate / count, shape, scale=scale))
    return tau, (
        f"generalised Pareto tail of shape {shape:.3g} on {count} scores above {level:.6g}"
    )


def _quantile_rank(n: int, share: Fraction) -> int:
    """Of the least of n scores with at most a share of them above it."""
    return math.ceil(n * (1 - share))


def _fraction(rate: float) -> Fraction:
    """The rate as the user wrote it."""
    if not 0 < rate < 1:
        raise ConfigError(
            f"threshold.false_alarm_rate={rate:g} must lie between 0 and 1."
        )
    # (n + 1)(1 − rate) in floats can round up past an integer.
    # The limit makes 1/12 of the float of it, which lies a little below.
    return Fraction(str(rate)).limit_denominator(10**12)


def check_numbers(scores: np.ndarray, name: str) -> None:
    """Refuses scores that are no numbers: they would count as high or as normal."""
    missing = int(np.isnan(scores).sum())
    if missing:
        raise DataError(
            f"{missing} of {len(scores)} {name} are no numbers: leave out windows "
            "without a score."
        )


def needed(rule: Rule) -> int:
    """The least number of calibration scores for which a rule means anything.

    `blocks`: one a block. `budget`: so many that one event is allowed. `conformal`: n ≥
    1/rate − 1, past which the rank is one of the scores.
    `quantile`: 1/rate, since the share above τ is then one score. `pot`: as `quantile`,
    but at most what fills its tail, past which it extrapolates. `fixed`: none.

    >>> [needed(Rule(method, 0.001)) for method in ("blocks", "conformal", "pot")]
    [5, 999, 300]
    """
    if rule.method == "fixed":
        return 0
    if rule.method == "blocks":
        return BLOCKS
    if rule.method == "budget":
        event = _timed(rule)
        return math.ceil(event.rows_per_day / rule.per_day / event.spacing - 1e-9)
    if rule.method == "conformal":
        return math.ceil(1 / _fraction(rule.rate) - 1)
    least = math.ceil(1 / _fraction(rule.rate))
    return min(math.ceil(EXCESSES / TAIL), least) if rule.method == "pot" else least


def blocks_threshold(scores: np.ndarray, *, rate: float, overlap: float) -> float:
    """τ = (1 + (32/m)^1.5) · the median of the (1 − rate) quantiles of five blocks of time.

    For short training rows, whose behaviour the next rows don't quite repeat: the fewer
    windows, the higher is τ. Two blocks may hold anomalies.

    Args:
        scores: window scores `[n]` of clean rows in order of time, each by what was
            fitted without the window's block.
        rate: wanted share of false alarms among normal windows.
        overlap: L / stride; m = n / overlap windows share no row.

    Raises:
        ConfigError, DataError: as `conformal_threshold`.

    >>> round(blocks_threshold(np.arange(1000.0), rate=0.1, overlap=10), 1)
    685.0
    """
    return choose_threshold(
        np.asarray(scores), Rule("blocks", rate, caution=CAUTION, overlap=overlap)
    ).tau


def conformal_threshold(scores: np.ndarray, *, rate: float) -> float:
    """τ = the ⌈(n+1)(1−rate)⌉-th smallest calibration window score.

    Args:
        scores: window scores of clean calibration rows, `[n]`.
        rate: wanted share of false alarms among normal windows.

    Raises:
        ConfigError: n is too small for the rate.
        DataError: τ would not be finite, or a score is NaN.

    >>> conformal_threshold(np.arange(99.0), rate=0.01)
    98.0
    """
    return choose_threshold(np.asarray(scores), Rule("conformal", rate)).tau


def quantile_threshold(scores: np.ndarray, *, rate: float) -> float:
    """τ = the empirical (1 − rate) quantile of calibration window scores.

    Arguments and errors as of `conformal_threshold`.

    >>> quantile_threshold(np.arange(200.0), rate=0.01)
    197.0
    """
    return choose_threshold(np.asarray(scores), Rule("quantile", rate)).tau


def pot_threshold(scores: np.ndarray, *, rate: float) -> float:
    """τ from a generalised Pareto tail of calibration window scores (Siffer et al., 2017).

    Falls back to the quantile, with a warning, where no tail fits.

    Arguments and errors as of `conformal_threshold`.

    >>> scores = np.random.default_rng(0).exponential(size=2000)
    >>> round(pot_threshold(scores, rate=0.001), 1)
    7.2
    """
    return choose_threshold(np.asarray(scores), Rule("pot", rate)).tau


def parse_budget(text: str) -> float:
    """Alarms a day of a budget in words; a month has 30 days.

    >>> parse_budget("2/day"), parse_budget("0.5/hour"), parse_budget("3/month")
    (2.0, 12.0, 0.1)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*/\s*([a-z]+)\s*", text)
    if found and found[2] in HOURS and float(found[1]) > 0:
        return float(found[1]) * 24 / HOURS[found[2]]
    raise ConfigError(
        f"threshold.budget={text!r} is no budget of alarms: give a number above 0 and "
        f"one of {', '.join(HOURS)}, such as 2/day, 1/week or 0.5/hour."
    )


def too_few_message(n: int, rule: Rule, *, todo: str = "give more rows") -> str:
    """What to say where n calibration windows are too few for the rule."""
    windows = f"{counted(needed(rule), 'calibration window')}, have {n}: {todo}"
    if rule.method == "budget":
        event = _timed(rule)
        days, least = _days(n, event), ""
        per_day = 1 / days if n else math.inf
        if per_day <= event.rows_per_day / event.gap:  # more can't be told apart
            units = (unit for unit in HOURS if unit != "hour")
            unit = next((u for u in units if per_day * HOURS[u] >= 24), "month")
            number = math.ceil(per_day * HOURS[unit] / 24 - 1e-9)
            least = (
                f", or accept more events: threshold.budget={number}/{unit} or above"
            )
        return (
            f"threshold.budget, {rule.per_day:.3g} events a day, needs {1 / rule.per_day:.3g} "
            f"days of calibration windows, in which one may come, have {days:.3g}: {todo}{least}."
        )
    if rule.method == "blocks":
        return f"threshold.method=blocks needs at least {windows}."
    higher, rate = "", 1 / (n + 1 if rule.method == "conformal" else max(n, 1))
    if rate < 0.99:
        unit_of_rate = 10 ** (2 - math.floor(math.log10(rate)))
        rate = math.ceil(rate * unit_of_rate - 1e-9) / unit_of_rate  # three digits
        higher = f", or accept a higher rate, of {rate:.3g} or above"
    return f"threshold.false_alarm_rate={rule.rate:g} needs at least {windows}{higher}."


def entity_thresholds(
    prepared: Prepared,
    scores: Sequence[np.ndarray],
    pooled_tau: Threshold,
    rule: Rule,
    *,
    scope: str,
) -> tuple[list[Threshold], list[str]]:
    """The threshold of each entity, and sentences on those that borrow theirs.

    `scores` are E arrays, each entity's calibration window scores; `pooled_tau` is for
    entities under the pooled Gaussian; `scope` is `per_entity`, or `pooled` for one τ.
    """
    shared = find_threshold(np.concatenate(scores), rule, source="shared")
    thresholds = []
    for entity, own in zip(prepared.entities, scores, strict=True):
        if scope == "pooled":
            thresholds.append(shared._replace(source="pooled"))
        elif entity.pooled:
            thresholds.append(pooled_tau)
        elif len(own) < needed(rule):
            thresholds.append(shared)
        else:
            thresholds.append(find_threshold(own, rule))
    found = list(zip(prepared.entities, scores, thresholds, strict=True))
    notes = []
    for source, reason in (
        ("pooled", "pooled Normal and τ"),
        ("shared", "too few calibration windows, so τ from all entities' scores"),
    ):
        borrowers = [one for one in found if one[2].source == source]
        if borrowers:
            tau = borrowers[0][2]
            rank = f"the {tau.rank}-th smallest " if tau.rank else ""
            names = [
                f"{e.name} ({len(s)} calibration windows)" for e, s, _ in borrowers
            ]
            notes.append(f"{reason} ({rank}of {tau.n}): {', '.join(names)}")
    notes += [f"{e.name}: {t.detail}" for e, _, t in found if t.detail]
    return thresholds, notes
