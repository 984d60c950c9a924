"""How often clean windows alarm for real, beside what a rule promises.

Neighbouring windows share rows and alarm together, so n overlapping windows tell much
less than n. Intervals here come from windows that share none: Clopper and Pearson's
(Biometrika 1934), which take those as independent. That still flatters where behaviour
stays for longer than a window.
"""

import math
from typing import NamedTuple

import numpy as np

from kdjax.detection.thresholds import (
    Rule,
    check_numbers,
    find_threshold,
    needed,
)

# A drift is reported when the p-values are this far from uniform and when that is past
# chance; see `drift`.
DISTANCE = 0.25
SIGNIFICANCE = 1e-3


class MeasuredRate(NamedTuple):
    """A wanted and a realised share of false alarms.

    Attributes:
        wanted: by the rule; 0 for `fixed`, which wants none.
        rate: share of all the windows that lie above τ; NaN without a window.
        disjoint_alarms: windows above τ among those that share no row.
        disjoint_n: number of windows that share no row.
        low: lower end of the 95 % interval, from these.
        high: upper end.
        detail: what was left out; often empty.
    """

    wanted: float
    rate: float
    disjoint_alarms: int
    disjoint_n: int
    low: float
    high: float
    detail: str = ""


class Drift(NamedTuple):
    """Whether scores still come from where calibration's came from.

    Attributes:
        n: number of p-values.
        distance: largest difference between their distribution and the uniform one;
            NaN without any.
        drifted: whether it is large, and past chance.
    """

    n: int
    distance: float
    drifted: bool


def disjoint(starts: np.ndarray, window: int) -> np.ndarray:
    """Index of windows that share no row, taken greedily in time, `[M] -> [K]`.

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

    Uniform, or a little larger, where scores come from where calibration's did: a score
    is above `conformal`'s τ exactly where its p-value is at most the rate.

    >>> p_values(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 9.0]))
    array([1.  , 0.75, 0.25])
    """
    check_numbers(calibration, "calibration scores")
    check_numbers(scores, "scores")
    n = len(calibration)
    reached = n - np.searchsorted(np.sort(calibration), scores, side="left")
    p: np.ndarray = (1 + reached) / (n + 1)
    return p


def measured_rate(
    scores: np.ndarray,
    starts: np.ndarray,
    tau: float,
    *,
    window: int,
    wanted: float,
) -> MeasuredRate:
    """The realised share of alarms among clean windows, `[M], [M]`.

    Args:
        scores: window scores.
        starts: first rows of the windows.
        tau: τ.
        window: L.
        wanted: the rule's rate.
    """
    check_numbers(scores, "scores")
    return _count(np.asarray(scores) > tau, starts, window=window, wanted=wanted)


def cross_rates(
    scores: np.ndarray,
    starts: np.ndarray,
    rule: Rule,
    *,
    window: int,
    folds: int = 5,
) -> MeasuredRate:
    """The share of calibration windows above a τ that was chosen without them.

    The windows are cut into `folds` blocks of time. For each block τ comes from the
    windows of the others that share no row with it. A fold with fewer of those than the
    rule needs is left out, and `detail` says so. What it shows is drift inside the
    calibration rows; it can't see what comes after them.

    Args:
        scores: `[n]` calibration window scores.
        starts: `[n]` first rows of the windows.
        rule: how τ is chosen.
        window: L.
        folds: number of blocks.
    """
    check_numbers(scores, "calibration scores")
    order = np.argsort(starts, kind="stable")
    scores, starts = np.asarray(scores)[order], np.asarray(starts)[order]
    held, above, fallbacks = [], [], 0
    blocks = [
        block for block in np.array_split(np.arange(len(starts)), folds) if len(block)
    ]
    for block in blocks:
        first, last = starts[block[0]], starts[block[-1]]
        others = scores[(starts <= first - window) | (starts >= last + window)]
        if len(others) < needed(rule):
            continue
        threshold = find_threshold(others, rule)
        fallbacks += rule.method == "pot" and threshold.rank > 0
        held.append(block)
        above.append(scores[block] > threshold.tau)
    nothing = np.empty(0, np.int64)
    index = np.concatenate([nothing, *held])
    alarms = np.concatenate([nothing.astype(bool), *above])
    wanted = 0.0 if rule.method == "fixed" else rule.rate
    found = _count(alarms, starts[index], window=window, wanted=wanted)
    return found._replace(detail=_left_out(len(held), folds, fallbacks, rule))


def drift(p: np.ndarray, *, calibration: int) -> Drift:
    """Whether p-values `[n]` of windows that share no row are far from uniform.

    The distance is Kolmogorov's and Smirnov's. It counts as drift when it is above both
    `DISTANCE`, so that a difference is large and not only sure, and what chance exceeds
    less than once in 1 / `SIGNIFICANCE` times (Massart, Annals of Probability 1990).
    Calibration is a sample too, so m and n windows are worth n·m / (n + m).

    Args:
        p: from `p_values`.
        calibration: m, number of calibration windows that share no row.

    >>> drift(np.array([0.2, 0.4, 0.6, 0.8]), calibration=9)
    Drift(n=4, distance=0.2, drifted=False)
    """
    n = len(p)
    if n == 0 or calibration == 0:
        return Drift(n, math.nan, False)
    ordered, steps = np.sort(p), np.arange(n + 1) / n
    distance = float(np.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())
    size = n * calibration / (n + calibration)
    chance = math.sqrt(math.log(2 / SIGNIFICANCE) / (2 * size))
    return Drift(n, distance, distance > max(DISTANCE, chance))


def _count(
    above: np.ndarray, starts: np.ndarray, *, window: int, wanted: float
) -> MeasuredRate:
    apart = above[disjoint(starts, window)]
    alarms, n = int(apart.sum()), len(apart)
    rate = float(above.mean()) if len(above) else math.nan
    return MeasuredRate(wanted, rate, alarms, n, *interval(alarms, n))


def _left_out(used: int, folds: int, fallbacks: int, rule: Rule) -> str:
    said = []
    if used < folds:
        said.append(
            f"{folds - used} of {folds} folds left out: {rule.method} needs "
            f"{needed(rule)} windows that share no row with the block"
        )
    if fallbacks:
        said.append(f"pot fell back to the quantile in {fallbacks} of {used} folds")
    return "; ".join(said)
