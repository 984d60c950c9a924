"""The members of a sweep: data, networks, evaluation, folders, lines of the table.

A training is named by a digest of the settings that decide its result: members that
differ in their threshold share all networks, and students of one teacher share that.
Trained networks are found again by these names, in the folder of any process.

members/NNN/config.json         its settings
members/NNN/detectors/student   as in a run; a folder an entity with per_entity
members/NNN/results.json        written last: a member that has it is finished
"""

import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console

from kdjax.config import RENAMED, to_json
from kdjax.data.prepared import Prepared
from kdjax.data.series import Dataset
from kdjax.detection.calibration import check_enough
from kdjax.detection.detector import Detector
from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError
from kdjax.evaluation.evaluate import ModelEvaluation, evaluate_models
from kdjax.experiment import jobs
from kdjax.experiment.assemble import calibration_rules, data_digests, make_detector
from kdjax.experiment.groups import group_name, merge_evaluations
from kdjax.experiment.jobs import Training
from kdjax.experiment.pipeline import load_dataset, prepare_parts
from kdjax.experiment.populations import Judge, Trained, finished, train_all
from kdjax.experiment.sweeps.design import DONE, FAILED, LOSS, Member, value_text
from kdjax.experiment.train import scorers_of
from kdjax.experiment.workdir import CONFIG, RESULTS, read_json
from kdjax.export.costs import exported, window_milliseconds
from kdjax.io.files import check_schema, write_text
from kdjax.models.residual import NETWORK, Fits, ResidualModel, fit_components
from kdjax.training import hosts
from kdjax.training.targets import ScoreFunction

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]
TrainTeachers = Callable[[Sequence[Training]], dict[str, Trained]]

SCHEMA = 1
# Metrics of window scores in members.csv; those under a threshold have its method added.
METRICS = {
    "student": ("f1", "precision", "recall", "alarm_rate", "average_precision", "auc_roc"),
    "teacher": ("f1", "average_precision"),
}  # fmt: skip
WITHOUT_THRESHOLD = ("average_precision", "auc_roc")
# Metrics of the student's row scores, and their columns.
POINT_METRICS = {"average_precision": "point_average_precision", "vus_pr": "vus_pr"}

# Fields of `train` that change no network.
_WITHOUT_EFFECT = ("log_every", "checkpoint_seconds")
# Fields of `distill` that are in a digest, and those that are in it only where they
# differ from these values: sweeps from before they existed find their networks.
_FIELDS = ("alpha", "temperature", "temperature_mode", "target", "augmented_copies")
_LATER_FIELDS = {"alpha_end": None, "temperature_end": None, "weights": list[float]()}
_OLD_NAMES = {new.split(".")[-1]: old.split(".")[-1] for old, new in RENAMED.items()}


class Group(NamedTuple):
    """One entity group: its data, its windows, and the baselines fitted to it."""

    prepared: Prepared
    training_data: jobs.TrainingData
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


# Names of trainings.


def data_key(settings: Settings) -> str:
    """Equal for members that have the same rows and windows."""
    return json.dumps([settings["data"], settings["entity_mode"]], sort_keys=True)


def teacher_name(settings: Settings) -> str:
    """The name of a member's teacher, without its entity group."""
    network = {k: v for k, v in settings["teacher"].items() if k != "seed"}
    facts = {"seed": jobs.teacher_seed(settings), "network": _with_old_names(network)}
    return f"teacher-{_digest(facts, settings)}"


def student_name(settings: Settings) -> str:
    """The name of a member's student, without its entity group."""
    # Its network is the same with any other components.
    network = {k: v for k, v in settings["student"].items() if k != "components"}
    facts: dict[str, Any] = {"seed": settings["seed"], "network": network}
    distill = settings["distill"]
    if jobs.is_distilled(distill):
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


# Data and training.


def load_sweep_data(
    name: str, members: Sequence[Member], sweep_data: SweepData | None = None
) -> SweepData:
    """All data of a sweep's members, checked to be enough for their thresholds.

    Added to `sweep_data`, if given.
    """
    datasets: dict[str, Dataset] = {}
    sweep_data = sweep_data or SweepData({}, {}, {}, {})
    for member in members:
        settings, key = member.settings, data_key(member.settings)
        data = settings["data"]
        if settings["init_from"]:
            raise ConfigError(
                f"{name}: member {member.name} has init_from: a sweep trains its "
                "networks from the start; run the member by itself."
            )
        if key not in sweep_data.groups:
            source = json.dumps(data, sort_keys=True)
            if source not in datasets:
                datasets[source] = load_dataset(data)
                sweep_data.digests.update(data_digests(datasets[source]))
            sweep_data.groups[key] = {
                part: Group(prepared, jobs.make_training_data(prepared, data), {})
                for part, prepared in prepare_parts(datasets[source], settings).items()
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
        distilled = jobs.is_distilled(settings["distill"])
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
    train = functools.partial(_train, workdir=workdir, way=way, console=console)
    tasks = tasks_of(members, sweep_data)
    teachers = {
        t.teacher: jobs.teacher_training(
            t.group.training_data, t.settings, name=t.teacher
        )
        for t in tasks
        if t.teacher and jobs.has_network(t.settings, "teacher")
    }
    trained = (train_teachers or train)([*teachers.values()])
    students: dict[str, Training] = {}
    augmented: jobs.AugmentedCache = {}
    models: dict[str | None, ResidualModel] = {}
    scorers: dict[tuple[str | None, str], tuple[ScoreFunction, ...]] = {}
    for task in tasks:
        name, settings, group = task.teacher, task.settings, task.group
        own = trained.get(name or "")
        if task.student in students or (name in teachers and not (own and own.params)):
            continue  # It is there already, or the training of its teacher failed.
        if name and name not in models:
            models[name] = make_model(task, "teacher", own)
        teacher, key = models.get(name), (name, scoring_key(settings))
        if teacher is not None and key not in scorers:
            scorers[key] = scorers_of(teacher, group.prepared, settings)
        students[task.student] = jobs.student_training(
            group.training_data,
            settings,
            name=task.student,
            teacher=teacher,
            scorers=scorers.get(key, ()),
            known=augmented,
        )
    return trained | train([*students.values()], on_epoch)


def make_model(task: Task, name: str, trained: Trained | None) -> ResidualModel:
    """The `teacher` or `student` of a member with all its components."""
    network, group = None, task.group
    if trained is not None:
        assert trained.params is not None
        width = group.training_data.rows.shape[1]
        shape = jobs.architecture(task.settings, name, width=width)
        network = ResidualModel(NETWORK, trained.params, shape)
    components = task.settings[name]["components"]
    return fit_components(components, group.prepared, network, fits=group.fits)


def failures(
    member: Member, sweep_data: SweepData, trained: Mapping[str, Trained]
) -> list[str]:
    """Why networks of a member are missing; empty if all are trained."""
    reasons = []
    for task in tasks_of([member], sweep_data):
        teacher = task.teacher if jobs.has_network(task.settings, "teacher") else None
        for name in filter(None, (teacher, task.student)):
            if name not in trained:
                reasons.append(f"{name}: was not trained")
            elif trained[name].params is None:
                reasons.append(f"{name}: {jobs.progress_text(trained[name].progress)}")
    return reasons


def process_folders(workdir: Path) -> list[Path]:
    """The folders in which any process keeps what it trained, in this or earlier runs."""
    return [workdir, *sorted(workdir.glob("process-*"))]


def _train(
    trainings: Sequence[Training],
    on_epoch: Judge = lambda progress: None,
    *,
    workdir: Path,
    way: str,
    console: Console,
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
            if done := next(filter(None, ended), None):
                found[training.name] = done
    return found


# Evaluation, folder and table.


def read_member(workdir: Path, member: Member) -> dict[str, Any] | None:
    """The results of a finished member, or None."""
    path = _folder(workdir, member) / RESULTS
    if not path.exists():
        return None
    results = read_json(path)
    schema = results.get("schema", SCHEMA)
    check_schema(str(path), schema, known=SCHEMA, version=None)
    return results


def fail_member(
    workdir: Path, member: Member, sweep_data: SweepData, reasons: Sequence[str]
) -> None:
    """Writes the folder of a member whose networks could not be trained."""
    prepared = [task.group.prepared for task in tasks_of([member], sweep_data)]
    entities = [entity.name for own in prepared for entity in own.entities]
    found = {"status": FAILED, "reason": "; ".join(reasons)}
    _write(workdir, member, found, dict.fromkeys(entities))


def evaluate_member(
    workdir: Path,
    member: Member,
    sweep_data: SweepData,
    trained: Mapping[str, Trained],
) -> dict[str, Any]:
    """Calibrates and evaluates a member's student and writes its folder.

    All its networks must be in `trained`, by the names of their trainings. Returns its
    measures by entity.
    """
    measures: dict[str, dict[str, Any]] = {}
    students = []
    for task in tasks_of([member], sweep_data):
        evaluations = _evaluate(task, sweep_data, trained)
        student = evaluations["student"]
        detector = make_detector(
            "student",
            student.model,
            student.calibration,
            task.group.prepared,
            settings=member.settings,
            digests=sweep_data.digests,
            results=student.rows,
        )
        name = group_name("student", task.name)
        save_detector(_folder(workdir, member) / "detectors" / name, detector)
        progress = trained[task.student].progress
        of_group = {
            "parameters": student.model.parameters,
            "steps": progress.step,
            "best_epoch": progress.best_epoch,
            LOSS: progress.best_loss,
            **measure_costs(detector, sweep_data.milliseconds),
        }
        for entity in (scores.entity for scores in student.scores):
            measures[entity] = of_group | _entity_metrics(evaluations, entity)
        students.append(student)
    window = member.settings["data"]["window"]
    rows = merge_evaluations("student", students, window=window).rows
    pooled = {
        f"pooled_f1_{row['threshold']}": row["f1"]
        for row in rows
        if (row["scope"], row["level"]) == ("pooled", "window")
    }
    merged = {entity: own | pooled for entity, own in measures.items()}
    found = {"status": DONE, "reason": "", "rows": rows}
    return _write(workdir, member, found, merged)


def table_lines(member: Member, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A member's lines of `members.csv`, one an entity."""
    fields = {field: value_text(value) for field, value in member.changes.items()}
    fixed = {"status": results["status"], "reason": results["reason"], **fields}
    return [
        {"member": member.name, "entity": entity, **fixed, **(measures or {})}
        for entity, measures in results["measures"].items()
    ]


def measure_costs(
    detector: Detector, milliseconds: dict[Any, float]
) -> dict[str, float]:
    """Bytes of the exported file and milliseconds of a window; NaN without onnx.

    `milliseconds` has known times by architecture; a new one is added.
    """
    try:
        content = exported(detector)
    except ConfigError as error:
        logger.warning("bytes and milliseconds are not measured: %s", error)
        return {"bytes": math.nan, "milliseconds": math.nan}
    model = detector.model
    key = (model.kind, model.architecture, detector.window, detector.attribution)
    if key not in milliseconds:
        milliseconds[key] = window_milliseconds(content)
    return {"bytes": len(content), "milliseconds": milliseconds[key]}


def _evaluate(
    task: Task, sweep_data: SweepData, trained: Mapping[str, Trained]
) -> dict[str, ModelEvaluation]:
    """The student and, if it has one, its teacher, which is evaluated once for all."""
    settings, prepared = task.settings, task.group.prepared
    used = [settings[name] for name in ("data", "detection", "threshold")]
    key = json.dumps([task.teacher, task.name, used], sort_keys=True)
    models = {"student": make_model(task, "student", trained[task.student])}
    if task.teacher is not None and key not in sweep_data.teachers:
        models["teacher"] = make_model(task, "teacher", trained.get(task.teacher))
    found = evaluate_models(
        models,
        prepared,
        calibration_rules(settings, prepared),
        min_anomalous_points=settings["data"]["min_anomalous_points"],
        console=Console(quiet=True),
    )
    if "teacher" in found:
        sweep_data.teachers[key] = found["teacher"]
    if task.teacher is not None:
        found["teacher"] = sweep_data.teachers[key]
    return found


def _entity_metrics(
    evaluations: Mapping[str, ModelEvaluation], entity: str
) -> dict[str, Any]:
    """Metrics of the student on one entity, and some of its teacher's."""
    found: dict[str, Any] = {}
    for name, evaluation in evaluations.items():
        prefix = "" if name == "student" else f"{name}_"
        for row in evaluation.entities:
            if row["entity"] != entity:
                continue
            if row["level"] == "window":
                for key in METRICS[name]:
                    method = "" if key in WITHOUT_THRESHOLD else f"_{row['threshold']}"
                    found[f"{prefix}{key}{method}"] = row[key]
            elif name == "student":
                found |= {column: row[key] for key, column in POINT_METRICS.items()}
    return found


def _folder(workdir: Path, member: Member) -> Path:
    return workdir / "members" / member.name


def _write(
    workdir: Path, member: Member, found: Mapping[str, Any], measures: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes settings and results; returns the measures as written, None for NaN."""
    folder = _folder(workdir, member)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, to_json(member.settings) + "\n")
    written = {
        entity: own and {k: None if pd.isna(v) else v for k, v in own.items()}
        for entity, own in measures.items()
    }
    results = {"schema": SCHEMA, "member": member.name, "changes": member.changes}
    results |= {**found, "measures": written}
    write_text(folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")
    return written
