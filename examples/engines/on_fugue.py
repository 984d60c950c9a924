"""Fits and scores machines through Fugue, on any of its engines.

    pip install kdjax "fugue[dask]" "pandas<3"    # in an environment of its own
    python on_fugue.py ENGINE fit FLEET ROWS
    python on_fugue.py ENGINE score FLEET_OR_DETECTOR ROWS SCORES.parquet

ENGINE is one of Fugue's, such as `dask`, `ray` or `spark`, or `native` for one machine after
the other. ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and
channels. FLEET gets a detector a machine and their catalogue, SCORES the columns of
`kdjax.SCORE_SCHEMA`.
"""

import sys
from pathlib import Path

import fugue.api as fa
import pandas as pd

import kdjax


def fit(rows: pd.DataFrame, folder: str) -> pd.DataFrame:
    """The catalogue's row of a machine."""
    return kdjax.fit_partition(rows, output=folder)


def score(rows: pd.DataFrame, folder: str) -> pd.DataFrame:
    """The scores of one machine."""
    return kdjax.score_partition(rows, folder, time_column="time")


def main(engine, verb, detector, rows, output=""):
    """Lets Fugue's engine spread the machines."""
    # Paths as all workers see them.
    detector, rows = Path(detector).resolve(), str(Path(rows).resolve())
    output = Path(output).resolve() if output else detector / "catalogue.parquet"
    function, schema = {
        "fit": (fit, kdjax.CATALOGUE_SCHEMA),
        "score": (score, kdjax.SCORE_SCHEMA | {"time": "datetime"}),
    }[verb]
    with fa.engine_context(engine):
        found = fa.transform(
            fa.load(rows, format_hint="parquet"),
            function,
            schema=",".join(f"{name}:{t.lower()}" for name, t in schema.items()),
            params={"folder": str(detector)},
            partition={"by": "entity", "presort": "time"},
        )
        fa.save(found, str(output), format_hint="parquet", mode="error")
    if verb == "fit":
        kdjax.finish_fleet(detector)  # the catalogue as one file, and a page


if __name__ == "__main__":
    main(*sys.argv[1:])
