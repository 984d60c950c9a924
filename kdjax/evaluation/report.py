"""One HTML file that tells what a run found, to be read anywhere without a network.

Verdict in words, the extended Table 1, the learning curve (Figure 3), each entity's
score timeline, settings and versions.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from itertools import groupby
from typing import Any

from kdjax.artifacts import write_text
from kdjax.evaluation.page import figure, json_section, notes_section, page
from kdjax.evaluation.plots import (
    Distribution,
    Timeline,
    plot_distribution,
    plot_learning_curve,
    plot_timeline,
)
from kdjax.evaluation.report_tables import (
    false_alarm_section,
    heads,
    html_table,
    training_section,
)
from kdjax.evaluation.tables import (
    MISSING,
    Results,
    alarm_rates,
    caption,
    entity_count,
    number_text,
    table_cells,
)
from kdjax.evaluation.verdict import verdict

OPEN_ENTITIES = 3


def write_report(
    path: str | os.PathLike[str],
    *,
    results: Results,
    history: Sequence[Mapping[str, Any]] = (),
    timelines: Sequence[Timeline] = (),
    training: Sequence[Timeline] = (),
    distributions: Sequence[Distribution] = (),
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report of a run, whole or not at all.

    Args:
        path: the HTML file.
        results: what results.json holds.
        history: the lines of metrics.jsonl, for the learning curve.
        timelines: row scores of each entity; the first few are shown unfolded.
        training: the same of training rows, where there are no test rows.
        distributions: the student's window scores of each entity.
        config: the run's settings; without it, `results["config"]` if there is one.
    """
    settings = config if config is not None else results.get("config")
    title = f"Anomaly detection on {results['dataset']['name']}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        _data(results),
        f'<p class="verdict">{escape(verdict(results))}</p>',
        notes_section(results.get("notes", ())),
        "<h2>Results</h2>",
        _results_table(results),
        false_alarm_section(results.get("rates", ())),
        training_section(results.get("worst_training_windows", ())),
        _learning_curve(history),
        _entities(results, timelines, training, distributions),
        json_section("Settings", settings),
        json_section("Environment", results.get("environment")),
    ]
    write_text(path, page(title, sections))


def _data(results: Results) -> str:
    data = results["dataset"]
    parts = [entity_count(data)]
    for key in ("train_rows", "test_rows"):
        if data.get(key) is not None:
            parts.append(f"{data[key]:,} {key.replace('_', ' ')}")
    return f'<p class="soft">{escape(" · ".join(parts))}</p>'


def _results_table(results: Results) -> str:
    if results["dataset"].get("positive_windows") is None:
        names = heads(("Model", "Parameters", "Test windows in alarm"))
        words = "No labels, so nothing here says how well anomalies are found."
        table = html_table(names, alarm_rates(results))
        return f'{table}<p class="soft">{words}</p>'
    cells = table_cells(results)
    groups = ['<th rowspan="2">Model</th><th rowspan="2">Parameters</th>']
    for group, members in groupby(cells.columns, key=lambda column: column.group):
        groups.append(f'<th colspan="{len(list(members))}">{escape(group)}</th>')
    names = [f"<th>{escape(column.name)}</th>" for column in cells.columns]
    return html_table(["".join(groups), "".join(names)], cells.lines) + (
        f'<p class="soft">{escape(caption(results))}</p>'
    )


def _learning_curve(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return ""
    words = "Loss over epochs. Solid: training; dashed: validation."
    return "<h2>Learning curve</h2>\n" + figure(
        partial(plot_learning_curve, history), "Learning curve", words
    )


def _entities(
    results: Results,
    timelines: Sequence[Timeline],
    training: Sequence[Timeline],
    distributions: Sequence[Distribution],
) -> str:
    trained = {timeline.entity for timeline in training}
    drawn = {t.entity: t for t in (*timelines, *training)}
    spread = {distribution.entity: distribution for distribution in distributions}
    rows = results.get("entities", ())
    names = list(dict.fromkeys([*drawn, *(row["entity"] for row in rows)]))
    if not names:
        return ""
    parts = ["<h2>Entities</h2>"]
    for number, name in enumerate(names):
        inside = _entity_table([row for row in rows if row["entity"] == name])
        if name in drawn:
            inside = _timeline(drawn[name], "Training row" * (name in trained)) + inside
        if name in spread:
            inside += _spread(spread[name])
        unfolded = " open" if number < OPEN_ENTITIES else ""
        parts.append(
            f"<details{unfolded}><summary>{escape(name)}</summary>{inside}</details>"
        )
    return "\n".join(parts)


def _timeline(timeline: Timeline, what: str = "") -> str:
    words = f"{what or 'Row'} scores (logarithmic). Dashed: τ; ticks: rows over τ" + (
        "; shaded: labelled anomalies." if timeline.labels is not None else "."
    )
    draw = partial(plot_timeline, timeline)
    return figure(draw, f"Scores of {timeline.entity}", words)


def _spread(distribution: Distribution) -> str:
    words = "The student's window scores: share of windows above each value."
    draw = partial(plot_distribution, distribution)
    return figure(draw, f"Window scores of {distribution.entity}", words)


def _entity_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = (
        "Model",
        "Threshold",
        "P",
        "R",
        "F1",
        "τ",
        "Alarm rate",
        "Windows",
        "Positive",
    )
    lines = [
        (
            row["model"],
            row["threshold"],
            *(number_text(row[name]) for name in ("precision", "recall", "f1")),
            MISSING if row["tau"] is None else f"{row['tau']:.4g}",
            number_text(row["alarm_rate"]),
            MISSING if row["windows"] is None else f"{row['windows']:,}",
            MISSING if row["positives"] is None else f"{row['positives']:,}",
        )
        for row in rows
    ]
    return html_table(["".join(f"<th>{escape(name)}</th>" for name in names)], lines)
