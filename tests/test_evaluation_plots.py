"""Figures: what is drawn, on degenerate input as well."""

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from kdjax.evaluation import plots
from kdjax.evaluation.plots import (
    Distribution,
    Timeline,
    peaks,
    plot_distribution,
    plot_learning_curve,
    plot_timeline,
    spans,
)

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
    assert plot_learning_curve(HISTORY).startswith(PNG)
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
    plot_learning_curve(epochs("teacher", 1))
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
    assert plot_learning_curve(history).startswith(PNG)


def test_learning_curve_is_written(tmp_path):
    path = tmp_path / "curve.png"
    assert plot_learning_curve(HISTORY, path) == path.read_bytes()
    svg = plot_learning_curve(HISTORY, tmp_path / "curve.svg", theme="dark")
    assert b"<svg" in svg
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "curve.png",
        "curve.svg",
    ]


def timeline(scores, threshold=5.0, labels=None, time=None):
    return Timeline("m", time, labels, {"teacher": scores}, {"teacher": threshold})


def test_timeline_shows_scores_threshold_alarms_and_labels(drawn):
    scores = np.array([1.0, 9.0, 2.0, 8.0, 3.0])
    labels = np.array([False, True, True, False, False])
    models = Timeline(
        "m",
        np.datetime64("2024-01-01", "ns") + np.arange(5) * np.timedelta64(1, "h"),
        labels,
        {"teacher": scores, "student": scores * 2},
        {"teacher": 5.0, "student": 17.0},
    )
    assert plot_timeline(models).startswith(PNG)
    teacher, student = drawn[0].axes
    assert [teacher.get_ylabel(), student.get_ylabel()] == ["teacher", "student"]
    score, tau, alarms = teacher.lines
    assert list(score.get_ydata()) == list(scores)
    assert set(tau.get_ydata()) == {5.0}
    assert list(alarms.get_xdata()) == [score.get_xdata()[1], score.get_xdata()[3]]
    assert len(student.lines[2].get_xdata()) == 1
    (shade,) = teacher.collections
    (bar,) = shade.get_paths()
    first, last = bar.vertices[:, 0].min(), bar.vertices[:, 0].max()
    assert first == score.get_xdata()[1]
    assert last == pytest.approx(score.get_xdata()[3])
    assert "matplotlib.pyplot" not in sys.modules


def test_long_timelines_keep_their_peaks(drawn):
    scores = np.ones(50_000)
    scores[31_415] = 100.0
    plot_timeline(timeline(scores))
    line = drawn[0].axes[0].lines[0]
    assert len(line.get_xdata()) == plots.MAX_POINTS
    peak = int(np.argmax(line.get_ydata()))
    assert line.get_ydata()[peak] == 100.0
    assert 0 <= 31_415 - line.get_xdata()[peak] < 50_000 / plots.MAX_POINTS


def test_zero_infinite_and_missing_scores_stay_on_the_axis(drawn):
    plot_timeline(timeline(np.array([0.0, 1.0, math.inf, math.nan, 2.0])))
    axes = drawn[0].axes[0]
    shown = axes.lines[0].get_ydata()
    low, high = axes.get_ylim()
    assert low < shown[0] and shown[2] < high
    assert shown[2] > 5.0  # above τ and above every finite score
    assert math.isnan(shown[3])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        (np.zeros(4), 5.0),
        (np.zeros(4), 0.0),
        (np.full(4, math.nan), math.nan),
        (np.full(4, math.inf), math.inf),
        (np.array([]), 5.0),
        (np.array([1e-300, 1e300]), -1.0),
        (np.array([3.0]), 5.0),
    ],
)
def test_degenerate_timelines(scores, threshold, theme):
    labels = np.zeros(len(scores), dtype=bool)
    for truth in (labels, ~labels, None):
        picture = plot_timeline(timeline(scores, threshold, truth), theme=theme)
        assert picture.startswith(PNG)


def test_a_model_name_is_no_formula(drawn, tmp_path):
    name = "a$\\frac{$"
    plot_timeline(
        Timeline("m", np.arange(3.0), None, {name: np.ones(3)}, {}), tmp_path / "t.svg"
    )
    assert drawn[0].axes[0].get_ylabel() == name


def test_a_timeline_without_models():
    assert plot_timeline(Timeline("m", None, None, {}, {})).startswith(PNG)


# Distributions.


def spread(calibration, test=(), labels=None, threshold=5.0):
    labels = None if labels is None else np.array(labels, bool)
    return Distribution("m", np.array(calibration), np.array(test), labels, threshold)


def share_above(line, value):
    """The share that a curve shows at a value: steps fall at the scores themselves."""
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    return y[np.searchsorted(x, value)]


def test_distributions_show_the_share_of_windows_above(drawn):
    rng = np.random.default_rng(0)
    calibration, test = rng.exponential(2, 50), rng.exponential(3, 40)
    labels = rng.random(40) < 0.3
    picture = plot_distribution(spread(calibration, test, labels, threshold=2.5))
    assert picture.startswith(PNG)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["calibration", "test, normal", "test, anomalous", "τ = 2.5"]
    assert axes.get_xscale() == "log"
    assert list(lines["τ = 2.5"].get_xdata()) == [2.5, 2.5]
    sets = (calibration, test[~labels], test[labels])
    for line, scores in zip(axes.lines[:3], sets, strict=True):
        assert line.get_drawstyle() == "steps-pre"
        for value in (0.1, 1.0, 2.5, scores.max() - 1e-6):
            assert share_above(line, value) == pytest.approx(np.mean(scores > value))
    assert len({line.get_color() for line in axes.lines[:3]}) == 3
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == list(lines)


def test_test_windows_without_labels_are_one_curve(drawn):
    plot_distribution(spread([1.0, 2.0], [3.0, math.nan, 4.0]))
    labels = [line.get_label() for line in drawn[0].axes[0].lines]
    assert labels == ["calibration", "test", "τ = 5"]
    assert list(drawn[0].axes[0].lines[1].get_xdata()) == [3.0, 4.0]
    plot_distribution(spread([1.0, 2.0]))
    assert [x.get_label() for x in drawn[1].axes[0].lines] == ["calibration", "τ = 5"]


def test_scores_off_the_axis_still_count_in_the_shares(drawn):
    """Of five windows with a score two are above 2, one of them beyond any axis."""
    plot_distribution(spread([0.0, 1.0, 2.0, 3.0, math.inf, math.nan]))
    line = drawn[0].axes[0].lines[0]
    assert list(line.get_xdata()) == [1.0, 2.0, 3.0]
    assert line.get_ydata() == pytest.approx([4 / 5, 3 / 5, 2 / 5])
    assert share_above(line, 2.5) == pytest.approx(2 / 5)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("threshold", [5.0, 0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize(
    "scores",
    [[], [0.0], [math.nan] * 3, [math.inf], [3.0], [1e-38, 3e38], [2.0, 2.0]],
)
def test_degenerate_distributions(scores, threshold, theme):
    for labels in (None, np.zeros(len(scores)), np.ones(len(scores))):
        found = spread(scores, scores, labels, threshold)
        assert plot_distribution(found, theme=theme).startswith(PNG)


def test_a_distribution_is_written(tmp_path):
    path = tmp_path / "spread.svg"
    found = spread([1.0, 2.0], [3.0], [True])
    assert plot_distribution(found, path) == path.read_bytes()
    assert b"<svg" in path.read_bytes()


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
