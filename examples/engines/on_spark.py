"""Scores machines on Spark: each task scores whole machines with `kdjax.score_partition`.

    pip install "kdjax[spark]"    # and Java 17 or newer
    python on_spark.py DETECTOR ROWS.parquet SCORES/

ROWS is a Parquet file or a folder of them with the columns `entity`, `time` and the
detector's channels. SCORES gets Parquet files with the columns of `kdjax.SCORE_SCHEMA`.
"""

import sys
from pathlib import Path

from pyspark.sql import SparkSession

import kdjax

TYPES = {"int8": "tinyint", "int64": "bigint", "float64": "double"}


def main(detector, rows, output):
    """Lets Spark spread the machines over its executors."""
    detector, rows, output = (str(Path(p).resolve()) for p in (detector, rows, output))
    spark = SparkSession.builder.appName("kdjax").getOrCreate()
    table = spark.read.parquet(rows)
    schema = kdjax.SCORE_SCHEMA | {"time": table.schema["time"].dataType.simpleString()}

    def score(part):
        """The scores of one machine; Spark doesn't keep the order of its rows."""
        part = part.sort_values("time")
        return kdjax.score_partition(part, detector, time_column="time")

    (
        table.groupBy("entity")
        .applyInPandas(
            score, ", ".join(f"{name} {TYPES.get(t, t)}" for name, t in schema.items())
        )
        .write.parquet(output)
    )
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
