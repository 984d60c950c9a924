"""Damages saved files, one at a time, and classifies what reading them does.

`mutations.py` chooses the files.
"""

import contextlib
import logging
import logging.handlers
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.errors import KdjaxError
from kdjax.training.checkpoints import restore_checkpoint

# Files up to this size are damaged at every byte, others at this many places.
SMALL, PLACES = 65_536, 200


class Subject(NamedTuple):
    """Something saved.

    Attributes:
        name: what it is.
        root: its folder, or the file itself.
        files: those to damage.
        use: reads it and gives bytes of what follows, the same for the same files.
        other: a file to put in another's place, by that one.
        places: at which large files are damaged.
        small: size up to which files are damaged at every byte.
        settled: whether its use leaves the files alone.
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    use: Callable[[], bytes]
    other: Callable[[Path], Path]
    places: int = PLACES
    small: int = SMALL
    settled: bool = True


class Damage(NamedTuple):
    """What is done to a file: its new bytes, or a function of its path."""

    kind: str
    place: int
    content: bytes | None = None
    act: Callable[[Path], None] | None = None


def damages(
    content: bytes, other: Path, rng: random.Random, *, small: int, places: int
) -> Iterator[Damage]:
    """All damages of a file that change a byte."""
    size = len(content)
    every = size <= small
    at = range(size) if every else sorted(rng.sample(range(size), min(size, places)))
    for place in at:
        byte = content[place]
        yield Damage("flip", place, _with(content, place, byte ^ 1 << rng.randrange(8)))
        yield Damage("cut", place, content[:place])
    for place in rng.sample(range(size), min(size, places // 8)):
        for value in (0, 255):
            if content[place] != value:
                yield Damage(f"set to {value}", place, _with(content, place, value))
        extra = bytes([rng.randrange(256)])
        yield Damage("put in", place, content[:place] + extra + content[place:])
        gone = content[:place] + content[place + 1 :]
        yield Damage("take out", place, gone)
        yield Damage("swap", place, _swapped(content, place, rng))
    for tail in (b"\0", b"\n", b" ", content):
        yield Damage("append", size, content + tail)
    yield Damage("empty", 0, b"")
    yield Damage("remove", 0, act=Path.unlink)
    yield Damage("folder", 0, act=_to_folder)
    if other.read_bytes() != content:
        yield Damage("exchange", 0, other.read_bytes())
        yield Damage("link to another", 0, act=lambda path: _to_link(path, other))
    yield Damage("link to nothing", 0, act=lambda path: _to_link(path, Path("gone")))


def _with(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([value]) + content[place + 1 :]


def _swapped(content: bytes, place: int, rng: random.Random) -> bytes:
    """Two blocks of up to 64 bytes, one at the place, in each other's."""
    first, second = sorted((place, rng.randrange(len(content))))
    size = min(64, second - first, len(content) - second)
    a, b = content[first : first + size], content[second : second + size]
    middle = content[first + size : second]
    return content[:first] + b + middle + a + content[second + size :]


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target.resolve() if target.exists() else target)


def attack(
    subject: Subject, rng: random.Random, *, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """The outcome of each damage: `refused`, `same`, `wrong` or `crash`.

    Args:
        subject: to damage; it is whole again afterwards.
        rng: draws places.
        limit: at most so many damages of a file, drawn by lot.
    """
    whole = subject.use()
    keep = subject.root.with_name(subject.root.name + ".whole")
    copy(subject.root, keep)
    for path in subject.files:
        content, other = path.read_bytes(), subject.other(path)
        todo = [
            *damages(content, other, rng, small=subject.small, places=subject.places)
        ]
        if limit is not None:
            todo = rng.sample(todo, min(limit, len(todo)))
        for damage in todo:
            if damage.content == content:
                continue
            do(path, damage)
            outcome, told = _outcome(subject.use, whole)
            yield {
                "subject": subject.name,
                "file": path.relative_to(subject.root).as_posix()
                if path != subject.root
                else path.name,
                "damage": damage.kind,
                "place": damage.place,
                "outcome": outcome,
                "told": told,
            }
            if subject.settled and damage.content is not None:
                path.write_bytes(content)
            else:
                copy(keep, subject.root)
    assert subject.use() == whole, "the subject is not whole again"
    _remove(keep)


def copy(source: Path, target: Path) -> None:
    _remove(target)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def do(path: Path, damage: Damage) -> None:
    if damage.content is not None:
        path.write_bytes(damage.content)
    elif damage.act is not None:
        damage.act(path)


def _outcome(use: Callable[[], bytes], whole: bytes) -> tuple[str, str]:
    try:
        found = use()
    except KdjaxError as error:
        return "refused", type(error).__name__
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return "crash", repr(error)[:300]
    return ("same" if found == whole else "wrong"), ""


def attack_checkpoints(
    phase: Path, template: Any, rng: random.Random, *, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """As `attack`, for the newest step: `fell back`, `same`, `wrong` or `crash`."""
    steps = sorted(int(p.name) for p in phase.iterdir() if p.name.isdecimal())
    newest, before = phase / str(steps[-1]), phase / str(steps[-2])
    keep = phase.with_name(phase.name + ".whole")
    copy(phase, keep)
    whole = _restored(phase, template)
    shutil.rmtree(newest)
    older = _restored(phase, template)
    copy(keep, phase)
    assert whole != older
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        content, name = path.read_bytes(), path.relative_to(newest)
        twin = before / name if (before / name).exists() else newest / "MANIFEST.sha256"
        todo = [*damages(content, twin, rng, small=0, places=min(8, len(content)))]
        todo = todo if limit is None else rng.sample(todo, min(limit, len(todo)))
        for damage in todo:
            if damage.content == content:
                continue
            do(path, damage)
            outcome, told = _fallen(phase, newest, template, whole, older)
            yield {
                "subject": f"checkpoint of {phase.name}",
                "file": name.as_posix(),
                "damage": damage.kind,
                "place": damage.place,
                "outcome": outcome,
                "told": told,
            }
            copy(keep, phase)
    assert _restored(phase, template) == whole
    _remove(keep)


def _restored(phase: Path, template: Any) -> bytes:
    found = restore_checkpoint(phase, template)
    assert found is not None
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found.arrays)]
    return b"".join([str(found.step).encode(), found.meta.encode(), *leaves])


def _fallen(
    phase: Path, newest: Path, template: Any, whole: bytes, older: bytes
) -> tuple[str, str]:
    """How a damaged newest step was handled."""
    with heard() as said:
        try:
            found = _restored(phase, template)
        except Exception as error:  # noqa: BLE001 - there is a sound step
            return "crash", repr(error)[:300]
    if found == older:
        named = names(said, newest)
        return ("fell back", "") if named else ("wrong", "without a warning")
    return ("same" if found == whole else "wrong"), ""


@contextlib.contextmanager
def heard() -> Iterator[list[logging.LogRecord]]:
    """The warnings of kdjax within a block."""
    handler = logging.handlers.BufferingHandler(10**6)
    handler.setLevel(logging.WARNING)
    logging.getLogger("kdjax").addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logging.getLogger("kdjax").removeHandler(handler)


def names(said: list[logging.LogRecord], path: Path) -> bool:
    """Whether a warning names a path."""
    return any(str(path) in record.getMessage() for record in said)


def one_damage(path: Path, rng: random.Random) -> Damage:
    content = path.read_bytes()
    known = damages(content, path, rng, small=0, places=min(8, len(content)))
    return rng.choice([damage for damage in known if damage.content != content])
