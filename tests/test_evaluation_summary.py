"""The recommendation follows its rule, and the words say what the numbers say."""

import json

import numpy as np
import pytest

from kdjax.errors import DataError
from kdjax.evaluation.intervals import mean_interval, paired_rows
from kdjax.evaluation.summary import (
    CAUTION,
    ENTITIES_ONLY,
    agreement,
    recommend,
    summarise,
    unfit_models,
)

PARAMETERS = {"teacher": 1000, "student": 100}


def make_results(costs=None, *, method="conformal", oracle=None, **f1):
    """Results of models whose label-free F1 of each entity is given."""
    rows, entities = [], []
    for model, values in f1.items():
        for threshold in ("oracle", method):
            used = (
                (oracle or {}).get(model, values) if threshold == "oracle" else values
            )
            known = [value for value in used if value is not None]
            rows.append(
                {"model": model, "parameters": PARAMETERS.get(model, 0),
                 "scope": "per_entity_mean", "threshold": threshold, "level": "window",
                 "f1": float(np.mean(known)) if known else None}
            )  # fmt: skip
            entities += [
                {"model": model, "entity": f"e{i}", "threshold": threshold,
                 "level": "window", "f1": value}
                for i, value in enumerate(used)
            ]  # fmt: skip
            # Points must not be taken for windows.
            entities += [one | {"level": "point", "f1": 0.99} for one in entities[-1:]]
    return {"rows": rows, "entities": entities, "costs": costs or {}}


def cost(numbers, size=None, milliseconds=None):
    return {
        "parameters": 0, "numbers": numbers, "bytes": size, "milliseconds": milliseconds
    }  # fmt: skip


COSTS = {
    "teacher": cost(120_000, 480_000, 2.25),
    "student": cost(7_000, 30_000, 0.5),
    "student_alone": cost(7_000, 30_100, 0.5),
    "pca": cost(1_500, 9_000, 0.0625),
    "random": cost(900),
}
BASE = np.array([0.5, 0.6, 0.3, 0.8, 0.7, 0.4, 0.9, 0.2])


def around(shift, noise=0.0):
    """F1 of eight entities with the mean 0.55 + shift."""
    wave = noise * np.array([1, -1, 1, -1, -1, 1, -1, 1])
    return (BASE + shift + wave).tolist()


# With labels.


def test_the_smallest_of_the_equivalent_is_recommended():
    results = make_results(
        COSTS,
        teacher=around(0.0),
        student=around(-0.004, 0.004),
        student_alone=around(-0.009, 0.01),
        pca=around(-0.02, 0.001),
        random=around(-0.2),
    )
    found = recommend(results)
    interval = mean_interval([-0.0, -0.008] * 4)
    assert (found["model"], found["best"]) == ("student", "teacher")
    assert found["equivalent"] == ["teacher", "student", "student_alone"]
    assert interval.low > -0.01
    assert found["text"] == (
        "Recommended: student, 7,000 numbers, 30,000 bytes of ONNX and 0.500 ms a "
        "window. Its label-free conformal F1 of windows is 0.546 (mean of 8 entities) "
        "against 0.550 of teacher, the best (120,000 numbers, 480,000 bytes of ONNX "
        "and 2.250 ms a window). It is the smallest of teacher, student and "
        "student_alone, which are within 0.01 of the best. The difference is −0.004 "
        f"(95 % interval −{-interval.low:.3f} to −{-interval.high:.3f}), which rules "
        "out a loss of more than 0.01."
    )
    assert found["rule"] == (
        "The smallest detector (bytes of its ONNX file, or numbers it needs where "
        "there is none) whose label-free conformal F1 of windows is, on average over "
        "entities, at most 0.01 below the best; never random scores, and nothing that "
        "does not beat them by more than 0.01, alarms on most clean windows or gives all "
        "windows one score."
    )
    json.dumps(found, allow_nan=False)


def rate(model, clean, left_out=0.01, *, used=True):
    test = None if clean is None else {"rate": clean}
    return {
        "model": model, "used": used, "clean_test": test, "left_out": {"rate": left_out}
    }  # fmt: skip


def test_what_alarms_on_most_clean_windows_or_has_one_score_is_not_fit():
    rates = [
        rate("teacher", 0.1),
        rate("teacher", 0.9, used=False),
        rate("pca", 0.97),
        rate("pca", 0.95),
        rate(
            "student", 0.4, left_out=0.9
        ),  # clean test windows count where there are any
        rate("student_alone", None, left_out=0.7),
        rate("kmeans", None, left_out=None),
    ]
    moving = [np.array([1.0, np.nan, 2.0]), np.ones(2)]
    scores = {name: moving for name in ("teacher", "student", "student_alone", "pca")}
    scores["kmeans"] = [np.array([0.0, np.nan, 0.0]), np.ones(2)]
    assert unfit_models(rates, scores) == {
        "student_alone": "alarms on 70% of clean windows",
        "pca": "alarms on 96% of clean windows",
        "kmeans": "gives all windows the same score",
    }


def test_what_is_not_fit_is_never_recommended():
    values = {"teacher": around(0.0), "pca": around(0.1)}
    results = make_results(COSTS, **values)
    unfit = {"pca": "alarms on 96% of clean windows"}
    found = recommend(results | {"unfit": unfit})
    assert (found["model"], found["best"]) == ("teacher", "teacher")
    assert found["text"].endswith("Not fit: pca alarms on 96% of clean windows.")
    unfit["teacher"] = "gives all windows the same score"
    none = recommend(results | {"unfit": unfit})
    assert none["model"] is None
    assert none["text"] == (
        "No detector is recommended: none of these is fit: teacher gives all windows the "
        "same score and pca alarms on 96% of clean windows."
    )
    # Without labels.
    results = unlabelled({"student": 0.95, "pca": 0.9})
    found = recommend(results | {"unfit": {"pca": "alarms on 96% of clean windows"}})
    assert found["model"] == "student"
    found = recommend(
        results | {"unfit": {"teacher": "gives all windows the same score"}}
    )
    assert found["model"] is None and "none of these is fit" in found["text"]


def test_thresholds_chosen_on_the_labels_decide_nothing():
    values = {"teacher": around(0.0), "pca": around(-0.1)}
    oracle = {"teacher": around(-0.3), "pca": around(0.05)}
    found = recommend(make_results(COSTS, oracle=oracle, **values))
    assert found["model"] == found["best"] == "teacher"
    assert "0.550 (mean of 8 entities), the best" in found["text"]


def test_a_control_may_be_recommended_and_bytes_go_before_numbers():
    costs = COSTS | {"pca": cost(8_000, 9_000, 0.0625)}
    values = {"teacher": around(0.0), "student": around(0.0), "pca": around(-0.01)}
    assert recommend(make_results(costs, **values))["model"] == "pca"
    # Where one has no file, all are compared by numbers.
    costs["teacher"] = cost(120_000)
    assert recommend(make_results(costs, **values))["model"] == "student"


def test_the_bound_is_exact():
    """A loss of 0.01 passes, though 0.4 − 0.41 is below −0.01 in floating point."""
    passes = recommend(make_results(COSTS, teacher=[0.41] * 4, pca=[0.4] * 4))
    fails = recommend(make_results(COSTS, teacher=[0.41] * 4, pca=[0.3999] * 4))
    assert (passes["model"], fails["model"]) == ("pca", "teacher")


def test_a_wide_interval_lets_nothing_pass():
    """The mean decides, however little few entities say about it."""
    wide = around(-0.03, 0.2)
    results = make_results(COSTS, teacher=around(0.0), pca=wide)
    gap = mean_interval(np.subtract(wide, around(0.0)))
    assert gap.low < 0 < gap.high
    found = recommend(results)
    assert (found["model"], found["equivalent"]) == ("teacher", ["teacher"])
    assert found["text"] == (
        "Recommended: teacher, 120,000 numbers, 480,000 bytes of ONNX and 2.250 ms a "
        "window. Its label-free conformal F1 of windows is 0.550 (mean of 8 entities), "
        "the best. No other detector is within 0.01 of the best."
    )


def test_what_the_interval_leaves_open_is_said():
    loose = around(-0.005, 0.1)
    found = recommend(make_results(COSTS, teacher=around(0.0), pca=loose))
    gap = mean_interval(np.subtract(loose, around(0.0)))
    assert found["model"] == "pca"
    assert found["text"].endswith(
        f"The difference is −0.005 (95 % interval −{-gap.low:.3f} to {gap.high:.3f}), "
        "which does not rule out a loss of more than 0.01."
    )
    few = recommend(make_results(COSTS, teacher=[0.5, 0.6, 0.7], pca=[0.5, 0.59, 0.7]))
    assert few["text"].endswith(
        "The difference is −0.003 (95 % interval −0.010 to 0.000; from 3 entities an "
        "interval is too narrow), which rules out a loss of more than 0.01."
    )


def test_one_entity_and_two():
    one = recommend(make_results(COSTS, teacher=[0.5], pca=[0.495]))
    assert one["model"] == "pca"
    assert one["text"] == (
        "Recommended: pca, 1,500 numbers, 9,000 bytes of ONNX and 0.062 ms a window. "
        "Its label-free conformal F1 of windows is 0.495 (one entity) against 0.500 of "
        "teacher, the best (120,000 numbers, 480,000 bytes of ONNX and 2.250 ms a "
        "window). It is the smallest of teacher and pca, which are within 0.01 of the "
        "best. One entity is no evidence on others."
    )
    best = recommend(make_results(COSTS, teacher=[0.5], student=[0.3]))
    assert best["text"].endswith("One entity is no evidence on others.")
    two = recommend(make_results(COSTS, teacher=[0.5, 0.6], pca=[0.49, 0.602]))
    assert two["text"].endswith(
        "The difference is −0.004; 2 entities are too few for an interval."
    )


def test_random_scores_are_never_recommended_nor_what_they_match():
    costs = COSTS | {"random": cost(1, 1, 0.001)}
    above = recommend(make_results(costs, teacher=around(0.011), random=around(0.0)))
    assert (above["model"], above["equivalent"]) == ("teacher", ["teacher"])
    level = recommend(make_results(costs, teacher=around(0.01), random=around(0.0)))
    assert (level["model"], level["best"], level["equivalent"]) == (None, "teacher", [])
    assert level["text"] == (
        "No detector is recommended: the best label-free conformal F1 of windows, "
        "0.560 (teacher), is not more than 0.01 above that of random scores, 0.550."
    )
    below = recommend(make_results(costs, random=around(0.05), teacher=around(0.0)))
    assert (below["model"], below["best"]) == (None, "teacher")
    blind = recommend(make_results(costs, method="pot", teacher=[0.0, 0.0]))
    assert blind["model"] is None
    assert blind["text"] == (
        "No detector is recommended: under its label-free pot threshold none found a "
        "window that is labelled anomalous."
    )


def test_a_model_without_an_f1_on_each_entity_is_left_out_and_named():
    found = recommend(
        make_results(
            COSTS,
            teacher=[0.4, 0.5, None],
            student=[0.6, 0.3, None],
            pca=[0.9, None, None],
        )
    )
    assert (found["model"], found["equivalent"]) == ("student", ["teacher", "student"])
    assert found["text"].endswith("Left out, without an F1 on each entity: pca.")
    assert "(mean of 2 entities)" in found["text"]
    nobody = recommend(make_results(COSTS, teacher=[0.4, None], pca=[None, 0.2]))
    assert nobody["model"] is None
    assert nobody["text"].startswith("No detector is recommended: none has an F1 on")


def test_without_sizes_the_best_is_recommended():
    values = {"pca": around(-0.001), "teacher": around(0.0)}
    found = recommend(make_results(**values))
    assert found["text"] == (
        "Recommended: teacher. Its label-free conformal F1 of windows is 0.550 (mean "
        "of 8 entities), the best. pca and teacher are within 0.01 of the best; their "
        "sizes were not measured."
    )
    some = recommend(make_results({"pca": COSTS["pca"]}, **values))
    assert some["model"] == "pca"
    assert "the best; the size of teacher is not known." in some["text"]


def test_the_better_of_two_of_one_size():
    costs = {name: cost(10, 10, 0.1) for name in ("teacher", "student", "pca")}
    values = {"student": around(-0.005), "teacher": around(0.0), "pca": around(-0.002)}
    assert recommend(make_results(costs, **values))["model"] == "teacher"


# Without labels.


def unlabelled(kappas, costs=COSTS):
    names = ("teacher", "student", "pca", "random")
    results = make_results(costs, **{name: [None, None] for name in names})
    return results | {"agreement": kappas}


def test_without_labels_the_smallest_that_agrees_with_the_teacher():
    found = recommend(unlabelled({"student": 0.953, "pca": 0.899, "random": 1.0}))
    assert (found["model"], found["best"]) == ("student", "teacher")
    assert found["equivalent"] == ["teacher", "student"]
    assert found["text"] == (
        "Recommended: student, 7,000 numbers, 30,000 bytes of ONNX and 0.500 ms a "
        "window. No F1 is defined, so it is unknown which detector is right; its "
        "label-free conformal alarms agree with the teacher's (Cohen's kappa 0.953). "
        "It is the smallest of teacher and student, which are at a kappa of 0.9 or "
        "more."
    )
    assert "Cohen's kappa of at least 0.9; never random scores." in found["rule"]
    assert recommend(unlabelled({"student": 0.95, "pca": 0.9}))["model"] == "pca"


def test_without_labels_the_classifier_if_it_is_fit():
    costs = COSTS | {"classifier": cost(16_000, 60_000, 0.2)}
    results = unlabelled({"student": 1.0, "pca": 1.0, "classifier": None}, costs)
    found = recommend(results)
    assert (found["model"], found["best"]) == ("classifier", "classifier")
    assert found["text"] == (
        "Recommended: classifier, 16,000 numbers, 60,000 bytes of ONNX and 0.200 ms a "
        "window. Without labels this run can't compare detectors; on public data this "
        "kind detects most."
    )
    unfit = {"classifier": "alarms on 96% of clean windows"}
    assert recommend(results | {"unfit": unfit})["model"] == "pca"


def test_kappas_that_are_undefined_or_low_leave_the_teacher():
    found = recommend(unlabelled({"teacher": None, "student": None, "pca": 0.2}))
    assert (found["model"], found["equivalent"]) == ("teacher", ["teacher"])
    assert found["text"] == (
        "Recommended: teacher, 120,000 numbers, 480,000 bytes of ONNX and 2.250 ms a "
        "window. No F1 is defined, so it is unknown which detector is right; the others "
        "are compared with it. No other detector is at a kappa of 0.9 or more. Kappa "
        "is undefined for student: as the teacher, no alarm at all, or one in each "
        "window."
    )
    json.dumps(found, allow_nan=False)


def test_without_labels_and_agreement_nothing_is_recommended():
    for results in (unlabelled({}), unlabelled(None), make_results() | {"rows": []}):
        found = recommend(results)
        assert (found["model"], found["best"], found["equivalent"]) == (None, None, [])
        assert found["text"].startswith("No detector is recommended: there is neither")


def test_agreement_is_cohens_kappa():
    # 20 windows: both 5, first alone 2, second alone 3, neither 10.
    first = [1] * 5 + [1] * 2 + [0] * 3 + [0] * 10
    second = [1] * 5 + [0] * 2 + [1] * 3 + [0] * 10
    seen, chance = 15 / 20, (7 * 8 + 13 * 12) / 400
    assert agreement(first, second) == pytest.approx((seen - chance) / (1 - chance))
    assert agreement(np.array(first, bool), first) == 1.0
    assert agreement(first, [1 - alarm for alarm in first]) < 0
    assert agreement([0, 0, 0], [0, 1, 0]) == 0.0
    assert agreement([0, 0], [1, 1]) == 0.0


def test_agreement_of_detectors_that_never_differ_from_silence():
    assert agreement([0, 0, 0], [0, 0, 0]) is None
    assert agreement([1, 1], [1, 1]) is None


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0, 1], [0, 1, 1], "predictions` has 3"),
        ([0, 2], [0, 1], "`labels` has the value 2"),
        ([], [], "`labels` is empty"),
    ],
)
def test_agreement_refuses_what_are_no_alarms(first, second, message):
    with pytest.raises(DataError, match=message):
        agreement(first, second)


# The paragraph of the report.


def test_the_verdict_begins_with_the_recommendation_and_does_not_repeat_it():
    results = make_results(
        COSTS, teacher=around(0.0), student=around(-0.05), pca=around(-0.005)
    )
    before = summarise(results)
    results["recommendation"] = recommend(results)
    text = summarise(results)
    assert text.startswith(
        results["recommendation"]["text"] + " With thresholds chosen"
    )
    assert (
        "With label-free conformal thresholds, a trivial baseline matches the best "
        "network (teacher 0.550, pca 0.545)."
    ) in text
    assert "chosen on the test labels, teacher and pca share the best mean F1" in text
    said = (
        "With label-free conformal thresholds, teacher and pca share the best mean F1"
    )
    assert said in before and said not in text
    assert text.endswith(CAUTION)


def test_without_controls_nothing_more_is_said_of_label_free_thresholds():
    results = make_results(COSTS, teacher=around(0.0), student=around(-0.05))
    results["recommendation"] = recommend(results)
    assert "With label-free" not in summarise(results)
    # No recommendation names no best.
    results["recommendation"] = {"model": None, "text": "None.", "best": None}
    assert summarise(results).startswith(
        "None. With thresholds chosen on the test labels"
    )
    assert "With label-free conformal thresholds, teacher has the best" in summarise(
        results
    )


def test_without_labels_the_recommendation_stands_first():
    results = unlabelled({"student": 0.95})
    results["recommendation"] = recommend(results)
    text = summarise(results)
    assert text.startswith("Recommended: student")
    assert text.endswith("this run does not show how well any model detects.")


def test_the_detector_from_before_is_no_control():
    text = summarise(make_results(previous=around(0.2), student=around(0.0)))
    assert "previous has the best mean F1 over entities, 0.750." in text
    assert "baseline" not in text


def test_what_distillation_brought_has_its_interval():
    student, alone = around(0.0), around(-0.03, 0.01)
    results = make_results(
        student=student,
        student_alone=alone,
        oracle={"student_alone": around(0.002, 0.05)},
    )
    for one in results["entities"]:  # other metrics, which are not spoken of
        one["average_precision"] = 0.9 if one["model"] == "student" else 0.1
    results["paired"] = paired_rows(results["entities"])
    label_free = mean_interval(np.subtract(student, alone))
    chosen = mean_interval(np.subtract(student, around(0.002, 0.05)))
    assert label_free.low > 0 and chosen.low < 0 < chosen.high
    text = summarise(results)
    assert (
        "Compared with the same network trained alone, the distilled student is "
        "neither better nor worse (0.550 against 0.552, thresholds chosen on the test "
        f"labels; difference −0.002, 95 % interval −{-chosen.low:.3f} to "
        f"{chosen.high:.3f} over 8 entities, which holds 0) and 0.030 above (0.550 "
        f"against 0.520, label-free conformal thresholds; difference 0.030, 95 % "
        f"interval {label_free.low:.3f} to {label_free.high:.3f} over 8 entities)."
    ) in text
    assert text.endswith(f"{CAUTION} {ENTITIES_ONLY}")


def test_two_entities_give_the_reason_in_place_of_an_interval():
    results = make_results(student=[0.5, 0.6], student_alone=[0.3, 0.4])
    results["paired"] = paired_rows(results["entities"])
    text = summarise(results)
    assert (
        "0.200 above (0.550 against 0.350, label-free conformal thresholds; 2 entities "
        "are too few for an interval)."
    ) in text
    assert ENTITIES_ONLY not in text
