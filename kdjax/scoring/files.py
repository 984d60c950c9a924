"""A file of rows scored by a saved detector, as the verb `score` does it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from kdjax.data.raw import about
from kdjax.data.readers import match_channels, read_table
from kdjax.data.series import Series
from kdjax.detection.attribution import check_attribution
from kdjax.detection.detector import POOLED, Detector, entity_index
from kdjax.detection.drift import series_notes
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_events, score_table
from kdjax.io.files import atomic_path, check_target, clear_leftovers

# How a detector's training file was read, where its card doesn't say.
_READING = {"missing": "error", "order": "strict", "duplicates": "error"}


def score_file(
    path: str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    output: str | os.PathLike[str],
    entity: str | None = None,
    causal: bool = False,
    contributions: bool = False,
    attribution: str = "",
    **columns: str,
) -> Iterator[str]:
    """Writes a score table for each row of a file, and its events; yields what to say.

    Events go to `OUTPUT.events.csv`.

    Args:
        path: CSV, Parquet or `.npy` file.
        detector: folder of a saved detector.
        output: `.csv` or `.parquet` file to write; see `score_table` for its columns.
        entity: whose scaler, Gaussian and threshold to use; by default the entity of
            the rows where the detector knows it, else the pooled ones.
        causal: see `score_table`.
        contributions: see `score_table`.
        blame: how to divide scores among channels; the detector's own way by default.
        columns: for `read_like`.
    """
    output = Path(output)
    targets = (output, events_path(output))
    for target in targets:
        check_target(target, inputs=(path, columns.get("exclude", "")))
    clear_leftovers(output.parent, [target.name for target in targets])
    yield from score_rows(
        path,
        detector=load_scorer(detector, attribution=attribution),
        output=output,
        entity=entity,
        causal=causal,
        contributions=contributions,
        **columns,
    )


def load_scorer(detector: str | os.PathLike[str], *, attribution: str = "") -> Detector:
    """A saved detector, with another way to divide scores if one is named."""
    loaded = load_detector(detector)
    if attribution:
        check_attribution(attribution)
        loaded = loaded._replace(attribution=attribution)
    return loaded


def score_rows(
    path: str | os.PathLike[str],
    *,
    detector: Detector,
    output: str | os.PathLike[str],
    entity: str | None = None,
    causal: bool = False,
    contributions: bool = False,
    **columns: str,
) -> Iterator[str]:
    """`score_file` with a detector that is loaded: from `load_scorer`."""
    tables, events = [], []
    for series in read_like(detector, path, **columns):
        used = entity or known_entity(detector, series.entity)
        index = entity_index(detector, used)  # Refuses an unknown one before a word.
        with about(path):
            series = match_channels(series, detector.channels)
            yield (
                f"{series.entity}: {len(series.values):,} rows under the threshold of "
                f"{used}"
            )
            table = score_table(
                detector,
                series,
                entity=used,
                causal=causal,
                contributions=contributions,
            )
        tables.append(table)
        events.append(score_events(detector, series, table, entity=used, causal=causal))
        yield from series.notes
        yield from series_notes(detector, index, series, table)
    table, event = _joined(tables), _joined(events)
    _write(table, output)
    _write(event, events_path(Path(output)))
    yield (
        f"{output}: {int(table['alarm'].sum()):,} of {len(table):,} rows in alarm, "
        f"{len(event):,} events"
    )


def events_path(output: Path) -> Path:
    """Where the events stand that belong to a file of scores."""
    return output.with_name(f"{output.name}.events.csv")


def read_like(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    missing: str = "",
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
    exclude: str = "",
) -> tuple[Series, ...]:
    """A file read as the detector's training file was.

    Args:
        detector: whose card says how.
        path: CSV, Parquet or `.npy` file.
        missing: `error`, `ffill` or `mask` where it is to be another.
        time_column: name of the time column.
        entity_column: name of the entity column.
        label_column: name of a column with labels, which is left out.
        exclude: CSV of spans to leave out.
    """
    data: dict[str, Any] = detector.card.get("settings", {}).get("data", {})
    reading = {name: data.get(name, usual) for name, usual in _READING.items()}
    if missing:
        reading["missing"] = missing
    return read_table(
        path,
        time_column=time_column,
        entity_column=entity_column,
        label_column=label_column,
        exclude=exclude,
        **reading,
    )


def known_entity(detector: Detector, entity: str) -> str:
    """The entity if the detector has it, else pooled."""
    return entity if entity in detector.entities else POOLED


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)


def _write(table: pd.DataFrame, output: str | os.PathLike[str]) -> None:
    with atomic_path(output) as temporary:
        if Path(output).suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)
