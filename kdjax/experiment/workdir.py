"""The folder of one run: its lock, settings, log and results.

config.json         the resolved settings; those of another run are refused
data.json           digests of the data; other data are refused
metrics.jsonl       a line for each logged step
checkpoints/PHASE   see kdjax.training.checkpoints
detectors/MODEL     see kdjax.detection.storage
results.json        written last: a folder that has it is finished

With several processes (`kdjax.training.hosts`) the first locks, checks and writes; the
others receive its result.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from kdjax.config import Settings, completed, differences, to_json
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.io import files
from kdjax.io.files import sha256, write_text
from kdjax.training import hosts

CONFIG = "config.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
RESULTS_SEAL = ".results.sha256"
RESULTS_SCHEMA = 1

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks the work directory for this program; a second program gets an error.

    The operating system releases the lock when its holder dies.
    """
    with contextlib.ExitStack() as held:
        hosts.on_first(lambda: held.enter_context(_locked(workdir)))
        yield


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    holder = workdir / ".lock.pid"
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    before = _names(workdir)
    try:
        files.check_unsealed(workdir)
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
        try:
            with files.naming(holder):
                holder.write_text(str(os.getpid()), encoding="utf-8")
            files.clear_leftovers(workdir)
            yield
        finally:
            holder.unlink(missing_ok=True)
            known = before or set()
            if ".lock" not in known and _names(workdir) == known | {".lock"}:
                # Nothing was written: the folder is restored to its previous state.
                (workdir / ".lock").unlink(missing_ok=True)
                if before is None:
                    workdir.rmdir()
            lock.release()


def _names(folder: Path) -> set[str] | None:
    """Names of the files in a folder; None if there is none."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else None


def is_unclaimed(workdir: Path, record: str, what: str) -> bool:
    """Whether a folder lacks the file `record`; raises if it has other files instead.

    `what` describes the folder in the message.
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


def check_settings(workdir: Path, settings: Settings, *, write: bool = False) -> None:
    """Raises for a folder of another run's settings, or with other content.

    With `write` an empty folder becomes that of this run.
    """

    def check() -> None:
        if is_unclaimed(workdir, CONFIG, "a work directory of kdjax"):
            if write:
                write_text(workdir / CONFIG, to_json(settings) + "\n")
            return
        # A field that is newer than the run had its default then.
        old = completed(read_json(workdir / CONFIG))
        if changed := differences(old, completed(settings)):
            raise ConfigError(
                f"{workdir} was made with another config ({'; '.join(changed)}): give "
                "another --workdir, or the original settings."
            )

    hosts.on_first(check)


def settings_of_begun(workdir: Path, settings: Settings) -> Settings:
    """The settings, but with the scaler `minmax` if version 0.1.0 began with this default.

    The same command then resumes the run. That version knew neither `data.fill_limit`
    nor the scaler `quantile`.
    """
    path, data = workdir / CONFIG, settings["data"]
    if data["scaler"] != "quantile" or not path.exists():
        return settings
    before = read_json(path).get("data")
    if not isinstance(before, dict) or "fill_limit" in before:
        return settings
    if before.get("scaler") != "minmax":
        return settings
    return {**settings, "data": {**data, "scaler": "minmax"}}


def check_data(workdir: Path, digests: Mapping[str, str]) -> None:
    """Writes the data's digests, or checks that they are those of the run found here."""

    def check() -> None:
        path = workdir / DATA
        if not path.exists():
            write_text(path, json.dumps(digests, indent=2) + "\n")
            return
        old = read_json(path)
        keys = old.keys() | digests.keys()
        changed = sorted(k for k in keys if old.get(k) != digests.get(k))
        if changed:
            raise DataError(
                f"the data changed since {workdir} was made: {', '.join(changed[:5])}. "
                "Give another --workdir, or the original data."
            )

    hosts.on_first(check)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the work directory."""
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise TypeError("it is not an object")
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    return value


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path} can't be read ({error}): remove the work directory and rerun the command."
    )


def read_results(workdir: Path) -> dict[str, Any] | None:
    """The results of a finished run, or None."""
    path, seal = workdir / RESULTS, workdir / RESULTS_SEAL

    def read() -> dict[str, Any] | None:
        if not path.exists():
            return None
        results = read_json(path)
        try:
            version = results.get("environment", {}).get("versions", {}).get("kdjax")
            schema = results.get("schema", RESULTS_SCHEMA)
            files.check_schema(str(path), schema, known=RESULTS_SCHEMA, version=version)
            # The first versions of kdjax wrote no digest.
            if seal.exists() and seal.read_text("utf-8").strip() != sha256(path):
                raise ValueError(f"its SHA-256 is not that in {seal.name}")
        except (AttributeError, OSError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from error
        return results

    return hosts.on_first(read)


def write_results(workdir: Path, results: Mapping[str, Any]) -> None:
    """Writes the results, after their digest."""
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(workdir / RESULTS_SEAL, digest + "\n")
    write_text(workdir / RESULTS, text)


def append_line(workdir: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to `metrics.jsonl`."""
    if not hosts.is_first():
        return
    path = workdir / METRICS
    with files.naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without an incomplete last one.

    Other damaged lines are left out with a warning: only plots need them.
    """
    path = workdir / METRICS
    if not path.exists():
        return []
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise _unreadable(path, error) from error
    lines = [_line(text) for text in texts]
    # The last is empty, or was being written when the run was killed.
    faulty = [number for number, line in enumerate(lines[:-1], 1) if line is None]
    if faulty:
        logger.warning(
            "%s: %d damaged lines left out, line %d first", path, len(faulty), faulty[0]
        )
    return [line for line in lines if line is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    """A line of the log; None if it is damaged."""
    try:
        line: dict[str, Any] = json.loads(text.decode("utf-8"))
        line["phase"].encode()
        losses = {
            key: line[key]
            for key in ("loss", "train_loss", "validation_loss")
            if key in line
        }
        # Lines with losses of a whole epoch need the epoch, for plots.
        counts = [line["step"], *([line["epoch"]] if losses.keys() - {"loss"} else [])]
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None
    whole = all(type(count) is int for count in counts) and all(
        type(loss) in (int, float, type(None)) for loss in losses.values()
    )
    return line if whole else None


def cut_lines(workdir: Path, phase: str, step: int) -> None:
    """Removes a phase's lines after `step`, from which it resumes."""
    if not hosts.is_first():
        return
    kept = [
        line
        for line in read_lines(workdir)
        if line["phase"] != phase or line["step"] <= step
    ]
    write_text(workdir / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
