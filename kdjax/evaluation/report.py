"""One HTML file that tells what a run found, to be read anywhere without a network.

Verdict in words, the extended Table 1 and further tables, the learning curve (Figure 3),
each entity's score timeline, distributions and precision–recall curves, settings,
versions and digests of the data.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, NamedTuple

from kdjax.evaluation.page import (
    data_uri,
    figure,
    json_section,
    notes_section,
    page,
)
from kdjax.evaluation.plots import (
    Distribution,
    Ranking,
    plot_distribution,
    plot_learning_curve,
    plot_precision_recall,
)
from kdjax.evaluation.report_tables import html_sheet
from kdjax.evaluation.sheets import digest_sheet, entity_sheet, sheets
from kdjax.evaluation.summary import summarise
from kdjax.evaluation.tables import Results, entity_count
from kdjax.evaluation.timelines import Timeline, timeline_html
from kdjax.io.files import write_text

OPEN_ENTITIES = 3
# Pictures of more make a file that no browser opens with ease.
DRAWN_ENTITIES = 64


class _Pictures(NamedTuple):
    """What is drawn of entities, by their names."""

    timelines: dict[str, Timeline]
    trained: set[str]
    distributions: dict[str, Distribution]
    rankings: dict[str, Ranking]


def write_report(
    path: str | os.PathLike[str],
    *,
    results: Results,
    history: Sequence[Mapping[str, Any]] = (),
    timelines: Sequence[Timeline] = (),
    training: Sequence[Timeline] = (),
    distributions: Sequence[Distribution] = (),
    rankings: Sequence[Ranking] = (),
    frontier: bytes | None = None,
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
        rankings: several models' window scores of each entity with labels.
        frontier: a PNG of quality against cost, where a sweep drew one.
        config: the run's settings; without it, `results["config"]` if there is one.
    """
    settings = config if config is not None else results.get("config")
    title = f"Anomaly detection on {results['dataset']['name']}"
    pictures = _Pictures(
        {timeline.entity: timeline for timeline in (*timelines, *training)},
        {timeline.entity for timeline in training},
        {distribution.entity: distribution for distribution in distributions},
        {ranking.entity: ranking for ranking in rankings},
    )
    first, *further = sheets(results)
    digests = digest_sheet((results.get("data") or {}).get("sha256") or {})
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(data_words(results))}</p>',
        f'<p class="verdict">{escape(summarise(results))}</p>',
        html_sheet(first),
        notes_section(results.get("notes", ())),
        *map(html_sheet, further),
        _learning_curve(history),
        _frontier(frontier),
        _entities(results, pictures),
        json_section("Settings", settings),
        json_section("Environment", results.get("environment")),
        html_sheet(digests) if digests else "",
    ]
    write_text(path, page(title, sections))


def data_words(results: Results) -> str:
    """How many entities and rows the results are of."""
    data = results["dataset"]
    parts = [entity_count(data)]
    for key in ("train_rows", "test_rows"):
        if data.get(key) is not None:
            parts.append(f"{data[key]:,} {key.replace('_', ' ')}")
    return " · ".join(parts)


def _learning_curve(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return ""
    words = "Loss over epochs. Solid: training; dashed: validation."
    return "<h2>Learning curve</h2>\n" + figure(
        partial(plot_learning_curve, history), "Learning curve", words
    )


def _frontier(picture: bytes | None) -> str:
    if picture is None:
        return ""
    return (
        f'<h2>Frontier</h2>\n<figure><img alt="Quality against cost" '
        f'src="{data_uri(picture)}"></figure>'
    )


def _entities(results: Results, pictures: _Pictures) -> str:
    rows = results.get("entities", ())
    names = [*dict.fromkeys([*pictures.timelines, *(row["entity"] for row in rows)])]
    if not names:
        return ""
    parts = ["<h2>Entities</h2>"]
    if len(names) > DRAWN_ENTITIES:
        words = f"Pictures of the first {DRAWN_ENTITIES} of {len(names):,} entities."
        parts.append(f'<p class="soft">{words}</p>')
    for number, name in enumerate(names):
        inside = ""
        if number < DRAWN_ENTITIES:
            inside = _timeline(pictures, name, f"t{number}") + _curves(pictures, name)
        table = entity_sheet(row for row in rows if row["entity"] == name)
        inside += html_sheet(table) if table else ""
        unfolded = " open" if number < OPEN_ENTITIES else ""
        parts.append(
            f"<details{unfolded}><summary>{escape(name)}</summary>{inside}</details>"
        )
    return "\n".join(parts)


def _timeline(pictures: _Pictures, name: str, key: str) -> str:
    timeline = pictures.timelines.get(name)
    if timeline is None:
        return ""
    what = "Training row scores" if name in pictures.trained else "Row scores"
    return timeline_html(timeline, key=key, what=what)


def _curves(pictures: _Pictures, name: str) -> str:
    """How window scores are spread, and what they find."""
    spread, ranking = pictures.distributions.get(name), pictures.rankings.get(name)
    parts = []
    if spread is not None:
        words = "The student's window scores: share of windows above each value."
        parts.append(
            figure(partial(plot_distribution, spread), f"Scores of {name}", words)
        )
    if ranking is not None:
        draw: Callable[..., bytes] = partial(plot_precision_recall, ranking)
        words = "Precision and recall of windows as τ falls; a dot: the model's own τ."
        parts.append(figure(draw, f"Precision and recall on {name}", words))
    return f'<div class="pair">{"".join(parts)}</div>' if parts else ""
