"""Scores machines' rows in a frame: one pure function, to be mapped by any engine.

Ray Data, Spark, Dask and others split a large table by machine and call a function on
each part, in their own processes. docs/fleet.md has an example of each.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

from kdjax.data.partitions import entity_frames
from kdjax.data.tables import frame_table
from kdjax.detection.detector import POOLED, Detector
from kdjax.detection.fleet import is_fleet, open_machine, read_fleet
from kdjax.detection.reading import CONTRIBUTION, Described, read_like, reading_of
from kdjax.detection.storage import kept_detector
from kdjax.detection.tables import score_table
from kdjax.errors import DataError

logger = logging.getLogger(__name__)

SCORE_SCHEMA = {
    "entity": "string",
    "time": "int64",
    "score": "float64",
    "window_score": "float64",
    "tau": "float64",
    "alarm": "int8",
    "state": "string",
}
"""Columns of `score_partition` and their dtypes; `time` has the frame's, if it has times."""


def score_partition(
    frame: pd.DataFrame,
    detector: Detector | str | os.PathLike[str],
    *,
    entity_column: str = "entity",
    time_column: str = "",
    causal: bool = False,
    contributions: bool = False,
) -> pd.DataFrame:
    """The `score_table` of each machine in a frame, one below the other.

    Machines are in order of first appearance, their rows in the frame's order. The columns
    are those of `SCORE_SCHEMA`; `time` is the row's number in its machine, or has the dtype
    of the time column. A frame without rows gives one without rows. Rows are read as files
    are, by the detector's card. A machine that the detector doesn't know is scored with
    its pooled values.

    Args:
        frame: all rows of one or several machines, N in all: D channels by name, the
            entity column, and the time column if there is one.
        detector: a detector, the folder of a saved one, or that of a fleet, which has one
            for each machine. A process loads each once.
        entity_column: column of the machines' names.
        time_column: column of times, datetimes or numbers; required if the frame has one.
        causal, contributions: see `score_table`.

    Raises:
        DataError: a machine's rows can't be used; the message names it.

    >>> scores = score_partition(frame, "detectors/student")  # doctest: +SKIP
    >>> scores.columns.tolist() == [*SCORE_SCHEMA]  # doctest: +SKIP
    True
    """
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"frame is of type {type(frame).__name__}: give a DataFrame of pandas."
        )
    find, usual = _opened(detector)
    options: dict[str, Any] = {
        "time_column": time_column,
        "contributions": contributions,
    }
    if len(frame):
        options |= {"entity_column": entity_column, "causal": causal}
        machines = entity_frames(frame_table(frame, "frame"), entity_column).items()
        tables = [_score_machine(rows, one, find, **options) for one, rows in machines]
        return pd.concat(tables, ignore_index=True)
    schema = _schema(usual, frame, **options)
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in schema.items()})


def _opened(
    detector: Detector | str | os.PathLike[str],
) -> tuple[Callable[[str], tuple[Detector, str]], Detector | Described]:
    """A function that returns a machine's detector and entity; a description of all."""
    if not isinstance(detector, Detector):
        path = Path(detector).absolute()
        if is_fleet(path):
            fleet = read_fleet(path)
            card = {"settings": fleet["settings"]}
            about = Described(card, tuple(fleet["channels"]), window=0)
            return partial(open_machine, path), about
        detector = kept_detector(path)
    loaded = detector
    known = {*loaded.entities}
    return lambda entity: (loaded, entity if entity in known else POOLED), loaded


def _score_machine(
    rows: pd.DataFrame,
    entity: str,
    find: Callable[[str], tuple[Detector, str]],
    *,
    entity_column: str,
    time_column: str,
    causal: bool,
    contributions: bool,
) -> pd.DataFrame:
    place = f"entity {entity!r}"
    try:
        detector, used = find(entity)
        schema = _schema(
            detector, rows, time_column=time_column, contributions=contributions
        )
        (series,) = read_like(
            detector,
            frame_table(rows, place),
            dtype=detector.scalers.offset.dtype,
            time_column=time_column,
            entity_column=entity_column,
        )
        if series.time_column != time_column:
            # A time column is not guessed: it would depend on the rows.
            raise DataError(
                f"column {series.time_column!r} holds times: name it as time_column, or "
                "remove it if rows are one step apart."
            )
        for note in series.notes:
            logger.info(note)
        table = score_table(
            detector,
            series,
            entity=used,
            causal=causal,
            contributions=contributions,
        )
    except DataError as error:
        if str(error).startswith(place):
            raise
        raise DataError(f"{place}: {error}") from error
    return table.astype(schema)


def _schema(
    detector: Detector | Described,
    frame: pd.DataFrame,
    *,
    time_column: str,
    contributions: bool,
) -> dict[str, Any]:
    """`SCORE_SCHEMA` for the times of a frame and the channels of a detector."""
    found: dict[str, Any] = dict(SCORE_SCHEMA)
    if time_column:
        found["time"] = _time_dtype(detector, frame, time_column)
    if contributions:
        found |= {CONTRIBUTION + name: "float64" for name in detector.channels}
    return found


def _time_dtype(detector: Detector | Described, frame: pd.DataFrame, name: str) -> Any:
    """The dtype of the time column; with a grid of the detector, ns or float64."""
    dtype = frame[name].dtype if name in frame else np.dtype("M8[ns]")
    dated = is_datetime64_any_dtype(dtype)
    if not dated and not is_numeric_dtype(dtype):
        if not len(frame):
            return np.dtype("M8[ns]")
        raise DataError(
            f"the time column {name!r} holds {dtype}: convert it to numbers, or to "
            "datetimes by pandas.to_datetime, so that the scores have one type of time."
        )
    if not reading_of(detector).step:
        return dtype
    zone = getattr(dtype, "tz", None)
    if not dated:
        return np.dtype(np.float64)
    return np.dtype("M8[ns]") if zone is None else pd.DatetimeTZDtype("ns", zone)
