"""The phases of one run: data, networks, calibration, judgement, outcome."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kdjax.data.benchmarks import load_benchmark, width
from kdjax.data.files import load_files
from kdjax.data.prepared import Prepared, fit_rows, prepare
from kdjax.data.series import Dataset
from kdjax.detection.calibration import Rules, check_enough
from kdjax.distillation import architecture, train_networks
from kdjax.judgement import judge
from kdjax.models.autoencoder import count_parameters
from kdjax.models.residual import ResidualModel, fit_pca
from kdjax.outcome import write_outcome
from kdjax.workdir import check_data, claim, locked, read_results

Settings = Mapping[str, Any]


def run(
    settings: Settings,
    workdir: str | os.PathLike[str],
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains, calibrates and judges; goes on where a killed run stopped.

    Args:
        settings: from `kdjax.config.resolve`.
        workdir: folder of the run; see `kdjax.workdir` for what it holds.
        console: where to show progress; quiet by default.

    Returns:
        The content of `results.json`.
    """
    workdir = Path(workdir)
    console = console or Console(quiet=True)
    seconds: dict[str, float] = {}
    with locked(workdir):
        claim(workdir, settings)
        with _timed(seconds, "data"):
            dataset = load_dataset(settings["data"])
            digests = data_digests(dataset)
            check_data(workdir, digests)
            finished = read_results(workdir)
            if finished is not None:
                console.print(f"{workdir} is finished: nothing to do.")
                return finished
            prepared = prepare_dataset(dataset, settings)
        console.print(_summary(prepared))
        with _timed(seconds, "training"):
            networks = train_networks(prepared, settings, workdir, console)
        with _timed(seconds, "judgement"):
            models = networks | _controls(prepared, settings)
            judged = judge(
                models,
                prepared,
                calibration_rules(settings),
                min_anomalous_points=settings["data"]["min_anomalous_points"],
                method=settings["threshold"]["method"],
                console=console,
            )
        return write_outcome(
            workdir,
            judged,
            prepared,
            settings=settings,
            digests=digests,
            seconds=seconds,
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
    )


def prepare_dataset(dataset: Dataset, settings: Settings) -> Prepared:
    """The data set split, scaled, and found large enough for the wanted rate."""
    data = settings["data"]
    fields = ("window", "stride", "max_gap", "validation", "calibration", "scaler")
    prepared = prepare(dataset, **{field: data[field] for field in fields})
    check_enough(prepared, false_alarm_rate=settings["threshold"]["false_alarm_rate"])
    return prepared


def calibration_rules(settings: Settings) -> Rules:
    """Settings of calibration."""
    detection = settings["detection"]
    fields = ("floor", "ridge", "shrinkage", "scope", "batch_size")
    return Rules(
        allowed_points=detection["count"],
        false_alarm_rate=settings["threshold"]["false_alarm_rate"],
        **{field: detection[field] for field in fields},
    )


def data_digests(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of each series' channels, values, time and labels."""
    digests = {}
    for part in ("train", "test"):
        for series in getattr(dataset, part):
            digest = hashlib.sha256(repr(series.channels).encode())
            for array in (series.values, series.time, series.labels):
                if array is not None:
                    digest.update(np.ascontiguousarray(array).tobytes())
            digests[f"{part}/{series.entity}"] = digest.hexdigest()
    return digests


def _controls(prepared: Prepared, settings: Settings) -> dict[str, ResidualModel]:
    params = {"pca": lambda: fit_pca(fit_rows(prepared))}
    return {
        name: ResidualModel(name, params.get(name, dict)())
        for name in settings["controls"]
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
    """Number of parameters of `teacher` and `student`, without training them."""
    data = settings["data"]
    if data["name"]:
        channels = width(data["name"])
    else:
        channels = len(load_dataset(data).train[0].channels)
    return {
        name: count_parameters(architecture(settings, name, width=channels))
        for name in ("teacher", "student")
    }
