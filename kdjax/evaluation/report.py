"""Writes the report of a run: one HTML file, and its numbers for other programs.

report.html    recommendation, events, plots, tables and settings; no network request
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
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.detection.alarming import AlarmMeasures
from kdjax.evaluation import page, plots, tables
from kdjax.evaluation.page import Link, Section
from kdjax.evaluation.plots import Timeline
from kdjax.evaluation.rows import EntityScores, usual_model
from kdjax.evaluation.summary import headline, summarise
from kdjax.evaluation.tables import Results, Table
from kdjax.io.files import write_text

OPEN_ENTITIES = 3
DRAWN_ENTITIES = 64  # figures of more make a file that browsers open slowly
MOST_EVENTS = 200  # in the table
AROUND = 3  # windows before and after an event that its link shows
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


class Decided(NamedTuple):
    """The first part of a report: the alarms of the recommended model.

    Attributes:
        model: its name, or that of another model if none is recommended.
        expected: a sentence on the expected events a day.
        timelines: of the first entities, with signals and contributions.
        events: lines of `events_of_all_kinds` of all entities.
        measures: of these events; None if nothing was scored.
    """

    model: str
    expected: str
    timelines: Sequence[Timeline]
    events: pd.DataFrame
    measures: AlarmMeasures | None = None


def write_report(
    path: str | os.PathLike[str],
    *,
    results: Results,
    decided: Decided | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    timelines: Sequence[Timeline] = (),
    distributions: Sequence[tuple[EntityScores, np.ndarray]] = (),
    rankings: Sequence[Mapping[str, EntityScores]] = (),
) -> None:
    """Writes the HTML report of a run, whole or not at all.

    The results for users come first; folded parts for researchers follow.
    `results` is the content of results.json, `history` the lines of metrics.jsonl;
    `distributions` are the usual model's scores with those of calibration, `rankings` the
    scores of several models, each of one entity.
    """
    colors = plots.model_colors(tables.model_names(results))
    # Tables with something to say beside the names of the lines.
    nothing = ["", tables.MISSING]
    every = tables.report_tables(results)
    found = [t for t in every if not t.frame.iloc[:, 1:].isin(nothing).all(axis=None)]
    curve = ""
    if history:
        words = "Loss over epochs. Solid: training; dashed: validation."
        curve = page.figure_html(plots.learning_curve_figure(history), words)
    entities = _entities(results, timelines, distributions, rankings, colors)
    digests = tables.digest_table(results)
    measures = (
        tables.alarm_table(decided.measures) if decided and decided.measures else None
    )
    folded = {
        "Alarm management": page.table_html(*measures[1:]) if measures else "",
        "Summary": page.words_html(summarise(results), style="summary"),
        **{t.title: page.table_html(t.frame, t.words) for t in found},
        "Learning curve": curve,
        "Entities": entities,
        "Settings": page.json_html(results.get("settings")),
        "Environment": page.json_html(results.get("environment")),
        "Data": page.table_html(digests.frame) if digests else "",
    }
    sections = [
        Section("", page.words_html(tables.data_words(results))),
        *(_first_sections(results, decided, colors) if decided else []),
        Section("Notes", page.notes_html(results.get("notes", ()))),
        *(Section(title, html, folded=True) for title, html in folded.items()),
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


def _first_sections(
    results: Results, decided: Decided, colors: Mapping[str, str]
) -> list[Section]:
    """Recommendation, threshold and expected events; events; plots."""
    lines = [headline(results), _threshold(results, decided.model), decided.expected]
    if (results.get("recommendation") or {}).get("model") != decided.model:
        lines[0] += f" Alarms below are those of {decided.model}."
    head = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    figures = []
    for number, timeline in enumerate(decided.timelines):
        figure = plots.timeline_figure(timeline, colors)
        html = page.figure_html(
            figure, plots.timeline_words(timeline), name=f"plot-{number}"
        )
        if len(decided.timelines) > 1:
            opened = "" if number else " open"
            name = f"<summary>{escape(timeline.entity)}</summary>"
            html = f"<details{opened}>{name}{html}</details>"
        figures.append(html)
    return [
        Section("", f'<div class="summary">{head}</div>'),
        Section("Events", _events(decided, window=results["dataset"]["window"])),
        Section(f"Alarms of {decided.model}", "\n".join(figures)),
    ]


def _threshold(results: Results, model: str) -> str:
    """The thresholds of a model's entities in a sentence."""
    method = tables.label_free_method(results)
    taus = {
        row["tau"]: row["entity"]
        for row in results["entities"]
        if (row["model"], row["threshold"], row["level"]) == (model, method, "window")
        and row["tau"] is not None
    }
    if not taus:
        return ""
    low, high = min(taus), max(taus)
    text = f"τ = {low:.4g}"
    if low < high:
        text = (
            f"its entity's τ, from {low:.4g} ({taus[low]}) to {high:.4g} ({taus[high]})"
        )
    return f"Threshold ({method}): an alarm where the window score is above {text}."


def _events(decided: Decided, *, window: int) -> str:
    """A table of the events; lines lead to their places in the plots."""
    found, model = decided.events, decided.model
    words = "Severity: largest window score, in units of τ; other kinds than score have none."
    if not len(found):
        return page.words_html(f"{decided.model} raises no alarm on test rows.")
    if len(found) > MOST_EVENTS:
        words = f"The {MOST_EVENTS} most severe of {len(found):,} events. {words}"
        severity = found["severity"].to_numpy(np.float64)
        order = np.argsort(-np.nan_to_num(severity, nan=np.inf), kind="stable")
        found = found.iloc[np.sort(order[:MOST_EVENTS])]
    places = {
        one.entity: (
            f"plot-{number}",
            *plots.row_spans(one.time, len(one.scores[model])),
        )
        for number, one in enumerate(decided.timelines)
    }
    links: list[Link | None] = [None] * len(found)
    spans = zip(found["entity"], found["first"], found["stop"], strict=True)
    for line, (entity, start, stop) in enumerate(spans):
        if entity in places:
            name, begins, ends = places[entity]
            first = max(start - AROUND * window, 0)
            last = min(stop + AROUND * window, len(ends)) - 1
            links[line] = Link(name, begins[first].item(), ends[last].item())
    frame = pd.DataFrame(
        {
            "Start": found["start"].map(str),
            "End": found["end"].map(str),
            "Entity": found["entity"],
            "Kind": found["kind"],
            "Severity": found["severity"]
            .map("{:.3g}".format)
            .replace({"inf": "∞", "nan": tables.MISSING}),
            "Peak": found["peak"].map(str),
            "Channels": found["channels"].str.replace(";", ", "),
        }
    )
    return page.table_html(frame, words, links=links)


def _entities(
    results: Results,
    timelines: Sequence[Timeline],
    distributions: Sequence[tuple[EntityScores, np.ndarray]],
    rankings: Sequence[Mapping[str, EntityScores]],
    colors: Mapping[str, str],
) -> str:
    """Figures and numbers of each entity, the first few unfolded."""
    rows = results.get("entities", ())
    usual = usual_model(tables.model_names(results))
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
                figure = plots.timeline_figure(timeline, colors)
                inside = page.figure_html(figure, plots.timeline_words(timeline))
            if distribution := distribution_of.get(name):
                words = f"Window scores of {usual}: share of windows above each value."
                figure = plots.distribution_figure(*distribution, colors[usual])
                pair = page.figure_html(figure, words)
            if ranking := ranking_of.get(name):
                words = "Precision and recall of windows as τ falls; a dot: the model's own τ."
                figure = plots.precision_recall_figure(ranking, colors)
                pair += page.figure_html(figure, words)
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
