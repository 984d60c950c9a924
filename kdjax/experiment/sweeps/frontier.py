"""The figure by which a student is picked: quality against what it costs to run."""

import os
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from kdjax.evaluation.drawing import (
    INK,
    PAPER,
    dress,
    saved,
)
from kdjax.experiment.sweeps.tables import (
    DONE,
    SEED,
    field_text,
    member_means,
)

# What a student may cost, on an axis each, and what a reader calls it.
COSTS = {
    "parameters": "parameters",
    "bytes": "bytes of the exported file",
    "milliseconds": "ms per window, onnxruntime on one core",
}
SHAPE = "student.hidden"
_COLORS = {
    "light": ("#1f6fb2", "#c8501e", "#2f8f4e", "#7a4fb5", "#8a6d1d"),
    "dark": ("#6db3f2", "#f2915f", "#6fce8c", "#b394e8", "#d9b95f"),
}


def costs_that_differ(members: pd.DataFrame) -> list[str]:
    """The costs that tell the members apart."""
    done = members[members["status"] == DONE]
    # Files of one shape differ by some bytes of their metadata.
    if "parameters" not in done or done["parameters"].nunique() < 2:
        return []
    return [cost for cost in COSTS if cost in done and done[cost].nunique() > 1]


def plot_frontier(
    members: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    fields: Sequence[str],
    measure: str,
    theme: str = "light",
    format: str = "png",
) -> bytes:
    """A measure over each cost, logarithmic: a dot a member, a line through its means.

    Members that differ in nothing but shape and seed share a line and a colour.

    Args:
        members: the tidy table.
        path: where to write the picture as well; its ending chooses the format.
        fields: the swept fields.
        measure: on the vertical axis.
        theme: `light` or `dark`.
        format: of the bytes, where there is no `path`.
    """
    costs = costs_that_differ(members)
    figure = Figure(figsize=(10, 3.6), facecolor=PAPER[theme], layout="constrained")
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    means = member_means(members, fields=fields, measures=[*costs, measure])
    means = means[means["status"] == DONE]
    others = [f for f in fields if f not in (SHAPE, SEED) and means[f].nunique() > 1]
    for number, (values, group) in enumerate(_groups(means, others)):
        color = _COLORS[theme][number % len(_COLORS[theme])]
        label = ", ".join(
            f"{f.split('.')[-1]} {v}" for f, v in zip(others, values, strict=True)
        )
        for place, cost in zip(axes, costs, strict=True):
            _draw(place, group, cost, measure, color, label or "members")
    for place, cost in zip(axes, costs, strict=True):
        place.set_xscale("log")
        # Labels that fit whether a cost spans one decade or three.
        place.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        place.xaxis.set_major_formatter(
            "{x:g}" if cost == "milliseconds" else EngFormatter(sep="")
        )
        place.xaxis.set_minor_formatter(NullFormatter())
        place.set_xlabel(COSTS[cost])
        dress(place, theme)
        place.grid(axis="y", color=INK[theme], alpha=0.15, linewidth=0.6)
    axes[0].set_ylabel(measure, parse_math=False)
    if others:
        axes[-1].legend(frameon=False, fontsize=8, labelcolor=INK[theme])
    return saved(figure, path, format)


def _groups(
    means: pd.DataFrame, others: Sequence[str]
) -> list[tuple[Any, pd.DataFrame]]:
    if not others:
        return [((), means)]
    texts = [means[field].map(field_text) for field in others]
    return [(key, group) for key, group in means.groupby(texts, sort=True)]


def _draw(
    axes: Axes, group: pd.DataFrame, cost: str, measure: str, color: str, label: str
) -> None:
    axes.plot(group[cost], group[measure], ".", color=color, alpha=0.6, markersize=5)
    shape: Any = SHAPE if SHAPE in group else cost
    line = (
        group.groupby(shape)[[cost, measure]].mean().rename_axis(None).sort_values(cost)
    )
    axes.plot(line[cost], line[measure], "-", color=color, linewidth=1.2, label=label)
