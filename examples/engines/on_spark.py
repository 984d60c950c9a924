"""Fits and scores machines on Spark: each task calls kdjax for whole machines.

    pip install "kdjax[spark]"    # and Java 17 or newer
    python on_spark.py fit FLEET ROWS
    python on_spark.py score FLEET_OR_DETECTOR ROWS SCORES/

ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and channels.
FLEET gets a detector a machine and their catalogue, SCORES Parquet files with the columns
of `kdjax.SCORE_SCHEMA`.
"""

import sys
from pathlib import Path

from pyspark.sql import SparkSession

import kdjax

TYPES = {"int8": "tinyint", "int64": "bigint", "Int64": "bigint", "float64": "double"}


def main(verb, detector, rows, output=""):
    """Lets Spark spread the machines over its executors."""
    # Paths as all workers see them.
    detector, rows = Path(detector).resolve(), str(Path(rows).resolve())
    output = Path(output).resolve() if output else detector / "catalogue.parquet"
    spark = SparkSession.builder.appName("kdjax").getOrCreate()
    table, folder = spark.read.parquet(rows), str(detector)

    def fit(part):
        """The catalogue's row of a machine; Spark doesn't keep the order of its rows."""
        return kdjax.fit_partition(part.sort_values("time"), output=folder)

    def score(part):
        """The scores of one machine."""
        part = part.sort_values("time")
        return kdjax.score_partition(part, folder, time_column="time")

    time = {"time": table.schema["time"].dataType.simpleString()}
    function, schema = {
        "fit": (fit, kdjax.CATALOGUE_SCHEMA),
        "score": (score, kdjax.SCORE_SCHEMA | time),
    }[verb]
    columns = ", ".join(f"{name} {TYPES.get(t, t)}" for name, t in schema.items())
    table.groupBy("entity").applyInPandas(function, columns).write.parquet(str(output))
    spark.stop()
    if verb == "fit":
        kdjax.finish_fleet(detector)  # the catalogue as one file, and a page


if __name__ == "__main__":
    main(*sys.argv[1:])
