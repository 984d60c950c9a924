"""Figures: learning curves (the paper's Figure 3), how scores are spread, precision.

Drawn through matplotlib's Figure objects, never pyplot: no window system is looked for,
no global state is kept, and several threads may draw at once.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax.evaluation.drawing import (
    COLORS,
    INK,
    blank,
    dress,
    saved,
)
from kdjax.metrics import as_scores

OBJECTIVES = {
    "teacher": "MSE(X_T, X)",
    "student": "L_S of Eq. 2",
    "student_alone": "L_S with α = 0",
}


class Distribution(NamedTuple):
    """One entity's window scores under one model.

    Attributes:
        entity: its name.
        calibration: `[n]` of clean windows.
        test: `[M]`, NaN where a window has none; empty without test rows.
        labels: `[M]` bool; None where there are none.
        threshold: τ.
    """

    entity: str
    calibration: np.ndarray
    test: np.ndarray
    labels: np.ndarray | None
    threshold: float


class Ranking(NamedTuple):
    """One entity's test windows as several models order them.

    Attributes:
        entity: its name.
        labels: `[M]` bool.
        scores: model -> `[M]`, NaN where a window has none.
        thresholds: model -> its own τ.
    """

    entity: str
    labels: np.ndarray
    scores: dict[str, np.ndarray]
    thresholds: dict[str, float]


# More curves than these have no legend.
_NAMED_CURVES = 6


def plot_learning_curve(
    history: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """Figure 3: loss over epochs, training solid and validation dashed, log axis.

    Args:
        history: the lines of `metrics.jsonl`; those with `train_loss` or
            `validation_loss` are drawn, one curve a `phase`.
        path: where to write the picture as well; its ending chooses the format.
        theme: `light` or `dark`.
        format: of the bytes, where there is no `path`: `png` or `svg`.
    """
    figure = blank(10, 4.2, theme)
    axes = figure.subplots()
    curves = _curves(history)
    for number, (phase, (epochs, train, validation)) in enumerate(curves.items()):
        color = COLORS[theme][number % len(COLORS[theme])]
        label = f"{phase}: {OBJECTIVES.get(phase, 'loss')}"
        alone = len(epochs) == 1  # one epoch has no line, only markers
        style: dict[str, Any] = {"color": color, "markersize": 3.5}
        axes.plot(epochs, train, "o-", label=f"{label}, training", **style)
        style |= {"marker": "D" if alone else None, "fillstyle": "none"}
        # Detectors reconstruct: whatever was minimised, X' is judged against X.
        label = f"{phase}: MSE(X', X), validation"
        axes.plot(epochs, validation, "--", label=label, **style)
        if not np.isnan([*train, *validation]).all():
            axes.set_yscale("log")
    if 0 < len(curves) <= _NAMED_CURVES:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK[theme])
    elif curves:
        axes.set_title(
            f"{len(curves)} networks; training solid, validation dashed",
            fontsize=8,
            color=INK[theme],
        )
    else:
        axes.text(0.5, 0.5, "no epoch was logged", ha="center", color=INK[theme])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="loss")
    return _finished(figure, axes, path, theme, format)


def plot_distribution(
    distribution: Distribution,
    path: str | os.PathLike[str] | None = None,
    *,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """How window scores are spread: calibration, test (normal, anomalous), and τ.

    Cumulative shares over a logarithmic axis, so that no bin has to be chosen and the
    share above τ can be read.
    """
    figure = blank(4.8, 3.0, theme)
    axes = figure.subplots()
    for number, (name, scores) in enumerate(_score_sets(distribution).items()):
        color = COLORS[theme][number % len(COLORS[theme])]
        known = np.sort(scores[~np.isnan(scores)])
        share = 1 - np.arange(len(known)) / max(len(known), 1)
        # What a logarithmic axis can't show still counts in the shares.
        shown = np.isfinite(known) & (known > 0)
        if shown.any():
            axes.step(known[shown], share[shown], where="pre", color=color, label=name)
            axes.set_xscale("log")
    if np.isfinite(distribution.threshold) and distribution.threshold > 0:
        axes.axvline(
            distribution.threshold,
            color=INK[theme],
            linewidth=0.9,
            dashes=(4, 3),
            label=f"τ = {distribution.threshold:.3g}",
        )
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK[theme])
    axes.set(xlabel="window score", ylabel="share of windows above")
    return _finished(figure, axes, path, theme, format)


def plot_precision_recall(
    ranking: Ranking,
    path: str | os.PathLike[str] | None = None,
    *,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """Precision over recall of windows, a curve a model; a dot where its own τ lies.

    Steps, as average precision (in the legend) adds them up.
    """
    figure = blank(4.8, 3.0, theme)
    axes = figure.subplots()
    for number, (model, scores) in enumerate(ranking.scores.items()):
        color = COLORS[theme][number % len(COLORS[theme])]
        known = ~np.isnan(scores)
        labels = np.asarray(ranking.labels, dtype=bool)[known]
        own = scores[known].astype(np.float64)  # τ is compared in one precision
        if not labels.any():
            continue
        precision, recall, area = precision_recall(labels, own)
        line: dict[str, Any] = {
            "color": color,
            "linewidth": 1.2,
            "drawstyle": "steps-post",
        }
        axes.plot(recall, precision, label=f"{model} (AP {area:.3f})", **line)
        above = own > ranking.thresholds[model]
        if above.any():
            hits = np.sum(labels & above)
            point = hits / labels.sum(), hits / above.sum()
            axes.plot(*point, "o", color=color, markersize=5, label="_own τ")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK[theme])
    else:
        axes.text(0.5, 0.5, "no window is anomalous", ha="center", color=INK[theme])
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    return _finished(figure, axes, path, theme, format)


def precision_recall(
    labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Precision and recall `[K]` as τ rises, the last (1, 0), and average precision.

    >>> labels, scores = np.array([True, False, True]), np.array([3.0, 2.0, np.inf])
    >>> [part.tolist() for part in precision_recall(labels, scores)[:2]]
    [[0.6666666666666666, 1.0, 1.0, 1.0], [1.0, 1.0, 0.5, 0.0]]
    """
    from sklearn import metrics  # here, since it takes a second to import

    # scikit-learn refuses infinite scores; the curve depends on the order alone.
    ranks = np.unique(as_scores(scores), return_inverse=True)[1]
    precision, recall, _ = metrics.precision_recall_curve(labels, ranks)
    return precision, recall, float(-np.sum(np.diff(recall) * precision[:-1]))


def _finished(
    figure: Figure,
    axes: Axes,
    path: str | os.PathLike[str] | None,
    theme: str,
    format: str,
) -> bytes:
    dress(axes, theme)
    axes.grid(axis="y", color=INK[theme], alpha=0.15, linewidth=0.6)
    return saved(figure, path, format)


def _score_sets(distribution: Distribution) -> dict[str, np.ndarray]:
    sets = {"calibration": np.asarray(distribution.calibration)}
    test = np.asarray(distribution.test)
    if distribution.labels is None:
        return sets | ({"test": test} if len(test) else {})
    return sets | {
        "test, normal": test[~distribution.labels],
        "test, anomalous": test[distribution.labels],
    }


def _curves(
    history: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[list[int], list[float], list[float]]]:
    ends: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in history:
        if "train_loss" in line or "validation_loss" in line:
            ends.setdefault(line["phase"], {})[line["epoch"]] = line
    return {
        phase: (
            sorted(epochs),
            [_loss(epochs[epoch], "train_loss") for epoch in sorted(epochs)],
            [_loss(epochs[epoch], "validation_loss") for epoch in sorted(epochs)],
        )
        for phase, epochs in ends.items()
    }


def _loss(line: Mapping[str, Any], key: str) -> float:
    """A loss that a log axis can show, else NaN, which leaves a gap."""
    number = line.get(key)
    return float(number) if number and 0 < number < np.inf else float("nan")
