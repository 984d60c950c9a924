"""What a caller's rows are called, and their time."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax.data.cells import Place
from kdjax.data.clock import parse_time
from kdjax.errors import DataError

ROWS = "X"  # what messages call the rows, and detectors their entity


def time_of(X: Any) -> np.ndarray | None:
    """The rows' time, where X has a `DatetimeIndex`."""
    index = getattr(X, "index", None)
    if not isinstance(index, pd.DatetimeIndex):
        return None
    time = parse_time(index.to_series(name="time"), Place(Path(ROWS), ("time",)))
    late = np.flatnonzero(time[1:] <= time[:-1])
    if len(late):
        raise DataError(
            f"{ROWS}: row {late[0] + 2} of the index is at {index[late[0] + 1]}, not after "
            "the row before: sort the rows and remove duplicates, or call "
            "reset_index(drop=True) if the index is no time."
        )
    return time
