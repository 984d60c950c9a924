"""All metrics, each a function of labels and of scores or alarms.

Each takes array-likes (lists, numpy, pandas): N rows in order or, for metrics of single
points, M windows. An undefined metric is NaN, with an `UndefinedMetricWarning` that gives
the reason.

- Single points: `precision_recall_f1` (Eq. 3-5), `auc_roc`, `average_precision`,
  `oracle_threshold` (τ of best F1).
- Events with a tolerance: `vus_roc`, `vus_pr` (both at once: `vus`), `affiliation`.
- Whole events: `range_precision_recall`, `event_f1`, `event_recall`, `detection_delay`.
- Inflated, for comparison with papers: `point_adjusted_f1`, `pa_k_f1`.
"""

from kdjax.metrics.checks import UndefinedMetricWarning, as_labels, as_scores
from kdjax.metrics.events import (
    Affiliation,
    affiliation,
    detection_delay,
    event_f1,
    event_recall,
    pa_k_f1,
    point_adjusted_f1,
    range_precision_recall,
)
from kdjax.metrics.points import (
    Counts,
    OracleThreshold,
    PrecisionRecallF1,
    auc_roc,
    average_precision,
    count,
    from_counts,
    oracle_threshold,
    precision_recall_f1,
    undefined,
)
from kdjax.metrics.volumes import Volumes, vus, vus_pr, vus_roc

__all__ = [
    "Affiliation",
    "Counts",
    "OracleThreshold",
    "PrecisionRecallF1",
    "UndefinedMetricWarning",
    "Volumes",
    "affiliation",
    "as_labels",
    "as_scores",
    "auc_roc",
    "average_precision",
    "count",
    "detection_delay",
    "event_f1",
    "event_recall",
    "from_counts",
    "oracle_threshold",
    "pa_k_f1",
    "point_adjusted_f1",
    "precision_recall_f1",
    "range_precision_recall",
    "undefined",
    "vus",
    "vus_pr",
    "vus_roc",
]
