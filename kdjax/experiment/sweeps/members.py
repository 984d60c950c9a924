"""The members of a sweep: data, networks, evaluation, folders, lines of the table.

A training is named by a digest of the settings that determine its result: members that
differ in their threshold share all networks, and students of one teacher share it.
Trained networks are found by these names, in the folder of any process.

members/NNN/config.json         its settings
members/NNN/detectors/student   as in a run; a folder an entity with per_entity
members/NNN/results.json        written last: a member that has it is finished
"""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console

from kdjax.config import RENAMED, Settings, to_json
from kdjax.data.datasets import load_dataset
from kdjax.data.series import Dataset
from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError
from kdjax.evaluation.evaluate import (
    ModelEvaluation,
    evaluate_models,
    merge_evaluations,
)
from kdjax.experiment import jobs, train
from kdjax.experiment.assemble import calibration_rules, data_digests, make_detector
from kdjax.experiment.jobs import TrainingJob
from kdjax.experiment.pipeline import check_windows, prepare_groups
from kdjax.experiment.populations import OnEpoch, finished, train_all
from kdjax.experiment.sweeps.design import DONE, FAILED, LOSS, Member, value_text
from kdjax.experiment.train import Group, Task
from kdjax.experiment.workdir import CONFIG, RESULTS, read_json
from kdjax.export.costs import detector_costs
from kdjax.io.files import check_schema, write_text
from kdjax.training import hosts
from kdjax.training.components import options_of
from kdjax.training.loop import Fitted, TrainingProgress

logger = logging.getLogger(__name__)


SCHEMA = 1
# Metrics of window scores in members.csv; those under a threshold have its method added.
METRICS = {
    "student": ("f1", "precision", "recall", "alarm_rate", "average_precision", "auc_roc"),
    "teacher": ("f1", "average_precision"),
}  # fmt: skip
WITHOUT_THRESHOLD = ("average_precision", "auc_roc")
# Metrics of the student's row scores, and their columns.
POINT_METRICS = {"average_precision": "point_average_precision", "vus_pr": "vus_pr"}

# Fields of `train` that don't change a network.
_WITHOUT_EFFECT = ("log_every", "checkpoint_seconds")
# Fields of `distill` that are in a digest.
_FIELDS = ("alpha", "temperature", "temperature_mode", "target", "augmented_copies")
# Fields of `data` that are in a digest only if they differ from these values: so sweeps
# from before they existed find their networks.
_LATER_DATA = {
    "missing_values": list[str](), "fill_limit": None, "ignore": list[str](),
    "context": list[str](), "layout": "wide", "tag_column": "tag", "value_column": "value", "step": "",
}  # fmt: skip
_OLD_NAMES = {new.split(".")[-1]: old.split(".")[-1] for old, new in RENAMED.items()}


class SweepData(NamedTuple):
    """What members share, each loaded, computed or measured once."""

    digests: dict[str, str]  # SHA-256 of each series
    groups: dict[str, list[Group]]  # by `data_key`
    teachers: dict[str, ModelEvaluation]
    milliseconds: dict[Any, float]  # of a window, by architecture


# Names of trainings.


def data_key(settings: Settings) -> str:
    """Equal for members that have the same rows and windows."""
    usual = _LATER_DATA.items()
    data = {k: v for k, v in settings["data"].items() if (k, v) not in usual}
    return json.dumps([data, settings["entity_mode"]], sort_keys=True)


def teacher_name(settings: Settings) -> str:
    """The name of a member's teacher, without its entity group."""
    network = {k: v for k, v in settings["teacher"].items() if k != "seed"}
    facts = {"seed": jobs.teacher_seed(settings), "network": _with_old_names(network)}
    options = train.baseline_options(settings)
    kinds = settings["teacher"]["components"]
    facts |= {kind: own for kind in kinds if (own := options_of(kind, options))}
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
        changed = {"weights": distill["weights"]} if distill["weights"] else {}
        if distill["target"] == "scores":
            old = _with_old_names(settings["detection"])
            changed["scoring"] = train.scoring_key({**settings, "detection": old})
        if changed:
            facts["further"] = changed
    return f"student-{_digest(facts, settings)}"


def _with_old_names(settings: Settings) -> Settings:
    """Settings under the names of version 0.1, on which digests are based."""
    return {_OLD_NAMES.get(name, name): value for name, value in settings.items()}


def _digest(facts: Mapping[str, Any], settings: Settings) -> str:
    """Digest of a training's `facts` and of the settings that all networks use."""
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
                f"{name}: member {member.name} has init_from: a sweep starts from random "
                "parameters; run the member by itself."
            )
        if key not in sweep_data.groups:
            source = json.dumps(data, sort_keys=True)
            if source not in datasets:
                datasets[source] = load_dataset(data)
                sweep_data.digests.update(data_digests(datasets[source]))
            prepared = prepare_groups(datasets[source], settings)
            sweep_data.groups[key] = train.make_groups(prepared, data)
        for group in sweep_data.groups[key]:
            check_windows(group.prepared, settings)
    return sweep_data


def tasks_of(members: Sequence[Member], sweep_data: SweepData) -> list[Task]:
    """The members' entity groups and the networks that they need."""
    tasks = []
    for settings in (member.settings for member in members):
        teacher, student = teacher_name(settings), student_name(settings)
        distilled = jobs.is_distilled(settings["distill"])
        for group in sweep_data.groups[data_key(settings)]:
            needed = train.group_name(teacher, group.name) if distilled else None
            name = train.group_name(student, group.name)
            tasks.append(Task(settings, group, needed, name))
    return tasks


def train_members(
    tasks: Sequence[Task],
    workdir: Path,
    *,
    way: str,
    console: Console,
    on_epoch: OnEpoch = lambda progress: None,
    train_teachers: train.Train | None = None,
) -> dict[str, Fitted]:
    """The networks of all tasks by the names of their jobs.

    `way` and `on_epoch`, which gets the students' progress, are those of `train_all`;
    `train_teachers` trains teachers elsewhere than in `workdir`.
    """
    options: dict[str, Any] = {"workdir": workdir, "way": way, "console": console}
    train_share = functools.partial(_train, **options)
    train_students = functools.partial(train_share, on_epoch=on_epoch)
    return train.train_tasks(tasks, train_teachers or train_share, train_students)


def failures(
    member: Member, sweep_data: SweepData, trained: Mapping[str, Fitted]
) -> list[str]:
    """Why networks of a member are missing; empty if all are trained."""
    reasons = []
    for task in tasks_of([member], sweep_data):
        for role, name in (("teacher", task.teacher), ("student", task.student)):
            if name is None or not jobs.has_network(task.settings, role):
                continue
            if name not in trained:
                reasons.append(f"{name}: was not trained")
            elif trained[name].progress.bad_step:
                reasons.append(f"{name}: {jobs.progress_text(trained[name].progress)}")
    return reasons


def process_folders(workdir: Path) -> list[Path]:
    """The folders in which any process or unit keeps what it trained, in this or earlier runs."""
    others = sorted([*workdir.glob("process-*"), *workdir.glob("unit-*")])
    return [workdir, *others]


def _train(
    wanted: Sequence[TrainingJob],
    on_epoch: OnEpoch = lambda progress: None,
    *,
    workdir: Path,
    way: str,
    console: Console,
) -> dict[str, Fitted]:
    """Trains the share of this process; returns all, from the folders of all processes."""
    number = hosts.process()
    folder = workdir / f"process-{number}" if number else workdir
    folder.mkdir(parents=True, exist_ok=True)
    hosts.barrier("before training")
    elsewhere = [other for other in process_folders(workdir) if other != folder]
    trained = finished_in(wanted, elsewhere)
    hosts.barrier("looked")  # No process finishes a training before all have looked.
    own = [job for job in hosts.share(wanted) if job.name not in trained]
    with hosts.working_alone():
        trained |= train_all(own, folder, console, way=way, on_epoch=on_epoch)
    hosts.barrier("trained")
    others = [job for job in wanted if job.name not in trained]
    return trained | finished_in(others, process_folders(workdir))


def finished_in(
    wanted: Sequence[TrainingJob], folders: Sequence[Path]
) -> dict[str, Fitted]:
    """The jobs that have ended in one of the folders."""
    trained = {}
    with hosts.working_alone():
        for job in wanted:
            ended = (finished(job, folder) for folder in folders)
            if done := next(filter(None, ended), None):
                trained[job.name] = done
    return trained


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
    groups = sweep_data.groups[data_key(member.settings)]
    entities = [entity.name for group in groups for entity in group.prepared.entities]
    outcome = {"status": FAILED, "reason": "; ".join(reasons)}
    _write(workdir, member, outcome, dict.fromkeys(entities))


def evaluate_member(
    workdir: Path, member: Member, sweep_data: SweepData, trained: Mapping[str, Fitted]
) -> dict[str, Any]:
    """Calibrates and evaluates a member's student and writes its folder.

    All its networks must be in `trained`. Returns its measures by entity.
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
        name = train.group_name("student", task.group.name)
        save_detector(_folder(workdir, member) / "detectors" / name, detector)
        costs = detector_costs(detector, known=sweep_data.milliseconds)
        if costs["reason"]:
            logger.warning(
                "bytes or milliseconds are not measured: %s", costs["reason"]
            )
        network = trained.get(task.student or "")
        progress = network.progress if network else TrainingProgress()
        of_group = {
            "parameters": student.model.parameters,
            "steps": progress.step,
            "best_epoch": progress.best_epoch,
            LOSS: progress.best_loss,
            "bytes": costs["bytes"],
            "milliseconds": costs["milliseconds"],
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
    outcome = {"status": DONE, "reason": "", "rows": rows}
    return _write(
        workdir, member, outcome, {name: own | pooled for name, own in measures.items()}
    )


def table_lines(member: Member, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A member's lines of `members.csv`, one an entity."""
    fields = {field: value_text(value) for field, value in member.changes.items()}
    fixed = {"status": results["status"], "reason": results["reason"], **fields}
    return [
        {"member": member.name, "entity": entity, **fixed, **(measures or {})}
        for entity, measures in results["measures"].items()
    ]


def _evaluate(
    task: Task, sweep_data: SweepData, trained: Mapping[str, Fitted]
) -> dict[str, ModelEvaluation]:
    """The student and, if it has one, its teacher, which is evaluated once for all."""
    settings, prepared = task.settings, task.group.prepared
    used = [settings[name] for name in ("data", "detection", "threshold")]
    key = json.dumps([task.teacher, task.group.name, used], sort_keys=True)
    network = trained.get(task.student or "")
    models = {"student": train.make_model(task, "student", network)}
    if task.teacher is not None and key not in sweep_data.teachers:
        models["teacher"] = train.make_model(task, "teacher", trained.get(task.teacher))
    evaluations = evaluate_models(
        models,
        prepared,
        calibration_rules(settings, prepared),
        held_out=functools.partial(
            train.held_out_models, prepared, settings, task.group.held_out
        ),
        min_anomalous_points=settings["data"]["min_anomalous_points"],
        console=Console(quiet=True),
    )
    if "teacher" in models:
        sweep_data.teachers[key] = evaluations["teacher"]
    elif task.teacher is not None:
        evaluations["teacher"] = sweep_data.teachers[key]
    return evaluations


def _entity_metrics(
    evaluations: Mapping[str, ModelEvaluation], entity: str
) -> dict[str, Any]:
    """Metrics of the student on one entity, and some of its teacher's."""
    metrics: dict[str, Any] = {}
    for name, evaluation in evaluations.items():
        prefix = "" if name == "student" else f"{name}_"
        for row in evaluation.entities:
            if row["entity"] != entity:
                continue
            if row["level"] == "window":
                for key in METRICS[name]:
                    method = "" if key in WITHOUT_THRESHOLD else f"_{row['threshold']}"
                    metrics[f"{prefix}{key}{method}"] = row[key]
            elif name == "student":
                metrics |= {column: row[key] for key, column in POINT_METRICS.items()}
    return metrics


def _folder(workdir: Path, member: Member) -> Path:
    return workdir / "members" / member.name


def _write(
    workdir: Path,
    member: Member,
    outcome: Mapping[str, Any],
    measures: Mapping[str, Any],
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
    results |= {**outcome, "measures": written}
    write_text(folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")
    return written
