"""One HTML file that tells what a run found, to be read anywhere without a network.

Verdict in words, the extended Table 1, the learning curve (Figure 3), each entity's
score timeline, settings and versions. Styles and pictures are inside the file; nothing
is fetched and no script runs. Light and dark follow the reader's system.
"""

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from kdjax.artifacts import write_text
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
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5b6370; --paper: #f6f7f9;
  --card: #ffffff; --line: #d9dde3; --mark: #1f6fb2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa3b0;
  --paper: #101216; --card: #181b20; --line: #30353d; --mark: #6db3f2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
.verdict { border-left: 4px solid var(--mark); padding: .9rem 1.1rem; margin: 1rem 0;
  background: var(--card); border-radius: 0 8px 8px 0; max-width: 60rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; }
tbody th, thead tr:first-child th:first-child { text-align: left; }
thead tr:first-child th { color: var(--soft); font-weight: 500; font-size: .8rem; }
thead tr:first-child th[colspan] { text-align: center; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .6rem; }
picture { display: block; overflow-x: auto; }
img { display: block; width: 100%; min-width: 38rem; height: auto; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0;
  overflow-wrap: anywhere; }
details > * + * { margin-top: .6rem; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .8rem; font-size: .8rem; line-height: 1.45; }
li { overflow-wrap: anywhere; }
"""


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
        _notes(results.get("notes", ())),
        "<h2>Results</h2>",
        _results_table(results),
        false_alarm_section(results.get("rates", ())),
        training_section(results.get("worst_training_windows", ())),
        _learning_curve(history),
        _entities(results, timelines, training, distributions),
        _block("Settings", settings),
        _block("Environment", results.get("environment")),
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


def _data(results: Results) -> str:
    data = results["dataset"]
    parts = [entity_count(data)]
    for key in ("train_rows", "test_rows"):
        if data.get(key) is not None:
            parts.append(f"{data[key]:,} {key.replace('_', ' ')}")
    return f'<p class="soft">{escape(" · ".join(parts))}</p>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes)
    return f"<h2>Notes</h2>\n<ul>{items}</ul>"


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
    pictures = {
        theme: plot_learning_curve(history, theme=theme) for theme in ("light", "dark")
    }
    words = "Loss over epochs. Solid: training; dashed: validation."
    return "<h2>Learning curve</h2>\n" + _figure(pictures, "Learning curve", words)


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
    pictures = {
        theme: plot_timeline(timeline, theme=theme) for theme in ("light", "dark")
    }
    words = f"{what or 'Row'} scores (logarithmic). Dashed: τ; ticks: rows over τ" + (
        "; shaded: labelled anomalies." if timeline.labels is not None else "."
    )
    return _figure(pictures, f"Scores of {timeline.entity}", words)


def _spread(distribution: Distribution) -> str:
    pictures = {
        theme: plot_distribution(distribution, theme=theme)
        for theme in ("light", "dark")
    }
    words = "The student's window scores: share of windows above each value."
    return _figure(pictures, f"Window scores of {distribution.entity}", words)


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


def _figure(pictures: Mapping[str, bytes], alt: str, words: str) -> str:
    light, dark = (_data_uri(pictures[theme]) for theme in ("light", "dark"))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
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
