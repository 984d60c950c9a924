"""Figures of a report, drawn with Plotly, and the learning curve (Figure 3) as a PNG."""

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from kdjax.data.windowing import spread_evenly
from kdjax.errors import counted
from kdjax.evaluation.page import COLORS, INK, plain
from kdjax.evaluation.rows import EntityScores
from kdjax.metrics import as_scores
from kdjax.metrics.checks import runs

OBJECTIVES = {
    "teacher": "MSE(X_T, X)",
    "student": "L_S of Eq. 2",
    "student_alone": "L_S with α = 0",
}
MAX_POINTS = 4000  # of a curve over rows
MAX_STEPS = 1000  # of a curve over thresholds
HEAT_BINS = 600
MOST_CHANNELS = 40  # of a heat map
FAINTEST = 1e-2  # contributions below this share of τ are transparent
_NAMED_CURVES = 12  # more have no legend
_LANE, _PANEL, _CHANNEL, _GAP = 20, 130, 12, 8  # heights in pixels
_TRUE, _SHADE = "#e5484d", "rgba(229, 72, 77, 0.16)"
# No score (-1), and no (0) to full (1) contribution.
_HOT = (
    (0, "rgba(128, 128, 128, 0.35)"),
    (0.49, "rgba(128, 128, 128, 0.35)"),
    (0.5, "rgba(217, 84, 30, 0)"),
    (1, "rgba(217, 84, 30, 1)"),
)
_LOG: dict[str, Any] = {"type": "log", "exponentformat": "power"}
_SHARE: dict[str, Any] = {"range": [0, 1.02]}
_NO_EVENTS: Mapping[str, np.ndarray] = MappingProxyType({})


class Heat(NamedTuple):
    """Contributions of channels to one model's scores over time."""

    model: str
    channels: Sequence[str]  # D names
    contributions: np.ndarray  # [K, D] largest in each of `heat_bins`, NaN for no score
    threshold: float


class Timeline(NamedTuple):
    """One entity's rows under one or several models."""

    entity: str
    time: np.ndarray | None  # [N] datetime64 or numbers; None: row numbers
    labels: np.ndarray | None  # [N] bool
    scores: Mapping[str, np.ndarray]  # model -> [N], NaN for none
    thresholds: Mapping[str, float]  # model -> τ
    events: Mapping[str, np.ndarray] = _NO_EVENTS  # model -> [K, 2] half-open row spans
    heat: Heat | None = None
    what: str = "Row scores"
    clock: str = ""  # of the times, such as UTC+02:00


def learning_curve_png(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Figure 3: loss over epochs, training solid, validation dashed, log axis.

    `history` are the lines of `metrics.jsonl`.
    """
    figure = Figure(figsize=(10, 4.2), layout="tight")
    axes = figure.subplots()
    curves = _loss_curves(history)
    for number, (label, epochs, losses) in enumerate(curves):
        alone = "D" if len(epochs) == 1 else ""
        style, color = ("o-", f"--{alone}")[number % 2], _color(number // 2)
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
    for number, (label, epochs, losses) in enumerate(curves):
        dash = ("solid", "dash")[number % 2]
        line = _line(epochs, losses, plain(label), _color(number // 2), dash=dash)
        marked = number % 2 == 0 or len(epochs) == 1
        figure.add_trace(line.update(mode="lines+markers" if marked else "lines"))
    last = max((epochs[-1] for _, epochs, _ in curves), default=1)
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
) -> list[tuple[str, list[int], list[float]]]:
    """Label, epochs and losses; training and validation of each phase in turn."""
    phases: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in history:
        if "train_loss" in line or "validation_loss" in line:
            phases.setdefault(line["phase"], {})[line["epoch"]] = line
    curves = []
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
            curves.append((label, epochs, losses))
    return curves


def distribution_figure(scores: EntityScores, calibration: np.ndarray) -> go.Figure:
    """Share of windows above each score: calibration, test (normal, anomalous), and τ."""
    sets = {"calibration": calibration}
    test, labels = scores.window_scores, scores.window_labels
    if labels is not None:
        sets |= {"test, normal": test[~labels], "test, anomalous": test[labels]}
    elif len(test):
        sets["test"] = test
    figure = go.Figure()
    for number, (name, own) in enumerate(sets.items()):
        known = np.sort(own[~np.isnan(own)])
        share = 1 - np.arange(len(known)) / max(len(known), 1)
        # Scores that a log axis can't show still count in the shares.
        shown = np.flatnonzero(np.isfinite(known) & (known > 0))
        if len(shown):
            shown = shown[spread_evenly(len(shown), MAX_STEPS)]
            x, y, color = known[shown], share[shown], _color(number)
            figure.add_trace(_line(x, y, name, color, shape="vh"))
    tau = float(scores.threshold)
    if np.isfinite(tau) and tau > 0:
        name = f"τ = {tau:.4g}"
        figure.add_trace(_line([tau, tau], [0, 1], name, INK, dash="dash"))
    x, y = {"title": "window score"} | _LOG, {"title": "share of windows above"}
    return _finished(figure, x, y | _SHARE)


def precision_recall_figure(models: Mapping[str, EntityScores]) -> go.Figure:
    """Precision over recall of windows, a curve a model; a dot at its own τ.

    Steps, as average precision (in the legend) adds them up.
    """
    figure = go.Figure()
    for number, (model, scores) in enumerate(models.items()):
        color, name = _color(number), plain(model, most=24)
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


def timeline_figure(timeline: Timeline) -> go.Figure:
    """Events as bars, row scores of each model over a log axis with τ, and heat map.

    Long series are drawn as the largest score of each bin; an infinite score lies above
    the largest finite one.
    """
    models, heat = [*timeline.scores], timeline.heat
    lanes = models if timeline.labels is None else ["true events", *models]
    shown = [] if heat is None else largest_channels(heat)
    heights = [_LANE * max(len(lanes), 1), *[_PANEL] * len(models)]
    heights += [_CHANNEL * len(shown)] if shown else []
    last, total = len(heights), sum(heights) + _GAP * (len(heights) - 1)
    gap = _GAP / total
    figure = make_subplots(
        last, shared_xaxes=True, vertical_spacing=gap, row_heights=heights
    )
    edges = row_edges(timeline.time, len(next(iter(timeline.scores.values()), ())))
    figure.update_xaxes(type="date" if edges.dtype.kind == "M" else "linear")
    clock = f" ({timeline.clock})" if timeline.clock else ""
    title = "row" if timeline.time is None else f"time{clock}"
    figure.update_xaxes(title=title, row=last)
    figure.update_yaxes(fixedrange=True)
    figure.update_yaxes(_names(lanes), range=[len(lanes) - 0.5, -0.5], row=1)
    spans = dict(timeline.events)
    if timeline.labels is not None:
        labels = np.asarray(timeline.labels, dtype=bool)
        spans["true events"] = np.stack(runs(labels), axis=1)
        _shade(figure, edges[spans["true events"]])
    for lane, name in enumerate(lanes):
        color = _color(models.index(name)) if name in models else _TRUE
        events = np.asarray(spans.get(name, ()), np.int64).reshape(-1, 2)
        figure.add_trace(_event_bars(edges[events], name, lane, color), row=1, col=1)
    for row, name in enumerate(models, start=2):
        tau = timeline.thresholds.get(name, float("nan"))
        color = _color(row - 2)
        traces, axis = _score_panel(timeline.scores[name], tau, edges, name, color)
        figure.add_traces(traces, rows=row, cols=1)
        figure.update_yaxes(axis, row=row)
    if heat is not None and shown:
        figure.add_trace(_heat_map(heat, shown, edges), row=last, col=1)
        names = _names([heat.channels[place] for place in shown])
        figure.update_yaxes(names, tickfont_size=9, autorange="reversed", row=last)
    margin = {"l": 90, "t": 30, "b": 45}
    return figure.update_layout(height=total + 75, showlegend=False, margin=margin)


def timeline_words(timeline: Timeline) -> str:
    """The caption of a timeline."""
    axis = "rows" if timeline.time is None else "time"
    parts = [f"{timeline.what} (logarithmic) over {axis}; dashed: τ. Drag to zoom."]
    if timeline.events:
        parts.append("Bars above the curves: events that each model detects.")
    if timeline.labels is not None:
        parts.append("Shaded: labelled anomalies.")
    if (heat := timeline.heat) is not None:
        _, largest = _heat_range(heat, largest_channels(heat))
        parts.append(
            f"Below: contribution of each channel to the score of {heat.model}, "
            f"logarithmic from τ/{1 / FAINTEST:.0f} or less (clear) to {largest:.4g} "
            "(full); grey: no score."
        )
        if len(heat.channels) > MOST_CHANNELS:
            count = f"The {MOST_CHANNELS} largest of {len(heat.channels)} channels."
            parts.append(count)
    return " ".join(parts)


def row_edges(time: np.ndarray | None, rows: int) -> np.ndarray:
    """Where each row begins on the axis and where the last ends, `[N + 1]`.

    A row lasts a median step.

    >>> row_edges(np.array([0.0, 1.0, 2.0, 7.0]), 4).tolist()
    [0.0, 1.0, 2.0, 7.0, 8.0]
    """
    if time is None or rows == 0:
        return np.arange(rows + 1)
    time = np.asarray(time)
    if time.dtype.kind == "M":
        time = time.astype("datetime64[us]")
    steps = np.diff(time)
    step = np.median(steps.astype(np.float64)) if rows > 1 else 0.0
    last = time[-1:] + np.array(step or 1.0).astype(steps.dtype)
    return np.asarray(np.append(time, last))


def heat_bins(time: np.ndarray | None, rows: int) -> np.ndarray:
    """The column of the heat map in which each row lies, `[N]` int64.

    Columns are equally long on the axis, and at least a median step.

    >>> heat_bins(np.array([0.0, 1.0, 2.0, 7.0]), 4).tolist()
    [0, 1, 2, 7]
    """
    if rows == 0:
        return np.empty(0, np.int64)
    edges = row_edges(time, rows)
    places = (edges - edges[0]) / (edges[-1] - edges[0])
    count = min(HEAT_BINS, round(1 / (1 - places[-2])))
    # A place exactly on an edge belongs to the right, however it was rounded.
    bins = np.floor(places[:-1] * count + 1e-6).astype(np.int64)
    return np.asarray(np.minimum(bins, count - 1))


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


def largest_channels(heat: Heat) -> list[int]:
    """The channels of largest contribution, in their own order."""
    largest = np.fmax.reduce(heat.contributions, axis=0, initial=-np.inf)
    chosen = np.argsort(-largest, kind="stable")[:MOST_CHANNELS]
    return sorted(int(place) for place in chosen)


def _event_bars(spans: np.ndarray, name: str, lane: int, color: str) -> go.Bar:
    """A bar for each span of the axis, `[K, 2]`."""
    lengths = spans[:, 1] - spans[:, 0]
    if lengths.dtype.kind == "m":
        lengths = lengths / np.timedelta64(1, "ms")
    bars = go.Bar(base=spans[:, 0], x=lengths, y=[lane] * len(spans), orientation="h")
    # The outline keeps events of one row wider than a pixel.
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
    scores: np.ndarray, tau: float, edges: np.ndarray, name: str, color: str
) -> tuple[list[go.Scatter], dict[str, Any]]:
    """Curve of row scores `[N]`, line of τ where a log axis has it, and that axis."""
    first, largest = peaks(np.asarray(scores, dtype=np.float64))
    low, high = _limits(largest, tau)
    x, y = edges[first], np.clip(largest, low, high)  # NaN leaves a gap
    traces, title = [_line(x, y, plain(name), color, width=1.2)], _short(name)
    known = np.pad(~np.isnan(y), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    if alone.any():  # a line of one point can't be seen
        traces[0].update(mode="lines+markers", marker_size=np.where(alone, 3, 0))
    if np.isfinite(tau) and tau > 0:
        title += f"<br>τ {tau:.4g}"
        line = _line(edges[[0, -1]], [tau, tau], "τ", INK, dash="dash", width=1.5)
        traces.append(line)
    # The margins keep the line and its ends inside.
    bottom, top = np.log10(low) - 0.1, np.log10(high) + 0.3
    axis = {"title": {"text": title, "font": {"size": 11}}, "range": [bottom, top]}
    powers = {"dtick": np.ceil((top - bottom) / 4)} if top - bottom > 1.5 else {}
    return traces, axis | powers | _LOG


def _limits(scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """Positive finite bounds of a log axis that shows the scores and τ."""
    known = np.append(scores, threshold)
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return 0.1, 10.0
    low, high = float(known.min()), float(known.max())
    low = max(low, high * 1e-9)  # one zero-like score must not flatten the rest
    if 0 < threshold < np.inf:
        low = min(low, threshold)
    return low, high * (10 if np.isposinf(scores).any() else 1)


def _heat_map(heat: Heat, shown: list[int], edges: np.ndarray) -> go.Heatmap:
    """Contributions as opacity from 0 to 1; -1 where no row has a score."""
    faintest, largest = _heat_range(heat, shown)
    ratio = np.clip(heat.contributions[:, shown].T, faintest, largest) / faintest
    strength = np.nan_to_num(np.log(ratio) / np.log(largest / faintest), nan=-1)
    share = np.linspace(0, 1, len(heat.contributions) + 1)
    x = edges[0] + (edges[-1] - edges[0]) * share
    return go.Heatmap(
        x=x,
        z=strength.astype(np.float32),
        zmin=-1,
        zmax=1,
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


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _names(names: Sequence[str]) -> dict[str, Any]:
    """An axis with names at 0, 1, ..."""
    texts = [_short(name) for name in names]
    return {"tickvals": [*range(len(names))], "ticktext": texts, "showgrid": False}


def _short(name: str) -> str:
    """A name beside an axis."""
    return plain(name, most=14)
