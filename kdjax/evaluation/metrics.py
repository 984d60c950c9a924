"""Precision, recall and F1 of alarms (Eq. 3-5), and areas under curves of scores.

Each function takes array-likes (lists, numpy, pandas) of N rows or M windows alike. A
metric that its inputs leave undefined is NaN, with an `UndefinedMetricWarning` that
gives the reason, and never 0: a zero would enter means as if it had been measured.
"""

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdjax.errors import DataError

NO_PREDICTIONS = "nothing was predicted positive"
NO_POSITIVES = "no positive labels"
NO_NEGATIVES = "no negative labels"


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for these labels and predictions; NaN is returned."""


class PrecisionRecallF1(NamedTuple):
    """Precision (Eq. 3), recall (Eq. 4) and F1 (Eq. 5); NaN where undefined."""

    precision: float
    recall: float
    f1: float


class Counts(NamedTuple):
    """What Eq. 3-5 are made of; counts of several entities may be summed."""

    tp: int
    fp: int
    fn: int


def as_labels(values: npt.ArrayLike, *, name: str = "labels") -> np.ndarray:
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


def as_scores(values: npt.ArrayLike, *, name: str = "scores") -> np.ndarray:
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


def count(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> Counts:
    """True positives, false positives and false negatives of alarms.

    >>> count([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
    Counts(tp=2, fp=1, fn=1)
    """
    truth = as_labels(labels)
    alarms = as_labels(predictions, name="predictions")
    same_length(truth, alarms, "predictions")
    tp = int(np.count_nonzero(truth & alarms))
    return Counts(
        tp, int(np.count_nonzero(alarms)) - tp, int(np.count_nonzero(truth)) - tp
    )


def pool(counts: Iterable[Counts]) -> Counts:
    """The sum of several entities' counts.

    >>> pool([Counts(2, 1, 1), Counts(0, 4, 0)])
    Counts(tp=2, fp=5, fn=1)
    """
    total = np.array([(0, 0, 0), *counts]).sum(axis=0)
    return Counts(*(int(number) for number in total))


def from_counts(counts: Counts) -> PrecisionRecallF1:
    """Eq. 3-5 from counts; NaN where undefined, without a warning.

    F1 is 2TP / (2TP + FP + FN): Eq. 5 wherever Eq. 5 has a value, and 0 where there are
    positive labels and no prediction. Without positive labels it is undefined, though
    the fraction might be 0/FP: there is nothing that a detector could have found.

    >>> from_counts(Counts(tp=2, fp=2, fn=0))
    PrecisionRecallF1(precision=0.5, recall=1.0, f1=0.6666666666666666)
    """
    tp, fp, fn = counts
    nan = float("nan")
    return PrecisionRecallF1(
        precision=tp / (tp + fp) if tp + fp else nan,
        recall=tp / (tp + fn) if tp + fn else nan,
        f1=2 * tp / (2 * tp + fp + fn) if tp + fn else nan,
    )


def undefined(counts: Counts) -> dict[str, str]:
    """For each metric of Eq. 3-5 that `counts` leave undefined, the reason.

    >>> undefined(Counts(tp=0, fp=0, fn=3))
    {'precision': 'nothing was predicted positive'}
    """
    tp, fp, fn = counts
    reasons = {}
    if tp + fp == 0:
        reasons["precision"] = NO_PREDICTIONS
    if tp + fn == 0:
        reasons |= {"recall": NO_POSITIVES, "f1": NO_POSITIVES}
    return reasons


def undefined_curve(labels: np.ndarray) -> dict[str, str]:
    """For each curve metric that `[N]` bool labels leave undefined, the reason.

    >>> undefined_curve(np.array([True, True]))
    {'auc_roc': 'no negative labels'}
    """
    if not labels.any():
        return {"auc_roc": NO_POSITIVES, "average_precision": NO_POSITIVES}
    return {"auc_roc": NO_NEGATIVES} if labels.all() else {}


def precision_recall_f1(
    labels: npt.ArrayLike, predictions: npt.ArrayLike
) -> PrecisionRecallF1:
    """Precision, recall and F1 of `[N]` alarms, Eq. 3-5.

    Precision is NaN when nothing was predicted; recall and F1 are NaN when nothing is
    labelled; an `UndefinedMetricWarning` says so. See `from_counts` for F1.

    >>> precision_recall_f1([0, 0, 1, 1], [0, 1, 1, 1])
    PrecisionRecallF1(precision=0.6666666666666666, recall=1.0, f1=0.8)
    """
    counts = count(labels, predictions)
    _warn(undefined(counts))
    return from_counts(counts)


def auc_roc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve; NaN with a warning if only one class is labelled.

    >>> auc_roc([0, 0, 1, 1], [0.1, 0.4, 0.35, float("inf")])
    0.75
    """
    return _curve("auc_roc", labels, scores)


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Average precision (area under the steps of precision over recall).

    NaN with a warning if nothing is labelled positive.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    return _curve("average_precision", labels, scores)


def _curve(name: str, labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    from sklearn import metrics  # here, since it takes a second to import

    truth, values = as_labels(labels), as_scores(scores)
    same_length(truth, values, "scores")
    if reason := undefined_curve(truth).get(name):
        _warn({name: reason}, stacklevel=4)
        return float("nan")
    # scikit-learn refuses infinite scores; both areas depend on the order alone.
    ranks = np.unique(values, return_inverse=True)[1]
    area = (
        metrics.roc_auc_score if name == "auc_roc" else metrics.average_precision_score
    )
    return float(area(truth, ranks))


def _as_numbers(values: npt.ArrayLike, name: str) -> np.ndarray:
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


def same_length(labels: np.ndarray, other: np.ndarray, name: str) -> None:
    """DataError unless `other`, called `name`, has one value for each label."""
    if len(labels) != len(other):
        raise DataError(
            f"`labels` has {len(labels)} values and `{name}` has {len(other)}: "
            "expected one label for each. Cut both to the same rows."
        )


def _warn(reasons: dict[str, str], *, stacklevel: int = 3) -> None:
    # One warning a call, so that a caller who expects it meets no second one.
    if reasons:
        text = "; ".join(f"{name} is NaN: {why}" for name, why in reasons.items())
        warnings.warn(text, UndefinedMetricWarning, stacklevel=stacklevel)
