"""SMAP and MSL: NASA's telemetry channels, each a data set of its own with commands.

Hundman et al., "Detecting Spacecraft Anomalies Using LSTMs and Nonparametric Dynamic
Thresholding", KDD 2018. P-2 is left out, since the table lists it twice with different
ranges; T-10 has no line in the table, hence no labels, and stays out too.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.cells import Place, to_float32
from kdjax.data.raw import read_bytes, read_npy, read_npz
from kdjax.data.series import Series
from kdjax.errors import DataError

CHANNELS = {
    "smap": ("telemetry", *(f"command_{i}" for i in range(1, 25))),
    "msl": ("telemetry", *(f"command_{i}" for i in range(1, 55))),
}
LAYOUT = (
    "labeled_anomalies.csv beside channels/ID.npz, or beside train/ID.npy and "
    "test/ID.npy (also below data/)"
)
_TABLE = "labeled_anomalies.csv"
_COLUMNS = ("chan_id", "spacecraft", "anomaly_sequences", "num_values")
_LEFT_OUT = ("P-2",)


class _Line(NamedTuple):
    """What the table says of one channel: anomalous ranges, both ends included."""

    ranges: list[list[int]]
    rows: int
    number: int


def find_entities(name: str, root: Path) -> set[str]:
    """Channels of the spacecraft with a line in the table and an array on disk."""
    if not (root / _TABLE).is_file():
        raise DataError(f"{root / _TABLE} is missing: expected {LAYOUT}.")
    return {entity for entity in _read_table(name, root) if _any_array(root, entity)}


def read_entity(name: str, root: Path, entity: str) -> tuple[Series, Series]:
    """Train and labelled test series of one channel."""
    channels = CHANNELS[name]
    train = _read_array(root, entity, "train", channels)
    test = _read_array(root, entity, "test", channels)
    labels = _labels(root, entity, _read_table(name, root)[entity], len(test))
    return (
        Series(entity, train, channels),
        Series(entity, test, channels, labels=labels),
    )


def _read_table(name: str, root: Path) -> dict[str, _Line]:
    path = root / _TABLE
    read_bytes(path)  # refuses a missing, empty or unreadable file
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise DataError(f"{path} can't be read ({error}): download it again.") from None
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}: download it again."
        )
    lines = {}
    for number, row in enumerate(table.to_dict("records"), start=2):
        if row["spacecraft"] == name.upper() and row["chan_id"] not in _LEFT_OUT:
            lines[str(row["chan_id"])] = _parse(path, number, row)
    return lines


def _parse(path: Path, number: int, row: dict[Hashable, Any]) -> _Line:
    try:
        ranges = json.loads(row["anomaly_sequences"])
        rows = int(row["num_values"])
        if not all(len(pair) == 2 and 0 <= pair[0] <= pair[1] for pair in ranges):
            raise ValueError("a range is not [first, last]")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: line {number} (channel {row['chan_id']}) can't be read ({error}): "
            "expected ranges such as [[2149, 2349]] and a number of rows."
        ) from None
    return _Line(ranges, rows, number)


def _any_array(root: Path, entity: str) -> bool:
    paths = [
        _npz(root, entity),
        _npy(root, "train", entity),
        _npy(root, "test", entity),
    ]
    return any(path.is_file() for path in paths)


def _npz(root: Path, entity: str) -> Path:
    return root / "channels" / f"{entity}.npz"


def _npy(root: Path, part: str, entity: str) -> Path:
    """The array in the original layout, whose archive unpacks into `data/`."""
    below = root / "data" / part / f"{entity}.npy"
    return below if below.is_file() else root / part / f"{entity}.npy"


def _read_array(
    root: Path, entity: str, part: str, channels: tuple[str, ...]
) -> np.ndarray:
    path = _npz(root, entity)
    if path.is_file():
        values = read_npz(path, part)
    else:
        path = _npy(root, part, entity)
        values = read_npy(path)
    if values.ndim != 2 or values.shape[1] != len(channels) or not len(values):
        raise DataError(
            f"{path}: {part} has shape {values.shape}, expected rows of "
            f"{len(channels)} columns; download it again."
        )
    if values.dtype.kind not in "fiub":
        raise DataError(
            f"{path}: {part} holds {values.dtype}, expected numbers; download it again."
        )
    return to_float32(values, Place(path, channels))


def _labels(root: Path, entity: str, line: _Line, rows: int) -> np.ndarray:
    last = max((stop for _, stop in line.ranges), default=0)
    if line.rows != rows or last >= rows:
        raise DataError(
            f"{root / _TABLE}: line {line.number} (channel {entity}) says "
            f"{line.rows} rows with ranges up to row {last}, but test has {rows} rows: "
            "download table and arrays again."
        )
    labels = np.zeros(rows, bool)
    for start, stop in line.ranges:
        labels[start : stop + 1] = True
    return labels
