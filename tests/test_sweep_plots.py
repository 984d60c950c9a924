"""A sweep's figures: where lines, cells and ticks lie, on degenerate input as well."""

import math
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from kdjax.experiment.sweeps.plots import (
    heat_map_fields,
    plot_curves,
    plot_heat_map,
    plot_parallel,
)
from kdjax.experiment.sweeps.scales import (
    LEAST_GAP,
    SPREAD,
    distinct,
    make_scale,
    place,
    side_by_side,
    ticks,
)
from kdjax.experiment.sweeps.tables import members_table

PNG = b"\x89PNG\r\n"
FIELDS = ["student.hidden", "distill.alpha", "train.learning_rate", "seed"]
NAN = math.nan
# Hidden widths, alpha, learning rate, seed; F1 on two entities; a reason to fail.
MEMBERS = [
    (("16", 0.0, 1e-4, 0), (0.1, 0.3), ""),
    (("4", 0.35, 1e-2, 0), (0.4, NAN), ""),
    (("64,64", 1.0, 1e-3, 0), (NAN, NAN), ""),
    (("16", 0.35, 1e-4, 1), (0.8, 0.8), ""),
    (("4", 1.0, 1e-4, 1), (NAN, 0.9), "loss is inf"),
    (("16", 0.35, 1e-4, 2), (0.5, 0.7), ""),
]


def table(members, fields=FIELDS, measure="f1"):
    rows = [
        {"member": f"{number:03d}", "entity": entity, "reason": reason, measure: f1}
        | {"status": "failed" if reason else "done"}
        | dict(zip(fields, values, strict=True))
        for number, (values, scores, reason) in enumerate(members)
        for entity, f1 in zip("ab", scores, strict=False)
    ]
    return members_table(rows, fields=fields, measures=[measure])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order."""
    figures = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def member_lines(axes):
    """Lines of members: the axes themselves stand upright."""
    return [line for line in axes.lines if len(set(line.get_xdata())) > 1]


# Axes.


@pytest.mark.parametrize(
    ("values", "kind", "low", "high"),
    [
        ([1, 2, 50], "linear", 1, 50),
        ([1e-4, 1e-2], "log", 1e-4, 1e-2),  # two decades are enough
        ([1e-4, 0.99e-2], "linear", 1e-4, 0.99e-2),
        ([0.0, 1e-4, 1.0], "linear", 0, 1),  # no logarithm of 0
        ([-100, 1000], "linear", -100, 1000),
        ([3], "linear", 3, 3),
        ([], "categories", 0, 0),
        (["8", "16"], "categories", 0, 1),
        ([1.0, math.inf], "categories", 0, 1),
        ([16, "auto", "none"], "categories", 0, 2),
    ],
)
def test_the_axis_of_a_column(values, kind, low, high):
    scale = make_scale(pd.Series(values))
    assert scale[:3] == (kind, low, high)


def test_texts_of_numbers_are_in_order_and_others_as_they_come():
    texts = ["16", "8", "64,64", "128", "8", "64"]
    assert distinct(pd.Series(texts)) == ["8", "16", "64", "64,64", "128"]
    assert distinct(pd.Series(["z", "a", "8", "z"])) == ["z", "a", "8"]
    assert distinct(pd.Series([3, 1, 2, 1])) == [1, 2, 3]


def test_places_on_each_kind_of_axis():
    def places(values):
        return place(make_scale(pd.Series(values)), pd.Series(values))

    np.testing.assert_allclose(places([0, 0.35, 1]), [0, 0.35, 1])
    np.testing.assert_allclose(places([1e-4, 1e-3, 1e-2]), [0, 0.5, 1])
    np.testing.assert_allclose(places(["16", "4", "64,64", "8"]), [2 / 3, 0, 1, 1 / 3])
    np.testing.assert_allclose(places([7, 7]), [0.5, 0.5])
    np.testing.assert_allclose(places(["a"]), [0.5])


def test_members_of_one_value_lie_side_by_side():
    places = np.array([0.0, 0.5, 0.5, 0.5, 1.0, 0.5])
    moved = side_by_side(places, np.array([3.0, 0.2, NAN, 0.9, 1.0, 0.1]))
    assert moved[[0, 4]].tolist() == [0, 1]
    ascending = moved[[2, 5, 1, 3]]  # NaN lowest
    assert (np.diff(ascending) > 0).all()
    assert np.ptp(np.diff(ascending)) < 1e-12
    assert np.mean(ascending) == pytest.approx(0.5)


def test_many_members_of_near_values_stay_apart():
    places = np.repeat([0.0, 0.01, 1.0], 500)
    moved = side_by_side(places, np.arange(1500.0))
    assert moved[:500].max() < moved[500:1000].min()
    assert np.abs(moved - places).max() <= SPREAD
    alone = np.linspace(0, 1, 7)
    np.testing.assert_array_equal(side_by_side(alone, np.zeros(7)), alone)


def test_ticks_are_the_values_where_they_fit():
    found = ticks(make_scale(pd.Series([4, 8, 16, 32])))
    assert [text for _, text in found] == ["4", "8", "16", "32"]
    np.testing.assert_allclose([at for at, _ in found], [0, 1 / 7, 3 / 7, 1])
    assert ticks(make_scale(pd.Series(["b", "a"]))) == [(0, "b"), (1, "a")]


@pytest.mark.parametrize("values", [np.geomspace(1e-5, 3e-1, 40), [0, 0.001, 1]])
def test_other_ticks_are_round_and_apart(values):
    scale = make_scale(pd.Series(values))
    found = ticks(scale)
    at = [where for where, _ in found]
    assert len(at) > 3 and (np.diff(at) > LEAST_GAP).all()
    assert 0 <= min(at) and max(at) <= 1
    # A text stands where its number lies.
    numbers = pd.Series([float(text) for _, text in found])
    np.testing.assert_allclose(place(scale, numbers), at)


def test_of_many_texts_only_some_are_written():
    found = ticks(make_scale(pd.Series([f"v{i}" for i in range(100)])))
    assert 10 < len(found) <= 24 and found[1] == (pytest.approx(5 / 99), "v5")


# Parallel coordinates.


def test_a_line_a_member_through_its_values(drawn):
    assert plot_parallel(table(MEMBERS), fields=FIELDS, measure="f1").startswith(PNG)
    axes, bar = drawn[0].axes
    lines = member_lines(axes)
    assert len(lines) == len(MEMBERS)
    hidden = {"4": 0, "16": 0.5, "64,64": 1}
    means = [0.2, 0.4, NAN, 0.8, NAN, 0.6]  # over entities; none of the failed one
    for line, (values, _, reason), mean in zip(lines, MEMBERS, means, strict=True):
        text, alpha, rate, seed = values
        expected = [hidden[text], alpha, (math.log10(rate) + 4) / 2, seed / 2]
        shown = line.get_ydata()
        np.testing.assert_allclose(shown[:4], expected, atol=SPREAD)
        np.testing.assert_array_equal(line.get_xdata()[:4], range(4))
        if math.isnan(mean):
            assert line.get_linestyle() == ("--" if reason else ":")
            assert line.get_xdata()[-1] < 4 and shown[-1] == shown[-2]
            red, green, blue = matplotlib.colors.to_rgb(line.get_color())
            assert max(red, green, blue) - min(red, green, blue) < 0.1  # grey
        else:
            assert line.get_xdata()[-1] == 4
            assert shown[-1] == pytest.approx((mean - 0.2) / 0.6)
            assert line.get_linestyle() == "-"
    colors = {to_hex(lines[i].get_color()) for i in (0, 1, 3, 5)}
    assert len(colors) == 4
    assert bar.get_ylim() == pytest.approx((0.2, 0.8))
    assert "matplotlib.pyplot" not in sys.modules


def test_axes_carry_their_names_and_values(drawn):
    plot_parallel(table(MEMBERS), fields=FIELDS, measure="f1")
    axes = drawn[0].axes[0]
    texts = {}
    for text in axes.texts:
        texts.setdefault(text.xy[0], []).append((text.xy[1], text.get_text()))
    assert texts[0] == [
        (0, "4"), (0.5, "16"), (1, "64,64"), (1, "student.\nhidden"),
    ]  # fmt: skip
    assert texts[1][:3] == [(0, "0"), (0.35, "0.35"), (1, "1")]
    assert [text for _, text in texts[2]] == [
        "0.0001", "0.001", "0.01", "train.\nlearning_rate",
    ]  # fmt: skip
    assert texts[4] == [(1, "f1")]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["failed: 1", "no finite f1: 1"]


def test_the_bar_is_as_high_as_the_axes_it_stands_beside(drawn):
    """The height at which a line ends is read off the bar."""
    plot_parallel(table(MEMBERS), fields=FIELDS, measure="f1")
    axes, bar = drawn[0].axes
    for share, number in ((0, 0.2), (0.5, 0.5), (1, 0.8)):
        end = axes.transData.transform((4, share))
        scale = bar.transData.transform((0, number))
        assert end[1] == pytest.approx(scale[1], abs=0.5)
        assert end[0] == pytest.approx(bar.get_window_extent().x0, abs=0.5)


def test_a_measure_over_decades_is_logarithmic(drawn):
    members = [(("4", 0, 1, 0), (loss,), "") for loss in (1e-3, 1e-2, 1e-1)]
    plot_parallel(table(members), fields=FIELDS, measure="f1")
    axes, bar = drawn[0].axes
    ends = [line.get_ydata()[-1] for line in member_lines(axes)]
    np.testing.assert_allclose(ends, [0, 0.5, 1])
    assert bar.get_yscale() == "log" and axes.get_legend() is None


DEGENERATE = [
    [],
    [(("4", 0, 1, 0), (0.5,), "")],
    [(("4", 0, 1, 0), (NAN,), "")],
    [(("4", 0, 1, 0), (math.inf,), "")],
    [(("4", 0, 1, 0), (NAN,), "failed")],
    [(("$\\frac{", 0, 1, 0), (0.0,), ""), (("a" * 200, 0, 1, 0), (0.0,), "")],
    [(("4", 0, 1, 0), (-1e300,), ""), (("4", 0, 1e300, 0), (1e300,), "")],
    [(("4", 1e-38, 1, 0), (1e-38,), ""), (("8", 3e38, 1, 0), (3e38,), "")],
]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("members", DEGENERATE)
def test_degenerate_sweeps(members, theme):
    frame = table(members)
    picture = plot_parallel(frame, fields=FIELDS, measure="f1", theme=theme)
    assert picture.startswith(PNG)
    if members:
        rows, columns = FIELDS[:2]
        picture = plot_heat_map(
            frame, rows=rows, columns=columns, measure="f1", theme=theme
        )
        assert picture.startswith(PNG)


def test_one_field_is_enough(drawn):
    frame = table([((0,), (0.5,), ""), ((1,), (NAN,), "bad")], fields=["seed"])
    assert plot_parallel(frame, fields=["seed"], measure="f1").startswith(PNG)
    assert len(member_lines(drawn[0].axes[0])) == 2


# Heat maps.

GRID = [
    (("16", 0.0, 1, 0), (0.1, 0.3), ""),
    (("16", 0.0, 1, 1), (0.6,), ""),
    (("4", 0.5, 1, 0), (0.5,), ""),
    (("4", 1.0, 1, 0), (NAN,), "failed"),
    (("4", 0.0, 1, 0), (math.inf,), ""),
    (("4", 0.0, 1, 1), (0.7,), ""),
]


def test_cells_are_means_over_members(drawn):
    pair = {"rows": "student.hidden", "columns": "distill.alpha"}
    assert plot_heat_map(table(GRID), **pair, measure="f1").startswith(PNG)
    axes, bar = drawn[0].axes
    (image,) = axes.images
    # Rows 4, 16; columns 0, 0.5, 1. Infinite numbers would hide the others of a cell.
    expected = [[0.7, 0.5, NAN], [0.4, NAN, NAN]]
    np.testing.assert_allclose(image.get_array().filled(NAN), expected)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row): a failed member shows a dash, no member nothing.
    assert texts == {(0, 0): "0.7", (1, 0): "0.5", (2, 0): "–", (0, 1): "0.4"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["4", "16"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.5", "1"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == tuple(pair.values())
    assert axes.get_ylim()[0] < axes.get_ylim()[1]  # the least row at the bottom
    assert bar.get_ylim() == pytest.approx((0.4, 0.7))
    assert bar.get_ylabel() == "f1"


def test_texts_stand_out_from_their_cells(drawn):
    plot_heat_map(
        table(GRID), rows="student.hidden", columns="distill.alpha", measure="f1"
    )
    inks = {text.get_text(): text.get_color() for text in drawn[0].axes[0].texts}
    assert inks["0.4"] == "white" and inks["0.7"] == "black"


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


# Curves.


def test_a_thin_line_a_phase(drawn):
    history = [
        {"phase": f"student.{k}", "epoch": e, "step": 9 * e, "validation_loss": k / e}
        for k in (1, 2)
        for e in (2, 1)
    ]
    history += [{"phase": "student.1", "epoch": 3, "loss": 1.0, "train_loss": 1.0}]
    history += [{"phase": "student.3", "epoch": 1, "validation_loss": None}]
    history += [{"phase": "student.2", "epoch": 3, "validation_loss": math.inf}]
    assert plot_curves(history).startswith(PNG)
    (axes,) = drawn[0].axes
    one, two = axes.lines
    assert (list(one.get_xdata()), list(one.get_ydata())) == ([1, 2], [1, 0.5])
    assert list(two.get_ydata()[:2]) == [2, 1] and math.isnan(two.get_ydata()[2])
    assert [line.get_label() for line in axes.lines] == ["student.1", "student.2"]
    assert one.get_linewidth() < 1 and axes.get_yscale() == "log"


@pytest.mark.parametrize(
    "losses", [[], [0.0], [NAN, 1.0], [math.inf], [-1.0], [1.0], [1e-38, 3e38]]
)
def test_degenerate_curves(losses):
    history = [
        {"phase": "a", "epoch": e, "validation_loss": loss}
        for e, loss in enumerate(losses)
    ]
    assert plot_curves(history, theme="dark").startswith(PNG)


def test_pictures_are_written(tmp_path):
    frame, path = table(MEMBERS), tmp_path / "below" / "p.png"
    assert plot_parallel(frame, path, fields=FIELDS, measure="f1") == path.read_bytes()
    pair = {"rows": "seed", "columns": "distill.alpha"}
    plot_heat_map(frame, path.with_name("h.svg"), **pair, measure="f1")
    plot_curves([], path.with_name("c.svg"))
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "c.svg", "h.svg", "p.png",
    ]  # fmt: skip
    assert b"<svg" in path.with_name("h.svg").read_bytes()
