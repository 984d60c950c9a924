"""What the data room hands on: series of one entity each, and data sets of them."""

from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """One entity's rows in time order.

    Attributes:
        entity: name of the machine, service or channel recorded.
        values: `[N, D]` float32, in the units of the file; finite, or NaN where a value
            is missing and was read with `missing="mask"`.
        channels: the D channel names.
        time: `[N]` datetime64[ns] or float64, strictly increasing; None where the file
            has no time column, so that rows count as one step apart.
        labels: `[N]` bool, True in anomalous rows; None where there are none.
        excluded: `[S, 2]` spans of rows that serve for nothing, such as maintenance; None
            where there are none.
        notes: sentences on what reading did to the rows, such as how many were sorted,
            left out or filled.
    """

    entity: str
    values: np.ndarray  # [N, D]
    channels: tuple[str, ...]
    time: np.ndarray | None = None  # [N]
    labels: np.ndarray | None = None  # [N]
    excluded: np.ndarray | None = None  # [S, 2]
    notes: tuple[str, ...] = ()


class Dataset(NamedTuple):
    """Train and test series of one data set.

    `test` has the entities of `train` in the same order, or is empty where a user gave
    no test file.
    """

    name: str
    train: tuple[Series, ...]
    test: tuple[Series, ...]
