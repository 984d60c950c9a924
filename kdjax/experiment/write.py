"""Files of a finished run: detectors with their cards, results, plots and reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax.config import Settings
from kdjax.data.prepared import Entity, Prepared
from kdjax.data.times import axis_times, format_times, seconds_per_row
from kdjax.data.windowing import window_labels
from kdjax.detection.alarming import (
    AlarmMeasures,
    AlarmRule,
    alarm_measures,
    latest_scores,
    row_alarms,
)
from kdjax.detection.detector import Detector, entity_index
from kdjax.detection.storage import save_detector
from kdjax.detection.tables import events_of_all_kinds, explain_rows
from kdjax.evaluation.evaluate import Inspection, ModelEvaluation, test_starts
from kdjax.evaluation.intervals import best_baseline, interval_rows, paired_rows
from kdjax.evaluation.plots import (
    MAX_BINS,
    Heat,
    Timeline,
    learning_curve_png,
    row_bins,
)
from kdjax.evaluation.report import DRAWN_ENTITIES, Decided, write_report, write_texts
from kdjax.evaluation.rows import (
    NETWORKS,
    ORACLE,
    PREVIOUS,
    RANDOM,
    STUDENT,
    TEACHER,
    EntityScores,
    usual_model,
)
from kdjax.evaluation.summary import agreement, expected_words, recommend, unfit_models
from kdjax.experiment.assemble import make_detector, settings_alarm_rule
from kdjax.experiment.train import group_name
from kdjax.experiment.workdir import RESULTS_SCHEMA, read_lines, write_results
from kdjax.export.costs import detector_costs
from kdjax.io.environment import describe_environment
from kdjax.io.files import atomic_path
from kdjax.metrics.checks import runs
from kdjax.models.residual import gives_scores

DRAWN = (TEACHER, STUDENT)  # models whose scores the report draws
HEAT_MAPS = 16  # entities whose channels are drawn; their test rows are scored again
LEAST_BINS = 250  # of one of several entities whose channels are drawn


def derived_results(
    results: Mapping[str, Any],
    evaluated: Mapping[str, ModelEvaluation],
    detectors: Mapping[str, Detector],
) -> dict[str, Any]:
    """Entries of `results.json` that follow from the others, `results`.

    `evaluated` are of all entities; `detectors`, one of each model, are timed. Agreement
    is Cohen's kappa of a model's alarms with the teacher's, None if undefined.
    """
    alarms = {
        name: np.concatenate([s.window_scores > s.threshold for s in evaluation.scores])
        for name, evaluation in evaluated.items()
    }
    kappas = {
        name: agreement(raised, alarms[TEACHER]) if len(raised) else None
        for name, raised in alarms.items()
    }
    derived = {
        "intervals": interval_rows(results["entities"]),
        "paired": paired_rows(results["entities"]),
        "costs": {name: detector_costs(found) for name, found in detectors.items()},
        "agreement": kappas,
        "unfit": unfit_models(
            results["rates"],
            {
                name: [own.window_scores for own in evaluation.scores]
                for name, evaluation in evaluated.items()
            },
        ),
    }
    return derived | {"recommendation": recommend({**results, **derived})}


def write_run(
    workdir: Path,
    evaluated: Mapping[str, ModelEvaluation],
    prepared: Prepared,
    *,
    groups: Sequence[tuple[str, Prepared, Mapping[str, ModelEvaluation]]],
    inspections: Sequence[Inspection],
    settings: Settings,
    digests: Mapping[str, str],
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
    warm_start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes all files of a finished run, `results.json` last; returns its content.

    `evaluated` and `prepared` are of all entities; `groups` has name, data and models of
    each entity group, whose models become detectors; `warm_start` goes into their cards.
    """
    detectors: dict[str, dict[str, Detector]] = {}  # by model and entity
    examples: dict[str, Detector] = {}
    for group, data, models in groups:
        names = {entity.name for entity in data.entities}
        # Keys are train/ENTITY and test/ENTITY.
        of_group = {k: v for k, v in digests.items() if k.split("/", 1)[1] in names}
        for name, model in models.items():
            detector = make_detector(
                name,
                model.model,
                model.calibration,
                data,
                settings=settings,
                digests=of_group,
                results=model.rows,
                warm_start=warm_start if name in NETWORKS else None,
            )
            of_entities = dict.fromkeys(detector.entities, detector)
            detectors.setdefault(name, {}).update(of_entities)
            if name != PREVIOUS:  # it is saved already
                save_detector(workdir / "detectors" / group_name(name, group), detector)
                examples.setdefault(name, detector)
    usual = usual_model(evaluated)
    # Notes of calibration once if models share them.
    of_models = dict.fromkeys(
        note
        for name in evaluated
        for _, _, models in groups
        for note in models[name].calibration.notes
    )
    results: dict[str, Any] = {
        "schema": RESULTS_SCHEMA,
        "dataset": _dataset(evaluated, prepared, settings["data"]),
        "rows": [row for model in evaluated.values() for row in model.rows],
        "entities": [row for model in evaluated.values() for row in model.entities],
        "rates": [rate for model in evaluated.values() for rate in model.rates],
        "worst_training_windows": [
            {"model": usual, **window} for one in inspections for window in one.worst
        ],
        "data": {"sha256": dict(digests)},
        "environment": {**describe_environment(), "seconds": dict(seconds)},
        "notes": [*notes, *of_models],
        "settings": settings,
    }
    results |= derived_results(results, evaluated, examples)
    history = read_lines(workdir)
    calibration = [s for *_, m in groups for s in m[usual].calibration.scores]
    rule = settings_alarm_rule(settings)
    with atomic_path(workdir / "learning_curve.png") as temporary:
        temporary.write_bytes(learning_curve_png(history))
    best = results["recommendation"]["model"] or usual
    drawn = [n for n in dict.fromkeys([*DRAWN, best]) if n in evaluated]
    if prepared.entities[0].test is None:
        best, drawn = usual, [usual]  # the model that scores training rows
    timelines = [
        _timeline(entity, place, drawn, evaluated, prepared, inspections, rule)
        for place, entity in enumerate(prepared.entities)
    ]
    found = [
        _events(timeline, entity, own, prepared, detectors[best][entity.name], best)
        for timeline, entity, own in zip(
            timelines, prepared.entities, evaluated[best].scores, strict=True
        )
    ]
    write_report(
        workdir / "report.html",
        results=results,
        decided=Decided(
            best,
            expected_words(results, best),
            _channels(best, timelines, prepared, detectors[best]),
            pd.concat(found, ignore_index=True),
            _measures(found, prepared, settings["data"]["step_seconds"]),
        ),
        history=history,
        timelines=timelines[:DRAWN_ENTITIES],
        distributions=list(zip(evaluated[usual].scores, calibration, strict=True)),
        rankings=_rankings(evaluated, results["entities"]),
    )
    write_texts(workdir, results)
    write_results(workdir, results)
    return results


def _dataset(
    evaluated: Mapping[str, ModelEvaluation], prepared: Prepared, data: Settings
) -> dict[str, Any]:
    scores = next(iter(evaluated.values())).scores
    labels = [e.window_labels for e in scores if e.window_labels is not None]
    tests = [entity.test for entity in prepared.entities]
    steps = [*{seconds_per_row(entity.train.time) for entity in prepared.entities}]
    return {
        "name": prepared.name,
        "entities": [entity.name for entity in prepared.entities],
        "window": prepared.window,
        # 0: not known, or not the same for all.
        "step_seconds": data["step_seconds"] or (0.0 if steps[1:] else steps[0]),
        "stride": prepared.stride,
        "min_anomalous_points": data["min_anomalous_points"],
        "train_rows": sum(len(e.train.values) for e in prepared.entities),
        "test_rows": sum(len(test.values) for test in tests if test is not None),
        "windows": sum(
            len(test_starts(prepared, entity)) for entity in prepared.entities
        ),
        "positive_windows": int(np.sum(np.concatenate(labels))) if labels else None,
    }


def _timeline(
    entity: Entity,
    place: int,
    names: Sequence[str],
    evaluated: Mapping[str, ModelEvaluation],
    prepared: Prepared,
    inspections: Sequence[Inspection],
    rule: AlarmRule,
) -> Timeline:
    """The test rows of an entity under some models; training rows if there are none."""
    shown = entity.test or entity.train
    time, clock = axis_times(shown.time, shown.form)
    found = {name: evaluated[name].scores[place] for name in names}
    scores = dict.fromkeys(names, inspections[place].scores)
    if entity.test is not None:
        starts, spans = test_starts(prepared, entity), entity.test_spans
        sizes = {"window": prepared.window, "rows": len(shown.values)}
        scores = {
            name: latest_scores(own.window_scores, starts, spans, **sizes)
            for name, own in found.items()
        }
    taus = {name: own.threshold for name, own in found.items()}
    alarms = {name: row_alarms(scores[name], taus[name], rule) for name in names}
    return Timeline(
        entity=entity.name,
        time=time,
        labels=None if entity.test is None else shown.labels,
        scores=scores,
        thresholds=taus,
        alarms={name: np.stack(runs(own), axis=1) for name, own in alarms.items()},
        what="Training window scores" if entity.test is None else "Window scores",
        clock=clock,
    )


def _channels(
    model: str,
    timelines: Sequence[Timeline],
    prepared: Prepared,
    detectors: Mapping[str, Detector],
) -> list[Timeline]:
    """One model's timelines of the first entities, with signals and contributions."""
    drawn, count = [], min(len(timelines), HEAT_MAPS)
    for timeline, entity in zip(timelines[:count], prepared.entities, strict=False):
        values, alarms = (entity.test or entity.train).values, timeline.alarms[model]
        starts = row_bins(len(values), alarms, most=max(MAX_BINS // count, LEAST_BINS))
        heat = None
        if entity.test is not None:
            detector, own = detectors[entity.name], test_starts(prepared, entity)
            index = entity_index(detector, entity.name)
            if gives_scores(detector.model.kind):  # one pass per channel and window
                stride = prepared.stride
                own = fewer_windows(own, alarms, window=detector.window, stride=stride)
            bins = np.searchsorted(starts, np.arange(len(values)), side="right") - 1
            largest = contribution_bins(detector, index, values, own, bins)
            heat = Heat(model, detector.channels, largest, timeline.thresholds[model])
        drawn.append(
            timeline._replace(
                scores={model: timeline.scores[model]},
                thresholds={model: timeline.thresholds[model]},
                alarms={model: alarms},
                starts=starts,
                heat=heat,
                signals=values,
                channels=prepared.channels,
            )
        )
    return drawn


def _events(
    timeline: Timeline,
    entity: Entity,
    own: EntityScores,
    prepared: Prepared,
    detector: Detector,
    model: str,
) -> pd.DataFrame:
    """The events of all kinds of one model in the test rows of an entity; see `Decided`."""
    test = entity.test
    if test is None:
        return pd.DataFrame()
    index, windows = entity_index(detector, entity.name), test_starts(prepared, entity)
    table = pd.DataFrame({"score": own.scores, "window_score": timeline.scores[model]})
    table["alarm"] = False
    for first, stop in timeline.alarms[model]:
        table.loc[first : stop - 1, "alarm"] = True
    table["time"] = (
        table.index if test.time is None else format_times(test.time, test.form)
    )
    found = events_of_all_kinds(detector, index, test, table, lambda: (windows, 0))
    return found.astype(object)


def _measures(
    found: Sequence[pd.DataFrame], prepared: Prepared, seconds: float
) -> AlarmMeasures | None:
    """Measures of the events of all entities together; of rows where one has no dates."""
    tests = [entity.test for entity in prepared.entities if entity.test is not None]
    if not tests:
        return None
    clocks: list[Any] = [test.time for test in tests]
    if not all(map(seconds_per_row, clocks)):
        clocks = [np.arange(len(test.values)) for test in tests]
    timed = [
        own.assign(
            start=clock[own["first"].to_numpy(int)],
            end=clock[own["stop"].to_numpy(int) - 1],
        )
        for own, clock in zip(found, clocks, strict=True)
    ]
    ends = [clock[place] for clock in clocks for place in (0, -1)]
    return alarm_measures(pd.concat(timed), span=ends, seconds=seconds)


def fewer_windows(
    starts: np.ndarray, spans: np.ndarray, *, window: int, stride: int
) -> np.ndarray:
    """First rows of enough windows to draw, of those at `starts` `[M]`, ascending.

    All that have a row of the alarms at spans `[K, 2]`, or of the `window` rows before one,
    and of the others so many that each row is in two, near gaps in one.

    >>> fewer_windows(np.arange(0, 70, 10), np.empty((0, 2), int), window=40, stride=10)
    array([ 0, 20, 40, 60])
    """
    inside = np.zeros(int(starts.max(initial=0)) + window, bool)
    for first, stop in spans:
        inside[max(first - window, 0) : stop] = True
    kept = window_labels(inside, starts, window=window)
    kept |= np.arange(len(starts)) % max(1, window // stride // 2) == 0
    ends = np.diff(starts, prepend=-np.inf, append=np.inf) != stride
    return starts[kept | ends[1:] | ends[:-1]]


def contribution_bins(
    detector: Detector,
    index: int,
    values: np.ndarray,
    starts: np.ndarray,
    bins: np.ndarray,
    *,
    block: int = 65_536,
) -> np.ndarray:
    """The largest contribution of each channel among the rows of each bin, `[K, D]`.

    A row's contributions are means over the windows that cover it, as its score is; NaN
    in bins without a row that has a score. `values` `[N, D]` may be a memory map;
    `starts` `[M]` are first rows of windows; `bins` `[N]` are from 0 to K − 1; `block`
    rows are in memory at once.
    """
    largest = np.full((int(bins.max(initial=-1)) + 1, len(detector.channels)), np.nan)
    reach = detector.window - 1
    for first in range(0, len(values), block):
        last, begin = min(first + block, len(values)), max(first - reach, 0)
        own = starts[(starts >= first - reach) & (starts < last)] - begin
        near, rows = values[begin : last + reach], np.arange(first, last)
        parts = explain_rows(detector, index, near, own, rows - begin)
        np.fmax.at(largest, bins[rows], parts)
    return largest


def _rankings(
    evaluated: Mapping[str, ModelEvaluation], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, EntityScores]]:
    """Networks, the best baseline and random on the windows of labelled entities."""
    baseline = best_baseline(
        rows, threshold=ORACLE, level="window", metric="average_precision"
    )
    drawn = [n for n in (*NETWORKS, baseline, RANDOM) if n in evaluated and n]
    return [
        {name: evaluated[name].scores[place] for name in drawn}
        for place, own in enumerate(evaluated[STUDENT].scores)
        if own.window_labels is not None
    ]
