"""The shapes of a score timeline: lanes of events, curves over logarithmic axes, τ.

Shapes are parts of an SVG that is stretched to any width. What must not be stretched,
the texts, stands beside it as HTML. Colours are those of the page's styles.
"""

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

import numpy as np

from kdjax.metrics.checks import runs

MAX_POINTS = 4000  # of a curve
# Units of the drawing: across all of it, and in a CSS pixel down.
WIDTH, UNITS = 10_000, 4
# Heights in CSS pixels, and how far apart the texts beside an axis are.
_LANE, _PANEL, _TEXT = 14, 112, 13
_MOST_LEVELS = 4

Events = Iterable[tuple[int, int]]


class Drawing(NamedTuple):
    """Shapes so far, the texts beside them, and how high they are in CSS pixels."""

    shapes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    height: int = 0


def add_lane(
    drawing: Drawing, name: str, events: Events, edges: np.ndarray, *, style: str
) -> Drawing:
    """A line of bars, one for each event.

    Args:
        drawing: to which it is added.
        name: stands beside it.
        events: half-open spans of rows.
        edges: `[N + 1]` in [0, 1], from `row_edges`.
        style: class of the bars.
    """
    path = bars(events, edges, top=drawing.height + 3, height=_LANE - 5)
    return Drawing(
        (*drawing.shapes, f'<path class="event {style}" d="{path}"/>'),
        (*drawing.texts, _text("lane", drawing.height, name)),
        drawing.height + _LANE,
    )


def add_panel(
    drawing: Drawing, scores: np.ndarray, tau: float, edges: np.ndarray, *, style: str
) -> Drawing:
    """A curve of row scores `[N]` over a logarithmic axis, and τ where it has a place.

    Long series are drawn as the largest score of each bin, so that no peak is lost; an
    infinite score above the largest finite one.
    """
    first, top = peaks(np.asarray(scores, dtype=np.float64))
    low, high = _limits(top, tau)
    shown = np.clip(top, low, high)  # NaN stays, and leaves a gap
    # The edges keep the line and its ends inside.
    low, high = low / 1.3, high * 2

    def down(values: np.ndarray) -> np.ndarray:
        share = (np.log(high) - np.log(values)) / (np.log(high) - np.log(low))
        return np.asarray((drawing.height + share * _PANEL) * UNITS)

    levels = _powers(low, high)
    shapes = [_level("grid", float(down(np.array(level)))) for level in levels]
    texts = {level: float(down(np.array(level))) / UNITS for level in levels}
    shapes.append(
        f'<path class="curve {style}" d="{curve(edges[first], down(shown))}"/>'
    )
    known = bool(np.isfinite(tau) and tau > 0)
    if known:
        place = float(down(np.array(tau)))
        shapes.append(_level("tau", place))
        texts = {k: at for k, at in texts.items() if abs(at - place / UNITS) > _TEXT}
    names = [_text("level", at, short(level)) for level, at in texts.items()]
    if known:
        names.append(_text("level tau", place / UNITS, f"τ {short(tau)}"))
    return Drawing(
        (*drawing.shapes, *shapes), (*drawing.texts, *names), drawing.height + _PANEL
    )


def bars(events: Events, edges: np.ndarray, *, top: float, height: float) -> str:
    """A path of rectangles `height` CSS pixels high, one for each span of rows."""
    # Only where something begins or ends: a series may have millions of rows.
    ends = np.array([*events], np.int64).reshape(-1, 2)
    return "".join(
        f"M{start} {round(top * UNITS)}H{stop}v{round(height * UNITS)}H{start}z"
        for start, stop in _across(edges[ends])
    )


def curve(across: np.ndarray, down: np.ndarray) -> str:
    """A path through points, `[K]` in [0, 1], `[K]`; one that is NaN leaves a gap.

    >>> curve(np.array([0, 0.1, 0.2, 0.3]), np.array([5.0, 7.0, np.nan, 1.0]))
    'M0 5l1000 2M3000 1l0 0'
    """
    x = _across(across)
    parts = []
    for start, stop in spans(~np.isnan(down)):
        y = np.round(down[start:stop]).astype(np.int64)
        steps = np.stack([np.diff(x[start:stop]), np.diff(y)], axis=1).tolist()
        # A line without length shows as a dot.
        line = " ".join(f"{dx} {dy}" for dx, dy in steps or [(0, 0)])
        parts.append(f"M{x[start]} {y[0]}l{line.replace(' -', '-')}")
    return "".join(parts)


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
    return [(int(a), int(b)) for a, b in zip(*runs(labels), strict=True)]


def row_edges(time: np.ndarray | None, rows: int) -> np.ndarray:
    """Where each row begins on the axis, and where the last ends: `[N + 1]` in [0, 1].

    By time where rows have one, so that gaps are seen. A row lasts a median step.

    >>> row_edges(np.array([0.0, 1.0, 2.0, 7.0]), 4).tolist()
    [0.0, 0.125, 0.25, 0.875, 1.0]
    """
    if time is None or rows == 0:
        return np.linspace(0, 1, rows + 1)
    passed = np.asarray(time) - time[0]
    if passed.dtype.kind == "m":
        passed = passed / np.timedelta64(1, "us")
    step = float(np.median(np.diff(passed))) if rows > 1 else 1.0
    edges = np.append(passed, passed[-1] + (step or 1.0)).astype(np.float64)
    return np.asarray(edges / edges[-1])


def short(number: float) -> str:
    """A number for the side of an axis.

    >>> short(2154.7), short(1e-6), short(0.25)
    ('2150', '1e-06', '0.25')
    """
    plain = 1e-3 <= abs(number) < 1e6
    return f"{float(f'{number:.3g}'):.7g}" if plain else f"{number:.2g}"


def _across(edges: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(edges) * WIDTH).astype(np.int64)


def _level(style: str, down: float) -> str:
    return f'<path class="{style}" d="M0 {round(down)}h{WIDTH}"/>'


def _text(style: str, top: float, text: str) -> str:
    return f'<span class="{style}" style="top:{top:.0f}px">{escape(text)}</span>'


def _limits(scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """Positive finite bounds of a log axis that shows the scores and τ."""
    known = np.append(scores, threshold)
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return 0.1, 10.0
    low, high = float(known.min()), float(known.max())
    low = max(low, high * 1e-9)  # one zero-like score must not flatten the rest
    if threshold > 0:
        low = min(low, threshold)  # τ is always seen
    infinite = bool(np.isposinf(scores).any())
    return low, high * (10 if infinite else 1)


def _powers(low: float, high: float) -> list[float]:
    """Few powers of ten between two bounds."""
    first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
    step = max(1, -(-(last - first + 1) // _MOST_LEVELS))
    return [10.0**power for power in range(first, last + 1, step)]
