"""What a run leaves behind: detectors with their cards, results, plot and reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.assembly import make_detector
from kdjax.data.prepared import Entity, Prepared
from kdjax.detection.alarms import AlarmRule
from kdjax.detection.detector import Detector, entity_index
from kdjax.detection.episodes import scored_events
from kdjax.detection.heat import contribution_bins
from kdjax.detection.storage import save_detector
from kdjax.distillation import NETWORKS
from kdjax.environment import describe_environment
from kdjax.evaluation.intervals import ORACLE, best_control
from kdjax.evaluation.plots import Distribution, Ranking, plot_learning_curve
from kdjax.evaluation.report import DRAWN_ENTITIES, write_report
from kdjax.evaluation.text_report import write_texts
from kdjax.evaluation.timelines import Heat, Timeline, heat_bins
from kdjax.findings import find
from kdjax.inspection import Inspection
from kdjax.judgement import Judged, test_starts
from kdjax.parts import part_name
from kdjax.renewal import BEFORE
from kdjax.workdir import RESULTS_SCHEMA, read_lines, write_results

# Models whose scores the report draws, and the one that goes into production.
DRAWN = ("teacher", "student")
STUDENT = "student"
RANDOM = "random"
# Entities whose channels are drawn: that scores their test rows once more.
HEAT_MAPS = 16
FRONTIER = "frontier.png"  # drawn into the folder by whoever compared sizes

Settings = Mapping[str, Any]


def write_outcome(
    workdir: Path,
    judged: Mapping[str, Judged],
    prepared: Prepared,
    *,
    parts: Sequence[tuple[str, Prepared, Mapping[str, Judged]]],
    inspections: Sequence[Inspection],
    settings: Settings,
    digests: Mapping[str, str],
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes all files of a finished run, `results.json` last; returns its content.

    Args:
        workdir: folder of the run.
        judged: of all entities, by model name.
        prepared: the data.
        parts: names of the parts with their data and models, which become detectors.
        inspections: of the training rows, by the student.
        settings: of the run.
        digests: SHA-256 of each series.
        seconds: spent in each phase.
        notes: sentences on the data.
        origin: what new cards say of the detector that training started from.
    """
    students: dict[str, Detector] = {}
    examples: dict[str, Detector] = {}
    for part, own, models in parts:
        for name, model in models.items():
            if name == BEFORE:
                continue  # It lies where it was.
            detector = make_detector(
                name,
                model.model,
                model.calibration,
                own,
                settings=settings,
                digests=_own_digests(digests, own),
                results=model.rows,
                origin=origin if name in NETWORKS else None,
            )
            save_detector(workdir / "detectors" / part_name(name, part), detector)
            examples.setdefault(name, detector)
            if name == STUDENT:
                students |= dict.fromkeys(detector.entities, detector)
    results = {
        "schema": RESULTS_SCHEMA,
        "dataset": _dataset(judged, prepared, settings["data"]),
        "rows": [row for model in judged.values() for row in model.rows],
        "entities": [row for model in judged.values() for row in model.entities],
        "rates": [rate for model in judged.values() for rate in model.rates],
        "worst_training_windows": [w for one in inspections for w in one.worst],
        "data": {"sha256": dict(digests)},
        "environment": {**describe_environment(), "seconds": dict(seconds)},
        "notes": [*notes, *_notes(judged)],
        "settings": settings,
    }
    results |= find(results, judged, examples)
    _write_reports(workdir, results, judged, prepared, inspections, students)
    write_results(workdir, results)
    return results


def _write_reports(
    workdir: Path,
    results: Mapping[str, Any],
    judged: Mapping[str, Judged],
    prepared: Prepared,
    inspections: Sequence[Inspection],
    students: Mapping[str, Detector],
) -> None:
    """The learning curve, the report, and its numbers in other formats."""
    history, frontier = read_lines(workdir), workdir / FRONTIER
    rule = AlarmRule(
        *(results["settings"]["threshold"][k] for k in ("min_duration", "cooldown"))
    )
    plot_learning_curve(history, workdir / "learning_curve.png")
    write_report(
        workdir / "report.html",
        results=results,
        history=history,
        timelines=[
            _timeline(judged, prepared, i, rule)._replace(
                heat=_heat(entity, prepared, students) if i < HEAT_MAPS else None
            )
            for i, entity in enumerate(prepared.entities[:DRAWN_ENTITIES])
        ],
        training=_training(judged, prepared, inspections),
        distributions=_distributions(judged),
        rankings=_rankings(judged, results["entities"]),
        frontier=frontier.read_bytes() if frontier.exists() else None,
        config=results["settings"],
    )
    write_texts(workdir, results)


def _own_digests(digests: Mapping[str, str], prepared: Prepared) -> dict[str, str]:
    """Those of a part's series; they are called train/ENTITY and test/ENTITY."""
    names = {entity.name for entity in prepared.entities}
    return {k: v for k, v in digests.items() if k.split("/", 1)[1] in names}


def _dataset(
    judged: Mapping[str, Judged], prepared: Prepared, data: Mapping[str, Any]
) -> dict[str, Any]:
    scores = next(iter(judged.values())).scores
    labels = [e.window_labels for e in scores if e.window_labels is not None]
    tests = [entity.test for entity in prepared.entities]
    return {
        "name": prepared.name,
        "entities": [entity.name for entity in prepared.entities],
        "window": prepared.window,
        "stride": prepared.stride,
        "min_anomalous_points": data["min_anomalous_points"],
        "train_rows": sum(len(e.train.values) for e in prepared.entities),
        "test_rows": sum(len(test.values) for test in tests if test is not None),
        "windows": sum(
            len(test_starts(prepared, entity)) for entity in prepared.entities
        ),
        "positive_windows": int(np.sum(np.concatenate(labels))) if labels else None,
    }


def _notes(judged: Mapping[str, Judged]) -> list[str]:
    """What calibration had to say, once where all models share it."""
    return list(
        dict.fromkeys(n for model in judged.values() for n in model.calibration.notes)
    )


def _timeline(
    judged: Mapping[str, Judged], prepared: Prepared, index: int, rule: AlarmRule
) -> Timeline:
    entity = prepared.entities[index]
    drawn = {name: judged[name].scores[index] for name in DRAWN if name in judged}
    return Timeline(
        entity=entity.name,
        time=None if entity.test is None else entity.test.time,
        labels=None if entity.test is None else entity.test.labels,
        scores={name: found.scores for name, found in drawn.items()},
        thresholds={name: found.threshold for name, found in drawn.items()},
        events={
            name: scored_events(
                found.window_scores,
                test_starts(prepared, entity),
                entity.test_spans,
                tau=found.threshold,
                window=prepared.window,
                rule=rule,
            )
            for name, found in drawn.items()
            if entity.test is not None
        },
    )


def _heat(
    entity: Entity, prepared: Prepared, students: Mapping[str, Detector]
) -> Heat | None:
    """What the channels of the test rows contribute to the student's scores."""
    if entity.test is None:
        return None
    detector = students[entity.name]
    index = entity_index(detector, entity.name)
    values = entity.test.values
    parts = contribution_bins(
        detector,
        index,
        values,
        test_starts(prepared, entity),
        heat_bins(entity.test.time, len(values)),
    )
    return Heat(STUDENT, detector.channels, parts, detector.thresholds[index].tau)


def _training(
    judged: Mapping[str, Judged],
    prepared: Prepared,
    inspections: Sequence[Inspection],
) -> list[Timeline]:
    """The training rows of entities that have no test rows to show."""
    thresholds = judged[STUDENT].calibration.thresholds
    return [
        Timeline(
            entity=entity.name,
            time=entity.train.time,
            labels=None,
            scores={STUDENT: found.scores},
            thresholds={STUDENT: thresholds[place].tau},
        )
        for place, (entity, found) in enumerate(
            zip(prepared.entities, inspections, strict=True)
        )
        if entity.test is None
    ]


def _distributions(judged: Mapping[str, Judged]) -> list[Distribution]:
    """The student's window scores in calibration and test."""
    student = judged[STUDENT]
    return [
        Distribution(
            entity=scores.entity,
            calibration=student.calibration.scores[place],
            test=scores.window_scores,
            labels=scores.window_labels,
            threshold=scores.threshold,
        )
        for place, scores in enumerate(student.scores)
    ]


def _rankings(
    judged: Mapping[str, Judged], rows: Sequence[Mapping[str, Any]]
) -> list[Ranking]:
    """Networks, the best control and random on the windows of labelled entities."""
    control = best_control(
        rows, threshold=ORACLE, level="window", metric="average_precision"
    )
    drawn = {n: judged[n] for n in (*NETWORKS, control, RANDOM) if n in judged and n}
    return [
        Ranking(
            entity=first.entity,
            labels=first.window_labels,
            scores={name: own.scores[i].window_scores for name, own in drawn.items()},
            thresholds={name: own.scores[i].threshold for name, own in drawn.items()},
        )
        for i, first in enumerate(judged[STUDENT].scores)
        if first.window_labels is not None
    ]
