"""Settings of detection as the rules that calibration goes by."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.data.clock import seconds_per_row
from kdjax.data.prepared import Prepared
from kdjax.detection.calibration import Rules
from kdjax.detection.threshold import Rule, budget_rate, parse_budget
from kdjax.errors import ConfigError

Settings = Mapping[str, Any]


def calibration_rules(settings: Settings, prepared: Prepared) -> Rules:
    """Settings of calibration."""
    detection = settings["detection"]
    fields = ("floor", "ridge", "shrinkage", "scope", "trim", "batch_size")
    return Rules(
        allowed_points=detection["count"],
        threshold=threshold_rule(
            settings, step_seconds=_row_seconds(prepared), stride=prepared.stride
        ),
        **{field: detection[field] for field in fields},
    )


def threshold_rule(settings: Settings, *, step_seconds: float, stride: int) -> Rule:
    """How τ is chosen; a budget of alarms becomes a rate of windows here.

    Args:
        settings: of the run; `data.step_seconds` goes before what the rows say.
        step_seconds: time between rows, 0 where rows have no dates.
        stride: of the windows that calibrate.

    Raises:
        ConfigError: a budget can't be met, or nothing tells how long a row lasts.
    """
    threshold = settings["threshold"]
    method, rate = threshold["method"], threshold["false_alarm_rate"]
    if method == "fixed":
        return Rule(method, rate, threshold["value"])
    if method == "budget":
        per_day = parse_budget(threshold["budget"])
        seconds = settings["data"]["step_seconds"] or step_seconds
        if not seconds:
            raise ConfigError(
                "threshold.method='budget' needs to know how long a row lasts: give a "
                "file with dates and times, or set data.step_seconds."
            )
        rate = budget_rate(per_day, step_seconds=seconds, stride=stride)
    return Rule(method, rate)


def _row_seconds(prepared: Prepared) -> float:
    """Median time between rows, the median over entities; 0 where rows have no dates."""
    seconds = [seconds_per_row(entity.train.time) for entity in prepared.entities]
    return float(np.median(seconds))
