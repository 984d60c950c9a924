"""Realised shares of false alarms, against counts by hand on a few numbers."""

import json

import numpy as np
import pytest
from scipy.stats import beta

from kdjax.data.prepared import Prepared
from kdjax.detection.calibration import Calibration, Rules
from kdjax.detection.thresholds import Rule, Threshold
from kdjax.evaluation.evaluate import false_alarm_rates
from kdjax.evaluation.rows import EntityScores

WINDOW, STRIDE = 10, 5
# 40 windows at stride 5; the fold of each eight is its tens.
CALIBRATION = np.arange(40) + 0.5
TAU = 35.5  # ⌈41·0.9⌉ = 37-th smallest is 36.5; a number of one's own tells them apart


def calibration(scores=CALIBRATION, tau=TAU):
    """One entity whose scores rise with time, beside the pooled entry."""
    own = Threshold(tau, "conformal", 0.1, len(scores), 0, "own")
    return Calibration(
        scalers=None,
        gaussians=None,
        thresholds=(own, own._replace(tau=99.0)),
        scores=(scores,),
        starts=(np.arange(len(scores)) * STRIDE,),
        threshold_scores=(np.sort(scores), np.sort(scores)),
        notes=(),
        floored={},
    )


def rates(name, found, labels, *, method="conformal", made=None, value=np.nan):
    scores = np.asarray(found, float)
    own = EntityScores("pump", None, np.empty(0), labels, scores, TAU)
    return false_alarm_rates(
        name,
        made or calibration(),
        0,
        own,
        np.arange(len(scores)) * STRIDE,
        prepared=Prepared("plant", ("x",), (), None, WINDOW, STRIDE),
        rules=Rules(
            0, 0.0, 0.1, "none", "per_entity", Rule(method, 0.1, value), 0.0, 9
        ),
    )


def interval(alarms, n):
    """Clopper and Pearson."""
    low = 0.0 if alarms == 0 else beta.ppf(0.025, alarms, n - alarms + 1)
    high = 1.0 if alarms == n else beta.ppf(0.975, alarms + 1, n - alarms)
    return pytest.approx((low, high))


FOUND = [1, 2, 40, 50, 3, 36, 4, np.nan, 60, 5]
LABELS = np.array([0, 0, 1, 0, 0, 0, 0, 0, 1, 0], bool)


def test_clean_test_windows_are_those_known_and_without_an_anomaly():
    (rate,) = rates("teacher", FOUND, LABELS)
    assert (rate["model"], rate["entity"]) == ("teacher", "pump")
    assert (rate["method"], rate["used"]) == ("conformal", True)
    assert (rate["wanted"], rate["tau"]) == (0.1, TAU)
    clean = rate["clean_test"]
    # Clean and known: windows 0, 1, 3, 4, 5, 6, 9; 50 and 36 lie above 35.5.
    assert clean["rate"] == pytest.approx(2 / 7)
    # Two strides are a window: 0, 3, 5, 9 share no row, in order of time.
    assert (clean["separate_windows"], clean["separate_alarms"]) == (4, 2)
    assert (clean["low"], clean["high"]) == interval(2, 4)
    assert json.dumps(rate, allow_nan=False)


def test_left_out_fifths_are_judged_by_the_others():
    (rate,) = rates("teacher", FOUND, LABELS)
    starts, above = np.arange(40) * STRIDE, []
    for fold in range(5):
        block = slice(8 * fold, 8 * fold + 8)
        first, last = starts[block][0], starts[block][-1]
        apart = (starts + WINDOW <= first) | (starts >= last + WINDOW)
        others = np.sort(CALIBRATION[apart])
        tau = others[int(np.ceil((len(others) + 1) * 0.9)) - 1]
        above.extend(CALIBRATION[block] > tau)
    found = rate["left_out"]
    # Only the last fifth is larger than what stood before it.
    assert found["rate"] == pytest.approx(np.mean(above)) == 0.2
    assert found["separate_windows"] == 20
    assert found["separate_alarms"] == sum(above[::2]) == 4
    assert (found["low"], found["high"]) == interval(4, 20)
    assert found["detail"] == ""


def test_the_student_shows_other_rules_beside_the_one_in_use():
    found = rates("student", FOUND, LABELS)
    assert [(r["method"], r["used"]) for r in found] == [
        ("conformal", True), ("quantile", False), ("pot", False),
    ]  # fmt: skip
    # The 36-th smallest of 40; too few excesses for a tail, so `pot` takes it too.
    assert [r["tau"] for r in found] == [TAU, 35.5, 35.5]
    assert ["drift" in r for r in found] == [True, False, False]
    found = rates("student", FOUND, LABELS, method="quantile")
    assert [r["method"] for r in found] == ["quantile", "conformal", "pot"]
    assert found[1]["tau"] == 36.5
    assert found[1]["clean_test"]["rate"] == pytest.approx(1 / 7)


def test_a_fixed_threshold_wants_none_and_is_compared_with_none():
    (rate,) = rates("student", FOUND, LABELS, method="fixed", value=TAU)
    assert (rate["method"], rate["wanted"]) == ("fixed", 0)
    # Calibration windows above 35.5: 36.5 to 39.5.
    assert rate["left_out"]["rate"] == pytest.approx(4 / 40)


def test_without_labels_nothing_is_known_of_clean_test_windows():
    for rate in rates("student", FOUND, None):
        assert rate["clean_test"] is None and rate["left_out"] is not None


def test_drift_compares_test_scores_with_those_of_calibration():
    """Ten separate windows of the same scores, then the same ten all higher."""
    same = np.repeat(np.linspace(0, 40, 10), 2)
    (calm,) = rates("teacher", same, None)
    assert calm["drift"]["n"] == 10 and not calm["drift"]["drifted"]
    (moved,) = rates("teacher", same + 100, None)
    # Each p-value is 1 / 41, so the distance from uniform is what lies above it.
    assert moved["drift"]["distance"] == pytest.approx(1 - 1 / 41)
    assert moved["drift"]["drifted"]


def test_too_few_calibration_windows_are_said_and_not_judged():
    made = calibration(np.arange(6) + 0.5)
    found = rates("student", [1.0, 99.0], np.array([False, False]), made=made)
    used, quantile, _ = found
    assert used["left_out"]["rate"] is None
    assert "5 of 5 folds left out: conformal needs 9" in used["left_out"]["detail"]
    # The τ in use may be borrowed; another rule has none.
    assert used["clean_test"]["rate"] == 0.5
    assert quantile["tau"] is None and quantile["clean_test"] is None
    assert json.dumps(found, allow_nan=False)


def test_an_entity_without_test_windows_has_no_drift():
    (rate,) = rates("teacher", [], None)
    assert rate["drift"] is None
    nothing = calibration(np.empty(0))
    (rate,) = rates("teacher", [1.0, 2.0], None, made=nothing)
    assert rate["drift"] is None and rate["left_out"]["rate"] is None
