"""How the values of a swept field, or of a measure, lie on an axis.

Numbers have an axis of numbers, logarithmic where they span two decades; texts, such as
hidden widths, stand side by side.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator

from kdjax.experiment.sweeps.tables import field_text

LOG_SPAN = 100.0  # positive numbers this far apart get a logarithmic axis
MOST_VALUES = 10  # up to so many numbers are the ticks of their axis
MOST_CATEGORIES = 24  # from there on not each has its text
LEAST_GAP = 0.04  # between two ticks, as a share of the axis
SPREAD = 0.025  # how far members that share a value go aside, as a share of the axis
LINE_STEP = 0.008  # from one such member to the next


class Scale(NamedTuple):
    """How the values of a column lie on an axis.

    Attributes:
        kind: `linear`, `log` or `categories`.
        low: the least number; 0 for categories.
        high: the greatest number; the last category's place.
        values: the distinct values, ascending; texts that are no numbers in the order
            in which they first appear.
    """

    kind: str
    low: float
    high: float
    values: tuple[Any, ...]


def distinct(values: pd.Series) -> list[Any]:
    """The distinct values: numbers, and texts of numbers such as "64,64", ascending.

    Other texts keep the order in which they first appear.

    >>> distinct(pd.Series(["16", "8", "64,64", "8"]))
    ['8', '16', '64,64']
    """
    found = list(pd.unique(values))
    try:
        return sorted(found, key=_as_numbers)
    except ValueError:
        return found


def make_scale(values: pd.Series) -> Scale:
    """The axis of a column, by the kind and the span of its values."""
    found = tuple(distinct(values))
    if not pd.api.types.is_numeric_dtype(values) or not np.isfinite(values).all():
        return Scale("categories", 0.0, max(len(found) - 1.0, 0.0), found)
    if not found:
        return Scale("linear", 0.0, 1.0, ())
    low, high = float(found[0]), float(found[-1])
    log = low > 0 and high / low >= LOG_SPAN
    return Scale("log" if log else "linear", low, high, found)


def place(scale: Scale, values: pd.Series) -> np.ndarray:
    """Where values lie on their axis, `[P]` from 0 to 1; the middle if all are equal.

    >>> place(Scale("log", 1.0, 100.0, ()), pd.Series([1.0, 10.0, 100.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    if scale.high == scale.low:
        return np.full(len(values), 0.5)
    if scale.kind == "categories":
        order = {value: number for number, value in enumerate(scale.values)}
        return np.array([order[value] / scale.high for value in values])
    numbers = values.to_numpy(np.float64)
    low, high = scale.low, scale.high
    if scale.kind == "log":
        numbers, low, high = np.log(numbers), np.log(low), np.log(high)
    return np.asarray((numbers - low) / (high - low))


def side_by_side(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Members that share a place beside each other around it, `[P], [P] -> [P]`.

    The least number lies lowest, those that aren't finite below it. No member moves by
    more than `SPREAD`, nor near a neighbouring place.

    >>> side_by_side(np.array([0.0, 1.0, 1.0]), np.array([5.0, 7.0, 6.0])).round(3)
    array([0.   , 1.004, 0.996])
    """
    moved = places.astype(np.float64)
    ascending = np.argsort(np.where(np.isfinite(numbers), numbers, -np.inf))
    shared = np.unique(places)
    room = min(SPREAD, 0.3 * np.diff(shared).min(initial=1.0))
    for where in shared:
        tied = ascending[places[ascending] == where]
        step = min(LINE_STEP, 2 * room / max(len(tied) - 1, 1))
        moved[tied] += step * (np.arange(len(tied)) - (len(tied) - 1) / 2)
    return moved


def ticks(scale: Scale) -> list[tuple[float, str]]:
    """Places from 0 to 1 with their texts: the values themselves where they fit.

    >>> ticks(Scale("linear", 0.0, 1.0, (0.0, 0.25, 1.0)))
    [(0.0, '0'), (0.25, '0.25'), (1.0, '1')]
    """
    shown = list(scale.values)
    places = place(scale, pd.Series(shown, dtype=object))
    if scale.kind == "categories":
        every = -(-len(shown) // MOST_CATEGORIES)
        marks = list(zip(places.tolist(), map(field_text, shown), strict=True))
        return marks[:: every or 1]
    if len(shown) > MOST_VALUES or (np.diff(places) < LEAST_GAP).any():
        locator = LogLocator() if scale.kind == "log" else MaxNLocator(6)
        low, high = scale.low, scale.high
        shown = [v for v in locator.tick_values(low, high) if low <= v <= high]
        places = place(scale, pd.Series(shown))
    return [(float(p), f"{v:.6g}") for p, v in zip(places, shown, strict=True)]


def _as_numbers(value: Any) -> tuple[float, ...]:
    """What a value is sorted by; ValueError for a text that is no numbers."""
    parts = value.split(",") if isinstance(value, str) else [value]
    return tuple(float(part) for part in parts)
