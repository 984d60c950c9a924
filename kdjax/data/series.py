"""What the data room hands on: series of one entity each, and data sets of them."""

from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """One entity's rows in time order.

    Attributes:
        entity: name of the machine, service or channel recorded.
        values: `[N, D]` float32, finite, in the units of the file.
        channels: the D channel names.
        time: `[N]` datetime64[ns] or float64, strictly increasing; None where the file
            has no time column, so that rows count as one step apart.
        labels: `[N]` bool, True in anomalous rows; None where there are none.
    """

    entity: str
    values: np.ndarray  # [N, D]
    channels: tuple[str, ...]
    time: np.ndarray | None = None  # [N]
    labels: np.ndarray | None = None  # [N]


class Dataset(NamedTuple):
    """Train and test series of one data set.

    `test` has the entities of `train` in the same order, or is empty where a user gave
    no test file.
    """

    name: str
    train: tuple[Series, ...]
    test: tuple[Series, ...]
