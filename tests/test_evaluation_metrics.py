"""Metrics against scikit-learn, recorded oracles and cases counted by hand."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from kdjax import metrics
from kdjax.errors import DataError
from kdjax.metrics import (
    Counts,
    UndefinedMetricWarning,
    auc_roc,
    average_precision,
    count,
    from_counts,
    precision_recall_f1,
)

ORACLES = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)
EDGE_CASES = {"no_anomaly_labels", "all_anomaly_labels", "no_predictions"}
CURVES = {"auc_roc": auc_roc, "average_precision": average_precision}
SAMPLES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 5), st.booleans()), min_size=1, max_size=40
)


def recorded(*names):
    return [
        pytest.param(oracle, id=f"{number}-{oracle['case']}-{oracle['metric']}")
        for number, oracle in enumerate(ORACLES["oracles"])
        if oracle["metric"] in names and not set(oracle["params"]) - {"threshold"}
    ]


def alarms(case, params):
    if "pred" in case:
        return case["pred"]
    threshold = params.get("threshold", case["threshold"])
    return np.asarray(case["scores"]) > threshold


@pytest.mark.parametrize("oracle", recorded("precision", "recall", "f1"))
def test_alarm_metrics_equal_recorded_values(oracle):
    case = ORACLES["cases"][oracle["case"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        result = precision_recall_f1(case["labels"], alarms(case, oracle["params"]))
    value = getattr(result, oracle["metric"])
    if oracle["case"] == "no_anomaly_labels":
        assert math.isnan(value)  # recorded: 0.0, by zero_division=0
    elif oracle["metric"] == "precision" and not np.any(alarms(case, oracle["params"])):
        assert math.isnan(value)
    else:
        assert value == pytest.approx(oracle["value"], abs=1e-12)


@pytest.mark.parametrize("oracle", recorded("auc_roc", "average_precision"))
def test_curve_metrics_equal_recorded_values(oracle):
    case = ORACLES["cases"][oracle["case"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        value = CURVES[oracle["metric"]](case["labels"], case["scores"])
    undefined = oracle["case"] == "no_anomaly_labels" or oracle["value"] == "nan"
    expected = math.nan if undefined else oracle["value"]
    assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_each_recorded_value_is_used():
    numbers = {"precision": 9, "recall": 9, "f1": 14} | dict.fromkeys(CURVES, 15)
    for name, number in numbers.items():
        everywhere = [o for o in ORACLES["oracles"] if o["metric"] == name]
        assert len(recorded(name)) == len(everywhere) == number
    assert EDGE_CASES <= {param.values[0]["case"] for param in recorded("f1")}


def test_the_metrics_are_all_in_one_place():
    names = {
        "precision_recall_f1", "auc_roc", "average_precision", "vus", "vus_roc",
        "vus_pr", "affiliation", "range_precision_recall", "event_f1", "event_recall",
        "detection_delay", "point_adjusted_f1", "pa_k_f1",
    }  # fmt: skip
    assert all(callable(getattr(metrics, name)) for name in names)


@given(SAMPLES)
@settings(deadline=None)
def test_alarm_metrics_equal_scikit_learn(sample):
    labels, _, predictions = (np.array(column) for column in zip(*sample, strict=True))
    assume(labels.any() and predictions.any())
    expected = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, average="binary"
    )[:3]
    result = precision_recall_f1(labels, predictions)
    assert result == pytest.approx(expected, abs=1e-12)
    assert all(0 <= value <= 1 for value in result)


@given(SAMPLES, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_rows_does_not_matter(sample, random):
    assume(0 < sum(label for label, _, _ in sample) < len(sample))
    assume(any(prediction for _, _, prediction in sample))
    shuffled = random.sample(sample, len(sample))
    results = []
    for rows in (sample, shuffled):
        labels, scores, predictions = zip(*rows, strict=True)
        curves = (auc_roc(labels, scores), average_precision(labels, scores))
        results.append((*precision_recall_f1(labels, predictions), *curves))
    assert results[0] == pytest.approx(results[1], abs=1e-12)
    assert all(0 <= value <= 1 for value in results[0])


@given(SAMPLES)
@settings(deadline=None)
def test_curves_depend_on_the_order_of_scores_alone(sample):
    labels, scores, _ = (np.array(column) for column in zip(*sample, strict=True))
    assume(labels.any() and not labels.all())
    expected = {
        "auc_roc": sklearn_metrics.roc_auc_score(labels, scores),
        "average_precision": sklearn_metrics.average_precision_score(labels, scores),
    }
    for name, metric in CURVES.items():
        assert metric(labels, scores) == pytest.approx(expected[name], abs=1e-12)
        assert metric(labels, np.exp(scores * 1.0)) == metric(labels, scores)


@pytest.mark.parametrize("metric", CURVES.values())
def test_a_perfect_score_gives_one(metric):
    assert metric([0, 1, 0, 1], [0.1, 5.0, 0.2, math.inf]) == 1.0


@pytest.mark.parametrize("metric", CURVES.values())
def test_infinite_scores_are_the_largest_and_smallest(metric):
    labels = [0, 1, 0, 1, 1]
    infinite = metric(labels, [-math.inf, math.inf, 3.0, 2.0, math.inf])
    assert infinite == metric(labels, [0.0, 9.0, 3.0, 2.0, 9.0])


def test_counts_by_hand():
    labels = [1, 1, 1, 0, 0, 0, 0]
    predictions = [1, 0, 0, 1, 1, 0, 0]
    assert count(labels, predictions) == Counts(tp=1, fp=2, fn=2)
    assert precision_recall_f1(labels, predictions) == (1 / 3, 1 / 3, 1 / 3)
    assert from_counts(Counts(5, 2, 3)) == (5 / 7, 5 / 8, 10 / 15)


def test_no_prediction_leaves_precision_undefined_and_f1_zero():
    with pytest.warns(UndefinedMetricWarning, match=r"^precision is NaN: nothing was"):
        result = precision_recall_f1([0, 1, 1], [0, 0, 0])
    assert math.isnan(result.precision)
    assert (result.recall, result.f1) == (0.0, 0.0)


def test_no_label_leaves_recall_and_f1_undefined():
    text = r"^recall is NaN: no positive labels; f1 is NaN: no positive labels$"
    with pytest.warns(UndefinedMetricWarning, match=text):
        result = precision_recall_f1([0, 0, 0], [0, 1, 0])
    assert result.precision == 0.0
    assert math.isnan(result.recall) and math.isnan(result.f1)


def test_nothing_labelled_and_nothing_predicted_is_undefined_throughout():
    with pytest.warns(UndefinedMetricWarning) as caught:
        result = precision_recall_f1([0, 0], [0, 0])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert all(math.isnan(value) for value in result)


@pytest.mark.parametrize("name", CURVES)
def test_curves_without_positives_are_undefined(name):
    with pytest.warns(
        UndefinedMetricWarning, match=f"^{name} is NaN: no pos"
    ) as caught:
        assert math.isnan(CURVES[name]([0, 0], [1.0, 2.0]))
    assert caught[0].filename == __file__


def test_curves_without_negatives():
    with pytest.warns(UndefinedMetricWarning, match="^auc_roc is NaN: no negative"):
        assert math.isnan(auc_roc([1, 1], [1.0, 2.0]))
    assert average_precision([1, 1], [1.0, 2.0]) == 1.0


@pytest.mark.parametrize(
    "make",
    [list, np.array, pd.Series, lambda values: pd.Series(values, dtype="Int64")],
    ids=["list", "numpy", "pandas", "pandas nullable"],
)
def test_any_array_like_is_taken(make):
    labels = make([0, 1, 1, 0])
    assert precision_recall_f1(labels, make([0, 1, 0, 0])) == (1.0, 0.5, 2 / 3)
    assert auc_roc(labels, make([1, 4, 3, 2])) == 1.0


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (
            [0, 2],
            [1, 2],
            r"`labels` has the value 2 at position 1: expected 0 or 1 only",
        ),
        ([0, math.nan], [1, 2], "`labels` has the value nan at position 1"),
        ([0, 1], [1.0, math.nan], r"`scores` has NaN at position 1 \(1 of 2 values\)"),
        ([0, 1], [1, 2, 3], "`labels` has 2 values and `scores` has 3"),
        ([], [], "`labels` is empty"),
        ([[0, 1]], [1], r"`labels` has the shape \(1, 2\)"),
        (["0", "1"], [1, 2], "`labels` has the type <U1: expected numbers"),
        ([0, 1], [1, [2]], "`scores` can't be read as an array of numbers"),
        ([0, None], [1, "x"], "`labels` has the value nan at position 1"),
    ],
)
@pytest.mark.parametrize("metric", CURVES.values())
def test_unusable_inputs_are_refused(metric, labels, scores, message):
    with pytest.raises(DataError, match=message):
        metric(labels, scores)


def test_unusable_predictions_are_refused():
    with pytest.raises(
        DataError, match="`predictions` has the value 0.5 at position 0"
    ):
        precision_recall_f1([0, 1], [0.5, 1.0])
    with pytest.raises(
        DataError, match="`labels` has 2 values and `predictions` has 1"
    ):
        precision_recall_f1([0, 1], [1])


def test_the_import_is_light():
    heavy = ["jax", "matplotlib", "rich", "sklearn", "pandas"]
    code = (
        "import sys, kdjax.metrics; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
