"""Affiliation against the authors' recorded values and sums over fine rasters."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdjax.errors import DataError
from kdjax.metrics import UndefinedMetricWarning, affiliation

ORACLES = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)
RECORDED = [
    (number, oracle)
    for number, oracle in enumerate(ORACLES["oracles"])
    if oracle["metric"].startswith("affiliation_")
]


def alarms(case, params):
    if "pred" in case:
        return case["pred"]
    return np.asarray(case["scores"]) > params.get("threshold", case["threshold"])


@pytest.mark.parametrize(
    "oracle",
    [pytest.param(o, id=f"{i}-{o['case']}-{o['metric']}") for i, o in RECORDED],
)
def test_equals_recorded_values(oracle):
    case = ORACLES["cases"][oracle["case"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        found = affiliation(case["labels"], alarms(case, oracle["params"]))
    value = getattr(found, oracle["metric"].removeprefix("affiliation_"))
    undefined = "error" in oracle or oracle["value"] == "nan"
    expected = math.nan if undefined else oracle["value"]
    assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_each_recorded_value_is_used():
    names = [oracle["metric"] for _, oracle in RECORDED]
    assert len(names) == 38
    counts = [names.count(f"affiliation_{name}") for name in ("precision", "recall")]
    assert counts == [14, 15] and names.count("affiliation_f1") == 9


FINE = 400  # points a row


def on_a_raster(labels, predictions):
    """Both measures as means of shares that are counted on a raster of points."""
    at = (np.arange(len(labels) * FINE) + 0.5) / FINE
    truth, raised = np.repeat(labels, FINE), np.repeat(predictions, FINE)
    steps = np.diff(np.concatenate([[0], labels, [0]]).astype(int))
    starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    edges = [0, *(stops[:-1] + starts[1:]) / 2, len(labels)]
    precisions, recalls = [], []
    for start, stop, low, high in zip(
        starts, stops, edges[:-1], edges[1:], strict=True
    ):
        zone = (at > low) & (at < high)
        own, event = at[zone & raised], at[zone & truth]
        away = np.maximum(np.maximum(start - at[zone], at[zone] - stop), 0)
        if not len(own):
            recalls.append(0.0)
            continue
        mine = np.maximum(np.maximum(start - own, own - stop), 0)
        further = 1 - np.searchsorted(np.sort(away), mine) / len(away)
        precisions.append(np.mean(np.where(mine == 0, 1, further)))
        nearest = np.abs(event[:, None] - own[None]).min(axis=1)
        nearest[nearest < 0.6 / FINE] = 0
        within = np.minimum(event + nearest, high) - np.maximum(event - nearest, low)
        recalls.append(np.mean(1 - within / (high - low)))
    return np.mean(precisions), np.mean(recalls)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
@settings(deadline=None, max_examples=150)
def test_equals_sums_over_a_raster(rows):
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any() and predictions.any())
    expected = on_a_raster(labels, predictions)
    found = affiliation(labels, predictions)
    assert found[:2] == pytest.approx(expected, abs=4e-3)
    assert found.f1 == pytest.approx(2 / sum(1 / value for value in found[:2]))
    assert all(0 <= value <= 1 for value in found)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(deadline=None)
def test_time_may_run_backwards(rows):
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any() and predictions.any())
    forwards = affiliation(labels, predictions)
    backwards = affiliation(labels[::-1], predictions[::-1])
    assert forwards == pytest.approx(backwards, abs=1e-12)


def test_by_hand():
    # The alarm [1, 3) of the event [2, 4) in the zone [0, 4). Its half before the event
    # lies d = 0..1 away, further than none: 1 - (2 + d) / 4, on average 3/8. The event's
    # second half lies d = 0..1 from the alarm: 1 - (min(d, 1 - d) + d) / 4.
    found = affiliation([0, 0, 1, 1], [0, 1, 1, 0])
    assert found == pytest.approx(
        ((1 + 3 / 8) / 2, (1 + 13 / 16) / 2, 2 * 11 / 16 * 29 / 32 / (51 / 32))
    )


def test_nothing_predicted():
    text = (
        "^precision is NaN: nothing was predicted positive; "
        "f1 is NaN: nothing was predicted positive$"
    )
    with pytest.warns(UndefinedMetricWarning, match=text) as caught:
        found = affiliation([0, 1, 0], [0, 0, 0])
    assert [one.filename for one in caught] == [__file__]
    assert math.isnan(found.precision) and math.isnan(found.f1)
    assert found.recall == 0.0


def test_nothing_labelled():
    with pytest.warns(UndefinedMetricWarning, match="recall is NaN: no positive lab"):
        assert np.isnan(affiliation([0, 0, 0], [0, 1, 0])).all()


def test_a_zone_without_alarms_counts_for_recall_only():
    found = affiliation([1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0])
    assert found == (1.0, 0.5, 2 / 3)


def test_inputs():
    found = affiliation(pd.Series([0, 0, 1, 1], dtype="Int64"), [False, True, True, 0])
    assert found.precision == 0.6875
    with pytest.raises(DataError, match="`predictions` has the value 0.5"):
        affiliation([0, 1], [0.5, 1])
    with pytest.raises(DataError, match="`labels` has 2 values and `predictions` h"):
        affiliation([0, 1], [1])
