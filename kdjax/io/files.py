"""Files that are complete or absent, and manifests that detect a changed byte.

A file is written under a temporary name and renamed. A folder is sealed by a table of
SHA-256 digests that is verified before the folder is read. Temporary names contain the host
and process that write them, so that leftovers of a killed process can be removed.
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
FLEET = "fleet.json"  # of a folder of a fleet
_MARK = r"(?P<mark>(?P<host>[0-9a-f]{4})-(?P<pid>\d+)-[0-9a-f]{6})"
_UNFINISHED = (
    re.compile(rf"\.{_MARK}\.tmp\.(?P<name>.+)"),
    re.compile(rf"\.(?P<name>.+)\.{_MARK}\.(new|old)"),
)
_DETECTOR = "detector.json"
# Where detectors are searched below a folder, and most of them in a message.
_ABOVE = ("*/", "detectors/*/", "*/detectors/*/")
_NEAR = 5
_ABANDONED = 86_400.0  # seconds until another host's unfinished file is a leftover
_marks: set[str] = set()  # in use by this process


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that is renamed to `path` when the block succeeds.

    A block that raises leaves no temporary file, and `path` unchanged. The temporary name
    has the suffix of `path`, since writers choose their format by it.
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
    """Makes an OSError raised in the block, such as of a full disk, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            del error.filename2  # None would be printed
        raise


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """A unique mark for names of unfinished files; it contains host and process."""
    mark = f"{_host()}-{os.getpid()}-{secrets.token_hex(3)}"
    _marks.add(mark)
    try:
        yield mark
    finally:
        _marks.discard(mark)


def clear_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Removes unfinished files of killed processes, not those of other live processes.

    A complete folder that a kill left between two names is renamed to its final name.
    `names` are final names of files and folders; by default all, also in subfolders.
    """
    found = folder.rglob(".*") if names is None else folder.glob(".*")
    # Of two versions of one folder the new one comes first.
    for path in sorted(found, key=lambda path: (path.suffix == ".old", path.name)):
        match = next(filter(None, (r.fullmatch(path.name) for r in _UNFINISHED)), None)
        if match is None or (names is not None and match["name"] not in names):
            continue
        with contextlib.suppress(OSError):  # no permission, or removed already
            if not _is_left(path, match):
                continue
            target = path.with_name(match["name"])
            renamed = path.suffix in (".new", ".old")
            if not path.is_dir():
                path.unlink()
            elif renamed and not target.exists() and _is_complete(path):
                path.rename(target)
            else:
                shutil.rmtree(path)


def _is_left(path: Path, match: re.Match[str]) -> bool:
    """Whether no process works on an unfinished file any more."""
    pid, local = int(match["pid"]), match["host"] == _host()
    if local and pid == os.getpid():
        return match["mark"] not in _marks
    if local and os.name == "posix":  # on other systems os.kill would end the process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
    return time.time() - path.stat().st_mtime > _ABANDONED


def _is_complete(folder: Path) -> bool:
    with contextlib.suppress(ArtifactError):
        verify_manifest(folder)
        return True
    return False


@functools.cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


def check_target(
    path: str | os.PathLike[str],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    name: str = "output",
) -> None:
    """Raises ConfigError if a file can't be written or would replace an input.

    `inputs` are files that must be kept, without empty names; `name` is the flag's.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise ConfigError(f"{name}={path} is {what}: give a file.")
    for other in filter(None, map(str, inputs)):
        if path.resolve() == Path(other).resolve() or (
            path.exists() and Path(other).exists() and path.samefile(other)
        ):
            raise ConfigError(
                f"{name}={path} would replace {other}, which is needed: give another file."
            )
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raises ConfigError if files can't or mustn't be written to a folder."""
    check_unsealed(folder)
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(
            f"{nearest} is a file, but must be a folder: give another path."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{nearest} can't be written to (Permission denied): check its permissions, or "
            "give another path."
        )


def check_replaceable(folder: Path) -> None:
    """Raises ArtifactError if `folder` contains anything but a detector."""
    check_folder(folder.parent)
    if not folder.exists() or (
        folder.is_dir() and (not any(folder.iterdir()) or (folder / MANIFEST).exists())
    ):
        return
    raise ArtifactError(
        f"{folder} exists and holds no kdjax detector: give a new folder, or remove it."
    )


def check_unsealed(folder: Path) -> None:
    """Raises ConfigError if a folder or one above it is sealed by a manifest."""
    folder = folder.resolve()
    for path in (folder, *folder.parents):
        if (path / MANIFEST).is_file():
            raise ConfigError(
                f"{path} is sealed by its {MANIFEST}, and a further file would damage it: "
                "give a path outside of it."
            )


def is_fleet(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a fleet, see `kdjax.detection.fleet`."""
    return (Path(folder) / FLEET).is_file()


def check_detector_folder(folder: Path, *, fleets: bool = False) -> None:
    """Raises ArtifactError for a folder without a detector; names detectors near it.

    A detector that a kill left between two names is moved to its place first. `fleets`:
    whether the folder of a fleet is allowed.
    """
    if is_fleet(folder):
        if fleets:
            return
        raise ArtifactError(
            f"{folder} is the folder of a fleet: give the detector of one machine, such as "
            f"{folder}/detectors/MACHINE."
        )
    if folder.is_file() and folder.suffix == ".onnx":
        raise ArtifactError(
            f"{folder} is an ONNX file, which stream and serve take: run kdjax stream "
            f"--detector={folder} < FILE.csv, or give the folder of a detector here."
        )
    if not folder.is_dir():
        clear_leftovers(folder.parent, (folder.name,))
    if any((folder / name).exists() for name in (MANIFEST, _DETECTOR)):
        return  # its content is checked when it is read
    for place in (folder, *folder.absolute().parents[:2]):
        near = sorted(
            path.parent for above in _ABOVE for path in place.glob(above + _DETECTOR)
        )
        if near:
            break
    problem = f"has no {MANIFEST}" if folder.is_dir() else "is not a folder"
    problem = problem if folder.exists() or folder.suffix != ".onnx" else "is no file"
    names = ", ".join(map(str, near[:_NEAR])) + ", …" * (len(near) > _NEAR)
    told = f" ({len(near)} near it: {names})" if near else ""
    raise ArtifactError(
        f"{folder} {problem}: give the folder of a detector, such as "
        f"WORKDIR/detectors/student{told}."
    )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | os.PathLike[str]) -> None:
    """Seals `folder`: one line `digest  bytes  path` for each file below it."""
    files = _files(Path(folder)).items()
    entries = {name: (sha256(path), path.stat().st_size) for name, path in files}
    write_text(Path(folder) / MANIFEST, _manifest_text(entries))


def verify_manifest(folder: str | os.PathLike[str]) -> None:
    """Checks `folder` against its manifest; ArtifactError lists what differs."""
    folder = Path(folder)
    expected, present = _read_manifest(folder), _files(folder)
    problems = [f"{name} is not in the manifest" for name in present.keys() - expected]
    for name, (digest, size) in expected.items():
        if name not in present:
            problems.append(f"{name} is missing")
        elif (found := present[name].stat().st_size) != size:
            problems.append(f"{name} has {found} bytes, not {size}")
        elif sha256(present[name]) != digest:
            problems.append(f"{name} has changed (SHA-256 differs)")
    if problems:
        raise ArtifactError(
            f"{folder} is damaged: {'; '.join(sorted(problems))}. "
            "Restore it from a copy or create it again."
        )


def _files(folder: Path) -> dict[str, Path]:
    paths = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _manifest_text(entries: Mapping[str, tuple[str, int]]) -> str:
    names = sorted(entries, key=lambda name: Path(name).parts)
    return "\n".join(f"{entries[n][0]}  {entries[n][1]}  {n}" for n in names) + "\n"


def _read_manifest(folder: Path) -> dict[str, tuple[str, int]]:
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode("utf-8")
        rows = [line.split("  ", 2) for line in text.removesuffix("\n").split("\n")]
        found = {name: (digest, int(size)) for digest, size, name in rows}
        # Any changed byte counts, also where Python reads the same: 1_0 for 10.
        if _manifest_text(found) != text:
            raise ValueError("its text is not what kdjax writes")
        return found
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {MANIFEST}: it is not a complete kdjax artifact. "
            "Give the folder that kdjax wrote, or create it again."
        ) from None
    except (ValueError, OSError) as error:
        raise ArtifactError(
            f"{path} can't be read as a manifest ({error}). "
            "Restore it from a copy or create it again."
        ) from error


@functools.cache
def kdjax_version() -> str:
    """The version of kdjax, which files record."""
    return importlib.metadata.version("kdjax")


def check_schema(name: str, found: int, *, known: int, version: str | None) -> None:
    """Raises ArtifactError for a file `name` with a schema above the newest one known.

    `version` is that of the kdjax that wrote it, if recorded.
    """
    if found > known:
        which = f" ({version} wrote it)" if version else ""
        raise ArtifactError(
            f"{name} has schema {found}, this kdjax reads up to {known}: install a newer "
            f"kdjax{which}."
        )


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes the state of a stream as JSON with its SHA-256, completely or not at all."""
    write_text(path, state_text(state))


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `save_state` wrote; ArtifactError if a byte of it has changed."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} is not a state of a stream ({error}): restore it from a copy, or "
            "remove it to start again."
        ) from error
    return read_state(content, str(path))


def check_state_kind(path: str | os.PathLike[str], *, several: bool) -> None:
    """Raises ArtifactError for the state of a stream of one entity instead of several.

    Or the other way round; a missing or other file is reported when it is read.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(15)
    except OSError:
        return
    if several and begin.startswith(b'{"sha256"'):  # of `state_text`
        raise ArtifactError(
            f"{path} is the state of a stream without --entity_column: remove that flag, "
            "or give another file for the state of several entities."
        )
    if not several and begin == b"SQLite format 3":
        raise ArtifactError(
            f"{path} is the state of a stream of several entities (--entity_column): give "
            "that flag as when it was written, or another file for this state."
        )


def read_state(content: bytes, name: str) -> dict[str, Any]:
    """The state in a `state_text`; ArtifactError for other content; `name` is for it."""
    try:
        state: dict[str, Any] = dict(json.loads(content.decode("utf-8"))["state"])
        if state_text(state).encode() != content:
            raise ValueError("its SHA-256 differs")
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{name} is not a state of a stream ({error}): restore it from a copy, or "
            "remove it to start again."
        ) from error
    return state


def state_text(state: Mapping[str, Any]) -> str:
    """A state of JSON values as text with its SHA-256."""
    text = json.dumps(state, allow_nan=False, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256": "{digest}", "state": {text}}}\n'
