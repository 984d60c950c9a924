"""Downloads of public data sets, each file verified against a digest that kdjax carries.

A file takes its name only after its SHA-256 and its size are right, so whatever is there
under a final name is whole, and a second call goes on where the first one stopped.
"""

import logging
import os
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kdjax.errors import DataError
from kdjax.io.files import clear_leftovers, marked, sha256

if TYPE_CHECKING:
    import pooch

SMD_URL = (
    "https://raw.githubusercontent.com/NetManAIOps/OmniAnomaly/"
    "7fb0e0acf89ea49908896bcc9f9e80fcfff6baf4/ServerMachineDataset/"
)
# Ends the name of the hidden folder that a download comes to first.
_ASIDE = "download"

# Called after each file with its name, the number of files done and of all files.
Progress = Callable[[str, int, int], None]


class Fetched(NamedTuple):
    """Paths of a data set's files.

    Attributes:
        downloaded: fetched by this call.
        skipped: already there and right.
    """

    downloaded: tuple[Path, ...]
    skipped: tuple[Path, ...]


class _Entry(NamedTuple):
    """One file of a data set: what it must be."""

    name: str
    digest: str
    size: int


def fetch_smd(
    destination: str | os.PathLike[str],
    *,
    base_url: str = SMD_URL,
    progress: Progress | None = None,
    retries: int = 4,
) -> Fetched:
    """Downloads the 28 machines of SMD, about 500 MB in 112 files, into `destination`.

    Files that are there and right are skipped; wrong ones are replaced.

    Args:
        destination: folder for `train/`, `test/`, `test_label/`, `interpretation_label/`;
            `load_benchmark("smd", root=destination)` reads it.
        base_url: address of the published folder, or of a mirror of it.
        progress: called after each file with its name, the files done and all files.
        retries: further tries for a file whose download fails.
    """
    folder = Path(destination)
    entries = _registry()
    clear_leftovers(folder, (_ASIDE,))
    with marked() as mark:
        aside = folder / f".{mark}.tmp.{_ASIDE}"
        try:
            agent = _agent(aside, base_url, entries, retries)
            return _fetch(agent, entries, folder, progress)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _fetch(
    agent: "pooch.Pooch",
    entries: list[_Entry],
    folder: Path,
    progress: Progress | None,
) -> Fetched:
    """All files that are not there and right."""
    downloaded, skipped = [], []
    for number, entry in enumerate(entries, start=1):
        path = folder / entry.name
        if _is_right(path, entry):
            skipped.append(path)
        else:
            _download(agent, entry, path)
            downloaded.append(path)
        if progress is not None:
            progress(entry.name, number, len(entries))
    return Fetched(tuple(downloaded), tuple(skipped))


def _registry() -> list[_Entry]:
    """The files of SMD with SHA-256 and size, from the table in the package."""
    text = (resources.files("kdjax.data") / "smd_sha256.txt").read_text("utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return [_Entry(name, digest, int(size)) for digest, size, name in lines]


def _agent(
    folder: Path, base_url: str, entries: list[_Entry], retries: int
) -> "pooch.Pooch":
    import pooch

    # Its lines would stand between those of a progress bar; errors come as exceptions.
    pooch.get_logger().setLevel(logging.CRITICAL)
    return pooch.create(
        path=folder,
        base_url=base_url.rstrip("/") + "/",
        registry={entry.name: f"sha256:{entry.digest}" for entry in entries},
        retry_if_failed=retries,
    )


def _download(agent: "pooch.Pooch", entry: _Entry, path: Path) -> None:
    """Fetches one file aside, and puts it in its place once it is right."""
    url = agent.get_url(entry.name)
    try:
        fetched = Path(agent.fetch(entry.name))
        # pooch leaves the rights of a temporary file, which only its owner may read.
        fetched.chmod(0o644)
        size = fetched.stat().st_size
        if size == entry.size:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(path)
    except (ValueError, OSError) as error:
        # requests' errors are OSErrors; a wrong digest is a ValueError.
        reason = " ".join(str(error).split())
        raise DataError(
            f"{entry.name} could not be fetched from {url} to {path.parent} ({reason}): "
            "check network, mirror and disk, then run the command again; files that are "
            "done are kept."
        ) from None
    if size != entry.size:
        raise DataError(
            f"{entry.name} from {url} has {size} bytes, expected {entry.size}: "
            "run the command again."
        )


def _is_right(path: Path, entry: _Entry) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == entry.size
        and sha256(path) == entry.digest
    )
