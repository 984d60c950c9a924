"""Downloads public data sets; verifies each file by a SHA-256 in the package.

A file gets its final name after its SHA-256 and size are verified, so that a second call
continues where the first one stopped.
"""

import logging
import os
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.errors import DataError
from kdjax.io.files import clear_leftovers, marked, sha256

SMD_URL = (
    "https://raw.githubusercontent.com/NetManAIOps/OmniAnomaly/"
    "7fb0e0acf89ea49908896bcc9f9e80fcfff6baf4/ServerMachineDataset/"
)
_ASIDE = "download"  # end of the hidden folder's name for unfinished downloads

# Called after each file with its name, the number of files done and of all files.
Progress = Callable[[str, int, int], None]


class Fetched(NamedTuple):
    """Paths of a data set's files: downloaded ones, and those that already verified."""

    downloaded: tuple[Path, ...]
    skipped: tuple[Path, ...]


class _Entry(NamedTuple):
    """Expected path, SHA-256 and size of one file of a data set."""

    name: str
    digest: str
    size: int

    def is_right(self, path: Path) -> bool:
        """Whether the file at a path has the expected size and SHA-256."""
        right = path.is_file() and path.stat().st_size == self.size
        return right and sha256(path) == self.digest


def fetch_smd(
    destination: str | os.PathLike[str],
    *,
    base_url: str = SMD_URL,
    progress: Progress | None = None,
    retries: int = 4,
) -> Fetched:
    """Downloads the 28 machines of SMD, about 500 MB in 112 files, into `destination`.

    Files that verify are skipped; others are replaced.

    Args:
        destination: folder for `train/`, `test/`, `test_label/`, `interpretation_label/`;
            `load_benchmark("smd", root=destination)` reads it.
        base_url: address of the published folder, or of a mirror of it.
        progress: called after each file with its name, the files done and all files.
        retries: number of further attempts after a failed download of a file.

    Raises:
        DataError: a file can't be downloaded or doesn't verify.
    """
    import pooch

    # Log lines would break a progress bar; errors are raised anyway.
    pooch.get_logger().setLevel(logging.CRITICAL)
    folder, entries = Path(destination), _registry()
    clear_leftovers(folder, (_ASIDE,))
    downloaded, skipped = [], []
    with marked() as mark:
        aside = folder / f".{mark}.tmp.{_ASIDE}"
        agent = pooch.create(
            path=aside,
            base_url=base_url.rstrip("/") + "/",
            registry={entry.name: f"sha256:{entry.digest}" for entry in entries},
            retry_if_failed=retries,
        )
        try:
            for number, entry in enumerate(entries, start=1):
                path = folder / entry.name
                if entry.is_right(path):
                    skipped.append(path)
                else:
                    _download(agent, entry, path)
                    downloaded.append(path)
                if progress is not None:
                    progress(entry.name, number, len(entries))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Fetched(tuple(downloaded), tuple(skipped))


def _registry() -> list[_Entry]:
    """The files of SMD with SHA-256 and size, from the table in the package."""
    text = (resources.files("kdjax.data") / "smd_sha256.txt").read_text("utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return [_Entry(name, digest, int(size)) for digest, size, name in lines]


def _download(agent: Any, entry: _Entry, path: Path) -> None:
    """Downloads one file and moves it to its place if it verifies."""
    url = agent.get_url(entry.name)
    try:
        fetched = Path(agent.fetch(entry.name))
        fetched.chmod(0o644)  # pooch keeps the permissions of a temporary file
        size = fetched.stat().st_size
        if size == entry.size:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(path)
    except (ValueError, OSError) as error:
        # requests' errors are OSErrors; a wrong checksum is a ValueError.
        reason = " ".join(str(error).split())
        raise DataError(
            f"{entry.name} could not be downloaded from {url} to {path.parent} ({reason}): "
            "check network, mirror and disk, then rerun the command; complete files "
            "are kept."
        ) from None
    if size != entry.size:
        raise DataError(
            f"{entry.name} from {url} has {size} bytes, expected {entry.size}: "
            "rerun the command."
        )
