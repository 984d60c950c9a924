"""The report: one file, nothing fetched, everything escaped, and true to results."""

import base64
import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kdjax.evaluation.plots import Distribution, Timeline
from kdjax.evaluation.report import OPEN_ENTITIES, write_report
from kdjax.evaluation.report_tables import false_alarm_section, training_section
from kdjax.evaluation.rows import (
    EntityScores,
    per_entity_rows,
    result_rows,
    unlabelled_rows,
)
from kdjax.evaluation.tables import table_cells
from kdjax.evaluation.verdict import verdict

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "source", "br", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text, with a check that tags are nested rightly."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.stack = [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.stack.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("td", "th"):
            self.cells[-1] += data


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
        "entities": [row for m in models for row in per_entity_rows(m, entities)],
        "environment": {"versions": {"jax": "0.10.2"}, "device": EVIL},
        "notes": [f"{EVIL}: pooled τ"],
    }  # fmt: skip


ENTITIES = [entity(name, i) for i, name in enumerate(["a", "b", EVIL, "d", "e"])]
RESULTS = make_results(ENTITIES)
TIMELINES = [
    Timeline(e.entity, None, e.labels, {"teacher": e.scores}, {"teacher": 0.9})
    for e in ENTITIES
]
HISTORY = [
    {"phase": EVIL, "epoch": e, "step": e, "loss": 1.0, "train_loss": 1 / e}
    for e in (1, 2)
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path,
        results=RESULTS,
        history=HISTORY,
        timelines=TIMELINES,
        config={"data": {"path": EVIL}, "seed": 3},
    )
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def test_nothing_is_fetched_and_no_script_runs(text):
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and "url(" not in text
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    sources = [v for _, name, v in page.attributes if name in ("src", "srcset", "href")]
    # Two themes of the learning curve and of each timeline.
    assert len(sources) == 2 * (1 + len(TIMELINES))
    for source in sources:
        head, data = source.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")


def test_names_are_escaped(text):
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;") >= 5  # title, heading, note, entity, settings
    assert html.escape(EVIL) in text


def test_the_table_shows_every_cell(text):
    cells = Page(text).cells
    expected = [cell for line in table_cells(RESULTS).lines for cell in line]
    start = cells.index("teacher")
    assert cells[start : start + len(expected)] == expected


def test_entities_have_their_numbers_and_the_first_ones_are_unfolded(text):
    states = re.findall(r"<details( open)?><summary>(.*?)</summary>", text)
    assert [html.unescape(name) for _, name in states] == [e.entity for e in ENTITIES]
    assert [bool(state) for state, _ in states] == [
        number < OPEN_ENTITIES for number in range(len(ENTITIES))
    ]
    row = RESULTS["entities"][0]
    assert f"{row['f1']:.3f}" in text and f"{row['tau']:.4g}" in text


def test_verdict_settings_versions_and_notes_are_there(text):
    assert html.escape(verdict(RESULTS)) in text
    assert "pooled τ" in text
    assert "&quot;jax&quot;: &quot;0.10.2&quot;" in text
    assert "&quot;seed&quot;: 3" in text
    assert "12,345 train rows" in text


def test_light_dark_and_small_screens(text):
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert text.count('<div class="scroll"><table>') == text.count("<table>") > 0


def test_a_report_of_results_alone(tmp_path):
    results = {**RESULTS, "entities": [], "notes": [], "environment": {}}
    write_report(tmp_path / "r.html", results=results)
    text = (tmp_path / "r.html").read_text("utf-8")
    Page(text)
    for absent in ("Learning curve", "Entities", "Settings", "Environment", "Notes"):
        assert f"<h2>{absent}" not in text


def test_a_report_without_labels(tmp_path):
    entities = [e._replace(labels=None, window_labels=None) for e in ENTITIES]
    results = make_results(entities, unlabelled_rows)
    results["dataset"]["positive_windows"] = None
    results["config"] = {"seed": 11}
    timelines = [timeline._replace(labels=None) for timeline in TIMELINES[:1]]
    write_report(tmp_path / "r.html", results=results, timelines=timelines)
    text = (tmp_path / "r.html").read_text("utf-8")
    Page(text)
    assert "No F1 is defined on this test data" in text
    assert "shaded" not in text
    assert "&quot;seed&quot;: 11" in text


# False alarms and training rows.


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
    section = false_alarm_section(
        [
            rate(EVIL, "budget", drift=drifted),
            rate(EVIL, "pot", used=False, tau=None, left_out=few, clean_test=none),
            rate("b", "fixed", wanted=0.0, drift=drifted | {"drifted": False}),
            rate("b", "conformal", model="teacher"),
        ]
    )
    page = Page(section)
    interval = "(0.1%–5.7%)"
    assert page.cells == [
        "Entity", "Rule", "τ", "Wanted", "Left-out calibration", "95 %", "Clean test",
        "95 %", "Drift",
        EVIL, "budget (used)", "12.35", "1.00%", "1.25%", interval, "–", "", "yes",
        EVIL, "pot", "–", "1.00%", "too few windows", "", "–", "", "–",
        "b", "fixed (used)", "12.35", "0.00%", "1.25%", interval, "–", "", "no",
    ]  # fmt: skip
    assert "<script" not in section and section.startswith("<h2>False alarms</h2>")


def test_without_rates_of_the_student_there_is_no_section():
    assert false_alarm_section([]) == ""
    assert false_alarm_section([rate("a", "pot", model="teacher")]) == ""
    assert training_section([]) == ""


def test_the_most_abnormal_training_windows():
    window = {"entity": EVIL, "part": "fit", "start": "2024-01-01T00:00:00",
              "end": 17, "score": 12345.678, "above": True}  # fmt: skip
    section = training_section([window, window | {"score": None, "above": False}])
    assert Page(section).cells == [
        "Entity", "Part", "From", "To", "Window score", "Above τ",
        EVIL, "fit", "2024-01-01T00:00:00", "17", "1.235e+04", "yes",
        EVIL, "fit", "2024-01-01T00:00:00", "17", "inf", "no",
    ]  # fmt: skip
    assert "<script" not in section and "data.exclude" in section


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


def test_distributions_stand_below_their_entity(tmp_path):
    random = np.random.default_rng(2)
    distributions = [
        Distribution(e.entity, random.random(30), e.window_scores, e.window_labels, 0.9)
        for e in ENTITIES[:2]
    ]
    write_report(
        tmp_path / "r.html", results=RESULTS, timelines=TIMELINES,
        distributions=distributions,
    )  # fmt: skip
    text = (tmp_path / "r.html").read_text("utf-8")
    Page(text)
    parts = text.split("<details")[1:]
    shown = ["Window scores of" in part for part in parts]
    assert shown == [True, True, False, False, False]
    assert "share of windows above" in parts[0]


def test_training_rows_are_drawn_where_there_are_no_test_rows(tmp_path):
    results = make_results(ENTITIES[:2], unlabelled_rows)
    results["dataset"]["positive_windows"] = None
    training = [Timeline("trained", None, None, {"student": np.ones(9)}, {})]
    write_report(
        tmp_path / "r.html", results=results, timelines=TIMELINES[:1], training=training
    )
    parts = (tmp_path / "r.html").read_text("utf-8").split("<details")[1:]
    assert "Row scores" in parts[0] and "Training row scores" not in parts[0]
    assert "Training row scores" in parts[1] and "shaded" not in parts[1]


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
    assert "No labels, so nothing here says how well" in text
