"""Quality against costs: which costs are drawn, and which numbers."""

import numpy as np
import pandas as pd
import pytest

from kdjax.experiment.sweeps import frontier
from kdjax.experiment.sweeps.frontier import costs_that_differ, plot_frontier
from kdjax.experiment.sweeps.report import write_sweep_report
from kdjax.experiment.sweeps.tables import members_table

FIELDS = ("student.hidden", "distill.alpha", "seed")
MEASURES = ("parameters", "bytes", "milliseconds", "f1_conformal")


def line(number, entity, hidden, alpha, seed, f1, status="done"):
    return {
        "member": f"{number:03d}", "entity": entity, "status": status,
        "reason": "" if status == "done" else "diverged",
        "student.hidden": str(hidden), "distill.alpha": alpha, "seed": seed,
        "parameters": 10 * hidden, "bytes": 100 * hidden + seed,
        "milliseconds": 0.1 * hidden, "f1_conformal": f1,
    }  # fmt: skip


@pytest.fixture
def members():
    lines, number = [], 0
    for hidden in (4, 16):
        for alpha in (0.0, 0.35):
            for seed in (0, 1):
                for place, entity in enumerate("ab"):
                    f1 = hidden / 32 + alpha / 10 + seed / 100 + place / 5
                    lines.append(line(number, entity, hidden, alpha, seed, f1))
                number += 1
    lines.append(line(number, "a", 64, 0.0, 0, None, status="failed"))
    return members_table(lines, fields=FIELDS, measures=MEASURES)


@pytest.fixture
def drawn(monkeypatch):
    """Draws; gives the axes instead of a picture."""

    def draw(members, fields=FIELDS):
        figures = []
        monkeypatch.setattr(
            frontier, "saved", lambda figure, *_: figures.append(figure)
        )
        plot_frontier(members, fields=fields, measure="f1_conformal")
        return figures[0].axes

    return draw


def test_only_costs_that_differ_are_drawn(members, drawn):
    assert costs_that_differ(members) == ["parameters", "bytes", "milliseconds"]
    unknown = members.assign(milliseconds=np.nan)
    assert costs_that_differ(unknown) == ["parameters", "bytes"]
    assert len(drawn(unknown)) == 2
    # Files of one shape differ in their metadata: that is no frontier.
    same = members[members["student.hidden"] == "4"]
    assert same["bytes"].nunique() == 2 and costs_that_differ(same) == []


def test_dots_are_members_and_lines_their_means(members, drawn):
    axes = drawn(members)
    assert [a.get_xscale() for a in axes] == ["log"] * 3
    dots, curve = axes[0].lines[:2]  # α = 0
    np.testing.assert_allclose(sorted(dots.get_xdata()), [40, 40, 160, 160])
    np.testing.assert_allclose(
        sorted(dots.get_ydata()), [4 / 32 + 0.1, 4 / 32 + 0.11, 0.6, 0.61]
    )
    np.testing.assert_allclose(curve.get_xdata(), [40, 160])
    np.testing.assert_allclose(curve.get_ydata(), [4 / 32 + 0.105, 0.605])
    assert axes[0].lines[3].get_ydata()[0] == pytest.approx(4 / 32 + 0.035 + 0.105)
    labels = [text.get_text() for text in axes[-1].get_legend().get_texts()]
    assert labels == ["alpha 0", "alpha 0.35"] or labels == ["alpha 0.0", "alpha 0.35"]
    np.testing.assert_allclose(axes[1].lines[1].get_xdata(), [400.5, 1600.5])


def test_members_of_one_kind_need_no_legend(members, drawn):
    one = members[members["distill.alpha"] == 0]
    axes = drawn(one)
    assert axes[-1].get_legend() is None and len(axes[0].lines) == 2


@pytest.mark.parametrize("shapes", [1, 2])
def test_the_report_has_the_figure_where_shapes_differ(members, tmp_path, shapes):
    if shapes == 1:
        members = members[members["student.hidden"] == "4"]
    write_sweep_report(
        tmp_path / "r.html", name="x", members=pd.DataFrame(members), fields=FIELDS,
        measures=MEASURES, measure="f1_conformal",
    )  # fmt: skip
    assert ("Quality against size" in (tmp_path / "r.html").read_text()) == (
        shapes == 2
    )
