"""The rows of results.json: each model's metrics by threshold, scope and level.

The paper's Table 1 is one cell of this grid: precision, recall and F1 (Eq. 3-5) of
windows. The paper does not state how τ was chosen nor whether machines are pooled, so
the rows have two thresholds (`oracle`, which uses the test labels, and a label-free
one) and two scopes:

- `pooled`: the oracle has one τ over all entities' scores; the label-free rule has each
  entity's own τ; true and false positives and false negatives are summed.
- `per_entity_mean`: the mean of the entities' own metric, each with its own τ, over the
  entities where it is defined. At level `point` it also has the metrics that depend on
  the order of rows: events, buffers, delays.

`rolling` is a third threshold at level `window` where entities have one.

A metric without a value is NaN (None in the rows), with its reason in `notes`. Rows
without a score are left out; distances and delays count the rows that have one.
"""

import itertools
import math
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax import metrics
from kdjax.errors import DataError
from kdjax.metrics.checks import as_labels, as_scores, event_reasons, one_class

# The models of a run: its networks, the detector that they start from, a control.
TEACHER, STUDENT, STUDENT_ALONE = NETWORKS = ("teacher", "student", "student_alone")
PREVIOUS, RANDOM = "previous", "random"
CLASSIFIER = "classifier"  # the kind that detects most on public data

ORACLE = "oracle"
ROLLING = "rolling"
SCOPES = ("pooled", "per_entity_mean")
LEVELS = ("window", "point")

ALARM_METRICS = ("precision", "recall", "f1")
CURVE_METRICS = ("auc_roc", "average_precision")
VOLUME_METRICS = ("vus_roc", "vus_pr")
_AFFILIATION = ("affiliation_precision", "affiliation_recall", "affiliation_f1")
_RANGES = ("range_precision", "range_recall", "range_f1")
_WHOLE = ("event_recall", "event_f1", "detection_delay")
EVENT_METRICS = (*_AFFILIATION, *_RANGES, *_WHOLE)
INFLATED_METRICS = ("point_adjusted_f1", "pa_k_f1")
METRICS = ALARM_METRICS + CURVE_METRICS  # in each row
POINT_METRICS = VOLUME_METRICS + EVENT_METRICS  # of points, by entity or as their mean
PA_K = 20  # percent, as in the paper of PA%K

NO_LABELS = "no labels"
NO_TAU = "no positive labels, so no oracle threshold"
NO_WINDOW = "no window was given"
NO_SCORES = {"window": "no complete window", "point": "no row has a score"}
POOLED_CURVE = "curve metrics: per_entity_mean only"

Measured = dict[str, float | str]  # metrics; where one has no value, the reason


class EntityScores(NamedTuple):
    """One entity's labels and scores under one model; labels are None where unknown."""

    entity: str
    labels: np.ndarray | None  # [N] bool, True in anomalous rows
    # [N] mean of a_t (Eq. 1) over the windows that cover the row, or NaN
    scores: np.ndarray
    window_labels: np.ndarray | None  # [M] bool
    window_scores: np.ndarray  # [M] the (c+1)-th largest a_t; NaN where fewer are known
    threshold: float  # the label-free τ, in units of window scores
    rolling_tau: np.ndarray | None = None  # [M] τ before each window, if it rolls


def usual_model(models: Collection[str]) -> str:
    """The model that a report is about unless labels choose another."""
    return CLASSIFIER if CLASSIFIER in models else STUDENT


class _Sample(NamedTuple):
    """One entity at one level: the K windows or rows that have a score."""

    entity: str
    level: str
    labels: np.ndarray | None  # [K] bool
    scores: np.ndarray  # [K] float64
    threshold: float
    left_out: int
    # Labels and scores from `in_order`; None at level window or without labels.
    ordered: tuple[np.ndarray, np.ndarray] | None


def metric_rows(
    model: str,
    parameters: int | None,
    entities: Sequence[EntityScores],
    *,
    method: str = "conformal",
    window: int | None = None,
    point_adjusted: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`rows` and `entities` of `results.json` for one model, JSON-able.

    `rows` are threshold x scope x level: eight dicts, and two more of `rolling` where
    entities have it. If an entity lacks labels, only their `alarm_rate` has a value. `tau`
    is that of the pooled oracle, else None; `entities_defined` maps metrics to how many
    entities are in the mean; `notes` maps metrics to why they are None, and `rows` to how
    many rows had no score. `POINT_METRICS` are in the two of level `point` and scope
    `per_entity_mean`.

    `entities` are by entity, level and threshold: the five `METRICS` (at level `point`
    `POINT_METRICS` too), `alarm_rate`, `tau`, `windows` or `points` that have a score,
    `positives` among them, and `notes` (key -> why it is None).

    `method` names the label-free rule; `window` is the widest buffer of the volumes, None
    for none; `point_adjusted` adds F1 that are inflated.
    """
    for entity in entities:
        if math.isnan(entity.threshold):
            raise DataError(
                f"the threshold of {entity.entity} is NaN, so that no row can raise an "
                "alarm: expected a number. Calibrate the detector first."
            )
    with warnings.catch_warnings():  # the notes have the reasons
        warnings.simplefilter("ignore", metrics.UndefinedMetricWarning)
        measured = _measure_all(entities, method, window, point_adjusted)
    of_entities = [_entity_row(model, *one) for one in measured]
    if any(e.labels is None or e.window_labels is None for e in entities):
        blank = [e._replace(labels=None, window_labels=None) for e in entities]
        measured = _measure_all(blank, method, None, False)
    cells = [*itertools.product((ORACLE, method), SCOPES, LEVELS)]
    if any(threshold == ROLLING for _, threshold, _ in measured):
        cells += [(ROLLING, scope, "window") for scope in SCOPES]
    rows = []
    for threshold, scope, level in cells:
        chosen = [
            (sample, found)
            for sample, tau, found in measured
            if (tau, sample.level) == (threshold, level)
        ]
        samples = [sample for sample, _ in chosen]
        defined: dict[str, int] = {}
        if scope == "pooled":
            pooled = _pooled(samples, threshold)
        else:
            pooled, defined = _mean([found for _, found in chosen])
        notes = _reasons(pooled)
        if left_out := {s.entity: s.left_out for s in samples if s.left_out}:
            where = ", ".join(f"{entity}: {n}" for entity, n in left_out.items())
            total = sum(left_out.values())
            notes["rows"] = f"left out, without a score: {total} ({where})"
        row = {
            "model": model,
            "parameters": parameters,
            "scope": scope,
            "threshold": threshold,
            "level": level,
            **_numbers(pooled),
            "tau": _number(pooled["tau"]),
            "entities": len(samples),
            "entities_defined": defined,
            "notes": notes,
        }
        rows.append(row)
    return rows, of_entities


def _measure_all(
    entities: Sequence[EntityScores], method: str, window: int | None, adjusted: bool
) -> list[tuple[_Sample, str, Measured]]:
    """Each entity at each level under each threshold, which is a name."""
    found = []
    for entity, level in itertools.product(entities, LEVELS):
        sample = _sample(entity, level)
        curves = _curves(sample, window)
        for threshold in (ORACLE, method):
            own = _measure(sample, threshold, adjusted)
            found.append((sample, threshold, own | curves))
    if all(entity.rolling_tau is not None for entity in entities):
        for sample in (_sample(relative_scores(e), "window") for e in entities):
            own = _measure(sample, ROLLING, False) | _curves(sample, None)
            found.append((sample, ROLLING, own))
    return found


def _entity_row(
    model: str, sample: _Sample, threshold: str, measured: Measured
) -> dict[str, Any]:
    tau, notes = measured["tau"], _reasons(measured)
    if threshold == ROLLING:
        tau, notes["tau"] = math.nan, "it moves"
    elif tau in (math.inf, -math.inf):
        notes["tau"] = "infinite"
    return {
        "model": model,
        "entity": sample.entity,
        "level": sample.level,
        "threshold": threshold,
        **_numbers(measured),
        "tau": _number(tau),
        f"{sample.level}s": len(sample.scores),
        "positives": None if sample.labels is None else int(sample.labels.sum()),
        "notes": notes,
    }


def _pooled(samples: list[_Sample], threshold: str) -> Measured:
    """Metrics of counts over all entities, and the oracle's τ."""
    labels = [sample.labels for sample in samples if sample.labels is not None]
    merged = samples[0]._replace(
        labels=np.concatenate(labels) if labels else None,
        scores=np.concatenate([sample.scores for sample in samples]),
    )
    tau, taus = math.nan, [sample.threshold for sample in samples]
    if threshold == ORACLE:
        tau = _oracle_tau(merged)
        taus = [tau] * len(samples)
    alarms = [s.scores > own for s, own in zip(samples, taus, strict=True)]
    counted = _alarm_metrics(merged, np.concatenate(alarms), taus[0])
    return counted | dict.fromkeys(CURVE_METRICS, POOLED_CURVE) | {"tau": tau}


def _mean(each: list[Measured]) -> tuple[Measured, dict[str, int]]:
    """Means over entities of what `_measure` found, and of how many each is."""
    means: Measured = {"tau": math.nan}
    defined = {}
    for name in _numbers(each[0]):
        values = [measured[name] for measured in each]
        known = [value for value in values if not isinstance(value, str)]
        defined[name] = len(known)
        means[name] = "; ".join(dict.fromkeys(map(str, values)))
        if known:
            means[name] = math.fsum(known) / len(known)
    return means, defined


def _numbers(found: Measured) -> dict[str, float | None]:
    return {name: _number(value) for name, value in found.items() if name != "tau"}


def _reasons(found: Measured) -> dict[str, str]:
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _number(value: float | str) -> float | None:
    """`value` for JSON, which has neither NaN nor infinity; None for a reason."""
    known = not isinstance(value, str) and math.isfinite(value)
    return float(value) if known else None


# One entity's scores and what is measured on them.


def _sample(entity: EntityScores, level: str) -> _Sample:
    """An entity's labels and scores at a level, without the NaN."""
    at_window = level == "window"
    scores = np.asarray(entity.window_scores if at_window else entity.scores)
    labels = entity.window_labels if at_window else entity.labels
    scored = ~np.isnan(scores)
    known = scores[scored].astype(np.float64)  # τ is compared in one precision
    if len(known):
        as_scores(known, name=f"{level} scores of {entity.entity}")
    ordered = None
    if labels is not None:
        name = f"{level} labels of {entity.entity}"
        labels = as_labels(labels, name=name) if len(labels) else np.empty(0, bool)
        ordered = None if at_window or not len(known) else in_order(labels, scores)
        labels = labels[scored]
    left_out = len(scores) - len(known)
    tau = float(entity.threshold)
    return _Sample(entity.entity, level, labels, known, tau, left_out, ordered)


def in_order(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the rows that have a score, `[N], [N] -> [K], [K]`.

    Where leaving out rows without a score would join two events, one normal row between
    them stays in, with score -inf.

    >>> labels = np.array([True, False, False, True])
    >>> in_order(labels, np.array([1.0, np.nan, np.nan, 2.0]))[0].tolist()
    [True, False, True]
    """
    scored = ~np.isnan(scores)
    rows = np.flatnonzero(scored)
    normal = np.append(0, np.cumsum(~labels))
    before, after = rows[:-1], rows[1:]
    meet = labels[before] & labels[after] & (normal[after] > normal[before])
    kept = scored.copy()
    for row in before[meet]:
        kept[row + 1 + np.argmin(labels[row + 1 :])] = True
    quiet = np.where(scored, scores, -np.inf).astype(np.float64)
    return labels[kept], quiet[kept]


def relative_scores(entity: EntityScores) -> EntityScores:
    """Window scores as multiples of the rolling τ, with threshold 1."""
    assert entity.rolling_tau is not None
    scores = np.asarray(entity.window_scores, np.float64)
    positive = scores > 0
    ratio = np.where(np.isnan(scores), np.nan, 0.0)
    # A positive score is above a τ of 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(scores, entity.rolling_tau, out=ratio, where=positive)
    ratio[positive & np.isinf(entity.rolling_tau)] = 0.0
    return entity._replace(window_scores=ratio, threshold=1.0)


def _measure(sample: _Sample, threshold: str, point_adjusted: bool) -> Measured:
    """Metrics of one entity's alarms, and τ: the oracle's or its own."""
    tau = _oracle_tau(sample) if threshold == ORACLE else sample.threshold
    found = _alarm_metrics(sample, sample.scores > tau, tau)
    if sample.level == "point":
        found |= _event_metrics(sample, tau, point_adjusted)
    found["tau"] = found["f1"] if math.isnan(tau) else tau
    return found


def _oracle_tau(sample: _Sample) -> float:
    """τ of best F1; NaN without positive labels."""
    if sample.labels is None or not sample.labels.any():
        return math.nan
    return metrics.oracle_threshold(sample.labels, sample.scores).threshold


def _why_nothing(sample: _Sample) -> str | None:
    """Why no metric has a value."""
    if not len(sample.scores):
        return NO_SCORES[sample.level]
    return NO_LABELS if sample.labels is None else None


def _curves(sample: _Sample, window: int | None) -> Measured:
    """Areas under curves; of points VUS-ROC and VUS-PR too."""
    names = CURVE_METRICS + VOLUME_METRICS * (sample.level == "point")
    if why := _why_nothing(sample):
        return dict.fromkeys(names, why)
    assert sample.labels is not None
    found = {
        "auc_roc": metrics.auc_roc(sample.labels, sample.scores),
        "average_precision": metrics.average_precision(sample.labels, sample.scores),
    }
    if sample.ordered is not None and window is not None:
        volumes = metrics.vus(*sample.ordered, window=window)
        found |= zip(VOLUME_METRICS, volumes, strict=True)
    why = one_class(sample.labels) or ""
    reasons = {name: why for name, value in found.items() if math.isnan(value)}
    return {**dict.fromkeys(names, NO_WINDOW), **found, **reasons}


def _alarm_metrics(sample: _Sample, alarms: np.ndarray, tau: float) -> Measured:
    """Eq. 3-5 and the alarm rate of `[K]` alarms."""
    names = (*ALARM_METRICS, "alarm_rate")
    if not len(alarms):
        return dict.fromkeys(names, NO_SCORES[sample.level])
    if math.isnan(tau):
        return dict.fromkeys(names, NO_LABELS if sample.labels is None else NO_TAU)
    rate = {"alarm_rate": float(alarms.mean())}
    if sample.labels is None:
        return dict.fromkeys(ALARM_METRICS, NO_LABELS) | rate
    counts = metrics.count(sample.labels, alarms)
    return {
        **metrics.from_counts(counts)._asdict(),
        **metrics.undefined(counts),
        **rate,
    }


def _event_metrics(sample: _Sample, tau: float, point_adjusted: bool) -> Measured:
    """Metrics of rows in their order under τ."""
    names = EVENT_METRICS + INFLATED_METRICS * point_adjusted
    if sample.ordered is None or math.isnan(tau):
        return dict.fromkeys(names, _why_nothing(sample) or NO_TAU)
    truth, scores = sample.ordered
    alarms = scores > tau
    found = [
        *metrics.affiliation(truth, alarms),
        *metrics.range_precision_recall(truth, alarms),
        metrics.event_recall(truth, alarms),
        metrics.event_f1(truth, alarms),
        metrics.detection_delay(truth, alarms),
    ]
    if point_adjusted:
        found += [metrics.pa_k_f1(truth, alarms, k=k) for k in (0, PA_K)]
    values = dict(zip(names, found, strict=True))
    return {**values, **event_reasons(values, truth, alarms)}
