"""A page of a report: one file, nothing fetched, only its own scripts, all escaped."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from kdjax.evaluation.page import (
    SAME_X,
    Link,
    Section,
    figure_html,
    json_html,
    notes_html,
    plain,
    render_page,
    table_html,
    words_html,
)

EVIL = "</script><script>alert('x')</script>\"&"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, attributes, cells and figures of a page whose tags must be nested rightly."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.stack = [], [], [], []
        self.figures = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.stack.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.stack[-1] if self.stack else ("", {})
        if tag in ("td", "th", "a"):
            self.cells[-1] += data
        if tag == "script" and attributes.get("type") == "application/json":
            self.figures.append(json.loads(data))


FRAME = pd.DataFrame(
    [[EVIL, "0.1", None], ["b" * 99, float("nan"), "1"]],
    columns=pd.MultiIndex.from_tuples([("", "Model"), ("<g>", "P"), ("<g>", "P")]),
)


def page_of(*figures):
    sections = [Section(EVIL, figure_html(figure, EVIL)) for figure in figures]
    sections.append(Section("Table", table_html(FRAME, EVIL)))
    return render_page(title=EVIL, sections=[*sections, Section("Nothing", "")])


def scatter():
    return go.Figure(go.Scatter(y=[1.0, 3.0, 2.0], name=plain(EVIL)))


@pytest.fixture(scope="module")
def text():
    return page_of(scatter(), go.Figure(go.Heatmap(z=np.ones((2, 3)))))


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_fetched(text):
    page = Page(text)
    (policy,) = (
        v for _, name, v in page.attributes if name == "content" and "src" in v
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("form-action") == "'none'"
    assert rules.pop("base-uri") == "'none'" and rules.pop("img-src") == "data: blob:"
    assert rules.pop("style-src") == "'unsafe-inline'"
    scripts = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = [f"'sha256-{base64.b64encode(one).decode()}'" for one in digests]
    assert rules.pop("script-src").split() == allowed and len(allowed) == 2
    assert not rules
    outside = re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)
    for address in ("http:", "https:", "@import", "url(", "src=", 'href="h'):
        assert address not in outside
    assert "sendChartToCloud" in scripts[1]  # the button that would upload is removed


def test_plotly_is_inside_once_and_only_with_figures(text):
    assert text.count("plotly.js v") == 1
    assert len(Page(text).figures) == 2
    without = page_of()
    assert "Plotly" not in without and "<script" not in without
    assert "script-src" not in without


def test_sections_without_content_are_left_out(text):
    assert "Nothing" not in text
    heads = [html.unescape(head) for head in re.findall("<h2>(.*?)</h2>", text)]
    assert heads == [EVIL, EVIL, "Table"]
    assert "<h2>" not in render_page(title="t", sections=[Section("", "<p>x</p>")])


def test_everything_is_escaped(text):
    page = Page(text)
    assert EVIL not in text and page.tags.count("script") == 4
    assert html.escape(EVIL) in text
    for made in (words_html(EVIL), notes_html([EVIL]), json_html({EVIL: EVIL})):
        assert "<script" not in made
        Page(made)
    # Plotly reads texts as HTML.
    assert page.figures[0]["data"][0]["name"] == html.escape(EVIL, quote=False)
    assert "</script" not in figure_html(go.Figure(layout={"title": EVIL})).split(
        "</script>"
    )[0].removesuffix("</script")


def test_names_for_plotly_are_one_line_and_cut():
    assert plain("a\nb  <i>&") == "a b &lt;i&gt;&amp;"
    assert plain("<" * 9, most=3) == "&lt;&lt;…"
    assert plain("abc", most=3) == "abc"


def test_a_figure_has_the_style_of_the_page():
    figure = scatter()
    before = figure.to_json()
    found = Page(figure_html(figure, "caption")).figures[0]
    assert figure.to_json() == before
    layout = found["layout"]["template"]["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0, 0, 0, 0)"
    assert "min-height:450px" in figure_html(figure)
    assert "min-height:99px" in figure_html(figure.update_layout(height=99))
    assert "figcaption" not in figure_html(figure)


def test_tables_show_every_cell_whole():
    page = Page(table_html(FRAME))
    assert page.cells == [
        "", "<g>", "Model", "P", "P", EVIL, "0.1", "–", "b" * 99, "–", "1",
    ]  # fmt: skip
    assert ("th", "colspan", "2") in page.attributes
    flat = pd.DataFrame({"a": ["x"]})
    assert Page(table_html(flat)).cells == ["a", "x"]
    assert table_html(flat, "words").endswith('<p class="soft">words</p>')
    assert table_html(flat).endswith("</div>")


def test_lines_lead_to_stretches_of_figures():
    links = [None, Link('"<a>', 3, 9.5)]
    text = table_html(FRAME, links=links)
    page = Page(text)
    assert page.cells[5] == EVIL and page.cells[8] == "b" * 99
    found = {(name, value) for tag, name, value in page.attributes if tag == "a"}
    assert found == {("href", '#"<a>'), ("data-range", "[3, 9.5]")}
    assert page.tags.count("a") == 1 and "<script" not in text
    named = Page(figure_html(scatter(), name='"<a>')).attributes
    assert ("figure", "id", '"<a>') in named


def test_a_shared_axis_is_in_the_file_once():
    dates = np.datetime64("2024-03-01") + np.arange(3)
    for x in (np.arange(3.0), dates, ["a", "b", "c"]):
        lines = [go.Scatter(x=x, y=x, name="a"), go.Scatter(x=x, y=[1, 2, 3])]
        other = [go.Scatter(x=x[:2], y=[1, 2]), go.Scatter(y=[1, 2])]
        (figure,) = Page(figure_html(go.Figure([*lines, *lines, *other]))).figures
        kept = [trace.get("x", "none") for trace in figure["data"]]
        assert kept[1:4] == [SAME_X] * 3 and SAME_X not in (kept[0], kept[4])
        assert kept[5] == "none"
    assert f'trace.x === "{SAME_X}"' in page_of(scatter())  # the script undoes it


def test_folded_sections_have_their_heading_to_click_on():
    sections = [Section("Open", "<p>a</p>"), Section("Shut", "<p>b</p>", folded=True)]
    text = render_page(title="t", sections=sections)
    assert re.findall("<details.*?</details>", text, re.DOTALL) == [
        "<details><summary><h2>Shut</h2></summary>\n<p>b</p>\n</details>"
    ]
    Page(text)


def test_nothing_makes_nothing():
    assert words_html("") == notes_html([]) == json_html({}) == json_html(None) == ""


def test_light_dark_and_small_screens(text):
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert text.count('<div class="scroll"><table') == text.count("<table ") == 1


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.integration
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_without_a_complaint(text, tmp_path, width):
    """A real one without a network: what its console says, and what it draws."""
    (tmp_path / "page.html").write_text(text, "utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
            "--v=0", f"--window-size={width},2000", f"--user-data-dir={tmp_path}/user",
            "--virtual-time-budget=10000", "--dump-dom", f"--screenshot={tmp_path}/shot.png",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr and "Content Security" not in done.stderr
    assert done.stdout.count('class="modebar-container"') == 2
    assert done.stdout.count('class="cartesianlayer"') >= 2
    assert "Share" not in done.stdout.split("</main>")[0]
