"""Events, delays and point adjustment against recorded values and cases by hand."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score

from kdjax.errors import ConfigError, DataError
from kdjax.metrics import (
    UndefinedMetricWarning,
    detection_delay,
    event_f1,
    event_recall,
    pa_k_f1,
    point_adjusted_f1,
    precision_recall_f1,
)

ORACLES = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)
METRICS = {"event_f1": event_f1, "f1_pa": point_adjusted_f1, "f1_pa_k": pa_k_f1}
RECORDED = [
    (number, oracle)
    for number, oracle in enumerate(ORACLES["oracles"])
    if oracle["metric"] in METRICS
]
ROWS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def alarms(case, params):
    if "pred" in case:
        return case["pred"]
    return np.asarray(case["scores"]) > params.get("threshold", case["threshold"])


@pytest.mark.parametrize(
    "oracle",
    [pytest.param(o, id=f"{i}-{o['case']}-{o['metric']}") for i, o in RECORDED],
)
def test_equals_recorded_values(oracle):
    case, params = ORACLES["cases"][oracle["case"]], oracle["params"]
    options = {"k": params["k"]} if "k" in params else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        value = METRICS[oracle["metric"]](
            case["labels"], alarms(case, params), **options
        )
    expected = oracle["value"]
    if oracle["case"] == "no_anomaly_labels":
        expected = math.nan  # recorded: 0.0
    elif oracle["case"] == "paedge10" and oracle["package"].startswith("TSB-AD"):
        assert expected == 0.5  # its loop never fills row 0
        expected = 2 / 3
    assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_each_recorded_value_is_used():
    names = [oracle["metric"] for _, oracle in RECORDED]
    assert {name: names.count(name) for name in METRICS} == {
        "event_f1": 9, "f1_pa": 16, "f1_pa_k": 37,
    }  # fmt: skip


def spans(mask):
    steps = np.diff(np.concatenate([[0], mask, [0]]).astype(int))
    return list(
        zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True)
    )


@given(ROWS)
@settings(deadline=None)
def test_events_and_delays_equal_loops(rows):
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    firsts = [
        next((i for i in range(b - a) if predictions[a + i]), None)
        for a, b in spans(labels)
    ]
    known = [first for first in firsts if first is not None]
    assume(known)
    assert detection_delay(labels, predictions) == pytest.approx(np.mean(known))
    recall = event_recall(labels, predictions)
    assert recall == pytest.approx(len(known) / len(firsts))
    precision = precision_score(labels, predictions)
    f1 = 2 * precision * recall / (precision + recall)
    assert event_f1(labels, predictions) == pytest.approx(f1)


@given(ROWS, st.sampled_from([0, 10, 20, 50, 75, 100]))
@settings(deadline=None)
def test_adjustment_equals_loops(rows, k):
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any())
    adjusted = predictions.copy()
    for a, b in spans(labels):
        if 100 * predictions[a:b].sum() > k * (b - a):
            adjusted[a:b] = True
    expected = f1_score(labels, adjusted, zero_division=0)
    assert pa_k_f1(labels, predictions, k=k) == pytest.approx(expected)
    labels, raised = labels.astype(bool), predictions.astype(bool)
    assert pa_k_f1(labels, raised, k=k) == pytest.approx(expected)
    assert (raised == predictions).all()  # they are for other metrics too
    if k == 0:
        assert point_adjusted_f1(labels, predictions) == pytest.approx(expected)


def test_by_hand():
    labels = [1, 1, 0, 1, 1, 1, 0, 1]
    predictions = [0, 1, 1, 0, 0, 1, 0, 0]
    # Delays 1 and 2; the third event is missed; 2 of 3 alarms lie in events.
    assert detection_delay(labels, predictions) == 1.5
    assert event_recall(labels, predictions) == 2 / 3
    assert event_f1(labels, predictions) == pytest.approx(2 / 3)
    # Both events hit are filled: TP 5, FP 1, FN 1. With K = 40 the second isn't.
    assert point_adjusted_f1(labels, predictions) == pytest.approx(10 / 12)
    assert pa_k_f1(labels, predictions, k=40) == pytest.approx(6 / (6 + 1 + 3))
    assert pa_k_f1(labels, predictions) == point_adjusted_f1(labels, predictions)


def test_an_alarm_that_goes_on_from_before_the_event_has_no_delay():
    assert detection_delay([0, 1, 1, 0], [1, 1, 0, 0]) == 0.0


def test_random_scores_look_good_once_adjusted():
    """What Kim et al. found: guesses beat good detectors when points are adjusted."""
    rng = np.random.default_rng(0)
    labels = np.zeros(20_000, bool)
    for start in range(500, 20_000, 2000):
        labels[start : start + 300] = True
    guesses = rng.random(20_000) > 0.99
    assert precision_recall_f1(labels, guesses).f1 < 0.05
    assert point_adjusted_f1(labels, guesses) > 0.9
    assert pa_k_f1(labels, guesses, k=20) < 0.05


ALL = (event_f1, event_recall, detection_delay, point_adjusted_f1, pa_k_f1)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
def test_without_events_all_are_undefined(metric):
    for predictions in ([0, 1], [0, 0]):
        text = f"^{metric.__name__} is NaN: no positive labels$"
        with pytest.warns(UndefinedMetricWarning, match=text) as caught:
            assert math.isnan(metric([0, 0], predictions))
        assert [one.filename for one in caught] == [__file__]


def test_with_nothing_found_only_the_delay_is_undefined():
    for predictions, why in (
        ([0, 0], "nothing was predicted positive"),
        ([1, 0], "no event was detected"),
    ):
        with pytest.warns(
            UndefinedMetricWarning, match=f"detection_delay is NaN: {why}"
        ):
            assert math.isnan(detection_delay([0, 1], predictions))
        for metric in (event_f1, event_recall, point_adjusted_f1, pa_k_f1):
            assert metric([0, 1], predictions) == 0.0


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
def test_unusable_inputs_are_refused(metric):
    with pytest.raises(DataError, match="`predictions` has the value 0.5"):
        metric([0, 1], [0.5, 1])
    with pytest.raises(
        DataError, match="`labels` has 2 values and `predictions` has 1"
    ):
        metric([0, 1], [1])


def test_k_is_a_percentage():
    for k in (-1, 101, math.nan):
        with pytest.raises(ConfigError, match=f"^k={k}: expected a percentage"):
            pa_k_f1([0, 1], [0, 1], k=k)
