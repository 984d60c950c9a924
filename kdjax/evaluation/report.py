"""Writes the report of a run: one HTML file, and its numbers for other programs.

report.html    summary, tables, figures, settings and versions; no network request
report.md      summary, notes and tables
results.csv    a line for each row of results.json
entities.csv   a line for each model, entity and threshold
results.tex    the tables as LaTeX, without a package
"""

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax.errors import counted
from kdjax.evaluation import page, plots, tables
from kdjax.evaluation.page import Section
from kdjax.evaluation.plots import Timeline
from kdjax.evaluation.rows import EntityScores
from kdjax.evaluation.summary import summarise
from kdjax.evaluation.tables import Results, Table
from kdjax.io.files import write_text

OPEN_ENTITIES = 3
DRAWN_ENTITIES = 64  # figures of more make a file that browsers open slowly
UNFOLDED = 30  # lines of a table
REST = (
    "## Where the rest is\n\nSettings: `config.json`. All numbers: `results.json`. "
    "Pictures: `report.html`, `learning_curve.png`."
)
# Characters that LaTeX reads as commands, and those that its usual fonts lack.
_LATEX = {letter: f"\\{letter}" for letter in "{}$&#%_"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "α": r"$\alpha$",
    "τ": r"$\tau$",
}


def write_report(
    path: str | os.PathLike[str],
    *,
    results: Results,
    history: Sequence[Mapping[str, Any]] = (),
    timelines: Sequence[Timeline] = (),
    distributions: Sequence[tuple[EntityScores, np.ndarray]] = (),
    rankings: Sequence[Mapping[str, EntityScores]] = (),
) -> None:
    """Writes the HTML report of a run, whole or not at all.

    `results` is the content of results.json, `history` the lines of metrics.jsonl;
    `distributions` are the student's scores with those of calibration, `rankings` the
    scores of several models, each of one entity.
    """
    first, *further = map(_section, tables.report_tables(results))
    summary = page.words_html(tables.data_words(results))
    summary += page.words_html(summarise(results), style="summary")
    curve = ""
    if history:
        words = "Loss over epochs. Solid: training; dashed: validation."
        curve = page.figure_html(plots.learning_curve_figure(history), words)
    sections = [
        Section("", summary),
        first,
        Section("Notes", page.notes_html(results.get("notes", ()))),
        *further,
        Section("Learning curve", curve),
        Section("Entities", _entities(results, timelines, distributions, rankings)),
        Section("Settings", page.json_html(results.get("settings"))),
        Section("Environment", page.json_html(results.get("environment"))),
        _section(tables.digest_table(results)),
    ]
    write_text(path, page.render_page(title=_title(results), sections=sections))


def write_texts(folder: str | os.PathLike[str], results: Results) -> None:
    """Writes the Markdown, CSV and LaTeX files of a run, each whole or not at all."""
    folder = Path(folder)
    latex = "\n".join(map(latex_section, tables.report_tables(results)))
    write_text(folder / "report.md", markdown_report(results))
    write_text(folder / "results.csv", csv_lines(results["rows"]))
    write_text(folder / "entities.csv", csv_lines(results["entities"]))
    write_text(folder / "results.tex", latex)


def markdown_report(results: Results) -> str:
    """Summary, notes, all tables, versions and digests as GitHub Markdown."""
    first, *further = map(markdown_section, tables.report_tables(results))
    digests = tables.digest_table(results)
    notes = "\n".join(f"- {markdown_text(str(n))}" for n in results.get("notes", ()))
    parts = [
        f"# {markdown_text(_title(results))}",
        tables.data_words(results),
        markdown_text(summarise(results)),
        first,
        f"## Notes\n\n{notes}" if notes else "",
        *further,
        REST,
        _environment(results.get("environment") or {}),
        markdown_section(digests) if digests else "",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def csv_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of results.json as CSV; an object becomes text, `key: value; key: value`."""
    flat = [
        {
            name: "; ".join(f"{key}: {value}" for key, value in cell.items())
            if isinstance(cell, Mapping)
            else cell
            for name, cell in row.items()
        }
        for row in rows
    ]
    # Objects, so that whole numbers stay whole beside missing ones.
    frame = pd.DataFrame(flat, dtype=object)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def markdown_section(table: Table) -> str:
    """A section of GitHub Markdown."""
    heads = [
        f"{group}: {name}" if group else name
        for group, name in tables.heads_of(table.frame)
    ]
    rules = ["---", *["---:"] * (len(heads) - 1)]
    lines = [
        f"| {' | '.join(map(markdown_text, line))} |"
        for line in (heads, rules, *table.frame.to_numpy())
    ]
    title = f"## {table.title}" if table.title else ""
    parts = [title, "\n".join(lines), markdown_text(table.words)]
    return "\n\n".join(filter(None, parts)) + "\n"


def latex_section(table: Table) -> str:
    """A `tabular` that needs no package; its title and words stand above as comments."""
    heads = tables.heads_of(table.frame)
    lines = [f"% {' '.join(t.split())}" for t in (table.title, table.words) if t]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\hline"]
    if any(group for group, _ in heads):
        groups = [
            rf"\multicolumn{{{len([*below])}}}{{c}}{{{latex_text(group)}}}"
            for group, below in groupby(heads, key=lambda head: head[0])
        ]
        lines.append(" & ".join(groups) + r" \\")
    texts = [[name for _, name in heads], *table.frame.to_numpy()]
    body = [" & ".join(map(latex_text, line)) + r" \\" for line in texts]
    lines += [body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line.

    >>> print(latex_text("5 % of τ_1"))
    5 \\% of $\\tau$\\_1
    """
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it stands, on one line.

    >>> print(markdown_text("a|b<c"))
    a\\|b\\<c
    """
    return re.sub(r"([\\`*|<\[])", r"\\\1", " ".join(text.split()))


def _title(results: Results) -> str:
    return f"Anomaly detection on {results['dataset']['name']}"


def _section(table: Table | None) -> Section:
    """A table of more than `UNFOLDED` lines is folded."""
    if table is None:
        return Section("", "")
    html, count = page.table_html(table.frame, table.words), len(table.frame)
    if count > UNFOLDED:
        html = f"<details><summary>{counted(count, 'line')}</summary>{html}</details>"
    return Section(table.title, html)


def _entities(
    results: Results,
    timelines: Sequence[Timeline],
    distributions: Sequence[tuple[EntityScores, np.ndarray]],
    rankings: Sequence[Mapping[str, EntityScores]],
) -> str:
    """Figures and numbers of each entity, the first few unfolded."""
    rows = results.get("entities", ())
    timeline_of = {timeline.entity: timeline for timeline in timelines}
    distribution_of = {scores.entity: (scores, own) for scores, own in distributions}
    ranking_of = {next(iter(one.values())).entity: one for one in rankings}
    names = [*dict.fromkeys([*timeline_of, *(row["entity"] for row in rows)])]
    parts = []
    if len(names) > DRAWN_ENTITIES:
        words = f"Figures of the first {DRAWN_ENTITIES} of {len(names):,} entities."
        parts.append(page.words_html(words))
    for number, name in enumerate(names):
        inside = pair = ""
        if number < DRAWN_ENTITIES:
            if timeline := timeline_of.get(name):
                figure = plots.timeline_figure(timeline)
                inside = page.figure_html(figure, plots.timeline_words(timeline))
            if distribution := distribution_of.get(name):
                words = (
                    "The student's window scores: share of windows above each value."
                )
                pair = page.figure_html(plots.distribution_figure(*distribution), words)
            if ranking := ranking_of.get(name):
                words = "Precision and recall of windows as τ falls; a dot: the model's own τ."
                pair += page.figure_html(plots.precision_recall_figure(ranking), words)
            inside += f'<div class="pair">{pair}</div>' if pair else ""
        table = tables.entity_table(row for row in rows if row["entity"] == name)
        inside += page.table_html(table.frame) if table else ""
        unfolded = " open" if number < OPEN_ENTITIES else ""
        parts.append(
            f"<details{unfolded}><summary>{escape(name)}</summary>{inside}</details>"
        )
    return "\n".join(parts)


def _environment(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions") or {}
    parts = [f"{name} {version}" for name, version in versions.items()]
    parts += [f"{k} {environment[k]}" for k in ("device", "commit") if k in environment]
    return f"## Environment\n\n{markdown_text(', '.join(parts))}." if parts else ""
