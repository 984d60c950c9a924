"""Scores files with a saved detector: one file, or many in shares that resume.

The share of a file follows from its name alone, so processes and hosts split the work
without communication. Beside each output lies a record of its inputs, written last; a
restart keeps an output if its checksums and those of its inputs match the record.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kdjax.data.raw import about, reading, unreadable
from kdjax.data.readers import match_channels, name_of
from kdjax.data.tables import SUFFIXES, check_file
from kdjax.data.times import seconds_per_row
from kdjax.detection.alarming import alarm_measures, measures_text
from kdjax.detection.attribution import check_attribution
from kdjax.detection.detector import POOLED, Detector, entity_index
from kdjax.detection.false_alarms import series_notes
from kdjax.detection.reading import read_like
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import find_windows, score_events, score_table
from kdjax.errors import ConfigError, DataError, KdjaxError, counted
from kdjax.io.executors import LOCAL, ONE_CORE, Resources, Unit, run_units
from kdjax.io.files import (
    MANIFEST,
    atomic_path,
    check_folder,
    check_target,
    clear_leftovers,
    kdjax_version,
    sha256,
    write_text,
)
from kdjax.io.messages import acting

SCHEMA = 1  # of records
_NAMED = 20  # skipped files that are listed by name
# On workers: bytes of a unit at most, and how many units of less there are about.
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
    """Writes a file's score table and `OUTPUT.events.csv`; says what it did.

    Args:
        path: CSV, Parquet or `.npy` file.
        detector: folder of a saved detector.
        output: `.csv` or `.parquet` file; see `score_table` for its columns.
        attribution: method of the contributions; the detector's own by default.
        options: `entity`, whose scaler, Gaussian and threshold to use (by default the
            entity of the rows where the detector was calibrated on it, else the pooled
            ones); `causal` and `contributions` of `score_table`; those of `read_like`; and
            `log`, a callable that takes each message as it comes, such as `print`. All
            are returned.
    """
    targets = outputs_of(Path(output))[:2]
    for target in targets:
        check_target(target, inputs=(path, options.get("exclude", "")))
    clear_leftovers(targets[0].parent, [target.name for target in targets])
    loaded = load_scorer(detector, attribution=attribution)
    yield from _score_rows(path, detector=loaded, output=targets[0], **options)


def load_scorer(detector: str | os.PathLike[str], *, attribution: str = "") -> Detector:
    """A saved detector, with another attribution method if one is given."""
    loaded = load_detector(detector)
    if attribution:
        check_attribution(attribution)
        loaded = loaded._replace(attribution=attribution)
    return loaded


def _score_rows(
    path: str | os.PathLike[str],
    *,
    detector: Detector,
    output: Path,
    entity: str | None = None,
    causal: bool = False,
    contributions: bool = False,
    **reading: Any,
) -> Iterator[str]:
    """`score_file` with a detector from `load_scorer`; `reading` is for `read_like`."""
    tables, events, clocks = [], [], []
    dtype = detector.scalers.offset.dtype
    for series in read_like(detector, path, dtype=dtype, **reading):
        known = series.entity if series.entity in detector.entities else POOLED
        used = entity or known
        index = entity_index(detector, used)  # raises before the first message
        with about(path):
            series = match_channels(series, detector.channels)
            find_windows(detector, series, causal=causal)  # raises before it too
            yield (
                f"{series.entity}: {counted(len(series.values), 'row')} under the threshold of "
                f"{used}"
            )
            table = score_table(
                detector,
                series,
                entity=used,
                causal=causal,
                contributions=contributions,
            )
        tables.append(table)
        clocks.append(series.time)
        # As a stream does, where rows name no entity.
        name = used if series.entity == name_of(path) else series.entity
        events.append(
            score_events(detector, series, table, entity=used, causal=causal, name=name)
        )
        yield from series.notes
        yield from series_notes(detector, index, series, table)
    scores, alarms, _ = outputs_of(output)
    table, found = _write(tables, scores), _write(events, alarms)
    if all(seconds_per_row(clock) for clock in clocks):
        ends = [table["time"].iloc[place] for table in tables for place in (0, -1)]
        yield measures_text(alarm_measures(found, span=ends))
    yield (
        f"{output}: {int(table['alarm'].sum()):,} of {counted(len(table), 'row')} in alarm, "
        f"{counted(len(found), 'event')}"
    )


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
            table.to_csv(temporary, index=False)
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
    """Scores the files of a shard, each as `score_file` does; says what it did.

    For each input `NAME.ENDING` the output folder gets `NAME.csv` (`NAME.parquet` for
    Parquet), its events and `NAME.csv.done.json`. Inputs whose record and outputs match
    are skipped.

    Args:
        paths: files, and folders with all files below.
        detector: folder of a saved detector.
        output: folder.
        shard: `i/n` for one of n shares of the files, i from 0; all by default.
        entity, attribution: see `score_file`.
        executor, address, resources: see `kdjax.io.executors.run_units`.
        options: `causal`, `contributions`, and for `read_like`; and `log`, as for
            `score_file`.

    Raises:
        ConfigError: the settings fit no file; nothing is scored.
        DataError: two files have the same output; or, after all others have been
            scored, some failed.
    """
    place, total = parse_shard(shard)
    loaded = load_scorer(detector, attribution=attribution)
    if entity:
        entity_index(loaded, entity)  # raises for an unknown one
    exclude = options.get("exclude") or ""
    recorded = {"entity": entity, "blame": attribution, **options}
    if exclude:
        recorded["exclude"] = _digest(Path(exclude))
    common: dict[str, Any] = {
        "schema": SCHEMA,
        "kdjax_version": kdjax_version(),
        "detector": _digest(Path(detector) / MANIFEST),
        "options": {name: value for name, value in recorded.items() if value},
    }
    items, skipped = find_files(paths, output=output, aside=exclude)
    clear_leftovers(Path(output))
    if skipped:
        more = f", and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else ""
        yield (
            "skipped, as hidden, linked, without rows or of another ending: "
            f"{', '.join(skipped[:_NAMED])}{more}"
        )
    mine = [item for item in items if shard_of(item.name, total) == place]
    if executor == LOCAL:
        verified, failed = yield from _score_items(
            mine, loaded, common, entity, options
        )
    else:
        data = {
            "detector": os.fspath(detector),
            "attribution": attribution,
            "common": common,
            "entity": entity,
            "options": options,
        }
        units = _units(mine, data)
        execution = {"executor": executor, "address": address, "resources": resources}
        verified, failed = yield from _score_units(units, **execution)
    part = f"shard {place}/{total}, " if total > 1 else ""
    yield (
        f"{output}: {part}{len(mine):,} of {counted(len(items), 'file')}: "
        f"{len(mine) - verified - len(failed):,} scored, {verified:,} verified, "
        f"{len(failed):,} failed"
    )
    if failed:
        raise DataError(
            f"{len(failed):,} of {counted(len(mine), 'file')} failed, the first: {failed[0]}"
        )


def _score_items(
    items: Sequence[Item],
    detector: Detector,
    common: Mapping[str, Any],
    entity: str | None,
    options: Mapping[str, Any],
) -> Generator[str, None, tuple[int, list[str]]]:
    """Says what it does; gives how many were verified, and what failed."""
    verified, failed = 0, []
    for item in items:
        scores, events, record = outputs_of(item.output)
        try:
            digest = _digest(item.path)
            expected = {**common, "input": {"name": item.name, "sha256": digest}}
            if _is_done(record, expected, (scores, events)):
                verified += 1
                yield f"{item.name}: verified"
                continue
            yield from _score_rows(
                item.path, detector=detector, output=scores, entity=entity, **options
            )
            if _digest(item.path) != digest:
                raise DataError(
                    f"{item.path} changed while it was scored: score it again once it "
                    "is whole."
                )
            expected["outputs"] = {path.name: sha256(path) for path in (scores, events)}
            write_text(record, json.dumps(expected, indent=1, sort_keys=True) + "\n")
        except ConfigError:
            raise  # Every file would fail in the same way.
        except KdjaxError as error:
            failed.append(f"{item.name}: {' '.join(str(error).split())}")
            yield f"failed: {failed[-1]}"
    return verified, failed


def _units(items: Sequence[Item], data: Mapping[str, Any]) -> list[Unit]:
    """Units of files of about equal bytes, the largest first."""
    sizes = {item: item.path.stat().st_size for item in items}
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


def _score_units(
    units: Sequence[Unit], **execution: Any
) -> Generator[str, None, tuple[int, list[str]]]:
    """`_score_items` on workers."""
    verified, failed = 0, list[str]()
    for outcome in run_units(score_unit, units, **execution):
        found = outcome.value
        if found is None:  # the unit as a whole
            faults = [f"{name}: {outcome.error}" for name in outcome.name.split("\n")]
            found = [f"failed: {fault}" for fault in faults], 0, faults, ""
        messages, count, faults, refusal = found
        yield from messages
        if refusal:
            raise ConfigError(refusal)
        verified += count
        failed += faults
    return verified, failed


def score_unit(data: Mapping[str, Any]) -> tuple[list[str], int, list[str], str]:
    """Scores the files of a unit: messages, number verified, failures, why none can be.

    `data` is plain: detector, attribution, `common` of records, entity, options, and the
    fields of each `Item`.
    """
    items = [Item(name, Path(path), Path(to)) for name, path, to in data["items"]]
    known = data["detector"], data["attribution"], data["common"]["detector"]
    acts = _score_items(
        items, _loaded(*known), data["common"], data["entity"], data["options"]
    )
    messages = []
    while True:
        try:
            messages.append(next(acts))
        except StopIteration as end:
            return messages, *end.value, ""
        except ConfigError as error:
            return messages, 0, [], str(error)


@functools.lru_cache(maxsize=1)
def _loaded(detector: str, attribution: str, digest: str) -> Detector:
    """The detector, which this process keeps for its next unit."""
    return load_scorer(detector, attribution=attribution)


def parse_shard(text: str) -> tuple[int, int]:
    """The place, from 0, and the number of shares in `i/n`; all files if it is empty.

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
) -> tuple[list[Item], list[str]]:
    """The files to score, in the order of their names, and the names of skipped ones.

    Hidden files, links to folders, files of other endings and `aside` are skipped.

    Raises:
        ConfigError: outputs would lie among inputs, or replace one.
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
        if path.is_dir():
            inner, outer = output.resolve(), path.resolve()
            # Its files would be inputs the next time.
            if inner == outer or outer in inner.parents:
                raise ConfigError(
                    f"output={output} lies in {path}, which is to be scored: give a "
                    "folder outside of it."
                )
        else:
            if not path.exists():
                raise DataError(f"{path} does not exist: check the path.")
            check_file(path)
        for name, below in _walk(path) if path.is_dir() else [(path.name, path)]:
            shown = name.encode("utf-8", "backslashreplace").decode()
            known = below.name.lower().endswith(SUFFIXES) and below.name[0] != "."
            usable = known and below.is_file()
            if not usable or (aside and below.samefile(aside)):
                skipped.append(shown)
                continue
            if name != shown:
                raise DataError(f"the name {shown} is not UTF-8 text: rename the file.")
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
        return bool(found == {**expected, "outputs": digests})
    except (ValueError, FileNotFoundError):
        return False


def _digest(path: Path) -> str:
    with reading(path):
        return sha256(path)


def _check_outputs(items: Sequence[Item]) -> None:
    """Refuses outputs that two files would write, or that would replace an input."""
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
                    "one, or score them into folders of their own."
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
