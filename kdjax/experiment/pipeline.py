"""One run: load, prepare, train, calibrate and evaluate, write.

The same call resumes a stopped run: `_run` returns finished results, and
`kdjax.experiment.jobs.resume_job` finds where a network's training continues.
"""

import bisect
import contextlib
import functools
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kdjax.config import Settings, to_json
from kdjax.data.datasets import load_dataset, width
from kdjax.data.prepared import Prepared, channel_notes, prepare
from kdjax.data.raw import about, check_width
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import segments
from kdjax.data.times import seconds_per_row
from kdjax.data.windowing import on_disk
from kdjax.detection.calibration import check_enough, count_windows
from kdjax.detection.thresholds import needed
from kdjax.errors import ConfigError, DataError, counted
from kdjax.evaluation import evaluate
from kdjax.evaluation.evaluate import ModelEvaluation
from kdjax.evaluation.rows import PREVIOUS, usual_model
from kdjax.experiment.assemble import calibration_rules, data_digests
from kdjax.experiment.jobs import architecture
from kdjax.experiment.train import (
    ALL,
    PER_ENTITY,
    baseline_options,
    held_out_models,
    split_groups,
    train_groups,
)
from kdjax.experiment.warm_start import (
    WarmStart,
    load_warm_start,
    previous_calibration,
    reordered,
)
from kdjax.experiment.workdir import (
    check_data,
    check_settings,
    locked,
    read_results,
    settings_of_begun,
)
from kdjax.models import residual
from kdjax.models.autoencoder import count_parameters
from kdjax.models.classifier import SHORTEST
from kdjax.models.residual import NETWORK, ResidualModel
from kdjax.training import hosts
from kdjax.training.components import (
    HeldOut,
    check_length,
    fit_baseline,
    most_numbers,
)
from kdjax.training.sharding import training_mesh

MOST_ROWS = 1_000_000  # largest advised number


def run(
    settings: Settings,
    workdir: str | os.PathLike[str],
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains, calibrates and evaluates; resumes a run that was stopped.

    Several processes (`kdjax.training.hosts`) run it together: they share training
    batches and calibration windows; the first writes and prints, and all return the same.

    Args:
        settings: from `kdjax.config.resolve`.
        workdir: folder of the run, on a file system that all processes share; see
            `kdjax.experiment.workdir` for its content.
        console: shows progress; quiet by default.

    Returns:
        The content of `results.json`.

    >>> import kdjax
    >>> config = kdjax.override(kdjax.get_config(), {"data.name": "smd"})
    >>> results = run(kdjax.resolve(config), "runs/smd")  # doctest: +SKIP
    """
    workdir = Path(workdir)
    console = console if console and hosts.is_first() else Console(quiet=True)
    with hosts.failing_together():
        _check_processes(settings)
        with locked(workdir):
            return _run(settings, workdir, console)


def _run(settings: Settings, workdir: Path, console: Console) -> dict[str, Any]:
    """The run in a locked folder."""
    seconds: dict[str, float] = {}
    given, settings = settings, settings_of_begun(workdir, settings)
    if settings is not given:
        console.print(f"{workdir} was begun with data.scaler=minmax: resuming with it.")
    check_settings(workdir, settings)

    with _timed(seconds, "data"):
        dataset = load_dataset(settings["data"])
        warm_start = None
        if settings["init_from"]:
            channels = dataset.train[0].channels
            warm_start = load_warm_start(settings["init_from"], channels, settings)
            dataset = reordered(dataset, warm_start.detector.channels)
        digests = data_digests(dataset)
        sources = digests | (warm_start.digests if warm_start else {})
        hosts.check_alike("data", json.dumps(sources, sort_keys=True))
        finished = read_results(workdir)
        if finished is not None:
            check_data(workdir, sources)
            console.print(f"{workdir} is finished: nothing to do.")
            return finished
        groups = prepare_groups(dataset, settings)
        entities = tuple(e for group in groups.values() for e in group.entities)
        prepared = next(iter(groups.values()))._replace(entities=entities)
        # After loading: an error in the data must not bind the folder to the settings.
        check_settings(workdir, settings, write=True)
        check_data(workdir, sources)
    names = [entity.name for entity in prepared.entities]
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    console.print(
        f"{prepared.name}: {counted(len(names), 'entity', 'entities')} "
        f"({', '.join(names[:4] + ['…'] * (len(names) > 4))}), {counted(rows, 'train row')}, "
        f"{counted(len(prepared.channels), 'channel')}"
    )

    with _timed(seconds, "training"):
        first = warm_start.params if warm_start else {}
        networks = train_groups(groups, settings, workdir, console, first=first)
        held_out: dict[str, HeldOut] = {name: {} for name in groups}
        every_model = {}
        for name, group in groups.items():
            console.print(f"{name or prepared.name}: fitting baselines")
            every_model[name] = fit_models(
                networks[name], group, settings, held_out[name]
            )

    with _timed(seconds, "evaluation"):
        evaluated, inspections = {}, list[evaluate.Inspection]()
        for name, group in groups.items():
            shown = console
            if name != ALL:  # one line for each group, not for each of its models
                console.print(f"{name}: calibrating and scoring")
                shown = Console(quiet=True)
            models = _evaluate(
                every_model[name], group, settings, shown, warm_start, held_out[name]
            )
            rules = calibration_rules(settings, group)
            inspections += evaluate.inspect_training(
                models[usual_model(models)], group, rules
            )
            evaluated[name] = models
        # A baseline that was left out in one group is left out of all comparisons.
        every = [*next(iter(evaluated.values()))]
        every += [name for name in settings["baselines"] if name not in every]
        common = [n for n in every if all(n in own for own in evaluated.values())]
        evaluated = {
            group: {name: own[name] for name in common}
            for group, own in evaluated.items()
        }
        merged = {
            name: evaluate.merge_evaluations(
                name,
                [models[name] for models in evaluated.values()],
                window=settings["data"]["window"],
                point_adjusted=settings["evaluation"]["point_adjusted"],
            )
            for name in common
        }

    notes = [
        note for series in (*dataset.train, *dataset.test) for note in series.notes
    ]
    if settings["entity_mode"] == PER_ENTITY:
        notes.append(
            f"entity_mode=per_entity: {counted(len(groups), 'teacher')} and as many students, one "
            "per entity; parameters are those of one of them"
        )
    if absent := [name for name in every if name not in common]:
        notes.append(
            f"left out, since their residuals are rounding errors: {', '.join(absent)}"
        )
    notes += channel_notes(prepared)
    notes += evaluate.test_notes(merged[usual_model(merged)], prepared)
    # Importing the plots takes half a second, which must not delay an error.
    from kdjax.experiment.write import write_run

    return hosts.on_first(
        lambda: write_run(
            workdir,
            merged,
            prepared,
            groups=[(name, group, evaluated[name]) for name, group in groups.items()],
            inspections=inspections,
            settings=settings,
            digests=digests,
            seconds=seconds,
            notes=notes,
            warm_start=warm_start.card if warm_start else None,
        )
    )


def prepare_dataset(dataset: Dataset, settings: Settings) -> Prepared:
    """The data set split and scaled."""
    check_width(len(dataset.train[0].channels))

    def todo() -> str:
        found = accepted_changes(dataset, settings)
        return found[:1].upper() + found[1:]

    return _prepared(dataset, settings["data"], todo=todo)


def _prepared(dataset: Dataset, data: Mapping[str, Any], **options: Any) -> Prepared:
    fields = [
        "window",
        "stride",
        "max_gap",
        "validation",
        "calibration",
        "scaler",
        "context",
    ]
    return prepare(dataset, **{field: data[field] for field in fields}, **options)


def accepted_changes(dataset: Dataset, settings: Settings) -> str:
    """Advice for too few windows: changes of settings that suffice, each by itself.

    For rows on disk no change is tried, since each trial reads them.
    """
    data, train = settings["data"], dataset.train
    more = "give more rows, fewer gaps or excluded rows"
    if any(on_disk(series.values) for series in train):
        return f"{more}, or set a smaller data.window"

    def accepts(changes: Mapping[str, Any], of: Dataset = dataset) -> bool:
        changed = {**settings, "data": {**data, **changes}}
        try:
            prepared = _prepared(of, changed["data"])
            check_enough(prepared, calibration_rules(changed, prepared).threshold)
        except (ConfigError, DataError):
            return False
        return True

    def has_rows(rows: int) -> bool:
        values = np.arange(rows, dtype=np.float64)[:, None]
        seconds = data["step_seconds"] or seconds_per_row(train[0].time)
        alone = Dataset("", (Series("", values, ("rows",)),), ())
        return accepts({"context": (), "step_seconds": seconds}, alone)

    least = max(2, data["min_anomalous_points"], settings["detection"]["count"] + 1)
    least = max(least, SHORTEST if has_classifier(settings) else 0)
    shares = [tenth / 10 for tenth in range(1, 7)]
    changes = []
    for name, last in (("window", least), ("stride", 1)):
        lower = [{name: value} for value in range(data[name] - 1, last - 1, -1)]
        place = bisect.bisect(lower, False, key=accepts)
        changes += [f"data.{name}={own[name]}" for own in lower[place : place + 1]]
    for name in ("validation", "calibration"):
        near = sorted((abs(share - data[name]), share) for share in shares)
        found = (share for _, share in near if accepts({name: share}))
        changes += [f"data.{name}={share:g}" for share in itertools.islice(found, 1)]
    whole = segments(train[0].time, len(train[0].values), max_gap=data["max_gap"])
    if len(train) == len(whole) == 1 and train[0].excluded is None:
        rows = range(len(train[0].values) + 1, MOST_ROWS)
        place = bisect.bisect(rows, False, key=has_rows)
        more = f"give {rows[place]:,} rows or more" if place < len(rows) else more
    return f"set {' or '.join(changes)}, or {more}" if changes else more


def has_classifier(settings: Settings) -> bool:
    """Whether any model of a run is a classifier."""
    components = (settings[name]["components"] for name in ("teacher", "student"))
    return any("classifier" in kinds for kinds in (settings["baselines"], *components))


def check_windows(prepared: Prepared, settings: Settings) -> None:
    """Raises ConfigError for too short windows, or too few for calibration."""
    if has_classifier(settings):
        check_length(prepared.window)
    rule = calibration_rules(settings, prepared).threshold
    if count_windows(prepared, rule) < needed(rule):
        train, tests = zip(*((e.train, e.test) for e in prepared.entities), strict=True)
        dataset = Dataset(prepared.name, train, () if tests[0] is None else tests)
        check_enough(prepared, rule, todo=accepted_changes(dataset, settings))


def prepare_groups(dataset: Dataset, settings: Settings) -> dict[str, Prepared]:
    """The data by entity group: one group, or one for each entity."""
    groups = {}
    with about(settings["data"]["path"], settings["data"]["test_path"]):
        for name, group in split_groups(dataset, settings["entity_mode"]).items():
            try:
                groups[name] = prepare_dataset(group, settings)
                check_windows(groups[name], settings)
            except (ConfigError, DataError) as error:
                if name == ALL:
                    raise
                raise type(error)(
                    f"{name}: {error} Or train all entities together "
                    "(entity_mode=shared)."
                ) from error
    return groups


def count_networks(settings: Settings) -> dict[str, int]:
    """Number of parameters of `teacher` and `student`, without training them.

    For baselines among their components it is the maximum.
    """
    data = settings["data"]
    if data["name"]:
        channels = width(data["name"])
    else:
        channels = len(load_dataset(data).train[0].channels)

    def count(name: str, kind: str) -> int:
        if kind == NETWORK:
            return count_parameters(architecture(settings, name, width=channels))
        options = baseline_options(settings)
        return most_numbers(kind, data["window"], channels, **options)

    return {
        name: sum(count(name, kind) for kind in settings[name]["components"])
        for name in ("teacher", "student")
    }


def _check_processes(settings: Settings) -> None:
    """Raises, before any work, for settings that runs or several processes don't support."""
    if settings["threshold"]["budget_scope"] == "fleet":
        raise ConfigError(
            "threshold.budget_scope=fleet is for kdjax fleet, whose machines share a "
            "budget: remove it."
        )
    if hosts.processes() == 1:
        return
    hosts.check_alike("settings", to_json(settings))
    if settings["entity_mode"] == PER_ENTITY:
        raise ConfigError(
            f"entity_mode={PER_ENTITY} trains on one host, got {hosts.processes()} "
            "processes: run it without --coordinator, or use entity_mode=shared."
        )
    training_mesh(settings["train"]["batch_size"])


def fit_models(
    networks: Mapping[str, ResidualModel],
    prepared: Prepared,
    settings: Settings,
    held_out: HeldOut,
) -> dict[str, ResidualModel]:
    """Networks and baselines by name; models that choose their τ are put in `held_out`."""
    # A baseline that is a component of a model is fitted already.
    fitted = {
        kind: residual.component(model, kind)
        for model in networks.values()
        for kind in residual.components_of(model.kind)
    }
    models = dict(networks)
    options = baseline_options(settings)
    for name in settings["baselines"]:
        models[name] = fitted.get(name) or fit_baseline(name, prepared, **options)
    for model in models.values():
        held_out_models(prepared, settings, held_out, model)
    return models


def _evaluate(
    models: dict[str, ResidualModel],
    prepared: Prepared,
    settings: Settings,
    console: Console,
    warm_start: WarmStart | None,
    held_out: HeldOut,
) -> dict[str, ModelEvaluation]:
    """The models, and the detector that training started from."""
    ready = {}
    if warm_start:
        models = {**models, PREVIOUS: warm_start.detector.model}
        ready[PREVIOUS] = previous_calibration(warm_start.detector, prepared)
    return evaluate.evaluate_models(
        models,
        prepared,
        calibration_rules(settings, prepared),
        min_anomalous_points=settings["data"]["min_anomalous_points"],
        console=console,
        ready=ready,
        held_out=functools.partial(held_out_models, prepared, settings, held_out),
        point_adjusted=settings["evaluation"]["point_adjusted"],
        rolling=settings["threshold"]["rolling_share"],
    )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[phase] = round(time.monotonic() - started, 1)
