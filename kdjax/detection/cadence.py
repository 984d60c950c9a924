"""Checks that rows have the time step that a detector was trained on.

A model of sequences has learned the changes between successive rows. Scores of rows with
another step, or with times in another unit, are invalid.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdjax.data.times import time_steps
from kdjax.errors import DataError

# Largest ratio of a step to the one in training; jitter stays below it.
SAME_STEP = 1.5
# Steps that the check needs, and latest steps whose median is checked at a row.
ENOUGH, STEPS = 20, 100
_UNITS = {1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}


def is_other(found: Any, step: float) -> Any:
    """Whether a step, or each of an array of steps, differs from the one in training."""
    return (found <= step / SAME_STEP) | (found >= step * SAME_STEP)


def other_rows(time: np.ndarray | None, step: float) -> np.ndarray:
    """The rows `[K]` whose step differs from the detector's, as a stream refuses them.

    Both the step to a row, and the median of the latest `STEPS` up to it, differ.

    >>> other_rows(np.cumsum([60] * 30 + [1] * 40 + [60]), 60.0)[[0, -1]]
    array([58, 69])
    """
    steps = np.empty(0) if not step or time is None else time_steps(time)
    other = is_other(steps, step)
    if 2 * other.sum() < ENOUGH:  # no median can differ
        return np.empty(0, np.int64)
    latest = pd.Series(steps).rolling(STEPS, min_periods=ENOUGH)
    median = latest.quantile(0.5, interpolation="lower")
    return np.flatnonzero(other & is_other(median, step)) + 1


def common_step(steps: Sequence[float]) -> float:
    """The median of the entities' steps in training; 0 for none, or if they differ.

    >>> common_step([60.0, 61.0, 60.0]), common_step([60.0, 300.0])
    (60.0, 0.0)
    """
    step = float(np.median(steps))
    return 0.0 if any(is_other(own, step) for own in steps) else step


def check_cadence(time: np.ndarray | None, step: float) -> None:
    """Raises DataError if the median step between rows differs from the detector's.

    Gaps and jitter don't change the median. Fewer than `ENOUGH` steps are not checked.

    Args:
        time: `[N]` datetime64 or numbers, increasing; None for rows without times.
        step: the detector's, in seconds or in the unit of the numbers; 0 for none.

    >>> check_cadence(np.arange(0, 3000, 60), 60.0)
    >>> check_cadence(np.arange(0, 30), 60.0)
    Traceback (most recent call last):
    kdjax.errors.DataError: a row comes every 1 (median), but every 60 in training: train \
a detector for this step, or resample the rows to the one in training.
    """
    if not step or time is None or len(time) <= ENOUGH:
        return
    # Of two middle steps the smaller one, since their mean may never occur.
    found = float(np.quantile(time_steps(time), 0.5, method="lower"))
    if not is_other(found, step):
        return
    dated = np.issubdtype(time.dtype, np.datetime64)
    unit, hint = " s" if dated else "", ""
    for factor, name in _UNITS.items():
        by = f"{factor:,.0f}"
        if not (dated or is_other(found / step, factor)):
            hint = f"if the times are {name}, divide them by {by}; else "
        elif not is_other(step / found, factor):
            todo = "give such numbers" if dated else f"multiply these by {by}"
            hint = f"if the times in training were {name}, {todo}; else "
    raise DataError(
        f"a row comes every {found:.6g}{unit} (median), but every {step:.6g}{unit} in "
        f"training: {hint}train a detector for this step, or resample the rows to the one in "
        "training."
    )
