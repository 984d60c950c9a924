"""Measured false-alarm rates of clean windows, and checks whether a detector still fits.

Overlapping windows share rows and alarm together, so intervals come from windows that
share no row (Clopper and Pearson, Biometrika 1934), taken as independent. They are too
narrow where behaviour stays the same for longer than a window.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.series import Ranges, Series, outside
from kdjax.data.windowing import chunks, has_missing
from kdjax.detection.alarming import count_events
from kdjax.detection.cadence import other_rows
from kdjax.detection.stream_rules import separate_scores
from kdjax.detection.thresholds import (
    BLOCKS,
    Rule,
    check_numbers,
    find_threshold,
    needed,
)
from kdjax.errors import counted
from kdjax.metrics.checks import runs

if TYPE_CHECKING:
    from kdjax.detection.detector import Detector

# Drift is reported if p-values are this far from uniform and this is significant.
DISTANCE = 0.25
SIGNIFICANCE = 1e-3
# Scores that drifted are normal again below this distance, so that a warning comes once.
NORMAL_AGAIN = 0.15
# Share of rows outside the training range that gives a warning.
FOREIGN = 0.05


class MeasuredRate(NamedTuple):
    """Wanted and measured false-alarm rate."""

    wanted: float  # by the rule; 0 for `fixed` and `budget`
    rate: float  # share of all windows above τ; NaN without a window
    disjoint_alarms: int  # windows above τ among those that share no row
    disjoint_n: int  # number of windows that share no row
    low: float  # ends of the 95 % interval, from these
    high: float
    detail: str = ""  # what was left out


class ExpectedEvents(NamedTuple):
    """Mean events, and their 90 % interval for a time as long as calibration's."""

    number: float
    low: float
    high: float
    unit: str  # `a day`, or `in 10,000 rows` where rows have no times
    mode: str  # `stream` for a window a row, `score` for one every stride

    def __str__(self) -> str:
        number, low, high = map(events_text, self[:3])
        return f"expect {number} events {self.unit} ({low}–{high}) by {self.mode}"


def events_text(number: float) -> str:
    """A number of events as text: whole from 10 on, else two digits."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


class Drift(NamedTuple):
    """Comparison of scores with those of calibration."""

    n: int  # number of p-values
    distance: float  # of their distribution from the uniform one; NaN without any
    drifted: bool  # whether it is large and significant
    higher: bool = False  # whether most scores are above those of calibration

    def __str__(self) -> str:
        """Where the scores are and what that means, for a line that names the rows."""
        text = f"(distance {self.distance:.2f} over {self.n} separate windows)"
        if self.higher:
            return (
                f"scores are higher than in calibration {text}: behaviour changed, so "
                "expect more false alarms; run kdjax calibrate on recent clean rows"
            )
        return (
            f"scores are lower than in calibration {text}: the rows are quieter, or the "
            "detector was trained on them; expect fewer alarms, and run kdjax calibrate "
            "if this lasts on new rows"
        )


def disjoint(starts: np.ndarray, window: int) -> np.ndarray:
    """Indices of windows that share no row, chosen greedily in time, `[M] -> [K]`.

    >>> disjoint(np.array([0, 10, 20, 25, 60]), 20)
    array([0, 2, 4])
    """
    order = np.argsort(starts, kind="stable")
    ordered = np.asarray(starts)[order]
    chosen, place = [], 0
    while place < len(ordered):
        chosen.append(place)
        place = int(np.searchsorted(ordered, ordered[place] + window))
    return order[np.array(chosen, np.int64)]


def interval(alarms: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a share, from `alarms` of n independent windows.

    >>> low, high = interval(0, 36)
    >>> low, round(high, 4)
    (0.0, 0.0974)
    """
    from scipy.stats import beta

    half = (1 - level) / 2
    low = float(beta.ppf(half, alarms, n - alarms + 1)) if alarms else 0.0
    high = float(beta.isf(half, alarms + 1, n - alarms)) if alarms < n else 1.0
    return low, high


def p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Conformal p-values (1 + #{calibration ≥ score}) / (n + 1), `[n], [M] -> [M]`.

    Uniform, or slightly larger, for scores distributed as those of calibration. A score
    is above `conformal`'s τ exactly where its p-value is at most the rate.

    >>> p_values(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 9.0]))
    array([1.  , 0.75, 0.25])
    """
    check_numbers(calibration, "calibration scores")
    check_numbers(scores, "scores")
    n = len(calibration)
    reached = n - np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + reached) / (n + 1)


def measured_rate(
    scores: np.ndarray, starts: np.ndarray, tau: float, *, window: int, wanted: float
) -> MeasuredRate:
    """The share of clean windows above τ, from scores `[M]` and first rows `[M]`."""
    check_numbers(scores, "scores")
    return _count(np.asarray(scores) > tau, starts, window=window, wanted=wanted)


def cross_rates(
    scores: np.ndarray, starts: np.ndarray, rule: Rule, *, window: int, folds: int = 5
) -> MeasuredRate:
    """The share of calibration windows above a τ that was chosen without them.

    The windows, with scores `[n]` and first rows `[n]`, are cut into blocks of time. τ
    of a block comes from the windows of the other blocks that share no row with it.
    `detail` counts the blocks that are left out because the rule needs more windows. The
    result shows drift within the calibration rows only.
    """
    check_numbers(scores, "calibration scores")
    order = np.argsort(starts, kind="stable")
    scores, starts = np.asarray(scores)[order], np.asarray(starts)[order]
    used = fallbacks = 0
    known, above = np.zeros((2, len(scores)), bool)
    for block in np.array_split(np.arange(len(starts)), folds):
        if not len(block):
            continue
        first, last = starts[block[0]], starts[block[-1]]
        others = scores[(starts <= first - window) | (starts >= last + window)]
        if len(others) < needed(rule):
            continue
        threshold = find_threshold(others, rule)
        used += 1
        fallbacks += rule.method == "pot" and threshold.rank > 0
        known[block] = True
        above[block] = scores[block] > threshold.tau
    wanted = 0.0 if rule.method in ("fixed", "budget") else rule.rate
    details = []
    if not len(scores):
        details.append("no calibration window has a score")
    elif used < folds:
        details.append(
            f"{folds - used} of {folds} folds left out: {rule.method} needs "
            f"{needed(rule)} windows that share no row with the block"
        )
    if fallbacks:
        details.append(f"pot fell back to the quantile in {fallbacks} of {used} folds")
    found = _count(above[known], starts[known], window=window, wanted=wanted)
    return found._replace(detail="; ".join(details))


def expected_events(
    scores: np.ndarray, rule: Rule, *, least: float = -math.inf
) -> ExpectedEvents | None:
    """Events in clean rows that τ was not chosen on, from window scores `[n]` in time.

    τ is at least `least`.

    Each block of time has the events above the τ of the other blocks. The interval is
    Student's of the blocks' rates, for the mean and the same time again, and at least as
    wide as for counts of independent events (Poisson). None if the rule needs more scores.
    """
    event = rule.events
    blocks = np.array_split(np.asarray(scores), BLOCKS)
    fewest = len(scores) - max(map(len, blocks))
    if event is None or fewest < max(1, needed(rule)):
        return None
    counts = []
    for place, block in enumerate(blocks):
        others = np.concatenate(blocks[:place] + blocks[place + 1 :])
        tau = max(least, find_threshold(others, rule).tau)
        counts.append(count_events(block, tau, event))
    days = len(scores) * event.spacing / (event.rows_per_day or 10_000)
    mean, rates = sum(counts) / days, np.array(counts) / (days / BLOCKS)
    unit = "a day" if event.rows_per_day else "in 10,000 rows"
    mode = "stream" if event.spacing == 1 else "score"
    return with_interval(mean, rates, days, unit, mode)


def with_interval(
    mean: float, rates: np.ndarray, days: float, unit: str, mode: str
) -> ExpectedEvents:
    """Events in mean, with the interval of `expected_events` by `rates` `[BLOCKS]`."""
    from scipy.stats import t

    spread = float(np.var(rates, ddof=1)) / BLOCKS
    half = float(t.ppf(0.95, BLOCKS - 1)) * math.sqrt(spread + max(spread, mean / days))
    # Of no event in a time, three are compatible with it at 95 %.
    high = max(mean + half, 3 / days)
    return ExpectedEvents(mean, max(0.0, mean - half), high, unit, mode)


def drift(p: np.ndarray, *, calibration: int) -> Drift:
    """Whether p-values `[n]` of windows that share no row are far from uniform.

    The distance is that of Kolmogorov and Smirnov. It is drift if it exceeds `DISTANCE`
    and the value that chance exceeds with probability `SIGNIFICANCE` (Massart, Annals of
    Probability 1990), with the effective sample size n·m / (n + m).

    `calibration` is m, the number of calibration windows that share no row.

    >>> drift(np.array([0.2, 0.4, 0.6, 0.8]), calibration=9)
    Drift(n=4, distance=0.2, drifted=False, higher=False)
    """
    n = len(p)
    if n == 0 or calibration == 0:
        return Drift(n, math.nan, False)
    ordered, steps = np.sort(p), np.arange(n + 1) / n
    above, below = (steps[1:] - ordered).max(), (ordered - steps[:-1]).max()
    distance = float(max(above, below))  # small p-values are of high scores
    size = n * calibration / (n + calibration)
    chance = math.sqrt(math.log(2 / SIGNIFICANCE) / (2 * size))
    drifted = distance > max(DISTANCE, chance)
    return Drift(n, distance, drifted, higher=bool(above > below))


def score_drift(
    detector: "Detector", index: int, window_score: np.ndarray
) -> Drift | None:
    """Whether the window scores of rows `[N]` have drifted from those of calibration.

    Compares windows that share no row: L rows apart, rounded up to whole strides. None
    if the entity has no calibration scores, or those of all entities.
    """
    separate = separate_scores(detector, index)
    if not separate:
        return None
    strides = math.ceil(detector.window / detector.stride)
    known = np.flatnonzero(~np.isnan(window_score))
    apart = known[disjoint(known, strides * detector.stride)]
    return drift(
        p_values(detector.calibration[index], window_score[apart]), calibration=separate
    )


def series_notes(
    detector: "Detector", index: int, series: Series, table: pd.DataFrame
) -> list[str]:
    """Notes on rows that differ from the training rows, warnings first.

    `table` is the `score_table` of the series under the entity at `index`.
    """
    notes = []
    if detector.ranges is not None:
        ranges = Ranges(*(side[index] for side in detector.ranges))
        notes += _range_notes(ranges, detector.channels, series.values)
    if len(other := other_rows(series.time, detector.step)):
        notes.append(
            f"warning: {counted(len(other), 'row')} at another step than in training "
            f"({detector.step:g}), unknown"
        )
    if has_missing(series.values):
        cells = np.isnan(series.values)
        unscored = int((table["score"].isna() & cells.all(axis=1)).sum())
        notes.append(
            f"{counted(int(cells.sum()), 'missing cell')}; {counted(unscored, 'row')} "
            "without a value or a score, unknown"
        )
        notes += _absences(detector, cells)
    found = score_drift(detector, index, table["window_score"].to_numpy())
    if found is not None and found.drifted:
        notes.append(f"{'warning: ' * found.higher}{found}")
    notes.sort(key=lambda note: "warning" not in note)
    return [f"{series.entity}: {note}" for note in notes]


def _absences(detector: "Detector", cells: np.ndarray) -> list[str]:
    """A warning of channels whose missing cells `[N, D]` bool fill whole windows."""
    found = []
    for column in np.flatnonzero(cells.sum(axis=0) >= detector.window):
        sizes = np.subtract(*reversed(runs(cells[:, column])))
        share = sizes[sizes >= detector.window].sum() / len(cells)
        found.append((share, f"{detector.channels[column]} in {share:.1%} of the rows"))
    found = sorted([one for one in found if one[0]], reverse=True)
    named = ", ".join(text for _, text in found[:3])
    others = f" and {counted(len(found) - 3, 'other channel')}" * (len(found) > 3)
    text = f"warning: no values for whole windows: {named}{others}; scores there aren't"
    return [f"{text} calibrated"] * bool(found)


def _range_notes(
    ranges: Ranges, channels: Sequence[str], values: np.ndarray
) -> list[str]:
    rows, by_channel = 0, np.zeros(len(channels), np.int64)
    for piece in chunks(values):
        found = outside(ranges, piece)
        rows += int(found.any(axis=1).sum())
        by_channel += found.sum(axis=0)
    if not rows:
        return []
    share = rows / len(values)
    warning = "warning: " if share > FOREIGN else ""
    constant = np.where(ranges.low == ranges.high, " (constant in training)", "")
    worst = ", ".join(
        f"{channels[i]} {by_channel[i]:,}{constant[i]}"
        for i in np.argsort(-by_channel, kind="stable")[:3]
        if by_channel[i]
    )
    part = f"{rows:,} of {len(values):,} rows ({share:.1%})"
    return [f"{warning}{part} have values outside the training range: {worst}"]


def _count(
    above: np.ndarray, starts: np.ndarray, *, window: int, wanted: float
) -> MeasuredRate:
    apart = above[disjoint(starts, window)]
    alarms, n = int(apart.sum()), len(apart)
    rate = float(above.mean()) if len(above) else math.nan
    return MeasuredRate(wanted, rate, alarms, n, *interval(alarms, n))
