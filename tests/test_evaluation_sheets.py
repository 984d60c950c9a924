"""The report's tables: cells as results.json has them, in every format the same."""

import copy
import html
import re
from html.parser import HTMLParser

import pytest

from kdjax.evaluation.report_tables import (
    UNFOLDED,
    html_sheet,
    latex_sheet,
    latex_text,
    markdown_sheet,
    markdown_text,
)
from kdjax.evaluation.sheets import (
    Sheet,
    digest_sheet,
    entity_sheet,
    false_alarm_sheet,
    inflated_sheet,
    interval_text,
    intervals_sheet,
    paired_sheet,
    points_sheet,
    results_sheet,
    rolling_sheet,
    sheets,
    training_sheet,
)
from kdjax.evaluation.tables import caption, table_cells

EVIL = "<script>alert('x')</script>\"&"
MODELS = {"teacher": 1000, "student": 400, "random": None}


def make_rows():
    rows = []
    for number, (model, parameters) in enumerate(MODELS.items()):
        for threshold in ("oracle", "conformal"):
            for scope in ("pooled", "per_entity_mean"):
                for level in ("window", "point"):
                    row = {"model": model, "parameters": parameters, "scope": scope}
                    row |= {"threshold": threshold, "level": level, "notes": {}}
                    row |= {"precision": 0.1, "recall": 0.2, "f1": 0.3 + number / 10}
                    row |= {"auc_roc": 0.5, "average_precision": 0.25}
                    rows.append(row)
    return rows


RESULTS = {
    "dataset": {
        "name": "SMD", "entities": 3, "window": 10, "stride": 5, "windows": 12,
        "min_anomalous_points": 1, "positive_windows": 4,
    },
    "rows": make_rows(),
}  # fmt: skip


def results(**changes):
    return copy.deepcopy(RESULTS) | changes


def point_row(found, model, threshold):
    (row,) = (
        row
        for row in found["rows"]
        if (row["model"], row["threshold"]) == (model, threshold)
        and (row["scope"], row["level"]) == ("per_entity_mean", "point")
    )
    return row


# Contents.


def test_the_first_table_is_that_of_the_terminal():
    sheet = results_sheet(RESULTS)
    cells = table_cells(RESULTS)
    assert sheet.lines == cells.lines and sheet.words == caption(RESULTS)
    assert sheet.heads == ("Model", "Parameters", *(c.name for c in cells.columns))
    assert sheet.groups == ("", "", *(c.group for c in cells.columns))


def test_an_undefined_number_has_its_reason_below_the_table():
    found = results()
    for row in found["rows"]:
        if row["model"] != "teacher" and row["scope"] == "pooled":
            row |= {"f1": None, "notes": {"f1": "no positive labels"}}
    assert "–: no positive labels (student, random)." in results_sheet(found).words


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
    sheet = intervals_sheet(rows, "conformal")
    assert sheet.title == "Means over entities with 95 % intervals"
    assert sheet.heads == (
        "Model", "F1 of windows, oracle", "F1 of windows, own τ", "VUS-PR of points",
    )  # fmt: skip
    assert sheet.lines == (
        ("teacher", "0.719 (0.65–0.78)", "0.500 (0.40–0.60)", "0.250 (0.15–0.35)"),
        ("random", "0.125", "–", "–"),
    )
    assert sheet.words.count("2 entities are too few.") == 1
    assert intervals_sheet([], "conformal") is None
    assert intervals_sheet(rows[2:3], "conformal") is None
    assert interval_text(None) == "–"


def difference(against="teacher", **changes):
    return {
        "model": "student", "against": against, "threshold": "oracle",
        "level": "window", "metric": "f1", "baseline": None, "difference": -0.0123,
        "low": -0.051, "high": 0.0264, "entities": 13, "reason": "",
    } | changes  # fmt: skip


def test_differences_have_signs_and_name_the_control():
    nothing = {"difference": None, "low": None, "high": None, "entities": 0}
    sheet = paired_sheet(
        [
            difference(),
            difference("best control", baseline="pca", threshold="conformal"),
            difference(metric="vus_pr", level="point", reason="too few", **nothing),
            difference(threshold="another rule"),
            difference("student_alone", difference=0.25),
        ],
        "conformal",
    )
    pair = ("-0.012", "(-0.051 to +0.026)", "13")
    assert sheet.lines == (
        ("student", "teacher", "F1 of windows, oracle", *pair),
        ("student", "best control (pca)", "F1 of windows, own τ", *pair),
        ("student", "teacher", "VUS-PR of points", "–", "–", "0"),
        ("student", "student_alone", "F1 of windows, oracle", "+0.250", *pair[1:]),
    )
    assert sheet.words.endswith("Too few.")
    assert paired_sheet([], "conformal") is None


def test_metrics_of_points_are_shown_where_there_are_some():
    found = results()
    assert points_sheet(found).heads == (
        "Model", "τ", "P", "R", "F1", "AUC ROC", "AP",
    )  # fmt: skip
    point_row(found, "student", "conformal").update(affiliation_f1=0.8125, f1=None)
    sheet = points_sheet(found)
    assert sheet.heads[-1] == "affiliation F1"
    assert [line[:2] for line in sheet.lines] == [
        (model, rule) for model in MODELS for rule in ("oracle", "own τ")
    ]
    student = ("student", "own τ", "0.100", "0.200", "–", "0.500", "0.250", "0.812")
    assert sheet.lines[3] == student
    assert sheet.lines[0][-1] == "–"
    # Only means over entities at the level of points.
    for row in found["rows"]:
        if (row["scope"], row["level"]) != ("per_entity_mean", "point"):
            row["vus_pr"] = 0.9
    assert points_sheet(found) == sheet
    # In whatever order they come.
    for row in found["rows"]:
        if row["scope"] == "pooled":
            row |= dict.fromkeys(("precision", "recall", "f1"), 0.999)
    found["rows"].sort(key=lambda row: row["scope"])
    assert sorted(points_sheet(found).lines) == sorted(sheet.lines)


def test_adjusted_numbers_are_called_inflated_and_stand_beside_random():
    found = results()
    assert inflated_sheet(found) is None
    for model, number in (("teacher", 0.95), ("student", None), ("random", 0.874)):
        for rule in ("oracle", "conformal"):
            point_row(found, model, rule)["point_adjusted_f1"] = number
    point_row(found, "random", "conformal")["point_adjusted_f1"] = 0.5
    sheet = inflated_sheet(found)
    assert "inflated" in sheet.title and "Inflated" in sheet.words
    assert sheet.heads == ("Model", "τ", "point-adjusted F1, inflated")
    assert sheet.lines[:4] == (
        ("teacher", "oracle", "0.950 (random 0.874)"),
        ("teacher", "own τ", "0.950 (random 0.500)"),
        ("student", "oracle", "– (random 0.874)"),
        ("student", "own τ", "– (random 0.500)"),
    )


def rate(entity, method, *, model="student", used=True, **changes):
    found = {"rate": 0.0125, "low": 0.001, "high": 0.0567, "detail": ""}
    return {
        "model": model, "entity": entity, "method": method, "used": used,
        "wanted": 0.01, "tau": 12.34567, "left_out": found, "clean_test": None,
    } | changes  # fmt: skip


def test_false_alarms_of_the_student_by_rule():
    few = {"rate": None, "low": 0.0, "high": 1.0, "detail": "5 of 5 folds left out"}
    none = few | {"detail": ""}
    drifted = {"n": 40, "distance": 0.6, "drifted": True}
    sheet = false_alarm_sheet(
        [
            rate(EVIL, "budget", drift=drifted),
            rate(EVIL, "pot", used=False, tau=None, left_out=few, clean_test=none),
            rate("b", "fixed", wanted=0.0, drift=drifted | {"drifted": False}),
            rate("b", "conformal", model="teacher"),
        ]
    )
    interval = "(0.1%–5.7%)"
    assert sheet.lines == (
        (EVIL, "budget (used)", "12.35", "1.00%", "1.25%", interval, "–", "", "yes"),
        (EVIL, "pot", "–", "1.00%", "too few windows", "", "–", "", "–"),
        ("b", "fixed (used)", "12.35", "0.00%", "1.25%", interval, "–", "", "no"),
    )
    assert len(sheet.heads) == 9
    assert false_alarm_sheet([]) is None
    assert false_alarm_sheet([rate("a", "pot", model="teacher")]) is None


def test_the_most_abnormal_training_windows():
    window = {"entity": EVIL, "part": "fit", "start": "2024-01-01T00:00:00",
              "end": 17, "score": 12345.678, "above": True}  # fmt: skip
    sheet = training_sheet([window, window | {"score": None, "above": False}])
    assert sheet.lines == (
        (EVIL, "fit", "2024-01-01T00:00:00", "17", "1.235e+04", "yes"),
        (EVIL, "fit", "2024-01-01T00:00:00", "17", "inf", "no"),
    )
    assert "data.exclude" in sheet.words
    assert training_sheet([]) is None


def test_an_entity_shows_its_windows_only():
    row = {
        "model": "student", "threshold": "oracle", "precision": 0.5, "recall": None,
        "f1": 0.25, "tau": 12.34567, "alarm_rate": 0.125, "windows": 2360,
        "positives": None,
    }  # fmt: skip
    line = ("student", "oracle", "0.500", "–", "0.250", "12.35", "0.125", "2,360", "–")
    point = row | {"level": "point", "f1": 0.9}
    sheet = entity_sheet([row, row | {"level": "window", "tau": None}, point])
    assert sheet.lines == (line, (*line[:5], "–", *line[6:]))
    assert len(sheet.heads) == len(line)
    assert entity_sheet([point]) is None


def test_the_order_of_the_tables():
    found = results(
        intervals=[interval("teacher", "oracle", "window", "f1", 0.5)],
        paired=[difference()],
        rates=[rate("a", "pot")],
        worst_training_windows=[
            {"entity": "a", "part": "fit", "start": 1, "end": 2, "score": 1.0}
            | {"above": True}
        ],
    )
    point_row(found, "random", "oracle")["pa_k_f1"] = 0.4
    assert [sheet.title for sheet in sheets(found)] == [
        "Results",
        "Means over entities with 95 % intervals",
        "Paired differences",
        "Rows and events, means over entities",
        "Point-adjusted F1 (inflated)",
        "False alarms",
        "Most abnormal training windows",
    ]
    for sheet in sheets(found):
        assert all(len(line) == len(sheet.heads) for line in sheet.lines)
    assert digest_sheet({"train/a": "ab12"}).lines == (("train/a", "ab12"),)
    assert digest_sheet({}) is None


# Formats.

SHEET = Sheet(
    "Sizes & <counts>",
    ("Model", "P", "R", "F1"),
    ((EVIL, "0.1", "–", "50%"), ("a_b|c\\d", "#1", "$5~^", "{x}\nτ")),
    "Of α ≤ 1.",
    ("", "left|side", "left|side", "right"),
)


class Cells(HTMLParser):
    """Rows of text, and the spans of cells."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.spans, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")
            self.spans.append(tuple(attrs))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_html_has_two_lines_of_heads_and_escapes_all():
    text = html_sheet(SHEET)
    cells = Cells(text)
    assert cells.rows[0] == ["Model", "left|side", "right"]
    assert cells.rows[1] == ["P", "R", "F1"]
    assert cells.rows[2:] == [list(line) for line in SHEET.lines]
    assert cells.spans[:3] == [
        (("rowspan", "2"),), (("colspan", "2"),), (("colspan", "1"),),
    ]  # fmt: skip
    assert "<script" not in text and html.escape(EVIL) in text
    assert text.startswith("<h2>Sizes &amp; &lt;counts&gt;</h2>")
    assert "Of α ≤ 1." in text
    plain = SHEET._replace(groups=(), title="", words="")
    assert Cells(html_sheet(plain)).rows[0] == list(SHEET.heads)
    assert html_sheet(plain).startswith("<div")


def test_long_tables_are_folded():
    for count, folded in ((UNFOLDED, False), (UNFOLDED + 1, True)):
        text = html_sheet(SHEET._replace(lines=SHEET.lines[:1] * count))
        assert (f"<details><summary>{count} lines</summary>" in text) is folded
        assert len(Cells(text).rows) == count + 2
    assert html_sheet(SHEET._replace(lines=SHEET.lines[:1] * 99)).count("details>") == 2


def test_markdown_can_be_read_back():
    lines = markdown_sheet(SHEET).splitlines()
    assert lines[0] == "## Sizes & <counts>" and lines[-1] == "Of α ≤ 1."
    table = [line for line in lines if line.startswith("|")]
    read = [
        [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)]
        for line in table
    ]
    assert read[0][1:-1] == ["Model", "left|side: P", "left|side: R", "right: F1"]
    assert read[1][1:-1] == ["---", "---:", "---:", "---:"]
    assert read[2][1:-1] == list(SHEET.lines[0])
    assert read[3][1:-1] == ["a_b|c\\d", "#1", "$5~^", "{x} τ"]
    assert markdown_text("[a](b) <i>") == r"\[a](b) \<i>"


def test_latex_escapes_what_it_would_read():
    assert latex_text("a_b & 5 % #1 $x$ {y}") == r"a\_b \& 5 \% \#1 \$x\$ \{y\}"
    assert latex_text("~^\\") == (
        r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert latex_text('<>|"') == r"\textless{}\textgreater{}\textbar{}''"
    assert latex_text("τ – α × ≤") == r"$\tau$ -- $\alpha$ $\times$ $\le$"
    assert latex_text("two\nlines") == "two lines"


def test_latex_is_balanced():
    text = latex_sheet(SHEET)
    lines = text.splitlines()
    assert lines[0] == "% Sizes & <counts>" and lines[1] == "% Of α ≤ 1."
    assert lines[2] == r"\begin{tabular}{lrrr}" and lines[-1] == r"\end{tabular}"
    assert lines[4] == (
        r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{left\textbar{}side} & "
        r"\multicolumn{1}{c}{right} \\"
    )
    assert lines[5] == r"Model & P & R & F1 \\"
    body = [line for line in lines[2:] if line.endswith(r"\\")]
    for line in body[1:]:
        assert len(re.findall(r"(?<!\\)&", line)) == len(SHEET.heads) - 1
    plain = re.sub(r"\\[{}$\\]", "", "\n".join(lines[2:]))
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[%#_~^]", plain)
    assert lines.count(r"\hline") == 3


@pytest.mark.parametrize("words", ["two\nlines", "100 % sure\r\nof it"])
def test_words_of_several_lines_stay_a_comment(words):
    lines = latex_sheet(SHEET._replace(words=words)).splitlines()
    assert lines[1] == f"% {' '.join(words.split())}"
    assert lines[2].startswith(r"\begin")


def test_a_following_threshold_has_a_table_where_it_was_asked_for():
    assert rolling_sheet(RESULTS) is None
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
    found = {**RESULTS, **shares, "rows": [*RESULTS["rows"], *rows]}
    sheet = rolling_sheet(found)
    assert sheet.lines[:2] == (
        ("teacher", "0.500", "0.250", "0.333", "0.333", "0.125"),
        ("student", "0.500", "0.250", "0.333", "0.333", "0.125"),
    )
    assert sheet.lines[2] == ("random", *["–"] * 5)
    assert "for 0.1 of them" in sheet.words and sheet in sheets(found)
    for row in rows:
        row["f1"] = None  # no labels
    assert rolling_sheet(found) is None
