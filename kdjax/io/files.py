"""Files that are whole or absent, and manifests that notice a changed byte.

Checkpoints, detectors, downloads and reports share these few functions: a file is
written under a temporary name and renamed; a folder is sealed by a table of SHA-256
digests that is verified before anything in it is believed. A temporary name tells which
process writes it, so that what a killed one left is known for that and cleared away.

Files that a stream goes on from: JSON with its own SHA-256.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdjax.errors import ArtifactError, ConfigError

MANIFEST = "MANIFEST.sha256"

# Host and process of whoever writes, and a word.
_MARK = r"(?P<mark>(?P<host>[0-9a-f]{4})-(?P<pid>\d+)-[0-9a-f]{6})"
_UNFINISHED = (
    re.compile(rf"\.{_MARK}\.tmp\.(?P<name>.+)"),
    re.compile(rf"\.(?P<name>.+)\.{_MARK}\.(new|old)"),
)
# Seconds after which what can't be told from the work of another host is given up.
_ABANDONED = 86_400.0

# Marks in use by this process.
_marks: set[str] = set()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended well.

    A block that raises leaves neither the temporary file nor a changed `path`. The
    suffix of `path` is kept, since writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with marked() as mark:
        temporary = path.with_name(f".{mark}.tmp.{path.name}")
        try:
            with naming(path):
                yield temporary
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within it, such as that of a full disk, says that `path` is meant."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            del error.filename2  # None would be said
        raise


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """A word for the names of unfinished files, which says that this process lives."""
    mark = f"{_host()}-{os.getpid()}-{secrets.token_hex(3)}"
    _marks.add(mark)
    try:
        yield mark
    finally:
        _marks.discard(mark)


def clear_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Removes what killed processes left unfinished; what may be another's work stays.

    A whole folder that a kill found between two names takes its name.

    Args:
        folder: where to look.
        names: of the files and folders that were to be; by default all, and in the
            folders below too.
    """
    found = folder.rglob(".*") if names is None else folder.glob(".*")
    # Of two versions of one folder the new one comes first.
    for path in sorted(found, key=lambda path: (path.suffix == ".old", path.name)):
        match = next(filter(None, (r.fullmatch(path.name) for r in _UNFINISHED)), None)
        if match is None or (names is not None and match["name"] not in names):
            continue
        with contextlib.suppress(OSError):  # Not ours to remove, or gone already.
            if _is_left(path, match):
                _clear(path, path.with_name(match["name"]))


def _clear(path: Path, target: Path) -> None:
    if not path.is_dir():
        path.unlink()
    elif path.suffix in (".new", ".old") and not target.exists() and _is_whole(path):
        path.rename(target)
    else:
        shutil.rmtree(path)


def _is_left(path: Path, match: re.Match[str]) -> bool:
    """Whether nobody works on an unfinished file any more."""
    if match["host"] == _host():
        pid = int(match["pid"])
        if pid == os.getpid():
            return match["mark"] not in _marks
        if not _is_alive(pid):
            return True
    return time.time() - path.stat().st_mtime > _ABANDONED


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # Asking would end it.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _is_whole(folder: Path) -> bool:
    try:
        verify_manifest(folder)
    except ArtifactError:
        return False
    return True


@functools.cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


def check_target(
    path: str | os.PathLike[str],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    name: str = "output",
) -> None:
    """Refuses, before any work, a file that can't be written or mustn't be replaced.

    Args:
        path: the file to write.
        inputs: other files of the same work; empty ones are none.
        name: of the flag or argument.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ConfigError(f"{name}={path} is {what}: give a file.")
    for other in filter(None, map(str, inputs)):
        if _is_same(path, Path(other)):
            raise ConfigError(
                f"{name}={path} would replace {other}, which is needed: give another file."
            )
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Refuses a folder into which nothing can be written, or where that does damage."""
    check_unsealed(folder)
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(
            f"{nearest} is a file, where a folder is to be: give another place."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{nearest} can't be written to (Permission denied): check its rights, or "
            "give another place."
        )


def check_unsealed(folder: Path) -> None:
    """Refuses a folder whose manifest, or that of one above, lists all that may be there."""
    folder = folder.resolve()
    for path in (folder, *folder.parents):
        if (path / MANIFEST).is_file():
            raise ConfigError(
                f"{path} is sealed by its {MANIFEST}, so that a file more would damage it: "
                "give a place outside of it."
            )


def _is_same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | os.PathLike[str]) -> None:
    """Seals `folder`: one line `digest  bytes  path` for each file below it."""
    folder = Path(folder)
    lines = [
        f"{sha256(path)}  {path.stat().st_size}  {path.relative_to(folder).as_posix()}"
        for path in _files(folder)
    ]
    write_text(folder / MANIFEST, "\n".join(lines) + "\n")


def verify_manifest(folder: str | os.PathLike[str]) -> None:
    """Checks `folder` against its manifest; ArtifactError names what differs."""
    folder = Path(folder)
    problems = []
    expected = _read_manifest(folder)
    present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name, (digest, size) in expected.items():
        if name not in present:
            problems.append(f"{name} is missing")
        elif present[name].stat().st_size != size:
            problems.append(
                f"{name} has {present[name].stat().st_size} bytes, not {size}"
            )
        elif sha256(present[name]) != digest:
            problems.append(f"{name} has changed (SHA-256 differs)")
    problems += [
        f"{name} is not in the manifest" for name in present.keys() - expected.keys()
    ]
    if problems:
        raise ArtifactError(
            f"{folder} is damaged: {'; '.join(sorted(problems))}. "
            "Restore it from a copy or make it again."
        )


@functools.cache
def kdjax_version() -> str:
    """The version of kdjax that runs, which files name as their writer's."""
    return importlib.metadata.version("kdjax")


def check_schema(name: str, found: int, *, known: int, version: str | None) -> None:
    """Refuses what a newer kdjax wrote, which this one would misread.

    Args:
        name: what is read, as the sentence's beginning.
        found: its schema.
        known: the newest schema that this kdjax reads.
        version: of the kdjax that wrote it, where it says so.
    """
    if found > known:
        which = f" ({version} wrote it)" if version else ""
        raise ArtifactError(
            f"{name} has schema {found}, this kdjax reads up to {known}: install a newer "
            f"kdjax{which}."
        )


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )


def _read_manifest(folder: Path) -> dict[str, tuple[str, int]]:
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode("utf-8")
        rows = [line.split("  ", 2) for line in text.removesuffix("\n").split("\n")]
        found = {name: (digest, int(size)) for digest, size, name in rows}
        # Not a byte may differ: Python takes 1_0 for 10, and more for line ends.
        names = sorted(found, key=lambda name: Path(name).parts)
        lines = [f"{found[n][0]}  {found[n][1]}  {n}" for n in names]
        if "\n".join(lines) + "\n" != text:
            raise ValueError("its text is not what kdjax writes")
        return found
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {MANIFEST}: it is not a complete kdjax artifact. "
            "Give the folder that kdjax wrote, or make it again."
        ) from None
    except (ValueError, OSError) as error:
        raise ArtifactError(
            f"{path} can't be read as a manifest ({error}). "
            "Restore it from a copy or make it again."
        ) from error


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes JSON objects such as a `StreamDetector.state`, whole or not at all."""
    write_text(path, _state_text(state))


def _state_text(state: Mapping[str, Any]) -> str:
    text = json.dumps(state, allow_nan=False, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256": "{digest}", "state": {text}}}\n'


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_state` wrote; ArtifactError if a byte of it has changed."""
    try:
        content = Path(path).read_bytes()
        state: dict[str, Any] = dict(json.loads(content.decode("utf-8"))["state"])
        # All of it is compared, so that no byte is passed over, such as a blank.
        if _state_text(state).encode() != content:
            raise ValueError("its SHA-256 differs")
    except (LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is no state of a stream ({error}): restore it from a copy, or "
            "remove it to start anew."
        ) from error
    return state
