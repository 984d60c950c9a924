"""Scores a file of rows with a saved detector (the verb `score`)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kdjax.data.raw import about
from kdjax.data.readers import match_channels
from kdjax.detection.attribution import check_attribution
from kdjax.detection.detector import Detector, entity_index
from kdjax.detection.false_alarms import series_notes
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import known_entity, read_like, score_events, score_table
from kdjax.io.files import atomic_path, check_target, clear_leftovers


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
    """Writes a file's score table and `OUTPUT.events.csv`; yields messages.

    Args:
        path: CSV, Parquet or `.npy` file.
        detector: folder of a saved detector.
        output: `.csv` or `.parquet` file; see `score_table` for its columns.
        entity: whose scaler, Gaussian and threshold to use; by default the entity of
            the rows where the detector was calibrated on it, else the pooled ones.
        causal, contributions: see `score_table`.
        attribution: method of the contributions; the detector's own by default.
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
    """A saved detector, with another attribution method if one is given."""
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
    """`score_file` with a loaded detector, from `load_scorer`."""
    tables, events = [], []
    for series in read_like(detector, path, **columns):
        used = entity or known_entity(detector, series.entity)
        index = entity_index(detector, used)  # raises before the first message
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
    _write(table, Path(output))
    _write(event, events_path(Path(output)))
    yield (
        f"{output}: {int(table['alarm'].sum()):,} of {len(table):,} rows in alarm, "
        f"{len(event):,} events"
    )


def events_path(output: Path) -> Path:
    """The path of the events that belong to a file of scores."""
    return output.with_name(f"{output.name}.events.csv")


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)


def _write(table: pd.DataFrame, output: Path) -> None:
    with atomic_path(output) as temporary:
        if output.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)
