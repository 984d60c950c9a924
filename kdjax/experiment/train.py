"""A teacher's point scores as a lesson: the target `scores`.

Teacher, student and `student_alone` of one run, trained one after the other.

The student learns from the data and from the teacher (Eq. 2). `student_alone` is its
baseline: α = 0, with the same initial parameters, batches and number of steps, so that
whatever differs between the two is distillation's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Console

from kdjax.data.prepared import Prepared
from kdjax.detection.calibration import Rules, calibrate
from kdjax.detection.detector import score_scaled
from kdjax.detection.gaussian import Gaussian
from kdjax.errors import TrainingError
from kdjax.experiment.assemble import calibration_rules
from kdjax.experiment.jobs import (
    Training,
    has_network,
    make_training_data,
    student_training,
    teacher_training,
    train_alone,
)
from kdjax.experiment.populations import Trained, train_all
from kdjax.models.model import Params
from kdjax.models.residual import (
    NETWORK,
    Fits,
    ResidualModel,
    component,
    components_of,
    fit_components,
)
from kdjax.training.targets import ScoreFunction, is_distilled

Settings = Mapping[str, Any]


def scorers_of(
    teacher: ResidualModel, prepared: Prepared, settings: Settings
) -> tuple[ScoreFunction, ...]:
    """What scores windows for a student: the teacher, or with weights each of its parts.

    a_t under the Gaussian of the validation rows, as the detector will have it; of several
    entities under the Gaussian of all. None where the config's target isn't `scores`.
    """
    distill = settings["distill"]
    if distill["target"] != "scores" or not is_distilled(distill):
        return ()
    models = [teacher]
    if distill["weights"]:
        models = [component(teacher, kind) for kind in components_of(teacher.kind)]
    rules = calibration_rules(settings, prepared)
    return tuple(_scorer(model, prepared, rules) for model in models)


def _scorer(model: ResidualModel, prepared: Prepared, rules: Rules) -> ScoreFunction:
    # All entities' rows as training has them, each under its own scaler: the last Gaussian
    # is for rows under the pooled one.
    calibration = calibrate(model, prepared, rules._replace(scope="pooled"))
    gaussian = Gaussian(*(field[0] for field in calibration.gaussians))

    def scores(windows: np.ndarray) -> np.ndarray:
        count, length, width = windows.shape
        return score_scaled(
            model,
            gaussian,
            windows.reshape(count * length, width),
            np.arange(count) * length,
            window=length,
            batch_size=rules.batch_size,
        )

    return scores


NETWORKS = ("teacher", "student", "student_alone")


def train_networks(
    prepared: Prepared,
    settings: Settings,
    workdir: Path,
    console: Console,
    *,
    names: Sequence[str] = NETWORKS,
    first: Mapping[str, Params] = MappingProxyType({}),
    teacher: ResidualModel | None = None,
    scorers: Sequence[ScoreFunction] = (),
    weights: Sequence[float] = (),
) -> dict[str, ResidualModel]:
    """The models by name, their networks with the parameters of lowest validation loss.

    Args:
        prepared: the data.
        settings: from `kdjax.config.resolve`.
        workdir: where checkpoints and the log are; phases found there go on.
        console: shows progress.
        names: which of `NETWORKS`; a student needs the teacher among them, or `scorers`.
        first: parameters that `teacher` and `student` start from, where there are any;
            `student_alone` starts as the student does.
        teacher: one that is trained already and stays as it is.
        scorers: teachers instead of one that kdjax makes: callables, scaled windows
            `[B, L, D]` to scores of their rows `[B, L]`. `distill.target` must be
            `scores`.
        weights: of the scorers; () to count them the same.
    """

    def train(training: Training) -> ResidualModel:
        params = train_alone(training, workdir, console).params
        return ResidualModel(NETWORK, params, training.architecture)

    training_data = make_training_data(prepared, settings["data"])
    fits: Fits = {}
    if teacher is None and "teacher" in names:
        network = None
        if has_network(settings, "teacher"):
            network = train(
                teacher_training(training_data, settings, first=first.get("teacher"))
            )
        teacher = fit_components(
            settings["teacher"]["components"], prepared, network, fits=fits
        )
    trained = {} if teacher is None else {"teacher": teacher}
    # The config's weights are those of the teacher's parts.
    shares = tuple(weights) if scorers else None
    if teacher is not None and not scorers and "student" in names:
        scorers = scorers_of(teacher, prepared, settings)
    for name, distilled in (("student", True), ("student_alone", False)):
        if name in names:
            learning = student_training(
                training_data,
                settings,
                name=name,
                teacher=teacher if distilled else None,
                scorers=tuple(scorers) if distilled else (),
                weights=shares if distilled else None,
                first=first.get("student"),
            )
            trained[name] = fit_components(
                settings["student"]["components"], prepared, train(learning), fits=fits
            )
    return trained


def train_pairs(
    parts: Mapping[str, Prepared],
    settings: Settings,
    workdir: Path,
    console: Console,
    *,
    first: Mapping[str, Params] = MappingProxyType({}),
    name_of: Callable[[str, str], str],
) -> dict[str, dict[str, ResidualModel]]:
    """`train_networks` of many parts, as populations; models by part and name.

    Args:
        parts: data by name.
        settings: from `kdjax.config.resolve`.
        workdir: where checkpoints and the log are; trainings found there go on.
        console: shows progress.
        first: as in `train_networks`, for all parts.
        name_of: a network's name and its part's to the name of the training.

    Raises:
        TrainingError: a loss was not finite; the others have been trained by then.
    """
    training_sets = {
        part: make_training_data(own, settings["data"]) for part, own in parts.items()
    }

    def train(trainings: list[Training]) -> dict[str, ResidualModel]:
        trained = train_all(trainings, workdir, console)
        _check_all(trained)
        return {
            t.name: ResidualModel(NETWORK, trained[t.name].params or {}, t.architecture)
            for t in trainings
        }

    networks = train(
        [
            teacher_training(
                training_data,
                settings,
                name=name_of("teacher", part),
                first=first.get("teacher"),
            )
            for part, training_data in training_sets.items()
            if has_network(settings, "teacher")
        ]
    )
    fits: dict[str, Fits] = {part: {} for part in parts}
    teachers = {
        part: fit_components(
            settings["teacher"]["components"],
            own,
            networks.get(name_of("teacher", part)),
            fits=fits[part],
        )
        for part, own in parts.items()
    }
    scorers = {
        part: scorers_of(teachers[part], own, settings) for part, own in parts.items()
    }
    students = train(
        [
            student_training(
                training_data,
                settings,
                name=name_of(name, part),
                teacher=teachers[part] if distilled else None,
                scorers=scorers[part] if distilled else (),
                first=first.get("student"),
            )
            for name, distilled in (("student", True), ("student_alone", False))
            for part, training_data in training_sets.items()
        ]
    )
    return {
        part: {"teacher": teachers[part]}
        | {
            name: fit_components(
                settings["student"]["components"],
                own,
                students[name_of(name, part)],
                fits=fits[part],
            )
            for name in NETWORKS[1:]
        }
        for part, own in parts.items()
    }


def _check_all(trained: Mapping[str, Trained]) -> None:
    bad = {name: t.progress.bad_step for name, t in trained.items() if t.params is None}
    if bad:
        told = ", ".join(f"{name} at step {step}" for name, step in bad.items())
        raise TrainingError(
            f"a loss became nan or inf: {told}. Lower train.learning_rate or "
            "train.clip_norm, or look for huge values in the training data; the other "
            f"{len(trained) - len(bad)} are trained.",
            min(bad.values()),
        )
