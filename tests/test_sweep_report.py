"""A sweep's report: one file, nothing fetched, all escaped, true to the members."""

import base64
import html
import itertools
import math
from html.parser import HTMLParser

import pytest

from kdjax.experiment.sweeps.report import MOST_CELLS, UNFOLDED_ROWS, write_sweep_report
from kdjax.experiment.sweeps.tables import members_table, summary_cells

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "source"}
FIELDS = ["student.hidden", "distill.alpha", "seed"]
MEASURES = ["validation_loss", "f1_oracle", "parameters"]


class Page(HTMLParser):
    """Tags, attributes, headings and rows, and a check that tags are nested rightly."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.stack = [], [], []
        self.heads, self.rows, self.summaries = [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.stack.append(tag)
        if tag in ("h1", "h2"):
            self.heads.append("")
        if tag == "summary":
            self.summaries.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        inside = self.stack[-1] if self.stack else ""
        if inside in ("td", "th"):
            self.rows[-1][-1] += data
        if inside in ("h1", "h2"):
            self.heads[-1] += data
        if inside == "summary":
            self.summaries[-1] += data


def make_members(hidden=("4", "16"), alphas=(0.0, 1.0), seeds=2, bad=EVIL):
    """Members on entities `press` and EVIL; the last one failed for a `bad` reason."""
    grid = list(itertools.product(hidden, alphas, range(seeds)))
    rows = []
    for number, values in enumerate(grid):
        failed = number == len(grid) - 1 and bad
        for place, entity in enumerate(("press", EVIL)):
            row = {"member": f"{number:03d}", "entity": entity}
            row |= {"status": "failed", "reason": bad} if failed else {"status": "done"}
            row |= dict(zip(FIELDS, values, strict=True))
            if not failed:
                row |= {"validation_loss": 0.01 * (number + 1), "parameters": 12345}
                row |= {"f1_oracle": None if place else 0.1 + 0.05 * number}
            rows.append(row)
    return members_table(rows, fields=FIELDS, measures=MEASURES)


MEMBERS = make_members()
HISTORY = [
    {"phase": f"{EVIL} {k}", "epoch": e, "step": e, "train_loss": 1.0}
    | {"validation_loss": k / e}
    for k in (1, 2, 3)
    for e in (1, 2)
]


def write(folder, members=MEMBERS, fields=FIELDS, **changes):
    """The report's text."""
    settings = {"fields": fields, "measures": MEASURES, "measure": "f1_oracle"}
    path = folder / "report.html"
    write_sweep_report(
        path, **{"name": EVIL, "members": members} | settings | changes
    )  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("sweep"),
        settings={"data": {"path": EVIL}, "student": {"epochs": 3}},
        history=HISTORY,
        notes=[f"note on {EVIL}"],
        environment={"versions": {"jax": "0.10.2"}, "device": EVIL},
    )


def test_nothing_is_fetched_and_no_script_runs(text):
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and "url(" not in text
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    sources = [v for _, name, v in page.attributes if name in ("src", "srcset", "href")]
    # Parallel coordinates, heat map and curves in two themes.
    assert len(sources) == len(set(sources)) == 6
    for source in sources:
        head, data = source.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")


def test_texts_are_escaped(text):
    assert "<script" not in text.lower() and "'x'" not in text
    # Title, heading, note, failures, members, settings, environment.
    assert text.count(html.escape(EVIL)) >= 7


def test_sections_in_order(text):
    assert Page(text).heads == [
        f"Sweep {EVIL}", "Notes", "Summary", "Failed members", "Members",
        "f1_oracle by distill.alpha and student.hidden", "Learning curves",
        "All numbers", "Base settings", "Environment",
    ]  # fmt: skip
    assert (
        "8 members · 1 failed · 2 entities · swept: student.hidden, distill.alpha, seed"
        in text
    )
    assert "note on" in text and "of 3 phases" in text
    assert "&quot;epochs&quot;: 3" in text and "&quot;jax&quot;: &quot;0.10.2" in text


def test_the_summary_shows_every_cell_with_its_measure_first(text):
    rows = Page(text).rows
    names = ["f1_oracle", "validation_loss", "parameters"]
    cells = summary_cells(MEMBERS, fields=FIELDS, measures=names)
    assert rows[: len(cells.lines) + 1] == [
        list(line) for line in (cells.heads, *cells.lines)
    ]
    # F1 is defined on one of two entities: 0.1 and 0.15, deviation 0.03536.
    assert rows[1] == [
        "4", "0", "2", "0", "0.125 ± 0.035", "0.0150 ± 0.0071", "12,345 ± 0",
    ]  # fmt: skip
    assert rows[4][:5] == ["16", "1", "1", "1", "0.4"]
    assert "f1_oracle is undefined in 7 of 14 rows of done members" in text


def test_failures_have_their_reasons(text):
    rows = Page(text).rows
    head = ["member", *FIELDS, "entity", "reason"]
    start = rows.index(head)
    assert rows[start + 1 : start + 3] == [
        ["007", "16", "1", "1", entity, EVIL] for entity in ("press", EVIL)
    ]


def test_each_member_and_entity_has_its_numbers(text):
    page = Page(text)
    names = ["f1_oracle", "validation_loss", "parameters"]
    start = page.rows.index(["member", "entity", "status", *FIELDS, *names])
    rows = page.rows[start + 1 :]
    assert len(rows) == len(MEMBERS)
    assert rows[2] == [
        "001", "press", "done", "4", "0", "1", "0.15", "0.02", "12,345",
    ]  # fmt: skip
    assert rows[3][6] == "–" and rows[-1][2] == "failed"
    assert page.summaries == ["Each member and entity: 16 rows"]
    assert ("details", "open", None) in page.attributes


def test_a_report_of_members_alone(tmp_path):
    page = Page(write(tmp_path, make_members(bad=""), name="quick"))
    assert page.heads == [
        "Sweep quick", "Summary", "Members",
        "f1_oracle by distill.alpha and student.hidden", "All numbers",
    ]  # fmt: skip


def test_without_a_validation_loss_there_are_no_curves(tmp_path):
    lines = [{"phase": "a", "epoch": 1, "train_loss": 1.0, "validation_loss": None}]
    assert "Learning curves" not in Page(write(tmp_path, history=lines)).heads


def test_seeds_alone_need_no_heat_map(tmp_path):
    members = make_members(hidden=("4",), alphas=(0.5,), seeds=3, bad="")
    page = Page(write(tmp_path, members, fields=["seed"]))
    assert page.tags.count("figure") == 1
    assert page.rows[1][:3] == ["3", "0", "0.150 ± 0.050"]


def test_a_heat_map_too_wide_to_read_is_said(tmp_path):
    alphas = [i / MOST_CELLS for i in range(MOST_CELLS + 1)]
    text = write(tmp_path, make_members(alphas=alphas, seeds=1))
    page = Page(text)
    assert page.tags.count("figure") == 1
    assert f"No heat map: more than {MOST_CELLS} values of distill.alpha." in text
    # And a long table of members is folded.
    assert len(page.rows) > UNFOLDED_ROWS
    assert ("details", "open", None) not in page.attributes


def test_a_sweep_without_labels_or_without_success(tmp_path):
    members = make_members().assign(f1_oracle=math.nan)
    page = Page(write(tmp_path, members))
    assert page.rows[1][4] == "–"
    failed = members.assign(status="failed", reason="loss", validation_loss=math.nan)
    page = Page(write(tmp_path, failed))
    assert page.rows[1] == ["4", "0", "0", "2", "–", "–", "–"]


def test_names_of_columns_are_escaped(tmp_path):
    names = {"f1_oracle": EVIL, "distill.alpha": f"a{EVIL}"}
    fields = [names.get(field, field) for field in FIELDS]
    text = write(
        tmp_path,
        MEMBERS.rename(columns=names),
        fields,
        measures=["validation_loss", EVIL, "parameters"],
        measure=EVIL,
    )
    assert "<script" not in text.lower() and "'x'" not in text
    assert f"{EVIL} by a{EVIL} and student.hidden" in Page(text).heads
