"""Scores the rows of a CSV file with an exported detector: numpy and onnxruntime alone.

    python score_csv.py student.onnx rows.csv > scores.csv

Prints a line for each row at which a whole window ends; an empty cell is missing.
"""

import csv
import json
import sys

import numpy as np
import onnxruntime

BATCH = 256
OUTPUTS = ["point_score", "window_score", "alarm"]

model, table = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
channels, length = json.loads(about["channels"]), int(about["window"])
with open(table, newline="", encoding="utf-8") as file:
    lines = list(csv.DictReader(file))
cells = [[float(line[name].strip() or "nan") for name in channels] for line in lines]
rows = np.array(cells, np.float32)

write = csv.writer(sys.stdout).writerow
write(["time", "score", "window_score", "alarm"])
for first in range(0, len(rows) - length + 1, BATCH):
    ends = np.arange(first + length, min(first + length + BATCH, len(rows) + 1))
    windows = np.stack([rows[end - length : end] for end in ends])
    points, largest, alarm = session.run(OUTPUTS, {"x": windows})
    for end, score, *rest in zip(ends, points[:, -1], largest, alarm):
        write([lines[end - 1].get("time", end - 1), score, *rest])
