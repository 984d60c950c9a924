"""Plots of score files: scores and alarms of a detector, with the rows that it scored.

Nothing here needs JAX.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax.data.raw import Place, reading
from kdjax.data.series import Series
from kdjax.data.times import parse_time
from kdjax.detection.reading import Described, read_description, read_like
from kdjax.errors import ConfigError, DataError, counted
from kdjax.evaluation import page
from kdjax.evaluation.page import Section
from kdjax.evaluation.plots import score_timeline, timeline_figure, timeline_words
from kdjax.io.files import check_target, write_text
from kdjax.io.messages import acting

DRAWN = 4  # entities, unless one is chosen
NEEDED = ("entity", "time", "window_score", "alarm")  # columns


@acting
def plot_file(
    scores: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    detector: str | os.PathLike[str] = "",
    entity: str | None = None,
    **options: Any,
) -> Iterator[str]:
    """Writes an HTML file of signals, window scores, alarms and contributions.

    The file makes no network request.

    Args:
        scores: file that `score_file` wrote.
        data: the file that was scored.
        output: `.html` file.
        detector: folder of the detector; `data` is read as its training file was, by
            default as any file.
        entity: entity to draw; by default the first few.
        options: those of `read_like`, equal to those for `score_file`.

    Raises:
        DataError: `scores` isn't a file of scores, or its rows are not those of `data`.
    """
    if Path(output).suffix != ".html":
        raise ConfigError(f"output={output} must end in .html.")
    check_target(output, inputs=(scores, data, options.get("exclude", "")))
    table = _read_scores(Path(scores))
    known = read_description(Path(detector)) if detector else None
    described = known or Described(card={}, channels=(), window=1)
    series = read_like(described, data, **{**options, "missing": "mask"})
    tables = {str(name): own for name, own in table.groupby("entity", sort=False)}
    if len(tables) == len(series) == 1:  # the data file may have been renamed
        tables = {series[0].entity: table}
    if entity is not None and entity not in tables:
        raise DataError(
            f"{scores} has no entity {entity!r}: give one of {', '.join(tables)}."
        )
    wanted = [entity] if entity is not None else [*tables][:DRAWN]
    found = {one.entity: one for one in series}
    sections, alarms = [], 0
    for name in wanted:
        if name not in found:
            raise DataError(f"{data} has no rows of {name!r}, which {scores} has.")
        own = tables[name].reset_index(drop=True)
        _check_rows(own, found[name], Path(scores), Path(data))
        timeline = score_timeline(own, found[name], model="detector")
        alarms += int(own["alarm"].sum())
        html = page.figure_html(timeline_figure(timeline), timeline_words(timeline))
        sections.append(Section(name, html))
    title = f"Alarms in {Path(data).name}"
    write_text(output, page.render_page(title=title, sections=sections))
    shown = "" if len(wanted) == len(tables) else f" (of {len(tables):,}; see --entity)"
    yield (
        f"{output}: {counted(len(wanted), 'entity', 'entities')}{shown}, "
        f"{counted(alarms, 'row')} in alarm"
    )


def _read_scores(path: Path) -> pd.DataFrame:
    """The table in a file of scores."""
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path.")
    if path.suffix not in (".csv", ".parquet") or not path.is_file():
        raise DataError(
            f"{path} is not a file of scores: give a .csv or .parquet file that kdjax score "
            "wrote."
        )
    with reading(path):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            # NA may be an entity's name.
            options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
            table = pd.read_csv(path, dtype={"entity": str, "time": str}, **options)
    lacking = [name for name in NEEDED if name not in table]
    numbers = [n for n in table if n not in ("entity", "time", "state")]
    texts = [n for n in numbers if not pd.api.types.is_numeric_dtype(table[n])]
    if lacking or texts or not len(table):
        what = "it has no rows"
        if lacking or texts:
            wrong = (lacking or texts)[0]
            what = f"column {wrong} {'is missing' if lacking else 'holds text'}"
        raise DataError(
            f"{path} is not a file of scores, {what}: give a file that kdjax score wrote."
        )
    return table.astype({"entity": str})


def _check_rows(table: pd.DataFrame, series: Series, scores: Path, data: Path) -> None:
    """Raises DataError unless the scores are of these rows."""
    todo = "give the file that was scored, and the same flags for its columns and cells"
    if len(table) != len(series.values):
        raise DataError(
            f"{scores} has {counted(len(table), 'row')} of {series.entity!r}, but {data} has "
            f"{len(series.values):,}: {todo}."
        )
    columns = tuple(map(str, table))
    times = parse_time(table["time"], Place(scores, columns)).values
    expected = np.arange(len(table)) if series.time is None else series.time
    if (times.dtype.kind == "M") != (expected.dtype.kind == "M"):
        wrong = np.arange(1)
    else:
        wrong = np.flatnonzero(times != expected)
    if len(wrong):
        raise DataError(
            f"{scores}: row {wrong[0] + 1} of {series.entity!r} is at "
            f"{table['time'].iloc[wrong[0]]}, but not in {data}: {todo}."
        )
