"""Scores machines on Ray Data: each worker scores whole machines with `kdjax.score_partition`.

    pip install "kdjax[ray]"
    python on_ray.py DETECTOR ROWS.parquet SCORES/

ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and the
detector's channels. SCORES gets Parquet files with the columns of `kdjax.SCORE_SCHEMA`.
"""

import sys
from pathlib import Path

import ray

import kdjax


def score(rows, detector):
    """The scores of one machine; Ray doesn't keep the order of its rows."""
    rows = rows.sort_values("time")
    return kdjax.score_partition(rows, detector, time_column="time")


def main(detector, rows, output):
    """Lets Ray spread the machines over the workers that it finds."""
    if any(Path(output).glob("*")):
        sys.exit(f"{output} is not empty: Ray would add to what is there.")
    # Paths as all workers see them.
    detector, rows, output = (str(Path(p).resolve()) for p in (detector, rows, output))
    ray.init(ignore_reinit_error=True)
    # Tasks of the shuffle; Ray's 200 would take longer than to score a small table.
    parts = 4 * int(ray.cluster_resources()["CPU"])
    (
        ray.data.read_parquet(rows)
        .groupby("entity", num_partitions=parts)
        .map_groups(score, batch_format="pandas", fn_args=(detector,))
        .write_parquet(output)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
