"""Data and networks of a sweep's members, each loaded, prepared and trained once.

A training is named by a digest of the settings that decide its result: members that
differ in their threshold share all networks, and students of one teacher share that.
Trained networks are found again by these names, in the folder of any process.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from kdjax.config import RENAMED
from kdjax.data.prepared import Prepared
from kdjax.data.series import Dataset
from kdjax.detection.calibration import check_enough
from kdjax.errors import ConfigError
from kdjax.evaluation.evaluate import ModelEvaluation
from kdjax.experiment.assemble import calibration_rules, data_digests
from kdjax.experiment.groups import group_name
from kdjax.experiment.jobs import (
    AugmentedCache,
    Training,
    TrainingData,
    architecture,
    has_network,
    is_distilled,
    make_training_data,
    progress_text,
    student_training,
    teacher_seed,
    teacher_training,
)
from kdjax.experiment.pipeline import load_dataset, prepare_parts
from kdjax.experiment.populations import Judge, Trained, finished, train_all
from kdjax.experiment.sweeps.design import Design, Member
from kdjax.experiment.train import scorers_of
from kdjax.models.residual import NETWORK, Fits, ResidualModel, fit_components
from kdjax.training import hosts
from kdjax.training.targets import ScoreFunction

Settings = Mapping[str, Any]
TrainTeachers = Callable[[Sequence[Training]], dict[str, Trained]]

# Fields of `train` that change no network.
_WITHOUT_EFFECT = ("log_every", "checkpoint_seconds")
# Fields of `distill` that are in a digest, and those that are in it only where they
# differ from these values: sweeps from before they existed find their networks.
_FIELDS = ("alpha", "temperature", "temperature_mode", "target", "augmented_copies")
_LATER_FIELDS: dict[str, Any] = {
    "alpha_end": None,
    "temperature_end": None,
    "weights": [],
}
_OLD_NAMES = {new.split(".")[-1]: old.split(".")[-1] for old, new in RENAMED.items()}


class Group(NamedTuple):
    """One entity group: its data, its windows, and the baselines fitted to it."""

    prepared: Prepared
    training_data: TrainingData
    fits: Fits


class SweepData(NamedTuple):
    """What members share, each loaded, computed or measured once."""

    digests: dict[str, str]  # SHA-256 of each series
    groups: dict[str, dict[str, Group]]  # by `data_key` and name
    teachers: dict[str, ModelEvaluation]
    milliseconds: dict[Any, float]  # of a window, by architecture


class Task(NamedTuple):
    """One entity group of one member, and the names of its trainings."""

    settings: dict[str, Any]
    name: str
    group: Group
    teacher: str | None  # None: the student learns from the data alone
    student: str


def data_key(settings: Settings) -> str:
    """Equal for members that have the same rows and windows."""
    return json.dumps([settings["data"], settings["entity_mode"]], sort_keys=True)


def teacher_name(settings: Settings) -> str:
    """The name of a member's teacher, without its entity group."""
    network = {k: v for k, v in settings["teacher"].items() if k != "seed"}
    facts = {"seed": teacher_seed(settings), "network": _with_old_names(network)}
    return f"teacher-{_digest(facts, settings)}"


def student_name(settings: Settings) -> str:
    """The name of a member's student, without its entity group."""
    # Its network is the same with any other components.
    network = {k: v for k, v in settings["student"].items() if k != "components"}
    facts: dict[str, Any] = {"seed": settings["seed"], "network": network}
    distill = settings["distill"]
    if is_distilled(distill):
        facts["teacher"] = teacher_name(settings)
        facts["distill"] = [distill[field] for field in _FIELDS]
        changed = {k: distill[k] for k, v in _LATER_FIELDS.items() if distill[k] != v}
        if distill["target"] == "scores":
            changed["scoring"] = scoring_key(settings)
        if changed:
            facts["further"] = changed
    return f"student-{_digest(facts, settings)}"


def scoring_key(settings: Settings) -> str:
    """Equal for members whose teachers of one training score windows alike."""
    distill, detection = settings["distill"], _with_old_names(settings["detection"])
    facts = [distill["target"], distill["weights"], detection]
    return json.dumps(facts, sort_keys=True)


def load_sweep_data(design: Design, sweep_data: SweepData | None = None) -> SweepData:
    """All data of the members, checked to be enough for their thresholds.

    Added to `sweep_data`, if given.
    """
    datasets: dict[str, Dataset] = {}
    sweep_data = sweep_data or SweepData({}, {}, {}, {})
    for member in design.members:
        settings, key = member.settings, data_key(member.settings)
        data = settings["data"]
        if settings["init_from"]:
            raise ConfigError(
                f"{design.name}: member {member.name} has init_from: a sweep trains its "
                "networks from the start; run the member by itself."
            )
        if key not in sweep_data.groups:
            source = json.dumps(data, sort_keys=True)
            if source not in datasets:
                datasets[source] = load_dataset(data)
                sweep_data.digests.update(data_digests(datasets[source]))
            sweep_data.groups[key] = {
                name: Group(prepared, make_training_data(prepared, data), {})
                for name, prepared in prepare_parts(datasets[source], settings).items()
            }
        for group in sweep_data.groups[key].values():
            rules = calibration_rules(settings, group.prepared)
            check_enough(group.prepared, rules.threshold)
    return sweep_data


def tasks_of(members: Sequence[Member], sweep_data: SweepData) -> list[Task]:
    """The members' entity groups and the networks that they need."""
    tasks = []
    for settings in (member.settings for member in members):
        teacher, student = teacher_name(settings), student_name(settings)
        distilled = is_distilled(settings["distill"])
        for name, group in sweep_data.groups[data_key(settings)].items():
            needed = group_name(teacher, name) if distilled else None
            own = group_name(student, name)
            tasks.append(Task(settings, name, group, needed, own))
    return tasks


def train_members(
    members: Sequence[Member],
    sweep_data: SweepData,
    workdir: Path,
    *,
    way: str,
    console: Console,
    on_epoch: Judge = lambda progress: None,
    train_teachers: TrainTeachers | None = None,
) -> dict[str, Trained]:
    """The networks of all members by the names of their trainings.

    `way` and `on_epoch`, which gets the students' progress, are those of `train_all`;
    `train_teachers` trains teachers elsewhere than in `workdir`.
    """
    tasks = tasks_of(members, sweep_data)
    teachers = {
        t.teacher: teacher_training(t.group.training_data, t.settings, name=t.teacher)
        for t in tasks
        if t.teacher and has_network(t.settings, "teacher")
    }
    if train_teachers is None:
        trained = _train([*teachers.values()], workdir, way, console)
    else:
        trained = train_teachers([*teachers.values()])
    models = {task.teacher: teacher_model(task, trained) for task in tasks}
    students: dict[str, Training] = {}
    augmented: AugmentedCache = {}
    scorers: dict[tuple[str | None, str], tuple[ScoreFunction, ...]] = {}
    for task in tasks:
        teacher = models[task.teacher]
        if task.student in students or (task.teacher and teacher is None):
            continue  # It is there already, or the training of its teacher failed.
        key = (task.teacher, scoring_key(task.settings))
        if teacher is not None and key not in scorers:
            scorers[key] = scorers_of(teacher, task.group.prepared, task.settings)
        students[task.student] = student_training(
            task.group.training_data,
            task.settings,
            name=task.student,
            teacher=teacher,
            scorers=scorers.get(key, ()),
            known=augmented,
        )
    return trained | _train([*students.values()], workdir, way, console, on_epoch)


def teacher_model(task: Task, trained: Mapping[str, Trained]) -> ResidualModel | None:
    """The teacher of a member; None where it has none, or its training failed."""
    own = trained.get(task.teacher or "")
    needed = has_network(task.settings, "teacher")
    if task.teacher is None or (needed and (own is None or own.params is None)):
        return None
    return make_model(task, "teacher", own)


def make_model(task: Task, name: str, trained: Trained | None) -> ResidualModel:
    """The `teacher` or `student` of a member with all its components."""
    network = None
    if trained is not None:
        assert trained.params is not None
        width = task.group.training_data.rows.shape[1]
        shape = architecture(task.settings, name, width=width)
        network = ResidualModel(NETWORK, trained.params, shape)
    components = task.settings[name]["components"]
    group = task.group
    return fit_components(components, group.prepared, network, fits=group.fits)


def failures(
    member: Member, sweep_data: SweepData, trained: Mapping[str, Trained]
) -> list[str]:
    """Why networks of a member are missing; empty if all are trained."""
    reasons = []
    for task in tasks_of([member], sweep_data):
        teacher = task.teacher if has_network(task.settings, "teacher") else None
        for name in filter(None, (teacher, task.student)):
            if name not in trained:
                reasons.append(f"{name}: was not trained")
            elif trained[name].params is None:
                reasons.append(f"{name}: {progress_text(trained[name].progress)}")
    return reasons


def process_folders(workdir: Path) -> list[Path]:
    """The folders in which any process keeps what it trained, in this or earlier runs."""
    return [workdir, *sorted(workdir.glob("process-*"))]


def _with_old_names(settings: Settings) -> Settings:
    """Settings under the names of version 0.1, on which digests are based."""
    return {_OLD_NAMES.get(name, name): value for name, value in settings.items()}


def _digest(facts: Mapping[str, Any], settings: Settings) -> str:
    """Of what decides a training: `facts` and the settings that all networks use."""
    train = {k: v for k, v in settings["train"].items() if k not in _WITHOUT_EFFECT}
    common = {"data": data_key(settings), "train": train}
    common |= {name: settings[name] for name in ("model", "init_from")}
    text = json.dumps(common | dict(facts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _train(
    trainings: Sequence[Training],
    workdir: Path,
    way: str,
    console: Console,
    on_epoch: Judge = lambda progress: None,
) -> dict[str, Trained]:
    """Trains the share of this process; returns all, from the folders of all processes."""
    number = hosts.process()
    folder = workdir / f"process-{number}" if number else workdir
    folder.mkdir(parents=True, exist_ok=True)
    hosts.barrier("before training")
    elsewhere = [other for other in process_folders(workdir) if other != folder]
    found = _finished(trainings, elsewhere)
    hosts.barrier("looked")  # No process finishes a training before all have looked.
    own = [t for t in hosts.share(trainings) if t.name not in found]
    with hosts.working_alone():
        found |= train_all(own, folder, console, way=way, evaluate_models=on_epoch)
    hosts.barrier("trained")
    others = [t for t in trainings if t.name not in found]
    return found | _finished(others, process_folders(workdir))


def _finished(
    trainings: Sequence[Training], where: Sequence[Path]
) -> dict[str, Trained]:
    """The trainings that have ended in one of the folders."""
    found = {}
    with hosts.working_alone():
        for training in trainings:
            ended = (finished(training, folder) for folder in where)
            if done := next((one for one in ended if one is not None), None):
                found[training.name] = done
    return found
