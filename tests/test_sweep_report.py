"""A sweep's report: one file, all escaped, true to the members; what its figures show."""

import html
import itertools
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from kdjax.experiment.sweeps.report import (
    MOST_CELLS,
    UNFOLDED_ROWS,
    costs_that_differ,
    distinct,
    heat_map_fields,
    members_table,
    plot_fields,
    plot_frontier,
    plot_heat_map,
    summary_text,
    write_sweep_report,
)

NAN = math.nan
SWEPT = ["student.hidden", "distill.alpha", "train.learning_rate", "seed"]
# Hidden widths, alpha, learning rate, seed; F1 on two entities; a reason to fail.
MEMBERS = [
    (("16", 0.0, 1e-4, 0), (0.1, 0.3), ""),
    (("4", 0.35, 1e-2, 0), (0.4, NAN), ""),
    (("64,64", 1.0, 1e-3, 0), (NAN, NAN), ""),
    (("16", 0.35, 1e-4, 1), (0.8, 0.8), ""),
    (("4", 1.0, 1e-4, 1), (NAN, 0.9), "loss is inf"),
    (("16", 0.35, 1e-4, 2), (0.5, 0.7), ""),
]


def table(members, fields=SWEPT):
    rows = [
        {"member": f"{number:03d}", "entity": entity, "reason": reason, "f1": f1}
        | {"status": "failed" if reason else "done"}
        | dict(zip(fields, values, strict=True))
        for number, (values, scores, reason) in enumerate(members)
        for entity, f1 in zip("ab", scores, strict=False)
    ]
    return members_table(rows, fields)


def test_texts_of_numbers_are_in_order_and_others_as_they_come():
    texts = ["16", "8", "64,64", "128", "8", "64"]
    assert distinct(pd.Series(texts)) == ["8", "16", "64", "64,64", "128"]
    assert distinct(pd.Series(["z", "a", "8", "z"])) == ["z", "a", "8"]
    assert distinct(pd.Series([3, 1, 2, 1])) == [1, 2, 3]


# The measure over each field.


def test_a_panel_a_field_and_a_dot_a_member():
    figure = plot_fields(table(MEMBERS), fields=SWEPT, measure="f1")
    assert len(figure.data) == len(SWEPT)
    # Members 0, 1, 3 and 5 have a mean over entities; one failed, one has no number.
    hidden, alpha, rate, seed = ([*panel.x] for panel in figure.data)
    for panel in figure.data:
        np.testing.assert_allclose(panel.y, [0.2, 0.4, 0.8, 0.6])
    axis = figure.layout.xaxis
    assert [axis.ticktext[place] for place in hidden] == ["16", "4", "16", "16"]
    assert (axis.tickvals, axis.ticktext) == ((0, 1), ("4", "16"))
    assert alpha == [0, 0.35, 0.35, 0.35] and seed == [0, 0, 1, 2]
    assert rate == [1e-4, 1e-2, 1e-4, 1e-4]
    axes = [figure.layout[f"xaxis{n}"] for n in ("", 2, 3, 4)]
    assert [axis.title.text for axis in axes] == SWEPT
    # Only positive numbers two decades apart are on a logarithmic axis.
    assert [axis.type for axis in axes] == [None, None, "log", None]
    text = "member: 003<br>student.hidden: 16<br>distill.alpha: 0.35<br>"
    text += "train.learning_rate: 0.0001<br>seed: 1<br>f1: 0.8"
    assert {panel.text[2] for panel in figure.data} == {text}


DEGENERATE = [
    [(("4", 0, 1, 0), (0.5,), "")],
    [(("4", 0, 1, 0), (NAN,), "")],
    [(("4", 0, 1, 0), (math.inf,), "")],
    [(("4", 0, 1, 0), (NAN,), "failed")],
    [(("<b>", 0, 1, 0), (0.0,), ""), (("a" * 200, 0, 1, 0), (0.0,), "")],
    [(("4", 0, 1, 0), (-1e300,), ""), (("4", 0, 1e300, 0), (1e300,), "")],
    [(("4", 1e-38, 1, 0), (1e-38,), ""), (("8", 3e38, 1, 0), (3e38,), "")],
]


@pytest.mark.parametrize("members", DEGENERATE)
def test_degenerate_sweeps(members):
    frame = table(members)
    figure = plot_fields(frame, fields=SWEPT, measure="f1")
    finite = sum(math.isfinite(f1) for _, (f1,), _ in members)
    assert [len(panel.x) for panel in figure.data] == [finite] * 4
    assert "<b>" not in figure.to_json()
    pair = {"rows": SWEPT[0], "columns": SWEPT[1]}
    figure = plot_heat_map(frame, **pair, measure="f1")
    assert np.shape(figure.data[0].z)[0] == frame[SWEPT[0]].nunique()


def test_one_field_is_enough():
    frame = table([((0,), (0.5,), ""), ((1,), (NAN,), "bad")], fields=["seed"])
    (panel,) = plot_fields(frame, fields=["seed"], measure="f1").data
    assert ([*panel.x], [*panel.y]) == ([0], [0.5])


# Quality against costs.

COST_FIELDS = ("student.hidden", "distill.alpha", "seed")


def cost_line(number, entity, hidden, alpha, seed, f1, status="done"):
    return {
        "member": f"{number:03d}", "entity": entity, "status": status,
        "reason": "" if status == "done" else "diverged",
        "student.hidden": str(hidden), "distill.alpha": alpha, "seed": seed,
        "parameters": 10 * hidden, "bytes": 100 * hidden + seed,
        "milliseconds": 0.1 * hidden, "f1_conformal": f1,
    }  # fmt: skip


@pytest.fixture
def shapes():
    lines, number = [], 0
    for hidden, alpha, seed in itertools.product((4, 16), (0.0, 0.35), (0, 1)):
        for place, entity in enumerate("ab"):
            f1 = hidden / 32 + alpha / 10 + seed / 100 + place / 5
            lines.append(cost_line(number, entity, hidden, alpha, seed, f1))
        number += 1
    lines.append(cost_line(number, "a", 64, 0.0, 0, None, status="failed"))
    return members_table(lines, COST_FIELDS)


def test_only_costs_that_differ_are_drawn(shapes):
    assert costs_that_differ(shapes) == ["parameters", "bytes", "milliseconds"]
    unknown = shapes.assign(milliseconds=np.nan)
    assert costs_that_differ(unknown) == ["parameters", "bytes"]
    figure = plot_frontier(unknown, fields=COST_FIELDS, measure="f1_conformal")
    assert len(figure.data) == 2 * 2 * 2
    # Files of one shape differ in their metadata: that is no frontier.
    same = shapes[shapes["student.hidden"] == "4"]
    assert same["bytes"].nunique() == 2 and costs_that_differ(same) == []


def test_dots_are_members_and_lines_their_means(shapes):
    figure = plot_frontier(shapes, fields=COST_FIELDS, measure="f1_conformal")
    assert {figure.layout[f"xaxis{n}"].type for n in ("", 2, 3)} == {"log"}
    dots, curve, _, of_bytes = figure.data[:4]  # α = 0
    np.testing.assert_allclose(sorted(dots.x), [40, 40, 160, 160])
    expected = [4 / 32 + 0.1, 4 / 32 + 0.11, 0.6, 0.61]
    np.testing.assert_allclose(sorted(dots.y), expected)
    np.testing.assert_allclose(curve.x, [40, 160])
    np.testing.assert_allclose(curve.y, [4 / 32 + 0.105, 0.605])
    np.testing.assert_allclose(of_bytes.x, [400.5, 1600.5])
    assert figure.data[7].y[0] == pytest.approx(4 / 32 + 0.035 + 0.105)
    legend = [own.name for own in figure.data if own.showlegend]
    assert legend == ["alpha 0", "alpha 0.35"]


def test_members_of_one_kind_need_no_legend(shapes):
    one = shapes[shapes["distill.alpha"] == 0]
    figure = plot_frontier(one, fields=COST_FIELDS, measure="f1_conformal")
    assert len(figure.data) == 2 * 3 and not any(own.showlegend for own in figure.data)


def test_the_report_has_the_figure_where_shapes_differ(shapes, tmp_path):
    one = shapes[shapes["student.hidden"] == "4"]
    for frame, drawn in ((shapes, True), (one, False)):
        path, options = tmp_path / "r.html", {"name": "x", "measure": "f1_conformal"}
        write_sweep_report(path, members=frame, fields=COST_FIELDS, **options)
        assert ("Quality against size" in path.read_text("utf-8")) == drawn


# Heat maps.

GRID = [
    (("16", 0.0, 1, 0), (0.1, 0.3), ""),
    (("16", 0.0, 1, 1), (0.6,), ""),
    (("4", 0.5, 1, 0), (0.5,), ""),
    (("4", 1.0, 1, 0), (NAN,), "failed"),
    (("4", 0.0, 1, 0), (math.inf,), ""),
    (("4", 0.0, 1, 1), (0.7,), ""),
]


def test_cells_are_means_over_members():
    pair = {"rows": "student.hidden", "columns": "distill.alpha"}
    figure = plot_heat_map(table(GRID), **pair, measure="f1")
    (image,) = figure.data
    # Rows 4, 16; columns 0, 0.5, 1. Infinite numbers would hide the others of a cell.
    expected = [[0.7, 0.5, NAN], [0.4, NAN, NAN]]
    np.testing.assert_allclose(np.array(image.z, float), expected)
    # A failed member shows a dash, no member nothing.
    assert np.array(image.text).tolist() == [["0.7", "0.5", "–"], ["0.4", "", ""]]
    assert figure.layout.yaxis.ticktext == ("4", "16")
    assert figure.layout.xaxis.ticktext == ("0", "0.5", "1")
    titles = (figure.layout.yaxis.title.text, figure.layout.xaxis.title.text)
    assert titles == tuple(pair.values())
    assert image.colorbar.title.text == "f1"


def test_the_two_fields_with_the_most_values():
    def fields(*columns):
        names = [f"g{i}" for i in range(len(columns) - 1)] + ["seed"]
        rows = list(zip(*columns, strict=True))
        frame = table([(row, (0.5,), "") for row in rows], names)
        return heat_map_fields(frame, names)

    assert fields([1, 2, 1, 2], [1, 2, 3, 4], [1, 2, 3, 3], [1, 2, 3, 4]) == (
        "g2", "g1",
    )  # fmt: skip
    assert fields([1, 2], ["a", "b"], [5, 6], [1, 2]) == ("g1", "g0")
    assert fields([1, 1], [1, 2], [1, 2]) is None
    assert fields([1, 2]) is None


# The page.

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "source"}
FIELDS = ["student.hidden", "distill.alpha", "seed"]
MEASURES = ["validation_loss", "f1_oracle", "parameters"]


class Page(HTMLParser):
    """Headings and rows, and a check that tags are nested rightly."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.stack = [], []
        self.heads, self.rows, self.summaries = [], [], []
        self.figures = text.count("<figure>")
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
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
            row = {"member": f"{number:03d}", "entity": entity, "reason": ""}
            row |= {"status": "failed", "reason": bad} if failed else {"status": "done"}
            row |= dict(zip(FIELDS, values, strict=True))
            if not failed:
                row |= {"validation_loss": 0.01 * (number + 1)}
                row |= {"f1_oracle": None if place else 0.1 + 0.05 * number}
                row |= {"parameters": 12345}
            rows.append(row)
    return members_table(rows, FIELDS)


PLANT = make_members()
HISTORY = [
    {"phase": f"{EVIL} {k}", "epoch": e, "step": e, "train_loss": 1.0}
    | {"validation_loss": k / e}
    for k in (1, 2, 3)
    for e in (1, 2)
]


def write(folder, members=PLANT, fields=FIELDS, **changes):
    """The report's text, without the scripts that follow its content."""
    path = folder / "report.html"
    given = {"name": EVIL, "members": members, "fields": fields, "measure": "f1_oracle"}
    write_sweep_report(path, **given | changes)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8").split("</main>")[0] + "</main></body></html>"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("sweep"),
        settings={"data": {"path": EVIL}, "student": {"epochs": 3}},
        history=HISTORY,
        notes=[f"note on {EVIL}"],
        environment={"versions": {"jax": "0.10.2"}, "device": EVIL},
    )


def test_nothing_is_fetched(text):
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and "url(" not in text
    page = Page(text)
    assert page.figures == 3  # fields, heat map and curves
    assert not [
        v for _, name, v in page.attributes if name in ("src", "srcset", "href")
    ]


def test_texts_are_escaped(text):
    scripts = text.lower().count("<script")
    assert scripts == text.count('<script type="application/json">') == 3
    # Title, heading, note, failures, members, settings, environment.
    assert text.count("&lt;script&gt;alert(") >= 7
    assert Page(text).heads[0] == f"Sweep {EVIL}"


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
    shown = html.unescape(text)
    assert "note on" in text and "Solid: training" in text
    assert '"epochs": 3' in shown and '"jax": "0.10.2' in shown


def test_the_summary_shows_every_cell_with_its_measure_first(text):
    rows = Page(text).rows
    names = ["f1_oracle", "validation_loss", "parameters"]
    cells = summary_text(PLANT, fields=FIELDS, measures=names)
    assert rows[: len(cells) + 1] == [list(cells), *cells.to_numpy().tolist()]
    # F1 is defined on one of two entities: 0.1 and 0.15, deviation 0.03536.
    assert rows[1] == [
        "4", "0", "2", "0", "0.125 ± 0.035", "0.0150 ± 0.0071", "12,345 ± 0",
    ]  # fmt: skip
    assert rows[4][:5] == ["16", "1", "1", "1", "0.4"]
    assert "f1_oracle is undefined in 7 of 14 rows of done members" in text


def test_failures_have_their_reasons(text):
    rows = Page(text).rows
    start = rows.index(["member", *FIELDS, "entity", "reason"])
    assert rows[start + 1 : start + 3] == [
        ["007", "16", "1", "1", entity, EVIL] for entity in ("press", EVIL)
    ]


def test_each_member_and_entity_has_its_numbers(text):
    page = Page(text)
    names = ["f1_oracle", "validation_loss", "parameters"]
    start = page.rows.index(["member", "entity", "status", *FIELDS, *names])
    rows = page.rows[start + 1 :]
    assert len(rows) == len(PLANT)
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


def test_seeds_alone_need_no_heat_map(tmp_path):
    members = make_members(hidden=("4",), alphas=(0.5,), seeds=3, bad="")
    page = Page(write(tmp_path, members.drop(columns=FIELDS[:2]), fields=["seed"]))
    assert page.figures == 1
    assert page.rows[1][:3] == ["3", "0", "0.150 ± 0.050"]


def test_a_field_of_too_many_values_has_no_heat_map(tmp_path):
    alphas = [i / MOST_CELLS for i in range(MOST_CELLS + 1)]
    members = make_members(alphas=alphas, seeds=1)
    assert heat_map_fields(members, FIELDS) is None
    page = Page(write(tmp_path, members))
    assert page.figures == 1
    # And a long table of members is folded.
    assert len(page.rows) > UNFOLDED_ROWS
    assert ("details", "open", None) not in page.attributes
    fewer = make_members(alphas=alphas[1:], seeds=1)
    assert heat_map_fields(fewer, FIELDS) == ("student.hidden", "distill.alpha")


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
    text = write(tmp_path, PLANT.rename(columns=names), fields, measure=EVIL)
    scripts = text.lower().count("<script")
    assert scripts == text.count('<script type="application/json">') == 2
    assert f"{EVIL} by a{EVIL} and student.hidden" in Page(text).heads
