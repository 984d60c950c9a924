"""Figures of a sweep: parallel coordinates, a heat map of two fields, all loss curves.

Drawn through matplotlib's Figure objects, never pyplot, as in `kdjax.evaluation.plots`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdjax.evaluation.drawing import (
    INK,
    PAPER,
    dress,
    saved,
)
from kdjax.experiment.sweeps.scales import (
    Scale,
    distinct,
    make_scale,
    place,
    side_by_side,
    ticks,
)
from kdjax.experiment.sweeps.tables import (
    FAILED,
    SEED,
    field_text,
    measure_text,
    member_means,
)

LONGEST = 18  # characters of a tick's text
EDGE = 0.035  # room above and below the axes, as a share of them
STUB = 0.3  # of the step between two axes
_FAINT = {"light": "#9aa1ab", "dark": "#6d7580"}
_MARK = {"light": "#1f6fb2", "dark": "#6db3f2"}
# The part of viridis that stands out from the paper.
_RANGE = {"light": (0.0, 0.88), "dark": (0.25, 1.0)}


class Colors(NamedTuple):
    """The colour of a number: `cmap(norm(number))`."""

    norm: Normalize
    cmap: Colormap


def plot_parallel(
    members: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    fields: Sequence[str],
    measure: str,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """Parallel coordinates: a line a member over one axis a field, the measure's last.

    Lines have the colour of the member's measure, a mean over its entities; the bar
    beside the last axis is its scale. Members that failed are dashed, members whose
    measure isn't finite are dotted; both end before the last axis. Members that share a
    value lie side by side around it, in the order of the measure.

    Args:
        members: the tidy table.
        path: where to write the picture as well; its ending chooses the format.
        fields: the swept fields, at least one.
        measure: the measure of the last axis.
        theme: `light` or `dark`.
        format: of the bytes, where there is no `path`: `png` or `svg`.
    """
    means = member_means(members, fields=fields, measures=[measure])
    scales = [make_scale(means[field]) for field in fields]
    numbers = means[measure].to_numpy()
    places = [
        side_by_side(place(scale, means[field]), numbers)
        for scale, field in zip(scales, fields, strict=True)
    ]
    last = make_scale(means.loc[np.isfinite(numbers), measure])
    figure = _figure(4.6, theme)
    figure.subplots_adjust(left=0.08, right=0.91, bottom=0.09, top=0.88)
    axes = figure.subplots()
    axes.set(xlim=(0, len(fields)), ylim=(-EDGE, 1 + EDGE))
    axes.set_axis_off()
    colors = Colors(_norm(last), _colormap(theme))
    lines = zip(np.stack(places, 1), numbers, means["status"], strict=True)
    for line in lines:
        _draw_member(axes, *line, last, colors, theme)
    for number, scale in enumerate(scales):
        _draw_axis(axes, number, scale, theme)
    _name_axes(axes, [*fields, measure], theme)
    _explain_styles(axes, means, measure, theme)
    if last.values:
        bottom, top = axes.get_position().y0, axes.get_position().y1
        edge = EDGE / (1 + 2 * EDGE) * (top - bottom)
        beside = figure.add_axes((0.91, bottom + edge, 0.014, top - bottom - 2 * edge))
        _color_bar(beside, colors, "", theme)
    return saved(figure, path, format)


def plot_heat_map(
    members: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    rows: str,
    columns: str,
    measure: str,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """The mean of a measure over the members of each pair of two fields' values.

    A cell without a member is empty; one whose members all failed or have no finite
    number shows a dash.

    Args:
        members: the tidy table.
        path: where to write the picture as well; its ending chooses the format.
        rows: the field on the vertical axis, its least value at the bottom.
        columns: the field on the horizontal axis.
        measure: whose mean is shown.
        theme: `light` or `dark`.
        format: of the bytes, where there is no `path`: `png` or `svg`.
    """
    means = member_means(members, fields=[rows, columns], measures=[measure])
    downs, acrosses = distinct(means[rows]), distinct(means[columns])
    grid, present = _grid(means, (rows, downs), (columns, acrosses))
    height = 1.0 + 0.42 * len(downs)
    figure = _figure(height, theme)
    figure.subplots_adjust(
        left=0.13, right=0.91, bottom=0.6 / height, top=1 - 0.15 / height
    )
    axes = figure.subplots()
    scale = make_scale(pd.Series(grid[np.isfinite(grid)]))
    colors = Colors(_norm(scale), _colormap(theme))
    axes.imshow(
        np.ma.masked_invalid(grid),
        norm=colors.norm,
        cmap=colors.cmap,
        aspect="auto",
        origin="lower",
    )
    for at, number in np.ndenumerate(grid):
        if present[at]:
            _write_cell(axes, at, number, colors, theme)
    _name_cells(axes, (rows, downs), (columns, acrosses), theme)
    if scale.values:
        box = axes.get_position()
        beside = figure.add_axes((0.92, box.y0, 0.014, box.height))
        _color_bar(beside, colors, measure, theme)
    return saved(figure, path, format)


def plot_curves(
    history: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """Validation loss over epochs, one thin line a phase, log axis.

    Args:
        history: lines of metrics.jsonl; those with a `validation_loss` are drawn.
        path: where to write the picture as well; its ending chooses the format.
        theme: `light` or `dark`.
        format: of the bytes, where there is no `path`: `png` or `svg`.
    """
    curves: dict[str, dict[int, float]] = {}
    for line in history:
        loss = line.get("validation_loss")
        if loss is not None:
            # A log axis can't show the others; NaN leaves a gap.
            shown = float(loss) if 0 < loss < np.inf else float("nan")
            curves.setdefault(line["phase"], {})[line["epoch"]] = shown
    figure = _figure(3.6, theme)
    figure.subplots_adjust(left=0.075, right=0.97, bottom=0.14, top=0.97)
    axes = figure.subplots()
    for phase, losses in curves.items():
        epochs = sorted(losses)
        axes.plot(
            epochs,
            [losses[epoch] for epoch in epochs],
            color=_MARK[theme],
            linewidth=0.9,
            alpha=0.55,
            marker="o" if len(epochs) == 1 else None,  # one epoch has no line
            markersize=3,
            label=phase,
        )
    if any(np.isfinite(list(losses.values())).any() for losses in curves.values()):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="validation loss")
    dress(axes, theme)
    axes.grid(axis="y", color=INK[theme], alpha=0.15, linewidth=0.6)
    return saved(figure, path, format)


def heat_map_fields(
    members: pd.DataFrame, fields: Sequence[str]
) -> tuple[str, str] | None:
    """The fields for `rows` and `columns` of a heat map; None where two don't vary.

    The two with the most distinct values, the seed aside; of equals the earlier in
    `fields`. `columns`, the wider side, has the more values.
    """
    counts = {field: len(distinct(members[field])) for field in fields if field != SEED}
    vary = [field for field, count in counts.items() if count >= 2]
    if len(vary) < 2:
        return None
    columns, rows = sorted(vary, key=lambda field: -counts[field])[:2]
    return rows, columns


def _draw_member(
    axes: Axes,
    places: np.ndarray,
    number: float,
    status: str,
    last: Scale,
    colors: Colors,
    theme: str,
) -> None:
    """One line through its `[F]` places and on to the measure's, where it has one."""
    across = np.arange(len(places) + 1.0)
    if np.isfinite(number):
        (end,) = place(last, pd.Series([number]))
        style: dict[str, Any] = {"color": colors.cmap(colors.norm(number))}
    else:
        # A stub past the last field shows which lines end there.
        end, across[-1] = places[-1], len(places) - 1 + STUB
        style = {"color": _FAINT[theme], "linestyle": "--" if status == FAILED else ":"}
        style |= {"marker": "x", "markevery": [-1], "markersize": 5, "zorder": 2.5}
    axes.plot(across, np.append(places, end), linewidth=1.4, **style)


def _draw_axis(axes: Axes, number: int, scale: Scale, theme: str) -> None:
    """A field's axis at x = `number`, its ticks to the left."""
    axes.plot([number] * 2, [0, 1], color=INK[theme], linewidth=0.9, zorder=3)
    # Lines pass behind the texts.
    patch = {"facecolor": PAPER[theme], "edgecolor": "none", "pad": 0.6}
    for where, text in ticks(scale):
        axes.annotate(
            _short(text),
            (number, where),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=INK[theme],
            parse_math=False,
            bbox=patch,
            zorder=4,
        )


def _name_axes(axes: Axes, names: Sequence[str], theme: str) -> None:
    for number, name in enumerate(names):
        axes.annotate(
            name.replace(".", ".\n"),
            (number, 1),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            color=INK[theme],
            parse_math=False,
            annotation_clip=False,
        )


def _explain_styles(axes: Axes, means: pd.DataFrame, measure: str, theme: str) -> None:
    """A legend of the grey lines, where there are any."""
    failed = means["status"] == FAILED
    without = ~failed & ~np.isfinite(means[measure])
    styles: tuple[tuple[Any, str, int], ...] = (
        ({"linestyle": "--"}, "failed", int(failed.sum())),
        ({"linestyle": ":"}, f"no finite {measure}", int(without.sum())),
    )
    handles = [
        Line2D([], [], color=_FAINT[theme], label=f"{name}: {number}", **style)
        for style, name, number in styles
        if number
    ]
    if handles:
        legend = axes.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            ncols=2,
            frameon=False,
            fontsize=8,
            labelcolor=INK[theme],
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _grid(
    means: pd.DataFrame, rows: tuple[str, list[Any]], columns: tuple[str, list[Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the finite numbers, NaN for none, and whether a cell has a member."""
    measure = means.columns[-1]
    numbers = np.full((len(rows[1]), len(columns[1])), np.nan)
    present = np.zeros(numbers.shape, bool)
    for (down, across), cell in means.groupby([rows[0], columns[0]], sort=False):
        at = rows[1].index(down), columns[1].index(across)
        present[at] = True
        numbers[at] = cell.loc[np.isfinite(cell[measure]), measure].mean()
    return numbers, present


def _write_cell(
    axes: Axes, at: tuple[int, ...], number: float, colors: Colors, theme: str
) -> None:
    ink = INK[theme]
    if np.isfinite(number):
        red, green, blue, _ = colors.cmap(colors.norm(number))
        light = 0.299 * red + 0.587 * green + 0.114 * blue
        ink = "black" if light > 0.5 else "white"
    text = measure_text(number)
    axes.text(at[1], at[0], text, ha="center", va="center", fontsize=8, color=ink)


def _name_cells(
    axes: Axes, rows: tuple[str, list[Any]], columns: tuple[str, list[Any]], theme: str
) -> None:
    for axis, set_label, (name, values) in (
        (axes.xaxis, axes.set_xlabel, columns),
        (axes.yaxis, axes.set_ylabel, rows),
    ):
        labels = [_short(field_text(value)) for value in values]
        axis.set_ticks(range(len(values)), labels, parse_math=False)
        set_label(name, parse_math=False)
    dress(axes, theme)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _color_bar(beside: Axes, colors: Colors, name: str, theme: str) -> None:
    figure = beside.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(ScalarMappable(*colors), cax=beside)
    bar.outline.set_visible(False)
    beside.set_ylabel(name, parse_math=False, color=INK[theme], fontsize=9)
    beside.tick_params(colors=INK[theme], which="both", labelsize=8)


def _norm(scale: Scale) -> Normalize:
    if scale.low == scale.high:  # its one colour is the middle one, as its place is
        wide = abs(scale.low) / 10 or 1.0
        return Normalize(scale.low - wide, scale.high + wide)
    return (LogNorm if scale.kind == "log" else Normalize)(scale.low, scale.high)


def _colormap(theme: str) -> Colormap:
    shades = np.linspace(*_RANGE[theme], 256)
    return ListedColormap(matplotlib.colormaps["viridis"](shades))


def _short(text: str) -> str:
    """What fits between two axes; of a path the end tells more."""
    return text if len(text) <= LONGEST else "…" + text[1 - LONGEST :]


def _figure(height: float, theme: str) -> Figure:
    return Figure(figsize=(10, height), facecolor=PAPER[theme])
