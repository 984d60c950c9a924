"""Volumes under the surface against recorded values of TSB-AD and its definition."""

import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdjax.errors import ConfigError, DataError
from kdjax.metrics import (
    UndefinedMetricWarning,
    vus,
    vus_pr,
    vus_roc,
)

ORACLES = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)
METRICS = {"vus_roc": vus_roc, "vus_pr": vus_pr}
# aeon's quantity of the same name is another one.
RECORDED = [
    (number, oracle)
    for number, oracle in enumerate(ORACLES["oracles"])
    if oracle["metric"] in METRICS and not oracle["package"].startswith("aeon")
]


def event_ranges(labels):
    padded = np.concatenate([[0], labels, [0]]).astype(int)
    steps = np.diff(padded)
    return list(
        zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1) - 1, strict=True)
    )


def by_definition(labels, scores, window, thresholds):
    """Row by row and threshold by threshold, from the definition of TSB-AD."""
    labels, scores = np.asarray(labels, float), np.asarray(scores, float)
    n, events = len(labels), event_ranges(labels)
    places = np.linspace(0, n - 1, thresholds).astype(int)
    taus = np.sort(scores)[::-1][places]
    roc, pr = [], []
    for w in range(window + 1):
        h = w // 2
        soft = labels.copy()
        for first, last in events:
            for row in range(n):
                away = max(first - row, row - last)
                if 0 < away <= h:
                    soft[row] += math.sqrt(1 - away / w)
        soft = np.minimum(soft, 1)
        groups = [[events[0][0] - h, events[0][1] + h]]
        for first, last in events[1:]:
            if groups[-1][1] < first - h:
                groups.append([first - h, last + h])
            else:
                groups[-1][1] = last + h
        points, precisions = [(0.0, 0.0)], []
        for tau in taus:
            alarms = scores >= tau
            counted = np.where(labels == 1, 1, soft * alarms)
            hits = (counted * alarms).sum()
            positives = (labels.sum() + counted.sum()) / 2
            hit = sum(alarms[max(a, 0) : b + 1].any() for a, b in groups)
            recall = min(hits / positives, 1) * hit / len(groups)
            points.append((recall, (alarms.sum() - hits) / (n - positives)))
            precisions.append(hits / alarms.sum())
        tpr, fpr = np.array([*points, (1, 1)]).T
        roc.append(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))
        pr.append(np.sum(np.diff(tpr[:-1]) * precisions))
    return np.mean(roc), np.mean(pr)


@pytest.mark.parametrize(
    "oracle",
    [pytest.param(o, id=f"{i}-{o['case']}-{o['metric']}") for i, o in RECORDED],
)
def test_equals_recorded_values(oracle):
    case, params = ORACLES["cases"][oracle["case"]], oracle["params"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        value = METRICS[oracle["metric"]](
            case["labels"],
            case["scores"],
            window=params["slidingWindow"],
            thresholds=params.get("thre", 250),
        )
    expected = math.nan if "error" in oracle else oracle["value"]
    assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_each_recorded_value_is_used():
    packages = [oracle["package"].split()[0] for _, oracle in RECORDED]
    assert len(RECORDED) == 230
    assert [packages.count(p) for p in ("TSB-AD", "vus", "tsadmetrics")] == [
        116,
        108,
        6,
    ]
    assert sum("error" in oracle for _, oracle in RECORDED) == 4


ROWS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 1.0, 2.5, 3.0, 7.0])),
    min_size=2,
    max_size=40,
)


@given(ROWS, st.integers(0, 15), st.sampled_from([1, 2, 7, 60]))
@settings(deadline=None, max_examples=150)
def test_equals_the_definition(rows, window, thresholds):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any() and not labels.all())
    expected = by_definition(labels, scores, window, thresholds)
    found = vus(labels, scores, window=window, thresholds=thresholds)
    assert found == pytest.approx(expected, abs=1e-10)


def test_three_buffers_on_one_row():
    """Rows between short events, where the second nearest lies on the same side."""
    labels = np.isin(np.arange(30), [5, 7, 8, 11, 20, 29])
    scores = np.random.default_rng(0).random(30)
    for window in (3, 8, 25, 80):
        expected = by_definition(labels, scores, window, 30)
        found = vus(labels, scores, window=window, thresholds=30)
        assert found == pytest.approx(expected, abs=1e-12)


def test_both_volumes_are_those_of_the_single_functions():
    case = ORACLES["cases"]["basic60"]
    labels, scores = case["labels"], case["scores"]
    both = vus(labels, scores, window=10)
    assert both == (
        vus_roc(labels, scores, window=10),
        vus_pr(labels, scores, window=10),
    )


def test_a_near_miss_is_worth_more_with_a_wider_buffer():
    labels, scores = np.zeros(50), np.zeros(50)
    labels[20:30], scores[32] = 1, 1
    values = [vus_pr(labels, scores, window=w) for w in (0, 4, 10, 20)]
    assert values == sorted(set(values))


def test_infinite_scores_are_the_largest_and_smallest():
    labels = [0, 1, 1, 0, 0, 1]
    infinite = vus(labels, [-math.inf, math.inf, 3, 2, 1, math.inf], window=3)
    assert infinite == vus(labels, [0, 9, 3, 2, 1, 9], window=3)


@pytest.mark.parametrize(
    ("labels", "why"), [([0, 0], "positive"), ([1, 1], "negative")]
)
def test_one_class_alone_is_undefined(labels, why):
    for name, metric in METRICS.items():
        text = f"^{name} is NaN: no {why} labels$"
        with pytest.warns(UndefinedMetricWarning, match=text) as caught:
            assert math.isnan(metric(labels, [1.0, 2.0], window=2))
        assert [one.filename for one in caught] == [__file__]
    with pytest.warns(UndefinedMetricWarning, match="vus_roc is NaN.*vus_pr is NaN"):
        assert np.isnan(vus(labels, [1.0, 2.0], window=2)).all()


@pytest.mark.parametrize("metric", [vus, vus_roc, vus_pr])
def test_unusable_arguments_are_refused(metric):
    for window in (-1, 2.5):
        with pytest.raises(ConfigError, match=f"^window={window}: expected a whole"):
            metric([0, 1], [0, 1], window=window)
    with pytest.raises(ConfigError, match="^thresholds=0: expected a whole number"):
        metric([0, 1], [0, 1], window=1, thresholds=0)
    with pytest.raises(DataError, match="`scores` has NaN"):
        metric([0, 1], [0, math.nan], window=1)
    with pytest.raises(DataError, match="`labels` has 2 values and `scores` has 3"):
        metric([0, 1], [0, 1, 2], window=1)


def test_a_long_series_is_measured_fast():
    """It takes about 20 ms; loops over widths and thresholds take seconds."""
    rng = np.random.default_rng(0)
    labels = np.zeros(28_000)
    for start in rng.integers(0, 27_000, 20):
        labels[start : start + rng.integers(1, 500)] = 1
    scores = rng.random(28_000) + labels / 3
    begin = time.perf_counter()
    vus(labels, scores, window=100, thresholds=250)
    assert time.perf_counter() - begin < 5
