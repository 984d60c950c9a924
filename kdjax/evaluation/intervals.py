"""Intervals of means over entities, and paired comparisons of models.

Models are compared entity by entity; the interval covers the choice of entities.

The interval is the percentile bootstrap, expanded for few entities (Hesterberg, 2015,
"What Teachers Should Know About the Bootstrap", section 4.3): percentiles are taken at
Φ(∓ t √(n/(n−1))) in place of 2.5 % and 97.5 %. In 1,000 simulations of normal values
with n = 5, 8, 13 and 28 it covered the mean in 91, 94, 95 and 96 % of cases, plain
percentiles in 84, 89, 91 and 94, BCa in 84, 88, 91 and 93. With n = 3 and 4 it covers
75 and 86 %.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdjax.errors import counted
from kdjax.evaluation.rows import NETWORKS, ORACLE, PREVIOUS

BEST_BASELINE = "best baseline"

LEVEL, SEED = 0.95, 0
MIN_ENTITIES = 3  # least number for an interval
FEW = 5  # with fewer the interval is too narrow
RESAMPLES = 9999
# Resampled values held at once, as float64.
BATCH_VALUES = 2_000_000

OF_POINTS = ("vus_pr", "vus_roc", "affiliation_f1", "range_f1", "event_f1")
METRICS = ("f1", "precision", "recall", "average_precision", "auc_roc", *OF_POINTS)
PAIRS = (
    ("student", "teacher"),
    ("student", "student_alone"),
    ("teacher", BEST_BASELINE),
    ("student", BEST_BASELINE),
)
# Metric, level, and whether it depends on a threshold.
COMPARED = (
    ("f1", "window", True),
    ("average_precision", "point", False),
    ("vus_pr", "point", False),
)

Row = Mapping[str, Any]
Measured = dict[str, float]  # one metric of one model by entity, NaN where undefined


class Interval(NamedTuple):
    """A mean over entities with its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    entities: int  # that have a value
    reason: str  # why there is no interval, or why it is too narrow; else empty


def mean_interval(values: npt.ArrayLike) -> Interval:
    """The mean over entities with its bootstrap interval.

    `values` are `[E]`, NaN or None where undefined.

    >>> mean_interval([0.25, 0.75])[-1]
    '2 entities are too few for an interval'
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(math.nan, math.nan, math.nan, 0, "no entity has a value")
    mean, count = float(np.mean(known)), len(known)
    if count < MIN_ENTITIES:
        plural = "entity is" if count == 1 else "entities are"
        reason = f"{count} {plural} too few for an interval"
        return Interval(mean, math.nan, math.nan, count, reason)
    low, high = _bootstrap(tuple(known.tolist()))
    reason = ""
    if count < FEW:
        reason = (
            f"from {counted(count, 'entity', 'entities')} an interval is too narrow"
        )
    return Interval(mean, low, high, count, reason)


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Interval:
    """The mean of `first − second` over entities with its bootstrap interval.

    Both are `[E]`, of the same entities in the same order. An entity with NaN or None in
    one of them is left out of both.
    """
    return mean_interval(np.subtract(*np.array([first, second], np.float64)))


def is_baseline(model: str) -> bool:
    """Whether a model is a baseline: neither a network nor the previous detector."""
    return model not in (*NETWORKS, PREVIOUS)


def measured(
    entities: Iterable[Row], model: str, *, threshold: str, level: str, metric: str
) -> Measured:
    """One metric of one model in the rows of `results["entities"]`.

    Rows without a level are of windows; rows without the metric are skipped.
    """
    return {
        row["entity"]: math.nan if row[metric] is None else row[metric]
        for row in entities
        if metric in row and _group(row) == (model, threshold, level)
    }


def compare(first: Measured, second: Measured) -> Interval:
    """`paired_difference` of two models on the entities that both have."""
    names = [name for name in first if name in second]
    return paired_difference([first[n] for n in names], [second[n] for n in names])


def interval_rows(entities: Sequence[Row]) -> list[dict[str, Any]]:
    """Means and intervals for `results.json`, from the rows of `results["entities"]`.

    JSON-able dicts by `model`, `threshold`, `level` and `metric`, in the order of the
    rows, with the fields of `Interval` (None for NaN). Metrics that the rows lack are
    left out.
    """
    rows = []
    for model, threshold, level in dict.fromkeys(map(_group, entities)):
        of_group = [r for r in entities if _group(r) == (model, threshold, level)]
        for metric in METRICS:
            key = {"threshold": threshold, "level": level, "metric": metric}
            found = measured(of_group, model, **key)
            if found:
                interval = mean_interval([*found.values()])._asdict()
                rows.append({"model": model, **key, **_numbers(interval)})
    return rows


def paired_rows(entities: Sequence[Row]) -> list[dict[str, Any]]:
    """Paired differences for `results.json`, from the rows of `results["entities"]`.

    JSON-able dicts by `model`, `against`, `threshold`, `level` and `metric`, with
    `difference`, its interval (None for NaN) and `baseline`: which one `best baseline` is,
    else None. It is the baseline with the best mean of the same metric, chosen on the
    entities that are compared, which favours the baseline. Pairs that were not both
    measured are left out.
    """
    thresholds = list(dict.fromkeys(row["threshold"] for row in entities))
    keys = [
        {"threshold": threshold, "level": level, "metric": metric}
        for metric, level, by_threshold in COMPARED
        for threshold in (thresholds if by_threshold else [ORACLE])
    ]
    rows = []
    for model, against in PAIRS:
        for key in keys:
            baseline = None
            if against == BEST_BASELINE:
                baseline = best_baseline(entities, **key)
            other = baseline or against
            first, second = (measured(entities, name, **key) for name in (model, other))
            if first and second:
                found = _numbers(compare(first, second)._asdict())
                head = {"model": model, "against": against, **key}
                head |= {"baseline": baseline, "difference": found.pop("mean")}
                rows.append(head | found)
    return rows


def best_baseline(
    entities: Sequence[Row], *, threshold: str, level: str, metric: str
) -> str | None:
    """The baseline with the best mean of a metric over entities; None without one."""
    key = {"threshold": threshold, "level": level, "metric": metric}
    means = {
        model: mean_interval([*measured(entities, model, **key).values()]).mean
        for model in dict.fromkeys(row["model"] for row in entities)
        if is_baseline(model)
    }
    known = {model: mean for model, mean in means.items() if not math.isnan(mean)}
    return max(known, key=known.__getitem__, default=None)


@lru_cache(maxsize=1024)
def _bootstrap(values: tuple[float, ...]) -> tuple[float, float]:
    """Ends of the expanded percentile interval.

    Cached, since a metric without a threshold is in the rows of each threshold.
    """
    from scipy import stats  # here, since it takes a while to import

    count = len(values)
    if min(values) == max(values):
        return values[0], values[0]  # resampled means differ by rounding
    quantile = stats.t.ppf((1 + LEVEL) / 2, count - 1) * math.sqrt(count / (count - 1))
    found = stats.bootstrap(
        (np.array(values),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_VALUES // count),
        vectorized=True,
        confidence_level=float(2 * stats.norm.cdf(quantile) - 1),
        method="percentile",
        random_state=np.random.default_rng(SEED),  # scipy 1.15 calls it rng
    ).confidence_interval
    return float(found.low), float(found.high)


def _group(row: Row) -> tuple[str, str, str]:
    return row["model"], row["threshold"], row.get("level", "window")


def _numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields for JSON, which has no NaN."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in fields.items()
    }
