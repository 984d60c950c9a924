"""One HTML file that tells what a sweep found, to be read anywhere without a network.

Summary over the members that differ by their seed, failures, parallel coordinates, heat
map, all loss curves, every member's numbers, settings and versions. Styles and pictures
are inside the file; nothing is fetched and no script runs.
"""

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Protocol

import pandas as pd

from kdjax.artifacts import write_text
from kdjax.evaluation.report_tables import heads, html_table
from kdjax.sweep.plots import (
    heat_map_fields,
    plot_curves,
    plot_heat_map,
    plot_parallel,
)
from kdjax.sweep.scales import distinct
from kdjax.sweep.tables import (
    DONE,
    LEADING,
    field_text,
    measure_text,
    summary_cells,
    summary_notes,
)

MOST_CELLS = 16  # a heat map with more values on a side can't be read
UNFOLDED_ROWS = 40  # a longer table of members is folded
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5b6370; --paper: #f6f7f9;
  --card: #ffffff; --line: #d9dde3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa3b0;
  --paper: #101216; --card: #181b20; --line: #30353d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.scroll, figure, pre { overflow-x: auto; background: var(--card); margin: 0;
  border: 1px solid var(--line); border-radius: 8px; }
figure { padding: .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 500; font-size: .8rem; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
.texts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.texts th { text-align: left; }
img { display: block; width: 100%; min-width: 38rem; height: auto; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
pre { padding: .8rem; font-size: .8rem; line-height: 1.45; }
li { overflow-wrap: anywhere; }
"""


class Draw(Protocol):
    """A figure that still needs its theme."""

    def __call__(self, *, theme: str) -> bytes:
        """The picture as PNG."""


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
        _notes(notes),
        _summary(members, fields, first),
        _failures(members, fields),
        _parallel(members, fields, measure),
        _heat_map(members, fields, measure),
        _curves(history),
        _members(members, fields, first),
        _block("Base settings", settings),
        _block("Environment", environment),
    ]
    write_text(path, _page(title, sections))


def _page(title: str, sections: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def _counts(members: pd.DataFrame, fields: Sequence[str]) -> str:
    failed = members.loc[members["status"] != DONE, "member"].nunique()
    parts = [
        _number(members["member"].nunique(), "member", "members"),
        f"{failed:,} failed",
        _number(members["entity"].nunique(), "entity", "entities"),
        f"swept: {', '.join(fields)}",
    ]
    return f'<p class="soft">{escape(" · ".join(parts))}</p>'


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes)
    return f"<h2>Notes</h2>\n<ul>{items}</ul>"


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
    words = (
        f"A line a member, coloured by {measure} (mean over its entities). Members "
        "that share a value lie side by side. Dashed: failed."
    )
    draw = partial(plot_parallel, members, fields=fields, measure=measure)
    return f"<h2>Members</h2>\n{_figure(draw, 'Parallel coordinates', words)}"


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
    return f"{title}\n{_figure(draw, 'Heat map', words)}"


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    drawn = [line for line in history if line.get("validation_loss") is not None]
    if not drawn:
        return ""
    count = _number(len({line["phase"] for line in drawn}), "phase", "phases")
    words = f"Validation loss over epochs of {count}, a line each."
    figure = _figure(partial(plot_curves, drawn), "Learning curves", words)
    return f"<h2>Learning curves</h2>\n{figure}"


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


def _figure(draw: Draw, alt: str, words: str) -> str:
    light, dark = (_data_uri(draw(theme=theme)) for theme in ("light", "dark"))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{dark}">'
        f'<img alt="{escape(alt)}" src="{light}"></picture>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def _block(title: str, content: Mapping[str, Any] | None) -> str:
    if not content:
        return ""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    return f"<h2>{escape(title)}</h2>\n<pre>{escape(text)}</pre>"
