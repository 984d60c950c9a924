"""The estimator's parameters as settings of a run, and back from a detector's card."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.config import get_config, leaves, override, resolve
from kdjax.detection.detector import Detector
from kdjax.errors import ConfigError

# The config field that each parameter sets.
FIELDS = {
    "window_size": "data.window",
    "stride": "data.stride",
    "teacher_hidden": "teacher.hidden",
    "student_hidden": "student.hidden",
    "teacher_epochs": "teacher.epochs",
    "student_epochs": "student.epochs",
    "alpha": "distill.alpha",
    "temperature": "distill.temperature",
    "scaler": "data.scaler",
    "missing": "data.missing",
    "threshold": "threshold.method",
    "false_alarm_rate": "threshold.false_alarm_rate",
    "random_state": "seed",
}
PARAMETERS = {field: name for name, field in FIELDS.items()}

# What else of a config means something where rows come as an array.
_GROUPS = ("model", "teacher", "student", "train", "distill", "detection", "threshold")
_OF_DATA = (
    "calibration",
    "dense_below",
    "max_gap",
    "step_seconds",
    "train_stride",
    "validation",
)


def settings_of(
    parameters: Mapping[str, Any], further: Mapping[str, Any]
) -> dict[str, Any]:
    """The resolved config of an estimator.

    Args:
        parameters: of the estimator; those that `FIELDS` lacks are passed over.
        further: config fields by their dotted names.

    Raises:
        ConfigError: a value that is none, or a field that is a parameter or means
            nothing here.
    """
    for field in further:
        if field in PARAMETERS:
            raise ConfigError(
                f"settings: {field} is the parameter {PARAMETERS[field]}: set that one."
            )
        if not _is_read(field):
            raise ConfigError(
                f"settings: {field} means nothing for rows in memory: leave it out."
            )
    changes = {field: parameters[name] for name, field in FIELDS.items()}
    plain = {key: _plain(value) for key, value in (changes | dict(further)).items()}
    # A config wants to know its file; these rows have none.
    return resolve(override(get_config(), plain | {"data.path": "X"}))


def parameters_of(detector: Detector) -> dict[str, Any]:
    """The parameters that would make such a detector, from the settings in its card."""
    fields = _flat(detector.card.get("settings", {}))
    fields |= {"data.window": detector.window, "data.stride": detector.stride}
    usual = _flat(get_config().to_dict())
    further = {
        field: value
        for field, value in fields.items()
        if field not in PARAMETERS and _is_read(field) and value != usual.get(field)
    }
    return {
        **{name: fields[field] for name, field in FIELDS.items() if field in fields},
        "detector": detector.card.get("model", {}).get("name", detector.model.kind),
        "settings": further or None,
    }


def _is_read(field: str) -> bool:
    group, _, name = field.partition(".")
    return group in _GROUPS or (group == "data" and name in _OF_DATA)


def _plain(value: Any) -> Any:
    """A value as configs hold it: numpy's numbers and lists made Python's own."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {field: _plain(value) for field, value in leaves(settings)}
