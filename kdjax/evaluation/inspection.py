"""A detector's scores of its training rows, and how test rows differ from them.

Training rows should be normal. A user can check the windows of highest score and leave
abnormal rows out with `data.exclude` or `detection.trim`.
"""

from typing import Any, NamedTuple

import numpy as np

from kdjax.data.prepared import Entity, Prepared, training_ranges
from kdjax.data.series import Ranges, outside
from kdjax.data.splits import window_starts
from kdjax.data.windowing import chunks
from kdjax.detection.calibration import Rules
from kdjax.detection.false_alarms import FOREIGN
from kdjax.evaluation.evaluate import ModelEvaluation, score_rows

WORST = 5  # windows listed for each entity


class Inspection(NamedTuple):
    """One entity's training rows under one detector.

    Attributes:
        entity: its name.
        scores: `[N]` mean of a_t over the windows that cover the row; NaN for none.
        worst: the windows of highest score that share no row, as JSON objects.
    """

    entity: str
    scores: np.ndarray
    worst: list[dict[str, Any]]


def inspect_training(
    evaluated: ModelEvaluation, prepared: Prepared, rules: Rules
) -> tuple[Inspection, ...]:
    """The training rows of each entity, scored by a calibrated model."""
    inspections = []
    for place, entity in enumerate(prepared.entities):
        starts = np.concatenate(
            [
                window_starts(spans, window=prepared.window, stride=prepared.stride)
                for spans in entity.split
            ]
        )
        rows, windows = score_rows(
            evaluated.model,
            evaluated.calibration,
            place,
            entity.train.values,
            starts,
            prepared,
            rules,
        )
        tau = evaluated.calibration.thresholds[place].tau
        worst = _worst(entity, starts, windows, tau, prepared.window)
        inspections.append(Inspection(entity.name, rows, worst))
    return tuple(inspections)


def test_notes(evaluated: ModelEvaluation, prepared: Prepared) -> list[str]:
    """Notes on entities whose test rows differ from the training rows."""
    ranges = training_ranges(prepared)
    foreign = []
    for place, entity in enumerate(prepared.entities):
        if entity.test is not None:
            own = Ranges(*(side[place] for side in ranges))
            rows = sum(
                int(outside(own, chunk).any(axis=1).sum())
                for chunk in chunks(entity.test.values)
            )
            share = rows / len(entity.test.values)
            if share > FOREIGN:
                foreign.append(f"{entity.name} {share:.0%}")
    drifted = [
        r["entity"] for r in evaluated.rates if (r.get("drift") or {}).get("drifted")
    ]
    words = {
        "test rows outside the training range: {}": foreign,
        "scores of test windows have drifted from those of calibration, so no "
        "false-alarm rate holds there: {}; kdjax calibrate on recent clean rows makes "
        "new thresholds": drifted,
    }
    return [text.format(", ".join(found)) for text, found in words.items() if found]


def _worst(
    entity: Entity, starts: np.ndarray, scores: np.ndarray, tau: float, window: int
) -> list[dict[str, Any]]:
    """The windows of highest score, greedily, none sharing a row with a worse one."""
    listed: list[dict[str, Any]] = []
    taken: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        start, score = int(starts[index]), float(scores[index])
        if len(listed) == WORST or np.isnan(score):
            break
        if any(abs(start - other) < window for other in taken):
            continue
        taken.append(start)
        (part,) = (
            name
            for name, spans in entity.split._asdict().items()
            if ((spans[:, 0] <= start) & (start < spans[:, 1])).any()
        )
        listed.append(
            {
                "entity": entity.name,
                "part": part,
                "start": _time(entity, start),
                "end": _time(entity, start + window - 1),
                # An overflow comes first; JSON has no infinity.
                "score": score if np.isfinite(score) else None,
                "above": bool(score > tau),
            }
        )
    return listed


def _time(entity: Entity, row: int) -> str | float | int:
    if entity.train.time is None:
        return row
    instant = entity.train.time[row]
    if isinstance(instant, np.datetime64):
        return str(np.datetime_as_string(instant, unit="auto"))
    return float(instant)
