"""Teacher, student and `student_alone` of a run.

The student learns from the data and from the teacher (Eq. 2). `student_alone` is its
control: α = 0, with the same initial parameters, batches and number of steps.
"""

from collections.abc import Mapping, Sequence
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
from kdjax.experiment.groups import ALL, group_name
from kdjax.experiment.jobs import (
    Training,
    has_network,
    is_distilled,
    make_training_data,
    student_training,
    teacher_training,
    train_alone,
)
from kdjax.experiment.populations import train_all
from kdjax.models.model import Params
from kdjax.models.residual import (
    NETWORK,
    Fits,
    ResidualModel,
    component,
    components_of,
    fit_components,
)
from kdjax.training.targets import ScoreFunction

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
    scorers: Sequence[ScoreFunction] = (),
    weights: Sequence[float] = (),
) -> dict[str, ResidualModel]:
    """The models by name, with the parameters of lowest validation loss.

    Args:
        prepared: the data.
        settings: from `kdjax.config.resolve`.
        workdir: where checkpoints and the log are; training resumes from them.
        console: shows progress.
        names: which of `NETWORKS`; a student needs the teacher among them, or `scorers`.
        first: parameters that `teacher` and `student` start from, if any;
            `student_alone` starts as the student does.
        teacher: a trained one, which is not changed.
        scorers: teachers instead of a network: callables, scaled windows `[B, L, D]` to
            scores of their rows `[B, L]`. `distill.target` must be `scores`.
        weights: of the scorers; () for equal ones.
    """
    teachers = {} if teacher is None else {ALL: teacher}
    found = train_groups(
        {ALL: prepared}, settings, workdir, console,
        names=names, first=first, teachers=teachers, scorers=scorers, weights=weights,
    )  # fmt: skip
    return found[ALL]


def train_groups(
    parts: Mapping[str, Prepared],
    settings: Settings,
    workdir: Path,
    console: Console,
    *,
    names: Sequence[str] = NETWORKS,
    first: Mapping[str, Params] = MappingProxyType({}),
    teachers: Mapping[str, ResidualModel] = MappingProxyType({}),
    scorers: Sequence[ScoreFunction] = (),
    weights: Sequence[float] = (),
) -> dict[str, dict[str, ResidualModel]]:
    """`train_networks` of many entity groups, as populations; models by group and name.

    Args:
        parts: data by entity group; only `ALL`, which all hosts train together, or
            others, which one host trains.
        settings, workdir, console, names, first, scorers, weights: as in
            `train_networks`, for all groups.
        teachers: trained ones by group.

    Raises:
        TrainingError: a loss was not finite; the other groups are trained.
    """
    data = {
        part: make_training_data(own, settings["data"]) for part, own in parts.items()
    }
    fits: dict[str, Fits] = {part: {} for part in parts}

    def models(
        role: str, jobs: Mapping[tuple[str, str], Training | None]
    ) -> dict[tuple[str, str], ResidualModel]:
        """Models by name and group; without a job, of baselines alone."""
        wanted = [job for job in jobs.values() if job is not None]
        params = _train(wanted, workdir, console, alone=list(parts) == [ALL])
        return {
            (name, part): fit_components(
                settings[role]["components"],
                parts[part],
                job and ResidualModel(NETWORK, params[job.name], job.architecture),
                fits=fits[part],
            )
            for (name, part), job in jobs.items()
        }

    def teacher_job(part: str) -> Training | None:
        if not has_network(settings, "teacher"):
            return None
        name = group_name("teacher", part)
        return teacher_training(
            data[part], settings, name=name, first=first.get("teacher")
        )

    def student_job(name: str, part: str) -> Training:
        teacher: ResidualModel | None = None
        own: tuple[ScoreFunction, ...] = ()
        if name == "student":
            teacher, own = found[part].get("teacher"), tuple(scorers)
            if teacher is not None and not own:
                own = scorers_of(teacher, parts[part], settings)
        return student_training(
            data[part],
            settings,
            name=group_name(name, part),
            teacher=teacher,
            scorers=own,
            # The config's weights are those of the teacher's components.
            weights=tuple(weights) if scorers else None,
            first=first.get("student"),
        )

    found = {
        part: {"teacher": teachers[part]} if part in teachers else {} for part in parts
    }
    if "teacher" in names and not teachers:
        jobs = {("teacher", part): teacher_job(part) for part in parts}
        for (name, part), model in models("teacher", jobs).items():
            found[part][name] = model
    students = [name for name in NETWORKS[1:] if name in names]
    jobs = {
        (name, part): student_job(name, part) for name in students for part in parts
    }
    for (name, part), model in models("student", jobs).items():
        found[part][name] = model
    return found


def _train(
    jobs: Sequence[Training], workdir: Path, console: Console, *, alone: bool
) -> dict[str, Params]:
    """Parameters by the jobs' names."""
    if alone:
        return {job.name: train_alone(job, workdir, console).params for job in jobs}
    trained = train_all(jobs, workdir, console)
    bad = {name: t.progress.bad_step for name, t in trained.items() if t.params is None}
    if bad:
        steps = ", ".join(f"{name} at step {step}" for name, step in bad.items())
        raise TrainingError(
            f"a loss became nan or inf: {steps}. Lower train.learning_rate or "
            "train.clip_norm, or look for huge values in the training data; the other "
            f"{len(trained) - len(bad)} are trained.",
            min(bad.values()),
        )
    return {name: own.params or {} for name, own in trained.items()}


def scorers_of(
    teacher: ResidualModel, prepared: Prepared, settings: Settings
) -> tuple[ScoreFunction, ...]:
    """Score functions of a teacher, or with weights of each of its components.

    a_t under the Gaussian of the validation rows, as in the detector; of several entities
    under the Gaussian of all. () if the config's target isn't `scores`.
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
    # One Gaussian of all entities' rows, each under its own scaler.
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
