"""Tables and report of a sweep or a search.

A table has a row a member and entity: `member`, `entity`, `status`, `reason`, the swept
fields under their dotted names, the measures. Means are taken over a member's entities
first and then over members, so that a member counts once however many of its entities
have a number. The report has tables and Plotly figures in one HTML file.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from rich import box
from rich.table import Table
from rich.text import Text

from kdjax.errors import DataError, counted
from kdjax.evaluation import page
from kdjax.evaluation.page import COLORS, INK, Section
from kdjax.evaluation.tables import MISSING
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
LEAST_GAP = 0.04  # between two ticks, as a share of the axis
SPREAD, STEP = 0.025, 0.008  # of members that share a place, as shares of the axis
STUB = 0.3  # length of lines to a number that is missing, as a share of the others'


# Tables.


def members_table(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> pd.DataFrame:
    """The table sorted by member; a member's entities keep their order.

    Rows have `LEADING`, a number or text for each field, and measures, which are NaN
    where they are absent or None. DataError where one lacks a value or has a wrong one.
    """
    rows, fixed = list(rows), [*LEADING, *fields]
    measures = dict.fromkeys(key for row in rows for key in row if key not in fixed)
    table = pd.DataFrame(rows, columns=[*fixed, *measures])
    table = table.sort_values("member", kind="stable", ignore_index=True)

    def check(faulty: pd.Series, what: str) -> None:
        if faulty.any():
            row = table[faulty].iloc[0]
            where = f"members, {row['member']!r}, {row['entity']!r}"
            raise DataError(f"{where}: {what}; run the sweep again.")

    for name in fixed:
        check(table[name].isna(), f"{name} has no value")
    check(~table["status"].isin([DONE, FAILED]), "status is neither done nor failed")
    for name in measures:
        numbers = pd.to_numeric(table[name], errors="coerce")
        check(numbers.isna() & table[name].notna(), f"{name} is no number")
        table[name] = numbers.astype("float64")
    return table


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
    table = Table(
        title=Text(f"{name}: members by their settings"),
        caption=Text(" ".join(summary_notes(members, measures=measures))),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    for head in map(str, cells):
        is_field = head in fields  # these columns fold
        table.add_column(
            Text(head.replace(".", ".\n").replace("_", "_\n")),
            justify="left" if is_field else "right",
            overflow="fold",
            no_wrap=not is_field,
            vertical="bottom",
        )
    for line in cells.itertuples(index=False, name=None):
        table.add_row(*map(Text, line))
    return table


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

    Figures show `measure`, and the validation losses of `history`, lines of
    metrics.jsonl.
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
    lines = frontier = curves = ""
    if fields:
        words = (
            f"A line a member, coloured by {measure} (mean over its entities). Members "
            "that share a value lie side by side. Dashed: failed."
        )
        figure = plot_parallel(members, fields=fields, measure=measure)
        lines = page.figure_html(figure, words)
    if costs_that_differ(members):
        words = f"{measure} against the costs of a student: a dot a member, lines their means."
        figure = plot_frontier(members, fields=fields, measure=measure)
        frontier = page.figure_html(figure, words)
    drawn = [line for line in history if line.get("validation_loss") is not None]
    if drawn:
        phases = counted(len({line["phase"] for line in drawn}), "phase")
        words = f"Validation loss over epochs of {phases}, a line each."
        curves = page.figure_html(plot_curves(drawn), words)
    sections = [
        Section("", page.words_html(" · ".join(counts))),
        Section("Notes", page.notes_html(notes)),
        Section("Summary", summary),
        Section("Failed members", "" if failed.empty else failures_html),
        Section("Members", lines),
        Section("Quality against size", frontier),
        _heat_map(members, fields, measure),
        Section("Learning curves", curves),
        Section("All numbers", _all_numbers(members, fields, measures)),
        Section("Base settings", page.json_html(settings)),
        Section("Environment", page.json_html(environment)),
    ]
    write_text(path, page.render_page(title=f"Sweep {name}", sections=sections))


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
            text="<br>".join(
                page.plain(f"{n}: {field_text(member[n])}") for n in names
            ),
            hoverinfo="text",
            name=page.plain(f"{kind}: {counts[kind]}"),
            showlegend=bool(kind) and kind not in kinds[:number],
        )
    ticks = [(x, *tick) for x, (_, own) in enumerate(axes) for tick in own]
    figure.add_scatter(
        x=[x for x, _, _ in ticks],
        y=[place for _, place, _ in ticks],
        text=[page.plain(text, most=18) + "\u2002" for _, _, text in ticks],
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
                page.plain(name).replace(".", ".<br>").replace("_", "_<br>")
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
        figure.layout[f"{axis}axis"].update(
            title=page.plain(field),
            tickvals=[*range(len(values))],
            ticktext=[page.plain(field_text(value), most=18) for value in values],
            showgrid=False,
        )
    return figure


def plot_curves(history: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Validation loss over epochs, a line a training, on a logarithmic axis."""
    names = ["phase", "epoch", "validation_loss"]
    lines = pd.DataFrame(list(history), columns=names)
    figure = go.Figure()
    for phase, curve in lines.sort_values("epoch").groupby("phase", sort=False):
        loss = curve["validation_loss"].astype(float)
        figure.add_scatter(
            x=curve["epoch"],
            y=loss.where((loss > 0) & np.isfinite(loss)),  # what has a logarithm
            mode="lines" if len(curve) > 1 else "markers",
            line={"color": COLORS[0], "width": 1},
            opacity=0.55,
            name=page.plain(str(phase)),
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
        return Section(heading, page.words_html(words))
    words = (
        f"Mean {measure} of the members with these values. A dash: none of them has a "
        "finite one; empty: no such member."
    )
    figure = plot_heat_map(members, rows=pair[0], columns=pair[1], measure=measure)
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
