"""Scores machines through Fugue, on any of its engines, with `kdjax.score_partition`.

    pip install kdjax "fugue[dask]" "pandas<3"    # in an environment of its own
    python on_fugue.py DETECTOR ROWS.parquet SCORES.parquet [ENGINE]

ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and the
detector's channels. SCORES gets the columns of `kdjax.SCORE_SCHEMA`. ENGINE is one of
Fugue's, such as `dask`, `ray` or `spark`; by default the machines are scored one by one.
"""

import sys
from pathlib import Path

import fugue.api as fa
import pandas as pd

import kdjax


def score(rows: pd.DataFrame, detector: str) -> pd.DataFrame:
    """The scores of one machine."""
    return kdjax.score_partition(rows, detector, time_column="time")


def main(detector, rows, output, engine=None):
    """Lets Fugue's engine spread the machines."""
    schema = kdjax.SCORE_SCHEMA | {"time": "datetime"}
    with fa.engine_context(engine):
        found = fa.transform(
            fa.load(str(Path(rows).resolve()), format_hint="parquet"),
            score,
            schema=",".join(f"{name}:{kind}" for name, kind in schema.items()),
            params={"detector": str(Path(detector).resolve())},
            partition={"by": "entity", "presort": "time"},
        )
        fa.save(found, str(Path(output).resolve()), format_hint="parquet", mode="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
