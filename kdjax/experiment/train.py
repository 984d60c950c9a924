"""The networks of a run or a sweep: teachers, then the students distilled from them.

A student is trained on the data and on its teacher's targets (Eq. 2). `student_alone` is
the baseline of a run: α = 0, with the same initial parameters, batches and steps.
"""

import json
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from kdjax.config import Settings
from kdjax.data.prepared import Prepared
from kdjax.data.series import Dataset
from kdjax.detection.calibration import Rules, calibrate
from kdjax.detection.detector import score_scaled
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.thresholds import BY_FOLDS
from kdjax.errors import TrainingError
from kdjax.evaluation.rows import NETWORKS, STUDENT, STUDENT_ALONE, TEACHER
from kdjax.experiment import jobs
from kdjax.experiment.assemble import calibration_rules
from kdjax.experiment.jobs import TrainingData, TrainingJob
from kdjax.experiment.populations import train_all
from kdjax.models import residual
from kdjax.models.model import Params
from kdjax.models.residual import NETWORK, ResidualModel
from kdjax.training.components import (
    Fits,
    HeldOut,
    fit_components,
    fit_held_out,
    options_of,
)
from kdjax.training.loop import Fitted
from kdjax.training.targets import ScoreFunction

PER_ENTITY = "per_entity"  # an entity mode
ALL = ""  # the name of the only group of a data set otherwise
Train = Callable[[Sequence[TrainingJob]], dict[str, Fitted]]


def split_groups(dataset: Dataset, entity_mode: str) -> dict[str, Dataset]:
    """One data set for each entity, or the whole as the group `ALL`."""
    if entity_mode != PER_ENTITY:
        return {ALL: dataset}
    tests = {series.entity: (series,) for series in dataset.test}
    return {
        series.entity: dataset._replace(
            train=(series,), test=tests[series.entity] if tests else ()
        )
        for series in dataset.train
    }


def group_name(name: str, group: str) -> str:
    """Such as `teacher/machine-1-1`: a network's name in the log and as a folder."""
    if group == ALL:
        return name
    # Quoted, so that an entity's name can't point outside of the folder.
    return f"{name}/{urllib.parse.quote(group, safe=' ').replace('.', '%2E')}"


class Group(NamedTuple):
    """One entity group: its data, its windows, and its fitted baselines."""

    name: str
    prepared: Prepared
    data: TrainingData
    fits: Fits
    held_out: HeldOut


class Task(NamedTuple):
    """A network of one entity group: a student, or a teacher that has none.

    A student is trained on targets of `teacher`, which is trained first, or of `scorers`.
    """

    settings: Settings
    group: Group
    teacher: str | None  # the name of its job; None: the student has no teacher
    student: str | None
    scorers: tuple[ScoreFunction, ...] = ()
    weights: tuple[float, ...] = ()  # of the scorers; () for equal ones


def make_groups(prepared: Mapping[str, Prepared], data: Settings) -> list[Group]:
    """The entity groups of prepared data by their names, under the `data` settings."""
    return [
        Group(name, own, jobs.make_training_data(own, data), {}, {})
        for name, own in prepared.items()
    ]


def train_tasks(
    tasks: Sequence[Task],
    train_teachers: Train,
    train_students: Train,
    *,
    teachers: Mapping[str, ResidualModel] = MappingProxyType({}),
    first: Mapping[str, Params] = MappingProxyType({}),
) -> dict[str, Fitted]:
    """Trains the teachers and then the students; the results by the names of the jobs.

    Models without a network have no job, and students of a teacher that failed are left
    out. `teachers` are trained already, by the names of their jobs; `first` has
    parameters that teachers and students start from.
    """
    models = dict(teachers)
    wanted = {
        task.teacher: jobs.teacher_job(
            task.group.data, task.settings, name=task.teacher, first=first.get(TEACHER)
        )
        for task in tasks
        if task.teacher
        and task.teacher not in models
        and jobs.has_network(task.settings, TEACHER)
    }
    fitted = train_teachers([*wanted.values()])
    students: dict[str, TrainingJob] = {}
    augmented: jobs.AugmentedCache = {}
    scorers: dict[tuple[str, str], tuple[ScoreFunction, ...]] = {}
    for task in tasks:
        name, group = task.teacher or "", task.group
        result = fitted.get(name)
        failed = name in wanted and (result is None or result.progress.bad_step)
        trainable = jobs.has_network(task.settings, STUDENT) and not failed
        if task.student is None or task.student in students or not trainable:
            continue
        if name and name not in models:
            models[name] = make_model(task, TEACHER, result)
        key = (name, scoring_key(task.settings))
        if name and not task.scorers and key not in scorers:
            scorers[key] = scorers_of(models[name], group.prepared, task.settings)
        students[task.student] = jobs.student_job(
            group.data,
            task.settings,
            name=task.student,
            teacher=models.get(name),
            scorers=task.scorers or scorers.get(key, ()),
            # The config's weights are those of the teacher's components.
            weights=task.weights if task.scorers else None,
            first=first.get(STUDENT),
            known=augmented,
        )
    return fitted | train_students([*students.values()])


def make_model(task: Task, role: str, fitted: Fitted | None) -> ResidualModel:
    """The `teacher` or `student` of a task with its components; None without a network."""
    network, group = None, task.group
    if fitted is not None:
        width = len(group.prepared.channels)
        shape = jobs.architecture(task.settings, role, width=width)
        network = ResidualModel(NETWORK, fitted.params, shape, group.prepared.context)
    kinds, options = task.settings[role]["components"], baseline_options(task.settings)
    return fit_components(kinds, group.prepared, network, fits=group.fits, **options)


def baseline_options(settings: Settings) -> dict[str, Any]:
    """Options of `fit_baseline`."""
    seed, gaps = {"seed": settings["seed"]}, settings["data"]["missing"] == "mask"
    found = {name: settings[name] | seed for name in ("classifier", "forecast")}
    found["classifier"] |= {"missing": True} if gaps else {}
    return found


def held_out_models(
    prepared: Prepared, settings: Settings, known: HeldOut, model: ResidualModel
) -> tuple[ResidualModel, ...] | None:
    """Models trained without the calibration windows, see `calibrate`.

    For a classifier, which is trained on all rows; () for others, and None if τ is fixed
    and needs no scores. `known` has those already fitted to these rows, by kind, fold and
    options.
    """
    if not residual.gives_scores(model.kind):
        return ()
    if settings["threshold"]["method"] == "fixed":
        return None
    by_folds = settings["threshold"]["method"] in BY_FOLDS
    options = baseline_options(settings)
    key = (model.kind, by_folds, *sorted(options_of(model.kind, options).items()))
    if key not in known:
        known[key] = fit_held_out(model.kind, prepared, by_folds=by_folds, **options)
    return known[key]


def train_networks(
    prepared: Prepared, settings: Settings, workdir: Path, console: Console, **more: Any
) -> dict[str, ResidualModel]:
    """`train_groups` of one group; models by name."""
    return train_groups({ALL: prepared}, settings, workdir, console, **more)[ALL]


def train_groups(
    prepared: Mapping[str, Prepared],
    settings: Settings,
    workdir: Path,
    console: Console,
    *,
    names: Sequence[str] = NETWORKS,
    first: Mapping[str, Params] = MappingProxyType({}),
    teacher: ResidualModel | None = None,
    scorers: Sequence[ScoreFunction] = (),
    weights: Sequence[float] = (),
) -> dict[str, dict[str, ResidualModel]]:
    """Models by group and name, with the parameters of lowest validation loss.

    `prepared` has only the group `ALL`, which all hosts train together, or others, which
    one host trains as populations: then a TrainingError for a loss that is not finite is
    raised after the other groups are trained. Training resumes from `workdir`.

    `names` are of `NETWORKS`; a student needs the teacher among them, a trained
    `teacher`, or `scorers` with their `weights`, () for equal ones. `teacher` and
    `student` start from `first`, if it has them; `student_alone` as the student.
    """
    tasks: dict[tuple[str, str], Task] = {}  # by group and network
    for group in make_groups(prepared, settings["data"]):
        for name in (name for name in NETWORKS if name in names):
            task = Task(settings, group, teacher=None, student=None)
            if name != TEACHER:
                task = task._replace(student=group_name(name, group.name))
            if name == STUDENT:
                task = task._replace(scorers=tuple(scorers), weights=tuple(weights))
            if name != STUDENT_ALONE and (teacher is not None or TEACHER in names):
                task = task._replace(teacher=group_name(TEACHER, group.name))
            tasks[group.name, name] = task

    def train(wanted: Sequence[TrainingJob]) -> dict[str, Fitted]:
        if [*prepared] == [ALL]:
            return {job.name: jobs.train_job(job, workdir, console) for job in wanted}
        return _all_finite(train_all(wanted, workdir, console))

    known = {group_name(TEACHER, name): teacher for name in prepared} if teacher else {}
    fitted = train_tasks([*tasks.values()], train, train, teachers=known, first=first)
    models = {name: {TEACHER: teacher} if teacher else {} for name in prepared}
    for (of_group, name), task in tasks.items():
        if name not in models[of_group]:
            role = TEACHER if name == TEACHER else STUDENT
            result = fitted.get(group_name(name, of_group))
            models[of_group][name] = make_model(task, role, result)
    return models


def _all_finite(fitted: dict[str, Fitted]) -> dict[str, Fitted]:
    """Raises TrainingError if a job failed."""
    bad = {n: f.progress.bad_step for n, f in fitted.items() if f.progress.bad_step}
    if bad:
        steps = ", ".join(f"{name} at step {step}" for name, step in bad.items())
        raise TrainingError(
            f"a loss became nan or inf: {steps}. Lower train.learning_rate or "
            "train.clip_norm, or correct huge values in the training data; the other "
            f"{len(fitted) - len(bad)} are trained.",
            min(bad.values()),
        )
    return fitted


def scoring_key(settings: Settings) -> str:
    """Equal for teachers of one training that score windows alike."""
    distill = settings["distill"]
    facts = [distill["target"], distill["weights"], settings["detection"]]
    return json.dumps(facts, sort_keys=True)


def scorers_of(
    teacher: ResidualModel, prepared: Prepared, settings: Settings
) -> tuple[ScoreFunction, ...]:
    """Score functions of a teacher, or with weights of each of its components.

    a_t under the Gaussian of the validation rows, as in the detector; for several entities
    under the Gaussian of all. () if the config's target isn't `scores`. A classifier is
    one trained without the calibration rows, from which the student's τ comes.
    """
    distill = settings["distill"]
    if distill["target"] != "scores" or not jobs.is_distilled(distill):
        return ()
    models = [teacher]
    if residual.gives_scores(teacher.kind):
        options = baseline_options(settings)
        models = [*fit_held_out(teacher.kind, prepared, by_folds=False, **options)]
    elif distill["weights"]:
        models = [
            residual.component(teacher, kind)
            for kind in residual.components_of(teacher.kind)
        ]
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
