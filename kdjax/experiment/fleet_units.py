"""What workers do for a fleet: fit the machines of a unit, and set τ of saved detectors.

The students of a unit are one population; then each machine gets its own scaler, Gaussian
and τ. Its record, written last, holds what its detector was made from. Machines with too
few rows for their own values have those of the fleet's student.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from kdjax.config import Settings
from kdjax.data.partitions import Machine, read_machine
from kdjax.data.prepared import Prepared
from kdjax.data.readers import match_channels
from kdjax.data.schema import Reading
from kdjax.data.series import Dataset, Series
from kdjax.data.times import seconds_per_row
from kdjax.detection import fleet_budget
from kdjax.detection.alarming import DAY, count_events
from kdjax.detection.calibration import rule_for
from kdjax.detection.detector import Detector
from kdjax.detection.fleet import (
    CATALOGUE_SCHEMA,
    DETECTORS,
    FAILED,
    MACHINES,
    READY,
    SHARED,
    STUDENT,
    quoted,
)
from kdjax.detection.storage import load_detector, save_detector
from kdjax.errors import ConfigError, DataError, KdjaxError, counted, one_line
from kdjax.evaluation import evaluate, rows
from kdjax.evaluation.evaluate import ModelEvaluation
from kdjax.experiment import jobs, train
from kdjax.experiment.assemble import calibration_rules, data_digests, make_detector
from kdjax.experiment.pipeline import check_windows, prepare_dataset
from kdjax.experiment.populations import train_in_memory
from kdjax.experiment.recalibrate import with_thresholds
from kdjax.experiment.train import PER_ENTITY, Task, make_groups
from kdjax.io.files import MANIFEST, kdjax_version, sha256, write_text
from kdjax.io.stores import Mirror, is_remote, mirror, put_folder
from kdjax.models.residual import ResidualModel

QUIET = Console(quiet=True)
# Faults of one machine's rows or files, which leave the others as they are.
FAULTS = (KdjaxError, OSError, MemoryError)


class Target(NamedTuple):
    """A fleet's folder, maybe in an object store."""

    path: str | os.PathLike[str]
    store: Mirror

    @property
    def folder(self) -> Path:
        """Its mirror where it is in an object store."""
        return self.store.place(self.path)

    def get(self, *names: str) -> None:
        """Copies files and folders in, as far as they are there."""
        for name in names:
            place = self.store.look(f"{self.path}/{name}")
            known = [own for own in self.store.known if own.is_relative_to(place)]
            self.store.get(*known)

    def put(self, *names: str) -> None:
        """Copies files and folders out."""
        if is_remote(self.path):
            for name in names:
                place = self.folder / name
                if place.is_dir():
                    put_folder(place, f"{self.path}/{name}")
                elif place.exists():
                    self.store.put(place)


def deciding(settings: Settings) -> Settings:
    """The settings without the paths of rows, which may move and grow."""
    data = {k: v for k, v in settings["data"].items() if k not in ("path", "test_path")}
    return {**settings, "data": data}


@contextlib.contextmanager
def copied(machine: Machine, store: Mirror) -> Iterator[Machine]:
    """The machine with its files on the local disk for the time of the block."""
    remote = [path for path in machine.paths if is_remote(path)]
    try:
        yield machine._replace(
            paths=tuple(str(store.copied(path)) for path in machine.paths)
            if remote
            else machine.paths
        )
    finally:
        store.drop(*map(store.place, remote))


def text_digest(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def reading_options(data: Settings) -> dict[str, Any]:
    """Options of `read_machine`."""
    if data["exclude"]:
        raise ConfigError(
            "data.exclude is not for a fleet: leave such rows out of the files."
        )
    options = {k: data[k] for k in Reading._fields if k in data}
    options["fill_limit"] = data["fill_limit"] or data["window"]
    # As in `run`, the rows to learn from may lack labels, if others have them.
    return options | {"may_lack": (data["label_column"],) if data["test_path"] else ()}


def fit_unit(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fits the machines of a unit; a row of the catalogue for each.

    `data` is plain, see `kdjax.io.executors`: output, settings, channels, whether there
    is a `shared` detector, and fields of `Machine`.
    """
    paths = [path for fields in data["machines"] for path in Machine(*fields).paths]
    with mirror(data["output"], *paths) as store:
        target = Target(data["output"], store)
        if data["shared"]:
            target.get(SHARED)
        return [*_fit_unit(data, target).values()]


def _fit_unit(data: Mapping[str, Any], target: Target) -> dict[str, dict[str, Any]]:
    """Rows by machine."""
    output, settings, store = target.folder, data["settings"], target.store
    machines = [Machine(*fields) for fields in data["machines"]]
    tests = {own.entity: own for own in (Machine(*fields) for fields in data["tests"])}
    key = _key(output, settings, data)
    found = dict[str, dict[str, Any]]()
    ready = dict[str, tuple[Prepared, Dataset, float]]()
    inputs: dict[str, str] = {}
    for machine in machines:
        started, name = time.monotonic(), machine.entity
        try:
            with copied(machine, store) as own:
                inputs[name] = _input_digest(own, tests.get(name))
                target.get(record_name(name), f"{detector_name(name)}/{MANIFEST}")
                if row := _verified(output, name, key, inputs[name]):
                    found[name] = row
                    continue
                series = _read(own, data["channels"], settings)
            test = tests.get(name) and _read(tests[name], data["channels"], settings)
            prepared = _own_or_few(series, test, settings)
        except FAULTS as error:
            found[name] = failed_row(name, 0, one_line(error))
            continue
        if isinstance(prepared, str):
            row = _row(name, len(series.values), reason=prepared, detector=STUDENT)
            found[name] = _record(target, row, key, inputs[name])
            continue
        dataset = Dataset(name, (series,), () if test is None else (test,))
        ready[name] = prepared, dataset, time.monotonic() - started
    if not ready:
        return found
    started = time.monotonic()
    try:
        models = _train({name: own[0] for name, own in ready.items()}, output, settings)
    except FAULTS as error:
        return found | {name: failed_row(name, 0, one_line(error)) for name in ready}
    share = (time.monotonic() - started) / len(ready)
    for name, (prepared, dataset, spent) in ready.items():
        started = time.monotonic()
        count = len(dataset.train[0].values)
        try:
            model = models[name]
            if isinstance(model, str):
                raise DataError(model)
            row = _finish(output, name, model, prepared, dataset, settings)
            row["seconds"] = share + spent + time.monotonic() - started
            found[name] = _record(target, row, key, inputs[name])
        except FAULTS as error:
            found[name] = failed_row(name, count, one_line(error))
    return found


def record_name(name: str) -> str:
    """A machine's record below the folder of a fleet."""
    return f"{MACHINES}/{quoted(name)}.json"


def detector_name(name: str) -> str:
    """The folder of a machine's detector below that of a fleet."""
    return f"{DETECTORS}/{quoted(name)}"


def _key(output: Path, settings: Settings, data: Mapping[str, Any]) -> str:
    """Digest of what all machines are made from besides their rows."""
    shared = ""
    if data["shared"]:
        shared = sha256(output / STUDENT / "arrays.npz")  # τ may change
    facts = [kdjax_version(), deciding(settings), data["channels"], shared]
    return text_digest(json.dumps(facts, sort_keys=True))


def _input_digest(*machines: Machine | None) -> str:
    parts = []
    for machine in machines:
        if machine is None or machine.fault:
            continue
        parts += [sha256(path) for path in machine.paths]
        if machine.frame is not None:
            hashed = pd.util.hash_pandas_object(machine.frame, index=False)
            names = "\0".join(map(str, machine.frame.columns))
            parts.append(hashlib.sha256(names.encode() + hashed.to_numpy().tobytes()).hexdigest())  # fmt: skip
    return text_digest("\n".join(parts))


def _verified(output: Path, name: str, key: str, digest: str) -> dict[str, Any] | None:
    """The row of a machine whose record and detector are those of these rows."""
    path = output / record_name(name)
    try:
        record = json.loads(path.read_text("utf-8"))
        row: dict[str, Any] = record["row"]
        if [record["key"], record["input"]] != [key, digest]:
            return None
        if row["detector"] != STUDENT:
            manifest = output / row["detector"] / MANIFEST
            if sha256(manifest) != record["manifest"]:
                return None
        # JSON has null for NaN.
        return {k: math.nan if v is None else v for k, v in row.items()}
    except (OSError, LookupError, TypeError, ValueError):
        return None


def _record(
    target: Target, row: dict[str, Any], key: str, digest: str
) -> dict[str, Any]:
    """Writes the machine's record, the last of its files; the row."""
    manifest, name = "", record_name(row["entity"])
    if row["detector"] != STUDENT:
        manifest = sha256(target.folder / row["detector"] / MANIFEST)
        target.put(row["detector"])
    plain = {
        k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()
    }
    record = {"key": key, "input": digest, "manifest": manifest, "row": plain}
    write_text(target.folder / name, json.dumps(record, sort_keys=True) + "\n")
    target.put(name)
    return row


def _read(machine: Machine, channels: Sequence[str], settings: Settings) -> Series:
    return match_channels(
        read_machine(machine, **reading_options(settings["data"])), channels
    )


def _own_or_few(
    series: Series, test: Series | None, settings: Settings
) -> Prepared | str:
    """The prepared rows; why they are too few for the machine's own values.

    DataError where they are fewer than a window.
    """
    count, window = len(series.values), settings["data"]["window"]
    if count < window:
        raise DataError(
            f"{counted(count, 'row')}, fewer than a window of {window}: give more rows, or "
            "a smaller data.window."
        )
    try:
        return prepare_machine(series, test, settings)
    except (ConfigError, DataError) as error:
        why = one_line(error).split(": set ")[0].split(". ")[0]
        return f"uses the fleet's values: {counted(count, 'row')} are too few ({why})"


def prepare_machine(
    series: Series, test: Series | None, settings: Settings
) -> Prepared:
    """As `run` prepares the machine's file."""
    dataset = Dataset(series.entity, (series,), () if test is None else (test,))
    prepared = prepare_dataset(dataset, settings)
    check_windows(prepared, of_machine(settings, prepared))
    return prepared


def _train(
    prepared: Mapping[str, Prepared], output: Path, settings: Settings
) -> dict[str, ResidualModel | str]:
    """Each machine's student; why it failed."""
    if settings["entity_mode"] != PER_ENTITY:
        return dict.fromkeys(prepared, load_detector(output / STUDENT).model)
    teachers, teacher = dict[str, ResidualModel](), None
    if jobs.is_distilled(settings["distill"]):
        teacher = rows.TEACHER
        teachers[teacher] = load_detector(output / SHARED / teacher).model
    tasks = {
        group.name: Task(settings, group, teacher=teacher, student=group.name)
        for group in make_groups(prepared, settings["data"])
    }
    fitted = train.train_tasks(
        [*tasks.values()], train_in_memory, train_in_memory, teachers=teachers
    )
    models: dict[str, ResidualModel | str] = {}
    for name, task in tasks.items():
        own = fitted.get(name)
        if own is not None and own.progress.bad_step:
            models[name] = (
                f"its loss became nan or inf at step {own.progress.bad_step}: lower "
                "train.learning_rate, or look for huge values in its rows."
            )
        else:
            models[name] = train.make_model(task, rows.STUDENT, own)
    return models


def _finish(
    output: Path,
    name: str,
    model: ResidualModel,
    prepared: Prepared,
    dataset: Dataset,
    settings: Settings,
) -> dict[str, Any]:
    """Calibrates, evaluates and saves a machine's detector; its row."""
    evaluated, detector = evaluate_machine(
        rows.STUDENT, model, prepared, settings, data_digests(dataset)
    )
    folder = detector_name(name)
    save_detector(output / folder, detector)
    row = _row(name, len(dataset.train[0].values), detector=folder)
    row["threshold"] = detector.thresholds[0].tau
    row |= _measured(evaluated)
    stride, score = prepared.stride, evaluated.scores[0]
    rule = calibration_rules(of_machine(settings, prepared), prepared).threshold
    event, scores = rule_for(model.kind, rule).events, evaluated.calibration.scores[0]
    if event is None or not event.rows_per_day:
        return row
    of_test = event._replace(spacing=min(stride, prepared.window))
    tested = score.window_scores[~np.isnan(score.window_scores)]
    days = len(tested) * of_test.spacing / of_test.rows_per_day
    if days:
        count = count_events(tested, row["threshold"], of_test)
        row["test_events_a_day"] = count / days
    if is_shared_budget(settings) and len(scores) >= fleet_budget.LEAST:
        tail = fleet_budget.tail_of(scores)
        rates = fleet_budget.event_rates(scores, tail, event)
        row["tail"] = {
            "level": tail.level,
            "excess": tail.excess,
            "days": len(scores) * event.spacing / event.rows_per_day,
            "rates": fleet_budget.cut_rates(rates),
            "test": fleet_budget.cut_rates(
                fleet_budget.event_rates(tested, tail, of_test)
            )
            if days
            else [],
        }
    return row


def is_shared_budget(settings: Settings) -> bool:
    """Whether the machines of a fleet share a budget of events."""
    return bool(settings["threshold"]["budget_scope"] == "fleet")


def of_machine(settings: Settings, prepared: Prepared) -> Settings:
    """The settings by which one machine is calibrated.

    Where machines share a budget none has one of its own: a machine may have as many
    events as its rows can show, so that any length of calibration does.
    """
    if not is_shared_budget(settings):
        return settings
    seconds = max(seconds_per_row(entity.train.time) for entity in prepared.entities)
    return of_rows(settings, seconds, prepared.window)


def of_rows(settings: Settings, seconds: float, window: int) -> Settings:
    """With the budget of as many events as rows so many seconds apart can show."""
    seconds = settings["data"]["step_seconds"] or seconds
    if not seconds:
        return settings  # refused by the rule, which needs times
    most = f"{DAY / seconds / window * (1 - 1e-6):.9f}/day"
    return {**settings, "threshold": {**settings["threshold"], "budget": most}}


def evaluate_machine(
    name: str,
    model: ResidualModel,
    prepared: Prepared,
    settings: Settings,
    digests: Mapping[str, str],
) -> tuple[ModelEvaluation, Detector]:
    """As `run` calibrates, evaluates and assembles the model."""
    used = of_machine(settings, prepared)
    rules = calibration_rules(used, prepared)
    known: dict[Any, Any] = {}
    (evaluated,) = evaluate.evaluate_models(
        {name: model},
        prepared,
        rules,
        min_anomalous_points=settings["data"]["min_anomalous_points"],
        console=QUIET,
        held_out=lambda own: train.held_out_models(prepared, used, known, own),
        point_adjusted=settings["evaluation"]["point_adjusted"],
        rolling=settings["threshold"]["rolling_share"],
        compared=(),
    ).values()
    detector = make_detector(
        name,
        model,
        evaluated.calibration,
        prepared,
        settings=settings,
        digests=digests,
        results=evaluated.rows,
    )
    return evaluated, detector


def _measured(evaluated: ModelEvaluation) -> dict[str, Any]:
    """Expected events and quality of a machine."""
    found: dict[str, Any] = {}
    expected = evaluated.rates[0].get("expected_events")
    if expected and expected["unit"] == "a day":
        found["events_a_day"] = expected["number"]
    for row in evaluated.entities:
        if row["level"] == "point" and row.get("vus_pr") is not None:
            found["quality"] = row["vus_pr"]
        label_free = row["threshold"] not in (rows.ORACLE, rows.ROLLING)
        if row["level"] == "window" and label_free and row.get("f1") is not None:
            found["f1"] = row["f1"]
    return found


def set_thresholds(data: Mapping[str, Any]) -> int:
    """Gives saved detectors of a fleet these τ, by folder; how many changed."""
    changed = 0
    with mirror(data["output"]) as store:
        target = Target(data["output"], store)
        for folder, tau in data["taus"].items():
            target.get(folder)
            changed += _set_threshold(target, folder, tau)
    return changed


def _set_threshold(target: Target, folder: str, tau: float) -> bool:
    output = target.folder
    detector = load_detector(output / folder)
    if detector.thresholds[-1].tau == tau:
        return False
    detail = "of the level that all machines of the fleet share"
    taus = [t._replace(tau=tau, rank=0, detail=detail) for t in detector.thresholds]
    save_detector(output / folder, with_thresholds(detector, taus))
    target.put(folder)
    if folder != STUDENT:
        name = f"{MACHINES}/{Path(folder).name}.json"
        target.get(name)
        record = json.loads((output / name).read_text("utf-8"))
        record["manifest"] = sha256(output / folder / MANIFEST)
        write_text(output / name, json.dumps(record, sort_keys=True) + "\n")
        target.put(name)
    return True


def _row(name: str, count: int, **fields: Any) -> dict[str, Any]:
    numbers = {k: math.nan for k, kind in CATALOGUE_SCHEMA.items() if kind == "float64"}
    return {
        "entity": name,
        "state": READY,
        "reason": "",
        "detector": "",
        "rows": count,
        **numbers,
        **fields,
    }


def failed_row(name: str, count: int, reason: str) -> dict[str, Any]:
    """The row of a machine that has no detector, of so many rows."""
    reason = reason.removeprefix(f"{name}: ")
    return _row(name, count, state=FAILED, reason=reason)
