"""Detectors for many machines: `fit_fleet` writes a folder, `fit_partition` serves engines.

Machines are fitted in units of `UNIT`: one population of students, then each machine's
own scaler, Gaussian and τ. A machine's record holds what it was made from, so the same
command continues after a kill and fits only new and changed machines. See
`kdjax.detection.fleet` for the folder.

entity_mode=per_entity   each machine has its own student; it learns from the fleet's
                         teacher, or alone where distill.alpha=0
entity_mode=shared       all machines have the fleet's student

Fleet's teacher and student learn from `SAMPLE` machines. Machines with too few rows for
their own values have those of this sample.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from kdjax.config import Settings, differences, get_config, override, resolve
from kdjax.data.partitions import (
    Machine,
    frame_machines,
    list_machines,
    name_machines,
    read_machine,
    usual_channels,
)
from kdjax.data.prepared import Prepared
from kdjax.data.readers import match_channels
from kdjax.data.schema import Reading
from kdjax.data.series import Dataset, Series
from kdjax.data.tables import SUFFIXES, frame_table
from kdjax.data.times import seconds_per_row
from kdjax.detection import fleet_budget
from kdjax.detection.alarming import DAY, count_events
from kdjax.detection.calibration import rule_for
from kdjax.detection.detector import Detector
from kdjax.detection.fleet import (
    BUDGET,
    CATALOGUE,
    CATALOGUE_SCHEMA,
    DETECTORS,
    FAILED,
    FLEET,
    MACHINES,
    PAGE,
    READY,
    SCHEMA,
    SHARED,
    STUDENT,
    catalogue_frame,
    quoted,
    read_catalogue,
    read_fleet,
)
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.thresholds import BLOCKS, parse_budget
from kdjax.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    KdjaxError,
    counted,
    one_line,
)
from kdjax.evaluation import evaluate, rows
from kdjax.evaluation.evaluate import ModelEvaluation
from kdjax.experiment import jobs, train
from kdjax.experiment.assemble import (
    calibration_rules,
    data_digests,
    make_detector,
    threshold_rule,
)
from kdjax.experiment.pipeline import check_windows, prepare_dataset
from kdjax.experiment.populations import train_in_memory
from kdjax.experiment.recalibrate import with_thresholds
from kdjax.experiment.train import PER_ENTITY, Task, make_groups, train_networks
from kdjax.experiment.workdir import locked
from kdjax.io.executors import LOCAL, ONE_CORE, Resources, Unit, run_units
from kdjax.io.files import (
    MANIFEST,
    atomic_path,
    check_folder,
    kdjax_version,
    sha256,
    write_text,
)
from kdjax.io.stores import Mirror, is_remote, list_files, mirror, put_folder
from kdjax.models.residual import ResidualModel

UNIT = 32  # machines of a unit, whose students are one population
UNIT_BYTES = 200_000_000  # of their files, so that a unit fits into memory
SAMPLE = 8  # machines from which the fleet's own networks learn
QUIET = Console(quiet=True)
# Faults of one machine's rows or files, which leave the others as they are.
_FAULTS = (KdjaxError, OSError, MemoryError)


def fit_fleet(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: Settings,
    *,
    executor: str = LOCAL,
    address: str = "",
    resources: Resources = ONE_CORE,
    console: Console = QUIET,
) -> pd.DataFrame:
    """Fits a detector for each machine of an input; returns the fleet's catalogue.

    Args:
        path: see `list_machines`; folders may also be text `s3://BUCKET/KEY`.
        output: folder of the fleet, also `s3://BUCKET/KEY`; the same call resumes, and
            fits machines that are new or whose rows changed.
        settings: from `kdjax.config.resolve`, with `data.path` set to `path`.
        executor, address, resources: see `kdjax.io.executors.run_units`.
        console: shows progress; quiet by default.

    Raises:
        ConfigError: the folder was made with other settings; nothing is fitted.
        DataError: no machine of the input can be read.

    >>> config = kdjax.override(kdjax.get_config(), {"data.path": "plants"})  # doctest: +SKIP
    >>> fit_fleet("plants", "fleet", kdjax.resolve(config))["state"]  # doctest: +SKIP
    """
    options = {"executor": executor, "address": address, "resources": resources}
    with mirror(path, output) as store:
        check_folder(store.target(output))
        target = _Target(output, store)
        target.get(FLEET)
        try:
            with locked(target.folder):
                return _fit_fleet(path, target, settings, console, **options)
        except ArtifactError as error:  # the lock speaks of a run's folder
            error.args = (str(error).replace("--workdir", "--output"),)
            raise


class _Target(NamedTuple):
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


def _fit_fleet(
    path: str | os.PathLike[str],
    target: _Target,
    settings: Settings,
    console: Console,
    **options: Any,
) -> pd.DataFrame:
    data, output = settings["data"], target.folder
    machines = _list(path, data)
    tests = _test_machines(data)
    fleet = _begin(target, settings, machines)
    shared = _needs_shared(settings)
    if shared:
        _fit_shared(target, settings, fleet["channels"], machines, console)
    common = {
        "output": _text(target.path),
        "settings": settings,
        "channels": fleet["channels"],
        "shared": shared,
    }
    console.print(f"{path}: {counted(len(machines), 'machine')}", highlight=False)
    units = [*_units(target, machines, tests, common)]
    found, few = list[dict[str, Any]](), list[str]()
    for outcome in run_units(fit_unit, units, **options):
        own = outcome.value
        if own is None:  # the unit as a whole
            names = outcome.name.split("\n")[1:]
            own = [_failed(name, 0, outcome.error) for name in names]
        found += own
        few += [row["entity"] for row in own if row["detector"] == STUDENT]
        for row in own:
            if row["state"] == FAILED:
                line = f"failed: {row['entity']}: {row['reason']}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(found):,} of {len(machines):,} machines", highlight=False)
    if few and not shared:
        _fit_shared(target, settings, fleet["channels"], machines, console)
    expected = None
    if _is_shared_budget(settings):
        found, expected = _share_budget(target, settings, found, **options)
    if few:
        tau = load_detector(output / STUDENT).thresholds[-1].tau
        found = [
            r | {"threshold": tau} if r["detector"] == STUDENT else r for r in found
        ]
    frame = catalogue_frame(found)
    words = _write_catalogue(output, frame, settings, expected)
    target.put(BUDGET, PAGE, CATALOGUE)
    for sentence in words:
        console.print(sentence, highlight=False, soft_wrap=True)
    shutil.rmtree(output / "work", ignore_errors=True)
    return frame


def _text(path: str | os.PathLike[str]) -> str:
    """A path that workers understand wherever they run."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def _list(path: str | os.PathLike[str], data: Settings) -> list[Machine]:
    if not is_remote(path):
        return list_machines(path, entity_column=data["entity_column"])
    if data["entity_column"]:
        raise ConfigError(
            f"data.entity_column={data['entity_column']!r} is for one local file: copy "
            f"{path} to the local disk, or give a folder with a file for each machine."
        )
    found = list_files(os.fspath(path), SUFFIXES)
    return name_machines(path, {url: stored.size for url, stored in found.items()})


def _test_machines(data: Settings) -> dict[str, Machine]:
    if not data["test_path"]:
        return {}
    found = list_machines(data["test_path"], entity_column=data["entity_column"])
    return {machine.entity: machine for machine in found}


def _needs_shared(settings: Settings) -> bool:
    own = settings["entity_mode"] == PER_ENTITY
    return not own or jobs.is_distilled(settings["distill"])


def _begin(
    target: _Target, settings: Settings, machines: Sequence[Machine]
) -> dict[str, Any]:
    """fleet.json, written where it isn't there; refuses a folder of other settings."""
    output = target.folder
    if (output / FLEET).exists():
        fleet = read_fleet(output)
        before, now = _deciding(fleet["settings"]), _deciding(settings)
        if changed := differences(before, now):
            raise ConfigError(
                f"{output} was made with another config ({'; '.join(changed)}): give "
                "another --output, or the settings it was made with."
            )
        return fleet
    output.mkdir(parents=True, exist_ok=True)
    others = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
    if FLEET in others:  # another worker has just written it
        return _begin(target, settings, machines)
    if others:
        raise ConfigError(
            f"{output} holds {', '.join(others[:3])} and is not the folder of a fleet: give "
            "an empty or new --output."
        )
    sample = [*_sample(machines, settings["data"], target.store)]
    if not sample:
        raise DataError(
            f"{settings['data']['path']}: no machine can be read, the first: "
            f"{_fault_of(machines[0], settings['data'], target.store)}"
        )
    fleet = {
        "schema": SCHEMA,
        "kdjax_version": kdjax_version(),
        "channels": list(usual_channels(sample)),
        "settings": settings,
    }
    write_text(output / FLEET, json.dumps(fleet, indent=1, sort_keys=True) + "\n")
    target.put(FLEET)
    return fleet


def _deciding(settings: Settings) -> Settings:
    """The settings without the paths of rows, which may move and grow."""
    data = {k: v for k, v in settings["data"].items() if k not in ("path", "test_path")}
    return {**settings, "data": data}


def _sample(
    machines: Sequence[Machine], data: Settings, store: Mirror
) -> Iterator[Series]:
    """The first machines, in an order by hash, that can be read."""
    count = 0
    for machine in sorted(machines, key=lambda one: _hash(one.entity)):
        try:
            with _copied(machine, store) as own:
                series = read_machine(own, **_reading(data))
        except _FAULTS:
            continue
        yield series
        count += 1
        if count == 2 * SAMPLE:
            return


@contextlib.contextmanager
def _copied(machine: Machine, store: Mirror) -> Iterator[Machine]:
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


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _fault_of(machine: Machine, data: Settings, store: Mirror) -> str:
    try:
        with _copied(machine, store) as own:
            read_machine(own, **_reading(data))
    except _FAULTS as error:
        return one_line(error)
    return ""


def _reading(data: Settings) -> dict[str, Any]:
    """Options of `read_machine`."""
    if data["exclude"]:
        raise ConfigError(
            "data.exclude is not for a fleet: leave such rows out of the files."
        )
    options = {k: data[k] for k in Reading._fields if k in data}
    options["fill_limit"] = data["fill_limit"] or data["window"]
    # As in `run`, the rows to learn from may lack labels, if others have them.
    return options | {"may_lack": (data["label_column"],) if data["test_path"] else ()}


# The fleet's own networks.


def _fit_shared(
    target: _Target,
    settings: Settings,
    channels: Sequence[str],
    machines: Sequence[Machine],
    console: Console,
) -> None:
    """Writes the detectors in `SHARED`, where they aren't there."""
    output = target.folder
    target.get(SHARED)
    if (output / STUDENT / MANIFEST).exists():
        return
    settings = {**settings, "entity_mode": "shared"}
    chosen = []
    for series in _sample(machines, settings["data"], target.store):
        try:
            own = match_channels(series, channels)
            _prepare(own, None, settings)
        except _FAULTS:
            continue
        chosen.append(own)
        if len(chosen) == SAMPLE:
            break
    if not chosen:
        raise DataError(
            f"{settings['data']['path']}: no machine has rows enough to fit the fleet's own "
            f"networks: give more rows, or a smaller data.window "
            f"({settings['data']['window']} now)."
        )
    names = ", ".join(series.entity for series in chosen)
    console.print(f"{SHARED}: learns from {names}", highlight=False)
    dataset = Dataset("fleet", tuple(chosen), ())
    prepared = prepare_dataset(dataset, settings)
    check_windows(prepared, _of_machine(settings, prepared))
    distilled = jobs.is_distilled(settings["distill"])
    wanted = (rows.TEACHER, rows.STUDENT) if distilled else (rows.STUDENT,)
    models = train_networks(
        prepared, settings, output / "work" / SHARED, console, names=wanted
    )
    digests = data_digests(dataset)
    for name in wanted:  # the student last, which seals the folder
        _, detector = _evaluated(name, models[name], prepared, settings, digests)
        save_detector(output / SHARED / name, detector)
        target.put(f"{SHARED}/{name}")


# One unit.


def _units(
    target: _Target,
    machines: Sequence[Machine],
    tests: Mapping[str, Machine],
    common: Mapping[str, Any],
) -> Iterator[Unit]:
    """Machines without a record first, then those that are only to be verified."""
    records = [target.folder / _record_name(m.entity) for m in machines]
    known = [path.exists() or path in target.store.known for path in records]
    for verify in (False, True):
        own = [m for m, done in zip(machines, known, strict=True) if done == verify]
        for number, part in enumerate(_parts(own)):
            data = {
                **common,
                "machines": [tuple(machine) for machine in part],
                "tests": [tuple(tests[m.entity]) for m in part if m.entity in tests],
            }
            name = f"{'verify' if verify else 'fit'} {number}"
            names = "\n".join([name, *(m.entity for m in part)])
            size = sum(machine.size for machine in part)
            yield Unit(names, data, size * (0.01 if verify else 1.0))


def _parts(machines: Sequence[Machine]) -> Iterator[list[Machine]]:
    """Machines of units: `UNIT` of them, fewer where they have many rows."""
    part, size = list[Machine](), 0
    for machine in machines:
        # Of equal numbers, so that units share what was compiled.
        if len(part) == UNIT or (part and size + machine.size > UNIT_BYTES):
            yield part
            part, size = [], 0
        part.append(machine)
        size += machine.size
    if part:
        yield part


def fit_unit(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fits the machines of a unit; a row of the catalogue for each.

    `data` is plain, see `kdjax.io.executors`: output, settings, channels, whether there
    is a `shared` detector, and fields of `Machine`.
    """
    paths = [path for fields in data["machines"] for path in Machine(*fields).paths]
    with mirror(data["output"], *paths) as store:
        target = _Target(data["output"], store)
        if data["shared"]:
            target.get(SHARED)
        found = _fit_unit(data, target)
        for name, row in found.items():
            if row["state"] == READY and row.pop("fresh", False):
                if row["detector"] != STUDENT:
                    target.put(row["detector"])
                target.put(_record_name(name))
        return [*found.values()]


def _fit_unit(data: Mapping[str, Any], target: _Target) -> dict[str, dict[str, Any]]:
    """Rows by machine; those that were fitted now are `fresh`."""
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
            with _copied(machine, store) as own:
                inputs[name] = _input_digest(own, tests.get(name))
                target.get(_record_name(name), f"{_detector_name(name)}/{MANIFEST}")
                if row := _verified(output, name, key, inputs[name]):
                    found[name] = row
                    continue
                series = _read(own, data["channels"], settings)
            test = tests.get(name) and _read(tests[name], data["channels"], settings)
            prepared = _own_or_few(series, test, settings)
        except _FAULTS as error:
            found[name] = _failed(name, 0, one_line(error))
            continue
        if isinstance(prepared, str):
            row = _row(name, len(series.values), reason=prepared, detector=STUDENT)
            _record(output, row, key, inputs[name])
            found[name] = row | {"fresh": True}
            continue
        dataset = Dataset(name, (series,), () if test is None else (test,))
        ready[name] = prepared, dataset, time.monotonic() - started
    if not ready:
        return found
    started = time.monotonic()
    try:
        models = _train({name: own[0] for name, own in ready.items()}, output, settings)
    except _FAULTS as error:
        return found | {name: _failed(name, 0, one_line(error)) for name in ready}
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
            _record(output, row, key, inputs[name])
            found[name] = row | {"fresh": True}
        except _FAULTS as error:
            found[name] = _failed(name, count, one_line(error))
    return found


def _record_name(name: str) -> str:
    return f"{MACHINES}/{quoted(name)}.json"


def _detector_name(name: str) -> str:
    return f"{DETECTORS}/{quoted(name)}"


def _key(output: Path, settings: Settings, data: Mapping[str, Any]) -> str:
    """Digest of what all machines are made from besides their rows."""
    shared = ""
    if data["shared"]:
        shared = sha256(output / STUDENT / "arrays.npz")  # τ may change
    facts = [kdjax_version(), _deciding(settings), data["channels"], shared]
    return _hash(json.dumps(facts, sort_keys=True))


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
    return _hash("\n".join(parts))


def _verified(output: Path, name: str, key: str, digest: str) -> dict[str, Any] | None:
    """The row of a machine whose record and detector are those of these rows."""
    path = output / _record_name(name)
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


def _record(output: Path, row: Mapping[str, Any], key: str, digest: str) -> None:
    """Writes the machine's record, the last of its files."""
    name = row["entity"]
    manifest = ""
    if row["detector"] != STUDENT:
        manifest = sha256(output / row["detector"] / MANIFEST)
    plain = {
        k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()
    }
    record = {"key": key, "input": digest, "manifest": manifest, "row": plain}
    path = output / _record_name(name)
    write_text(path, json.dumps(record, sort_keys=True) + "\n")


def _read(machine: Machine, channels: Sequence[str], settings: Settings) -> Series:
    return match_channels(read_machine(machine, **_reading(settings["data"])), channels)


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
        return _prepare(series, test, settings)
    except (ConfigError, DataError) as error:
        why = one_line(error).split(": set ")[0].split(". ")[0]
        return f"uses the fleet's values: {counted(count, 'row')} are too few ({why})"


def _prepare(series: Series, test: Series | None, settings: Settings) -> Prepared:
    """As `run` prepares the machine's file."""
    dataset = Dataset(series.entity, (series,), () if test is None else (test,))
    prepared = prepare_dataset(dataset, settings)
    check_windows(prepared, _of_machine(settings, prepared))
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
    evaluated, detector = _evaluated(
        rows.STUDENT, model, prepared, settings, data_digests(dataset)
    )
    folder = _detector_name(name)
    save_detector(output / folder, detector)
    row = _row(name, len(dataset.train[0].values), detector=folder)
    row["threshold"] = detector.thresholds[0].tau
    row |= _measured(evaluated)
    stride, score = prepared.stride, evaluated.scores[0]
    rule = calibration_rules(_of_machine(settings, prepared), prepared).threshold
    event, scores = rule_for(model.kind, rule).events, evaluated.calibration.scores[0]
    if event is None or not event.rows_per_day:
        return row
    of_test = event._replace(spacing=min(stride, prepared.window))
    tested = score.window_scores[~np.isnan(score.window_scores)]
    days = len(tested) * of_test.spacing / of_test.rows_per_day
    if days:
        count = count_events(tested, row["threshold"], of_test)
        row["test_events_a_day"] = count / days
    if _is_shared_budget(settings) and len(scores) >= fleet_budget.LEAST:
        tail = fleet_budget.tail_of(scores)
        rates = fleet_budget.event_rates(scores, tail, event)
        row["tail"] = {
            "level": tail.level,
            "excess": tail.excess,
            "days": len(scores) * event.spacing / event.rows_per_day,
            "rates": _cut(rates),
            "test": _cut(fleet_budget.event_rates(tested, tail, of_test))
            if days
            else [],
        }
    return row


def _cut(rates: np.ndarray) -> list[list[float]]:
    """Rates without the levels that nothing exceeds."""
    last = int(np.flatnonzero(rates.any(axis=0)).max(initial=-1)) + 1
    found: list[list[float]] = rates[:, :last].tolist()
    return found


def _widened(rates: Sequence[Sequence[float]]) -> np.ndarray:
    """The rates at all levels again."""
    found = np.zeros((BLOCKS, len(fleet_budget.LEVELS)))
    for place, own in enumerate(rates):
        found[place, : len(own)] = own
    return found


def _rate_at(rates: Sequence[Sequence[float]], at: int) -> float:
    """Events a day above one level: the mean of the blocks, of which some are cut."""
    return sum(own[at] for own in rates if at < len(own)) / BLOCKS


def _is_shared_budget(settings: Settings) -> bool:
    return bool(settings["threshold"]["budget_scope"] == "fleet")


def _of_machine(settings: Settings, prepared: Prepared) -> Settings:
    """The settings by which one machine is calibrated.

    Where machines share a budget none has one of its own: a machine may have as many
    events as its rows can show, so that any length of calibration does.
    """
    if not _is_shared_budget(settings):
        return settings
    seconds = max(seconds_per_row(entity.train.time) for entity in prepared.entities)
    return _of_rows(settings, seconds, prepared.window)


def _of_rows(settings: Settings, seconds: float, window: int) -> Settings:
    """With the budget of as many events as rows so many seconds apart can show."""
    seconds = settings["data"]["step_seconds"] or seconds
    if not seconds:
        return settings  # refused by the rule, which needs times
    most = f"{DAY / seconds / window * (1 - 1e-6):.9f}/day"
    return {**settings, "threshold": {**settings["threshold"], "budget": most}}


def _evaluated(
    name: str,
    model: ResidualModel,
    prepared: Prepared,
    settings: Settings,
    digests: Mapping[str, str],
) -> tuple[ModelEvaluation, Detector]:
    """As `run` calibrates, evaluates and assembles the model."""
    used = _of_machine(settings, prepared)
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


# One budget for all.


def _share_budget(
    target: _Target, settings: Settings, found: list[dict[str, Any]], **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sets τ of all machines by the fleet's budget; rows and what it lets expect."""
    output = target.folder
    tails = {r["entity"]: r["tail"] for r in found if r.get("tail")}
    if not tails:
        raise DataError(
            "threshold.budget_scope=fleet: no machine has calibration scores with times: "
            "give rows with dates, or set data.step_seconds."
        )
    rates = np.sum([_widened(tail["rates"]) for tail in tails.values()], axis=0)
    taus = {
        _detector_name(name): fleet_budget.Tail(tail["level"], tail["excess"])
        for name, tail in tails.items()
    }
    if few := sum(row["detector"] == STUDENT for row in found):
        detector = load_detector(output / STUDENT)
        rule = threshold_rule(
            _of_rows(settings, detector.step, detector.window),
            step_seconds=detector.step,
            stride=detector.stride,
            window=detector.window,
        )
        assert rule.events is not None
        scores = detector.calibration[-1]
        taus[STUDENT] = fleet_budget.tail_of(scores)
        own = fleet_budget.event_rates(scores, taus[STUDENT], rule.events)
        rates = rates + few * own
    days = float(np.mean([tail["days"] for tail in tails.values()]))
    per_day = parse_budget(settings["threshold"]["budget"])
    level, events = fleet_budget.choose_level(rates, per_day, days)
    at = int(np.searchsorted(fleet_budget.LEVELS, level))
    wanted = {folder: fleet_budget.tau_at(own, level) for folder, own in taus.items()}
    listed = [*wanted.items()]
    parts = [listed[first : first + UNIT] for first in range(0, len(listed), UNIT)]
    units = [
        Unit(
            f"thresholds {place}",
            {"output": _text(target.path), "taus": dict(part)},
        )
        for place, part in enumerate(parts)
    ]
    for outcome in run_units(set_thresholds, units, **options):
        if outcome.value is None:
            raise ArtifactError(f"{output}: {outcome.name}: {outcome.error}")
    rows, observed = list[dict[str, Any]](), list[float]()
    for row in found:
        if (tail := tails.get(row["entity"])) is not None:
            row = {**row, "threshold": wanted[row["detector"]]}
            row["events_a_day"] = _rate_at(tail["rates"], at)
            if tail["test"]:
                observed.append(_rate_at(tail["test"], at))
                row["test_events_a_day"] = observed[-1]
        rows.append(row)
    expected = {
        "budget": per_day,
        "level": level,
        "expected": events._asdict(),
        "observed": float(np.sum(observed)) if observed else None,
        "machines": len(tails) + few,
    }
    write_text(output / BUDGET, json.dumps(expected, indent=1) + "\n")
    return rows, expected


def set_thresholds(data: Mapping[str, Any]) -> int:
    """Gives saved detectors of a fleet these τ, by folder; how many changed."""
    changed = 0
    with mirror(data["output"]) as store:
        target = _Target(data["output"], store)
        for folder, tau in data["taus"].items():
            target.get(folder)
            changed += _set_threshold(target, folder, tau)
    return changed


def _set_threshold(target: _Target, folder: str, tau: float) -> bool:
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


def fit_partition(
    frame: pd.DataFrame,
    *,
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    entity_column: str = "entity",
) -> pd.DataFrame:
    """Fits detectors for the machines in a frame; rows of the catalogue, one a machine.

    For engines that map frames by machine: Ray Data, Spark, Dask. All calls of one fleet
    have one `output`, which their workers share; `finish_fleet` then writes its catalogue.

    Args:
        frame: rows of one or several machines, all rows of each.
        output: folder of the fleet; the first call makes it.
        settings: from `kdjax.config.resolve`; those of the folder, or the defaults with
            students that learn alone, if None.
        entity_column: names the machine of each row.

    Returns:
        A frame of the types of `CATALOGUE_SCHEMA`; a machine that can't be fitted has the
        state `failed` and the reason.

    >>> fit_partition(frame, output="fleet")["state"].tolist()  # doctest: +SKIP
    ['ready']
    """
    if frame.empty:
        return catalogue_frame([])
    output = Path(output)
    target = _Target(output, Mirror(output, {}))
    if settings is None:
        settings = _usual_settings(output)
    machines = frame_machines(frame_table(frame, "the frame"), entity_column)
    fleet = _begin(target, settings, machines)
    if _needs_shared(settings) and not (output / STUDENT / MANIFEST).exists():
        raise ConfigError(
            "fit_partition needs a fleet whose students learn alone (distill.alpha=0, "
            f"entity_mode=per_entity), or whose networks are in {output / SHARED}: fit a "
            "sample of machines by kdjax fleet first."
        )
    found = fit_unit(
        {
            "output": str(output),
            "settings": settings,
            "channels": fleet["channels"],
            "shared": _needs_shared(settings),
            "machines": [tuple(machine) for machine in machines],
            "tests": [],
        }
    )
    if not (output / STUDENT / MANIFEST).exists():
        found = [
            _failed(r["entity"], r["rows"], f"{r['reason']}; this fleet has none")
            if r["detector"] == STUDENT
            else r
            for r in found
        ]
    return catalogue_frame(found)


def finish_fleet(output: str | os.PathLike[str]) -> pd.DataFrame:
    """Writes the catalogue and the page of a fleet that engines fitted by `fit_partition`.

    `catalogue.parquet` holds the rows that the calls returned: one file, or a folder of
    files as engines write them, which one file replaces.

    >>> finish_fleet("fleets/plants")["state"].tolist()  # doctest: +SKIP
    ['ready', 'ready']
    """
    rows = read_catalogue(output).to_dict("records")
    frame = catalogue_frame(rows)  # type: ignore[arg-type]
    _write_catalogue(Path(output), frame, read_fleet(output)["settings"], None)
    return frame


def _write_catalogue(
    output: Path, frame: pd.DataFrame, settings: Settings, expected: Any
) -> list[str]:
    """Writes the catalogue and the page; the fleet in sentences."""
    # Drawing takes half a second to import.
    from kdjax.evaluation.fleet import fleet_words, write_fleet_page

    write_fleet_page(output, frame, card=settings, expected=expected)
    path = output / CATALOGUE
    if path.is_dir():  # of an engine
        shutil.rmtree(path)
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return fleet_words(frame, expected)


def _usual_settings(output: Path) -> Settings:
    if (output / FLEET).exists():
        settings: Settings = read_fleet(output)["settings"]
        return settings
    changes = {"data.path": "frame", "distill.alpha": 0.0, "entity_mode": PER_ENTITY}
    return resolve(override(get_config(), changes))


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


def _failed(name: str, count: int, reason: str) -> dict[str, Any]:
    reason = reason.removeprefix(f"{name}: ")
    return _row(name, count, state=FAILED, reason=reason)
