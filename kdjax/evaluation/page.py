"""The HTML page of a report: one file that makes no network request.

Plotly's library, the figures and styles are inside the file. Light and dark
follow the reader's system.
"""

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from kdjax.evaluation.tables import MISSING

# Of curves, in their order; they are readable on light and on dark paper.
COLORS = (
    "#2f87d0", "#e0662a", "#3a9d64", "#a06cd0", "#a8862c",
    "#d14d8b", "#1a9fa3", "#8d6e63", "#5c6bc0", "#7a8f1e",
)  # fmt: skip
INK = "#808893"  # of axes and lines, on both papers
SAME_X = "same"  # stands for the x of the trace before
_GRID = "rgba(128, 128, 128, 0.25)"
_AXIS = {"gridcolor": _GRID, "zeroline": False, "linecolor": INK, "automargin": True}
_CLEAR = "rgba(0, 0, 0, 0)"
_TEMPLATE = {
    "layout": {
        "colorway": COLORS,
        "font": {"color": INK, "size": 12},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "margin": {"l": 60, "r": 20, "t": 30, "b": 45},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "modebar": {"bgcolor": _CLEAR, "color": INK, "activecolor": COLORS[0]},
    }
}


class Section(NamedTuple):
    """A part of a page: its heading as text, empty for none, and its content as HTML."""

    heading: str
    html: str
    folded: bool = False


class Link(NamedTuple):
    """A stretch of a figure's axis."""

    figure: str  # its name
    start: Any  # where the axis begins and ends: dates or numbers
    stop: Any


def render_page(*, title: str, sections: Sequence[Section]) -> str:
    """The whole HTML file; sections without content are left out."""
    shown = [section for section in sections if section.html]
    drawn = any('<div class="plot"' in section.html for section in shown)
    loader = jinja2.PackageLoader("kdjax.evaluation", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # The digest by which a content security policy names a script.
    environment.filters["sha256"] = lambda script: base64.b64encode(
        hashlib.sha256(script.encode()).digest()
    ).decode("ascii")
    return environment.get_template("report.html.jinja").render(
        title=title, sections=shown, plotly=get_plotlyjs() if drawn else ""
    )


def figure_html(figure: go.Figure, words: str = "", *, name: str = "") -> str:
    """A Plotly figure with a caption of plain text; `render_page` adds plotly.js.

    Colours of paper, axes and text are those of the page. `name` is what links of
    `table_html` call it.
    """
    shown = figure.to_dict()
    shown["layout"] = {**shown["layout"], "template": _TEMPLATE}
    traces = shown["data"]
    for before, trace in list(itertools.pairwise(traces))[::-1]:
        if "x" in trace and np.array_equal(before.get("x"), trace["x"]):
            trace["x"] = SAME_X  # in the file once; the page's script puts it back
    # JSON may hold any text of a user: "<" would end the element.
    content = to_json_plotly(shown).replace("<", "\\u003c")
    height = figure.layout.height or 450
    caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    anchor = f' id="{escape(name)}"' if name else ""
    return (
        f'<figure{anchor}><div class="plot" style="min-height:{height}px">'
        f'<script type="application/json">{content}</script><div></div></div>'
        f"{caption}</figure>"
    )


def plain(text: str, *, most: int = 200) -> str:
    """Text that Plotly shows as it stands, cut after `most` characters.

    >>> plain("<b>load</b>"), plain("temperature", most=5)
    ('&lt;b&gt;load&lt;/b&gt;', 'temp…')
    """
    line = " ".join(text.split())
    return escape(line if len(line) <= most else line[: most - 1] + "…", quote=False)


def table_html(
    frame: pd.DataFrame, words: str = "", *, links: Sequence[Link | None] = ()
) -> str:
    """A table in a box that scrolls, with plain text below; missing cells are dashes.

    The first cell of a line with a link leads to a stretch of a figure.
    """
    text = frame.map(lambda cell: escape(MISSING if pd.isna(cell) else str(cell)))
    first = text.iloc[:, 0].tolist()
    text.columns = frame.columns.map(
        lambda head: (
            tuple(map(escape, head)) if isinstance(head, tuple) else escape(head)
        )
    )
    for line, link in enumerate(links):
        if link is not None:
            ends = escape(json.dumps([link.start, link.stop], default=str))
            anchor = f'<a href="#{escape(link.figure)}" data-range="{ends}">'
            first[line] = f"{anchor}{first[line]}</a>"
    text.isetitem(0, first)
    with pd.option_context("display.max_colwidth", None):
        table = text.to_html(index=False, border=0, escape=False, justify="unset")
    return f'<div class="scroll">{table}</div>{words_html(words)}'


def words_html(words: str, *, style: str = "soft") -> str:
    """A paragraph of plain text; nothing for none."""
    return f'<p class="{style}">{escape(words)}</p>' if words else ""


def notes_html(notes: Sequence[str]) -> str:
    """A list of sentences; nothing for none."""
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes)
    return f"<ul>{items}</ul>" if items else ""


def json_html(content: Mapping[str, Any] | None) -> str:
    """An object as JSON; nothing for none."""
    if not content:
        return ""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    return f"<pre>{escape(text)}</pre>"
