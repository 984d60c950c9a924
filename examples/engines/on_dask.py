"""Fits and scores machines on Dask: each task calls kdjax for whole machines.

    pip install "kdjax[dask]"
    python on_dask.py fit FLEET ROWS
    python on_dask.py score FLEET_OR_DETECTOR ROWS SCORES/

ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and channels.
FLEET gets a detector a machine and their catalogue, SCORES Parquet files with the columns
of `kdjax.SCORE_SCHEMA`.
"""

import sys
from pathlib import Path

import dask
import dask.dataframe as dd
import pandas as pd

import kdjax


def fit(rows, fleet):
    """The catalogue's rows of some machines; Dask doesn't keep the order of their rows."""
    return kdjax.fit_partition(rows.sort_values(["entity", "time"]), output=fleet)


def score(rows, detector):
    """The scores of some machines."""
    rows = rows.sort_values(["entity", "time"])
    return kdjax.score_partition(rows, detector, time_column="time")


def main(verb, detector, rows, output=""):
    """Lets Dask spread the machines over its processes."""
    # Paths as all workers see them.
    detector, rows = Path(detector).resolve(), str(Path(rows).resolve())
    output = Path(output).resolve() if output else detector / "catalogue.parquet"
    if any(output.glob("*")):
        sys.exit(f"{output} is not empty: Dask would add to what is there.")
    table = dd.read_parquet(rows)
    function, schema = {
        "fit": (fit, kdjax.CATALOGUE_SCHEMA),
        "score": (score, kdjax.SCORE_SCHEMA | {"time": table.dtypes["time"]}),
    }[verb]
    meta = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in schema.items()})
    # One machine's rows come into one partition; one may have several machines, or none.
    with dask.config.set(scheduler="processes"):
        (
            table.shuffle(on="entity")
            .map_partitions(function, str(detector), meta=meta)
            .to_parquet(output, write_index=False)
        )
    if verb == "fit":
        kdjax.finish_fleet(detector)  # the catalogue as one file, and a page


if __name__ == "__main__":
    main(*sys.argv[1:])
