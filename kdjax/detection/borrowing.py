"""Thresholds of all entities, some of which have too few scores for one of their own."""

from collections.abc import Sequence

import numpy as np

from kdjax.data.prepared import Prepared
from kdjax.detection.threshold import Rule, Threshold, find_threshold, needed


def entity_thresholds(
    prepared: Prepared,
    scores: Sequence[np.ndarray],
    pooled_tau: Threshold,
    rule: Rule,
    *,
    scope: str,
) -> tuple[list[Threshold], list[str]]:
    """The threshold of each entity, and sentences on those that borrow theirs.

    Args:
        prepared: the data.
        scores: E arrays, each entity's calibration window scores.
        pooled_tau: for entities under the pooled Normal.
        rule: how τ is chosen.
        scope: `per_entity`, or `pooled` for one τ of all.
    """
    shared = find_threshold(np.concatenate(scores), rule, source="shared")
    thresholds = []
    for entity, own in zip(prepared.entities, scores, strict=True):
        if scope == "pooled":
            thresholds.append(shared._replace(source="pooled"))
        elif entity.pooled:
            thresholds.append(pooled_tau)
        elif len(own) < needed(rule):
            thresholds.append(shared)
        else:
            thresholds.append(find_threshold(own, rule))
    details = [
        f"{entity.name}: {threshold.detail}"
        for entity, threshold in zip(prepared.entities, thresholds, strict=True)
        if threshold.detail
    ]
    return thresholds, [*_borrowing_notes(prepared, scores, thresholds), *details]


def _borrowing_notes(
    prepared: Prepared, scores: Sequence[np.ndarray], thresholds: Sequence[Threshold]
) -> list[str]:
    groups = {
        "pooled": "pooled Normal and τ",
        "shared": "too few calibration windows, so τ from all entities' scores",
    }
    notes = []
    for source, reason in groups.items():
        borrowers = [
            (f"{entity.name} ({len(own)} calibration windows)", threshold)
            for entity, own, threshold in zip(
                prepared.entities, scores, thresholds, strict=True
            )
            if threshold.source == source
        ]
        if borrowers:
            tau = borrowers[0][1]
            notes.append(
                f"{reason} ({_rank(tau)}): {', '.join(name for name, _ in borrowers)}"
            )
    return notes


def _rank(tau: Threshold) -> str:
    return f"the {tau.rank}-th smallest of {tau.n}" if tau.rank else f"of {tau.n}"
