"""An entity's scores over time, and the channels that they come from, as HTML.

One SVG in the reader's colours. It can be zoomed without a script: switches above it make
it 4 or 16 times as wide inside its scrolling box. Below it, over the same axis, lies a heat
map of the channels.
"""

import io
from collections.abc import Mapping
from html import escape
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib.dates
import matplotlib.image
import numpy as np
from matplotlib.ticker import MaxNLocator

from kdjax.evaluation.page import data_uri
from kdjax.evaluation.strips import (
    UNITS,
    WIDTH,
    Drawing,
    add_lane,
    add_panel,
    bars,
    row_edges,
    short,
    spans,
)

ZOOMS = (1, 4, 16)
HEAT_BINS = 600
MOST_CHANNELS = 40  # more can't be told apart
# Contributions vary by orders of magnitude. Those below this share of τ stay clear.
FAINTEST = 1e-2

_STYLES = 5  # c0 to c4 of the page's styles
_CHANNEL = 11  # height in CSS pixels
_HOT = (217, 84, 30)  # stands out from light paper and from dark
_UNKNOWN = (128, 128, 128, 90)
_TICKS = 6  # at most, in the width of the box
_dates: Any = matplotlib.dates  # has no annotations
_NO_EVENTS: Mapping[str, np.ndarray] = MappingProxyType({})


class Heat(NamedTuple):
    """What channels contributed to one model's scores over time.

    Attributes:
        model: its name.
        channels: the D names.
        parts: `[K, D]` largest contribution in each column of the map, see `heat_bins`;
            NaN where no row has a score.
        threshold: its τ.
    """

    model: str
    channels: tuple[str, ...]
    parts: np.ndarray
    threshold: float


class Timeline(NamedTuple):
    """One entity's rows under one or several models.

    Attributes:
        entity: its name.
        time: `[N]` datetime64 or numbers; None for row numbers.
        labels: `[N]` bool; None where there are none.
        scores: model -> `[N]` row scores, NaN where a row has none.
        thresholds: model -> τ.
        events: model -> `[K, 2]` half-open spans of the rows of detected events.
        heat: of one of the models.
    """

    entity: str
    time: np.ndarray | None
    labels: np.ndarray | None
    scores: Mapping[str, np.ndarray]
    thresholds: Mapping[str, float]
    events: Mapping[str, np.ndarray] = _NO_EVENTS
    heat: Heat | None = None


def timeline_html(timeline: Timeline, *, key: str, what: str = "Row scores") -> str:
    """The figure of a timeline.

    Args:
        timeline: what to draw.
        key: a word of letters and digits that no other timeline of the page has.
        what: is drawn, for the caption.
    """
    drawn = _drawing(timeline)
    picture, channels, words = _heat_map(timeline.heat)
    ticks, span = _ticks(timeline)
    name = escape(f"Scores of {timeline.entity}")
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {drawn.height * UNITS}" preserveAspectRatio="none" '
        f'style="height:{drawn.height}px" role="img" aria-label="{name}">'
        f"{''.join(drawn.shapes)}</svg>"
    )
    caption = escape(" ".join(filter(None, [_words(timeline, what, span), words])))
    return (
        f'<figure class="timeline">{_switches(key)}<div class="plot">'
        f'<div class="names"><div style="height:{drawn.height}px">'
        f"{''.join(drawn.texts)}</div>{channels}</div>"
        f'<div class="box"><div class="wide">{svg}{picture}{ticks}</div></div></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def heat_bins(time: np.ndarray | None, rows: int) -> np.ndarray:
    """The column of the heat map in which each row lies, `[N]` int64.

    Columns are equally long on the axis, and at least a median step.

    >>> heat_bins(np.array([0.0, 1.0, 2.0, 7.0]), 4).tolist()
    [0, 1, 2, 7]
    """
    edges = row_edges(time, rows)
    count = min(HEAT_BINS, round(1 / (1 - edges[-2]))) if rows else 1
    # What is exactly on an edge is to the right of it, however it was rounded.
    bins = np.floor(edges[:-1] * count + 1e-6).astype(np.int64)
    return np.minimum(bins, count - 1)


def _drawing(timeline: Timeline) -> Drawing:
    edges = row_edges(timeline.time, len(next(iter(timeline.scores.values()), ())))
    drawing, labels = Drawing(), timeline.labels
    true = [] if labels is None else spans(np.asarray(labels, dtype=bool))
    if labels is not None:
        drawing = add_lane(drawing, "true events", true, edges, style="true")
    for number, (model, scores) in enumerate(timeline.scores.items()):
        style = f"c{number % _STYLES}"
        events = timeline.events.get(model, np.empty((0, 2), np.int64)).tolist()
        tau = timeline.thresholds.get(model, float("nan"))
        drawing = add_lane(drawing, model, events, edges, style=style)
        drawing = add_panel(drawing, scores, tau, edges, style=style)
    shade = bars(true, edges, top=0, height=drawing.height)
    # First, so that all else lies above it.
    return drawing._replace(
        shapes=(f'<path class="shade" d="{shade}"/>', *drawing.shapes)
    )


def _words(timeline: Timeline, what: str, span: str) -> str:
    parts = [f"{what} (logarithmic) over {span}; dashed: τ."]
    if timeline.events:
        parts.append("Bars above a curve: events that it detects.")
    if timeline.labels is not None:
        parts.append("Shaded: labelled anomalies.")
    return " ".join(parts)


def _switches(key: str) -> str:
    return '<span class="soft">Zoom</span>' + "".join(
        f'<input type="radio" name="{key}" id="{key}x{zoom}" class="x{zoom}"'
        f'{" checked" if zoom == 1 else ""}><label for="{key}x{zoom}">{zoom}×</label>'
        for zoom in ZOOMS
    )


def _ticks(timeline: Timeline) -> tuple[str, str]:
    """Texts below the axis for each zoom, and what the axis shows."""
    rows = len(next(iter(timeline.scores.values()), ()))
    edges = row_edges(timeline.time, rows)
    parts, span = [], "rows" if timeline.time is None else "time"
    for zoom in ZOOMS:
        places, labels, offset = _marks(timeline.time, edges, _TICKS * zoom)
        if offset and zoom == 1:
            span = f"{span} ({offset})"
        inside = "".join(
            f'<span style="left:{place:.2%}">{escape(label)}</span>'
            for place, label in zip(places, labels, strict=True)
            if 0.03 / zoom
            <= place
            <= 1 - 0.03 / zoom  # a text needs room on both sides
        )
        parts.append(f'<div class="ticks z{zoom}">{inside}</div>')
    return "".join(parts), span


def _marks(
    time: np.ndarray | None, edges: np.ndarray, most: int
) -> tuple[np.ndarray, list[str], str]:
    """Places in [0, 1] of round values, their texts, and what these leave out."""
    if time is not None and len(time) and np.asarray(time).dtype.kind == "M":
        first = float(_dates.date2num(time[0]))
        length = float(_dates.date2num(time[-1]) - first) / max(edges[-2], 1e-9)
        # A third as many at least: with more no unit of time would do for some lengths.
        locator = _dates.AutoDateLocator(minticks=most // 3, maxticks=most)
        ends = _dates.num2date([first, first + (length or 1.0)])
        values = np.asarray(locator.tick_values(*ends))
        formatter = _dates.ConciseDateFormatter(locator)
        labels = formatter.format_ticks(values)
        return (values - first) / (length or 1.0), labels, formatter.get_offset()
    first, length = 0.0, float(max(len(edges) - 1, 1))
    if time is not None and len(time):
        first = float(time[0])
        length = (float(time[-1]) - first) / max(edges[-2], 1e-9) or 1.0
    values = np.asarray(MaxNLocator(most).tick_values(first, first + length))
    return (values - first) / length, [f"{value:,.10g}" for value in values], ""


def _heat_map(heat: Heat | None) -> tuple[str, str, str]:
    """The picture, the names beside it and the words below it."""
    if heat is None:
        return "", "", ""
    shown = _largest_channels(heat)
    image, largest = _colours(heat.parts[:, shown], heat.threshold)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, image, format="png")
    picture = (
        f'<img class="heat" alt="Contributions of channels" '
        f'style="height:{_CHANNEL * len(shown)}px" src="{data_uri(buffer.getvalue())}">'
    )
    names = "".join(f"<span>{escape(heat.channels[place])}</span>" for place in shown)
    words = (
        f"Below: what each channel contributes to the score of {heat.model}, "
        f"logarithmic from τ/{1 / FAINTEST:.0f} or less (clear) to {short(largest)} "
        "(full); grey: no score."
    )
    if len(shown) < len(heat.channels):
        words += f" The {len(shown)} largest of {len(heat.channels)} channels."
    return picture, f'<div class="channels">{names}</div>', words


def _largest_channels(heat: Heat) -> list[int]:
    """The channels of largest contribution, in their own order."""
    largest = np.fmax.reduce(heat.parts, axis=0, initial=-np.inf)
    chosen = np.argsort(-largest, kind="stable")[:MOST_CHANNELS]
    return sorted(int(place) for place in chosen)


def _colours(parts: np.ndarray, tau: float) -> tuple[np.ndarray, float]:
    """Parts `[K, D]` as RGBA `[D, K, 4]` uint8, and the part that has full colour."""
    finite = parts[np.isfinite(parts)]
    largest = float(finite.max(initial=0.0))
    faintest = FAINTEST * (tau if np.isfinite(tau) and tau > 0 else largest or 1.0)
    largest = max(largest, 10 * faintest)
    ratio = np.clip(parts, faintest, largest) / faintest  # NaN stays
    strength = np.log(ratio) / np.log(largest / faintest)
    image = np.zeros((*parts.shape, 4), np.uint8)
    image[..., :3] = _HOT
    image[..., 3] = np.round(255 * np.nan_to_num(strength)).astype(np.uint8)
    image[np.isnan(parts)] = _UNKNOWN
    return image.swapaxes(0, 1), largest
