"""Figures: what is drawn, on degenerate input as well."""

import itertools
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from kdjax.data.series import Series
from kdjax.data.times import TimeForm
from kdjax.evaluation import plots
from kdjax.evaluation.page import COLORS
from kdjax.evaluation.plots import (
    AROUND,
    MAX_BINS,
    MOST_CHANNELS,
    Heat,
    Timeline,
    distribution_figure,
    learning_curve_figure,
    learning_curve_png,
    model_colors,
    precision_recall,
    precision_recall_figure,
    row_bins,
    row_spans,
    score_timeline,
    timeline_figure,
    timeline_words,
)
from kdjax.evaluation.rows import EntityScores

EVIL = "<script>alert('x')</script>\"&"
PNG = b"\x89PNG\r\n"


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


def epochs(phase, count, scale=1.0):
    steps = [
        {"phase": phase, "epoch": e, "step": e * 10, "loss": 9.0}
        for e in range(1, count + 1)
    ]
    ends = [
        line | {"train_loss": scale / line["epoch"], "validation_loss": scale}
        for line in steps
    ]
    return [line for pair in zip(steps, ends, strict=True) for line in pair]


HISTORY = epochs("teacher", 8) + epochs("student", 3, 2.0) + epochs("student_alone", 3)


def test_learning_curve_draws_epoch_ends_solid_and_dashed(drawn):
    assert learning_curve_png(HISTORY).startswith(PNG)
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == [
        "teacher: MSE(X_T, X), training",
        "teacher: MSE(X', X), validation",
        "student: L_S of Eq. 2, training",
        "student: MSE(X', X), validation",
        "student_alone: L_S with α = 0, training",
        "student_alone: MSE(X', X), validation",
    ]
    teacher = lines["teacher: MSE(X_T, X), training"]
    assert list(teacher.get_xdata()) == list(range(1, 9))
    assert list(teacher.get_ydata()) == [1 / e for e in range(1, 9)]
    assert list(lines["student: MSE(X', X), validation"].get_ydata()) == [2.0] * 3
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"] * 3


def test_a_single_epoch_shows_markers(drawn):
    learning_curve_png(epochs("teacher", 1))
    assert [line.get_marker() for line in drawn[0].axes[0].lines] == ["o", "D"]


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"phase": "teacher", "epoch": 1, "step": 1, "loss": 1.0}],
        [{"phase": "x", "epoch": 1, "train_loss": None, "validation_loss": 0.0}],
        [{"phase": "x", "epoch": 1, "train_loss": math.inf, "validation_loss": 1.0}],
        [{"phase": "x", "epoch": 1, "validation_loss": math.nan}],
    ],
)
def test_learning_curve_of_degenerate_histories(history):
    assert learning_curve_png(history).startswith(PNG)


@pytest.mark.parametrize("count", [6, 7])
def test_many_networks_have_no_legend(drawn, count):
    history = [line for number in range(count) for line in epochs(f"p{number}", 2)]
    learning_curve_png(history)
    (axes,), figure = drawn[0].axes, learning_curve_figure(history)
    assert len(axes.lines) == len(figure.data) == 2 * count
    many = count > 6
    assert (axes.get_legend() is None) is many
    assert figure.layout.showlegend is not many
    for title in (axes.get_title(), figure.layout.title.text or ""):
        assert ("7 networks; training solid, validation dashed" in title) is many


def test_the_report_shows_the_same_curves(drawn):
    learning_curve_png(HISTORY)
    figure = learning_curve_figure(HISTORY)
    assert figure.layout.yaxis.type == "log" and figure.layout.xaxis.dtick == 1
    for line, trace in zip(drawn[0].axes[0].lines, figure.data, strict=True):
        assert trace.name == line.get_label()
        assert list(trace.x) == list(line.get_xdata())
        assert list(trace.y) == list(line.get_ydata())
        assert trace.line.color == line.get_color()
        assert trace.line.dash == {"-": "solid", "--": "dash"}[line.get_linestyle()]
        assert ("markers" in trace.mode) is (line.get_marker() == "o")
    assert "markers" in learning_curve_figure(epochs("teacher", 1)).data[1].mode
    assert learning_curve_figure([]).layout.title.text == "no epoch was logged"
    evil = learning_curve_figure(epochs(EVIL, 2)).data[0].name
    assert "<" not in evil and "&lt;script&gt;" in evil


# Distributions.


def shown(figure):
    """What the browser gets, which must hold no NaN outside of typed arrays."""
    text = figure.to_json()
    assert "NaN" not in text and "Infinity" not in text
    return json.loads(text)


def spread(calibration, test=(), labels=None, threshold=5.0):
    labels = None if labels is None else np.array(labels, bool)
    nothing = np.empty(0)
    own = EntityScores("m", None, nothing, labels, np.array(test), threshold)
    return distribution_figure(own, np.array(calibration))


def share_above(trace, value):
    """The share that a curve shows at a value: steps fall at the scores themselves."""
    return trace.y[np.searchsorted(trace.x, value)]


def test_distributions_show_the_share_of_windows_above():
    rng = np.random.default_rng(0)
    calibration, test = rng.exponential(2, 50), rng.exponential(3, 40)
    labels = rng.random(40) < 0.3
    figure = spread(calibration, test, labels, threshold=2.5)
    names = [trace.name for trace in figure.data]
    assert names == ["calibration", "test, normal", "test, anomalous", "τ = 2.5"]
    assert figure.layout.xaxis.type == "log" and figure.layout.showlegend
    assert list(figure.data[3].x) == [2.5, 2.5]
    sets = (calibration, test[~labels], test[labels])
    for trace, scores in zip(figure.data[:3], sets, strict=True):
        assert trace.line.shape == "vh"
        for value in (0.1, 1.0, 2.5, scores.max() - 1e-6):
            assert share_above(trace, value) == pytest.approx(np.mean(scores > value))
    assert len({trace.line.color for trace in figure.data[:3]}) == 3


def test_test_windows_without_labels_are_one_curve():
    data = spread([1.0, 2.0], [3.0, math.nan, 4.0]).data
    assert [trace.name for trace in data] == ["calibration", "test", "τ = 5"]
    assert list(data[1].x) == [3.0, 4.0]
    data = spread([1.0, 2.0]).data
    assert [trace.name for trace in data] == ["calibration", "τ = 5"]


def test_scores_off_the_axis_still_count_in_the_shares():
    """Of five windows with a score two are above 2, one of them beyond any axis."""
    found = spread([0.0, 1.0, 2.0, 3.0, math.inf, math.nan])
    trace = found.data[0]
    assert list(trace.x) == [1.0, 2.0, 3.0]
    assert list(trace.y) == pytest.approx([4 / 5, 3 / 5, 2 / 5])
    assert share_above(trace, 2.5) == pytest.approx(2 / 5)


def test_long_curves_are_thinned_from_end_to_end():
    scores = np.random.default_rng(1).exponential(2, 50_000)
    trace = spread(scores).data[0]
    assert len(trace.x) == plots.MAX_STEPS
    assert (trace.x[0], trace.x[-1]) == (scores.min(), scores.max())
    share = np.mean(scores > trace.x[500])
    assert trace.y[500] == pytest.approx(share, abs=1e-4)
    labels = scores > 4
    found = ranking(labels, {"m": scores + np.random.default_rng(2).random(50_000)})
    trace = precision_recall_figure(found).data[0]
    assert len(trace.x) == plots.MAX_STEPS
    assert (trace.x[-1], trace.y[-1], trace.x[0]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([], 5.0),
        ([0.0], 0.0),
        ([math.nan] * 3, math.nan),
        ([math.inf], math.inf),
        ([3.0], -1.0),
        ([1e-38, 3e38], 5.0),
        ([2.0, 2.0], 2.0),
    ],
)
def test_degenerate_distributions(scores, threshold):
    for labels in (None, np.zeros(len(scores)), np.ones(len(scores))):
        figure = spread(scores, scores, labels, threshold)
        shown(figure)
        for trace in figure.data:
            assert np.isfinite(trace.x).all() and np.isfinite(trace.y).all()


# Precision and recall.


def ranking(labels, scores, thresholds=None):
    thresholds = thresholds or dict.fromkeys(scores, 0.5)
    nothing = np.empty(0)
    return {
        m: EntityScores("m", None, nothing, np.array(labels), own, thresholds[m])
        for m, own in scores.items()
    }


def test_precision_and_recall_of_each_threshold():
    """Every point of a curve is what alarms above some τ would have."""
    rng = np.random.default_rng(3)
    labels = rng.random(60) < 0.3
    scores = {
        "teacher": rng.random(60) + 0.4 * labels,
        "random": rng.random(60).astype(np.float32),
    }
    scores["teacher"][[4, 9]] = math.nan
    scores["teacher"][[5, 7]] = math.inf
    figure = precision_recall_figure(
        ranking(labels, scores, {"teacher": 0.7, "random": 2.0})
    )
    assert "matplotlib.pyplot" not in sys.modules
    curve, dot, other = figure.data  # random raises no alarm, so it has no dot
    known = ~np.isnan(scores["teacher"])
    own, truth = scores["teacher"][known], labels[known]
    found = set()
    for tau in [*np.unique(own), -1]:
        alarms = own > tau
        if alarms.any():
            hits = np.sum(alarms & truth)
            found.add((round(hits / truth.sum(), 9), round(hits / alarms.sum(), 9)))
    points = zip(curve.x, curve.y, strict=True)
    points = {(round(x, 9), round(y, 9)) for x, y in points}
    assert points == found | {(0, 1)}
    assert curve.line.shape == other.line.shape == "hv"
    assert dot.line.color == curve.line.color != other.line.color
    assert dot.mode == "markers" and dot.showlegend is False
    alarms = own > 0.7
    assert dot.x[0] == pytest.approx(np.mean(alarms[truth]))
    assert dot.y[0] == pytest.approx(np.mean(truth[alarms]))
    finite = np.where(np.isinf(own), 9.0, own)
    assert [curve.name, other.name] == [
        f"teacher (AP {average_precision_score(truth, finite):.3f})",
        f"random (AP {average_precision_score(labels, scores['random']):.3f})",
    ]


def test_the_area_is_average_precision():
    rng = np.random.default_rng(5)
    labels, scores = rng.random(40) < 0.4, rng.integers(0, 9, 40) / 9
    *_, area = precision_recall(labels, scores)
    assert area == pytest.approx(average_precision_score(labels, scores))


def test_a_threshold_is_compared_in_one_precision():
    """0.1 as float32 is above 0.1, so that one of the two windows is in alarm."""
    scores = {"m": np.array([0.1, 0.05], np.float32)}
    found = ranking([True, False], scores, {"m": 0.1})
    _, dot = precision_recall_figure(found).data
    assert (dot.x[0], dot.y[0]) == (1, 1)


@pytest.mark.parametrize("scores", [[], [math.nan] * 2, [math.inf, 1.0], [1.0, 1.0]])
def test_degenerate_rankings(scores):
    for labels in (np.zeros(len(scores), bool), np.ones(len(scores), bool)):
        figure = precision_recall_figure(ranking(labels, {EVIL: np.array(scores)}))
        shown(figure)
        nothing = figure.layout.title.text == "no window is anomalous"
        assert nothing is (not figure.data)
        assert all("<" not in trace.name for trace in figure.data)


def test_a_score_at_the_threshold_is_no_alarm():
    scores = {"m": np.array([2.0, 1.0])}
    found = ranking([True, False], scores, {"m": 2.0})
    assert len(precision_recall_figure(found).data) == 1  # the curve, and no dot


# Timelines.

SCORES = np.array([1.0, 9.0, 2.0, 8.0, 3.0])
LABELS = np.array([False, True, True, False, False])
HOUR = np.timedelta64(1, "h")


def timeline(**changes):
    both = {"teacher": SCORES, "student": SCORES * 2}
    taus = {"teacher": 5.0, "student": 17.0}
    fields = {"entity": "m", "time": None, "labels": LABELS, "scores": both}
    return Timeline(**{**fields, "thresholds": taus, **changes})


def bars_of(figure):
    """Name -> spans of the axis, and the name beside the lane of each bar."""
    found = {}
    for trace in figure.data:
        if trace.type == "bar":
            spans = zip(trace.base, np.add(trace.base, trace.x), strict=True)
            found[trace.name] = [(float(a), float(b)) for a, b in spans]
            lanes = {figure.layout.yaxis.ticktext[y] for y in trace.y}
            assert lanes <= {trace.name}
    return found


def curves_of(figure):
    """Name -> curves and lines of τ, in their order."""
    return [trace for trace in figure.data if trace.type == "scatter"]


def steps_of(curve):
    """The spans of the axis and their values, of a curve of steps."""
    ends = np.asarray(curve.x).reshape(-1, 2)
    values = np.asarray(curve.y, np.float64).reshape(-1, 2)
    np.testing.assert_array_equal(values[:, 0], values[:, 1])
    return [
        (*own, value) for own, value in zip(ends.tolist(), values[:, 0], strict=True)
    ]


def test_true_events_and_alarms_stand_above_the_curves():
    alarms = {"teacher": np.array([[1, 2], [3, 4]]), "student": np.empty((0, 2), int)}
    found = timeline(alarms=alarms)
    figure = timeline_figure(found)
    assert list(figure.layout.yaxis.ticktext) == ["true events", "teacher", "student"]
    assert bars_of(figure) == {
        "true events": [(1, 3)], "teacher": [(1, 2), (3, 4)], "student": [],
    }  # fmt: skip
    (shade,) = figure.layout.shapes
    assert shade.path == "M1,0L3,0L3,1L1,1Z" and shade.yref == "paper"
    teacher, own, student, other = curves_of(figure)
    steps = [(row, row + 1, score) for row, score in enumerate(SCORES)]
    assert steps_of(teacher) == steps and list(own.y) == [5, 5]
    # Alarms stand exactly where the curve is above τ.
    above = [(float(a), float(b)) for a, b, score in steps if score > 5]
    assert bars_of(figure)["teacher"] == above
    assert [y for *_, y in steps_of(student)] == (2 * SCORES).tolist()
    assert list(other.y) == [17, 17]
    assert own.line.dash == other.line.dash == "dash" and list(own.x) == [0, 5]
    assert [teacher.line.color, student.line.color] == list(COLORS[:2])
    bars = {bar.name: bar.marker for bar in figure.data if bar.type == "bar"}
    assert bars["teacher"].color == bars["teacher"].line.color == teacher.line.color
    assert bars["teacher"].line.width > 0  # an event of one row can be seen
    layout = figure.layout
    assert [teacher.yaxis, student.yaxis] == ["y2", "y3"]
    assert [layout.yaxis2.title.text, layout.yaxis3.title.text] == [
        "teacher<br>τ 5", "student<br>τ 17",
    ]  # fmt: skip
    words = timeline_words(found)
    assert "Bars: alarms. They follow the score of the latest window" in words
    assert "a row's own score" in words and "labelled anomalies" in words
    assert words.startswith("Window scores (logarithmic) over rows; dashed: τ.")


def test_without_labels_and_alarms_none_are_spoken_of():
    words = timeline_words(timeline(labels=None, what="Training window scores"))
    assert "labelled" not in words and "alarms" not in words
    assert words.startswith("Training window scores")
    figure = timeline_figure(timeline(labels=None))
    assert not figure.layout.shapes and "true events" not in figure.to_json()


def test_all_panels_share_an_axis_and_only_it_is_zoomed():
    figure = timeline_figure(timeline(heat=heat(np.ones((5, 2)))))
    axes = [figure.layout[f"xaxis{n}"] for n in ("", 2, 3, 4)]
    assert {axis.matches for axis in axes} == {None, "x4"}
    assert [axis.title.text for axis in axes] == [None, None, None, "row"]
    assert all(figure.layout[f"yaxis{n}"].fixedrange for n in ("", 2, 3, 4))
    domains = [figure.layout[f"yaxis{n}"].domain for n in ("", 2, 3, 4)]
    for above, below in itertools.pairwise(domains):
        assert above[0] > below[1]


def test_a_panel_is_logarithmic_and_holds_scores_and_tau():
    scores = np.array([0.0, 1.0, math.inf, math.nan, 200.0])
    figure = timeline_figure(timeline(scores={"m": scores}, thresholds={"m": 500.0}))
    axis, (curve, tau) = figure.layout.yaxis2, curves_of(figure)
    assert axis.type == "log" and axis.dtick >= 1
    zero, one, infinite, gap, last = (y for *_, y in steps_of(curve))
    assert np.isnan(gap) and last == 200
    # Zero is at the bottom, infinite above all else.
    assert 0 < zero <= one == 1 < tau.y[0] < infinite < math.inf
    assert 10 ** axis.range[0] < zero and infinite < 10 ** axis.range[1]


def test_one_tiny_score_does_not_flatten_the_rest():
    scores = np.array([1e-30, 1.0, 10.0])
    figure = timeline_figure(timeline(labels=None, scores={"m": scores}, thresholds={}))
    assert -9 < figure.layout.yaxis2.range[0] + 1 < -7


def test_long_curves_keep_their_peaks():
    scores = np.ones(50_000)
    scores[31_415] = 100.0
    found = timeline(labels=None, scores={"m": scores}, thresholds={"m": 5.0})
    curve = curves_of(timeline_figure(found))[0]
    steps = steps_of(curve)
    assert len(steps) == MAX_BINS // 2
    ((first, stop, _),) = [step for step in steps if step[2] == 100]
    assert first <= 31_415 < stop and stop - first == 50
    # Rows around alarms are drawn one by one.
    near = found._replace(alarms={"m": np.array([[31_415, 31_416]])})
    steps = steps_of(curves_of(timeline_figure(near))[0])
    assert (31_415, 31_416, 100) in steps and (
        31_414 + AROUND,
        31_415 + AROUND,
        1,
    ) in steps


@pytest.mark.parametrize("threshold", [5.0, 0.0, -1.0, math.inf, math.nan, 1e-300])
@pytest.mark.parametrize(
    "scores",
    [[], [0.0], [math.nan] * 3, [math.inf], [3.0], [1e-38, 3e38], [2.0, 2.0]],
)
def test_degenerate_panels(scores, threshold):
    scores = np.array(scores, np.float32)
    labels = np.ones(len(scores), bool)
    found = timeline(labels=labels, scores={"m": scores}, thresholds={"m": threshold})
    figure = timeline_figure(found)
    shown(figure)
    axis, (curve, *taus) = figure.layout.yaxis2, curves_of(figure)
    assert np.isfinite(axis.range).all()
    assert "nan" not in axis.title.text and "inf" not in axis.title.text
    assert len(taus) == (math.isfinite(threshold) and threshold > 0 and len(scores) > 0)
    for trace in (curve, *taus):
        y = np.array(trace.y, np.float64)
        y = np.log10(y[~np.isnan(y)])
        assert ((axis.range[0] <= y) & (y <= axis.range[1])).all()


def test_dates_are_written_as_dates():
    time = np.datetime64("2024-03-01", "ns") + np.arange(5) * 12 * HOUR
    found = timeline(time=time, alarms={"teacher": np.array([[3, 5]])})
    figure = timeline_figure(found)
    assert figure.layout.xaxis.type == "date"
    data = {(trace["type"], trace["name"]): trace for trace in shown(figure)["data"]}
    assert data["scatter", "teacher"]["x"][4].startswith("2024-03-02T00:00:00")
    bar = data["bar", "teacher"]
    assert bar["base"][0].startswith("2024-03-02T12:00:00")
    (bar,) = (b for b in figure.data if (b.type, b.name) == ("bar", "teacher"))
    assert list(bar.x) == [24 * 3600 * 1000]  # milliseconds; a row lasts half a day
    (shade,) = figure.layout.shapes
    assert shade.path.startswith("M2024-03-01_12:00:00.000000,0L2024-03-02_12:00:00")
    assert timeline_words(found).startswith("Window scores (logarithmic) over time;")
    numbers = timeline_figure(timeline(time=np.arange(5.0) + 100))
    assert numbers.layout.xaxis.type == "linear"
    assert curves_of(numbers)[0].x[4] == 102


def test_names_are_escaped():
    found = timeline(
        entity=EVIL,
        scores={EVIL: SCORES},
        thresholds={EVIL: 2.0},
        alarms={EVIL: np.array([[0, 1]])},
        signals=np.ones((5, 1)),
        channels=(EVIL,),
        heat=heat(np.ones((5, 1)), (EVIL,)),
    )
    text = json.dumps(shown(timeline_figure(found)), ensure_ascii=False)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 5
    long = timeline_figure(timeline(heat=heat(np.ones((5, 1)), ("x" * 99,))))
    assert list(long.layout.yaxis4.ticktext) == ["x" * 13 + "…"]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_short_timelines(rows):
    days = np.datetime64("2024-01-01", "ns") + np.arange(rows) * HOUR
    scores, labels = {"m": np.ones(rows)}, np.ones(rows, bool)
    for time in (None, days, np.arange(rows) * 1.0, np.zeros(rows)):
        found = timeline(time=time, labels=labels, scores=scores, thresholds={})
        figure = timeline_figure(found)
        shown(figure)
        (bar,) = (one for one in figure.data if one.name == "true events")
        assert len(bar.base) == min(rows, 1)
    shown(timeline_figure(Timeline("m", None, None, {}, {})))


def test_rows_lie_where_their_time_is():
    second = np.timedelta64(1, "s")
    start = np.datetime64("2024-01-01", "us")
    passed = np.array([0, 1, 2, 4, 12])
    time = (start + passed * second).astype("datetime64[ns]")
    begins, ends = row_spans(time, 5)
    assert ((begins - start) / second).tolist() == passed.tolist()
    # A gap of eight steps is no long row; one of two is.
    assert ((ends - start) / second).tolist() == [1, 2, 4, 5.5, 13.5]
    for time, expected in (
        (None, [[0, 1], [1, 2]]),
        (np.array([5.0, 5.0]), [[5, 5], [5, 6]]),
        (np.array([5, 6]), [[5, 6], [6, 7]]),
        (np.array([5.0]), [[5], [6]]),
    ):
        found = row_spans(time, len(expected[0]))
        assert np.array_equal(
            found, np.transpose(expected) if len(expected[0]) > 1 else expected
        )
    assert [*map(len, row_spans(None, 0))] == [0, 0]


def test_bins_are_even_and_finer_around_alarms():
    assert row_bins(5, np.empty((0, 2), int)).tolist() == [0, 1, 2, 3, 4]
    assert row_bins(0, np.empty((0, 2), int)).tolist() == []
    even = row_bins(50_000, np.empty((0, 2), int), most=100)
    assert np.array_equal(even, np.arange(50) * 1000)
    found = row_bins(50_000, np.array([[7, 9], [31_415, 31_420]]), most=2000)
    assert {*range(9 + AROUND)} <= {*found}  # cut off at the first row
    assert {*range(31_415 - AROUND, 31_420 + AROUND)} <= {*found}
    assert {*range(0, 50_000, 50)} <= {*found} and len(found) <= 2000
    # Too many for one by one: spread over all of them.
    crowded = row_bins(50_000, np.array([[0, 50_000]]), most=1000)
    assert len(crowded) <= 1000 and np.diff(crowded).max() <= 101


def test_a_gap_is_drawn_as_one():
    time = np.array([0.0, 1, 2, 50, 51])
    found = timeline(
        time=time,
        labels=None,
        scores={"m": SCORES},
        thresholds={"m": 5.0},
        alarms={"m": np.array([[1, 4]])},
        heat=heat(np.full((5, 1), 100.0)),
        signals=np.arange(5.0)[:, None],
        channels=("a",),
    )
    figure = timeline_figure(found)
    curve = next(c for c in curves_of(figure) if c.name == "m")
    assert list(curve.x) == [0, 1, 1, 2, 2, 3, 50, 50, 51, 51, 52]
    assert np.flatnonzero(np.isnan(curve.y)).tolist() == [6]
    signal = next(c for c in curves_of(figure) if c.name == "a")
    assert list(signal.x) == [0, 1, 2, 50, 50, 51]
    assert np.flatnonzero(np.isnan(signal.y)).tolist() == [3]
    (trace,) = (t for t in figure.data if t.type == "heatmap")
    assert list(trace.x) == [0, 1, 2, 3, 50, 51, 52]
    assert (trace.z[0] == -100).tolist() == [False, False, False, True, False, False]


# Signals.


def signals_of(figure, count):
    """The last curves: those of the channels."""
    return curves_of(figure)[-count:]


def test_signals_lie_in_lanes_with_their_own_values():
    values = np.array([[1.0, 7], [3, 7], [2, 7], [np.nan, 7], [1, 7]], np.float32)
    found = timeline(signals=values, channels=("load", EVIL))
    figure = timeline_figure(found)
    load, flat = signals_of(figure, 2)
    assert load.customdata.tolist()[:3] == [1, 3, 2] and np.isnan(load.customdata[3])
    # The lowest at the bottom of lane 0, the highest at its top, as the axis runs down.
    assert load.y[[0, 1, 2, 4]] == pytest.approx([0.42, -0.42, 0, 0.42])
    assert np.isnan(load.y[3]) and flat.y == pytest.approx([1.0] * 5)
    axis = figure.layout.yaxis4
    assert list(axis.range) == [1.5, -0.5] and axis.ticktext[0] == "load"
    assert "<" not in flat.name and load.line.color == flat.line.color
    words = timeline_words(found)
    assert "each signal between its lowest and highest value" in words
    assert "contribution" not in words


def test_long_signals_keep_their_extremes():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50_000, 2))
    values[12_345, 0], values[23_456, 1] = 90, -80
    found = timeline(
        labels=None, scores={"m": np.ones(50_000)}, signals=values, channels=("a", "b")
    )
    first, second = signals_of(timeline_figure(found), 2)
    assert len(first.x) == len(first.y) == MAX_BINS  # two of each even bin
    assert first.customdata.max() == 90 and second.customdata.min() == -80
    assert first.x[np.argmax(first.customdata)] == 12_300
    for bin_, own in enumerate(np.split(values[:, 0], MAX_BINS // 2)):
        pair = first.customdata[2 * bin_ : 2 * bin_ + 2]
        assert pair == pytest.approx([own.min(), own.max()])


def test_of_many_signals_the_first_are_drawn():
    names = tuple(f"c{n}" for n in range(MOST_CHANNELS + 3))
    found = timeline(signals=np.ones((5, len(names))), channels=names)
    figure = timeline_figure(found)
    assert list(figure.layout.yaxis4.ticktext) == list(names[:MOST_CHANNELS])
    assert f"The first {MOST_CHANNELS} of {len(names)} channels." in timeline_words(
        found
    )


def test_a_model_has_one_color_in_all_figures():
    names = ["pca", "student", "teacher", "memory"]
    colors = model_colors(names)
    assert (colors["teacher"], colors["student"]) == COLORS[:2]
    assert len({*colors.values()}) == 5
    scores = {name: SCORES for name in ("memory", "student")}
    curves = curves_of(timeline_figure(timeline(scores=scores, thresholds={}), colors))
    labels = np.array([True, False])
    found = {
        name: EntityScores("m", None, SCORES, labels, np.array([1.0, 2.0]), 9.0)
        for name in scores
    }
    ranked = precision_recall_figure(found, colors).data
    for drawn in (curves, ranked):
        assert [c.line.color for c in drawn] == [colors["memory"], colors["student"]]
    history = epochs("student", 2)
    assert learning_curve_figure(history).data[0].line.color == colors["student"]
    own = distribution_figure(found["memory"], SCORES, colors["memory"]).data
    assert (
        own[1].line.color
        == colors["memory"]
        not in (own[0].line.color, own[2].line.color)
    )


# From score tables.


def test_a_score_table_becomes_a_timeline():
    table = pd.DataFrame(
        {
            "window_score": [np.nan, 2.0, 9.0, 1.0],
            "tau": 5.0,
            "alarm": [0, 0, 1, 0],
            "contribution:x": [np.nan, 1.0, 5.0, 0.5],
            "contribution:y": [np.nan, 1.0, 4.0, 0.5],
        }
    )
    time = np.datetime64("2026-05-25T22:00", "ns") + np.arange(4) * HOUR
    form = TimeForm(pd.DatetimeTZDtype("ns", "Europe/Berlin"))
    labels = np.array([0, 0, 1, 1], bool)
    series = Series("pump", np.ones((4, 2)), ("x", "y"), time, labels, form=form)
    found = score_timeline(table, series, model="pca")
    assert (found.entity, found.clock, found.labels is labels) == (
        "pump",
        "UTC+02:00",
        True,
    )
    assert str(found.time[0]).startswith("2026-05-26T00")
    assert found.thresholds == {"pca": 5.0}
    assert found.alarms["pca"].tolist() == [[2, 3]]
    np.testing.assert_array_equal(found.scores["pca"], table["window_score"])
    np.testing.assert_array_equal(found.heat.contributions, table.iloc[:, 3:])
    assert found.heat.channels == found.channels == ("x", "y")
    bare = score_timeline(table.iloc[:, [0, 2, 3]], series, model="pca")
    assert bare.heat is None and math.isnan(bare.thresholds["pca"])
    shown(timeline_figure(bare))


# The heat map of channels.


def heat(parts, channels=None, threshold=100.0):
    parts = np.array(parts, np.float64)
    names = channels or tuple("abcdefg"[: parts.shape[1]])
    return Heat("student", names, parts, threshold)


def rowed(rows, **changes):
    """A timeline of so many rows."""
    return timeline(
        labels=None,
        scores={m: np.ones(rows) for m in ("teacher", "student")},
        **changes,
    )


def map_of(figure):
    """Strength of each channel and column: 0 clear, 1 full, -1 no score."""
    (trace,) = (trace for trace in figure.data if trace.type == "heatmap")
    assert (trace.zmin, trace.zmax) == (-100, 100)
    assert [color.split(",")[-1].strip(" )") for _, color in trace.colorscale] == [
        "0.35", "0.35", "0", "0.85",
    ]  # fmt: skip
    assert len(trace.x) == trace.z.shape[1] + 1
    return trace.z / 100


def test_strength_is_logarithmic_from_a_hundredth_of_tau():
    parts = [[0.5, 1.0], [10.0, 100.0], [1e4, np.inf], [np.nan, np.nan]]
    found = rowed(4, heat=heat(parts))
    figure = timeline_figure(found)
    # τ/100 = 1 is clear, 10⁴ is full; a hundred is halfway.
    assert map_of(figure) == pytest.approx(
        np.array([[0, 0.25, 1, -1], [0, 0.5, 1, -1]]), abs=1e-6
    )
    words = timeline_words(found)
    assert "τ/100 or less (clear) to 1e+04 (full); grey: no score" in words
    assert "contribution of each channel to the score of student" in words
    assert list(figure.layout.yaxis4.ticktext) == ["a", "b"]
    assert list(figure.layout.yaxis4.tickvals) == [0, 1]
    assert list(figure.layout.yaxis4.range) == [1.5, -0.5]  # the first on top


def test_the_largest_of_many_channels_are_shown_in_their_order():
    count = MOST_CHANNELS + 5
    parts = np.ones((3, count))
    parts[1] = 2.0
    small = [3, 17, 20, 30, 44]
    parts[:, small] = 0.1
    parts[:, 44] = np.nan
    names = tuple(f"c{n}" for n in range(count))
    found = rowed(3, heat=heat(parts, names))
    figure = timeline_figure(found)
    assert list(figure.layout.yaxis4.ticktext) == [
        name for number, name in enumerate(names) if number not in small
    ]
    assert map_of(figure).shape[0] == MOST_CHANNELS
    words = timeline_words(found)
    assert words.endswith(f"The largest {MOST_CHANNELS} of {count} channels.")
    assert "channels." not in timeline_words(rowed(3, heat=heat(np.ones((3, 2)))))


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf, 5.0])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e-300, 1e300])
def test_degenerate_maps(value, threshold):
    found = heat(np.full((3, 2), value), threshold=threshold)
    figure = timeline_figure(rowed(3, heat=found))
    shown(figure)
    strength = map_of(figure)
    assert strength.shape == (2, 3) and np.isfinite(strength).all()
    if np.isnan(value):
        assert (strength == -1).all()
    elif value == np.inf:
        assert (strength == 1).all()
    elif value == 0:
        assert (strength == 0).all()
