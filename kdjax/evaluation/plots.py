"""Figures of a report, drawn with Plotly, and the learning curve (Figure 3) as a PNG."""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from kdjax.data.series import Series
from kdjax.data.times import axis_times
from kdjax.data.windowing import spread_evenly
from kdjax.detection.reading import CONTRIBUTION
from kdjax.errors import counted
from kdjax.evaluation.page import COLORS, INK, plain
from kdjax.evaluation.rows import NETWORKS, EntityScores
from kdjax.metrics import as_scores
from kdjax.metrics.checks import runs

OBJECTIVES = {
    "teacher": "MSE(X_T, X)",
    "student": "L_S of Eq. 2",
    "student_alone": "L_S with α = 0",
}
MAX_BINS = 2000  # runs of rows that are drawn as one
AROUND = 100  # rows before and after alarms that are drawn one by one, if they are few
MAX_STEPS = 1000  # of a curve over thresholds
MOST_CHANNELS = 40
GAP = 5  # median steps; a longer one is drawn as a gap
FAINTEST = 1e-2  # contributions below this share of τ are transparent
_NAMED_CURVES = 12  # more have no legend
# Heights in pixels: of a channel with and without its signal.
_LANE, _PANEL, _SIGNAL, _CHANNEL, _GAP = 20, 130, 28, 12, 8
_TRUE, _SHADE = "#e5484d", "rgba(229, 72, 77, 0.16)"
# No score (first half), and no to full contribution.
_HOT = (
    (0, "rgba(128, 128, 128, 0.35)"),
    (0.49, "rgba(128, 128, 128, 0.35)"),
    (0.5, "rgba(217, 84, 30, 0)"),
    (1, "rgba(217, 84, 30, 0.85)"),
)
_LOG: dict[str, Any] = {"type": "log", "exponentformat": "power"}
_SHARE: dict[str, Any] = {"range": [0, 1.02]}
_NONE: Mapping[str, Any] = MappingProxyType({})


class Heat(NamedTuple):
    """Contributions of channels to one model's scores over time."""

    model: str
    channels: Sequence[str]  # D names
    # [B, D] largest in the rows of each bin, NaN for no score
    contributions: np.ndarray
    threshold: float


class Timeline(NamedTuple):
    """One entity's rows under one or several models."""

    entity: str
    time: np.ndarray | None  # [N] datetime64 or numbers; None: row numbers
    labels: np.ndarray | None  # [N] bool
    scores: Mapping[str, np.ndarray]  # model -> [N] window scores, NaN for none
    thresholds: Mapping[str, float]  # model -> τ
    alarms: Mapping[str, np.ndarray] = _NONE  # model -> [K, 2] spans of rows in alarm
    starts: np.ndarray | None = None  # [B] first rows of bins, from `row_bins`
    heat: Heat | None = None  # by these bins
    signals: np.ndarray | None = None  # [N, D] raw values
    channels: Sequence[str] = ()  # D names, those of `heat` if there are both
    what: str = "Window scores"
    clock: str = ""  # of the times, such as UTC+02:00


def model_colors(models: Iterable[str]) -> dict[str, str]:
    """The colour of each model in all figures of a report."""
    names = dict.fromkeys([*NETWORKS, *models])
    return dict(zip(names, itertools.cycle(COLORS), strict=False))


def learning_curve_png(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Figure 3: loss over epochs, training solid, validation dashed, log axis.

    `history` are the lines of `metrics.jsonl`.
    """
    figure = Figure(figsize=(10, 4.2), layout="tight")
    axes = figure.subplots()
    curves = _loss_curves(history)
    for number, (label, epochs, losses, color) in enumerate(curves):
        alone = "D" if len(epochs) == 1 else ""
        style = ("o-", f"--{alone}")[number % 2]
        axes.plot(epochs, losses, style, label=label, color=color, markersize=3.5)
        if not np.isnan(losses).all():
            axes.set_yscale("log")
    if title := _curves_title(len(curves)):
        axes.set_title(title, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set(xlabel="epoch", ylabel="loss")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def learning_curve_figure(history: Sequence[Mapping[str, Any]]) -> go.Figure:
    """The same as a Plotly figure."""
    curves, figure = _loss_curves(history), go.Figure()
    for number, (label, epochs, losses, color) in enumerate(curves):
        dash = ("solid", "dash")[number % 2]
        line = _line(epochs, losses, plain(label), color, dash=dash)
        marked = number % 2 == 0 or len(epochs) == 1
        figure.add_trace(line.update(mode="lines+markers" if marked else "lines"))
    last = max((epochs[-1] for _, epochs, *_ in curves), default=1)
    title = _curves_title(len(curves))
    x, y = {"title": "epoch", "tick0": 0, "dtick": -(-last // 12)}, {"title": "loss"}
    _finished(figure, x, y | _LOG, height=420)
    return figure.update_layout(showlegend=not title, title=title)


def _curves_title(count: int) -> str:
    """The title of a learning curve that has no legend; empty for a legend."""
    if not count:
        return "no epoch was logged"
    many = f"{counted(count // 2, 'network')}; training solid, validation dashed"
    return many if count > _NAMED_CURVES else ""


def _loss_curves(
    history: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[int], list[float], str]]:
    """Label, epochs, losses, colour; training and validation of each phase in turn."""
    phases: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in history:
        if "train_loss" in line or "validation_loss" in line:
            phases.setdefault(line["phase"], {})[line["epoch"]] = line
    curves, colors = [], model_colors(phases)
    for phase, found in phases.items():
        epochs = sorted(found)
        # Validation is the reconstruction error, whatever training minimises.
        for key, label in (
            ("train_loss", f"{phase}: {OBJECTIVES.get(phase, 'loss')}, training"),
            ("validation_loss", f"{phase}: MSE(X', X), validation"),
        ):
            numbers = [found[epoch].get(key) or 0.0 for epoch in epochs]
            # A log axis shows no others: NaN leaves a gap.
            losses = [float(n) if 0 < n < np.inf else np.nan for n in numbers]
            curves.append((label, epochs, losses, colors[phase]))
    return curves


def distribution_figure(
    scores: EntityScores, calibration: np.ndarray, color: str = COLORS[0]
) -> go.Figure:
    """Share of windows above each score: calibration, test (normal, anomalous), and τ.

    `color` is that of the model.
    """
    sets = {"calibration": (calibration, INK)}
    test, labels = scores.window_scores, scores.window_labels
    if labels is not None:
        sets["test, normal"] = (test[~labels], color)
        sets["test, anomalous"] = (test[labels], _TRUE)
    elif len(test):
        sets["test"] = (test, color)
    figure = go.Figure()
    for name, (own, shade) in sets.items():
        known = np.sort(own[~np.isnan(own)])
        share = 1 - np.arange(len(known)) / max(len(known), 1)
        # Scores that a log axis can't show still count in the shares.
        shown = np.flatnonzero(np.isfinite(known) & (known > 0))
        if len(shown):
            shown = shown[spread_evenly(len(shown), MAX_STEPS)]
            figure.add_trace(_line(known[shown], share[shown], name, shade, shape="vh"))
    tau = float(scores.threshold)
    if np.isfinite(tau) and tau > 0:
        name = f"τ = {tau:.4g}"
        figure.add_trace(_line([tau, tau], [0, 1], name, INK, dash="dash"))
    x, y = {"title": "window score"} | _LOG, {"title": "share of windows above"}
    return _finished(figure, x, y | _SHARE)


def precision_recall_figure(
    models: Mapping[str, EntityScores], colors: Mapping[str, str] = _NONE
) -> go.Figure:
    """Precision over recall of windows, a curve a model; a dot at its own τ.

    Steps, as average precision (in the legend) adds them up. `colors` are by model.
    """
    figure = go.Figure()
    for model, scores in models.items():
        color, name = (colors or model_colors(models))[model], plain(model, most=24)
        known = ~np.isnan(scores.window_scores)
        labels = np.asarray(scores.window_labels, dtype=bool)[known]
        own = scores.window_scores[known].astype(np.float64)  # τ is compared in float64
        if not labels.any():
            continue
        precision, recall, area = precision_recall(labels, own)
        shown = spread_evenly(len(recall), MAX_STEPS)
        x, y, label = recall[shown], precision[shown], f"{name} (AP {area:.3f})"
        figure.add_trace(_line(x, y, label, color, shape="hv"))
        above = own > scores.threshold
        if above.any():
            hits, name = np.sum(labels & above), f"{name}, label-free τ"
            dot = _line([hits / labels.sum()], [hits / above.sum()], name, color)
            figure.add_trace(
                dot.update(mode="markers", marker_size=9, showlegend=False)
            )
    title = "" if figure.data else "no window is anomalous"
    x, y = {"title": "recall"}, {"title": "precision"}
    return _finished(figure, x | _SHARE, y | _SHARE).update_layout(title=title)


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


def score_timeline(table: pd.DataFrame, series: Series, *, model: str) -> Timeline:
    """The timeline of a score table, of the series that it is of.

    Without a column `tau` no threshold is drawn, and without contributions no heat map.
    """
    (time, clock), channels = axis_times(series.time, series.form), series.channels
    alarms = np.stack(runs(table["alarm"].to_numpy() > 0), axis=1)
    tau = float(table["tau"].iloc[0]) if "tau" in table else float("nan")
    starts, heat = row_bins(len(table), alarms), None
    parts = [CONTRIBUTION + name for name in channels]
    if set(parts) <= set(table):
        largest = np.fmax.reduceat(table[parts].to_numpy(np.float64), starts)
        heat = Heat(model, channels, largest, tau)
    return Timeline(
        entity=series.entity,
        time=time,
        labels=series.labels,
        scores={model: table["window_score"].to_numpy(np.float64)},
        thresholds={model: tau},
        alarms={model: alarms},
        starts=starts,
        heat=heat,
        signals=series.values,
        channels=channels,
        clock=clock,
    )


def timeline_figure(timeline: Timeline, colors: Mapping[str, str] = _NONE) -> go.Figure:
    """Alarms as bars, window scores of each model over a log axis with τ, and channels.

    A channel's lane has its signal from its lowest to its highest value, and its
    contributions behind it. A bin of rows is drawn as its largest score, and the lowest
    and highest value of each signal; an infinite score lies above the largest finite one.
    `colors` are by model.
    """
    models, heat = [*timeline.scores], timeline.heat
    colors = colors or model_colors(models)
    lanes = models if timeline.labels is None else ["true events", *models]
    shown = largest_channels(timeline)
    heights = [_LANE * max(len(lanes), 1), *[_PANEL] * len(models)]
    lane = _CHANNEL if timeline.signals is None else _SIGNAL
    heights += [lane * len(shown)] if shown else []
    last, total = len(heights), sum(heights) + _GAP * (len(heights) - 1)
    gap = _GAP / total
    figure = make_subplots(
        last, shared_xaxes=True, vertical_spacing=gap, row_heights=heights
    )
    rows = len(next(iter(timeline.scores.values()), ()))
    begins, ends = row_spans(timeline.time, rows)
    starts = timeline.starts
    if starts is None:
        spans = [*timeline.alarms.values(), np.empty((0, 2), np.int64)]
        starts = row_bins(rows, np.concatenate(spans))
    bins = _Bins(starts, begins[starts], ends[np.append(starts[1:], rows)[:rows] - 1])
    figure.update_xaxes(type="date" if begins.dtype.kind == "M" else "linear")
    clock = f" ({timeline.clock})" if timeline.clock else ""
    title = "row" if timeline.time is None else f"time{clock}"
    figure.update_xaxes(title=title, row=last)
    # The margin is wide enough, and Plotly draws twice to find one.
    figure.update_xaxes(automargin=False)
    figure.update_yaxes(fixedrange=True, automargin=False)
    figure.update_yaxes(_names(lanes), range=[len(lanes) - 0.5, -0.5], row=1)
    bars = dict(timeline.alarms)
    if timeline.labels is not None:
        labels = np.asarray(timeline.labels, dtype=bool)
        bars["true events"] = np.stack(runs(labels), axis=1)
    for place, name in enumerate(lanes):
        first, stop = np.asarray(bars.get(name, ()), np.int64).reshape(-1, 2).T
        own = np.stack([begins[first], ends[stop - 1]], axis=1)
        if name not in models:
            _shade(figure, own)
        bar = _alarm_bars(own, name, place, colors.get(name, _TRUE))
        figure.add_trace(bar, row=1, col=1)
    for row, name in enumerate(models, start=2):
        tau = timeline.thresholds.get(name, float("nan"))
        traces, axis = _score_panel(
            timeline.scores[name], tau, bins, name, colors[name]
        )
        figure.add_traces(traces, rows=row, cols=1)
        figure.update_yaxes(axis, row=row)
    if shown:
        if heat is not None:
            figure.add_trace(_heat_map(heat, shown, bins), row=last, col=1)
        if timeline.signals is not None:
            figure.add_traces(_signals(timeline, shown, bins), rows=last, cols=1)
        names = _names([_channels(timeline)[place] for place in shown])
        range_ = [len(shown) - 0.5, -0.5]
        figure.update_yaxes(names, tickfont_size=9, range=range_, row=last)
    margin = {"l": 90, "t": 30, "b": 45}
    return figure.update_layout(height=total + 75, showlegend=False, margin=margin)


def timeline_words(timeline: Timeline) -> str:
    """The caption of a timeline."""
    axis = "rows" if timeline.time is None else "time"
    parts = [f"{timeline.what} (logarithmic) over {axis}; dashed: τ. Drag to zoom."]
    if timeline.alarms:
        parts.append(
            "Bars: alarms. They follow the score of the latest window that had ended, which "
            "stays high until the abnormal rows have left the window; a row's own score "
            "(in score tables) is its mean over all windows that hold it."
        )
    if timeline.labels is not None:
        parts.append("Shaded: labelled anomalies.")
    if timeline.signals is not None:
        parts.append("Below: each signal between its lowest and highest value.")
    shown = largest_channels(timeline)
    if (heat := timeline.heat) is not None:
        _, largest = _heat_range(heat, shown)
        parts.append(
            f"Colour: contribution of each channel to the score of {heat.model}, "
            f"logarithmic from τ/{1 / FAINTEST:.0f} or less (clear) to {largest:.4g} "
            "(full); grey: no score."
        )
    if len(shown) < len(_channels(timeline)):
        which = "first" if heat is None else "largest"
        count = len(_channels(timeline))
        parts.append(f"The {which} {len(shown)} of {count:,} channels.")
    return " ".join(parts)


def row_spans(time: np.ndarray | None, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each row begins and ends on the axis, `[N]` each.

    A row lasts until the next, but before a gap and at the end a median step.

    >>> [part.tolist() for part in row_spans(np.array([0.0, 1.0, 3.0, 19.0]), 4)]
    [[0.0, 1.0, 3.0, 19.0], [1.0, 3.0, 5.0, 21.0]]
    """
    if time is None or rows == 0:
        return np.arange(rows), np.arange(rows) + 1
    time = np.asarray(time)
    if time.dtype.kind == "M":
        time = time.astype("datetime64[us]")
    steps = np.diff(time)
    median = np.median(steps.astype(np.float64)) if rows > 1 else 0.0
    step = np.array(median or 1.0).astype(steps.dtype)
    steps = np.append(steps, step)
    return time, time + np.where(steps > GAP * step, step, steps)


def row_bins(rows: int, spans: np.ndarray, *, most: int = MAX_BINS) -> np.ndarray:
    """First rows of the runs of rows that are drawn as one, at most `most`: `[B]` int64.

    Half of them are equally long. The others are single rows in and around spans of rows
    `[K, 2]`, so that one can zoom in there.

    >>> row_bins(1000, np.array([[500, 502]]), most=8)[:5].tolist()
    [0, 250, 400, 467, 500]
    """
    if rows <= most:
        return np.arange(rows)
    inside = np.zeros(rows, bool)
    for first, stop in spans:
        inside[max(first - AROUND, 0) : stop + AROUND] = True
    near = np.flatnonzero(inside)
    even = np.arange(most // 2) * rows // (most // 2)
    single = near[spread_evenly(len(near), most - len(even))] if len(near) else near
    return np.union1d(even, single)


class _Bins(NamedTuple):
    """Runs of rows that are drawn as one: first rows, and where they lie on the axis."""

    starts: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """The bins before which there is a gap."""
        return np.flatnonzero(self.ends[:-1] < self.begins[1:]) + 1


def largest_channels(timeline: Timeline) -> list[int]:
    """The channels to draw, in their own order: those of largest contribution."""
    count = len(_channels(timeline))
    if timeline.heat is None:
        return [*range(min(count, MOST_CHANNELS))]
    largest = np.fmax.reduce(timeline.heat.contributions, axis=0, initial=-np.inf)
    chosen = np.argsort(-largest, kind="stable")[:MOST_CHANNELS]
    return sorted(int(place) for place in chosen)


def _channels(timeline: Timeline) -> Sequence[str]:
    return timeline.heat.channels if timeline.heat else timeline.channels


def _alarm_bars(spans: np.ndarray, name: str, lane: int, color: str) -> go.Bar:
    """A bar for each span of the axis, `[K, 2]`."""
    lengths = spans[:, 1] - spans[:, 0]
    if lengths.dtype.kind == "m":
        lengths = lengths / np.timedelta64(1, "ms")
    bars = go.Bar(base=spans[:, 0], x=lengths, y=[lane] * len(spans), orientation="h")
    # The outline keeps alarms of one row wider than a pixel.
    marker = {"color": color, "line": {"color": color, "width": 1}}
    return bars.update(name=plain(name), width=0.6, marker=marker)


def _shade(figure: go.Figure, spans: np.ndarray) -> None:
    """Shades spans of the axis `[K, 2]` over all panels, as one shape."""
    texts: np.ndarray = spans.astype(str)
    path = "".join(f"M{a},0L{b},0L{b},1L{a},1Z" for a, b in texts).replace("T", "_")
    if path:
        style = {"fillcolor": _SHADE, "line": {"color": _SHADE, "width": 1}}
        figure.add_shape(type="path", path=path, yref="paper", layer="below", **style)


def _score_panel(
    scores: np.ndarray, tau: float, bins: _Bins, name: str, color: str
) -> tuple[list[go.Scatter], dict[str, Any]]:
    """Steps of window scores `[N]`, line of τ where a log axis has it, and that axis."""
    scores = np.asarray(scores, dtype=np.float64)
    largest = np.fmax.reduceat(scores, bins.starts) if len(scores) else scores
    known = np.append(largest, tau)
    known = known[np.isfinite(known) & (known > 0)]
    low, high = 0.1, 10.0  # of the log axis
    if len(known):
        # One score near zero must not flatten the rest.
        low, high = max(known.min(), known.max() * 1e-9), known.max()
        low = min(low, tau) if 0 < tau < np.inf else low
        high *= 10 if np.isposinf(largest).any() else 1
    y = np.repeat(np.clip(largest, low, high), 2)  # NaN leaves a hole
    x, gaps = np.stack([bins.begins, bins.ends], axis=1).ravel(), bins.gaps
    x, y = np.insert(x, 2 * gaps, bins.begins[gaps]), np.insert(y, 2 * gaps, np.nan)
    traces, title = [_line(x, y, plain(name), color, width=1.2)], _short(name)
    traces[0].update(hovertemplate="%{y:.4g}<br>%{x}<extra>%{fullData.name}</extra>")
    if np.isfinite(tau) and tau > 0 and len(x):
        title += f"<br>τ {tau:.4g}"
        line = _line(x[[0, -1]], [tau, tau], "τ", INK, dash="dash", width=1.5)
        traces.append(line)
    # The margins keep the line and its ends inside.
    bottom, top = np.log10(low) - 0.1, np.log10(high) + 0.3
    axis = {"title": {"text": title, "font": {"size": 11}}, "range": [bottom, top]}
    powers = {"dtick": np.ceil((top - bottom) / 4)} if top - bottom > 1.5 else {}
    return traces, axis | powers | _LOG


def _signals(timeline: Timeline, shown: Sequence[int], bins: _Bins) -> list[go.Scatter]:
    """Raw values of channels, each in its lane, as the lowest and highest of each bin."""
    signals: Any = timeline.signals
    limits = [limit.reduceat(signals, bins.starts) for limit in (np.fmin, np.fmax)]
    lengths = np.diff(np.append(bins.starts, len(signals)))
    # A row alone has one value.
    kept = np.stack([lengths > 0, lengths > 1], axis=1).ravel()
    x = np.repeat(bins.begins, 2)[kept]
    values = np.stack(limits, axis=1).reshape(-1, signals.shape[1])[kept].astype(float)
    gaps = np.cumsum(np.minimum(lengths, 2))[bins.gaps - 1]
    x, values = np.insert(x, gaps, bins.begins[bins.gaps]), values[:, shown]
    values = np.insert(values, gaps, np.nan, axis=0)
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    share = np.where(
        high > low, (values - low) / np.where(high > low, high - low, 1), 0.5
    )
    y = np.arange(len(shown)) + 0.42 - 0.84 * share
    y[np.isnan(values)] = np.nan
    found = []
    for lane, place in enumerate(shown):
        name = plain(timeline.channels[place])
        line = _line(x, y[:, lane].astype(np.float32), name, INK, width=1)
        hover = "%{customdata:.5g}<br>%{x}<extra>%{fullData.name}</extra>"
        own = values[:, lane].astype(np.float32)
        found.append(line.update(customdata=own, hovertemplate=hover))
    return found


def _heat_map(heat: Heat, shown: list[int], bins: _Bins) -> go.Heatmap:
    """Contributions as opacity in percent; -100 where no row has a score."""
    faintest, largest = _heat_range(heat, shown)
    ratio = np.clip(heat.contributions[:, shown].T, faintest, largest) / faintest
    strength = 100 * np.nan_to_num(np.log(ratio) / np.log(largest / faintest), nan=-1)
    x, gaps = np.append(bins.begins, bins.ends[-1:]), bins.gaps
    return go.Heatmap(
        x=np.insert(x, gaps, bins.ends[gaps - 1]),
        z=np.insert(strength.round(), gaps, -100, axis=1).astype(np.int8),
        zmin=-100,
        zmax=100,
        colorscale=_HOT,
        showscale=False,
        hovertemplate="%{y}, %{x}<extra></extra>",
    )


def _heat_range(heat: Heat, shown: Sequence[int]) -> tuple[float, float]:
    """The contributions of no opacity and of full opacity."""
    parts, tau = heat.contributions[:, shown], heat.threshold
    largest = float(parts[np.isfinite(parts)].max(initial=0.0))
    faintest = FAINTEST * (tau if np.isfinite(tau) and tau > 0 else largest or 1.0)
    return faintest, max(largest, 10 * faintest)


def _line(x: Any, y: Any, name: str, color: str, **style: Any) -> go.Scatter:
    return go.Scatter(x=x, y=y, name=name, mode="lines", line={"color": color, **style})


def _finished(figure: go.Figure, x: Any, y: Any, height: int = 360) -> go.Figure:
    """A small figure with its axes, and a legend below."""
    layout = {"height": height, "legend": {"orientation": "h", "y": -0.25}}
    return figure.update_layout(layout, xaxis=x, yaxis=y, showlegend=True)


def _names(names: Sequence[str]) -> dict[str, Any]:
    """An axis with names at 0, 1, ..."""
    texts = [_short(name) for name in names]
    return {"tickvals": [*range(len(names))], "ticktext": texts, "showgrid": False}


def _short(name: str) -> str:
    """A name beside an axis."""
    return plain(name, most=14)
