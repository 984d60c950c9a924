"""Figures: the learning curve (the paper's Figure 3) and an entity's score timeline.

Drawn through matplotlib's Figure objects, never pyplot: no window system is looked for,
no global state is kept, and several threads may draw at once.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax.evaluation.drawing import INK, PAPER, dress, saved

MAX_POINTS = 4000
_dates: Any = matplotlib.dates  # has no annotations
OBJECTIVES = {
    "teacher": "MSE(X_T, X)",
    "student": "L_S of Eq. 2",
    "student_alone": "L_S with α = 0",
}
_COLORS = {
    "light": ("#1f6fb2", "#d9541e", "#2e8b57", "#8a4fb0", "#8a6d1f"),
    "dark": ("#6db3f2", "#ff9660", "#6fcf97", "#c79bec", "#d9bd6a"),
}
_ANOMALY = {"light": "#e5484d", "dark": "#ff6369"}


class Timeline(NamedTuple):
    """One entity's rows under one or several models.

    Attributes:
        entity: its name.
        time: `[N]` datetime64 or numbers; None for row numbers.
        labels: `[N]` bool; None where there are none.
        scores: model -> `[N]` row scores, NaN where a row has none.
        thresholds: model -> τ.
    """

    entity: str
    time: np.ndarray | None
    labels: np.ndarray | None
    scores: dict[str, np.ndarray]
    thresholds: dict[str, float]


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
    figure = _figure(4.2, theme)
    axes = figure.subplots()
    curves = _curves(history)
    for number, (phase, (epochs, train, validation)) in enumerate(curves.items()):
        color = _COLORS[theme][number % len(_COLORS[theme])]
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
    dress(axes, theme)
    axes.grid(axis="y", color=INK[theme], alpha=0.15, linewidth=0.6)
    return saved(figure, path, format)


def plot_timeline(
    timeline: Timeline,
    path: str | os.PathLike[str] | None = None,
    *,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """Row scores over time, one panel a model, with τ, alarms and labelled anomalies.

    Long series are drawn as the largest score of each bin, so that no peak is lost. An
    infinite score is drawn above the panel's largest finite one.
    """
    models = list(timeline.scores)
    figure = _figure(0.6 + 1.6 * max(len(models), 1), theme)
    panels = figure.subplots(max(len(models), 1), 1, sharex=True, squeeze=False)[:, 0]
    rows = len(next(iter(timeline.scores.values()), ()))
    time, is_date = _times(timeline.time, rows)
    for number, (model, axes) in enumerate(zip(models, panels, strict=False)):
        color = _COLORS[theme][number % len(_COLORS[theme])]
        threshold = timeline.thresholds.get(model, float("nan"))
        _draw_scores(axes, time, timeline.scores[model], threshold, color, theme)
        if timeline.labels is not None:
            _shade(axes, time, timeline.labels, theme)
        axes.set_ylabel(model, parse_math=False)  # a name, not a formula
        dress(axes, theme)
        axes.grid(axis="y", color=INK[theme], alpha=0.15, linewidth=0.6)
    if is_date:
        _date_axis(panels[-1])
    panels[-1].set_xlabel("time" if timeline.time is not None else "row")
    return saved(figure, path, format)


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
    figure = _figure(2.8, theme)
    axes = figure.subplots()
    for number, (name, scores) in enumerate(_score_sets(distribution).items()):
        color = _COLORS[theme][number % len(_COLORS[theme])]
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


def peaks(scores: np.ndarray, *, bins: int = MAX_POINTS) -> tuple[np.ndarray, ...]:
    """First row and largest score of each of at most `bins` runs, `[N] -> [K], [K]`.

    NaN only where a whole run is NaN.

    >>> [part.tolist() for part in peaks(np.array([1.0, 9.0, 2.0, 3.0]), bins=2)]
    [[0, 2], [9.0, 3.0]]
    """
    if len(scores) <= bins:
        return np.arange(len(scores)), scores
    starts = np.linspace(0, len(scores), bins, endpoint=False).astype(int)
    return starts, np.fmax.reduceat(scores, starts)


def spans(labels: np.ndarray) -> list[tuple[int, int]]:
    """Runs of True as (first row, row after the last).

    >>> spans(np.array([True, False, True, True]))
    [(0, 1), (2, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([0], labels.astype(int), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


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


def _draw_scores(
    axes: Axes,
    time: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    color: str,
    theme: str,
) -> None:
    first, top = peaks(np.asarray(scores, dtype=np.float64))
    low, high = _limits(top, threshold)
    shown = np.clip(top, low, high)  # NaN stays, and leaves a gap
    axes.plot(time[first], shown, color=color, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 2)
    axes.minorticks_off()
    if np.isfinite(threshold) and threshold > 0:
        _draw_threshold(axes, threshold, theme)
    alarms = time[first][top > threshold]
    top_edge = axes.get_xaxis_transform()
    marks = np.full(len(alarms), 0.97)
    axes.plot(alarms, marks, "|", color=color, markersize=6, transform=top_edge)


def _draw_threshold(axes: Axes, threshold: float, theme: str) -> None:
    axes.axhline(threshold, color=INK[theme], linewidth=0.9, dashes=(4, 3))
    axes.annotate(
        f"τ = {threshold:.3g}",
        (1, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK[theme],
        annotation_clip=False,
    )


def _limits(scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """Positive finite bounds of a log axis that shows the scores and τ."""
    known = np.append(scores, threshold)
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return 0.1, 10.0
    low, high = float(known.min()), float(known.max())
    low = max(low, high * 1e-9)  # one zero-like score must not flatten the rest
    infinite = bool(np.isposinf(scores).any())
    return low, high * (10 if infinite else 1)


def _shade(axes: Axes, time: np.ndarray, labels: np.ndarray, theme: str) -> None:
    step = float(np.median(np.diff(time))) if len(time) > 1 else 1.0
    bars = [
        (time[start], time[stop - 1] + step - time[start])
        for start, stop in spans(np.asarray(labels, dtype=bool))
    ]
    # The edge keeps an anomaly of one row wider than a pixel.
    axes.broken_barh(
        bars,
        (0, 1),
        transform=axes.get_xaxis_transform(),
        color=_ANOMALY[theme],
        alpha=0.25,
        linewidth=0.8,
        zorder=0,
    )


def _times(time: np.ndarray | None, rows: int) -> tuple[np.ndarray, bool]:
    """Positions on the x axis, and whether they are dates."""
    if time is None:
        return np.arange(rows, dtype=np.float64), False
    time = np.asarray(time)
    if time.dtype.kind == "M":
        return np.asarray(_dates.date2num(time)), True
    return time.astype(np.float64), False


def _date_axis(axes: Axes) -> None:
    locator = _dates.AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(_dates.ConciseDateFormatter(locator))


def _figure(height: float, theme: str) -> Figure:
    """A figure of that many inches, its margins fixed: measuring them doubles the time."""
    figure = Figure(figsize=(10, height), facecolor=PAPER[theme])
    figure.subplots_adjust(
        left=0.075, right=0.92, bottom=0.5 / height, top=1 - 0.12 / height, hspace=0.1
    )
    return figure
