"""Scores many files with one detector, in shares, and resumes.

The share of a file follows from its name alone, so processes and hosts split the work
without communication. Beside each output lies a record of its inputs, written last; a
restart keeps an output if its checksums and those of its inputs match the record.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.data.raw import check_kind, unreadable
from kdjax.data.tables import SUFFIXES
from kdjax.detection.detector import entity_index
from kdjax.errors import ConfigError, DataError, KdjaxError
from kdjax.io.files import (
    MANIFEST,
    check_folder,
    clear_leftovers,
    kdjax_version,
    sha256,
    write_text,
)
from kdjax.scoring.files import events_path, load_scorer, score_rows

SCHEMA = 1  # of records

# Skipped files that are listed by name.
_NAMED = 20


class Shard(NamedTuple):
    """One of `total` shares of the files, `place` from 0."""

    place: int
    total: int


class Item(NamedTuple):
    """A file to score: name (its path below the given folder), path and output path."""

    name: str
    path: Path
    output: Path


class Found(NamedTuple):
    """The files to score, by name, and the names of skipped ones."""

    items: tuple[Item, ...]
    skipped: tuple[str, ...]


def score_fleet(
    paths: Sequence[str | os.PathLike[str]],
    *,
    detector: str | os.PathLike[str],
    output: str | os.PathLike[str],
    shard: str = "",
    entity: str | None = None,
    attribution: str = "",
    **options: Any,
) -> Iterator[str]:
    """Scores the files of a shard, each as `score_file` does; yields messages.

    For each input `NAME.ENDING` the output folder gets `NAME.csv` (`NAME.parquet` for
    Parquet), its events and `NAME.csv.done.json`. Inputs whose record and outputs match
    are skipped.

    Args:
        paths: files, and folders with all files below.
        detector: folder of a saved detector.
        output: folder.
        shard: `i/n` for one of n shares of the files, i from 0; all by default.
        entity, attribution: see `score_file`.
        options: `causal`, `contributions`, and for `read_like`.

    Raises:
        ConfigError: the settings fit no file; nothing is scored.
        DataError: two files have the same output; or, after all others have been
            scored, some failed.
    """
    share = parse_shard(shard)
    loaded = load_scorer(detector, attribution=attribution)
    if entity:
        entity_index(loaded, entity)  # raises for an unknown one
    recorded = {"entity": entity, "blame": attribution, **options}
    if options.get("exclude"):
        recorded["exclude"] = _digest(Path(options["exclude"]))
    common = {
        "schema": SCHEMA,
        "kdjax_version": kdjax_version(),
        "detector": _digest(Path(detector) / MANIFEST),
        "options": {name: value for name, value in recorded.items() if value},
    }
    found = find_files(paths, output=output, aside=options.get("exclude") or "")
    clear_leftovers(Path(output))
    if found.skipped:
        hidden = len(found.skipped) - _NAMED
        more = f", and {hidden:,} more" if hidden > 0 else ""
        yield (
            "skipped, as hidden, linked, without rows or of another ending: "
            f"{', '.join(found.skipped[:_NAMED])}{more}"
        )
    mine = [i for i in found.items if shard_of(i.name, share.total) == share.place]
    verified, failed = 0, []
    for item in mine:
        try:
            digest = _digest(item.path)
            expected = common | {"input": {"name": item.name, "sha256": digest}}
            if _is_done(item, expected):
                verified += 1
                yield f"{item.name}: verified"
            else:
                yield from score_rows(
                    item.path,
                    detector=loaded,
                    output=item.output,
                    entity=entity,
                    **options,
                )
                _write_record(item, expected)
        except ConfigError:
            raise  # Every file would fail in the same way.
        except KdjaxError as error:
            failed.append(f"{item.name}: {' '.join(str(error).split())}")
            yield f"failed: {failed[-1]}"
    part = f"shard {share.place}/{share.total}, " if share.total > 1 else ""
    yield (
        f"{output}: {part}{len(mine):,} of {len(found.items):,} files: "
        f"{len(mine) - verified - len(failed):,} scored, {verified:,} verified, "
        f"{len(failed):,} failed"
    )
    if failed:
        raise DataError(
            f"{len(failed):,} of {len(mine):,} files failed, the first: {failed[0]}"
        )


def parse_shard(text: str) -> Shard:
    """The share `i/n`; all files if the text is empty.

    >>> parse_shard("0/3")
    Shard(place=0, total=3)
    """
    if not text:
        return Shard(0, 1)
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(
            f"shard={text!r} is invalid: expected i/n with i from 0 to n - 1, such as "
            "0/4 to 3/4 for four processes."
        )
    return Shard(int(match[1]), int(match[2]))


def shard_of(name: str, total: int) -> int:
    """Which of `total` shares a file belongs to: SHA-256 of its name, modulo `total`."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest, "big") % total


def find_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str],
    aside: str | os.PathLike[str] = "",
) -> Found:
    """The files to score, in the order of their names, and the paths of their outputs.

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
            _check_apart(path, output)
        else:
            _check_given(path)
        for name, below in _walk(path) if path.is_dir() else [(path.name, path)]:
            shown = name.encode("utf-8", "backslashreplace").decode()
            if not _readable(below) or (aside and below.samefile(aside)):
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
    _check_targets(items)
    return Found(tuple(items), tuple(skipped))


def record_path(output: Path) -> Path:
    """The path of the record of an output."""
    return output.with_name(f"{output.name}.done.json")


def _write_record(item: Item, expected: dict[str, Any]) -> None:
    if _digest(item.path) != expected["input"]["sha256"]:
        raise DataError(
            f"{item.path} changed while it was scored: score it again once it is whole."
        )
    record = expected | {"outputs": _digests(item.output)}
    text = json.dumps(record, indent=1, sort_keys=True)
    write_text(record_path(item.output), text + "\n")


def _is_done(item: Item, expected: dict[str, Any]) -> bool:
    """Whether the record and the outputs exist and match."""
    try:
        record = json.loads(record_path(item.output).read_text("utf-8"))
        outputs = record.pop("outputs")
        return bool(record == expected and outputs == _digests(item.output))
    except (AttributeError, LookupError, TypeError, ValueError, FileNotFoundError):
        return False


def _digests(output: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in (output, events_path(output))}


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _check_apart(folder: Path, output: Path) -> None:
    """Refuses an output folder whose files would be inputs the next time."""
    inner, outer = output.resolve(), folder.resolve()
    if inner == outer or outer in inner.parents:
        raise ConfigError(
            f"output={output} lies in {folder}, which is to be scored: give a folder "
            "outside of it."
        )


def _check_targets(items: Sequence[Item]) -> None:
    """Refuses outputs that two files would write, or that would replace an input."""
    inputs = {item.path.resolve(): item.path for item in items}
    owners: dict[Path, Path] = {}
    for item in items:
        folder = item.output.parent.resolve()
        for target in (item.output, events_path(item.output), record_path(item.output)):
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


def _check_given(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path.")
    check_kind(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{path} has an unknown ending: expected {', '.join(SUFFIXES)}; convert it, or "
            "leave it out."
        )


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


def _readable(path: Path) -> bool:
    known = path.name.lower().endswith(SUFFIXES)
    return known and path.name[0] != "." and path.is_file()


def _output_name(name: str) -> str:
    """
    >>> _output_name("line/a.tsv.gz"), _output_name("b.parquet")
    ('line/a.csv', 'b.parquet')
    """
    ending = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len)
    return name[: -len(ending)] + (".parquet" if ending == ".parquet" else ".csv")
