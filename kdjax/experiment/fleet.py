"""Detectors for many machines: `fit_fleet` writes a folder, `fit_partition` serves engines.

Machines are fitted in units of `UNIT`, see `kdjax.experiment.fleet_units`. A machine's
record holds what it was made from, so the same command continues after a kill and fits
only new and changed machines. See `kdjax.detection.fleet` for the folder.

entity_mode=per_entity   each machine has its own student; it learns from the fleet's
                         teacher, or alone where distill.alpha=0
entity_mode=shared       all machines have the fleet's student

Fleet's teacher and student learn from `SAMPLE` machines. Machines with too few rows for
their own values have those of this sample.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from kdjax.data.readers import match_channels
from kdjax.data.series import Dataset, Series
from kdjax.data.tables import SUFFIXES, frame_table
from kdjax.detection import fleet_budget
from kdjax.detection.fleet import (
    BUDGET,
    CATALOGUE,
    FAILED,
    FLEET,
    PAGE,
    SCHEMA,
    SHARED,
    STUDENT,
    catalogue_frame,
    read_catalogue,
    read_fleet,
)
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.thresholds import parse_budget
from kdjax.errors import ArtifactError, ConfigError, DataError, counted, one_line
from kdjax.evaluation import rows
from kdjax.experiment import jobs
from kdjax.experiment.assemble import data_digests
from kdjax.experiment.fleet_units import (
    FAULTS,
    QUIET,
    Target,
    copied,
    deciding,
    detector_name,
    evaluate_machine,
    failed_row,
    fit_unit,
    is_shared_budget,
    of_machine,
    of_rows,
    prepare_machine,
    reading_options,
    record_name,
    set_thresholds,
    text_digest,
)
from kdjax.experiment.pipeline import check_windows, prepare_dataset
from kdjax.experiment.recalibrate import rule_of
from kdjax.experiment.train import PER_ENTITY, train_networks
from kdjax.experiment.workdir import locked
from kdjax.io.executors import LOCAL, ONE_CORE, Resources, Unit, run_units
from kdjax.io.files import (
    MANIFEST,
    atomic_path,
    check_folder,
    kdjax_version,
    write_text,
)
from kdjax.io.stores import Mirror, is_remote, list_files, mirror

UNIT = 32  # machines of a unit, whose students are one population
UNIT_BYTES = 200_000_000  # of their files, so that a unit fits into memory
SAMPLE = 8  # machines from which the fleet's own networks learn


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
        target = Target(output, store)
        target.get(FLEET)
        try:
            with locked(target.folder):
                return _fit_fleet(path, target, settings, console, **options)
        except ArtifactError as error:  # the lock speaks of a run's folder
            error.args = (str(error).replace("--workdir", "--output"),)
            raise


def _fit_fleet(
    path: str | os.PathLike[str],
    target: Target,
    settings: Settings,
    console: Console,
    **options: Any,
) -> pd.DataFrame:
    data, output = settings["data"], target.folder
    machines, tests = _list(path, data), list[Machine]()
    if data["test_path"]:
        tests = list_machines(data["test_path"], entity_column=data["entity_column"])
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
    units = [*_units(target, machines, {own.entity: own for own in tests}, common)]
    found, few = list[dict[str, Any]](), list[str]()
    for outcome in run_units(fit_unit, units, **options):
        own = outcome.value
        if own is None:  # the unit as a whole
            names = outcome.name.split("\n")[1:]
            own = [failed_row(name, 0, outcome.error) for name in names]
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
    if is_shared_budget(settings):
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


def _needs_shared(settings: Settings) -> bool:
    own = settings["entity_mode"] == PER_ENTITY
    return not own or jobs.is_distilled(settings["distill"])


def _begin(
    target: Target, settings: Settings, machines: Sequence[Machine]
) -> dict[str, Any]:
    """fleet.json, written where it isn't there; refuses a folder of other settings."""
    output = target.folder
    if (output / FLEET).exists():
        fleet = read_fleet(output)
        before, now = deciding(fleet["settings"]), deciding(settings)
        if changed := differences(before, now):
            raise ConfigError(
                f"{output} was made with another config ({'; '.join(changed)}): give "
                "another --output, or the original settings."
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
    fleet = {
        "schema": SCHEMA,
        "kdjax_version": kdjax_version(),
        "channels": list(usual_channels(sample)),
        "settings": settings,
    }
    write_text(output / FLEET, json.dumps(fleet, indent=1, sort_keys=True) + "\n")
    target.put(FLEET)
    return fleet


def _sample(
    machines: Sequence[Machine], data: Settings, store: Mirror
) -> Iterator[Series]:
    """The first machines, in an order by hash, that can be read; DataError for none."""
    count, faults = 0, dict[str, str]()
    for machine in sorted(machines, key=lambda one: text_digest(one.entity)):
        try:
            with copied(machine, store) as own:
                series = read_machine(own, **reading_options(data))
        except FAULTS as error:
            faults[machine.entity] = one_line(error)
            continue
        yield series
        count += 1
        if count == 2 * SAMPLE:
            return
    if not count:
        raise DataError(
            f"{data['path']}: no machine can be read, the first: {faults[min(faults)]}"
        )


# The fleet's own networks.


def _fit_shared(
    target: Target,
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
    chosen, faults = [], dict[int, str]()
    for series in _sample(machines, settings["data"], target.store):
        try:
            own = match_channels(series, channels)
            prepare_machine(own, None, settings)
        except FAULTS as error:
            faults[len(series.values)] = f"{series.entity}: {one_line(error)}"
            continue
        chosen.append(own)
        if len(chosen) == SAMPLE:
            break
    if not chosen:
        if not (output / "detectors").exists():
            (output / FLEET).unlink()  # so that the next run may have other settings
        raise DataError(
            f"{settings['data']['path']}: no machine can train the fleet's own networks; the "
            f"longest is {faults[max(faults)]}"
        )
    names = ", ".join(series.entity for series in chosen)
    console.print(f"{SHARED}: training on {names}", highlight=False)
    dataset = Dataset("fleet", tuple(chosen), ())
    prepared = prepare_dataset(dataset, settings)
    check_windows(prepared, of_machine(settings, prepared))
    distilled = jobs.is_distilled(settings["distill"])
    wanted = (rows.TEACHER, rows.STUDENT) if distilled else (rows.STUDENT,)
    models = train_networks(
        prepared, settings, output / "work" / SHARED, console, names=wanted
    )
    digests = data_digests(dataset)
    for name in wanted:  # the student last, which seals the folder
        _, detector = evaluate_machine(name, models[name], prepared, settings, digests)
        save_detector(output / SHARED / name, detector)
        target.put(f"{SHARED}/{name}")


# Units of work.


def _units(
    target: Target,
    machines: Sequence[Machine],
    tests: Mapping[str, Machine],
    common: Mapping[str, Any],
) -> Iterator[Unit]:
    """Machines without a record first, then those that are only to be verified."""
    records = [target.folder / record_name(m.entity) for m in machines]
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


# One budget for all.


def _share_budget(
    target: Target, settings: Settings, found: list[dict[str, Any]], **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sets τ of all machines by the fleet's budget; rows and what it lets expect."""
    output = target.folder
    tails = {r["entity"]: r["tail"] for r in found if r.get("tail")}
    if not tails:
        raise DataError(
            "threshold.budget_scope=fleet: no machine has calibration scores with times: "
            "give rows with dates, or set data.step_seconds."
        )
    rates = np.sum(
        [fleet_budget.all_rates(tail["rates"]) for tail in tails.values()], axis=0
    )
    taus = {
        detector_name(name): fleet_budget.Tail(tail["level"], tail["excess"])
        for name, tail in tails.items()
    }
    if few := sum(row["detector"] == STUDENT for row in found):
        detector = load_detector(output / STUDENT)
        used = of_rows(settings, detector.step, detector.window)
        rule = rule_of(detector, used, step_seconds=detector.step)
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
            row["events_a_day"] = fleet_budget.rate_at(tail["rates"], at)
            if tail["test"]:
                observed.append(fleet_budget.rate_at(tail["test"], at))
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
    target = Target(output, Mirror(output, {}))
    if settings is None:
        settings = _usual_settings(output)
    machines = frame_machines(frame_table(frame, "the frame"), entity_column)
    fleet, shared = _begin(target, settings, machines), _needs_shared(settings)
    borrows = (output / STUDENT / MANIFEST).exists()
    if shared and not borrows:
        raise ConfigError(
            "fit_partition needs a fleet whose students have no teacher (distill.alpha=0, "
            f"entity_mode=per_entity), or whose networks are in {output / SHARED}: fit a "
            "sample of machines with kdjax fleet first."
        )
    found = fit_unit(
        {
            "output": str(output),
            "settings": settings,
            "channels": fleet["channels"],
            "shared": shared,
            "machines": [tuple(machine) for machine in machines],
            "tests": [],
        }
    )
    if not borrows:
        found = [
            failed_row(r["entity"], r["rows"], f"{r['reason']}; this fleet has none")
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
