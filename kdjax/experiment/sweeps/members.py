"""One member of a sweep: its networks evaluated, its folder, its lines of the table.

members/NNN/config.json         its settings
members/NNN/detectors/student   as in a run; a folder an entity with per_entity
members/NNN/results.json        written last: a member that has it is finished
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from kdjax.config import to_json
from kdjax.detection.detector import Detector
from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError
from kdjax.evaluation.evaluate import ModelEvaluation, evaluate_models
from kdjax.experiment.assemble import calibration_rules, make_detector
from kdjax.experiment.groups import group_name, merge_evaluations
from kdjax.experiment.populations import Trained
from kdjax.experiment.sweeps.design import LOSS, Member, value_text
from kdjax.experiment.sweeps.networks import (
    SweepData,
    Task,
    make_model,
    tasks_of,
    teacher_model,
)
from kdjax.experiment.sweeps.tables import DONE, FAILED
from kdjax.experiment.workdir import CONFIG, RESULTS, read_json
from kdjax.export.costs import exported, window_milliseconds
from kdjax.io.files import check_schema, write_text
from kdjax.models.residual import ResidualModel

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
) -> None:
    """Calibrates and evaluates a member's student and writes its folder.

    All its networks must be in `trained`, by the names of their trainings.
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
        for scores in student.scores:
            own = _entity_metrics(evaluations, scores.entity)
            measures[scores.entity] = of_group | own
        students.append(student)
    window = member.settings["data"]["window"]
    rows = merge_evaluations("student", students, window=window).rows
    pooled = {
        f"pooled_f1_{row['threshold']}": row["f1"]
        for row in rows
        if (row["scope"], row["level"]) == ("pooled", "window")
    }
    merged = {entity: own | pooled for entity, own in measures.items()}
    _write(workdir, member, {"status": DONE, "reason": "", "rows": rows}, merged)


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

    def evaluate(name: str, model: ResidualModel) -> ModelEvaluation:
        return evaluate_models(
            {name: model},
            prepared,
            calibration_rules(settings, prepared),
            min_anomalous_points=settings["data"]["min_anomalous_points"],
            console=Console(quiet=True),
        )[name]

    student = make_model(task, "student", trained[task.student])
    evaluations = {"student": evaluate("student", student)}
    if task.teacher is not None:
        used = [settings[name] for name in ("data", "detection", "threshold")]
        key = json.dumps([task.teacher, task.name, used], sort_keys=True)
        if key not in sweep_data.teachers:
            teacher = teacher_model(task, trained)
            assert teacher is not None
            sweep_data.teachers[key] = evaluate("teacher", teacher)
        evaluations["teacher"] = sweep_data.teachers[key]
    return evaluations


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
) -> None:
    """Writes settings and results, in which None stands for NaN."""
    folder = _folder(workdir, member)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, to_json(member.settings) + "\n")
    results = {
        "schema": SCHEMA,
        "member": member.name,
        "changes": member.changes,
        **found,
        "measures": {
            entity: own and {k: None if pd.isna(v) else v for k, v in own.items()}
            for entity, own in measures.items()
        },
    }
    write_text(folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")
