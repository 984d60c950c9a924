"""Scores files with a saved detector: one file, or many in shares that resume.

The share of a file depends on its name only, so processes and hosts split the work
without communication. Each output has a record of its inputs, written last. A restart
keeps an output if its checksums and those of its inputs match the record.
Files of an object store (`s3://`) are copied in and out one by one.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kdjax.data.partitions import partition_of
from kdjax.data.raw import about, reading, unreadable
from kdjax.data.readers import match_channels, name_of
from kdjax.data.tables import SUFFIXES, check_file
from kdjax.data.times import seconds_per_row
from kdjax.detection.alarming import alarm_measures, measures_text
from kdjax.detection.attribution import check_attribution
from kdjax.detection.detector import POOLED, Detector, entity_index
from kdjax.detection.false_alarms import series_notes
from kdjax.detection.fleet import machine_folder
from kdjax.detection.reading import read_like
from kdjax.detection.storage import kept_detector, load_detector
from kdjax.detection.tables import find_windows, score_events, score_table
from kdjax.errors import ConfigError, DataError, KdjaxError, counted, one_line
from kdjax.io.executors import LOCAL, ONE_CORE, Resources, Unit, run_units
from kdjax.io.files import (
    MANIFEST,
    atomic_path,
    check_folder,
    check_target,
    clear_leftovers,
    is_fleet,
    kdjax_version,
    sha256,
    write_text,
)
from kdjax.io.messages import acting
from kdjax.io.stores import Mirror, is_remote, mirror
from kdjax.scoring.fleets import (
    Fleet,
    Measured,
    Part,
    budget_words,
    detector_digests,
    detector_place,
    fleet_parts,
    input_digest,
    manifest_digest,
    measured,
    open_fleet,
)

SCHEMA = 1  # of records
_NAMED = 20  # skipped files that are listed by name
# On workers: most bytes of a unit, and the approximate number of smaller units.
_UNIT, _UNITS = 16_000_000, 64


class Item(NamedTuple):
    """A file to score: name (its path below the given folder), path and output path."""

    name: str
    path: Path
    output: Path


@acting
def score_file(
    path: str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    output: str | os.PathLike[str],
    attribution: str = "",
    **options: Any,
) -> Iterator[str]:
    """Writes a file's score table and `OUTPUT.events.csv`; reports the results.

    Args:
        path: CSV, Parquet or `.npy` file. Paths may be text `s3://BUCKET/KEY`.
        detector: folder of a saved detector, or of a fleet: then each machine has its own,
            by the entity column, or by the file's name.
        output: `.csv` or `.parquet` file; see `score_table` for its columns.
        attribution: method of the contributions; the detector's own by default.
        options: `entity`, of the scaler, Gaussian and threshold (by default the entity of
            the rows if the detector was calibrated on it, else the pooled ones); `causal`
            and `contributions` of `score_table`; those of `read_like`; and `log`, a
            callable such as `print` that receives each message at once. All messages are
            returned.
    """
    exclude = options.get("exclude") or ""
    with mirror(path, detector, output, exclude) as store:
        targets = outputs_of(store.target(output))[:2]
        path = store.copied(path)
        if exclude:
            options["exclude"] = exclude = store.copied(exclude)
        for target in targets:
            check_target(target, inputs=(path, exclude))
        clear_leftovers(targets[0].parent, [target.name for target in targets])
        folder = detector_place(store, detector)
        loaded = load_scorer(folder, attribution=attribution, store=store)
        rows = _score_rows(path, detector=loaded, output=targets[0], **options)
        yield from store.lines(_with_budget(loaded, rows, options))
        for target in targets:
            store.put(target)


def _with_budget(
    loaded: Detector | Fleet,
    rows: Generator[str, None, tuple[dict[str, str], Measured]],
    options: dict[str, Any],
) -> Iterator[str]:
    """The messages of `_score_rows`, and one on a budget of the fleet."""
    _, found = yield from rows
    if isinstance(loaded, Fleet):
        yield from budget_words(loaded, found, causal=options.get("causal", False))


def load_scorer(
    detector: str | os.PathLike[str],
    *,
    attribution: str = "",
    load: Callable[[str | os.PathLike[str]], Detector] = load_detector,
    store: Mirror | None = None,
) -> Detector | Fleet:
    """A saved detector, with another attribution method if one is given, or a fleet.

    `store` has the machines' detectors of a fleet in an object store.
    """
    if attribution:
        check_attribution(attribution)
    if is_fleet(detector):
        return open_fleet(detector, attribution, store)
    loaded = load(detector)
    if attribution:
        loaded = loaded._replace(attribution=attribution)
    return loaded


def _score_rows(
    path: str | os.PathLike[str],
    *,
    detector: Detector | Fleet,
    output: Path,
    entity: str | None = None,
    causal: bool = False,
    contributions: bool = False,
    **reading: Any,
) -> Generator[str, None, tuple[dict[str, str], Measured]]:
    """`score_file` with a detector from `load_scorer`; `reading` is for `read_like`.

    For a fleet it returns digests of the detectors that were used, and measured events. A
    machine that can't be scored is a DataError after the outputs of the others.
    """
    tables, events, clocks, faults = [], [], [], list[str]()
    digests, found = dict[str, str](), dict[str, tuple[int, float]]()
    fleet = detector if isinstance(detector, Fleet) else None
    for part in _parts(detector, path, entity, reading):
        if isinstance(part, str):
            faults.append(part)
            continue
        own, used, series = part
        index = entity_index(own, used)  # raises before the first message
        try:
            with about(path):
                series = match_channels(series, own.channels)
                find_windows(own, series, causal=causal)  # raises before it too
        except DataError as error:
            if fleet is None:
                raise
            faults.append(f"{series.entity}: {error}")
            continue
        whose = f"the threshold of {used}"
        if used == POOLED:
            several = len(own.entities) > 1
            whose = "the pooled threshold" if several else "the detector's threshold"
        yield (
            f"{series.entity}: {counted(len(series.values), 'row')} scored with {whose}"
        )
        options: dict[str, Any] = {"entity": used, "causal": causal}
        with about(path):
            table = score_table(own, series, contributions=contributions, **options)
        tables.append(table)
        clocks.append(series.time)
        # As in a stream, if rows name no entity.
        name = used if series.entity == name_of(path) and not fleet else series.entity
        events.append(score_events(own, series, table, name=name, **options))
        yield from series.notes
        yield from series_notes(own, index, series, table)
        if fleet is not None:
            digests[series.entity] = manifest_digest(fleet, series.entity)
            found[series.entity] = measured(fleet, series, [*events[-1]["kind"]])
    if not tables:
        raise DataError("; ".join(faults))
    scores, alarms, _ = outputs_of(output)
    table, every = _write(tables, scores), _write(events, alarms)
    if all(seconds_per_row(clock) for clock in clocks):
        ends = [table["time"].iloc[place] for table in tables for place in (0, -1)]
        yield measures_text(alarm_measures(every, span=ends))
    yield (
        f"{output}: {int(table['alarm'].sum()):,} of {counted(len(table), 'row')} in alarm, "
        f"{counted(len(every), 'event')}"
    )
    if faults:
        yield from (f"failed: {fault}" for fault in faults)
        raise DataError(
            f"{len(faults):,} of {counted(len(faults) + len(tables), 'machine')} not "
            f"scored; the first is {faults[0]}"
        )
    return digests, found


def _parts(
    detector: Detector | Fleet,
    path: str | os.PathLike[str],
    entity: str | None,
    reading: dict[str, Any],
) -> Iterator[Part | str]:
    """The series of a file, each with its detector; a text for one without."""
    if isinstance(detector, Fleet):
        yield from fleet_parts(detector, path, entity=entity, **reading)
        return
    dtype = detector.scalers.offset.dtype
    for series in read_like(detector, path, dtype=dtype, **reading):
        known = series.entity if series.entity in detector.entities else POOLED
        yield Part(detector, entity or known, series)


def outputs_of(output: Path) -> tuple[Path, Path, Path]:
    """The paths of a file of scores, of its events and of its record."""
    events, record = f"{output.name}.events.csv", f"{output.name}.done.json"
    return output, output.with_name(events), output.with_name(record)


def _write(tables: list[pd.DataFrame], output: Path) -> pd.DataFrame:
    """Writes tables as one, and gives it."""
    table = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
    with atomic_path(output) as temporary:
        if output.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            text = table
            for name in table.columns.intersection(["start", "end", "peak"]):
                if pd.api.types.is_datetime64_any_dtype(table[name]):
                    # A column of midnights would be dates, which as ends of spans are days.
                    text = text.assign(**{name: table[name].map(str, "ignore")})
            text.to_csv(temporary, index=False)
    return table


@acting
def score_fleet(
    paths: Sequence[str | os.PathLike[str]],
    *,
    detector: str | os.PathLike[str],
    output: str | os.PathLike[str],
    shard: str = "",
    entity: str | None = None,
    attribution: str = "",
    executor: str = LOCAL,
    address: str = "",
    resources: Resources = ONE_CORE,
    **options: Any,
) -> Iterator[str]:
    """Scores the files of a shard, each as `score_file` does; reports the results.

    For each input `NAME.ENDING` the output folder gets `NAME.csv` (`NAME.parquet` for
    Parquet), its events and `NAME.csv.done.json`. Inputs whose record and outputs match
    are skipped.

    Args:
        paths: files, and folders with all files below; these and others may be text
            `s3://BUCKET/KEY`.
        detector: folder of a saved detector, or of a fleet, see `score_file`.
        output: folder.
        shard: `i/n` for one of n shares of the files, i from 0; all by default.
        entity, attribution: see `score_file`.
        executor, address, resources: see `kdjax.io.executors.run_units`.
        options: `causal`, `contributions`, and for `read_like`; and `log`, as for
            `score_file`.

    Raises:
        ConfigError: the settings don't fit any file; nothing is scored.
        DataError: two files have the same output; or, after all others have been
            scored, some failed.
    """
    place, total = parse_shard(shard)
    exclude = options.get("exclude") or ""
    execution = {"executor": executor, "address": address, "resources": resources}
    given = [os.fspath(path) for path in (*paths, detector, output, exclude)]
    remote = [path for path in given if is_remote(path)]
    if remote and executor != LOCAL:
        raise ConfigError(
            f"executor={executor} scores local files, got {remote[0]}: copy them to a disk "
            "that all workers can read, or remove the executor."
        )
    with mirror(*paths, detector, output, exclude) as store:
        detector = detector_place(store, detector)
        if exclude:
            options["exclude"] = store.copied(exclude)
        yield from store.lines(
            _score_found(
                [store.look(path) for path in paths],
                store,
                detector=detector,
                output=store.target(output),
                share=(place, total),
                entity=entity,
                attribution=attribution,
                execution=execution,
                **options,
            )
        )


def _score_found(
    paths: Sequence[Path],
    store: Mirror,
    *,
    detector: Path,
    output: Path,
    share: tuple[int, int],
    entity: str | None,
    attribution: str,
    execution: Mapping[str, Any],
    **options: Any,
) -> Iterator[str]:
    """`score_fleet` with places in the mirror of a store."""
    place, total = share
    loaded = load_scorer(detector, attribution=attribution, store=store)
    fleet = loaded if isinstance(loaded, Fleet) else None
    if entity and isinstance(loaded, Detector):
        entity_index(loaded, entity)  # raises for an unknown one
    elif entity:
        machine_folder(detector, entity)  # and so does this
    exclude = options.get("exclude") or ""
    recorded = {"entity": entity, "blame": attribution, **options}
    if exclude:
        recorded["exclude"] = _digest(Path(exclude))
    common: dict[str, Any] = {
        "schema": SCHEMA,
        "kdjax_version": kdjax_version(),
        **({} if fleet else {"detector": _digest(detector / MANIFEST)}),
        "options": {name: value for name, value in recorded.items() if value},
    }
    items, skipped = find_files(
        paths,
        output=output,
        aside=exclude,
        stored=store.known,
        parted=fleet is not None,
    )
    clear_leftovers(output)
    if skipped:
        more = f", and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else ""
        yield (
            "skipped (hidden, linked, without rows or with another ending): "
            f"{', '.join(skipped[:_NAMED])}{more}"
        )
    mine = [item for item in items if shard_of(item.name, total) == place]
    if execution["executor"] == LOCAL:
        tally = yield from _score_items(mine, store, loaded, common, entity, options)
    else:
        data = {
            "detector": os.fspath(detector),
            "attribution": attribution,
            "common": common,
            "entity": entity,
            "options": options,
        }
        tally = yield from _score_units(_units(mine, data), **execution)
    verified, failed, found = tally
    part = f"shard {place}/{total}, " if total > 1 else ""
    yield (
        f"{output}: {part}{len(mine):,} of {counted(len(items), 'file')}: "
        f"{len(mine) - verified - len(failed):,} scored, {verified:,} verified, "
        f"{len(failed):,} failed"
    )
    if fleet:
        yield from budget_words(fleet, found, causal=options.get("causal", False))
    if failed:
        raise DataError(
            f"{len(failed):,} of {counted(len(mine), 'file')} failed; the first is {failed[0]}"
        )


class _Tally(NamedTuple):
    """Number of verified files, failures, and events and days of a fleet's machines."""

    verified: int
    failed: list[str]
    measured: dict[str, tuple[int, float]]


def _score_items(
    items: Sequence[Item],
    store: Mirror,
    loaded: Detector | Fleet,
    common: Mapping[str, Any],
    entity: str | None,
    options: Mapping[str, Any],
) -> Generator[str, None, _Tally]:
    """Scores files; reports the results."""
    fleet = loaded if isinstance(loaded, Fleet) else None
    verified, failed, found = 0, [], dict[str, tuple[int, float]]()
    for item in items:
        scores, events, record = outputs_of(item.output)
        try:
            # The record names the used detectors of a fleet, and is copied too.
            if not fleet and _is_stored(store, item, common):
                verified += 1
                yield f"{item.name}: verified"
                continue
            store.get(item.path)
            digest = _digest(item.path)
            expected = {**common, "input": {"name": item.name, "sha256": digest}}
            if record in store.known:
                store.get(record, scores, events)
            if fleet:
                expected |= detector_digests(fleet, item.path, entity, record)
            if _is_done(record, expected, (scores, events)):
                verified += 1
                found |= _measured(record)
                yield f"{item.name}: verified"
                continue
            digests, own = yield from _score_rows(
                item.path, detector=loaded, output=scores, entity=entity, **options
            )
            if fleet:
                expected |= {"detectors": digests, "measured": own}
                found |= own
            if _digest(item.path) != digest:
                raise DataError(
                    f"{item.path} changed while it was scored: score it again when it "
                    "is complete."
                )
            expected["outputs"] = {path.name: sha256(path) for path in (scores, events)}
            store.put(scores)
            store.put(events)
            write_text(record, json.dumps(expected, indent=1, sort_keys=True) + "\n")
            if scores in store.known:
                store.put(record, _seal(store, item, common, digest))
        except ConfigError:
            raise  # every file would fail in the same way
        except KdjaxError as error:
            failed.append(f"{item.name}: {one_line(error)}")
            yield f"failed: {failed[-1]}"
        finally:
            store.drop(item.path, scores, events, record)
    return _Tally(verified, failed, found)


def _units(items: Sequence[Item], data: Mapping[str, Any]) -> list[Unit]:
    """Units of files of about equal bytes, the largest first."""
    sizes = {item: _size(item.path) for item in items}
    # A worker keeps the detector, so that small units cost little.
    most = min(_UNIT, -(-sum(sizes.values()) // _UNITS))
    parts, size = list[list[Item]](), most
    for item in sorted(items, key=lambda item: -sizes[item]):
        if size >= most:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += sizes[item]
    return [
        Unit(
            "\n".join(item.name for item in part),
            {**data, "items": [tuple(map(str, item)) for item in part]},
            float(sum(sizes[item] for item in part)),
        )
        for part in parts
    ]


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of a partition."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _score_units(
    units: Sequence[Unit], **execution: Any
) -> Generator[str, None, _Tally]:
    """`_score_items` on workers."""
    tally = _Tally(0, [], {})
    for outcome in run_units(score_unit, units, **execution):
        found = outcome.value
        if found is None:  # the unit as a whole
            faults = [f"{name}: {outcome.error}" for name in outcome.name.split("\n")]
            found = [f"failed: {fault}" for fault in faults], (0, faults, {}), ""
        messages, (verified, faults, measured), refusal = found
        yield from messages
        if refusal:
            raise ConfigError(refusal)
        tally = _Tally(
            tally.verified + verified, tally.failed + faults, tally.measured | measured
        )
    return tally


def score_unit(
    data: Mapping[str, Any],
) -> tuple[list[str], tuple[int, list[str], dict[str, tuple[int, float]]], str]:
    """Scores the files of a unit: messages, a `_Tally` as plain data, a common failure.

    `data` is plain: detector, attribution, `common` of records, entity, options, and the
    fields of each `Item`.
    """
    items = [Item(name, Path(path), Path(to)) for name, path, to in data["items"]]
    loaded = load_scorer(
        data["detector"], attribution=data["attribution"], load=kept_detector
    )
    store = Mirror(Path(), {})
    common, entity, options = (data[name] for name in ("common", "entity", "options"))
    acts = _score_items(items, store, loaded, common, entity, options)
    messages = []
    while True:
        try:
            messages.append(next(acts))
        except StopIteration as end:
            return messages, tuple(end.value), ""
        except ConfigError as error:
            return messages, (0, [], {}), str(error)


def _is_stored(store: Mirror, item: Item, common: Mapping[str, Any]) -> bool:
    """Whether a record in a store describes the current objects."""
    targets = outputs_of(item.output)
    if not store.known.keys() >= {*targets}:
        return False
    digest = "" if item.path in store.known else _digest(item.path)
    seal = _seal(store, item, common, digest)
    return bool(seal) and seal == store.seal(targets[2])


def _seal(store: Mirror, item: Item, common: Mapping[str, Any], digest: str) -> str:
    """A digest of all that a record describes, of objects by their ETags; "" without one.

    A restart compares it and need not copy the objects to verify them.
    """
    tags = [digest if item.path not in store.known else store.known[item.path].tag]
    tags += [store.known[path].tag for path in outputs_of(item.output)[:2]]
    text = json.dumps([common, item.name, *tags], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if all(tags) else ""


def parse_shard(text: str) -> tuple[int, int]:
    """The index, from 0, and the number of shares in `i/n`; all files if it is empty.

    >>> parse_shard("0/3")
    (0, 3)
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text or "0/1")
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(
            f"shard={text!r} is invalid: expected i/n with i from 0 to n - 1, such as "
            "0/4 to 3/4 for four processes."
        )
    return int(match[1]), int(match[2])


def shard_of(name: str, total: int) -> int:
    """Which of `total` shares a file belongs to: SHA-256 of its name, modulo `total`."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest, "big") % total


def find_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str],
    aside: str | os.PathLike[str] = "",
    stored: Collection[Path] = (),
    parted: bool = False,
) -> tuple[list[Item], list[str]]:
    """The files to score, in the order of their names, and the names of skipped ones.

    Hidden files, links to folders, files of other endings and `aside` are skipped.
    `stored` are paths of files that a mirror of an object store has not copied yet. If
    `parted`, a local folder `COLUMN=MACHINE` of Parquet files counts as one file.

    Raises:
        ConfigError: outputs would be among the inputs, or replace one.
        DataError: a file does not exist or has another ending, two would write the same
            output, or there is none.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ConfigError(
            f"output={output} is a file: give a folder for the outputs of many files."
        )
    check_folder(output)
    items: list[Item] = []
    skipped: list[str] = []
    for path in map(Path, paths):
        found = [place for place in stored if path in place.parents]
        if found or path.is_dir():
            inner, outer = output.resolve(), path.resolve()
            # Its files would be inputs the next time.
            if inner == outer or outer in inner.parents:
                raise ConfigError(
                    f"output={output} is inside the input {path}: give a "
                    "folder outside of it."
                )
        else:
            if not path.exists() and path not in stored:
                raise DataError(f"{path} does not exist: check the path.")
            check_file(path)
        if found:
            files = [(place.relative_to(path).as_posix(), place) for place in found]
        else:
            files = [*_walk(path)] if path.is_dir() else [(path.name, path)]
        for name, below in files:
            shown = name.encode("utf-8", "backslashreplace").decode()
            known = below.name.lower().endswith(SUFFIXES)
            known = known and not any(part[0] == "." for part in name.split("/"))
            usable = known and (below in stored or below.is_file())
            if not usable or (aside and below.exists() and below.samefile(aside)):
                skipped.append(shown)
                continue
            if name != shown:
                raise DataError(f"the name {shown} is not UTF-8 text: rename the file.")
            if parted and not found and partition_of(below):
                name, below = name.rpartition("/")[0] or below.parent.name, below.parent
                if items and items[-1].path == below:
                    continue
                own = Path(name).parent / below.name.partition("=")[2]
                items.append(Item(name, below, output / f"{own}.parquet"))
                continue
            items.append(Item(name, below, output / _output_name(name)))
    if not items:
        raise DataError(
            f"{', '.join(map(str, paths))}: no file to score, expected one with an ending "
            f"of {', '.join(SUFFIXES)}."
        )
    items.sort(key=lambda item: item.name)
    _check_outputs(items)
    return items, skipped


def _is_done(record: Path, expected: dict[str, Any], outputs: Sequence[Path]) -> bool:
    """Whether the record and the outputs exist and match."""
    try:
        digests = {path.name: sha256(path) for path in outputs}
        found = json.loads(record.read_text("utf-8"))
        found.pop("measured", None)
        return bool(found == {**expected, "outputs": digests})
    except (AttributeError, TypeError, ValueError, FileNotFoundError):
        return False


def _measured(record: Path) -> Measured:
    """Events and days of the machines in a complete record."""
    found: Measured = json.loads(record.read_text("utf-8")).get("measured", {})
    return found


def _digest(path: Path) -> str:
    with reading(path):
        return input_digest(path)


def _check_outputs(items: Sequence[Item]) -> None:
    """Raises for outputs that two files would write, or that would replace an input."""
    inputs = {item.path.resolve(): item.path for item in items}
    owners: dict[Path, Path] = {}
    for item in items:
        folder = item.output.parent.resolve()
        for target in outputs_of(item.output):
            if replaced := inputs.get(folder / target.name):
                raise ConfigError(
                    f"{target} would replace the input {replaced}: give another folder "
                    "as output."
                )
            if target in owners:
                raise DataError(
                    f"{owners[target]} and {item.path} would both write {target}: rename "
                    "one, or score them into separate folders."
                )
            owners[target] = item.path


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files below a folder by name; a hidden or linked folder counts as one file."""

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error)

    for here, folders, files in os.walk(folder, onerror=refuse):
        top = Path(here)
        closed = {
            name for name in folders if name[0] == "." or (top / name).is_symlink()
        }
        folders[:] = sorted(set(folders) - closed)
        for name in sorted([*files, *closed]):
            yield (top / name).relative_to(folder).as_posix(), top / name


def _output_name(name: str) -> str:
    """
    >>> _output_name("line/a.tsv.gz"), _output_name("b.parquet")
    ('line/a.csv', 'b.parquet')
    """
    ending = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len)
    return name[: -len(ending)] + (".parquet" if ending == ".parquet" else ".csv")
