"""The report: one file, nothing fetched, everything escaped, and true to results."""

import base64
import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kdjax.evaluation.plots import Timeline
from kdjax.evaluation.report import OPEN_ENTITIES, write_report
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
