"""One member of a sweep: its networks judged, its folder, its lines of the table.

members/NNN/config.json         its settings
members/NNN/detectors/student   as a run's; a folder an entity with per_entity
members/NNN/results.json        written last: a member that has it is finished
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from kdjax.config import to_json
from kdjax.data.prepared import Prepared
from kdjax.detection.detector import Detector
from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError
from kdjax.evaluation.evaluate import ModelEvaluation, evaluate_models
from kdjax.experiment.assemble import calibration_rules, make_detector
from kdjax.experiment.groups import group_name, merge_evaluations
from kdjax.experiment.sweeps.design import Member, value_text
from kdjax.experiment.sweeps.tables import DONE, FAILED
from kdjax.experiment.workdir import CONFIG, RESULTS, read_json
from kdjax.export.costs import exported, window_milliseconds
from kdjax.io.files import check_schema, write_text
from kdjax.models.residual import ResidualModel
from kdjax.training.loop import TrainingProgress

logger = logging.getLogger(__name__)

SCHEMA = 1
STUDENT, TEACHER = "student", "teacher"

# What a line of the table has of an entity under a threshold, and of its scores.
OF_THRESHOLDS = ("f1", "precision", "recall", "alarm_rate")
OF_SCORES = ("average_precision", "auc_roc")
OF_TEACHERS = ("f1", "average_precision")
# Of row scores, and how the table calls them.
OF_POINTS = {"average_precision": "point_average_precision", "vus_pr": "vus_pr"}

Settings = Mapping[str, Any]


class Networks(NamedTuple):
    """The networks of one part of a member.

    Attributes:
        student: its student.
        teacher: that it learnt from, if it did.
        course: of the student's training.
        teacher_name: of the teacher's training.
    """

    student: ResidualModel
    teacher: ResidualModel | None
    progress: TrainingProgress
    teacher_name: str | None


class EvaluationCache(NamedTuple):
    """What members share while they are judged, each thing found once.

    Attributes:
        teachers: judged teachers by training and settings of detection.
        milliseconds: of a window, by architecture.
    """

    teachers: dict[str, ModelEvaluation]
    milliseconds: dict[Any, float]


def folder_of(workdir: Path, member: Member) -> Path:
    """A member's folder."""
    return workdir / "members" / member.name


def read_member(workdir: Path, member: Member) -> dict[str, Any] | None:
    """What a finished member found, or None."""
    path = folder_of(workdir, member) / RESULTS
    if not path.exists():
        return None
    results = read_json(path)
    schema = results.get("schema", SCHEMA)
    check_schema(str(path), schema, known=SCHEMA, version=None)
    return results


def fail_member(workdir: Path, member: Member, entities: list[str], why: str) -> None:
    """Leaves the folder of a member that has no networks to judge."""
    _write(workdir, member, {"status": FAILED, "reason": why}, dict.fromkeys(entities))


def evaluate_member(
    workdir: Path,
    member: Member,
    parts: Mapping[str, Prepared],
    networks: Mapping[str, Networks],
    *,
    bench: EvaluationCache,
    digests: Mapping[str, str],
) -> None:
    """Calibrates and judges a member's student, and leaves its folder.

    Args:
        workdir: of the sweep.
        member: to judge.
        parts: its data by part.
        networks: by part.
        bench: shared among the members.
        digests: SHA-256 of each series.
    """
    evaluated = {
        part: _judge(networks[part], part, prepared, member.settings, bench)
        for part, prepared in parts.items()
    }
    measures: dict[str, dict[str, Any]] = {}
    for part, own in evaluated.items():
        of_part = _of_training(networks[part])
        detector = _save(workdir, member, part, parts[part], own[STUDENT], digests)
        of_part |= _costs(detector, bench)
        for entity in own[STUDENT].scores:
            measures[entity.entity] = of_part | _of_entity(own, entity.entity)
    rows = merge_evaluations(
        STUDENT,
        [own[STUDENT] for own in evaluated.values()],
        window=member.settings["data"]["window"],
    ).rows
    pooled = _pooled(rows)
    found = {entity: own | pooled for entity, own in measures.items()}
    _write(workdir, member, {"status": DONE, "reason": "", "rows": rows}, found)


def table_lines(member: Member, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A member's lines of `members.csv`, one an entity."""
    fields = {field: value_text(value) for field, value in member.changes.items()}
    return [
        {
            "member": member.name,
            "entity": entity,
            "status": results["status"],
            "reason": results["reason"],
            **fields,
            **(measures or {}),
        }
        for entity, measures in results["measures"].items()
    ]


def _judge(
    networks: Networks,
    part: str,
    prepared: Prepared,
    settings: Settings,
    bench: EvaluationCache,
) -> dict[str, ModelEvaluation]:
    rules = calibration_rules(settings, prepared)

    def evaluated(name: str, model: ResidualModel) -> ModelEvaluation:
        return evaluate_models(
            {name: model},
            prepared,
            rules,
            min_anomalous_points=settings["data"]["min_anomalous_points"],
            console=Console(quiet=True),
        )[name]

    found = {STUDENT: evaluated(STUDENT, networks.student)}
    if networks.teacher is not None:
        ways = [settings[group] for group in ("data", "detection", "threshold")]
        key = json.dumps([networks.teacher_name, part, ways], sort_keys=True)
        if key not in bench.teachers:
            bench.teachers[key] = evaluated(TEACHER, networks.teacher)
        found[TEACHER] = bench.teachers[key]
    return found


def _save(
    workdir: Path,
    member: Member,
    part: str,
    prepared: Prepared,
    evaluated: ModelEvaluation,
    digests: Mapping[str, str],
) -> Detector:
    detector = make_detector(
        STUDENT,
        evaluated.model,
        evaluated.calibration,
        prepared,
        settings=member.settings,
        digests=digests,
        results=evaluated.rows,
    )
    folder = folder_of(workdir, member) / "detectors" / group_name(STUDENT, part)
    save_detector(folder, detector)
    return detector


def _of_training(networks: Networks) -> dict[str, Any]:
    progress = networks.progress
    return {
        "parameters": networks.student.parameters,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "validation_loss": progress.best_loss,
    }


def _costs(detector: Detector, bench: EvaluationCache) -> dict[str, float]:
    """Bytes of the exported file, and milliseconds of a window, once a shape."""
    try:
        content = exported(detector)
    except ConfigError as error:
        logger.warning("bytes and milliseconds are not measured: %s", error)
        return {"bytes": math.nan, "milliseconds": math.nan}
    model = detector.model
    key = (model.kind, model.architecture, detector.window, detector.attribution)
    if key not in bench.milliseconds:
        bench.milliseconds[key] = window_milliseconds(content)
    return {"bytes": len(content), "milliseconds": bench.milliseconds[key]}


def _of_entity(evaluated: Mapping[str, ModelEvaluation], entity: str) -> dict[str, Any]:
    """The student's measures on an entity's windows, and some of its teacher's."""
    found: dict[str, Any] = {}
    for name, model in evaluated.items():
        prefix = "" if name == STUDENT else f"{name}_"
        wanted = (*OF_THRESHOLDS, *OF_SCORES) if name == STUDENT else OF_TEACHERS
        for row in model.entities:
            if row["entity"] != entity:
                continue
            if row["level"] == "point":
                if name == STUDENT:
                    found |= {own: row[key] for key, own in OF_POINTS.items()}
                continue
            for key in wanted:
                kind = "" if key in OF_SCORES else f"_{row['threshold']}"
                found[f"{prefix}{key}{kind}"] = row[key]
    return found


def _pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """F1 over all entities' windows, the same in each of a member's lines."""
    return {
        f"pooled_f1_{row['threshold']}": row["f1"]
        for row in rows
        if row["scope"] == "pooled" and row["level"] == "window"
    }


def _write(
    workdir: Path, member: Member, found: Mapping[str, Any], measures: Mapping[str, Any]
) -> None:
    folder = folder_of(workdir, member)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, to_json(member.settings) + "\n")
    results = {
        "schema": SCHEMA,
        "member": member.name,
        "changes": member.changes,
        **found,
        "measures": {
            entity: own and {k: _number(v) for k, v in own.items()}
            for entity, own in measures.items()
        },
    }
    write_text(folder / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")


def _number(value: Any) -> Any:
    """JSON has no NaN; None stands for what isn't defined."""
    return None if isinstance(value, float) and math.isnan(value) else value
