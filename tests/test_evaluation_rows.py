"""The rows of results.json against two entities counted by hand."""

import json
import math

import numpy as np
import pytest

from kdjax.errors import DataError
from kdjax.evaluation.rows import (
    METRICS,
    POINT_METRICS,
    EntityScores,
    in_order,
    metric_rows,
    relative_scores,
)
from kdjax.metrics import (
    affiliation,
    detection_delay,
    event_f1,
    event_recall,
    pa_k_f1,
    point_adjusted_f1,
    range_precision_recall,
    vus_pr,
    vus_roc,
)


def result_rows(*arguments, **options):
    return metric_rows(*arguments, **options)[0]


def per_entity_rows(model, entities, **options):
    return metric_rows(model, 7, entities, **options)[1]


def unlabelled_rows(model, parameters, entities, **more):
    blank = [e._replace(labels=None, window_labels=None) for e in entities]
    return result_rows(model, parameters, blank, **more)


A = EntityScores(
    entity="a",
    labels=np.array([True, False, True, False]),
    scores=np.array([6.0, 2.0, math.nan, 5.0]),
    window_labels=np.array([True, True, False, False]),
    window_scores=np.array([9.0, 4.0, 5.0, 1.0]),
    threshold=4.5,
)
B = EntityScores(
    entity="b",
    labels=np.array([True, False, False]),
    scores=np.array([1.0, 2.0, 0.5]),
    window_labels=np.array([True, False, False]),
    window_scores=np.array([3.0, 2.0, 8.0]),
    threshold=2.5,
)
QUIET = B._replace(
    entity="quiet", labels=np.zeros(3, dtype=bool), window_labels=np.zeros(3, bool)
)
SHORT = EntityScores(
    entity="short",
    labels=np.array([True, False]),
    scores=np.full(2, math.nan),
    window_labels=np.array([], dtype=bool),
    window_scores=np.array([]),
    threshold=1.0,
)
EVENTS = EntityScores(
    entity="e",
    labels=np.isin(np.arange(40), [3, 4, 5, 12, 13, 25, 26, 27, 28]),
    scores=np.random.default_rng(3).random(40) * 10
    + 4 * np.isin(np.arange(40), [4, 5, 6, 27]),
    window_labels=np.array([True, False]),
    window_scores=np.array([3.0, 2.0]),
    threshold=9.0,
)
GAPPY = EVENTS._replace(
    entity="gappy",
    labels=np.array([False, True, True, False, False, True, True, False]),
    scores=np.array([0.0, 1.0, 9.5, math.nan, math.nan, 2.0, 3.0, 0.0]),
)
KEYS = {
    "model", "parameters", "scope", "threshold", "level", "precision", "recall", "f1",
    "auc_roc", "average_precision", "alarm_rate", "tau", "entities",
    "entities_defined", "notes",
}  # fmt: skip


MEAN_OF_POINTS = ("point", "per_entity_mean")


def keys_of(row):
    own = (row["level"], row["scope"]) == MEAN_OF_POINTS
    return KEYS | set(POINT_METRICS * own)


def cell(rows, threshold, scope, level):
    (row,) = (
        row
        for row in rows
        if (row["threshold"], row["scope"], row["level"]) == (threshold, scope, level)
    )
    return row


# threshold, scope, level: precision, recall, F1, alarm rate, τ
BY_HAND = {
    # TP 3 (9, 4, 3), FP 2 (8, 5), FN 0 at the one τ = 2
    ("oracle", "pooled", "window"): (3 / 5, 1, 3 / 4, 5 / 7, 2.0),
    # a: τ = 1, TP 2, FP 1; b: τ = 2, TP 1, FP 1
    ("oracle", "per_entity_mean", "window"): (7 / 12, 1, 11 / 15, 17 / 24, None),
    # a: TP 1, FP 1, FN 1; b: TP 1, FP 1
    ("conformal", "pooled", "window"): (1 / 2, 2 / 3, 4 / 7, 4 / 7, None),
    ("conformal", "per_entity_mean", "window"): (1 / 2, 3 / 4, 7 / 12, 7 / 12, None),
    # τ = 5: TP 1 (6), FN 1
    ("oracle", "pooled", "point"): (1, 1 / 2, 2 / 3, 1 / 6, 5.0),
    # a: TP 1; b: TP 1, FP 1
    ("oracle", "per_entity_mean", "point"): (3 / 4, 1, 5 / 6, 1 / 2, None),
    # a: TP 1, FP 1; b: FN 1
    ("conformal", "pooled", "point"): (1 / 2, 1 / 2, 1 / 2, 1 / 3, None),
    ("conformal", "per_entity_mean", "point"): (1 / 2, 1 / 2, 1 / 3, 1 / 3, None),
}


@pytest.mark.parametrize("key", BY_HAND, ids=" ".join)
def test_two_entities_by_hand(key):
    row = cell(result_rows("teacher", 7, [A, B]), *key)
    *values, tau = BY_HAND[key]
    names = ("precision", "recall", "f1", "alarm_rate")
    assert [row[name] for name in names] == pytest.approx(values, abs=1e-12)
    assert row["tau"] == tau


def test_the_grid_is_complete_and_each_row_has_the_same_keys():
    rows = result_rows("teacher", 7, [A, B])
    assert len(rows) == len(BY_HAND)
    assert all(row.keys() == keys_of(row) for row in rows)
    assert {(r["threshold"], r["scope"], r["level"]) for r in rows} == set(BY_HAND)
    assert {(row["model"], row["parameters"]) for row in rows} == {("teacher", 7)}
    assert {row["entities"] for row in rows} == {2}


@pytest.mark.parametrize("threshold", ["oracle", "conformal"])
def test_curve_metrics_are_means_over_entities_only(threshold):
    rows = result_rows("teacher", 7, [A, B])
    window = cell(rows, threshold, "per_entity_mean", "window")
    assert window["auc_roc"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert window["average_precision"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    point = cell(rows, threshold, "per_entity_mean", "point")
    assert point["average_precision"] == pytest.approx((1 + 1 / 2) / 2)
    pooled = cell(rows, threshold, "pooled", "window")
    assert pooled["average_precision"] is None and pooled["auc_roc"] is None
    why = "curve metrics: per_entity_mean only"
    assert pooled["notes"] == {"auc_roc": why, "average_precision": why}


def test_entities_where_a_metric_is_undefined_stay_out_of_its_mean():
    rows = result_rows("teacher", 7, [A, B])
    row = cell(rows, "conformal", "per_entity_mean", "point")
    assert row["entities_defined"]["precision"] == 1  # b raised no alarm
    assert row["entities_defined"]["f1"] == 2
    with_quiet = cell(
        result_rows("teacher", 7, [A, B, QUIET]), "oracle", "per_entity_mean", "window"
    )
    assert with_quiet["entities_defined"] == {
        "precision": 2, "recall": 2, "f1": 2, "alarm_rate": 2, "auc_roc": 2,
        "average_precision": 2,
    }  # fmt: skip
    assert with_quiet["f1"] == pytest.approx(11 / 15)


def test_rows_without_a_score_are_left_out_and_counted():
    row = cell(result_rows("teacher", 7, [A, B]), "oracle", "pooled", "point")
    assert row["notes"]["rows"] == "left out, without a score: 1 (a: 1)"
    window = cell(result_rows("teacher", 7, [A, B]), "oracle", "pooled", "window")
    assert "rows" not in window["notes"]


def test_windows_without_a_score_are_left_out_and_counted():
    """The numbers are those of the other windows, with their labels."""
    gappy = A._replace(window_scores=np.array([9.0, math.nan, 5.0, 1.0]))
    without = A._replace(
        window_scores=np.array([9.0, 5.0, 1.0]),
        window_labels=np.array([True, False, False]),
    )
    silent = B._replace(window_scores=np.full(3, math.nan))
    found = result_rows("teacher", 7, [gappy, B])
    wanted = result_rows("teacher", 7, [without, B])
    json.dumps(found, allow_nan=False)
    for row, other in zip(found, wanted, strict=True):
        note = row["notes"].pop("rows", None)
        if row["level"] == "window":
            assert note == "left out, without a score: 1 (a: 1)"
        other["notes"].pop("rows", None)
        assert row == other
    # a alone: τ = 4.5 gives 9 and 5, one of them rightly.
    own = cell(result_rows("m", 7, [gappy]), "conformal", "pooled", "window")
    assert (own["precision"], own["recall"]) == (0.5, 1.0)
    assert own["alarm_rate"] == pytest.approx(2 / 3)
    entity = per_entity_rows("m", [gappy])[1]
    assert (entity["windows"], entity["positives"]) == (3, 1)
    both = cell(result_rows("m", 7, [gappy, silent]), "conformal", "pooled", "window")
    assert both["notes"]["rows"] == "left out, without a score: 4 (a: 1, b: 3)"
    assert both["precision"] == 0.5
    alone = result_rows("m", 7, [silent]) + unlabelled_rows("m", 7, [silent])
    json.dumps(alone, allow_nan=False)
    for row in alone:
        if row["level"] == "window":
            assert row["f1"] is None and row["alarm_rate"] is None


def test_nothing_labelled_gives_null_with_reasons():
    rows = result_rows("teacher", 7, [QUIET])
    json.dumps(rows, allow_nan=False)
    oracle = cell(rows, "oracle", "pooled", "window")
    why = "no positive labels, so no oracle threshold"
    for name in ("precision", "recall", "f1", "alarm_rate"):
        assert oracle[name] is None
        assert oracle["notes"][name] == why
    own = cell(rows, "conformal", "per_entity_mean", "window")
    assert own["precision"] == 0.0  # both alarms were false
    assert own["notes"]["f1"] == own["notes"]["auc_roc"] == "no positive labels"
    assert own["f1"] is None


def test_an_entity_without_windows_counts_nowhere():
    alone = result_rows("teacher", 7, [SHORT])
    json.dumps(alone, allow_nan=False)
    window = cell(alone, "conformal", "pooled", "window")
    assert window["notes"]["f1"] == "no complete window"
    point = cell(alone, "conformal", "per_entity_mean", "point")
    assert point["notes"]["f1"] == "no row has a score"
    assert point["notes"]["average_precision"] == "no row has a score"
    beside = cell(result_rows("m", 7, [A, B, SHORT]), "oracle", "pooled", "window")
    assert beside["f1"] == 3 / 4


def test_every_null_metric_has_its_reason():
    for window in (None, 4):
        for entities in ([A, B], [QUIET], [SHORT], [A, QUIET, SHORT], [EVENTS, GAPPY]):
            more = {"window": window, "point_adjusted": True}
            rows = result_rows("m", None, entities, **more)
            for row in rows + unlabelled_rows("m", None, entities):
                metrics = row.keys() - {"tau", "parameters"}
                nulls = {name for name in metrics if row[name] is None}
                assert nulls == row["notes"].keys() - {"rows"}
            own = per_entity_rows("m", entities, **more)
            json.dumps([rows, own], allow_nan=False)
            for row in own:
                assert {k for k, v in row.items() if v is None} == row["notes"].keys()


def test_without_labels_only_the_alarm_rate_is_known():
    rows = unlabelled_rows("teacher", 7, [A, B])
    for lacking in (A._replace(labels=None), A._replace(window_labels=None)):
        assert rows == result_rows("teacher", 7, [lacking, B], window=4)
    assert all(row.keys() == keys_of(row) for row in rows)
    of_points = cell(rows, "conformal", "per_entity_mean", "point")
    assert {of_points["notes"][name] for name in POINT_METRICS} == {"no labels"}
    for row in rows:
        for name in ("precision", "recall", "f1"):
            assert row[name] is None
            assert row["notes"][name] == "no labels"
    own = cell(rows, "conformal", "pooled", "window")
    assert own["alarm_rate"] == pytest.approx(4 / 7)
    mean = cell(rows, "conformal", "per_entity_mean", "window")
    assert mean["alarm_rate"] == pytest.approx(7 / 12)
    assert mean["notes"]["average_precision"] == "no labels"
    oracle = cell(rows, "oracle", "pooled", "window")
    assert oracle["alarm_rate"] is None and oracle["tau"] is None


def test_per_entity_rows_by_hand():
    oracle, own, *_ = per_entity_rows("teacher", [A, B], method="pot")
    assert oracle == {
        "model": "teacher", "entity": "a", "level": "window", "threshold": "oracle",
        "precision": 2 / 3, "recall": 1.0, "f1": 0.8, "alarm_rate": 0.75,
        "auc_roc": 0.75, "average_precision": pytest.approx(5 / 6), "tau": 1.0,
        "windows": 4, "positives": 2, "notes": {},
    }  # fmt: skip
    assert (own["threshold"], own["tau"], own["f1"]) == ("pot", 4.5, 0.5)


def expected_of(entity, tau, window):
    """All metrics of points by the public functions, of the rows that have a score."""
    scored = ~np.isnan(entity.scores)
    labels, scores = entity.labels[scored], entity.scores[scored]
    raised = scores > tau
    near = affiliation(labels, raised)
    ranges = range_precision_recall(labels, raised)
    return {
        "vus_roc": vus_roc(labels, scores, window=window),
        "vus_pr": vus_pr(labels, scores, window=window),
        "affiliation_precision": near.precision,
        "affiliation_recall": near.recall,
        "affiliation_f1": near.f1,
        "range_precision": ranges.precision,
        "range_recall": ranges.recall,
        "range_f1": ranges.f1,
        "event_recall": event_recall(labels, raised),
        "event_f1": event_f1(labels, raised),
        "detection_delay": detection_delay(labels, raised),
        "point_adjusted_f1": point_adjusted_f1(labels, raised),
        "pa_k_f1": pa_k_f1(labels, raised, k=20),
    }


def test_metrics_of_points_are_those_of_the_functions():
    other = EVENTS._replace(
        entity="f", labels=np.roll(EVENTS.labels, 3), scores=EVENTS.scores + 1
    )
    more = {"method": "pot", "window": 6, "point_adjusted": True}
    own = per_entity_rows("m", [EVENTS, other], **more)
    assert [(row["entity"], row["level"], row["threshold"]) for row in own] == [
        (entity, level, threshold)
        for entity in ("e", "f")
        for level in ("window", "point")
        for threshold in ("oracle", "pot")
    ]
    rows = result_rows("m", 7, [EVENTS, other], **more)
    for threshold in ("oracle", "pot"):
        wanted = []
        for entity in (EVENTS, other):
            (row,) = (
                row
                for row in own
                if (row["entity"], row["level"], row["threshold"])
                == (entity.entity, "point", threshold)
            )
            expected = expected_of(entity, row["tau"], 6)
            assert {k: row[k] for k in expected} == pytest.approx(expected, abs=1e-12)
            assert (row["points"], row["positives"]) == (40, 9)
            assert set(METRICS) < row.keys() and row["notes"] == {}
            wanted.append(expected)
        mean = cell(rows, threshold, "per_entity_mean", "point")
        for name in wanted[0]:
            values = [expected[name] for expected in wanted]
            assert mean[name] == pytest.approx(np.mean(values), abs=1e-12), name
            assert mean["entities_defined"][name] == 2


def test_inflated_metrics_come_on_request_only():
    inflated = {"point_adjusted_f1", "pa_k_f1"}
    for asked in (False, True):
        rows = result_rows("m", 7, [EVENTS], window=4, point_adjusted=asked)
        own = per_entity_rows("m", [EVENTS], point_adjusted=asked)
        for row in [*rows, *own]:
            of_points = (row["level"], row.get("scope", "per_entity_mean"))
            here = inflated if asked and of_points == MEAN_OF_POINTS else set()
            assert inflated & row.keys() == here


def test_volumes_need_the_window():
    row = cell(result_rows("m", 7, [EVENTS]), "oracle", "per_entity_mean", "point")
    assert row["vus_roc"] is None and row["vus_pr"] is None
    assert row["notes"]["vus_pr"] == "no window was given"
    assert row["affiliation_f1"] is not None


def test_rows_without_a_score_do_not_join_two_events():
    """Two events of two rows with nothing but unscored rows between them."""
    (row,) = per_entity_rows("m", [GAPPY], window=0)[3:]
    assert (row["points"], row["positives"]) == (6, 4)  # unchanged by the quiet row
    assert (row["precision"], row["alarm_rate"]) == (1.0, 1 / 6)
    assert row["event_recall"] == 0.5
    assert row["range_recall"] == 0.25
    # TP 1 of 1 alarm, one of two events.
    assert row["event_f1"] == pytest.approx(2 / 3)
    # Unscored rows inside an event leave it one.
    whole = GAPPY._replace(labels=np.array([0, 1, 1, 1, 1, 1, 1, 0], bool))
    (row,) = per_entity_rows("m", [whole])[3:]
    assert (row["event_recall"], row["range_recall"]) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("labels", "scored", "kept"),
    [
        ("1001", "1..1", "101"),  # one quiet row stays
        ("1101", "1..1", "101"),  # the normal one
        ("1111", "1..1", "11"),  # a hole in one event
        ("111000", "1.1..1", "110"),
        ("1010101", "1.1.1.1", "1010101"),
        ("0110", ".11.", "11"),
        ("10001", "1.0.1", "101"),  # a scored row keeps them apart already
    ],
)
def test_which_rows_stay_in_order(labels, scored, kept):
    scores = np.array([math.nan if mark == "." else 1.0 for mark in scored])
    kept_labels, kept_scores = in_order(np.array(list(labels)) == "1", scores)
    assert "".join(str(int(label)) for label in kept_labels) == kept
    assert np.isfinite(kept_scores).sum() == sum(mark != "." for mark in scored)


def test_metrics_without_a_value_say_why():
    silent = EVENTS._replace(threshold=99.0)
    row = cell(result_rows("m", 1, [silent]), "conformal", "per_entity_mean", "point")
    assert row["notes"]["affiliation_precision"] == "nothing was predicted positive"
    assert (row["event_f1"], row["range_recall"]) == (0.0, 0.0)
    missed = EVENTS._replace(scores=np.where(EVENTS.labels, 0.0, 5.0), threshold=1.0)
    row = cell(result_rows("m", 1, [missed]), "conformal", "per_entity_mean", "point")
    assert row["notes"]["detection_delay"] == "no event was detected"
    assert row["affiliation_precision"] > 0
    both = result_rows("m", 1, [silent, EVENTS])
    row = cell(both, "conformal", "per_entity_mean", "point")
    assert row["entities_defined"]["affiliation_f1"] == 1
    assert row["entities_defined"]["range_f1"] == 2


def test_per_entity_rows_without_labels():
    rows = per_entity_rows("teacher", [A._replace(labels=None, window_labels=None)])
    assert rows[0]["positives"] is None and rows[0]["tau"] is None
    assert rows[1]["tau"] == 4.5 and rows[1]["alarm_rate"] == 0.5


def test_infinite_scores_and_thresholds_stay_out_of_json():
    wild = A._replace(
        window_scores=np.array([math.inf, 4.0, 5.0, 1.0]), threshold=math.inf
    )
    rows = result_rows("teacher", 7, [wild])
    entity_rows = per_entity_rows("teacher", [wild])
    json.dumps([rows, entity_rows], allow_nan=False)
    assert entity_rows[1]["tau"] is None
    assert entity_rows[1]["notes"]["tau"] == "infinite"
    assert cell(rows, "oracle", "pooled", "window")["f1"] == 0.8


def test_single_precision_scores_are_compared_exactly():
    scores = np.array([0.1, 0.1, 0.2], dtype=np.float32)
    entity = A._replace(
        window_labels=np.array([True, True, False]),
        window_scores=scores,
        threshold=float(scores[0]) - 1e-12,  # equals the score in single precision
    )
    rows = result_rows("m", 1, [entity])
    oracle = cell(rows, "oracle", "pooled", "window")
    assert oracle["recall"] == 1.0
    assert json.loads(json.dumps(oracle["tau"])) < float(scores[0])
    assert cell(rows, "conformal", "pooled", "window")["recall"] == 1.0


def test_parameters_and_method_are_passed_on():
    rows = result_rows("pca", None, [A], method="pot")
    assert {row["threshold"] for row in rows} == {"oracle", "pot"}
    assert {row["parameters"] for row in rows} == {None}


@pytest.mark.parametrize("rows", [result_rows, unlabelled_rows])
def test_unusable_inputs_are_refused(rows):
    with pytest.raises(DataError, match="the threshold of a is NaN"):
        rows("m", 1, [A._replace(threshold=math.nan)])


def test_labels_that_do_not_fit_are_refused():
    wrong = A._replace(window_labels=np.array([0, 1, 2, 0]))
    with pytest.raises(DataError, match="`window labels of a` has the value 2"):
        result_rows("m", 1, [wrong])


# A threshold that follows its stream.


def test_a_following_threshold_has_rows_of_its_own():
    a = A._replace(rolling_tau=np.array([8.0, 5.0, 4.0, math.inf]))
    b = B._replace(rolling_tau=np.array([3.0, 1.0, 9.0]))
    rows = [
        row
        for row in result_rows("m", 1, [a, b], method="conformal")
        if row["threshold"] == "rolling"
    ]
    assert [row["scope"] for row in rows] == ["pooled", "per_entity_mean"]
    assert {row["level"] for row in rows} == {"window"}
    # a: alarms 1 0 1 0 of labels 1 1 0 0; b: 0 1 0 of 1 0 0.
    pooled, mean = rows
    assert (pooled["precision"], pooled["recall"]) == (1 / 3, 1 / 3)
    assert mean["f1"] == 0.25 and pooled["tau"] is mean["tau"] is None
    own = [row for row in per_entity_rows("m", [a, b]) if row["threshold"] == "rolling"]
    assert [(row["entity"], row["f1"]) for row in own] == [("a", 0.5), ("b", 0.0)]
    assert own[0]["notes"]["tau"] == "it moves"
    # Ranked by score / τ: 9/8 and 4/5 against 5/4 and 0.
    assert own[0]["auc_roc"] == 0.5


def test_no_following_threshold_unless_all_have_one():
    a = A._replace(rolling_tau=np.ones(4))
    rows = result_rows("m", 1, [a, B])
    assert {row["threshold"] for row in rows} == {"oracle", "conformal"}


def test_scores_relative_to_a_threshold_keep_what_is_above_it():
    scores = np.array([0.0, 0.0, 2.0, 2.0, math.inf, math.inf, math.nan, 3.0])
    taus = np.array([0.0, 5.0, 0.0, math.inf, 2.0, math.inf, 1.0, 3.0])
    own = A._replace(window_scores=scores, rolling_tau=taus)
    found = relative_scores(own)
    assert found.threshold == 1.0
    np.testing.assert_array_equal(found.window_scores > 1, scores > taus)
    np.testing.assert_array_equal(np.isnan(found.window_scores), np.isnan(scores))
