"""The oracle threshold against brute force over every threshold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdjax.errors import DataError
from kdjax.metrics import (
    UndefinedMetricWarning,
    count,
    from_counts,
    oracle_threshold,
)

ORACLES = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)
RECORDED = [o for o in ORACLES["oracles"] if o["metric"] == "best_f1_points"]
SCORES = st.one_of(
    st.integers(0, 4).map(float), st.sampled_from([math.inf, -math.inf, 0.5])
)
SAMPLES = st.lists(st.tuples(st.booleans(), SCORES), min_size=1, max_size=30)


def f1_at(labels, scores, threshold):
    return from_counts(count(labels, scores > threshold)).f1


def brute_force(labels, scores):
    """The largest τ of best F1 among the scores and the float below them all."""
    candidates = [*np.unique(scores), np.nextafter(scores.min(), -math.inf)]
    return max((f1_at(labels, scores, tau), tau) for tau in candidates)


@pytest.mark.parametrize("oracle", RECORDED, ids=lambda oracle: oracle["case"])
def test_equals_recorded_values(oracle):
    case = ORACLES["cases"][oracle["case"]]
    best = oracle_threshold(case["labels"], case["scores"])
    assert best.f1 == pytest.approx(oracle["value"], abs=1e-12)


def test_each_recorded_value_is_used():
    assert len(RECORDED) == 9


@given(SAMPLES, st.sampled_from([np.float64, np.float32]))
@settings(deadline=None, max_examples=300)
def test_equals_brute_force(sample, dtype):
    labels = np.array([label for label, _ in sample])
    scores = np.array([score for _, score in sample], dtype=dtype)
    assume(labels.any())
    f1, threshold = brute_force(labels, scores)
    result = oracle_threshold(labels, scores)
    assert result.f1 == pytest.approx(f1, abs=1e-12)
    assert result.threshold == pytest.approx(threshold, abs=0)
    assert f1_at(labels, scores, result.threshold) == pytest.approx(f1, abs=1e-12)


@given(SAMPLES, st.floats(allow_nan=False))
@settings(deadline=None)
def test_no_threshold_is_better(sample, threshold):
    labels = np.array([label for label, _ in sample])
    scores = np.array([score for _, score in sample])
    assume(labels.any())
    assert oracle_threshold(labels, scores).f1 >= f1_at(labels, scores, threshold)


@given(SAMPLES, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_rows_does_not_matter(sample, random):
    assume(any(label for label, _ in sample))
    shuffled = random.sample(sample, len(sample))
    assert oracle_threshold(*zip(*sample, strict=True)) == oracle_threshold(
        *zip(*shuffled, strict=True)
    )


def test_a_perfect_score_gives_one():
    assert oracle_threshold([0, 0, 1, 1], [1.0, 2.0, 3.0, math.inf]) == (2.0, 1.0)


def test_equal_scores_raise_alarms_together():
    # τ = 1 flags three rows, two of them rightly: 2*2 / (3 + 2).
    assert oracle_threshold([1, 0, 1, 0], [2, 2, 2, 1]) == (1.0, 0.8)


def test_where_alarming_on_everything_is_best():
    result = oracle_threshold([1, 1, 0], [0.5, 0.5, 0.5])
    assert result == (np.nextafter(0.5, -math.inf), 0.8)


def test_the_float_below_float32_scores_is_a_float32():
    scores = np.full(3, 0.1, dtype=np.float32)
    threshold = oracle_threshold([1, 1, 0], scores).threshold
    # A Python float is rounded to float32 in this comparison, as it would be in JSON.
    assert (scores > float(threshold)).all()


def test_of_equally_good_thresholds_the_largest_is_taken():
    # τ = 2 gives TP 1, FN 1; τ = 0 gives TP 2, FP 2: F1 is 2/3 with both.
    assert oracle_threshold([1, 0, 0, 1, 0], [3, 2, 1.5, 1, 0]) == (2.0, 2 / 3)


def test_scores_of_minus_infinity_never_raise_alarms():
    assert oracle_threshold([1, 0], [-math.inf, -math.inf]) == (-math.inf, 0.0)
    assert oracle_threshold([1, 1], [1.0, -math.inf]) == (-math.inf, 2 / 3)


def test_without_positives_there_is_no_threshold():
    with pytest.warns(UndefinedMetricWarning, match="threshold is NaN: no positive"):
        result = oracle_threshold([0, 0], [1.0, 2.0])
    assert all(math.isnan(value) for value in result)


def test_unusable_inputs_are_refused():
    with pytest.raises(DataError, match="`scores` has NaN"):
        oracle_threshold([0, 1], [1.0, math.nan])
    with pytest.raises(DataError, match="`labels` has 1 values and `scores` has 2"):
        oracle_threshold([1], [1.0, 2.0])
