"""Range precision and recall against prts, aeon, TSB-AD and their definition."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdjax.errors import ConfigError, DataError
from kdjax.metrics import UndefinedMetricWarning, range_precision_recall

ORACLES = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)
BY_HAND = {
    "range_recall_one_a0": ("recall", {"cardinality": "one"}),
    "range_recall_reciprocal_a0": ("recall", {}),
    "range_recall_reciprocal_a0.2": ("recall", {"alpha": 0.2}),
    "range_precision_flat": ("precision", {}),
    "range_f1_tsb": ("f1", {"alpha": 0.2}),
}
NAMES = {"range_precision", "range_recall", *BY_HAND}
RECORDED = [
    (number, oracle)
    for number, oracle in enumerate(ORACLES["oracles"])
    if oracle["metric"] in NAMES
]
BIASES = ("flat", "front", "middle", "back")


def alarms(case, params):
    if "pred" in case:
        return np.asarray(case["pred"])
    return np.asarray(case["scores"]) > params.get("threshold", case["threshold"])


def expected_of(oracle, labels, predictions):
    """The recorded value, or ours where the packages have none or a wrong one."""
    precision = oracle["metric"] == "range_precision"
    if not np.any(labels):
        return math.nan  # prts fails, aeon has 0
    if not predictions.any():  # prts fails, aeon has 0 for both
        return math.nan if precision else 0.0
    if predictions.all() and oracle["package"].startswith("aeon"):
        assert oracle["value"] == 0.0  # its guard against constant predictions
        return 0.2 if precision else 1.0  # as in prts
    return oracle["value"]


@pytest.mark.parametrize(
    "oracle",
    [pytest.param(o, id=f"{i}-{o['case']}-{o['metric']}") for i, o in RECORDED],
)
def test_equals_recorded_values(oracle):
    case, params = ORACLES["cases"][oracle["case"]], oracle["params"]
    name, options = BY_HAND.get(oracle["metric"], ("", {}))
    options = options | {
        key: params[key] for key in ("alpha", "cardinality", "bias") if key in params
    }
    labels, predictions = case["labels"], alarms(case, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        found = range_precision_recall(labels, predictions, **options)
    value = getattr(found, name or oracle["metric"].removeprefix("range_"))
    expected = expected_of(oracle, labels, predictions)
    assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_each_recorded_value_is_used():
    names = [oracle["metric"] for _, oracle in RECORDED]
    assert len(names) == 263
    assert (names.count("range_precision"), names.count("range_recall")) == (89, 161)
    assert names.count("range_f1_tsb") == 9
    assert sum("error" in oracle for _, oracle in RECORDED) == 28


def weight(place, length, bias):
    if bias == "flat":
        return 1
    if bias == "middle":
        return min(place, length - place + 1)
    return place if bias == "back" else length - place + 1


def rewards(ranges, others, alpha, cardinality, bias):
    """What each range earns, by loops."""
    found = []
    for first, last in ranges:
        length = last - first + 1
        overlapping = [(a, b) for a, b in others if a <= last and b >= first]
        total = sum(weight(i + 1, length, bias) for i in range(length))
        share = sum(
            weight(i + 1, length, bias)
            for i in range(length)
            if any(a <= first + i <= b for a, b in others)
        )
        split = len(overlapping) if cardinality == "reciprocal" else 1
        covered = share / total / split if overlapping else 0
        found.append(alpha * bool(overlapping) + (1 - alpha) * covered)
    return sum(found) / len(found)


def spans(mask):
    steps = np.diff(np.concatenate([[0], mask, [0]]).astype(int))
    ends = np.flatnonzero(steps == -1) - 1
    return list(zip(np.flatnonzero(steps == 1), ends, strict=True))


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["one", "reciprocal"]),
    st.sampled_from(BIASES),
)
@settings(deadline=None, max_examples=200)
def test_equals_the_definition(rows, alpha, cardinality, bias):
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any() and predictions.any())
    real, raised = spans(labels), spans(predictions)
    precision = rewards(raised, real, 0.0, cardinality, bias)
    recall = rewards(real, raised, alpha, cardinality, bias)
    total = precision + recall
    f1 = 2 * precision * recall / total if total else 0
    found = range_precision_recall(
        labels, predictions, alpha=alpha, cardinality=cardinality, bias=bias
    )
    assert found == pytest.approx((precision, recall, f1), abs=1e-12)


def test_nothing_predicted_and_nothing_labelled():
    text = "^precision is NaN: nothing was predicted positive$"
    with pytest.warns(UndefinedMetricWarning, match=text) as caught:
        found = range_precision_recall([0, 1], [0, 0])
    assert [one.filename for one in caught] == [__file__]
    assert math.isnan(found.precision) and found[1:] == (0.0, 0.0)
    for predictions in ([0, 1], [0, 0]):
        with pytest.warns(UndefinedMetricWarning, match="recall is NaN: no positive"):
            assert np.isnan(range_precision_recall([0, 0], predictions)).all()


def test_a_detector_that_misses_everything_has_zero():
    assert range_precision_recall([0, 1, 1], [1, 0, 0]) == (0.0, 0.0, 0.0)


def test_unusable_arguments_are_refused():
    for options, message in (
        ({"alpha": 1.1}, "^alpha=1.1: expected a number from 0 to 1"),
        (
            {"cardinality": "two"},
            "^cardinality='two' is unknown: use one of reciprocal, one",
        ),
        (
            {"bias": "left"},
            "^bias='left' is unknown: use one of flat, front, middle, back",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            range_precision_recall([0, 1], [0, 1], **options)
    with pytest.raises(DataError, match="`labels` has the value 2"):
        range_precision_recall([0, 2], [0, 1])
