"""Intervals of means over entities, and paired comparisons of models.

Models are compared entity by entity; the interval covers the choice of entities. Seeds
are averaged first: they repeat an entity and are no evidence on other entities.

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

from kdjax.errors import DataError, counted
from kdjax.evaluation.rows import NETWORKS, ORACLE, PREVIOUS

BEST_BASELINE = "best baseline"

LEVEL, SEED = 0.95, 0
MIN_ENTITIES = 3  # that an interval needs
FEW = 5  # with fewer the interval is too narrow
RESAMPLES = 9999
# Resampled values held at once, as float64.
BATCH_VALUES = 2_000_000

METRICS = (
    "f1",
    "precision",
    "recall",
    "average_precision",
    "auc_roc",
    # Of points only:
    "vus_pr",
    "vus_roc",
    "affiliation_f1",
    "range_f1",
    "event_f1",
)
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


class Interval(NamedTuple):
    """A mean over entities with its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    entities: int  # that have a value
    reason: str  # why there is no interval, or why it is too narrow; else empty


class Difference(NamedTuple):
    """The mean of first minus second over entities; other fields as in `Interval`."""

    difference: float
    low: float
    high: float
    entities: int
    reason: str


class Measured(NamedTuple):
    """One metric of one model, NaN where undefined."""

    entities: tuple[str, ...]
    seeds: tuple[Any, ...]
    values: np.ndarray  # [S, E]


def mean_interval(values: npt.ArrayLike) -> Interval:
    """The mean over entities with its bootstrap interval.

    `values` are `[E]`, or `[S, E]` from S seeds, which are averaged first; NaN or None
    where undefined; DataError where infinite or of more dimensions.

    >>> mean_interval([0.25, 0.75])[-1]
    '2 entities are too few for an interval'
    """
    known = _known_means(_seeds_by_entities(values))
    if not len(known):
        return Interval(math.nan, math.nan, math.nan, 0, "no entity has a value")
    mean, count = float(np.mean(known)), len(known)
    if count < MIN_ENTITIES:
        plural = "entity is" if count == 1 else "entities are"
        reason = f"{count} {plural} too few for an interval"
        return Interval(mean, math.nan, math.nan, count, reason)
    low, high = _bootstrap(tuple(known.tolist()))
    reason = (
        f"from {counted(count, 'entity', 'entities')} an interval is too narrow"
        if count < FEW
        else ""
    )
    return Interval(mean, low, high, count, reason)


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """The mean of `first − second` over entities with its bootstrap interval.

    Both are `[E]`, or `[S, E]` from S seeds, of the same entities in the same order, and
    from as many seeds or from one; else DataError. Where one is NaN or None, that entity
    (in that seed) is left out of both.
    """
    ours, theirs = _seeds_by_entities(first), _seeds_by_entities(second)
    seeds = {len(ours), len(theirs)} - {1}
    if ours.shape[1] != theirs.shape[1] or len(seeds) > 1:
        raise DataError(
            f"`first` has the shape {ours.shape} and `second` {theirs.shape} (seeds, "
            "entities): expected the same entities, and as many seeds or one. Give NaN "
            "where a value is undefined."
        )
    return Difference(*mean_interval(ours - theirs))


def is_baseline(model: str) -> bool:
    """Whether a model is a baseline: neither a network nor the previous detector."""
    return model not in (*NETWORKS, PREVIOUS)


def measured(
    entities: Iterable[Row], model: str, *, threshold: str, level: str, metric: str
) -> Measured:
    """One metric of one model in the rows of `results["entities"]`.

    Rows without a level are of windows, rows without a `seed` of one seed; rows without
    the metric are skipped. DataError where two are of the same entity and seed.
    """
    found: dict[tuple[Any, str], float | None] = {}
    for row in entities:
        if metric not in row or _group(row) != (model, threshold, level):
            continue
        key = (row.get("seed", 0), row["entity"])
        if key in found:
            raise DataError(
                f"two rows hold {metric} of {model} on {row['entity']} ({threshold}, "
                f"{level}, seed {key[0]}): expected one. Give rows of several runs "
                "their `seed`."
            )
        found[key] = row[metric]
    seeds = tuple(dict.fromkeys(seed for seed, _ in found))
    names = tuple(dict.fromkeys(name for _, name in found))
    grid = [[found.get((seed, name)) for name in names] for seed in seeds]
    values = np.array(grid, np.float64).reshape(len(seeds), len(names))
    return Measured(names, seeds, values)


def compare(first: Measured, second: Measured) -> Difference:
    """`paired_difference` of two models on the entities and seeds that both have."""
    names = [name for name in first.entities if name in second.entities]
    shared = [seed for seed in first.seeds if seed in second.seeds]
    # A baseline, which needs no training, is measured once for all seeds.
    once = 1 in (len(first.seeds), len(second.seeds))
    ours, theirs = (
        found.values[
            np.ix_(
                [found.seeds.index(s) for s in (found.seeds if once else shared)],
                [found.entities.index(name) for name in names],
            )
        ]
        for found in (first, second)
    )
    return paired_difference(ours, theirs)


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
            if found.entities:
                interval = mean_interval(found.values)._asdict()
                rows.append({"model": model, **key, **_numbers(interval)})
    return rows


def paired_rows(
    entities: Sequence[Row], pairs: Sequence[tuple[str, str]] = PAIRS
) -> list[dict[str, Any]]:
    """Paired differences for `results.json`, from the rows of `results["entities"]`.

    JSON-able dicts by `model`, `against`, `threshold`, `level` and `metric`, with the
    fields of `Difference` (None for NaN) and `baseline`: which one `best baseline` is,
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
    for model, against in pairs:
        for key in keys:
            baseline = None
            if against == BEST_BASELINE:
                baseline = best_baseline(entities, **key)
            other = baseline or against
            first, second = (measured(entities, name, **key) for name in (model, other))
            if first.entities and second.entities:
                found = _numbers(compare(first, second)._asdict())
                head = {"model": model, "against": against}
                rows.append({**head, **key, "baseline": baseline, **found})
    return rows


def best_baseline(
    entities: Sequence[Row], *, threshold: str, level: str, metric: str
) -> str | None:
    """The baseline with the best mean of a metric over entities; None without one."""
    key = {"threshold": threshold, "level": level, "metric": metric}
    means = {
        model: _known_means(measured(entities, model, **key).values)
        for model in dict.fromkeys(row["model"] for row in entities)
        if is_baseline(model)
    }
    best = {model: float(np.mean(own)) for model, own in means.items() if len(own)}
    return max(best, key=best.__getitem__, default=None)


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


def _seeds_by_entities(values: npt.ArrayLike) -> np.ndarray:
    """`[S, E]` float64 with NaN for None; one row where there are no seeds."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`values` can't be read as numbers ({error}): expected one an entity, "
            "NaN or None where it is undefined."
        ) from error
    if array.ndim not in (1, 2) or np.isinf(array).any():
        what = "infinite values" if array.ndim in (1, 2) else f"{array.ndim} dimensions"
        raise DataError(
            f"`values` has {what}: expected finite numbers of E entities, or of S "
            "seeds and E entities, NaN where undefined."
        )
    rows: np.ndarray = np.atleast_2d(array)
    return rows


def _known_means(values: np.ndarray) -> np.ndarray:
    """Means `[E]` over the seeds `[S, E]` that have a value, of entities that have one."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    sums = np.where(known, values, 0).sum(axis=0)
    means: np.ndarray = sums[counts > 0] / counts[counts > 0]
    return means


def _group(row: Row) -> tuple[str, str, str]:
    return row["model"], row["threshold"], row.get("level", "window")


def _numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields for JSON, which has no NaN."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in fields.items()
    }
