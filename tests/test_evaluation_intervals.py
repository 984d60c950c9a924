"""Intervals against all resamples, t-intervals and simulation; pairs by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from kdjax.evaluation import intervals
from kdjax.evaluation.intervals import (
    BEST_BASELINE,
    best_baseline,
    compare,
    interval_rows,
    mean_interval,
    measured,
    paired_difference,
    paired_rows,
)

F1 = {"threshold": "oracle", "level": "window", "metric": "f1"}


# Means.


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_ends_are_percentiles_of_all_resamples(level, monkeypatch):
    monkeypatch.setattr(intervals, "LEVEL", level)
    intervals._bootstrap.cache_clear()
    values = [0.1, 0.15, 0.4, 0.47, 0.8, 0.98]
    # Each of the 6^6 resamples once, and the share of Hesterberg's expansion.
    means = [sum(drawn) / 6 for drawn in itertools.product(values, repeat=6)]
    quantile = stats.t(5).isf((1 - level) / 2) * math.sqrt(6 / 5)
    tail = stats.norm.sf(quantile)
    found = mean_interval(values)
    intervals._bootstrap.cache_clear()
    assert found.mean == pytest.approx(2.9 / 6)
    assert found.low == pytest.approx(np.quantile(means, tail), abs=0.01)
    assert found.high == pytest.approx(np.quantile(means, 1 - tail), abs=0.01)
    assert (found.entities, found.reason) == (6, "")


def test_many_values_have_nearly_their_t_interval():
    values = np.random.default_rng(0).normal(0.5, 0.1, 60)
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 59, np.mean(values), stats.sem(values))
    assert found.low == pytest.approx(low, abs=0.002)
    assert found.high == pytest.approx(high, abs=0.002)


def test_the_interval_holds_the_mean_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 499)
    rng = np.random.default_rng(3)

    def coverage(count, times=400):
        found = [mean_interval(rng.normal(0.3, 1, count)) for _ in range(times)]
        return np.mean([one.low <= 0.3 <= one.high for one in found])

    # Plain percentiles hold it in 84 and 90 %.
    assert 0.88 < coverage(5) < 0.96
    assert 0.93 <= coverage(10) < 0.98


def test_the_same_values_give_the_same_interval(monkeypatch):
    values = np.random.default_rng(1).random(20)
    intervals._bootstrap.cache_clear()
    first = mean_interval(values)
    intervals._bootstrap.cache_clear()
    assert mean_interval(values) == first
    intervals._bootstrap.cache_clear()
    monkeypatch.setattr(intervals, "SEED", 1)
    other = mean_interval(values)
    intervals._bootstrap.cache_clear()
    assert other.low != first.low and other.low == pytest.approx(first.low, abs=0.01)


def test_undefined_values_are_left_out_and_counted():
    values = [0.1, None, 0.5, math.nan, 0.9, 0.3, 0.2]
    found = mean_interval(values)
    assert found == mean_interval([0.1, 0.5, 0.9, 0.3, 0.2])
    assert found.mean == pytest.approx(0.4) and found.entities == 5


@pytest.mark.parametrize(
    ("values", "mean", "reason"),
    [
        ([], math.nan, "no entity has a value"),
        ([None, math.nan], math.nan, "no entity has a value"),
        ([0.5, None], 0.5, "1 entity is too few for an interval"),
        ([0.5, 0.25], 0.375, "2 entities are too few for an interval"),
    ],
)
def test_few_entities_have_no_interval(values, mean, reason):
    found = mean_interval(values)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.reason == reason
    assert found.entities == len([v for v in values if v in (0.5, 0.25)])


def test_three_entities_have_their_range_and_a_warning():
    found = mean_interval([0.1, 0.5, 0.9])
    assert found[1:3] == pytest.approx((0.1, 0.9))
    assert found.reason == "from 3 entities an interval is too narrow"
    assert mean_interval([0.1, 0.5, 0.9, 0.2]).reason.startswith("from 4 entities")
    assert mean_interval([0.1, 0.5, 0.9, 0.2, 0.3]).reason == ""


def test_equal_values_have_an_interval_of_one_point():
    assert mean_interval([0.1] * 7)[1:] == (0.1, 0.1, 7, "")


def test_many_entities_are_resampled_in_batches(monkeypatch):
    values = np.random.default_rng(5).random(30)
    whole = mean_interval(values)
    intervals._bootstrap.cache_clear()
    monkeypatch.setattr(intervals, "BATCH_VALUES", 3000)
    assert mean_interval(values)[:3] == pytest.approx(whole[:3], abs=0.005)


# Pairs.


def test_a_paired_difference_has_the_interval_of_the_differences():
    rng = np.random.default_rng(2)
    entity = rng.normal(0, 1, 15)  # what both share, far larger than their difference
    first, second = entity + rng.normal(0.1, 0.02, 15), entity
    found = paired_difference(first, second)
    assert tuple(found) == tuple(mean_interval(first - second))
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second))
    assert 0.05 < found.low < found.mean < found.high < 0.15
    back = paired_difference(second, first)
    assert back.mean == pytest.approx(-found.mean)


def test_an_entity_counts_where_both_have_a_value():
    first = [0.5, None, 0.7, 0.9, 0.4, 0.8]
    second = [0.4, 0.1, None, 0.5, 0.6, 0.8]
    found = paired_difference(first, second)
    assert found.mean == pytest.approx((0.1 + 0.4 - 0.2 + 0) / 4)
    assert found.entities == 4


# Rows of results.json.


def row(model, entity, f1, **fields):
    names = {"model": model, "entity": entity, "threshold": "oracle"}
    return {**names, "level": "window", "f1": f1, "tau": 3.0} | fields


def rows_of(model, *f1, **fields):
    return [row(model, f"e{i}", value, **fields) for i, value in enumerate(f1)]


def test_one_metric_of_one_model():
    rows = [
        *rows_of("teacher", 0.1, None, 0.3),
        *rows_of("teacher", 0.5, 0.6, 0.7, threshold="pot"),
        *rows_of("student", 0.9, 0.8, 0.7),
        *rows_of("teacher", 0.2, 0.2, 0.2, level="point"),
    ]
    found = measured(rows, "teacher", **F1)
    assert found == pytest.approx({"e0": 0.1, "e1": np.nan, "e2": 0.3}, nan_ok=True)
    assert measured(rows, "teacher", **F1 | {"metric": "vus_pr"}) == {}
    assert measured(rows, "pca", **F1) == {}


def test_models_are_compared_by_the_names_of_entities():
    first = measured(rows_of("student", 0.5, 0.6, 0.7, 0.9), "student", **F1)
    rows = [row("pca", name, f1) for name, f1 in (("e3", 0.1), ("e1", 0.2), ("x", 0.9))]
    found = compare(first, measured(rows, "pca", **F1))
    assert found.mean == pytest.approx((0.8 + 0.4) / 2)
    assert (found.entities, found.reason[:10]) == (2, "2 entities")
    assert compare(first, measured([], "pca", **F1)).entities == 0


def test_interval_rows_are_those_of_each_model_threshold_and_level():
    f1 = (0.1, 0.5, None, 0.6, 0.2, 0.4)
    rows = rows_of("teacher", *f1, precision=None)
    rows += rows_of("pca", 0.3, threshold="pot", level="point", vus_pr=0.25)
    for one in rows[:6]:
        del one["level"]  # as older files have it
    found = interval_rows(rows)
    known = mean_interval([0.1, 0.5, 0.6, 0.2, 0.4])
    group = {"model": "teacher", "threshold": "oracle", "level": "window"}
    point = {"model": "pca", "threshold": "pot", "level": "point", "low": None}
    point |= {"high": None, "entities": 1}
    few = "1 entity is too few for an interval"
    assert found == [
        group | {"metric": "f1", **known._asdict()},
        group
        | {"metric": "precision", "mean": None, "low": None, "high": None}
        | {"entities": 0, "reason": "no entity has a value"},
        point | {"metric": "f1", "mean": 0.3, "reason": few},
        point | {"metric": "vus_pr", "mean": 0.25, "reason": few},
    ]
    json.dumps(found, allow_nan=False)
    assert interval_rows([]) == []


def five(model, start, **fields):
    """Values that rise by a tenth."""
    return rows_of(model, *(start + 0.1 * i for i in range(5)), **fields)


def test_paired_rows_by_hand():
    rows = [
        *five("teacher", 0.40),
        *five("student", 0.43),
        *five("student", 0.2, threshold="pot"),
        *five("student_alone", 0.38),
        *five("previous", 0.9),  # no control
        *five("pca", 0.1),
        *five("difference", 0.3),
    ]
    found = paired_rows(rows)
    names = [(r["model"], r["against"], r["baseline"], r["threshold"]) for r in found]
    assert names == [
        ("student", "teacher", None, "oracle"),
        ("student", "student_alone", None, "oracle"),
        ("teacher", "best baseline", "difference", "oracle"),
        ("student", "best baseline", "difference", "oracle"),
    ]
    gaps = [r["difference"] for r in found]
    assert gaps == pytest.approx([0.03, 0.05, 0.1, 0.13])
    for one in found:
        assert one["low"] == pytest.approx(one["difference"])  # the same everywhere
        assert one["high"] == pytest.approx(one["difference"])
        assert (one["entities"], one["reason"]) == (5, "")
        assert (one["metric"], one["level"]) == ("f1", "window")
    json.dumps(found, allow_nan=False)


def test_the_best_control_is_found_for_each_metric_and_threshold():
    point = {"level": "point", "f1": None}
    rows = []
    for model, window, label_free, precision, volume in (
        ("student", 0.5, 0.4, 0.6, 0.7),
        ("pca", 0.1, 0.35, 0.2, None),
        ("mahalanobis", 0.2, 0.3, 0.5, 0.1),
        ("random", 0.0, 0.1, 0.1, 0.3),
    ):
        for name in "abc":
            rows += [
                row(model, name, window, average_precision=0.9),
                row(model, name, label_free, threshold="pot"),
                row(model, name, 0.0, average_precision=precision, vus_pr=volume)
                | point,
                row(model, name, 0.0, average_precision=9.0, threshold="pot") | point,
            ]
    found = [
        one
        for one in paired_rows(rows)
        if (one["model"], one["against"]) == ("student", BEST_BASELINE)
    ]
    assert [
        (
            r["metric"],
            r["level"],
            r["threshold"],
            r["baseline"],
            round(r["difference"], 9),
        )
        for r in found
    ] == [
        ("f1", "window", "oracle", "mahalanobis", 0.3),
        ("f1", "window", "pot", "pca", 0.05),
        ("average_precision", "point", "oracle", "mahalanobis", 0.1),
        ("vus_pr", "point", "oracle", "random", 0.4),
    ]
    assert best_baseline(five("teacher", 0.1), **F1) is None
    assert best_baseline(rows_of("pca", None), **F1) is None
