"""Tables and report of a sweep or a search.

A table has one row per member and entity: `member`, `entity`, `status`, `reason`, the
swept fields under their dotted names, the measures. Means are taken over a member's
first and then over members, so that a member counts once however many of its entities
have a number. The report has tables and Plotly figures in one HTML file.
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kdjax.errors import counted
from kdjax.evaluation import page
from kdjax.evaluation.page import COLORS, Section
from kdjax.evaluation.plots import learning_curve_figure
from kdjax.evaluation.tables import MISSING, Table
from kdjax.experiment.sweeps.design import DONE, FAILED, SEED
from kdjax.io.files import write_text

LEADING = ("member", "entity", "status", "reason")
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
PANELS = 3  # beside each other


# Tables.


def members_table(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> pd.DataFrame:
    """The table sorted by member; a member's entities keep their order.

    Rows have `LEADING`, a number or text for each field, and measures, which are NaN
    where they are absent or None.
    """
    rows, fixed = list(rows), [*LEADING, *fields]
    measures = dict.fromkeys(key for row in rows for key in row if key not in fixed)
    table = pd.DataFrame(rows, columns=[*fixed, *measures])
    table = table.sort_values("member", kind="stable", ignore_index=True)
    return table.astype(dict.fromkeys(measures, "float64"))


def measure_names(members: pd.DataFrame, fields: Sequence[str]) -> tuple[str, ...]:
    """The measures among the columns of the table."""
    return tuple(str(name) for name in members if name not in (*LEADING, *fields))


def write_table(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Writes a CSV file, whole or not at all.

    Texts are quoted and numbers are not, so that "007" differs from 7; NaN is `nan`.
    """
    text = io.StringIO()
    # `to_csv` with this quoting quotes NaN as well.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows(frame.astype(object).itertuples(index=False, name=None))
    write_text(path, text.getvalue())


def member_means(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """One row a member: `member`, `status`, fields, each measure's mean over entities.

    Entities without a number are left out; a mean of none is NaN. A member that failed
    on any entity has status `failed` and no means.
    """
    by_member = members.groupby("member", sort=False)
    done = (members["status"] == DONE).groupby(members["member"], sort=False).all()
    means = members.drop_duplicates("member").set_index("member")[["status", *fields]]
    means["status"] = done.map({True: DONE, False: FAILED})
    for measure in measures:
        means[measure] = by_member[measure].mean().where(done)
    return means.reset_index()


def summary_means(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """Means and standard deviations over the members that differ by their seed alone.

    Columns: the fields without `seed`, `members` (number done), `failed`, and for each
    measure `M_mean` and `M_sd` (ddof 1; NaN for a single member) over the done members
    that have one. A sweep of nothing but the seed is one group.
    """
    means = member_means(members, fields=fields, measures=measures)
    keys = [field for field in fields if field != SEED]
    done = means["status"] == DONE
    number = pd.Series(0, index=means.index)
    if keys:
        number = means.groupby(keys, sort=False).ngroup()
    table = means.loc[~number.duplicated(), keys].reset_index(drop=True)
    table["members"] = done.groupby(number).sum()
    table["failed"] = (~done).groupby(number).sum()
    for measure in measures:
        table[f"{measure}_mean"] = means[measure].groupby(number).mean()
        table[f"{measure}_sd"] = means[measure].groupby(number).std()
    return table


def summary_text(
    members: pd.DataFrame, *, fields: Sequence[str], measures: Sequence[str]
) -> pd.DataFrame:
    """The summary as text, a column `mean ± sd` for each measure."""
    table = summary_means(members, fields=fields, measures=measures)
    text = table[[name for name in fields if name != SEED]].map(field_text)
    text[["members", "failed"]] = table[["members", "failed"]].astype(str)
    for measure in measures:
        pairs = zip(table[f"{measure}_mean"], table[f"{measure}_sd"], strict=True)
        text[measure] = [spread_text(mean, sd) for mean, sd in pairs]
    return text


def summary_table(
    members: pd.DataFrame, *, name: str, fields: Sequence[str], measures: Sequence[str]
) -> Table:
    """The summary for a terminal, which has room for a few measures."""
    cells = summary_text(members, fields=fields, measures=measures)
    notes = " ".join(summary_notes(members, measures=measures))
    return Table(f"{name}: members by their settings", cells, notes)


def summary_notes(members: pd.DataFrame, *, measures: Sequence[str]) -> list[str]:
    """What the summary's numbers are, and which are undefined for some rows."""
    failed = members.loc[members["status"] != DONE, "member"]
    done = members[~members["member"].isin(failed)]
    missing = {measure: int(done[measure].isna().sum()) for measure in measures}
    return ["Mean ± standard deviation over the done members of a line."] + [
        f"{measure} is undefined in {count:,} of {len(done):,} rows of done members, "
        "which its means leave out."
        for measure, count in missing.items()
        if count
    ]


def field_text(value: float | str) -> str:
    """A field's value as shown.

    >>> field_text("64,64"), field_text(0.35), field_text(16.0), field_text(1234567)
    ('64,64', '0.35', '16', '1234567')
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def measure_text(number: float) -> str:
    """A measure to four digits, or a whole number from 1,000 on; a dash for NaN.

    >>> measure_text(0.39514), measure_text(482601.0), measure_text(float("nan"))
    ('0.3951', '482,601', '–')
    """
    if math.isnan(number):
        return MISSING
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.4g}"


def spread_text(mean: float, sd: float) -> str:
    """Mean ± standard deviation, both to the second digit of the deviation.

    >>> spread_text(0.39514, 0.01234), spread_text(482601.0, 0.0)
    ('0.395 ± 0.012', '482,601 ± 0')
    >>> spread_text(0.39514, float("nan")), spread_text(float("nan"), float("nan"))
    ('0.3951', '–')
    """
    if not math.isfinite(sd):
        return measure_text(mean)
    if sd == 0:
        return f"{measure_text(mean)} ± 0"
    decimals = max(1 - math.floor(math.log10(sd)), 0)
    if decimals > 6 or abs(mean) >= 1e9:
        return f"{mean:.4g} ± {sd:.2g}"
    return f"{mean:,.{decimals}f} ± {sd:,.{decimals}f}"


# The report.


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

    Figures show `measure`, and the losses of `history`, lines of metrics.jsonl.
    """
    others = [other for other in measure_names(members, fields) if other != measure]
    measures = [measure, *others]
    failed = members[members["status"] != DONE]
    counts = [
        counted(members["member"].nunique(), "member"),
        f"{failed['member'].nunique():,} failed",
        counted(members["entity"].nunique(), "entity", "entities"),
        f"swept: {', '.join(fields) or 'nothing'}",
    ]
    summary = page.table_html(
        summary_text(members, fields=fields, measures=measures),
        " ".join(summary_notes(members, measures=measures)),
    )
    failures = failed[["member", *fields, "entity", "reason"]].map(field_text)
    failures_html = f'<div class="texts">{page.table_html(failures)}</div>'
    dots = frontier = curves = ""
    if fields:
        words = (
            f"{measure} over each field: a dot a member, its mean over entities. Members "
            f"without a finite {measure} have no dot."
        )
        figure = plot_fields(members, fields=fields, measure=measure)
        dots = page.figure_html(figure, words)
    if costs_that_differ(members):
        words = f"{measure} against the costs of a student: a dot a member, lines their means."
        figure = plot_frontier(members, fields=fields, measure=measure)
        frontier = page.figure_html(figure, words)
    if history:
        words = "Loss over epochs. Solid: training; dashed: validation."
        curves = page.figure_html(learning_curve_figure(history), words)
    sections = [
        Section("", page.words_html(" · ".join(counts))),
        Section("Notes", page.notes_html(notes)),
        Section("Summary", summary),
        Section("Failed members", "" if failed.empty else failures_html),
        Section("Members", dots),
        Section("Quality against size", frontier),
        _heat_map(members, fields, measure),
        Section("Learning curves", curves),
        Section("All numbers", _all_numbers(members, fields, measures)),
        Section("Base settings", page.json_html(settings)),
        Section("Environment", page.json_html(environment)),
    ]
    write_text(path, page.render_page(title=f"Sweep {name}", sections=sections))


def plot_fields(
    members: pd.DataFrame, *, fields: Sequence[str], measure: str
) -> go.Figure:
    """The measure over each field: a panel a field, a dot a member.

    A dot is a mean over entities, and its text has all fields of its member. Members
    without a finite measure have no dot.
    """
    means = member_means(members, fields=fields, measures=[measure])
    means = means[np.isfinite(means[measure])]
    names = ("member", *fields, measure)
    texts = [
        "<br>".join(page.plain(f"{name}: {field_text(one[name])}") for name in names)
        for one in means.to_dict("records")
    ]
    rows = -(-len(fields) // PANELS)
    figure = make_subplots(rows, min(len(fields), PANELS), shared_yaxes="all")
    for number, field in enumerate(fields):
        row, column = divmod(number, PANELS)
        place = {"row": row + 1, "col": column + 1}
        x, values = means[field], distinct(means[field])
        axis: dict[str, Any] = {"title": page.plain(field)}
        if pd.api.types.is_numeric_dtype(x):
            if len(x) and x.min() > 0 and x.max() >= LOG_SPAN * x.min():
                axis["type"] = "log"
        else:
            x, axis = x.map(values.index), _value_axis(field, values)
        figure.add_scatter(
            x=x,
            y=means[measure],
            mode="markers",
            marker={"color": COLORS[0], "opacity": 0.6},
            text=texts,
            hoverinfo="text",
            showlegend=False,
            **place,
        )
        figure.update_xaxes(axis, **place)
    figure.update_yaxes(title=page.plain(measure), col=1)
    return figure.update_layout(height=100 + 260 * rows)


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
            shape = SHAPE if SHAPE in fields else cost
            line = own.groupby(shape)[[cost, measure]].mean()
            line = line.rename_axis(None).sort_values(cost)
            for frame, mode in ((own, "markers"), (line, "lines")):
                figure.add_scatter(
                    x=frame[cost],
                    y=frame[measure],
                    mode=mode,
                    marker=style | {"opacity": 0.6, "size": 5},
                    line=style | {"width": 1.5},
                    text=own["member"].map(page.plain) if mode == "markers" else None,
                    name=page.plain(str(label)),
                    legendgroup=number,
                    showlegend=bool(others) and (mode, column) == ("lines", 1),
                    row=1,
                    col=column,
                )
    for column, cost in enumerate(costs, start=1):
        title = COSTS[cost].replace(",", ",<br>").replace(" of ", "<br>of ")
        figure.update_xaxes(type="log", title=title, col=column)
    figure.update_yaxes(title=page.plain(measure), col=1)
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
        colorbar={"title": {"text": page.plain(measure), "side": "right"}},
    )
    figure = go.Figure(heat_map, layout={"height": 140 + 40 * len(down)})
    for axis, field, values in (("x", columns, across), ("y", rows, down)):
        figure.layout[f"{axis}axis"].update(_value_axis(field, values), showgrid=False)
    return figure


def heat_map_fields(
    members: pd.DataFrame, fields: Sequence[str]
) -> tuple[str, str] | None:
    """The fields for `rows` and `columns` of a heat map; None where two don't fit.

    The two with the most values, `MOST_CELLS` at most, without the seed; of equals the
    earlier in `fields`.
    """
    counts = {field: members[field].nunique() for field in fields if field != SEED}
    fitting = [field for field in counts if 1 < counts[field] <= MOST_CELLS]
    varying = sorted(fitting, key=lambda field: -counts[field])
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


def _value_axis(field: str, values: Sequence[Any]) -> dict[str, Any]:
    """An axis with a tick for each of a field's values, at 0, 1, ..."""
    ticks = [page.plain(field_text(value), most=18) for value in values]
    places = [*range(len(values))]
    return {"title": page.plain(field), "tickvals": places, "ticktext": ticks}


def _heat_map(members: pd.DataFrame, fields: Sequence[str], measure: str) -> Section:
    pair = heat_map_fields(members, fields)
    if pair is None:
        return Section("", "")
    words = (
        f"Mean {measure} of the members with these values. A dash: none of them has a "
        "finite one; empty: no such member."
    )
    figure = plot_heat_map(members, rows=pair[0], columns=pair[1], measure=measure)
    heading = f"{measure} by {pair[0]} and {pair[1]}"
    return Section(heading, page.figure_html(figure, words))


def _all_numbers(
    members: pd.DataFrame, fields: Sequence[str], measures: Sequence[str]
) -> str:
    names = [name for name in (*LEADING, *fields) if name != "reason"]
    text = members[names].map(field_text)
    text[[*measures]] = members[[*measures]].map(measure_text)
    unfolded = " open" if len(text) <= UNFOLDED_ROWS else ""
    words = f"Each member and entity: {counted(len(text), 'row')}"
    table = page.table_html(text)
    return f"<details{unfolded}><summary>{words}</summary>{table}</details>"
