"""A fleet's folder: a catalogue of machines and a detector for each.

fleet.json          settings, channels and version
catalogue.parquet   a row a machine, see `CATALOGUE_SCHEMA`
index.html          a page over the fleet
budget.json         what a shared budget of alarms lets expect, if there is one
shared/student      networks and values of a sample of machines, and `shared/teacher`
detectors/MACHINE   a detector that was fitted to the machine's own rows
machines/MACHINE.json   its row of the catalogue and what it was made from

MACHINE is its name, quoted. `kdjax.experiment.fleet` writes the folder.
"""

import functools
import hashlib
import json
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kdjax.detection.detector import POOLED, Detector
from kdjax.detection.storage import kept_detector
from kdjax.errors import ArtifactError, DataError
from kdjax.io import files
from kdjax.io.files import check_schema

FLEET, is_fleet = files.FLEET, files.is_fleet
SCHEMA = 1
CATALOGUE, PAGE, BUDGET = "catalogue.parquet", "index.html", "budget.json"
SHARED, DETECTORS, MACHINES = "shared", "detectors", "machines"
STUDENT = f"{SHARED}/student"
READY, FAILED = "ready", "failed"
# Columns of a catalogue and their types.
CATALOGUE_SCHEMA = {
    "entity": "string",
    "state": "string",  # ready or failed
    "reason": "string",  # why it failed or uses the fleet's values; empty
    "detector": "string",  # its folder below that of the fleet; empty where failed
    "rows": "Int64",  # that it was fitted to
    "threshold": "float64",  # τ
    "events_a_day": "float64",  # to expect in normal behaviour; NaN where unknown
    "quality": "float64",  # VUS-PR on labelled test rows; NaN without labels
    "f1": "float64",  # of windows under τ, on the same rows
    "test_events_a_day": "float64",  # above τ in the test rows; NaN without
    "seconds": "float64",  # its share of the time to fit, score and save it
}
_LONGEST = 120  # characters of a quoted name; file systems allow 255


def quoted(entity: str) -> str:
    """A machine's name as that of a folder: no name leads out of it, and none is shared.

    >>> quoted("line 1/pump.2")
    'line 1%2Fpump%2E2'
    """
    name = urllib.parse.quote(entity, safe=" ").replace(".", "%2E")
    if len(name) <= _LONGEST and name == name.strip():
        return name
    digest = hashlib.sha256(entity.encode()).hexdigest()[:16]
    return f"{name[:_LONGEST].strip()}%{digest}"


def catalogue_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of a catalogue as a table of its types, by machine."""
    frame = pd.DataFrame(rows, columns=[*CATALOGUE_SCHEMA]).astype(CATALOGUE_SCHEMA)
    return frame.sort_values("entity", kind="stable", ignore_index=True)


def read_catalogue(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The catalogue of a fleet, a row a machine.

    Raises:
        ArtifactError: the folder is not that of a fleet, or its catalogue is damaged.

    >>> read_catalogue("fleets/plants")["state"].value_counts()  # doctest: +SKIP
    """
    path = Path(folder) / CATALOGUE
    read_fleet(folder)
    try:
        return pd.read_parquet(path).astype(CATALOGUE_SCHEMA)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} can't be read ({error}): rerun kdjax fleet, which writes it again."
        ) from error


def read_fleet(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of fleet.json."""
    path = Path(folder) / FLEET
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        check_schema(
            str(path), found["schema"], known=SCHEMA, version=found["kdjax_version"]
        )
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder} is not the folder of a fleet ({error!r}): give one that kdjax fleet "
            "wrote."
        ) from error
    return found


def open_machine(folder: str | os.PathLike[str], entity: str) -> tuple[Detector, str]:
    """A machine's detector and the entity whose values it has there.

    Machines with few rows have the fleet's student and the entity `pooled`.

    Raises:
        DataError: the fleet has no such machine, or it failed.
        ArtifactError: see `read_catalogue` and `load_detector`.
    """
    path = machine_folder(folder, entity)
    loaded, student = kept_detector(path), Path(folder) / STUDENT
    return loaded, entity if entity in loaded.entities and path != student else POOLED


def machine_folder(folder: str | os.PathLike[str], entity: str) -> Path:
    """The folder of a machine's detector; DataError as of `open_machine`."""
    if why := refusal(folder, entity):
        raise DataError(why)
    return Path(folder) / catalogue_rows(folder)[entity][2]


def refusal(folder: str | os.PathLike[str], entity: str) -> str:
    """Why a fleet has no detector of a machine; empty where it has one."""
    row = catalogue_rows(folder).get(entity)
    if row is None:
        return (
            f"{entity}: the fleet {folder} has no such machine: add its rows and run kdjax "
            "fleet again."
        )
    state, reason, _ = row
    if state != READY:
        return (
            f"{entity}: its detector failed ({reason.rstrip('.')}): correct its rows, and rerun kdjax "
            "fleet."
        )
    return ""


def catalogue_rows(
    folder: str | os.PathLike[str],
) -> Mapping[str, tuple[str, str, str]]:
    """State, reason and detector of each machine, from a catalogue that may change."""
    return _rows(str(folder), stamp(Path(folder) / CATALOGUE))


def stamp(path: Path) -> tuple[int, int]:
    """Changes when a file is replaced."""
    try:
        found = path.stat()
        return found.st_mtime_ns, found.st_ino
    except FileNotFoundError:
        return 0, 0


@functools.lru_cache(maxsize=4)
def _rows(folder: str, stamp: tuple[int, int]) -> dict[str, tuple[str, str, str]]:
    found = read_catalogue(folder)[["entity", "state", "reason", "detector"]]
    lines = found.itertuples(index=False, name=None)
    return {entity: (state, why, path) for entity, state, why, path in lines}
