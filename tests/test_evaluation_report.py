"""The report of a run: everything escaped, true to results, in every format the same."""

import copy
import html
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from test_evaluation_page import Page

from kdjax.detection.alarming import alarm_measures
from kdjax.evaluation import report
from kdjax.evaluation.intervals import interval_rows
from kdjax.evaluation.plots import Heat, Timeline
from kdjax.evaluation.report import (
    MOST_EVENTS,
    OPEN_ENTITIES,
    Decided,
    csv_lines,
    latex_section,
    latex_text,
    markdown_report,
    markdown_section,
    markdown_text,
    write_report,
    write_texts,
)
from kdjax.evaluation.rows import EntityScores, metric_rows
from kdjax.evaluation.summary import summarise
from kdjax.evaluation.tables import (
    Table,
    alarm_table,
    caption,
    detection_table,
    report_tables,
)


def result_rows(*arguments):
    return metric_rows(*arguments)[0]


def unlabelled_rows(model, parameters, entities):
    blank = [e._replace(labels=None, window_labels=None) for e in entities]
    return result_rows(model, parameters, blank)


EVIL = "<script>alert('x')</script>\"&"


def entity(name, seed):
    random = np.random.default_rng(seed)
    labels, windows = random.random(60) < 0.2, random.random(12) < 0.4
    scores = random.random(60) + labels
    return EntityScores(name, labels, scores, windows, random.random(12) + windows, 0.9)


def make_results(entities, rows=result_rows):
    models = {"teacher": 1000, "student": 400, "random": None}
    return {
        "schema": 1,
        "dataset": {
            "name": EVIL, "entities": len(entities), "window": 10, "stride": 5,
            "min_anomalous_points": 1, "train_rows": 12345, "test_rows": 60,
            "windows": 12, "positive_windows": 4,
        },
        "rows": [row for m, p in models.items() for row in rows(m, p, entities)],
        "entities": [row for m in models for row in metric_rows(m, 7, entities)[1]],
        "environment": {"versions": {"jax": "0.10.2"}, "device": EVIL},
        "notes": [f"{EVIL}: pooled τ"],
        "data": {"sha256": {f"train/{EVIL}": "ab" * 32}},
        "settings": {"data": {"path": EVIL}, "seed": 3},
    }  # fmt: skip


ENTITIES = [entity(name, i) for i, name in enumerate(["a", "b", EVIL, "d", "e"])]
RESULTS = make_results(ENTITIES)
HEAT = Heat("teacher", ("load", EVIL), np.ones((60, 2)), 0.9)
TIMELINES = [
    Timeline(
        e.entity,
        None,
        e.labels,
        {"teacher": e.scores},
        {"teacher": 0.9},
        {"teacher": np.array([[3, 9]])},
        heat=HEAT,
    )
    for e in ENTITIES
]
SIGNALS = [
    one._replace(
        signals=np.random.default_rng(1).normal(size=(60, 2)), channels=HEAT.channels
    )
    for one in TIMELINES[:2]
]
EVENTS = pd.DataFrame(
    {
        "entity": ["a", "b", "d"],
        "start": [3, 3, 20],
        "end": [8, 8, 22],
        "severity": [2.5, np.inf, 1.5],
        "peak": [4, 5, 21],
        "channels": [f"load;{EVIL}", "load", "load"],
        "kind": ["score"] * 3,
        "first": [3, 3, 20],
        "stop": [9, 9, 23],
    }
)
MEASURES = alarm_measures(EVENTS, span=(0, 60), seconds=120)
DECIDED = Decided(
    "teacher", "Expect about 3 events a day (1–5).", SIGNALS, EVENTS, MEASURES
)
RANKINGS = [{"teacher": e} for e in ENTITIES[:2]]
DISTRIBUTIONS = [(e, e.scores) for e in ENTITIES[:2]]
HISTORY = [
    {"phase": EVIL, "epoch": e, "step": e, "loss": 1.0, "train_loss": 1 / e}
    for e in (1, 2)
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The path of a report with all that it can hold."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path,
        results=RESULTS,
        decided=DECIDED,
        history=HISTORY,
        timelines=TIMELINES,
        distributions=DISTRIBUTIONS,
        rankings=RANKINGS,
    )
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path


@pytest.fixture(scope="module")
def text(written):
    return written.read_text("utf-8")


def test_the_page_is_whole_and_holds_all_figures(text):
    page = Page(text)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    # Two of the engineer and a timeline of each entity; the learning curve, two
    # distributions and two curves.
    assert len(page.figures) == 2 + len(TIMELINES) + 5
    # Links lead to figures of the page.
    places = {v for _, name, v in page.attributes if name == "id"}
    links = [v for _, name, v in page.attributes if name in ("src", "href")]
    assert places == {"plot-0", "plot-1"} and links == ["#plot-0", "#plot-1"]
    # NaN, None and infinities are no numbers to show.
    assert not {"nan", "None", "NaN", "inf"} & set(page.cells)


def test_names_are_escaped(text):
    page = Page(text)
    # Plotly's library, the drawing code, and each figure as data.
    scripts = [value for tag, name, value in page.attributes if tag == "script"]
    assert page.tags.count("script") == len(page.figures) + 2
    assert scripts == ["application/json"] * len(page.figures)
    for script in re.findall("<script[^>]*>", text.lower()):
        assert script in ("<script>", '<script type="application/json">')
    outside = re.sub("<script.*?</script>", "", text, flags=re.DOTALL)
    assert EVIL not in text
    assert (
        outside.count("&lt;script&gt;") >= 5
    )  # title, heading, note, entity, settings
    assert html.escape(EVIL) in outside
    # Plotly reads names as HTML: tags must not reach it.
    figures = json.dumps(page.figures)
    assert "<script" not in figures and "&lt;script&gt;" in figures


def test_the_table_shows_every_cell(text):
    cells = Page(text).cells
    expected = detection_table(RESULTS).frame.to_numpy().ravel().tolist()
    start = cells.index("teacher")
    assert cells[start : start + len(expected)] == expected


def test_entities_have_their_numbers_and_the_first_ones_are_unfolded(text):
    states = re.findall(
        r"<details( open)?><summary>(.*?)</summary>", text[text.index("<h2>Entities") :]
    )[: len(ENTITIES)]
    assert [html.unescape(name) for _, name in states] == [e.entity for e in ENTITIES]
    assert [bool(state) for state, _ in states] == [
        number < OPEN_ENTITIES for number in range(len(ENTITIES))
    ]
    row = RESULTS["entities"][0]
    assert f"{row['f1']:.3f}" in text and f"{row['tau']:.4g}" in text


def test_verdict_settings_versions_and_notes_are_there(text):
    assert html.escape(summarise(RESULTS)) in text
    assert "pooled τ" in text
    assert "&quot;jax&quot;: &quot;0.10.2&quot;" in text
    assert "&quot;seed&quot;: 3" in text
    assert "12,345 train rows" in text


def test_a_report_of_results_alone(tmp_path):
    results = {**RESULTS, "entities": [], "notes": [], "environment": {}}
    write_report(tmp_path / "r.html", results=results | {"settings": {}})
    text = (tmp_path / "r.html").read_text("utf-8")
    assert Page(text).tags.count("script") == 0 and len(text) < 100_000
    for absent in ("Learning curve", "Entities", "Settings", "Environment", "Notes"):
        assert f"<h2>{absent}" not in text


def test_a_report_without_labels(tmp_path):
    entities = [e._replace(labels=None, window_labels=None) for e in ENTITIES]
    results = make_results(entities, unlabelled_rows)
    results["dataset"]["positive_windows"] = None
    results["settings"] = {"seed": 11}
    timelines = [timeline._replace(labels=None) for timeline in TIMELINES[:1]]
    write_report(tmp_path / "r.html", results=results, timelines=timelines)
    text = (tmp_path / "r.html").read_text("utf-8")
    Page(text)
    assert "No F1 is defined on this test data" in text
    assert "Shaded" not in text
    assert "&quot;seed&quot;: 11" in text


def rate(entity, method, **changes):
    return {
        "model": "student", "entity": entity, "method": method, "used": True,
        "wanted": 0.01, "tau": 12.34567, "left_out": None, "clean_test": None,
    } | changes  # fmt: skip


def test_the_report_has_both_sections_between_results_and_curves(tmp_path):
    window = {"entity": "a", "part": "validation", "start": 3, "end": 12,
              "score": 4.5, "above": True}  # fmt: skip
    results = RESULTS | {
        "rates": [rate("a", "conformal")],
        "worst_training_windows": [window],
    }
    write_report(tmp_path / "r.html", results=results, history=HISTORY)
    text = (tmp_path / "r.html").read_text("utf-8")
    heads = re.findall("<h2>(.*?)</h2>", text)
    assert [head for head in heads if head in (
        "Results", "False alarms", "Most abnormal training windows", "Learning curve",
    )] == [
        "Results", "False alarms", "Most abnormal training windows", "Learning curve",
    ]  # fmt: skip
    assert "conformal (used)" in Page(text).cells and "validation" in Page(text).cells


def entity_parts(text):
    """The details of each entity."""
    inside = text[text.index("<h2>Entities") :].split("<details><summary><h2>")[0]
    return inside.split("<details")[1:]


def test_distributions_and_curves_stand_below_their_entity(text):
    parts = entity_parts(text)
    for words in ("share of windows above", "Precision and recall of"):
        assert words in parts[0] and words not in parts[2]
    assert ['class="pair"' in part for part in parts] == [True, True] + [False] * 3


def test_data_are_known_by_their_digests(text):
    cells = Page(text).cells
    assert cells[cells.index(f"train/{EVIL}") + 1] == "ab" * 32


def test_of_many_entities_the_first_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DRAWN_ENTITIES", 2)
    write_report(tmp_path / "r.html", results=RESULTS, timelines=TIMELINES)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "Figures of the first 2 of 5 entities." in text
    parts = entity_parts(text)
    drawn = ['class="plot"' in part for part in parts]
    assert drawn == [True, True, False, False, False]
    assert all("<table" in part for part in parts)


def test_training_rows_are_drawn_where_there_are_no_test_rows(tmp_path):
    results = make_results(ENTITIES[:2], unlabelled_rows)
    results["dataset"]["positive_windows"] = None
    training = Timeline("trained", None, None, {"student": np.ones(9)}, {})
    timelines = [TIMELINES[0], training._replace(what="Training window scores")]
    write_report(tmp_path / "r.html", results=results, timelines=timelines)
    parts = entity_parts((tmp_path / "r.html").read_text("utf-8"))
    assert "Window scores" in parts[0] and "Training window" not in parts[0]
    assert "Training window scores" in parts[1] and "labelled" not in parts[1]


def test_unlabelled_results_are_shares_of_windows_in_alarm(tmp_path):
    entities = [e._replace(labels=None, window_labels=None) for e in ENTITIES]
    results = make_results(entities, unlabelled_rows)
    results["dataset"]["positive_windows"] = None
    write_report(tmp_path / "r.html", results=results)
    text = (tmp_path / "r.html").read_text("utf-8")
    scores = np.concatenate([e.window_scores for e in ENTITIES])
    share = f"{np.mean(scores > 0.9):.2%}"
    assert Page(text).cells[:12] == [
        "Model", "Parameters", "Test windows in alarm",
        "teacher", "1,000", share, "student", "400", share, "random", "–", share,
    ]  # fmt: skip
    assert "No labels, so no number here measures how well" in text


def test_what_an_engineer_needs_comes_first_and_the_rest_is_folded(text):
    first, *folded = text.split("<details><summary><h2>")
    lines = re.findall("<p>(.*?)</p>", first.split('<div class="summary">')[1])
    taus = [
        row["tau"] for row in RESULTS["entities"] if row["threshold"] == "conformal"
    ]
    assert set(taus) == {0.9}
    assert lines[:3] == [
        " Alarms below are those of teacher.",
        "Threshold (conformal): an alarm where the window score is above τ = 0.9.",
        DECIDED.expected,
    ]
    heads = re.findall("<h2>(.*?)</h2>", first)
    assert heads == ["Events", "Alarms of teacher", "Notes"]
    assert [part.split("</h2>")[0] for part in folded] == [
        "Alarm management", "Summary", "Results", "Rows and events, means over entities",
        "Learning curve", "Entities", "Settings", "Environment", "Data",
    ]  # fmt: skip


def test_alarm_management_stands_beside_its_targets(text):
    """Three events in two hours, two of them at once; without times there is a reason."""
    cells = Page(text).cells
    start = cells.index("Measure")
    assert cells[start : start + 30] == [
        "Measure", "Value", "Target",
        "Events", "3", "",
        "Events a day", "36", "about 150, at most about 300",
        "Most in 24 hours", "3", "",
        "Most in an hour", "3", "30 in 99 % of hours",
        "Most in 10 minutes", "2", "10",
        "Time in flood", "0.00%", "below 1 %",
        "Chattering sources", "0", "0",
        "Standing, over 24 hours", "0", "below 5 on any day",
        "Of the ten most frequent sources", "100%", "1 % to 5 %",
    ]  # fmt: skip
    assert "Most frequent: a load 1, b load 1, d load 1." in text
    table = alarm_table(alarm_measures(EVENTS, span=(0, 60)))
    assert table.frame["Value"].tolist() == ["3", *"–" * 7, "100%"]
    assert "`seconds` is not given" in table.words
    crowd = MEASURES._replace(chattering=("a x", "b x", "c x", "d x"))
    assert alarm_table(crowd).frame["Value"][6] == "4 (a x, b x, c x)"


def test_recommendations_thresholds_and_events_are_lines(tmp_path):
    results = copy.deepcopy(RESULTS) | {
        "recommendation": {
            "model": "student",
            "text": "Recommended: student. And so on.",
        },
        "costs": {"student": {"numbers": 1482}},
    }
    for row in results["entities"]:
        row["tau"] = {"a": 0.25, "b": 7.0}.get(row["entity"], 1.0)
    nothing = Decided("student", "Expect none.", [], EVENTS[:0])
    write_report(tmp_path / "r.html", results=results, decided=nothing)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "<p>Recommended: student, 1,482 numbers.</p><p>Threshold" in text
    assert "above its entity&#x27;s τ, from 0.25 (a) to 7 (b).</p>" in text
    assert "student raises no alarm on test rows." in text


def test_events_lead_to_their_places(text):
    cells = Page(text).cells
    start = cells.index("Start")
    assert cells[start : start + 28] == [
        "Start", "End", "Entity", "Kind", "Severity", "Peak", "Channels",
        "3", "8", "a", "score", "2.5", "4", f"load, {EVIL}",
        "3", "8", "b", "score", "∞", "5", "load",
        "20", "22", "d", "score", "1.5", "21", "load",
    ]  # fmt: skip
    # Three windows of ten rows before and after; of the third no plot is there.
    links = re.findall('<a href="(.*?)" data-range="(.*?)">3</a>', text)
    assert links == [("#plot-0", "[0, 39]"), ("#plot-1", "[0, 39]")]


def test_dated_events_have_dates_as_their_places(tmp_path):
    time = np.datetime64("2024-03-01", "ns") + np.arange(60) * np.timedelta64(1, "h")
    decided = DECIDED._replace(timelines=[SIGNALS[0]._replace(time=time)])
    write_report(tmp_path / "r.html", results=RESULTS, decided=decided)
    text = html.unescape((tmp_path / "r.html").read_text("utf-8"))
    assert 'data-range="["2024-03-01 00:00:00", "2024-03-02 15:00:00"]">3</a>' in text


def test_of_many_events_the_most_severe_are_listed(tmp_path):
    count = MOST_EVENTS + 50
    many = EVENTS.iloc[[0] * count].assign(
        severity=np.random.default_rng(0).permutation(count) + 1.0, first=0, stop=1
    )
    # As a run has them: objects, and other kinds than score without a severity.
    many = many.assign(start=np.arange(count)).reset_index(drop=True).astype(object)
    many.loc[count - 1, "severity"] = np.nan
    decided = DECIDED._replace(events=many, timelines=[])
    write_report(tmp_path / "r.html", results=RESULTS, decided=decided)
    text = (tmp_path / "r.html").read_text("utf-8")
    listed = [int(n) for n in re.findall(r"<tr>\s*<td>(\d+)</td>\s*<td>8</td>", text)]
    ranks = many["severity"].fillna(np.inf).rank(ascending=False)
    assert listed == many["start"][ranks <= MOST_EVENTS].tolist()
    assert count - 1 in listed and "<td>–</td>" in text
    assert f"The {MOST_EVENTS} most severe of {count} events." in text


def test_tables_that_say_nothing_are_left_out(tmp_path):
    blank = [{**row, "mean": None} for row in interval_rows(RESULTS["entities"])]
    write_report(tmp_path / "r.html", results=RESULTS | {"intervals": blank})
    assert "95 % intervals" not in (tmp_path / "r.html").read_text("utf-8")


def test_the_markdown_table():
    results = copy.deepcopy(RESULTS)
    for row in results["rows"]:
        if row["model"] == "random":
            row["model"] = "a[bold]|b\n"
    text = markdown_section(detection_table(results)._replace(title=""))
    table, words = text.split("\n\n")
    lines = table.splitlines()
    assert lines[0].startswith("| Model | Parameters | oracle, pooled: P |")
    assert set(lines[1]) <= set("| -:") and words.startswith(
        markdown_text(caption(results))
    )
    cells = [line[2:-2].split(" | ") for line in lines[2:4]]
    assert cells == detection_table(results).frame.iloc[:2].to_numpy().tolist()
    assert lines[4].startswith("| a\\[bold]\\|b | – | ")


# Markdown, CSV and LaTeX.

PIPE = "<script>|x"


def make_plant(rows=result_rows, windows=4):
    results = make_results(
        [entity(name, i) for i, name in enumerate(["a", PIPE])], rows
    )
    results["dataset"] |= {"name": "plant", "positive_windows": windows}
    results |= {"notes": [f"{PIPE}: pooled τ"], "data": {"sha256": {"train/a": "ab12"}}}
    return results | {
        "environment": {"versions": {"jax": "0.10.2"}, "device": "cpu", "commit": None}
    }


PLANT = make_plant()


@pytest.fixture
def folder(tmp_path):
    write_texts(tmp_path, PLANT)
    return tmp_path


def test_four_files_are_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "entities.csv", "report.md", "results.csv", "results.tex",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["rows", "entities"])
def test_csv_holds_every_number(folder, name):
    file = {"rows": "results.csv", "entities": "entities.csv"}[name]
    table = pd.read_csv(folder / file, dtype=object, keep_default_na=False)
    rows = PLANT[name]
    assert len(table) == len(rows)
    assert list(table) == list(dict.fromkeys(key for row in rows for key in row))
    for line, row in zip(table.to_dict("records"), rows, strict=True):
        for key, cell in row.items():
            if cell is None:
                assert line[key] == ""
            elif isinstance(cell, dict):
                assert line[key] == "; ".join(f"{k}: {v}" for k, v in cell.items())
            elif isinstance(cell, float):
                assert float(line[key]) == cell  # to the last digit
            else:
                assert line[key] == str(cell)  # whole numbers stay whole


def test_rows_that_lack_a_column_are_empty_there():
    text = csv_lines([{"a": 1}, {"a": None, "b": 2.5}])
    assert text == "a,b\n1,\n,2.5\n"
    assert csv_lines([]).strip() == ""


def test_latex_holds_every_table(folder):
    text = (folder / "results.tex").read_text("utf-8")
    assert text == "\n".join(latex_section(table) for table in report_tables(PLANT))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 1


def test_markdown_says_what_the_page_says(folder):
    text = (folder / "report.md").read_text("utf-8")
    assert text == markdown_report(PLANT)
    assert text.startswith("# Anomaly detection on plant\n\n2 entities · 12,345 train")
    assert markdown_text(summarise(PLANT)) in text
    assert "- \\<script>\\|x: pooled τ" in text and "<script" not in text.replace(
        "\\<", ""
    )
    for table in report_tables(PLANT):
        assert markdown_section(table).strip() in text
    assert "| train/a | ab12 |" in text and "jax 0.10.2, device cpu" in text
    assert "`config.json`" in text and "`results.json`" in text


def test_results_alone_are_enough(tmp_path):
    results = copy.deepcopy(PLANT) | {"notes": [], "environment": {}}
    del results["data"]
    text = markdown_report(results)
    for absent in ("## Notes", "## Environment", "## Data"):
        assert absent not in text
    assert "\n\n\n" not in text


def test_data_without_labels(tmp_path):
    results = make_plant(unlabelled_rows, None)
    write_texts(tmp_path, results)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Test windows in alarm" in text and "No F1 is defined" in text
    table = pd.read_csv(io.StringIO((tmp_path / "results.csv").read_text("utf-8")))
    assert table["f1"].isna().all() and table["alarm_rate"].notna().any()


LINES = [[EVIL, "0.1", "–", "50%"], ["a_b|c\\d", "#1", "$5~^", "{x}\nτ"]]
HEADS = [("", "Model"), ("left|side", "P"), ("left|side", "R"), ("right", "F1")]
TABLE = Table(
    "Sizes & <counts>",
    pd.DataFrame(LINES, columns=pd.MultiIndex.from_tuples(HEADS)),
    "Of α ≤ 1.",
)


def test_markdown_can_be_read_back():
    lines = markdown_section(TABLE).splitlines()
    assert lines[0] == "## Sizes & <counts>" and lines[-1] == "Of α ≤ 1."
    table = [line for line in lines if line.startswith("|")]
    read = [
        [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)]
        for line in table
    ]
    assert read[0][1:-1] == ["Model", "left|side: P", "left|side: R", "right: F1"]
    assert read[1][1:-1] == ["---", "---:", "---:", "---:"]
    assert read[2][1:-1] == LINES[0]
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
    text = latex_section(TABLE)
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
        assert len(re.findall(r"(?<!\\)&", line)) == len(HEADS) - 1
    plain = re.sub(r"\\[{}$\\]", "", "\n".join(lines[2:]))
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[%#_~^]", plain)
    assert lines.count(r"\hline") == 3


@pytest.mark.parametrize("words", ["two\nlines", "100 % sure\r\nof it"])
def test_words_of_several_lines_stay_a_comment(words):
    lines = latex_section(TABLE._replace(words=words)).splitlines()
    assert lines[1] == f"% {' '.join(words.split())}"
    assert lines[2].startswith(r"\begin")
