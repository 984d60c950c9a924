"""Precision, recall and F1 of alarms (Eq. 3-5), and areas under curves of scores.

They use each row or window separately; the order has no effect.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kdjax.metrics.checks import (
    NO_POSITIVES,
    NO_PREDICTIONS,
    one_class,
    warn_undefined,
    with_alarms,
    with_scores,
)


class PrecisionRecallF1(NamedTuple):
    """Precision (Eq. 3), recall (Eq. 4) and F1 (Eq. 5); NaN where undefined."""

    precision: float
    recall: float
    f1: float


class Counts(NamedTuple):
    """Counts in Eq. 3-5."""

    tp: int
    fp: int
    fn: int


def count(labels: ArrayLike, predictions: ArrayLike) -> Counts:
    """True positives, false positives and false negatives of alarms.

    >>> count([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
    Counts(tp=2, fp=1, fn=1)
    """
    truth, alarms = with_alarms(labels, predictions)
    marks = (truth & alarms, alarms, truth)
    tp, found, wanted = (int(np.count_nonzero(mask)) for mask in marks)
    return Counts(tp, found - tp, wanted - tp)


def from_counts(counts: Counts) -> PrecisionRecallF1:
    """Eq. 3-5 from counts; NaN where undefined, without a warning.

    F1 is 2TP / (2TP + FP + FN): Eq. 5 where that has a value, and 0 where there are
    positive labels and no prediction. Without positive labels it is undefined.

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


def harmonic_mean(precision: float, recall: float) -> float:
    """F1 of two numbers; 0 if both are, NaN if one is.

    >>> harmonic_mean(0.5, 1.0)
    0.6666666666666666
    """
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def precision_recall_f1(labels: ArrayLike, predictions: ArrayLike) -> PrecisionRecallF1:
    """Precision, recall and F1 of `[N]` alarms, Eq. 3-5.

    Precision is NaN when nothing was predicted; recall and F1 are NaN when nothing is
    labelled; an `UndefinedMetricWarning` says so. See `from_counts` for F1.

    >>> precision_recall_f1([0, 0, 1, 1], [0, 1, 1, 1])
    PrecisionRecallF1(precision=0.6666666666666666, recall=1.0, f1=0.8)
    """
    counts = count(labels, predictions)
    warn_undefined(undefined(counts))
    return from_counts(counts)


def auc_roc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve; NaN with a warning if only one class is labelled.

    >>> auc_roc([0, 0, 1, 1], [0.1, 0.4, 0.35, float("inf")])
    0.75
    """
    return _curve("auc_roc", labels, scores)


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision (area under the steps of precision over recall).

    NaN with a warning if nothing is labelled positive.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    return _curve("average_precision", labels, scores)


class OracleThreshold(NamedTuple):
    """τ of best F1, alarm meaning score > τ, and that F1; NaN without positives."""

    threshold: float
    f1: float


def oracle_threshold(labels: ArrayLike, scores: ArrayLike) -> OracleThreshold:
    """τ of best F1 (Eq. 5) for `[N]` labels and scores, exact over all scores.

    It uses the test labels, so no detector in service can have it; tables name it
    `oracle`. τ is one of the scores or, where alarming on everything is best, the float
    just below the smallest. Of equally good thresholds the largest is taken.

    >>> oracle_threshold([0, 0, 1, 1], [0.1, 0.3, 0.2, 0.9])
    OracleThreshold(threshold=0.1, f1=0.8)
    """
    truth, values = with_scores(labels, scores)
    if not truth.any():
        warn_undefined({"the oracle threshold": NO_POSITIVES})
        return OracleThreshold(float("nan"), float("nan"))
    # Each τ that changes the alarms, in falling order, and its F1.
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    # Equal scores raise alarms together: a τ lies only where the score falls.
    last_of_ties = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    alarms = last_of_ties + 1
    hits = np.cumsum(truth[order])[last_of_ties]
    below_all = np.nextafter(ordered[-1], np.array(-np.inf, dtype=ordered.dtype))
    thresholds = np.concatenate(([ordered[0]], ordered[last_of_ties[1:]], [below_all]))
    # First candidate: τ = the largest score, no alarm. No τ lies below a score of -inf.
    alarms, hits = np.append(0, alarms), np.append(0, hits)
    stop = len(alarms) - int(ordered[-1] == -np.inf)
    f1 = (2 * hits / (alarms + np.count_nonzero(truth)))[:stop]
    best = int(np.argmax(f1))
    return OracleThreshold(float(thresholds[best]), float(f1[best]))


def _curve(name: str, labels: ArrayLike, scores: ArrayLike) -> float:
    from sklearn import metrics  # here, since it takes a second to import

    truth, values = with_scores(labels, scores)
    reason = one_class(truth)
    if reason and (name == "auc_roc" or not truth.any()):
        warn_undefined({name: reason}, stacklevel=4)
        return float("nan")
    # scikit-learn refuses infinite scores; both areas depend on the order alone.
    ranks = np.unique(values, return_inverse=True)[1]
    if name == "auc_roc":
        return float(metrics.roc_auc_score(truth, ranks))
    return float(metrics.average_precision_score(truth, ranks))
