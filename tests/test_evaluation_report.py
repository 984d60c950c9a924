"""The report: one file, nothing fetched, everything escaped, and true to results."""

import base64
import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from kdjax.evaluation import report
from kdjax.evaluation.plots import Distribution, Ranking
from kdjax.evaluation.report import OPEN_ENTITIES, write_report
from kdjax.evaluation.rows import (
    EntityScores,
    per_entity_rows,
    result_rows,
    unlabelled_rows,
)
from kdjax.evaluation.summary import summarise
from kdjax.evaluation.tables import table_cells
from kdjax.evaluation.timelines import Heat, Timeline

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "source", "input"}


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

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

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
        "data": {"sha256": {f"train/{EVIL}": "ab" * 32}},
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
        HEAT,
    )
    for e in ENTITIES
]
RANKINGS = [
    Ranking(e.entity, e.window_labels, {EVIL: e.window_scores}, {EVIL: 0.9})
    for e in ENTITIES[:2]
]
DISTRIBUTIONS = [
    Distribution(e.entity, e.scores, e.window_scores, e.window_labels, 0.9)
    for e in ENTITIES[:2]
]
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
        history=HISTORY,
        timelines=TIMELINES,
        distributions=DISTRIBUTIONS,
        rankings=RANKINGS,
        config={"data": {"path": EVIL}, "seed": 3},
    )
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path


@pytest.fixture(scope="module")
def text(written):
    return written.read_text("utf-8")


def test_nothing_is_fetched_and_no_script_runs(text):
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and "url(" not in text
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    sources = [v for _, name, v in page.attributes if name in ("src", "srcset", "href")]
    # A heat map in each timeline; the learning curve, two distributions and two curves
    # in two themes.
    assert len(sources) == len(TIMELINES) + 2 * 5
    for source in sources:
        head, data = source.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    ((policy,),) = [
        [v for _, name, v in page.attributes if name == "content" and "-src" in v]
    ]
    assert policy.startswith("default-src 'none'; ") and "script" not in policy


def test_each_switch_belongs_to_its_own_timeline(text):
    attributes = Page(text).attributes
    names = [v for tag, name, v in attributes if (tag, name) == ("input", "name")]
    places = [v for tag, name, v in attributes if (tag, name) == ("input", "id")]
    assert len(set(names)) == len(TIMELINES) and len(set(places)) == len(places)


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the report in")
def test_a_browser_opens_it_without_a_complaint(written, tmp_path):
    """A real one: what it shows, what its console says, and that it lays the page out."""
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
            "--v=0", "--window-size=390,844", f"--user-data-dir={tmp_path}",
            f"--screenshot={tmp_path}/shot.png", "--dump-dom", written.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr and "Content Security" not in done.stderr
    shown = Page(done.stdout)
    assert shown.tags.count("svg") == len(TIMELINES)
    assert not set(shown.tags) & {"script", "link"}
    assert html.escape(summarise(RESULTS), quote=False) in done.stdout


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
    assert html.escape(summarise(RESULTS)) in text
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


def test_distributions_and_curves_stand_below_their_entity(text):
    parts = text.split("<details")[1:]
    for words in ("Scores of a", "share of windows above", "Precision and recall on"):
        assert words in parts[0] and words not in parts[2]
    assert ['class="pair"' in part for part in parts] == [True, True] + [False] * 3


def test_data_are_known_by_their_digests(text):
    cells = Page(text).cells
    assert cells[cells.index(f"train/{EVIL}") + 1] == "ab" * 32


def test_a_frontier_is_shown_where_one_was_drawn(tmp_path):
    for picture, shown in ((None, False), (b"\x89PNG here", True)):
        write_report(tmp_path / "r.html", results=RESULTS, frontier=picture)
        text = (tmp_path / "r.html").read_text("utf-8")
        assert ("<h2>Frontier</h2>" in text) is shown
        assert (base64.b64encode(b"\x89PNG here").decode() in text) is shown


def test_of_many_entities_the_first_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DRAWN_ENTITIES", 2)
    write_report(tmp_path / "r.html", results=RESULTS, timelines=TIMELINES)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "Pictures of the first 2 of 5 entities." in text
    parts = text.split("<details")[1:]
    assert ["<svg" in part for part in parts] == [True, True, False, False, False]
    assert all("<table" in part for part in parts)


def test_training_rows_are_drawn_where_there_are_no_test_rows(tmp_path):
    results = make_results(ENTITIES[:2], unlabelled_rows)
    results["dataset"]["positive_windows"] = None
    training = [Timeline("trained", None, None, {"student": np.ones(9)}, {})]
    write_report(
        tmp_path / "r.html", results=results, timelines=TIMELINES[:1], training=training
    )
    parts = (tmp_path / "r.html").read_text("utf-8").split("<details")[1:]
    assert "Row scores" in parts[0] and "Training row scores" not in parts[0]
    assert "Training row scores" in parts[1] and "labelled" not in parts[1]


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
