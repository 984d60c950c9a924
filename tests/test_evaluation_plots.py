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
    Timeline,
    peaks,
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
