"""Scores machines on Dask: each task scores whole machines with `kdjax.score_partition`.

    pip install "kdjax[dask]"
    python on_dask.py DETECTOR ROWS.parquet SCORES/

ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and the
detector's channels. SCORES gets Parquet files with the columns of `kdjax.SCORE_SCHEMA`.
"""

import sys
from pathlib import Path

import dask
import dask.dataframe as dd
import pandas as pd

import kdjax


def score(rows, detector):
    """The scores of some machines; Dask doesn't keep the order of their rows."""
    rows = rows.sort_values(["entity", "time"])
    return kdjax.score_partition(rows, detector, time_column="time")


def main(detector, rows, output):
    """Lets Dask spread the machines over its processes."""
    if any(Path(output).glob("*")):
        sys.exit(f"{output} is not empty: Dask would add to what is there.")
    detector = str(Path(detector).resolve())
    table = dd.read_parquet(rows)
    schema = kdjax.SCORE_SCHEMA | {"time": table.dtypes["time"]}
    meta = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in schema.items()})
    # One machine's rows come into one partition; one may have several machines, or none.
    with dask.config.set(scheduler="processes"):
        (
            table.shuffle(on="entity")
            .map_partitions(score, detector, meta=meta, enforce_metadata=True)
            .to_parquet(output, write_index=False)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
