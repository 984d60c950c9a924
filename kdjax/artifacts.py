"""Files that are whole or absent, and manifests that notice a changed byte.

Checkpoints, detectors, downloads and reports share these few functions: a file is
written under a temporary name and renamed; a folder is sealed by a table of SHA-256
digests that is verified before anything in it is believed.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from kdjax.errors import ArtifactError

MANIFEST = "MANIFEST.sha256"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended well.

    A block that raises leaves neither the temporary file nor a changed `path`. The
    suffix of `path` is kept, since writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )


def _read_manifest(folder: Path) -> dict[str, tuple[str, int]]:
    path = folder / MANIFEST
    try:
        rows = [line.split("  ", 2) for line in path.read_text("utf-8").splitlines()]
        return {name: (digest, int(size)) for digest, size, name in rows}
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
