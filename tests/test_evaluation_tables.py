"""The tables show what results.json holds, and the verdict says no more than it."""

import copy
import io

import pytest
from rich.console import Console

from kdjax.evaluation.summary import CAUTION, summarise
from kdjax.evaluation.tables import (
    caption,
    detection_table,
    digest_table,
    entity_count,
    entity_table,
    false_alarm_table,
    heads_of,
    interval_table,
    interval_text,
    label_free_method,
    paired_table,
    rate_text,
    report_tables,
    results_tables,
    rolling_table,
    training_table,
)

EVIL = "<script>alert('x')</script>\"&"


def lines_of(table):
    return tuple(map(tuple, table.frame.to_numpy()))


def names_of(table):
    return tuple(name for _, name in heads_of(table.frame))


GRID = [
    (threshold, scope, level)
    for threshold in ("oracle", "conformal")
    for scope in ("pooled", "per_entity_mean")
    for level in ("window", "point")
]
NAMES = ("precision", "recall", "f1", "average_precision")


def model_rows(model, parameters, start):
    """Eight rows whose numbers are all different, in steps of a thousandth."""
    rows = []
    for i, (threshold, scope, level) in enumerate(GRID):
        row = {"model": model, "parameters": parameters, "threshold": threshold}
        row |= {"scope": scope, "level": level}
        row |= {name: start + (4 * i + j) / 1000 for j, name in enumerate(NAMES)}
        rows.append(row)
    return rows


def make_results(**f1):
    """Results whose mean F1 (oracle, conformal) of each model is given."""
    dataset = {
        "name": "SMD", "entities": 13, "window": 100, "stride": 10,
        "min_anomalous_points": 1, "train_rows": 1000, "test_rows": 1100,
        "windows": 30680, "positive_windows": 3233,
    }  # fmt: skip
    sizes = {"teacher": 1_124_201, "student": 482_601, "student_alone": 482_601}
    rows = []
    for number, (model, pair) in enumerate(f1.items()):
        rows += model_rows(model, sizes.get(model), 0.1 + 0.1 * number)
        for row in rows[-8:]:
            if (row["scope"], row["level"]) == ("per_entity_mean", "window"):
                row["f1"] = pair[row["threshold"] == "conformal"]
    return {
        "schema": 1, "dataset": dataset, "rows": rows, "entities": [],
        "environment": {}, "notes": [],
    }  # fmt: skip


RESULTS = make_results(teacher=(0.4, 0.3), student=(0.39, 0.31), random=(0.1, None))


# Column -> its threshold, scope, level and metric.
COLUMNS = {
    ("oracle, pooled", "P"): ("oracle", "pooled", "window", "precision"),
    ("oracle, pooled", "R"): ("oracle", "pooled", "window", "recall"),
    ("oracle, pooled", "F1"): ("oracle", "pooled", "window", "f1"),
    ("oracle, mean", "F1"): ("oracle", "per_entity_mean", "window", "f1"),
    ("label-free, pooled", "F1"): ("conformal", "pooled", "window", "f1"),
    ("label-free, mean", "F1"): ("conformal", "per_entity_mean", "window", "f1"),
    ("points, mean", "AP"): (
        "oracle", "per_entity_mean", "point", "average_precision",
    ),
}  # fmt: skip


def test_cells_equal_results():
    table = detection_table(RESULTS)
    assert heads_of(table.frame) == [("", "Model"), ("", "Parameters"), *COLUMNS]
    assert table.words == caption(RESULTS)
    assert [line[:2] for line in lines_of(table)] == [
        ("teacher", "1,124,201"), ("student", "482,601"), ("random", "–"),
    ]  # fmt: skip
    for line in lines_of(table):
        for (*place, metric), cell in zip(COLUMNS.values(), line[2:], strict=True):
            (row,) = (
                row
                for row in RESULTS["rows"]
                if row["model"] == line[0]
                and [row[key] for key in ("threshold", "scope", "level")] == place
            )
            number = row[metric]
            assert cell == ("–" if number is None else f"{number:.3f}")


def test_the_words_for_several_entities_are_left_out_for_one():
    results = copy.deepcopy(RESULTS)
    results["dataset"]["entities"] = 1
    found = detection_table(results)
    assert heads_of(found.frame)[2:] == [
        ("oracle", "P"), ("oracle", "R"), ("oracle", "F1"), ("label-free", "F1"),
        ("points", "AP"),
    ]  # fmt: skip
    assert lines_of(found)[0][2:] == ("0.100", "0.101", "0.102", "0.118", "0.115")
    assert "R: recall. AP: average precision" in found.words
    assert "pooled" not in found.words and "mean:" not in found.words
    assert "pooled: counts of all entities together. mean: of" in caption(RESULTS)


def test_columns_of_the_first_line_by_hand():
    # Row i of the grid holds .100 + .004 i (+ .001 for R, .002 for F1, .003 for AP).
    expected = ("0.100", "0.101", "0.102", "0.400", "0.118", "0.300", "0.115")
    assert lines_of(detection_table(RESULTS))[0][2:] == expected


def test_a_model_without_a_row_prints_a_dash():
    results = copy.deepcopy(RESULTS)
    results["rows"] = [
        row
        for row in results["rows"]
        if row["model"] != "teacher" or row["scope"] == "pooled"
    ]
    line = lines_of(detection_table(results))[0]
    assert line == (
        "teacher",
        "1,124,201",
        "0.100",
        "0.101",
        "0.102",
        "–",
        "0.118",
        "–",
        "–",
    )


def shown(renderable, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_terminal_table_shows_every_cell_and_the_caption():
    text = shown(results_tables(RESULTS))
    for line in lines_of(detection_table(RESULTS)):
        assert any(printed.split() == list(line) for printed in text.splitlines()), line
    words = " ".join(text.split())
    assert (
        "Windows of 100 rows, stride 10: 30,680 windows, 3,233 anomalous (anomalous rows "
        "at least min_anomalous_points = 1), 13 entities." in words
    )
    assert (
        "oracle: τ chosen on the test labels. label-free τ: conformal, without labels."
        in words
    )
    assert "random: scores drawn at random" in words


def test_the_terminal_table_fits_a_hundred_columns():
    text = shown(results_tables(RESULTS), width=100)
    assert any("1,124,201" in line and "0.115" in line for line in text.splitlines())


def test_markup_in_names_is_printed_as_it_stands():
    results = copy.deepcopy(RESULTS)
    results["rows"] += model_rows("a[bold]|b\n", None, 0.5)
    text = shown(results_tables(results))
    assert "a[bold]|b" in text


def test_the_label_free_rule_is_named_as_in_the_rows():
    results = copy.deepcopy(RESULTS)
    for row in results["rows"]:
        row["threshold"] = row["threshold"].replace("conformal", "pot")
    assert label_free_method(results) == "pot"
    assert "label-free τ: pot, without labels" in caption(results)
    assert label_free_method({"rows": []}) == "conformal"


@pytest.mark.parametrize(
    ("entities", "text"),
    [(1, "1 entity"), (28, "28 entities"), (["a"], "1 entity"), ([], "0 entities")],
)
def test_entities_are_counted(entities, text):
    assert entity_count({"entities": entities}) == text


def test_the_verdict_names_the_best_and_compares_with_the_controls():
    text = summarise(
        make_results(teacher=(0.4, 0.3), student=(0.37, 0.32), pca=(0.3, 0.36))
    )
    assert (
        "With thresholds chosen on the test labels, teacher has the best mean F1 over "
        "entities, 0.400: the best network is 0.100 above the best trivial baseline "
        "(teacher 0.400, pca 0.300)."
    ) in text
    assert (
        "With label-free conformal thresholds, pca has the best mean F1 over entities, "
        "0.360: a trivial baseline beats every network by 0.040 (student 0.320, pca "
        "0.360)."
    ) in text
    assert text.endswith(CAUTION)


def test_the_verdict_calls_near_values_equal():
    text = summarise(
        make_results(
            teacher=(0.4, 0.3),
            student=(0.395, 0.3),
            student_alone=(0.394, 0.25),
            mahalanobis=(0.401, 0.2),
        )
    )
    assert (
        "teacher, student, student_alone and mahalanobis share the best mean F1 over "
        "entities (within 0.01 of 0.401): a trivial baseline matches the best network"
    ) in text
    assert (
        "Compared with the same network trained alone, the distilled student is "
        "neither better nor worse (0.395 against 0.394, thresholds chosen on the test "
        "labels) and 0.050 above (0.300 against 0.250, label-free conformal thresholds)."
    ) in text


def test_the_verdict_admits_a_worse_student():
    text = summarise(make_results(student=(0.2, 0.2), student_alone=(0.3, 0.3)))
    assert "0.100 below (0.200 against 0.300" in text
    assert "baseline" not in text
    assert "teacher" not in text


def test_the_verdict_gives_the_size_of_the_student():
    text = summarise(make_results(teacher=(0.4, 0.3), student=(0.39, 0.2)))
    assert (
        "The student has 43% of the teacher's parameters (482,601 of 1,124,201) and a "
        "mean F1 of 0.390 against 0.400"
    ) in text


def test_the_verdict_on_data_without_labels():
    text = summarise(make_results(teacher=(None, None), student=(None, None)))
    assert text.startswith("No F1 is defined on this test data")
    assert "best" not in text


# Without labels.


def unlabelled():
    results = make_results(teacher=(None, None), student=(None, None), pca=(None, None))
    for number, row in enumerate(results["rows"]):
        row["alarm_rate"] = number / 1000
    results["dataset"]["positive_windows"] = None
    return results


def test_alarm_rates_are_those_of_the_label_free_rule_over_all_windows():
    results = unlabelled()
    # Row 4 of each model's eight is conformal, pooled, window.
    assert [*lines_of(detection_table(results))] == [
        ("teacher", "1,124,201", "0.40%"),
        ("student", "482,601", "1.20%"),
        ("pca", "–", "2.00%"),
    ]
    results["rows"][4]["alarm_rate"] = None
    for row in results["rows"]:
        row["threshold"] = row["threshold"].replace("conformal", "budget")
    assert lines_of(detection_table(results))[0] == ("teacher", "1,124,201", "–")


def test_the_table_without_labels_shows_them():
    results = unlabelled()
    lines = [line.split() for line in shown(results_tables(results)).splitlines()]
    for line in lines_of(detection_table(results)):
        assert list(line) in lines
    assert "No labels, so no number here" in shown(results_tables(results))


FOUND = {"rate": 0.0125, "low": 0.001, "high": 0.0567, "detail": ""}


def test_a_rate_and_its_interval_as_text():
    assert rate_text(FOUND) == "1.25% (0.1%–5.7%)"
    nothing = FOUND | {"rate": None}
    assert rate_text(None) == rate_text(nothing) == "–"
    assert rate_text(nothing | {"detail": "5 folds left out"}) == "too few windows"
    assert rate_text(FOUND | {"rate": 0.0, "low": 0.0}) == "0.00% (0.0%–5.7%)"


def test_the_terminal_shows_the_students_rates():
    rate = {
        "model": "student", "entity": "press[1]", "method": "budget", "used": True,
        "wanted": 0.005, "tau": 3.0, "left_out": FOUND, "clean_test": None,
    }  # fmt: skip
    other = rate | {"method": "pot", "used": False, "clean_test": FOUND}
    teacher = rate | {"model": "teacher", "method": "quantile"}
    text = shown(results_tables(unlabelled() | {"rates": [rate, other, teacher]}), 80)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "press[1] budget (used) 3 0.50% 1.25% (0.1%–5.7%) – –" in lines
    found = "1.25% (0.1%–5.7%)"
    assert f"press[1] pot 3 0.50% {found} {found} –" in lines
    assert "quantile" not in text


def test_names_in_brackets_are_names_and_no_markup():
    results = unlabelled()
    results["rows"][4]["model"] = "a[bold]"
    text = shown(results_tables(results))
    assert "a[bold]" in text
    rate = {
        "model": "student", "entity": "[bold]m", "method": "pot", "used": True,
        "wanted": 0.01, "tau": 3.0, "left_out": FOUND, "clean_test": None,
    }  # fmt: skip
    assert "[bold]m" in shown(results_tables(results | {"rates": [rate]}))


# What comes with further measurements.


def measured():
    """Results with VUS-PR and costs of all models but the random one."""
    results = copy.deepcopy(RESULTS)
    for number, row in enumerate(results["rows"]):
        if (row["scope"], row["level"]) == ("per_entity_mean", "point"):
            row["vus_pr"] = None if row["model"] == "random" else 0.5 + number / 1000
    results["costs"] = {
        "teacher": {"parameters": 1, "bytes": 1_234_567, "milliseconds": 0.1234},
        "student": {"parameters": 1, "bytes": 45_678, "milliseconds": None},
    }
    return results


def test_further_columns_come_after_the_others_and_only_with_content():
    new, old = detection_table(measured()).frame, detection_table(RESULTS).frame
    assert heads_of(new) == [
        *heads_of(old), ("points, mean", "VUS-PR"), ("costs", "bytes"), ("costs", "ms"),
    ]  # fmt: skip
    # Rows 3 and 11 are oracle, per_entity_mean, point.
    assert new.iloc[:, -3:].to_numpy().tolist() == [
        ["0.503", "1,234,567", "0.123"],
        ["0.511", "45,678", "–"],
        ["–", "–", "–"],
    ]
    assert new.iloc[:, :-3].equals(old)
    assert detection_table({**RESULTS, "costs": {}}).frame.equals(old)
    assert "ms a window on one core" in caption(measured())
    assert "costs" not in caption(RESULTS)


def test_the_terminal_has_a_second_table_for_them():
    text = shown(results_tables(measured()), width=80)
    lines = [line.split() for line in text.splitlines()]
    for line in lines_of(detection_table(measured())):
        assert list(line[:9]) in lines and [line[0], *line[9:]] in lines
    assert max(map(len, text.splitlines())) <= 80


def test_a_dash_has_its_reason():
    results = measured()
    assert "–:" not in detection_table(results).words
    for row in results["rows"]:
        if row["model"] == "random":
            row["notes"] = {"vus_pr": "no labels", "f1": "nothing was predicted"}
    results["rows"][0] |= {"f1": None, "notes": {"f1": "no labels"}}
    results["rows"][1] |= {"f1": None, "notes": {"f1": "not in the table"}}
    # Of random only the F1 under label-free τ has no value.
    assert detection_table(results).words.endswith(
        " –: no labels (teacher, random). –: nothing was predicted (random)."
    )


# The further tables of the report.

SIZES = {"teacher": 1000, "student": 400, "random": None}


def make_rows():
    rows = []
    for number, (model, parameters) in enumerate(SIZES.items()):
        for threshold in ("oracle", "conformal"):
            for scope in ("pooled", "per_entity_mean"):
                for level in ("window", "point"):
                    row = {"model": model, "parameters": parameters, "scope": scope}
                    row |= {"threshold": threshold, "level": level, "notes": {}}
                    row |= {"precision": 0.1, "recall": 0.2, "f1": 0.3 + number / 10}
                    row |= {"auc_roc": 0.5, "average_precision": 0.25}
                    rows.append(row)
    return rows


SMALL = {
    "dataset": {
        "name": "SMD", "entities": 3, "window": 10, "stride": 5, "windows": 12,
        "min_anomalous_points": 1, "positive_windows": 4,
    },
    "rows": make_rows(),
}  # fmt: skip


def changed(**changes):
    return copy.deepcopy(SMALL) | changes


def point_row(found, model, threshold):
    (row,) = (
        row
        for row in found["rows"]
        if (row["model"], row["threshold"]) == (model, threshold)
        and (row["scope"], row["level"]) == ("per_entity_mean", "point")
    )
    return row


def test_an_undefined_number_has_its_reason_below_the_table():
    found = changed()
    for row in found["rows"]:
        if row["model"] != "teacher" and row["scope"] == "pooled":
            row |= {"f1": None, "notes": {"f1": "no positive labels"}}
    assert "–: no positive labels (student, random)." in detection_table(found).words


def interval(model, threshold, level, metric, mean, **changes):
    return {
        "model": model, "threshold": threshold, "level": level, "metric": metric,
        "mean": mean, "low": mean and mean - 0.1, "high": mean and mean + 0.1,
        "entities": 7, "reason": "",
    } | changes  # fmt: skip


def test_means_stand_with_their_intervals():
    few = {"low": None, "high": None, "reason": "2 entities are too few"}
    rows = [
        interval("teacher", "conformal", "window", "f1", 0.5),
        interval("teacher", "oracle", "window", "f1", 0.719, low=0.6512, high=0.7777),
        interval("teacher", "oracle", "window", "recall", 0.99),
        interval("teacher", "oracle", "point", "vus_pr", 0.25),
        interval("teacher", "conformal", "point", "vus_pr", 0.25),
        interval("random", "oracle", "window", "f1", 0.125, **few),
        interval("random", "conformal", "window", "f1", None, **few),
    ]
    table = interval_table(rows, "conformal")
    assert table.title == "Means over entities with 95 % intervals"
    assert names_of(table) == (
        "Model", "F1 of windows, oracle", "F1 of windows, label-free τ", "VUS-PR of points",
    )  # fmt: skip
    assert lines_of(table) == (
        ("teacher", "0.719 (0.65–0.78)", "0.500 (0.40–0.60)", "0.250 (0.15–0.35)"),
        ("random", "0.125", "–", "–"),
    )
    assert table.words.count("2 entities are too few.") == 1
    assert interval_table([], "conformal") is None
    assert interval_table(rows[2:3], "conformal") is None
    assert interval_table(rows[-1:], "conformal") is None  # without any value
    assert interval_text(None) == "–"


def difference(against="teacher", **changes):
    return {
        "model": "student", "against": against, "threshold": "oracle",
        "level": "window", "metric": "f1", "baseline": None, "difference": -0.0123,
        "low": -0.051, "high": 0.0264, "entities": 13, "reason": "",
    } | changes  # fmt: skip


def test_differences_have_signs_and_name_the_control():
    nothing = {"difference": None, "low": None, "high": None, "entities": 0}
    table = paired_table(
        [
            difference(),
            difference("best baseline", baseline="pca", threshold="conformal"),
            difference(metric="vus_pr", level="point", reason="too few", **nothing),
            difference(threshold="another rule"),
            difference("student_alone", difference=0.25),
        ],
        "conformal",
    )
    pair = ("-0.012", "(-0.051 to +0.026)", "13")
    assert lines_of(table) == (
        ("student", "teacher", "F1 of windows, oracle", *pair),
        ("student", "best baseline (pca)", "F1 of windows, label-free τ", *pair),
        ("student", "teacher", "VUS-PR of points", "–", "–", "0"),
        ("student", "student_alone", "F1 of windows, oracle", "+0.250", *pair[1:]),
    )
    assert table.words.endswith("Too few.")
    assert paired_table([], "conformal") is None
    assert paired_table([difference(**nothing)], "conformal") is None


def titled(results, title):
    found = report_tables(results)
    return next((table for table in found if table.title.startswith(title)), None)


def test_metrics_of_points_are_shown_where_there_are_some():
    found = changed()
    assert names_of(titled(found, "Rows and events")) == (
        "Model", "τ", "P", "R", "F1", "AUC ROC", "AP",
    )  # fmt: skip
    point_row(found, "student", "conformal").update(affiliation_f1=0.8125, f1=None)
    table = titled(found, "Rows and events")
    assert names_of(table)[-1] == "affiliation F1"
    assert [line[:2] for line in lines_of(table)] == [
        (model, rule) for model in SIZES for rule in ("oracle", "label-free τ")
    ]
    student = (
        "student",
        "label-free τ",
        "0.100",
        "0.200",
        "–",
        "0.500",
        "0.250",
        "0.812",
    )
    assert lines_of(table)[3] == student
    assert lines_of(table)[0][-1] == "–"
    # Only means over entities at the level of points.
    for row in found["rows"]:
        if (row["scope"], row["level"]) != ("per_entity_mean", "point"):
            row["vus_pr"] = 0.9
    assert titled(found, "Rows and events").frame.equals(table.frame)
    # In whatever order they come.
    for row in found["rows"]:
        if row["scope"] == "pooled":
            row |= dict.fromkeys(("precision", "recall", "f1"), 0.999)
    found["rows"].sort(key=lambda row: row["scope"])
    assert sorted(lines_of(titled(found, "Rows and events"))) == sorted(lines_of(table))


def test_adjusted_numbers_are_called_inflated_and_stand_beside_random():
    found = changed()
    assert titled(found, "Point-adjusted F1") is None
    for model, number in (("teacher", 0.95), ("student", None), ("random", 0.874)):
        for rule in ("oracle", "conformal"):
            point_row(found, model, rule)["point_adjusted_f1"] = number
    point_row(found, "random", "conformal")["point_adjusted_f1"] = 0.5
    table = titled(found, "Point-adjusted F1")
    assert "inflated" in table.title and "Inflated" in table.words
    assert names_of(table) == ("Model", "τ", "point-adjusted F1, inflated")
    assert "compare with the line of random" in table.words
    assert lines_of(table) == (
        ("teacher", "oracle", "0.950"),
        ("teacher", "label-free τ", "0.950"),
        ("student", "oracle", "–"),
        ("student", "label-free τ", "–"),
        ("random", "oracle", "0.874"),
        ("random", "label-free τ", "0.500"),
    )


def rate(entity, method, *, model="student", used=True, **changes):
    found = {"rate": 0.0125, "low": 0.001, "high": 0.0567, "detail": ""}
    return {
        "model": model, "entity": entity, "method": method, "used": used,
        "wanted": 0.01, "tau": 12.34567, "left_out": found, "clean_test": None,
    } | changes  # fmt: skip


def test_false_alarms_of_a_model_by_rule():
    few = {"rate": None, "low": 0.0, "high": 1.0, "detail": "5 of 5 folds left out"}
    none = few | {"detail": ""}
    drifted = {"n": 40, "distance": 0.6, "drifted": True}
    table = false_alarm_table(
        [
            rate(EVIL, "budget", drift=drifted),
            rate(EVIL, "pot", used=False, tau=None, left_out=few, clean_test=none),
            rate("b", "fixed", wanted=0.0, drift=drifted | {"drifted": False}),
            rate("b", "conformal", model="teacher"),
        ]
    )
    found = "1.25% (0.1%–5.7%)"
    assert lines_of(table) == (
        (EVIL, "budget (used)", "12.35", "1.00%", found, "–", "yes"),
        (EVIL, "pot", "–", "1.00%", "too few windows", "–", "–"),
        ("b", "fixed (used)", "12.35", "–", found, "–", "no"),
    )
    assert len(names_of(table)) == 7
    assert false_alarm_table([]) is None
    other = [rate("a", "pot", model="teacher")]
    assert false_alarm_table(other) is None
    assert "of teacher, with" in false_alarm_table(other, "teacher").words


def test_the_most_abnormal_training_windows():
    window = {"entity": EVIL, "part": "fit", "start": "2024-01-01T00:00:00",
              "end": 17, "score": 12345.678, "above": True}  # fmt: skip
    table = training_table([window, window | {"score": None, "above": False}])
    assert lines_of(table) == (
        (EVIL, "fit", "2024-01-01T00:00:00", "17", "1.235e+04", "yes"),
        (EVIL, "fit", "2024-01-01T00:00:00", "17", "inf", "no"),
    )
    assert table.words == (
        "Under student. If a window is no normal behaviour, leave its rows out of training "
        "(data.exclude)."
    )
    named = training_table([{**window, "model": "classifier"}])
    assert named.words.startswith("Under classifier.")
    assert training_table([]) is None


def test_an_entity_shows_its_windows_only():
    row = {
        "model": "student", "threshold": "oracle", "precision": 0.5, "recall": None,
        "f1": 0.25, "tau": 12.34567, "alarm_rate": 0.125, "windows": 2360,
        "positives": None,
    }  # fmt: skip
    line = ("student", "oracle", "0.500", "–", "0.250", "12.35", "0.125", "2,360", "–")
    point = row | {"level": "point", "f1": 0.9}
    table = entity_table([row, row | {"level": "window", "tau": None}, point])
    assert lines_of(table) == (line, (*line[:5], "–", *line[6:]))
    assert len(names_of(table)) == len(line)
    assert entity_table([point]) is None


def test_the_order_of_the_tables():
    found = changed(
        intervals=[interval("teacher", "oracle", "window", "f1", 0.5)],
        paired=[difference()],
        rates=[rate("a", "pot")],
        worst_training_windows=[
            {"entity": "a", "part": "fit", "start": 1, "end": 2, "score": 1.0}
            | {"above": True}
        ],
    )
    point_row(found, "random", "oracle")["pa_k_f1"] = 0.4
    assert [table.title for table in report_tables(found)] == [
        "Results",
        "Means over entities with 95 % intervals",
        "Paired differences",
        "Rows and events, means over entities",
        "Point-adjusted F1 (inflated)",
        "False alarms",
        "Most abnormal training windows",
    ]
    for table in report_tables(found):
        assert all(len(line) == len(names_of(table)) for line in lines_of(table))
    digests = {"data": {"sha256": {"train/a": "ab12"}}}
    assert lines_of(digest_table(digests)) == (("train/a", "ab12"),)
    assert digest_table({}) is None


def test_a_rolling_threshold_has_a_table_where_it_was_asked_for():
    assert rolling_table(SMALL) is None
    rows = [
        {
            "model": model, "parameters": 9, "threshold": "rolling", "scope": scope,
            "level": "window", "auc_roc": None, "average_precision": None, "notes": {},
            "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "alarm_rate": 0.125,
        }
        for model in ("teacher", "student")
        for scope in ("pooled", "per_entity_mean")
    ]  # fmt: skip
    shares = {"settings": {"threshold": {"rolling_share": 0.1}}}
    found = {**SMALL, **shares, "rows": [*SMALL["rows"], *rows]}
    table = rolling_table(found)
    assert lines_of(table)[:2] == (
        ("teacher", "0.500", "0.250", "0.333", "0.333", "12.50%"),
        ("student", "0.500", "0.250", "0.333", "0.333", "12.50%"),
    )
    assert lines_of(table)[2] == ("random", *["–"] * 5)
    assert "for 0.1 of them" in table.words
    assert table.title in [other.title for other in report_tables(found)]
    one = rolling_table({**found, "dataset": {**SMALL["dataset"], "entities": 1}})
    assert heads_of(one.frame)[1:] == [("", n) for n in ("P", "R", "F1", "in alarm")]
    assert lines_of(one)[0] == ("teacher", "0.500", "0.250", "0.333", "12.50%")
    for row in rows:
        row["f1"] = None  # no labels
    assert rolling_table(found) is None
