"""Teacher, student and `student_alone` of one run, trained one after the other.

The student learns from the data and from the teacher (Eq. 2). `student_alone` is its
control: α = 0, with the same initial parameters, batches and number of steps, so that
whatever differs between the two is distillation's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from kdjax.controls import Fits, fit_parts
from kdjax.data.prepared import Prepared
from kdjax.errors import TrainingError
from kdjax.fitting import train_alone
from kdjax.lessons import Scorer
from kdjax.models.autoencoder import Params
from kdjax.models.residual import NETWORK, ResidualModel
from kdjax.populations.run import Trained, train_all
from kdjax.scorers import scorers_of
from kdjax.trainings import (
    Training,
    has_network,
    student_training,
    teacher_training,
    training_ground,
)

Settings = Mapping[str, Any]

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
    scorers: Sequence[Scorer] = (),
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

    ground = training_ground(prepared, settings["data"])
    fits: Fits = {}
    if teacher is None and "teacher" in names:
        network = None
        if has_network(settings, "teacher"):
            network = train(
                teacher_training(ground, settings, first=first.get("teacher"))
            )
        teacher = fit_parts(settings["teacher"]["parts"], prepared, network, fits=fits)
    trained = {} if teacher is None else {"teacher": teacher}
    # The config's weights are those of the teacher's parts.
    shares = tuple(weights) if scorers else None
    if teacher is not None and not scorers and "student" in names:
        scorers = scorers_of(teacher, prepared, settings)
    for name, taught in (("student", True), ("student_alone", False)):
        if name in names:
            learning = student_training(
                ground,
                settings,
                name=name,
                teacher=teacher if taught else None,
                scorers=tuple(scorers) if taught else (),
                weights=shares if taught else None,
                first=first.get("student"),
            )
            trained[name] = fit_parts(
                settings["student"]["parts"], prepared, train(learning), fits=fits
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
    grounds = {
        part: training_ground(own, settings["data"]) for part, own in parts.items()
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
                ground,
                settings,
                name=name_of("teacher", part),
                first=first.get("teacher"),
            )
            for part, ground in grounds.items()
            if has_network(settings, "teacher")
        ]
    )
    fits: dict[str, Fits] = {part: {} for part in parts}
    teachers = {
        part: fit_parts(
            settings["teacher"]["parts"],
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
                ground,
                settings,
                name=name_of(name, part),
                teacher=teachers[part] if taught else None,
                scorers=scorers[part] if taught else (),
                first=first.get("student"),
            )
            for name, taught in (("student", True), ("student_alone", False))
            for part, ground in grounds.items()
        ]
    )
    return {
        part: {"teacher": teachers[part]}
        | {
            name: fit_parts(
                settings["student"]["parts"],
                own,
                students[name_of(name, part)],
                fits=fits[part],
            )
            for name in NETWORKS[1:]
        }
        for part, own in parts.items()
    }


def _check_all(trained: Mapping[str, Trained]) -> None:
    bad = {name: t.course.bad_step for name, t in trained.items() if t.params is None}
    if bad:
        told = ", ".join(f"{name} at step {step}" for name, step in bad.items())
        raise TrainingError(
            f"a loss became nan or inf: {told}. Lower train.learning_rate or "
            "train.clip_norm, or look for huge values in the training data; the other "
            f"{len(trained) - len(bad)} are trained.",
            min(bad.values()),
        )
