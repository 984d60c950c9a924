"""The shapes of a timeline: bars where events are, curves where scores are, τ between."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.evaluation import strips
from kdjax.evaluation.strips import (
    UNITS,
    WIDTH,
    Drawing,
    add_lane,
    add_panel,
    bars,
    curve,
    peaks,
    row_edges,
    short,
    spans,
)

EDGES = np.linspace(0, 1, 6)  # of five rows


def points_of(path):
    """Absolute points of a path of `curve`, a list for each stretch of the line."""
    stretches = []
    for start, steps in re.findall(r"M([\d -]+)l([\d -]+)", path):
        place = np.array([int(n) for n in start.split()])
        moves = np.array([int(n) for n in re.findall(r"-?\d+", steps)]).reshape(-1, 2)
        stretches.append([tuple(p) for p in place + np.cumsum([[0, 0], *moves], 0)])
    return stretches


def shape(drawing, style):
    """The `d` of all paths of a class."""
    pattern = rf'<path class="{style}" d="([^"]*)"/>'
    return [d for text in drawing.shapes for d in re.findall(pattern, text)]


def texts(drawing):
    """Text -> its place in CSS pixels."""
    pattern = r'top:(-?\d+)px">(.*?)</span>'
    return {
        t: int(top) for part in drawing.texts for top, t in re.findall(pattern, part)
    }


def test_bars_lie_over_their_rows():
    path = bars([(1, 3), (4, 5)], EDGES, top=2, height=9)
    assert path == "M2000 8H6000v36H2000zM8000 8H10000v36H8000z"
    assert bars([], EDGES, top=0, height=1) == ""


def test_a_lane_has_a_name_that_is_text():
    drawing = add_lane(Drawing(), "<b>", [(0, 1)], EDGES, style="c1")
    assert shape(drawing, "event c1") == [f"M0 {3 * UNITS}H2000v{9 * UNITS}H0z"]
    assert texts(drawing) == {"&lt;b&gt;": 0}
    assert drawing.height == 14
    assert texts(add_lane(drawing, "next", [], EDGES, style="c2"))["next"] == 14


def test_curves_leave_gaps_where_there_is_no_score():
    down = np.array([40.4, 8.0, np.nan, 12.0, 20.0])
    path = curve(EDGES[:-1], down)
    assert points_of(path) == [[(0, 40), (2000, 8)], [(6000, 12), (8000, 20)]]
    assert curve(EDGES[:1], np.array([np.nan])) == ""
    assert points_of(curve(EDGES[:1], np.array([7.0]))) == [[(0, 7), (0, 7)]]


def test_a_panel_is_logarithmic_and_has_tau_at_its_height():
    scores = np.array([1.0, 10.0, 100.0, 1000.0, 10.0])
    drawing = add_panel(Drawing(height=14), scores, 100.0, EDGES, style="c0")
    (line,) = points_of(shape(drawing, "curve c0")[0])
    assert [x for x, _ in line] == [0, 2000, 4000, 6000, 8000]
    y = np.array([down for _, down in line])
    # Equal ratios are equally far apart, and more is higher.
    assert np.diff(y)[:3] == pytest.approx(np.diff(y)[0], abs=1) and y[1] < y[0]
    assert y[4] == y[1]
    assert shape(drawing, "tau") == [f"M0 {y[2]}h{WIDTH}"]
    assert texts(drawing)["τ 100"] == pytest.approx(y[2] / UNITS, abs=0.6)
    assert texts(drawing)["10"] == pytest.approx(y[1] / UNITS, abs=0.6)
    assert "100" not in texts(drawing)  # τ stands there
    # One of them is under τ's text, but its line is drawn.
    assert f"M0 {y[2]}h{WIDTH}" in shape(drawing, "grid")
    assert 14 * UNITS < y.min() and y.max() < drawing.height * UNITS


def test_zero_infinite_and_missing_scores_stay_in_the_panel():
    scores = np.array([0.0, 1.0, math.inf, math.nan, 2.0])
    drawing = add_panel(Drawing(), scores, 5.0, EDGES, style="c0")
    first, second = points_of(shape(drawing, "curve c0")[0])
    (tau,) = shape(drawing, "tau")
    top = int(tau.split()[1].split("h")[0])
    assert second[0][0] == 8000  # the fourth row is a gap
    zero, one, infinite = (y for _, y in first)
    assert 0 <= infinite < top < one <= zero <= drawing.height * UNITS


def test_long_curves_keep_their_peaks():
    scores = np.ones(50_000)
    scores[31_415] = 100.0
    edges = row_edges(None, len(scores))
    drawing = add_panel(Drawing(), scores, 5.0, edges, style="c0")
    (line,) = points_of(shape(drawing, "curve c0")[0])
    assert len(line) == strips.MAX_POINTS
    x, _ = min(line, key=lambda point: point[1])
    assert x == pytest.approx(
        WIDTH * 31_415 / 50_000, abs=WIDTH / strips.MAX_POINTS + 1
    )


@pytest.mark.parametrize("threshold", [5.0, 0.0, -1.0, math.inf, math.nan, 1e-300])
@pytest.mark.parametrize(
    "scores",
    [[], [0.0], [math.nan] * 3, [math.inf], [3.0], [1e-38, 3e38], [2.0, 2.0]],
)
def test_degenerate_panels(scores, threshold):
    edges = row_edges(None, len(scores))
    drawing = add_panel(Drawing(), np.array(scores), threshold, edges, style="c0")
    everything = "".join(drawing.shapes)
    assert "nan" not in everything and "inf" not in everything
    has_place = math.isfinite(threshold) and threshold > 0
    levels = [int(d.split()[1].split("h")[0]) for d in shape(drawing, "tau")]
    assert len(levels) == has_place
    assert all(0 <= level <= drawing.height * UNITS for level in levels)
    for line in points_of(shape(drawing, "curve c0")[0]):
        assert all(0 <= y <= drawing.height * UNITS for _, y in line)


def test_rows_lie_where_their_time_is():
    second = np.timedelta64(1, "s")
    time = np.datetime64("2024-01-01", "ns") + np.array([0, 1, 2, 7]) * second
    assert row_edges(time, 4).tolist() == [0, 0.125, 0.25, 0.875, 1]
    assert row_edges(None, 4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert row_edges(np.array([5.0]), 1).tolist() == [0, 1]
    assert row_edges(np.array([5.0, 5.0]), 2).tolist() == [0, 0, 1]
    assert row_edges(None, 0).tolist() == [0]


def test_numbers_beside_an_axis_are_short():
    assert [short(n) for n in (1e6, 123456.0, 0.0014, 1.5e-7)] == [
        "1e+06", "123000", "0.0014", "1.5e-07",
    ]  # fmt: skip


@given(
    st.lists(st.one_of(st.floats(), st.just(math.nan)), max_size=60), st.integers(1, 20)
)
@settings(deadline=None)
def test_peaks_keep_the_largest_score(scores, bins):
    first, top = peaks(np.array(scores, dtype=np.float64), bins=bins)
    assert len(first) == len(top) == min(len(scores), bins)
    known = [score for score in scores if not math.isnan(score)]
    assert np.isnan(top).all() if not known else np.nanmax(top) == max(known)


@given(st.lists(st.booleans(), max_size=30))
@settings(deadline=None)
def test_spans_cover_the_labels(labels):
    rebuilt = np.zeros(len(labels), dtype=bool)
    runs = spans(np.array(labels, dtype=bool))
    for start, stop in runs:
        rebuilt[start:stop] = True
    assert rebuilt.tolist() == labels
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


@given(st.lists(st.one_of(st.integers(0, 900), st.just(None)), min_size=1, max_size=40))
@settings(deadline=None)
def test_curves_can_be_read_back(down):
    values = np.array([math.nan if y is None else y for y in down], np.float64)
    across = np.linspace(0, 1, len(down))
    read = [point for line in points_of(curve(across, values)) for point in line]
    x = np.round(across * WIDTH).astype(int)
    expected = {(a, y) for a, y in zip(x.tolist(), down, strict=True) if y is not None}
    assert set(read) == expected
