"""Fits and scores machines on Ray Data: each task calls kdjax for whole machines.

    pip install "kdjax[ray]"
    python on_ray.py fit FLEET ROWS
    python on_ray.py score FLEET_OR_DETECTOR ROWS SCORES/

ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and channels.
FLEET gets a detector a machine and their catalogue, SCORES Parquet files with the columns
of `kdjax.SCORE_SCHEMA`.
"""

import sys
from pathlib import Path

import ray

import kdjax


def fit(rows, fleet):
    """The catalogue's row of a machine; Ray doesn't keep the order of its rows."""
    return kdjax.fit_partition(rows.sort_values("time"), output=fleet)


def score(rows, detector):
    """The scores of one machine."""
    rows = rows.sort_values("time")
    return kdjax.score_partition(rows, detector, time_column="time")


def main(verb, detector, rows, output=""):
    """Lets Ray spread the machines over the workers that it finds."""
    # Paths as all workers see them.
    detector, rows = Path(detector).resolve(), str(Path(rows).resolve())
    output = Path(output).resolve() if output else detector / "catalogue.parquet"
    if any(output.glob("*")):
        sys.exit(f"{output} is not empty: Ray would add to what is there.")
    ray.init(ignore_reinit_error=True)
    # Tasks of the shuffle; Ray's 200 would take longer than to score a small table.
    parts = 4 * int(ray.cluster_resources()["CPU"])
    (
        ray.data.read_parquet(rows)
        .groupby("entity", num_partitions=parts)
        .map_groups(
            {"fit": fit, "score": score}[verb],
            batch_format="pandas",
            fn_args=(str(detector),),
        )
        .write_parquet(str(output))
    )
    if verb == "fit":
        kdjax.finish_fleet(detector)  # the catalogue as one file, and a page


if __name__ == "__main__":
    main(*sys.argv[1:])
