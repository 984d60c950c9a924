"""The folder of one run: its lock, its settings, its log, its results.

config.json         the resolved settings; another run's are refused
data.json           digests of the data; other data are refused
metrics.jsonl       a line per logged step
checkpoints/PHASE   see kdjax.training.checkpoints
detectors/MODEL     see kdjax.detection.storage
results.json        written last: a work directory that has it is finished

Of several processes (`kdjax.hosts`) the first holds the lock, judges what it finds and
writes; the others hear of its judgement.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from kdjax import hosts
from kdjax.artifacts import write_text
from kdjax.config import completed, differences, to_json
from kdjax.errors import ArtifactError, ConfigError, DataError

CONFIG = "config.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the work directory for this program; a second one is refused.

    The operating system frees the lock when its holder dies, however that happens.
    """
    with contextlib.ExitStack() as held:
        hosts.on_first(lambda: held.enter_context(_held(workdir)))
        yield


@contextlib.contextmanager
def _held(workdir: Path) -> Iterator[None]:
    holder = workdir / ".lock.pid"
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        pid = holder.read_text("utf-8") if holder.exists() else "unknown"
        raise ArtifactError(
            f"{workdir} is in use by process {pid}: wait for it, or give another "
            "--workdir."
        ) from None
    except OSError as error:
        raise ArtifactError(
            f"{workdir} can't be used as work directory ({error}): give another "
            "--workdir."
        ) from error
    with lock:
        holder.write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def check_settings(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a folder of another run's settings, or of something else."""
    hosts.on_first(lambda: _check_settings(workdir, settings))


def is_unclaimed(workdir: Path, record: str, what: str) -> bool:
    """Whether a folder lacks its record yet; refuses one that holds something else.

    Args:
        workdir: the folder.
        record: name of the file that says what was asked for.
        what: the folder would be, for the message.
    """
    if (workdir / record).exists():
        return False
    foreign = [p.name for p in workdir.iterdir() if not p.name.startswith(".")]
    if foreign:
        raise ArtifactError(
            f"{workdir} holds {', '.join(sorted(foreign)[:3])} but no {record}: it is "
            f"not {what}. Give an empty or new --workdir."
        )
    return True


def _check_settings(workdir: Path, settings: Mapping[str, Any]) -> None:
    path = workdir / CONFIG
    if is_unclaimed(workdir, CONFIG, "a work directory of kdjax"):
        return
    # A field that came after the run was made had its default then.
    changed = differences(completed(read_json(path)), completed(settings))
    if changed:
        raise ConfigError(
            f"{workdir} was made with another config ({'; '.join(changed)}): give "
            "another --workdir, or the settings it was made with."
        )


def claim(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings, or checks that they are those of the run found here."""

    def write() -> None:
        _check_settings(workdir, settings)
        if not (workdir / CONFIG).exists():
            write_text(workdir / CONFIG, to_json(settings) + "\n")

    hosts.on_first(write)


def check_data(workdir: Path, digests: Mapping[str, str]) -> None:
    """Writes the data's digests, or checks that they are those of the run found here."""
    hosts.on_first(lambda: _check_data(workdir, digests))


def _check_data(workdir: Path, digests: Mapping[str, str]) -> None:
    path = workdir / DATA
    if not path.exists():
        write_text(path, json.dumps(digests, indent=2) + "\n")
        return
    old = read_json(path)
    changed = sorted(
        k for k in old.keys() | digests.keys() if old.get(k) != digests.get(k)
    )
    if changed:
        raise DataError(
            f"the data changed since {workdir} was made: {', '.join(changed[:5])}. "
            "Give another --workdir, or the data it was made with."
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the work directory."""
    try:
        value = json.loads(path.read_text("utf-8"))
        fault = None if isinstance(value, dict) else "it holds no object"
    except (OSError, ValueError) as error:
        fault = str(error)
    if fault:
        raise ArtifactError(
            f"{path} can't be read ({fault}): remove the work directory and run again."
        )
    found: dict[str, Any] = value
    return found


def read_results(workdir: Path) -> dict[str, Any] | None:
    """The results of a finished run, or None."""
    path = workdir / RESULTS
    return hosts.on_first(lambda: read_json(path) if path.exists() else None)


def append_line(workdir: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to `metrics.jsonl`."""
    if not hosts.is_first():
        return
    with (workdir / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without a last one that was cut off."""
    path = workdir / METRICS
    if not path.exists():
        return []
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # A kill while it was being written.
    return lines


def cut_lines(workdir: Path, phase: str, step: int) -> None:
    """Takes out what a phase logged after `step`, the step it goes on from."""
    if not hosts.is_first():
        return
    kept = [
        line
        for line in read_lines(workdir)
        if line["phase"] != phase or line["step"] <= step
    ]
    write_text(workdir / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
