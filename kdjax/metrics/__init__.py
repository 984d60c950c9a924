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

from kdjax.metrics.checks import UndefinedMetricWarning as UndefinedMetricWarning
from kdjax.metrics.checks import as_labels as as_labels
from kdjax.metrics.checks import as_scores as as_scores
from kdjax.metrics.events import Affiliation as Affiliation
from kdjax.metrics.events import affiliation as affiliation
from kdjax.metrics.events import detection_delay as detection_delay
from kdjax.metrics.events import event_f1 as event_f1
from kdjax.metrics.events import event_recall as event_recall
from kdjax.metrics.events import pa_k_f1 as pa_k_f1
from kdjax.metrics.events import point_adjusted_f1 as point_adjusted_f1
from kdjax.metrics.events import range_precision_recall as range_precision_recall
from kdjax.metrics.points import Counts as Counts
from kdjax.metrics.points import OracleThreshold as OracleThreshold
from kdjax.metrics.points import PrecisionRecallF1 as PrecisionRecallF1
from kdjax.metrics.points import auc_roc as auc_roc
from kdjax.metrics.points import average_precision as average_precision
from kdjax.metrics.points import count as count
from kdjax.metrics.points import from_counts as from_counts
from kdjax.metrics.points import oracle_threshold as oracle_threshold
from kdjax.metrics.points import precision_recall_f1 as precision_recall_f1
from kdjax.metrics.points import undefined as undefined
from kdjax.metrics.volumes import Volumes as Volumes
from kdjax.metrics.volumes import vus as vus
from kdjax.metrics.volumes import vus_pr as vus_pr
from kdjax.metrics.volumes import vus_roc as vus_roc
