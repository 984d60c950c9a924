"""One HTML file that tells what a sweep found, to be read anywhere without a network.

Summary over the members that differ by their seed, failures, parallel coordinates, heat
map, all loss curves, every member's numbers, settings and versions.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import pandas as pd

from kdjax.evaluation.page import (
    figure,
    json_section,
    notes_section,
    page,
)
from kdjax.evaluation.report_tables import heads, html_table
from kdjax.experiment.sweeps.frontier import costs_that_differ, plot_frontier
from kdjax.experiment.sweeps.plots import (
    heat_map_fields,
    plot_curves,
    plot_heat_map,
    plot_parallel,
)
from kdjax.experiment.sweeps.scales import distinct
from kdjax.experiment.sweeps.tables import (
    DONE,
    LEADING,
    field_text,
    measure_text,
    summary_cells,
    summary_notes,
)
from kdjax.io.files import write_text

MOST_CELLS = 16  # a heat map with more values on a side can't be read
UNFOLDED_ROWS = 40  # a longer table of members is folded


def write_sweep_report(
    path: str | os.PathLike[str],
    *,
    name: str,
    members: pd.DataFrame,
    fields: Sequence[str],
    measures: Sequence[str],
    measure: str,
    settings: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report of a sweep, whole or not at all.

    Args:
        path: the HTML file.
        name: of the sweep, for the heading.
        members: the tidy table.
        fields: the swept fields.
        measures: what was measured.
        measure: the one of `measures` that colours the figures and comes first.
        settings: the base settings, in which members changed the fields.
        history: lines of metrics.jsonl; those with a validation loss are drawn.
        notes: what a reader should know.
        environment: versions and devices.
    """
    title = f"Sweep {name}"
    first = [measure, *(other for other in measures if other != measure)]
    sections = [
        f"<h1>{escape(title)}</h1>",
        _counts(members, fields),
        notes_section(notes),
        _summary(members, fields, first),
        _failures(members, fields),
        _parallel(members, fields, measure),
        _frontier(members, fields, measure),
        _heat_map(members, fields, measure),
        _curves(history),
        _members(members, fields, first),
        json_section("Base settings", settings),
        json_section("Environment", environment),
    ]
    write_text(path, page(title, sections))


def _counts(members: pd.DataFrame, fields: Sequence[str]) -> str:
    failed = members.loc[members["status"] != DONE, "member"].nunique()
    parts = [
        _number(members["member"].nunique(), "member", "members"),
        f"{failed:,} failed",
        _number(members["entity"].nunique(), "entity", "entities"),
        f"swept: {', '.join(fields) or 'nothing'}",
    ]
    return f'<p class="soft">{escape(" · ".join(parts))}</p>'


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _summary(
    members: pd.DataFrame, fields: Sequence[str], measures: Sequence[str]
) -> str:
    cells = summary_cells(members, fields=fields, measures=measures)
    words = " ".join(summary_notes(members, measures=measures))
    return (
        f"<h2>Summary</h2>\n{html_table(heads(cells.heads), cells.lines)}"
        f'<p class="soft">{escape(words)}</p>'
    )


def _failures(members: pd.DataFrame, fields: Sequence[str]) -> str:
    failed = members[members["status"] != DONE]
    if failed.empty:
        return ""
    names = ["member", *fields, "entity", "reason"]
    lines = [
        tuple(field_text(row[name]) for name in names)
        for row in failed.to_dict("records")
    ]
    table = html_table(heads(names), lines)
    return f'<h2>Failed members</h2>\n<div class="texts">{table}</div>'


def _parallel(members: pd.DataFrame, fields: Sequence[str], measure: str) -> str:
    if not fields:
        return ""  # one member, as the base says
    words = (
        f"A line a member, coloured by {measure} (mean over its entities). Members "
        "that share a value lie side by side. Dashed: failed."
    )
    draw = partial(plot_parallel, members, fields=fields, measure=measure)
    return f"<h2>Members</h2>\n{figure(draw, 'Parallel coordinates', words)}"


def _frontier(members: pd.DataFrame, fields: Sequence[str], measure: str) -> str:
    if not costs_that_differ(members):
        return ""
    words = (
        f"{measure} against what a student costs: a dot a member, lines their means."
    )
    draw = partial(plot_frontier, members, fields=fields, measure=measure)
    return f"<h2>Quality against size</h2>\n{figure(draw, 'Frontier', words)}"


def _heat_map(members: pd.DataFrame, fields: Sequence[str], measure: str) -> str:
    pair = heat_map_fields(members, fields)
    if pair is None:
        return ""
    title = f"<h2>{escape(measure)} by {escape(pair[0])} and {escape(pair[1])}</h2>"
    wide = [field for field in pair if len(distinct(members[field])) > MOST_CELLS]
    if wide:
        words = f"No heat map: more than {MOST_CELLS} values of {', '.join(wide)}."
        return f'{title}\n<p class="soft">{escape(words)}</p>'
    rows, columns = pair
    words = (
        f"Mean {measure} of the members with these values. A dash: none of them has a "
        "finite one; empty: no such member."
    )
    draw = partial(plot_heat_map, members, rows=rows, columns=columns, measure=measure)
    return f"{title}\n{figure(draw, 'Heat map', words)}"


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    drawn = [line for line in history if line.get("validation_loss") is not None]
    if not drawn:
        return ""
    count = _number(len({line["phase"] for line in drawn}), "phase", "phases")
    words = f"Validation loss over epochs of {count}, a line each."
    drawn_curves = figure(partial(plot_curves, drawn), "Learning curves", words)
    return f"<h2>Learning curves</h2>\n{drawn_curves}"


def _members(
    members: pd.DataFrame, fields: Sequence[str], measures: Sequence[str]
) -> str:
    names = [name for name in (*LEADING, *fields) if name != "reason"]
    lines = [
        (
            *(field_text(row[name]) for name in names),
            *(measure_text(row[measure]) for measure in measures),
        )
        for row in members.to_dict("records")
    ]
    table = html_table(heads([*names, *measures]), lines)
    unfolded = " open" if len(lines) <= UNFOLDED_ROWS else ""
    words = f"Each member and entity: {_number(len(lines), 'row', 'rows')}"
    return (
        f"<h2>All numbers</h2>\n<details{unfolded}><summary>{words}</summary>"
        f"{table}</details>"
    )
