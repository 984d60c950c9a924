"""Files of an object store, `s3://bucket/key`: copied in, processed, copied out.

Readers and writers of kdjax work on local files. s3fs copies, with the endpoint and the
credentials of the environment as boto3 reads them (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, …).
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from kdjax.errors import ArtifactError, ConfigError, DataError, KdjaxError
from kdjax.io.files import MANIFEST, atomic_path, clear_leftovers, marked
from kdjax.io.lazy import library

_S3 = "s3://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes s3:/ of s3://
_BUCKET = re.compile(r"s3://[A-Za-z0-9][\w.-]*(?:/|$)")
_PATIENCE = 10.0  # most seconds until a store answers for the first time
_SEAL = "kdjax-seal"  # a name in an object's metadata
_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "fsspec", "s3fs"}
_SPELLING = "check bucket and key"
_RIGHTS = (
    "check the endpoint, the credentials and their permissions in the environment "
    "(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE)"
)


class Stored(NamedTuple):
    """An object's size in bytes, and its ETag, which changes with its content."""

    size: int
    tag: str


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store; ConfigError for a URL that can't be used.

    >>> is_remote("s3://bucket/plants"), is_remote("plants/a.csv")
    (True, False)
    """
    text = os.fspath(path)
    if not _URL.match(text):
        return False
    if not text.startswith(_S3):
        raise ConfigError(
            f"{text} is not a path for kdjax: give a local path, or text of the form "
            "s3://BUCKET/KEY for an object store; copy other files to one of them."
        )
    if not _BUCKET.match(text):
        raise ConfigError(f"{text} has no bucket: expected s3://BUCKET/KEY.")
    _check_name(text, text.removeprefix(_S3).rstrip("/"))
    return True


def check_local(path: str | os.PathLike[str], name: str = "") -> None:
    """Raises ConfigError for a URL instead of a local file; `name` is the setting's."""
    if _URL.match(os.fspath(path)):
        raise ConfigError(
            f"{name}{path} is not a local file: copy it to the local disk first; of the verbs "
            "only score and fleet read and write s3:// paths."
        )


def check_store(url: str) -> None:
    """Raises ConfigError unless the store of a URL answers and has its bucket."""
    if is_remote(url):
        _check_bucket(url.removeprefix(_S3).partition("/")[0])


def list_files(url: str, suffixes: Collection[str] = ("",)) -> dict[str, Stored]:
    """Objects by their URLs in order: the one at `url` itself, or those below it.

    `suffixes` are lower-case endings of names. Without objects the result is empty.

    >>> list_files("s3://bucket/plants", (".csv",))  # doctest: +SKIP
    {'s3://bucket/plants/a.csv': Stored(size=1200, tag='"9b2c…"')}
    """
    store = _store(url)
    with _errors(url):
        found = {}
        if not url.endswith("/") and url.count("/") > 2:
            with contextlib.suppress(FileNotFoundError):
                found = {url: store.info(url)}
        if not found or found[url]["type"] == "directory":
            below = store.find(url.rstrip("/"), detail=True)
            found = {f"{_S3}{name}": entry for name, entry in below.items()}
    return {
        name: _stored(entry)
        for name, entry in sorted(found.items())
        # Consoles mark empty folders by objects whose keys end in a slash.
        if name[-1] != "/" and name.lower().endswith(tuple(suffixes))
    }


def fetch(url: str, folder: str | os.PathLike[str]) -> Path:
    """Copies an object, or a folder with all below it, into `folder`; returns its path.

    >>> fetch("s3://bucket/detectors/student", "/tmp/work")  # doctest: +SKIP
    PosixPath('/tmp/work/bucket/detectors/student')
    """
    return Mirror(Path(folder), {}).copied(url)


def put_file(
    path: str | os.PathLike[str], url: str, metadata: Mapping[str, str] | None = None
) -> Stored:
    """Copies a local file to an object, completely or not at all."""
    store, size = _store(url), os.path.getsize(path)
    extra = {"Metadata": dict(metadata)} if metadata else {}
    with _errors(url):
        store.put_file(os.fspath(path), url, **extra)
        stored = _stored(store.info(url))
    if stored.size != size:
        raise ArtifactError(
            f"{url} has {stored.size:,} bytes after a copy of {size:,}: make sure that no "
            "other program writes it, then rerun the command."
        )
    return stored


def put_folder(
    folder: str | os.PathLike[str],
    url: str,
    last: Collection[str] = (".done.json", MANIFEST),
) -> None:
    """Copies all files of a local folder; those that end as in `last` are copied last.

    An interrupted copy then lacks the files that complete it. Objects with equal size and
    MD5 are not copied again. Other objects below `url` are refused, since they would
    damage a sealed folder; ArtifactError names them.
    """
    folder, url = Path(folder), url.rstrip("/")
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    found = list_files(url)
    if foreign := found.keys() - {f"{url}/{name}" for name in names}:
        raise ArtifactError(
            f"{url} holds other objects, such as {min(foreign)}: give another URL, or "
            "remove them."
        )
    for ends in ((), *((end,) for end in last)):
        turn = [
            name for name in names if name.endswith(tuple(ends or last)) == bool(ends)
        ]
        for name in sorted(turn, key=lambda name: (-name.count("/"), name)):
            if found.get(f"{url}/{name}") != _local(folder / name):
                put_file(folder / name, f"{url}/{name}")


class Mirror(NamedTuple):
    """A local folder in place of `s3://`: the copy of s3://b/k is at FOLDER/b/k.

    Its methods return local paths unchanged, so that callers need not distinguish.
    """

    folder: Path
    known: dict[Path, Stored]  # objects by their paths in the folder

    def look(self, path: str | os.PathLike[str]) -> Path:
        """The local path of a path; lists the objects there."""
        if not is_remote(path):
            return Path(path)
        for url, stored in list_files(os.fspath(path)).items():
            inner = _check_name(url, url.removeprefix(_S3))
            self.known[self.folder / inner] = stored
        return self.place(path)

    def place(self, path: str | os.PathLike[str]) -> Path:
        """The local path of a path, without a request."""
        inner = os.fspath(path).removeprefix(_S3)
        return self.folder / inner if is_remote(path) else Path(path)

    def copied(
        self, path: str | os.PathLike[str], error: type[KdjaxError] = DataError
    ) -> Path:
        """The local path of a path, with a copy of all objects there."""
        place = self.look(path)
        if is_remote(path):
            found = [each for each in self.known if each.is_relative_to(place)]
            if not found:
                raise error(f"{path} does not exist: {_SPELLING}.")
            for each in found:
                _copy(self.url(each), each, self.known[each].size)
        return place

    def sealed(self, path: str | os.PathLike[str]) -> Path:
        """`copied` for a folder with a manifest; ArtifactError for others, before copying."""
        if is_remote(path) and self.look(path) / MANIFEST not in self.known:
            raise ArtifactError(
                f"{path} has no {MANIFEST}: give the folder of a detector, such as "
                "s3://BUCKET/WORKDIR/detectors/student."
            )
        return self.copied(path, ArtifactError)

    def target(self, path: str | os.PathLike[str]) -> Path:
        """`look` for an output; ConfigError if a manifest seals its folder."""
        place = self.look(path)
        above = [place, *place.parents] if is_remote(path) else []
        for url in map(self.url, above[: -len(self.folder.parents) - 1]):
            with _errors(url):
                sealed = _store(url).exists(f"{url}/{MANIFEST}")
            if sealed:
                raise ConfigError(
                    f"{url} is sealed by its {MANIFEST}, and a further file would damage "
                    "it: give a path outside of it."
                )
        return place

    def url(self, place: Path) -> str:
        """The URL of a local path."""
        return f"{_S3}{place.relative_to(self.folder).as_posix()}"

    def get(self, *places: Path) -> None:
        """Copies known objects to their local paths."""
        for place in places:
            if place in self.known:
                url = self.url(place)
                with _errors(url, denied=DataError):
                    self.known[place] = _stored(_store(url).info(url))  # as it is now
                _copy(url, place, self.known[place].size)

    def put(self, place: Path, seal: str = "") -> None:
        """Copies the file at a local path to its object, with a text in its metadata."""
        if place.is_relative_to(self.folder):
            metadata = {_SEAL: seal} if seal else {}
            self.known[place] = put_file(place, self.url(place), metadata)

    def seal(self, place: Path) -> str:
        """The text from `put` in a known object's metadata, or empty."""
        url = self.url(place)
        with _errors(url, denied=DataError):
            return str(_store(url).metadata(url).get(_SEAL, ""))

    def drop(self, *places: Path) -> None:
        """Removes the files at local paths."""
        for place in places:
            if place.is_relative_to(self.folder):
                place.unlink(missing_ok=True)

    def lines(self, messages: Iterable[str]) -> Iterator[str]:
        """Messages with URLs in place of local paths."""
        for message in messages:
            yield message.replace(f"{self.folder}/", _S3)


@contextlib.contextmanager
def mirror(*paths: str | os.PathLike[str]) -> Iterator[Mirror]:
    """A mirror, whose folder exists in the block if any of `paths` is remote.

    Errors of the block name URLs. Leftovers of killed processes are removed first.
    """
    top = Path(tempfile.gettempdir())
    with marked() as mark:
        found = Mirror(top / f".kdjax.{mark}.old", {})
        if any(is_remote(path) for path in paths):
            clear_leftovers(top, ("kdjax",))
            found.folder.mkdir(mode=0o700)  # other users must not read the rows
        try:
            yield found
        except KdjaxError as error:
            error.args = (*found.lines([str(error)]), *error.args[1:])
            raise
        finally:
            shutil.rmtree(found.folder, ignore_errors=True)


def _stored(entry: Mapping[str, Any]) -> Stored:
    return Stored(entry["size"], entry.get("ETag") or "")


def _local(path: Path) -> Stored:
    """Size and ETag that a store reports for a copy that was not made in parts."""
    with path.open("rb") as file:
        md5 = functools.partial(hashlib.md5, usedforsecurity=False)
        digest = hashlib.file_digest(file, md5).hexdigest()
    return Stored(path.stat().st_size, f'"{digest}"')


def _check_name(url: str, name: str) -> str:
    """A name that stays below a local folder, also under Windows, and is valid for s3fs."""
    odd = {"", ".", ".."} & {*name.split("/")} or {"\\", "\0"} & {*name}
    if odd or PurePath(name).drive or "?versionId=" in name:
        raise DataError(
            f"{url} can't be a local file (a part of its name is empty, . or .., or has a "
            "backslash or ?versionId=): rename it."
        )
    return name


def _copy(url: str, target: Path, size: int) -> None:
    """Copies an object of that size to a local file, completely or not at all."""
    with atomic_path(target) as temporary, _errors(url, denied=DataError):
        _store(url).get_file(url, os.fspath(temporary))
        if (found := temporary.stat().st_size) != size:
            raise DataError(
                f"{url} has {found:,} bytes, not {size:,}: it changed while it was copied. "
                "Rerun the command."
            )


def _store(url: str) -> Any:
    """The store of a URL, after `check_store`."""
    check_store(url)
    return _filesystem()


def _filesystem() -> Any:
    s3fs = library("s3fs", "s3:// paths need s3fs, which is not installed", "s3")
    # One a process and thread. A refused connection is given up after 7 s at most.
    retries = {"mode": "standard", "total_max_attempts": 4}
    return s3fs.S3FileSystem(
        use_listings_cache=False, config_kwargs={"retries": retries}
    )


@functools.cache
def _check_bucket(bucket: str) -> None:
    url = f"{_S3}{bucket}"
    # The right to read objects need not include the right to query their bucket.
    with _errors(url, missing=ConfigError), contextlib.suppress(PermissionError):
        _filesystem().call_s3("head_bucket", Bucket=bucket, timeout=_PATIENCE)


@contextlib.contextmanager
def _errors(
    url: str,
    *,
    denied: type[KdjaxError] = ConfigError,
    missing: type[KdjaxError] = DataError,
) -> Iterator[None]:
    """Turns a store's errors into those of kdjax; those of local files are unchanged."""
    try:
        yield
    except Exception as error:
        number, name = (getattr(error, k, None) for k in ("errno", "filename"))
        known = type(error).__module__.partition(".")[0] in _LIBRARIES
        local = name is not None or number in (errno.ENOSPC, errno.EDQUOT)
        if local or not (known or isinstance(error, OSError)):
            raise
        if isinstance(error, FileNotFoundError):
            raise missing(f"{url} does not exist: {_SPELLING}.") from error
        kind = denied if isinstance(error, PermissionError) else ConfigError
        what = " ".join(str(error).split()) or f"no answer within {_PATIENCE:.0f} s"
        raise kind(f"{url} can't be used ({what}): {_RIGHTS}.") from error
