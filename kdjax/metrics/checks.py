"""What all metrics share: checks of labels and scores, runs of rows, the NaN warning.

An undefined metric is NaN, with an `UndefinedMetricWarning` that gives the reason; a 0
would enter means like a measured value.
"""

import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from kdjax.errors import DataError

NO_PREDICTIONS = "nothing was predicted positive"
NO_POSITIVES = "no positive labels"
NO_NEGATIVES = "no negative labels"
NO_DETECTION = "no event was detected"


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for these labels and predictions; NaN is returned."""


def as_labels(values: ArrayLike, *, name: str = "labels") -> np.ndarray:
    """`values` as `[N]` bool; DataError unless each is 0 or 1.

    >>> as_labels([0, 1, 1]).tolist()
    [False, True, True]
    """
    array = _as_numbers(values, name)
    wrong = ~((array == 0) | (array == 1))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"`{name}` has the value {array[first]} at position {first}: expected 0 or "
            f"1 only ({int(wrong.sum())} of {len(array)} values differ). Map them to "
            "0 for normal and 1 for anomalous."
        )
    return array.astype(bool)


def as_scores(values: ArrayLike, *, name: str = "scores") -> np.ndarray:
    """`values` as `[N]` floats, larger = more anomalous; DataError where one is NaN.

    Infinite scores are legal. The float type is kept, since a threshold just below a
    float32 score has to be a float32 as well.

    >>> as_scores([1, 2]).dtype
    dtype('float64')
    """
    array = _as_numbers(values, name)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    missing = np.isnan(array)
    if missing.any():
        raise DataError(
            f"`{name}` has NaN at position {int(np.argmax(missing))} "
            f"({int(missing.sum())} of {len(array)} values): a missing score is "
            "neither normal nor an anomaly. Leave these rows out of both arrays."
        )
    return array


def with_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`[N]` labels as bool and as many scores as floats."""
    truth, values = as_labels(labels), as_scores(scores)
    same_length(truth, values, "scores")
    return truth, values


def with_alarms(
    labels: ArrayLike, predictions: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """`[N]` labels and as many alarms, both as bool."""
    truth = as_labels(labels)
    alarms = as_labels(predictions, name="predictions")
    same_length(truth, alarms, "predictions")
    return truth, alarms


def same_length(labels: np.ndarray, other: np.ndarray, name: str) -> None:
    """DataError unless `other`, called `name`, has one value for each label."""
    if len(labels) != len(other):
        raise DataError(
            f"`labels` has {len(labels)} values and `{name}` has {len(other)}: "
            "expected one label for each. Cut both to the same rows."
        )


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First rows of the runs of True in `[N]` bool, and the rows after their ends.

    >>> [ends.tolist() for ends in runs(np.array([True, False, True, True]))]
    [[0, 2], [1, 4]]
    """
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges[::2], edges[1::2]


def one_class(labels: np.ndarray) -> str | None:
    """Which class `[N]` bool labels lack; None if they have both."""
    if not labels.any():
        return NO_POSITIVES
    return NO_NEGATIVES if labels.all() else None


def event_reasons(
    values: Mapping[str, float], labels: np.ndarray, alarms: np.ndarray
) -> dict[str, str]:
    """Why those of the metrics of events of `[N]` bool labels and alarms that are NaN are."""
    if not labels.any():
        why = NO_POSITIVES
    else:
        why = NO_DETECTION if alarms.any() else NO_PREDICTIONS
    return {name: why for name, value in values.items() if np.isnan(value)}


def warn_undefined(reasons: Mapping[str, str], *, stacklevel: int = 3) -> None:
    """Warns once for all metrics of a call, with the reason for each that is NaN.

    `stacklevel` is 3 if the public function itself calls this one.
    """
    if reasons:
        text = "; ".join(f"{name} is NaN: {why}" for name, why in reasons.items())
        warnings.warn(text, UndefinedMetricWarning, stacklevel=stacklevel)


def _as_numbers(values: ArrayLike, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":  # pandas' nullable columns, lists of mixed numbers
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`{name}` can't be read as an array of numbers ({error}). "
            "Give one number a row."
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"`{name}` has the type {array.dtype}: expected numbers.")
    if array.ndim != 1:
        raise DataError(
            f"`{name}` has the shape {array.shape}: expected one dimension. "
            "Give one number a row or window."
        )
    if not len(array):
        raise DataError(f"`{name}` is empty: expected at least one value.")
    return array
