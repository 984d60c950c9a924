"""Figures: what is drawn, on degenerate input as well."""

import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from kdjax.evaluation.plots import (
    Distribution,
    Ranking,
    plot_distribution,
    plot_learning_curve,
    plot_precision_recall,
    precision_recall,
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
def test_degenerate_distributions(scores, threshold, theme):
    for labels in (None, np.zeros(len(scores)), np.ones(len(scores))):
        found = spread(scores, scores, labels, threshold)
        assert plot_distribution(found, theme=theme).startswith(PNG)


def test_a_distribution_is_written(tmp_path):
    path = tmp_path / "spread.svg"
    found = spread([1.0, 2.0], [3.0], [True])
    assert plot_distribution(found, path) == path.read_bytes()
    assert b"<svg" in path.read_bytes()


# Precision and recall.


def ranking(labels, scores, thresholds=None):
    thresholds = thresholds or dict.fromkeys(scores, 0.5)
    return Ranking("m", np.array(labels), scores, thresholds)


def test_precision_and_recall_of_each_threshold(drawn):
    """Every point of a curve is what alarms above some τ would have."""
    rng = np.random.default_rng(3)
    labels = rng.random(60) < 0.3
    scores = {
        "teacher": rng.random(60) + 0.4 * labels,
        "random": rng.random(60).astype(np.float32),
    }
    scores["teacher"][[4, 9]] = math.nan
    scores["teacher"][[5, 7]] = math.inf
    picture = plot_precision_recall(
        ranking(labels, scores, {"teacher": 0.7, "random": 2.0})
    )
    assert picture.startswith(PNG) and "matplotlib.pyplot" not in sys.modules
    (axes,) = drawn[0].axes
    curve, dot, other = axes.lines  # random raises no alarm, so it has no dot
    known = ~np.isnan(scores["teacher"])
    own, truth = scores["teacher"][known], labels[known]
    found = set()
    for tau in [*np.unique(own), -1]:
        alarms = own > tau
        if alarms.any():
            hits = np.sum(alarms & truth)
            found.add((round(hits / truth.sum(), 9), round(hits / alarms.sum(), 9)))
    points = zip(curve.get_xdata(), curve.get_ydata(), strict=True)
    points = {(round(x, 9), round(y, 9)) for x, y in points}
    assert points == found | {(0, 1)}
    assert curve.get_drawstyle() == other.get_drawstyle() == "steps-post"
    alarms = own > 0.7
    assert dot.get_xdata()[0] == pytest.approx(np.mean(alarms[truth]))
    assert dot.get_ydata()[0] == pytest.approx(np.mean(truth[alarms]))
    finite = np.where(np.isinf(own), 9.0, own)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == [
        f"teacher (AP {average_precision_score(truth, finite):.3f})",
        f"random (AP {average_precision_score(labels, scores['random']):.3f})",
    ]


def test_the_area_is_average_precision():
    rng = np.random.default_rng(5)
    labels, scores = rng.random(40) < 0.4, rng.integers(0, 9, 40) / 9
    *_, area = precision_recall(labels, scores)
    assert area == pytest.approx(average_precision_score(labels, scores))


def test_a_threshold_is_compared_in_one_precision(drawn):
    """0.1 as float32 is above 0.1, so that one of the two windows is in alarm."""
    scores = {"m": np.array([0.1, 0.05], np.float32)}
    plot_precision_recall(ranking([True, False], scores, {"m": 0.1}))
    _, dot = drawn[0].axes[0].lines
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (1, 1)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("scores", [[], [math.nan] * 2, [math.inf, 1.0], [1.0, 1.0]])
def test_degenerate_rankings(scores, theme):
    for labels in (np.zeros(len(scores), bool), np.ones(len(scores), bool)):
        found = ranking(labels, {"m": np.array(scores)})
        assert plot_precision_recall(found, theme=theme).startswith(PNG)


def test_a_score_at_the_threshold_is_no_alarm(drawn):
    scores = {"m": np.array([2.0, 1.0])}
    plot_precision_recall(ranking([True, False], scores, {"m": 2.0}))
    assert len(drawn[0].axes[0].lines) == 1  # the curve, and no dot
