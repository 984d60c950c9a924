"""A file of rows scored by a saved detector, as the verb `score` does it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kdjax.artifacts import atomic_path
from kdjax.data.files import read_table
from kdjax.detection.detector import POOLED, Detector, entity_index
from kdjax.detection.storage import load_detector
from kdjax.detection.table import score_table


def score_file(
    path: str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    output: str | os.PathLike[str],
    entity: str | None = None,
    causal: bool = False,
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
) -> Iterator[str]:
    """Writes a score table for each row of a file; yields what to tell the user.

    Args:
        path: CSV, Parquet or `.npy` file.
        detector: folder of a saved detector.
        output: `.csv` or `.parquet` file to write; see `score_table` for its columns.
        entity: whose scaler, Normal and threshold to use; by default the entity of
            the rows where the detector knows it, else the pooled ones.
        causal: see `score_table`.
        time_column: name of the time column.
        entity_column: name of the entity column.
        label_column: name of a column with labels, which is left out.
    """
    loaded = load_detector(detector)
    series = read_table(
        path,
        time_column=time_column,
        entity_column=entity_column,
        label_column=label_column,
    )
    tables = []
    for one in series:
        used = entity or _known(loaded, one.entity)
        entity_index(loaded, used)  # Refuses an unknown one before saying a word.
        yield f"{one.entity}: {len(one.values):,} rows under the threshold of {used}"
        tables.append(score_table(loaded, one, entity=used, causal=causal))
    table = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
    with atomic_path(output) as temporary:
        if Path(output).suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)
    yield f"{output}: {int(table['alarm'].sum()):,} of {len(table):,} rows in alarm"


def _known(detector: Detector, entity: str) -> str:
    """The entity if the detector has it, else pooled."""
    return entity if entity in detector.entities else POOLED
