"""Scores the windows of many CSV files on Ray Data with an exported detector.

    pip install "ray[data]" onnxruntime
    python score_fleet.py student.onnx FOLDER scores/

Takes each file below FOLDER that ends in .csv; a faulty one ends the job by its name.
Windows are those of `kdjax score`: from the rows 0, s, 2s, … and one that ends with the
last row, in files without gaps in time. An empty cell is missing. `scores/` gets Parquet
files with a line a window: file, first row, last row, window score, alarm.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

BATCH = 256


def open_model(model):
    """A session on one core, since Ray runs several; channels, window and stride."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    stride = json.loads(about["stream"])["stride"]
    return session, json.loads(about["channels"]), int(about["window"]), stride


def read_rows(path, channels):
    """The channels of a file, `[N, D]` float32."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    cells = [
        [float(line[name].strip() or "nan") for name in channels] for line in lines
    ]
    return np.array(cells, np.float32).reshape(-1, len(channels))


def window_starts(rows, length, stride):
    """First rows of the windows that leave no row out."""
    if rows < length:
        raise ValueError(f"{rows} rows are fewer than the window's {length}")
    return [*range(0, rows - length, min(stride, length)), rows - length]


def windows_of(path, channels, length, stride):
    """A file's windows, each with its place; what is wrong names the file."""
    try:
        rows = read_rows(path, channels)
        starts = window_starts(len(rows), length, stride)
    except (AttributeError, KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} can't be scored: {error!r}") from error
    for first in starts:
        last = first + length - 1
        window = rows[first : last + 1]
        yield {"file": str(path), "first": first, "last": last, "x": window}


class Score:
    """Scores batches of windows; a worker opens the model once."""

    def __init__(self, model):
        self.session = open_model(model)[0]

    def __call__(self, batch):
        batch = dict(batch)
        batch_source = {"x": np.ascontiguousarray(batch.pop("x"), np.float32)}
        score, alarm = self.session.run(["window_score", "alarm"], batch_source)
        return batch | {"window_score": score, "alarm": alarm}


def main(model, folder, output):
    """Lets Ray spread files and windows over the workers that it finds."""
    import ray

    if any(Path(output).glob("*")):
        sys.exit(f"{output} is not empty: Ray would add to what is there.")
    model = str(Path(model).resolve())
    channels, length, stride = open_model(model)[1:]
    paths = sorted(str(path.resolve()) for path in Path(folder).rglob("*.csv"))
    # Up to all cores but one, which is left to those that read.
    ray.init(ignore_reinit_error=True)
    most = max(1, int(ray.cluster_resources()["CPU"]) - 1)
    (
        ray.data.from_items([{"path": path} for path in paths])
        .flat_map(lambda item: windows_of(item["path"], channels, length, stride))
        .map_batches(
            Score,
            fn_constructor_args=(model,),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        )
        .write_parquet(str(Path(output).resolve()))
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
