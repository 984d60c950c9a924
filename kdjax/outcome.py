"""What a run leaves behind: detectors with their cards, results, plot and report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.artifacts import write_text
from kdjax.data.prepared import Entity, Prepared
from kdjax.detection.detector import POOLED, Detector
from kdjax.detection.storage import save_detector
from kdjax.environment import describe_environment
from kdjax.evaluation.plots import Timeline, plot_learning_curve
from kdjax.evaluation.report import write_report
from kdjax.judgement import Judged, test_starts
from kdjax.workdir import RESULTS, read_lines

RESULTS_SCHEMA = 1
# Models whose scores the report draws.
DRAWN = ("teacher", "student")

Settings = Mapping[str, Any]


def write_outcome(
    workdir: Path,
    judged: Mapping[str, Judged],
    prepared: Prepared,
    *,
    settings: Settings,
    digests: Mapping[str, str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Writes all files of a finished run, `results.json` last; returns its content.

    Args:
        workdir: folder of the run.
        judged: from `judge`, by model name.
        prepared: the data.
        settings: of the run.
        digests: SHA-256 of each series.
        seconds: spent in each phase.
    """
    for name, model in judged.items():
        card = _card(name, model, prepared, settings=settings, digests=digests)
        detector = _detector(model, prepared, settings=settings, card=card)
        save_detector(workdir / "detectors" / name, detector)
    results = {
        "schema": RESULTS_SCHEMA,
        "dataset": _dataset(judged, prepared, settings["data"]),
        "rows": [row for model in judged.values() for row in model.rows],
        "entities": [row for model in judged.values() for row in model.entities],
        "environment": {**describe_environment(), "seconds": dict(seconds)},
        "notes": _notes(judged),
        "settings": settings,
    }
    history = read_lines(workdir)
    plot_learning_curve(history, workdir / "learning_curve.png")
    write_report(
        workdir / "report.html",
        results=results,
        history=history,
        timelines=[
            _timeline(judged, entity, i) for i, entity in enumerate(prepared.entities)
        ],
        config=settings,
    )
    write_text(workdir / RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")
    return results


def _detector(
    judged: Judged, prepared: Prepared, *, settings: Settings, card: dict[str, Any]
) -> Detector:
    calibration = judged.calibration
    return Detector(
        model=judged.model,
        channels=prepared.channels,
        window=prepared.window,
        stride=prepared.stride,
        allowed_points=settings["detection"]["count"],
        max_gap=settings["data"]["max_gap"],
        entities=tuple(entity.name for entity in prepared.entities),
        scalers=calibration.scalers,
        normals=calibration.normals,
        thresholds=calibration.thresholds,
        card=card,
    )


def _card(
    name: str,
    judged: Judged,
    prepared: Prepared,
    *,
    settings: Settings,
    digests: Mapping[str, str],
) -> dict[str, Any]:
    thresholds = judged.calibration.thresholds
    names = [*(entity.name for entity in prepared.entities), POOLED]
    return {
        "title": f"{name} of {prepared.name}",
        "model": {
            "name": name,
            "kind": judged.model.kind,
            "parameters": judged.model.parameters,
        },
        "data": {
            "name": prepared.name,
            "channels": list(prepared.channels),
            "sha256": dict(digests),
        },
        "splits": {entity.name: _rows(entity) for entity in prepared.entities},
        "thresholds": {
            name: threshold._asdict()
            for name, threshold in zip(names, thresholds, strict=True)
        },
        "floored_channels": dict(judged.calibration.floored),
        "results": judged.rows,
        "never_tested_on": [
            "entities, sampling rates and channels other than those listed here",
            "data recorded after the test rows: recalibrate when normal behaviour moves",
            "missing values: rows with NaN are refused",
        ],
        "settings": settings,
    }


def _rows(entity: Entity) -> dict[str, int]:
    parts = entity.split._asdict().items()
    return {part: int((spans[:, 1] - spans[:, 0]).sum()) for part, spans in parts} | {
        "test": 0 if entity.test is None else len(entity.test.values)
    }


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


def _timeline(judged: Mapping[str, Judged], entity: Entity, index: int) -> Timeline:
    drawn = {name: judged[name] for name in DRAWN if name in judged}
    return Timeline(
        entity=entity.name,
        time=None if entity.test is None else entity.test.time,
        labels=None if entity.test is None else entity.test.labels,
        scores={name: model.scores[index].scores for name, model in drawn.items()},
        thresholds={
            name: model.scores[index].threshold for name, model in drawn.items()
        },
    )
