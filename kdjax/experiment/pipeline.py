"""The phases of one run: data, networks, calibration, judgement, outcome."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from kdjax.config import to_json
from kdjax.data.datasets import load_benchmark, width
from kdjax.data.prepared import Prepared, channel_notes, prepare
from kdjax.data.raw import about, check_width
from kdjax.data.readers import load_files, match_channels
from kdjax.data.series import Dataset
from kdjax.detection.calibration import check_enough
from kdjax.errors import ConfigError, DataError
from kdjax.evaluation.evaluate import ModelEvaluation, evaluate_models
from kdjax.evaluation.inspection import inspect_training, test_notes
from kdjax.experiment.assemble import calibration_rules, data_digests
from kdjax.experiment.groups import (
    ALL,
    PER_ENTITY,
    group_name,
    merge_evaluations,
    merge_prepared,
    size_note,
    split_groups,
)
from kdjax.experiment.jobs import architecture
from kdjax.experiment.train import train_networks, train_pairs
from kdjax.experiment.warm_start import (
    PREVIOUS,
    WarmStart,
    load_warm_start,
    previous_calibration,
)
from kdjax.experiment.workdir import (
    check_data,
    check_settings,
    claim,
    locked,
    read_results,
)
from kdjax.experiment.write import write_run
from kdjax.models.autoencoder import count_parameters
from kdjax.models.model import Params
from kdjax.models.residual import (
    NETWORK,
    ResidualModel,
    component,
    components_of,
    count_baseline,
    fit_baseline,
)
from kdjax.training import hosts
from kdjax.training.sharding import training_mesh

Settings = Mapping[str, Any]


def run(
    settings: Settings,
    workdir: str | os.PathLike[str],
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains, calibrates and judges; goes on where a killed run stopped.

    Several processes (`kdjax.training.hosts`) run it together: they share each training batch
    and the calibration windows; the first writes and shows, and all return the same.

    Args:
        settings: from `kdjax.config.resolve`.
        workdir: folder of the run, seen by all; see `kdjax.experiment.workdir` for what it holds.
        console: where to show progress; quiet by default.

    Returns:
        The content of `results.json`.
    """
    workdir = Path(workdir)
    console = console if console and hosts.is_first() else Console(quiet=True)
    seconds: dict[str, float] = {}
    with hosts.failing_together():
        _check_processes(settings)
        with locked(workdir):
            return _run(settings, workdir, console, seconds)


def _run(
    settings: Settings, workdir: Path, console: Console, seconds: dict[str, float]
) -> dict[str, Any]:
    """The run in a folder that nobody else writes to."""
    check_settings(workdir, settings)
    with _timed(seconds, "data"):
        dataset = load_dataset(settings["data"])
        warm_start = _origin(dataset, settings)
        if warm_start:
            dataset = _ordered(dataset, warm_start.detector.channels)
        digests = data_digests(dataset)
        everything = digests | _origin_digests(warm_start)
        hosts.check_alike("data", json.dumps(everything, sort_keys=True))
        finished = read_results(workdir)
        if finished is not None:
            check_data(workdir, everything)
            console.print(f"{workdir} is finished: nothing to do.")
            return finished
        parts = prepare_parts(dataset, settings)
        prepared = merge_prepared([*parts.values()])
        # Only now: a fault in the data must not bind the folder to the settings.
        claim(workdir, settings)
        check_data(workdir, everything)
    console.print(_summary(prepared))
    with _timed(seconds, "training"):
        networks = _networks(
            parts, settings, workdir, console, warm_start.params if warm_start else {}
        )
    with _timed(seconds, "judgement"):
        evaluated = {}
        for component, own in parts.items():
            shown = console
            if component != ALL:
                # A line a part, and not one for each of its models.
                console.print(f"{component}: models calibrate and score")
                shown = Console(quiet=True)
            evaluated[component] = _judge(
                networks[component], own, settings, shown, warm_start
            )
        together = _join(evaluated, settings)
        inspections = [
            inspection
            for component, own in parts.items()
            for inspection in inspect_training(
                evaluated[component]["student"], own, calibration_rules(settings, own)
            )
        ]
    return hosts.on_first(
        lambda: write_run(
            workdir,
            together,
            prepared,
            parts=[
                (component, own, evaluated[component])
                for component, own in parts.items()
            ],
            inspections=inspections,
            settings=settings,
            digests=digests,
            seconds=seconds,
            notes=[
                *_reading_notes(dataset),
                *size_note(parts),
                *channel_notes(prepared),
                *test_notes(together["student"], prepared),
            ],
            warm_start=warm_start.card if warm_start else None,
        )
    )


def load_dataset(data: Mapping[str, Any]) -> Dataset:
    """The data set that the `data` settings name."""
    if data["name"]:
        return load_benchmark(
            data["name"], root=data["root"], entities=tuple(data["entities"])
        )
    return load_files(
        data["path"],
        test_path=data["test_path"],
        time_column=data["time_column"],
        entity_column=data["entity_column"],
        label_column=data["label_column"],
        missing=data["missing"],
        order=data["order"],
        duplicates=data["duplicates"],
        exclude=data["exclude"],
        memory_bytes=data["memory_bytes"],
    )


def prepare_dataset(dataset: Dataset, settings: Settings) -> Prepared:
    """The data set split, scaled, and found large enough for the wanted rate."""
    data = settings["data"]
    fields = ("window", "stride", "max_gap", "validation", "calibration", "scaler")
    check_width(len(dataset.train[0].channels))
    prepared = prepare(dataset, **{field: data[field] for field in fields})
    check_enough(prepared, calibration_rules(settings, prepared).threshold)
    return prepared


def prepare_parts(dataset: Dataset, settings: Settings) -> dict[str, Prepared]:
    """What `entity_mode` makes of the data set: one part, or one for each entity."""
    parts = {}
    with about(settings["data"]["path"], settings["data"]["test_path"]):
        for name, own in split_groups(dataset, settings["entity_mode"]).items():
            try:
                parts[name] = prepare_dataset(own, settings)
            except (ConfigError, DataError) as error:
                if name == ALL:
                    raise
                raise type(error)(
                    f"{name}: {error} Or train all entities together "
                    "(entity_mode=shared)."
                ) from error
    return parts


def _check_processes(settings: Settings) -> None:
    """Refuses, before any work, what several processes can't do together."""
    if hosts.processes() == 1:
        return
    hosts.check_alike("settings", to_json(settings))
    if settings["entity_mode"] == PER_ENTITY:
        raise ConfigError(
            f"entity_mode={PER_ENTITY} trains on one host, got {hosts.processes()} "
            "processes: run it without --coordinator, or use entity_mode=shared."
        )
    training_mesh(settings["train"]["batch_size"])


def _networks(
    parts: Mapping[str, Prepared],
    settings: Settings,
    workdir: Path,
    console: Console,
    first: Mapping[str, Params],
) -> Mapping[str, dict[str, ResidualModel]]:
    """The trained networks of each part."""
    if list(parts) == [ALL]:
        return {
            ALL: train_networks(parts[ALL], settings, workdir, console, first=first)
        }
    return train_pairs(
        parts, settings, workdir, console, first=first, name_of=group_name
    )


def _judge(
    networks: Mapping[str, ResidualModel],
    prepared: Prepared,
    settings: Settings,
    console: Console,
    warm_start: WarmStart | None,
) -> dict[str, ModelEvaluation]:
    """Networks and baselines, and the detector that training started from."""
    models = {**networks, **_baselines(networks, prepared, settings)}
    ready = {}
    if warm_start:
        models[PREVIOUS] = warm_start.detector.model
        ready[PREVIOUS] = previous_calibration(warm_start.detector, prepared)
    return evaluate_models(
        models,
        prepared,
        calibration_rules(settings, prepared),
        min_anomalous_points=settings["data"]["min_anomalous_points"],
        console=console,
        ready=ready,
        point_adjusted=settings["evaluation"]["point_adjusted"],
        rolling=settings["threshold"]["rolling_share"],
    )


def _join(
    evaluated: Mapping[str, Mapping[str, ModelEvaluation]], settings: Settings
) -> dict[str, ModelEvaluation]:
    """Each model over all parts."""
    first = next(iter(evaluated.values()))
    return {
        name: merge_evaluations(
            name,
            [models[name] for models in evaluated.values()],
            window=settings["data"]["window"],
            point_adjusted=settings["evaluation"]["point_adjusted"],
        )
        for name in first
    }


def _origin(dataset: Dataset, settings: Settings) -> WarmStart | None:
    """The detector that training starts from, if the settings name one."""
    if not settings["init_from"]:
        return None
    channels = dataset.train[0].channels
    return load_warm_start(settings["init_from"], channels, settings)


def _ordered(dataset: Dataset, channels: tuple[str, ...]) -> Dataset:
    """The data set with its channels in another order."""
    train, test = (
        tuple(match_channels(series, channels) for series in component)
        for component in (dataset.train, dataset.test)
    )
    return dataset._replace(train=train, test=test)


def _origin_digests(warm_start: WarmStart | None) -> dict[str, str]:
    if warm_start is None:
        return {}
    return {f"init_from/{name}": d for name, d in warm_start.card["sha256"].items()}


def _reading_notes(dataset: Dataset) -> list[str]:
    return [note for series in (*dataset.train, *dataset.test) for note in series.notes]


def _baselines(
    models: Mapping[str, ResidualModel], prepared: Prepared, settings: Settings
) -> dict[str, ResidualModel]:
    """The baselines; one that is part of a model was fitted with it."""
    known = {
        kind: component(model, kind)
        for model in models.values()
        for kind in components_of(model.kind)
    }
    return {
        name: known[name] if name in known else fit_baseline(name, prepared)
        for name in settings["baselines"]
    }


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[phase] = round(time.monotonic() - started, 1)


def _summary(prepared: Prepared) -> str:
    names = [entity.name for entity in prepared.entities]
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    return (
        f"{prepared.name}: {len(names)} entities ({shown}), {rows:,} train rows, "
        f"{len(prepared.channels)} channels"
    )


def count_networks(settings: Settings) -> dict[str, int]:
    """Number of parameters of `teacher` and `student`, without training them.

    Of baselines among their parts it is the most that they can have.
    """
    data = settings["data"]
    if data["name"]:
        channels = width(data["name"])
    else:
        channels = len(load_dataset(data).train[0].channels)

    def count(name: str, kind: str) -> int:
        if kind == NETWORK:
            return count_parameters(architecture(settings, name, width=channels))
        return count_baseline(kind, window=data["window"], width=channels)

    return {
        name: sum(count(name, kind) for kind in settings[name]["components"])
        for name in ("teacher", "student")
    }
