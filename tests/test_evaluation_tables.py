"""The tables show what results.json holds, and the verdict says no more than it."""

import copy
import io

import pytest
from rich.console import Console

from kdjax.evaluation.summary import CAUTION, summarise
from kdjax.evaluation.tables import (
    alarm_rates,
    caption,
    entity_count,
    label_free_method,
    markdown_table,
    rate_texts,
    rates_table,
    results_table,
    table_cells,
    undefined_words,
    unlabelled_table,
    value,
)

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


def test_cells_equal_results():
    cells = table_cells(RESULTS)
    assert [line[:2] for line in cells.lines] == [
        ("teacher", "1,124,201"), ("student", "482,601"), ("random", "–"),
    ]  # fmt: skip
    for line in cells.lines:
        for column, cell in zip(cells.columns, line[2:], strict=True):
            (row,) = (
                row
                for row in RESULTS["rows"]
                if row["model"] == line[0]
                and row["threshold"] == column.threshold
                and row["scope"] == column.scope
                and row["level"] == column.level
            )
            number = row[column.metric]
            assert cell == ("–" if number is None else f"{number:.3f}")


def test_columns_of_the_first_line_by_hand():
    cells = table_cells(RESULTS)
    # Row i of the grid holds .100 + .004 i (+ .001 for R, .002 for F1, .003 for AP).
    expected = ("0.100", "0.101", "0.102", "0.400", "0.118", "0.300", "0.115")
    assert cells.lines[0][2:] == expected
    assert [column.group for column in cells.columns][2:] == [
        "oracle, pooled", "oracle, mean", "own τ, pooled", "own τ, mean",
        "points, mean",
    ]  # fmt: skip


def test_a_model_without_a_row_prints_a_dash():
    assert value(RESULTS, "pca", table_cells(RESULTS).columns[0]) is None


def shown(renderable, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_terminal_table_shows_every_cell_and_the_caption():
    text = shown(results_table(RESULTS))
    for line in table_cells(RESULTS).lines:
        assert any(printed.split() == list(line) for printed in text.splitlines()), line
    words = " ".join(text.split())
    assert (
        "Windows of 100 rows, stride 10, anomalous from min_anomalous_points = 1 "
        in (words)
    )
    assert "30,680 windows, 3,233 positive, 13 entities." in words
    assert (
        "oracle: τ chosen on the test labels; own τ: conformal, without labels."
        in words
    )
    assert "random: scores drawn at random" in words


def test_the_terminal_table_fits_a_hundred_columns():
    text = shown(results_table(RESULTS), width=100)
    assert any("1,124,201" in line and "0.115" in line for line in text.splitlines())


def test_markup_in_names_is_printed_as_it_stands():
    results = copy.deepcopy(RESULTS)
    results["dataset"]["name"] = "[red]x[/red]"
    results["rows"] += model_rows("a[bold]|b\n", None, 0.5)
    text = shown(results_table(results))
    assert "[red]x[/red]" in text and "a[bold]|b" in text
    assert "| a[bold]\\|b | – | 0.500 |" in markdown_table(results)


def test_the_markdown_table():
    lines = markdown_table(RESULTS).splitlines()
    assert lines[0].startswith("| Model | Parameters | oracle, pooled: P |")
    assert set(lines[1]) <= set("| -:")
    cells = [
        tuple(part.strip() for part in line.split("|")[1:-1]) for line in lines[2:5]
    ]
    assert tuple(cells) == table_cells(RESULTS).lines
    assert lines[5] == "" and lines[6].startswith("Windows of 100 rows")
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_the_label_free_rule_is_named_as_in_the_rows():
    results = copy.deepcopy(RESULTS)
    for row in results["rows"]:
        row["threshold"] = row["threshold"].replace("conformal", "pot")
    assert label_free_method(results) == "pot"
    assert "own τ: pot, without labels" in markdown_table(results)
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
    return results


def test_alarm_rates_are_those_of_the_label_free_rule_over_all_windows():
    results = unlabelled()
    # Row 4 of each model's eight is conformal, pooled, window.
    assert alarm_rates(results) == [
        ("teacher", "1,124,201", "0.40%"),
        ("student", "482,601", "1.20%"),
        ("pca", "–", "2.00%"),
    ]
    results["rows"][4]["alarm_rate"] = None
    for row in results["rows"]:
        row["threshold"] = row["threshold"].replace("conformal", "budget")
    assert alarm_rates(results)[0] == ("teacher", "1,124,201", "–")


def test_the_table_without_labels_shows_them():
    results = unlabelled()
    lines = [line.split() for line in shown(unlabelled_table(results)).splitlines()]
    for line in alarm_rates(results):
        assert list(line) in lines
    assert "no labels to judge by" in shown(unlabelled_table(results))


FOUND = {"rate": 0.0125, "low": 0.001, "high": 0.0567, "detail": ""}


def test_a_rate_and_its_interval_as_text():
    assert rate_texts(FOUND) == ("1.25%", "(0.1%–5.7%)")
    nothing = FOUND | {"rate": None}
    assert rate_texts(None) == rate_texts(nothing) == ("–", "")
    assert rate_texts(nothing | {"detail": "5 folds left out"}) == (
        "too few windows",
        "",
    )
    assert rate_texts(FOUND | {"rate": 0.0, "low": 0.0}) == ("0.00%", "(0.0%–5.7%)")


def test_the_terminal_shows_the_students_rates():
    rate = {
        "model": "student", "entity": "press[1]", "method": "budget", "used": True,
        "wanted": 0.005, "tau": 3.0, "left_out": FOUND, "clean_test": None,
    }  # fmt: skip
    other = rate | {"method": "pot", "used": False, "clean_test": FOUND}
    teacher = rate | {"model": "teacher", "method": "quantile"}
    text = shown(rates_table({"rates": [rate, other, teacher]}))
    lines = [line.split() for line in text.splitlines()]
    assert ["press[1]", "budget*", "0.50%", "1.25%", "(0.1%–5.7%)", "–"] in lines
    assert [
        "press[1]", "pot", "0.50%", "1.25%", "(0.1%–5.7%)", "1.25%", "(0.1%–5.7%)",
    ] in lines  # fmt: skip
    assert "quantile" not in text


def test_names_in_brackets_are_names_and_no_markup():
    results = unlabelled()
    results["dataset"]["name"] = "[red]x[/red]"
    results["rows"][4]["model"] = "a[bold]"
    text = shown(unlabelled_table(results))
    assert "[red]x[/red]" in text and "a[bold]" in text
    rate = {
        "model": "student", "entity": "[bold]m", "method": "pot", "used": True,
        "wanted": 0.01, "tau": 3.0, "left_out": FOUND, "clean_test": None,
    }  # fmt: skip
    assert "[bold]m" in shown(rates_table({"rates": [rate]}))


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
    cells, old = table_cells(measured()), table_cells(RESULTS)
    assert cells.columns[: len(old.columns)] == old.columns
    assert [c.name for c in cells.columns[len(old.columns) :]] == [
        "VUS-PR", "bytes", "ms",
    ]  # fmt: skip
    # Rows 3 and 11 are oracle, per_entity_mean, point.
    assert [line[-3:] for line in cells.lines] == [
        ("0.503", "1,234,567", "0.123"),
        ("0.511", "45,678", "–"),
        ("–", "–", "–"),
    ]
    for line, before in zip(cells.lines, old.lines, strict=True):
        assert line[:-3] == before
    assert table_cells({**RESULTS, "costs": {}}) == old
    assert "ms a window on one core" in caption(measured())
    assert "costs" not in caption(RESULTS)


def test_the_terminal_has_a_second_table_for_them():
    text = shown(results_table(measured()), width=80)
    lines = [line.split() for line in text.splitlines()]
    for line in table_cells(measured()).lines:
        assert list(line[:9]) in lines and [line[0], *line[9:]] in lines
    assert max(map(len, text.splitlines())) <= 80


def test_a_dash_has_its_reason():
    results = measured()
    assert undefined_words(results) == ""
    for row in results["rows"]:
        if row["model"] == "random":
            row["notes"] = {"vus_pr": "no labels", "f1": "nothing was predicted"}
    results["rows"][0] |= {"f1": None, "notes": {"f1": "no labels"}}
    results["rows"][1] |= {"f1": None, "notes": {"f1": "not in the table"}}
    # Of random only the F1 under own τ has no value.
    assert undefined_words(results) == (
        "–: no labels (teacher, random). –: nothing was predicted (random)."
    )
