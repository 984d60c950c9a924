"""Teacher, student and `student_alone` of one run, trained one after the other.

The student learns from the data and from the teacher (Eq. 2). `student_alone` is its
control: α = 0, with the same initial parameters, batches and number of steps, so that
whatever differs between the two is distillation's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from kdjax.data.prepared import Prepared
from kdjax.models.autoencoder import Params
from kdjax.models.residual import ResidualModel
from kdjax.trainings import (
    Training,
    student_training,
    teacher_training,
    train_alone,
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
    teacher: Params | None = None,
) -> dict[str, ResidualModel]:
    """The networks by name, with the parameters of lowest validation loss.

    Args:
        prepared: the data.
        settings: from `kdjax.config.resolve`.
        workdir: where checkpoints and the log are; phases found there go on.
        console: shows progress.
        names: which of `NETWORKS`; a student needs the teacher among them.
        first: parameters that `teacher` and `student` start from, where there are any;
            `student_alone` starts as the student does.
        teacher: parameters of one that is trained already and stays as it is.
    """

    def train(training: Training) -> ResidualModel:
        params = train_alone(training, workdir, console)
        return ResidualModel("autoencoder", params, training.architecture)

    ground = training_ground(prepared, settings["data"])
    teaching = teacher_training(ground, settings, first=first.get("teacher"))
    trained = {
        "teacher": train(teaching)
        if teacher is None
        else ResidualModel("autoencoder", teacher, teaching.architecture)
    }
    for name, taught_by in (("student", trained["teacher"]), ("student_alone", None)):
        if name in names:
            trained[name] = train(
                student_training(
                    ground,
                    settings,
                    name=name,
                    teacher=taught_by,
                    first=first.get("student"),
                )
            )
    return trained
