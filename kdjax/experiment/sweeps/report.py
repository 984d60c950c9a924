"""The report of a sweep or a search: tables and Plotly figures in one HTML file."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from kdjax.evaluation.page import (
    COLORS,
    INK,
    Section,
    figure_html,
    json_html,
    notes_html,
    plain,
    render_page,
    table_html,
    words_html,
)
from kdjax.experiment.sweeps.tables import (
    DONE,
    FAILED,
    LEADING,
    SEED,
    field_text,
    measure_names,
    measure_text,
    member_means,
    summary_notes,
    summary_text,
)
from kdjax.io.files import write_text

# Costs of a student and the titles of their axes.
COSTS = {
    "parameters": "parameters",
    "bytes": "bytes of the exported file",
    "milliseconds": "ms per window, onnxruntime on one core",
}
SHAPE = "student.hidden"
MOST_CELLS = 16  # values on a side of a heat map
UNFOLDED_ROWS = 40  # a longer table of members is folded
LOG_SPAN = 100.0  # positive numbers this far apart get a logarithmic axis
LEAST_GAP = 0.04  # between two ticks, as a share of the axis
SPREAD, STEP = 0.025, 0.008  # of members that share a place, as shares of the axis
STUB = 0.3  # length of lines to a number that is missing, as a share of the others'


def write_sweep_report(
    path: str | os.PathLike[str],
    *,
    name: str,
    members: pd.DataFrame,
    fields: Sequence[str],
    measure: str,
    settings: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report of the table of `members_table`, whole or not at all.

    Figures show `measure`, and the validation losses of `history`, lines of metrics.jsonl.
    """
    others = [other for other in measure_names(members, fields) if other != measure]
    measures = [measure, *others]
    failed = members[members["status"] != DONE]
    counts = [
        _count(members["member"].nunique(), "member", "members"),
        f"{failed['member'].nunique():,} failed",
        _count(members["entity"].nunique(), "entity", "entities"),
        f"swept: {', '.join(fields) or 'nothing'}",
    ]
    summary = table_html(
        summary_text(members, fields=fields, measures=measures),
        " ".join(summary_notes(members, measures=measures)),
    )
    failures = failed[["member", *fields, "entity", "reason"]].map(field_text)
    failures_html = f'<div class="texts">{table_html(failures)}</div>'
    lines = frontier = curves = ""
    if fields:
        words = (
            f"A line a member, coloured by {measure} (mean over its entities). Members "
            "that share a value lie side by side. Dashed: failed."
        )
        figure = plot_parallel(members, fields=fields, measure=measure)
        lines = figure_html(figure, words)
    if costs_that_differ(members):
        words = f"{measure} against the costs of a student: a dot a member, lines their means."
        figure = plot_frontier(members, fields=fields, measure=measure)
        frontier = figure_html(figure, words)
    drawn = [line for line in history if line.get("validation_loss") is not None]
    if drawn:
        phases = _count(len({line["phase"] for line in drawn}), "phase", "phases")
        words = f"Validation loss over epochs of {phases}, a line each."
        curves = figure_html(plot_curves(drawn), words)
    sections = [
        Section("", words_html(" · ".join(counts))),
        Section("Notes", notes_html(notes)),
        Section("Summary", summary),
        Section("Failed members", "" if failed.empty else failures_html),
        Section("Members", lines),
        Section("Quality against size", frontier),
        _heat_map(members, fields, measure),
        Section("Learning curves", curves),
        Section("All numbers", _all_numbers(members, fields, measures)),
        Section("Base settings", json_html(settings)),
        Section("Environment", json_html(environment)),
    ]
    write_text(path, render_page(title=f"Sweep {name}", sections=sections))


def plot_parallel(
    members: pd.DataFrame, *, fields: Sequence[str], measure: str
) -> go.Figure:
    """Parallel coordinates: a line a member over one axis a field, the measure's last.

    Lines are coloured by the member's measure, a mean over its entities. Lines of members
    that failed are dashed, of those without a finite number dotted; both end before the
    last axis. Members that share a value lie side by side, in the order of the measure.
    """
    means = member_means(members, fields=fields, measures=[measure])
    numbers = means[measure]
    finite = np.isfinite(numbers).to_numpy()
    axes = [make_axis(means[field]) for field in fields]
    axes.append(make_axis(numbers[finite]))
    places = np.array([side_by_side(own, numbers) for own, _ in axes[:-1]]).T
    ends = places[:, -1].copy()
    ends[finite] = axes[-1][0]
    colors = sample_colorscale("Viridis", ends.clip(0, 1))
    kinds = [
        "" if known else "failed" if status == FAILED else f"no finite {measure}"
        for known, status in zip(finite, means["status"], strict=True)
    ]
    counts = Counter(kinds)
    figure = go.Figure()
    for number, member in enumerate(means.to_dict("records")):
        kind = kinds[number]
        names = ("member", *fields, measure)
        style = {"color": INK, "dash": "dash" if kind == "failed" else "dot"}
        figure.add_scatter(
            x=[*range(len(fields)), len(fields) - 1 + (STUB if kind else 1)],
            y=[*places[number], ends[number]],
            mode="lines",
            line={"width": 1.5} | (style if kind else {"color": colors[number]}),
            text="<br>".join(plain(f"{n}: {field_text(member[n])}") for n in names),
            hoverinfo="text",
            name=plain(f"{kind}: {counts[kind]}"),
            showlegend=bool(kind) and kind not in kinds[:number],
        )
    ticks = [(x, *tick) for x, (_, own) in enumerate(axes) for tick in own]
    figure.add_scatter(
        x=[x for x, _, _ in ticks],
        y=[place for _, place, _ in ticks],
        text=[plain(text, most=18) + "\u2002" for _, _, text in ticks],
        mode="text",
        textposition="middle left",
        hoverinfo="skip",
        showlegend=False,
    )
    return figure.update_layout(
        height=480,
        xaxis={
            "tickvals": [*range(len(axes))],
            "ticktext": [
                plain(name).replace(".", ".<br>").replace("_", "_<br>")
                for name in (*fields, measure)
            ],
            "side": "top",
            "range": [-0.4, len(fields) + 0.1],
            "gridcolor": INK,
        },
        yaxis={"visible": False, "range": [-0.05, 1.05]},
        legend={"orientation": "h"},
        margin={"t": 90},
    )


def plot_frontier(
    members: pd.DataFrame, *, fields: Sequence[str], measure: str
) -> go.Figure:
    """The measure over each cost: a dot a member, a line through the means of a shape.

    Members that differ in nothing but shape and seed share a colour.
    """
    costs = costs_that_differ(members)
    means = member_means(members, fields=fields, measures=[*costs, measure])
    means = means[means["status"] == DONE]
    others = [f for f in fields if f not in (SHAPE, SEED) and means[f].nunique() > 1]
    labels = pd.Series("", index=means.index)
    for field in others:
        comma = "" if field == others[0] else ", "
        labels += f"{comma}{field.split('.')[-1]} " + means[field].map(field_text)
    figure = make_subplots(cols=len(costs), shared_yaxes=True)
    for number, (label, own) in enumerate(means.groupby(labels)):
        style = {"color": COLORS[number % len(COLORS)]}
        for column, cost in enumerate(costs, start=1):
            line = own.groupby(SHAPE if SHAPE in fields else cost)[
                [cost, measure]
            ].mean()
            line = line.rename_axis(None).sort_values(cost)
            for frame, mode in ((own, "markers"), (line, "lines")):
                figure.add_scatter(
                    x=frame[cost],
                    y=frame[measure],
                    mode=mode,
                    marker=style | {"opacity": 0.6, "size": 5},
                    line=style | {"width": 1.5},
                    text=own["member"].map(plain) if mode == "markers" else None,
                    name=plain(str(label)),
                    legendgroup=number,
                    showlegend=bool(others) and (mode, column) == ("lines", 1),
                    row=1,
                    col=column,
                )
    for column, cost in enumerate(costs, start=1):
        title = COSTS[cost].replace(",", ",<br>").replace(" of ", "<br>of ")
        figure.update_xaxes(type="log", title=title, col=column)
    figure.update_yaxes(title=plain(measure), col=1)
    return figure.update_layout(height=400, legend={"orientation": "h", "y": 1.15})


def costs_that_differ(members: pd.DataFrame) -> list[str]:
    """The costs that differ between the members; none where all have one shape."""
    done = members[members["status"] == DONE]
    # Files of one shape differ by some bytes of their metadata.
    if "parameters" not in done or done["parameters"].nunique() < 2:
        return []
    return [cost for cost in COSTS if cost in done and done[cost].nunique() > 1]


def plot_heat_map(
    members: pd.DataFrame, *, rows: str, columns: str, measure: str
) -> go.Figure:
    """The mean of a measure over the members of each pair of two fields' values.

    Cells without a member are empty; those whose members have no finite number have a
    dash. Values ascend to the right and upwards.
    """
    means = member_means(members, fields=[rows, columns], measures=[measure])
    means[measure] = means[measure].where(np.isfinite(means[measure]))
    down, across = distinct(means[rows]), distinct(means[columns])
    cells = means.groupby([rows, columns])[measure]
    grid, present = (
        found.unstack(columns).reindex(index=down, columns=across)
        for found in (cells.mean(), cells.size())
    )
    heat_map = go.Heatmap(
        z=grid.to_numpy(),
        text=grid.map(measure_text).where(present.notna(), "").to_numpy(),
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
        colorscale="Viridis",
        colorbar={"title": {"text": plain(measure), "side": "right"}},
    )
    figure = go.Figure(heat_map, layout={"height": 140 + 40 * len(down)})
    for axis, field, values in (("x", columns, across), ("y", rows, down)):
        figure.layout[f"{axis}axis"].update(
            title=plain(field),
            tickvals=[*range(len(values))],
            ticktext=[plain(field_text(value), most=18) for value in values],
            showgrid=False,
        )
    return figure


def plot_curves(history: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Validation loss over epochs, a line a training, on a logarithmic axis."""
    names = ["phase", "epoch", "validation_loss"]
    lines = pd.DataFrame(
        [[one[name] for name in names] for one in history], columns=names
    )
    figure = go.Figure()
    for phase, curve in lines.sort_values("epoch").groupby("phase", sort=False):
        loss = curve["validation_loss"].astype(float)
        figure.add_scatter(
            x=curve["epoch"],
            y=loss.where((loss > 0) & np.isfinite(loss)),  # what has a logarithm
            mode="lines" if len(curve) > 1 else "markers",
            line={"color": COLORS[0], "width": 1},
            opacity=0.55,
            name=plain(str(phase)),
            showlegend=False,
        )
    figure.update_xaxes(title="epoch", dtick=1 + len(set(lines["epoch"])) // 10)
    return figure.update_yaxes(title="validation loss", type="log", exponentformat="e")


def heat_map_fields(
    members: pd.DataFrame, fields: Sequence[str]
) -> tuple[str, str] | None:
    """The fields for `rows` and `columns` of a heat map; None where two don't vary.

    The two with the most values, without the seed; of equals the earlier in `fields`.
    """
    counts = {field: members[field].nunique() for field in fields if field != SEED}
    varying = sorted((f for f in counts if counts[f] > 1), key=lambda f: -counts[f])
    return (varying[1], varying[0]) if len(varying) > 1 else None


def distinct(values: pd.Series) -> list[Any]:
    """The distinct values: numbers, and texts of numbers such as "64,64", ascending.

    Other texts keep the order in which they first appear.

    >>> distinct(pd.Series(["16", "8", "64,64", "8"]))
    ['8', '16', '64,64']
    """
    found = list(pd.unique(values))
    try:
        return sorted(found, key=lambda v: [float(n) for n in str(v).split(",")])
    except ValueError:
        return found


def make_axis(values: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Places of values on an axis from 0 to 1, and ticks: as many values as fit.

    Positive numbers over two decades are on a logarithmic axis; texts are evenly spaced.

    >>> make_axis(pd.Series([1.0, 10.0, 100.0]))
    (array([0. , 0.5, 1. ]), [(0.0, '1'), (0.5, '10'), (1.0, '100')])
    """
    if pd.api.types.is_numeric_dtype(values) and np.isfinite(values).all():
        numbers = values.to_numpy(float)
        least = numbers.min(initial=np.inf)
        if least > 0 and numbers.max(initial=0) >= LOG_SPAN * least:
            numbers = np.log(numbers)
    else:
        order = distinct(values)
        numbers = np.array([order.index(value) for value in values], float)
    halves = numbers / 2  # the span of the largest numbers would be infinite
    above = halves - halves.min(initial=np.inf)
    span = above.max(initial=0)
    places = above / span if span else np.full(len(halves), 0.5)
    ticks: list[tuple[float, str]] = []
    for number in np.argsort(places, kind="stable"):
        if not ticks or places[number] - ticks[-1][0] >= LEAST_GAP:
            ticks.append((float(places[number]), field_text(values.iloc[number])))
    return places, ticks


def side_by_side(places: np.ndarray, numbers: pd.Series) -> np.ndarray:
    """Members that share a place beside each other around it, `[P], [P] -> [P]`.

    The least number lies lowest, those that aren't finite below it.

    >>> side_by_side(np.array([0.0, 1.0, 1.0]), pd.Series([5.0, 7.0, 6.0])).round(3)
    array([0.   , 1.004, 0.996])
    """
    ranked = numbers.where(np.isfinite(numbers), -np.inf).groupby(places)
    rank, count = ranked.rank(method="first"), ranked.transform("size")
    # No member reaches a neighbouring place.
    room = min(SPREAD, 0.3 * np.diff(np.unique(places)).min(initial=1.0))
    step = np.minimum(STEP, 2 * room / np.maximum(count - 1, 1))
    return np.asarray(places + step * (rank - (count + 1) / 2))


def _heat_map(members: pd.DataFrame, fields: Sequence[str], measure: str) -> Section:
    pair = heat_map_fields(members, fields)
    if pair is None:
        return Section("", "")
    heading = f"{measure} by {pair[0]} and {pair[1]}"
    wide = [field for field in pair if members[field].nunique() > MOST_CELLS]
    if wide:
        words = f"No heat map: more than {MOST_CELLS} values of {', '.join(wide)}."
        return Section(heading, words_html(words))
    words = (
        f"Mean {measure} of the members with these values. A dash: none of them has a "
        "finite one; empty: no such member."
    )
    figure = plot_heat_map(members, rows=pair[0], columns=pair[1], measure=measure)
    return Section(heading, figure_html(figure, words))


def _all_numbers(
    members: pd.DataFrame, fields: Sequence[str], measures: Sequence[str]
) -> str:
    names = [name for name in (*LEADING, *fields) if name != "reason"]
    text = members[names].map(field_text)
    text[[*measures]] = members[[*measures]].map(measure_text)
    unfolded = " open" if len(text) <= UNFOLDED_ROWS else ""
    words = f"Each member and entity: {_count(len(text), 'row', 'rows')}"
    table = table_html(text)
    return f"<details{unfolded}><summary>{words}</summary>{table}</details>"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
