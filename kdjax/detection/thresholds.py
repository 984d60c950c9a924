"""Thresholds chosen without labels, on the window scores of clean rows.

    blocks     the median of five blocks' quantiles, raised where windows are few
    conformal  a rank of the calibration scores, which counts the new score too
    budget     the least τ with at most so many events a day in the scores
    quantile   the plain empirical quantile, 1 − rate
    pot        a generalised Pareto tail fitted to the largest scores, for rates that
               are too low for the number of scores
    fixed      a number given by the user

Split conformal prediction (Vovk et al., 2005; Lei et al., 2018): with the n scores of
calibration and a new one exchangeable, the new one exceeds the ⌈(n+1)(1−rate)⌉-th
smallest with probability at most `rate`. Time series are exchangeable only approximately,
and the guarantee is an average over calibration sets: compare the measured rate
(`kdjax.detection.false_alarms`). Peaks over threshold: Siffer et al., KDD 2017, Eq. 1.

Entities with too few scores for a threshold of their own share one.
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

# The tail that `pot` fits: the upper tenth (DuMouchel, Annals of Statistics 1983). It needs
# so many excesses and so many distinct values among them, and a shape for which maximum
# likelihood is regular and the excesses have a variance.
TAIL = Fraction(1, 10)
EXCESSES = 30
DISTINCT = 10
SHAPES = (-0.5, 0.5)

METHODS = ("blocks", "conformal", "budget", "pot", "quantile", "fixed")

# Rules that take all training rows, in order of time, see `kdjax.detection.calibration`.
BY_FOLDS = ("blocks", "budget")

# For `blocks`: number of blocks, and by how much τ is raised, in windows that share no row.
# Chosen on half of the entities, see docs/thresholds.md.
BLOCKS, CAUTION = 5, 32
# A classifier's held-out networks were trained on half of the rows, which raises scores.
CLASSIFIER_CAUTION = 3
MOST_RAISED = 8.0
# Largest share of scores above τ for a `budget`: beyond it alarms merge, so that fewer
# events can mean more alarms.
MOST_ABOVE = 0.1

HOURS = {"hour": 1, "day": 24, "week": 24 * 7, "month": 24 * 30}


class Rule(NamedTuple):
    """How a threshold is chosen."""

    method: str = "conformal"  # one of `METHODS`
    # The wanted share of false alarms among normal windows; not used by `budget` and
    # `fixed`.
    rate: float = 0.01
    value: float = math.nan  # τ of `fixed`
    # `blocks` raises τ by the share (caution · overlap / n)^1.5 of n scores, at most
    # `MOST_RAISED`.
    caution: float = 0.0
    overlap: float = 1.0  # scores whose windows share rows, L / stride
    per_day: float = 0.0  # events a day that `budget` allows
    events: EventRule | None = None  # what an event is; None if not needed

    @property
    def each_row(self) -> bool:
        """Whether each row's window has a score, as in a stream, not one every stride."""
        return self.method == "budget" and _timed(self).spacing == 1


class Threshold(NamedTuple):
    """A threshold and how it was chosen."""

    tau: float  # τ; a window alarms when its score is above
    method: str  # the rule's name
    # The wanted share of false alarms among normal windows; for `budget` the share of its
    # scores above τ; 0 for `fixed`.
    rate: float
    n: int  # number of calibration scores
    rank: int  # τ is the rank-th smallest of them; 0 if it is not one of them
    # Source of the scores: `own` of the entity, `shared` by all entities, each under
    # its own Gaussian, or `pooled`: of all under the pooled Gaussian.
    source: str
    detail: str = ""  # a note on the choice, such as a fallback
    spacing: int = 0  # rows from one score to the next; 0 for the detector's stride


def choose_threshold(scores: np.ndarray, rule: Rule) -> Threshold:
    """The threshold that a rule gives for calibration window scores `[n]`.

    Logs a warning where `pot` falls back to the quantile.

    Raises:
        ConfigError: an unknown method, fewer scores than `needed`, or no fixed value.
        DataError: τ would not be finite, or a score is NaN.

    >>> choose_threshold(np.arange(200.0), Rule("quantile", 0.01)).tau
    197.0
    """
    threshold = find_threshold(scores, rule)
    if rule.method == "pot" and threshold.rank:
        logging.getLogger(__name__).warning("threshold: %s", threshold.detail)
    return threshold


def find_threshold(scores: np.ndarray, rule: Rule, *, source: str = "own") -> Threshold:
    """`choose_threshold` without a warning, for repeated calls."""
    check_choice("threshold.method", rule.method, METHODS)
    if len(scores) < needed(rule):
        raise ConfigError(too_few_message(len(scores), rule))
    check_numbers(scores, "calibration scores")
    scores, n = np.asarray(scores, np.float64), len(scores)
    if rule.method == "fixed":
        if not math.isfinite(rule.value):
            raise ConfigError(
                f"threshold.value={rule.value} is not a threshold: "
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
        # Split conformal prediction counts the new score too.
        scored = n + 1 if rule.method == "conformal" else n
        rank = _quantile_rank(scored, _fraction(rule.rate))
        tau = float(np.partition(scores, rank - 1)[rank - 1])
        if rule.method == "pot":
            detail = f"pot fell back to the quantile of {n} scores: {detail}"
            if rank == n:
                detail += (
                    f"; it is the largest of them: {n} scores are too few for a rate of "
                    f"{rule.rate:g}"
                )
    if not math.isfinite(tau):
        raise DataError(
            f"the threshold is {tau}: calibration scores are not finite. Correct huge "
            "values in the calibration rows, or scale them (data.scaler)."
        )
    return Threshold(tau, rule.method, rule.rate, n, rank, source, detail)


def _blocks_threshold(scores: np.ndarray, rule: Rule) -> tuple[float, str]:
    """τ of scores `[n]` in order of time, and a note on it."""
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
            "threshold.method='budget' needs the time between rows: give rows with dates "
            "and times, or their distance in seconds, such as by data.step_seconds=60."
        )
    return rule.events


def _days(scores: int, event: EventRule) -> float:
    return scores * event.spacing / event.rows_per_day


def _tail_threshold(scores: np.ndarray, rate: float) -> tuple[float | None, str]:
    """τ of a Pareto tail above a level and a note on it; None and the reason."""
    from scipy.stats import genpareto

    n = len(scores)
    if not np.isfinite(scores).all():
        return None, "a score is not finite"
    level = float(np.sort(scores)[_quantile_rank(n, TAIL) - 1])
    excesses = scores[scores > level] - level
    count, distinct = len(excesses), len(np.unique(excesses))
    if count < EXCESSES or distinct < DISTINCT:
        return None, (
            f"{count} scores with {distinct} distinct values lie above its level, but it "
            f"needs {EXCESSES} with {DISTINCT}"
        )
    if n * rate >= count:
        why = f"a rate of {rate:g} needs no tail, since τ lies below its level"
        return None, why
    # In units of their mean, so that the result doesn't depend on the unit of scores.
    unit = float(excesses.mean())
    shape, _, scale = genpareto.fit(excesses / unit, floc=0)
    if not SHAPES[0] <= shape <= SHAPES[1]:
        return None, f"its shape {shape:.3g} is outside {SHAPES[0]} to {SHAPES[1]}"
    tau = level + unit * float(genpareto.isf(n * rate / count, shape, scale=scale))
    return tau, (
        f"generalised Pareto tail of shape {shape:.3g} on {count} scores above {level:.6g}"
    )


def _quantile_rank(n: int, share: Fraction) -> int:
    """Rank of the least of n scores with at most a share of them above it."""
    return math.ceil(n * (1 - share))


def _fraction(rate: float) -> Fraction:
    """The rate as the user wrote it."""
    if not 0 < rate < 1:
        raise ConfigError(
            f"threshold.false_alarm_rate={rate:g} must lie between 0 and 1."
        )
    # (n + 1)(1 − rate) in floats can round up past an integer. The limit turns the float
    # of 1/12, which is slightly less, into 1/12.
    return Fraction(str(rate)).limit_denominator(10**12)


def check_numbers(scores: np.ndarray, name: str) -> None:
    """Raises DataError for NaN scores, which would count as high or as normal."""
    missing = int(np.isnan(scores).sum())
    if missing:
        raise DataError(
            f"{missing} of {len(scores)} {name} are NaN: leave out windows "
            "without a score."
        )


def needed(rule: Rule) -> int:
    """The least number of calibration scores that a rule needs.

    `blocks`: one per block. `budget`: enough to allow one event. `conformal`: n ≥
    1/rate − 1, for which the rank is one of the scores.
    `quantile`: 1/rate, since the share above τ is then one score. `pot`: as `quantile`,
    but at most the size of its tail, beyond which it extrapolates. `fixed`: none.

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

    For short training rows, which later rows don't quite repeat: the fewer windows, the
    higher τ. Two of the blocks may contain anomalies.

    Args:
        scores: window scores `[n]` of clean rows in order of time, each from a model and a
            Gaussian that were fitted without the window's block.
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

    Falls back to the quantile, with a warning, if no tail fits.

    Arguments and errors as of `conformal_threshold`.

    >>> scores = np.random.default_rng(0).exponential(size=2000)
    >>> round(pot_threshold(scores, rate=0.001), 1)
    7.2
    """
    return choose_threshold(np.asarray(scores), Rule("pot", rate)).tau


def parse_budget(text: str) -> float:
    """Alarms per day of a budget such as 2/day; a month has 30 days.

    >>> parse_budget("2/day"), parse_budget("0.5/hour"), parse_budget("3/month")
    (2.0, 12.0, 0.1)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*/\s*([a-z]+)\s*", text)
    if found and found[2] in HOURS and float(found[1]) > 0:
        return float(found[1]) * 24 / HOURS[found[2]]
    raise ConfigError(
        f"threshold.budget={text!r} is not a budget of alarms: give a number above 0 and "
        f"one of {', '.join(HOURS)}, such as 2/day, 1/week or 0.5/hour."
    )


def too_few_message(n: int, rule: Rule, *, todo: str = "give more rows") -> str:
    """The message for n calibration windows that are too few for the rule."""
    windows = f"{counted(needed(rule), 'calibration window')}, have {n}: {todo}"
    if rule.method == "budget":
        event = _timed(rule)
        days, least = _days(n, event), ""
        per_day = 1 / days if n else math.inf
        if per_day <= event.rows_per_day / event.gap:  # more events would merge
            units = (unit for unit in HOURS if unit != "hour")
            unit = next((u for u in units if per_day * HOURS[u] >= 24), "month")
            number = math.ceil(per_day * HOURS[unit] / 24 - 1e-9)
            least = (
                f", or accept more events: threshold.budget={number}/{unit} or above"
            )
        return (
            f"threshold.budget, {rule.per_day:.3g} events a day, needs {1 / rule.per_day:.3g} "
            f"days of calibration windows for one event, have {days:.3g}: {todo}{least}."
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
    """The threshold of each entity, and notes on entities without their own.

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
    notes, alone = [], len(found) == 1 and scope != "pooled"
    for source, reason in (
        ("pooled", "few rows for Gaussian and τ" if alone else "pooled Gaussian and τ"),
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
    if rule.method != "blocks":  # the card tells its factor
        notes += [f"{e.name}: {t.detail}" for e, _, t in found if t.detail]
    return thresholds, notes
