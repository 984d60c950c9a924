"""Scores the rows of a CSV file with an exported detector: numpy and onnxruntime alone.

    python score_csv.py student.onnx rows.csv > scores.csv

Prints a line for each row at which a whole window ends. For files that `kdjax score`
takes: separated by comma, semicolon, tab or `|`, also packed by gzip, with a time column of
any name or without one. It checks less than that does, and looks for no gaps in time.
"""

import csv
import gzip
import json
import sys
from datetime import datetime

import numpy as np
import onnxruntime

BATCH = 256
OUTPUTS = ["point_score", "window_score", "alarm"]
KINDS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
WORDS = dict.fromkeys(("", "na", "n/a", "nan", "-nan", "null", "none", "#n/a"), np.nan)
WORDS |= {"true": 1.0, "false": 0.0}
TIMES = ("time", "timestamp", "date", "datetime")


def number(cell, mark):
    """A cell as a number; NaN if it is missing."""
    word = cell.strip().lower()
    return WORDS[word] if word in WORDS else float(word.replace(mark, "."))


def is_date(cell):
    """Whether a cell holds a date or a time in ISO form."""
    try:
        return bool(datetime.fromisoformat(cell.strip().replace("/", "-")))
    except ValueError:
        return False


model, table = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
channels, length = json.loads(about["channels"]), int(about["window"])
kind = KINDS[session.get_inputs()[0].type]

unpacked = gzip.open if table.endswith(".gz") else open
with unpacked(table, "rt", newline="", encoding="utf-8-sig") as file:
    lines = [line for line in file if line.strip() or len(channels) == 1]
separator = max(",;\t|", key=lines[0].count)
mark = "." if separator == "," else ","  # of decimals besides the point
cells = list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
names = [name.strip() for name in cells[0]]
if set(channels) & set(names):
    del cells[0]
elif len(names) == len(channels):  # rows without a header
    names = channels
absent = [name for name in channels if name not in names]
if absent:
    sys.exit(
        f"{table} has no column {', '.join(absent)}: the first line names columns."
    )
others = [name for name in names if name not in channels]
clock = [name for name in others if name.lower() in TIMES]
clock += [name for name in others if is_date(cells[0][names.index(name)])]
places = [names.index(name) for name in channels]
rows = np.array([[number(row[i], mark) for i in places] for row in cells], kind)

write = csv.writer(sys.stdout).writerow
write(["time", "score", "window_score", "alarm"])
for first in range(0, len(rows) - length + 1, BATCH):
    ends = np.arange(first + length, min(first + length + BATCH, len(rows) + 1))
    windows = np.stack([rows[end - length : end] for end in ends])
    points, largest, alarm = session.run(OUTPUTS, {"x": windows})
    for end, score, *rest in zip(ends, points[:, -1], largest, alarm):
        time = cells[end - 1][names.index(clock[0])] if clock else end - 1
        write([time, score, *rest])
