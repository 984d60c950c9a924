"""A teacher's point scores as a lesson: the target `scores`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.data.prepared import Prepared
from kdjax.detection.calibration import Rules, calibrate
from kdjax.detection.detector import score_scaled
from kdjax.detection.normal import Normal
from kdjax.lessons import Scorer, is_taught
from kdjax.models.residual import ResidualModel, part, parts_of
from kdjax.rules import calibration_rules

Settings = Mapping[str, Any]


def scorers_of(
    teacher: ResidualModel, prepared: Prepared, settings: Settings
) -> tuple[Scorer, ...]:
    """What scores windows for a student: the teacher, or with weights each of its parts.

    a_t under the Normal of the validation rows, as the detector will have it; of several
    entities under the Normal of all. None where the config's target isn't `scores`.
    """
    distill = settings["distill"]
    if distill["target"] != "scores" or not is_taught(distill):
        return ()
    models = [teacher]
    if distill["weights"]:
        models = [part(teacher, kind) for kind in parts_of(teacher.kind)]
    rules = calibration_rules(settings, prepared)
    return tuple(_scorer(model, prepared, rules) for model in models)


def _scorer(model: ResidualModel, prepared: Prepared, rules: Rules) -> Scorer:
    # All entities' rows as training has them, each under its own scaler: the last Normal
    # is for rows under the pooled one.
    calibration = calibrate(model, prepared, rules._replace(scope="pooled"))
    normal = Normal(*(field[0] for field in calibration.normals))

    def scores(windows: np.ndarray) -> np.ndarray:
        count, length, width = windows.shape
        return score_scaled(
            model,
            normal,
            windows.reshape(count * length, width),
            np.arange(count) * length,
            window=length,
            batch_size=rules.batch_size,
        )

    return scores
