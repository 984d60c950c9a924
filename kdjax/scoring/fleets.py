"""Files and streams scored by a fleet: each machine has its own detector."""

import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.partitions import Machine, frame_machines, partition_of, read_machine
from kdjax.data.readers import name_of
from kdjax.data.series import Series
from kdjax.data.tables import open_table
from kdjax.detection.alarming import DAY
from kdjax.detection.detector import POOLED, Detector, entity_streams
from kdjax.detection.false_alarms import events_text
from kdjax.detection.fleet import (
    BUDGET,
    CATALOGUE,
    FLEET,
    READY,
    STUDENT,
    catalogue_rows,
    machine_folder,
    open_machine,
    read_catalogue,
    read_fleet,
    refusal,
    stamp,
)
from kdjax.detection.occurrences import SCORE
from kdjax.detection.reading import options_like
from kdjax.detection.storage import load_detector
from kdjax.detection.stream_batches import EntityStreams
from kdjax.detection.streaming import StreamDetector
from kdjax.errors import ArtifactError, DataError, KdjaxError, counted, one_line
from kdjax.io.files import MANIFEST, sha256
from kdjax.io.stores import Mirror, is_remote

Measured = Mapping[str, tuple[int, float]]  # events and days of each machine


class Fleet(NamedTuple):
    """A fleet that scores files."""

    folder: Path
    data: Mapping[str, Any]  # settings of its rows
    shares_budget: bool  # whether its machines share a budget of events
    attribution: str = ""  # another method than the detectors' own
    store: Mirror | None = None  # has the detectors, where the folder is a mirror


class Part(NamedTuple):
    """The rows of an entity, and the detector that scores them."""

    detector: Detector
    entity: str  # whose values it has there
    series: Series


def open_fleet(
    folder: str | os.PathLike[str], attribution: str = "", store: Mirror | None = None
) -> Fleet:
    """A fleet by its folder, which may be that of a mirror; ArtifactError if it is none."""
    found = read_fleet(folder)["settings"]
    shared = found["threshold"]["budget_scope"] == "fleet"
    return Fleet(Path(folder), found["data"], shared, attribution, store)


def detector_place(store: Mirror, path: str | os.PathLike[str]) -> Path:
    """The local folder of a detector, or of a fleet: its machines follow one by one."""
    url = os.fspath(path).rstrip("/")
    place = store.look(f"{url}/{FLEET}")
    if not is_remote(path) or place not in store.known:
        return store.sealed(path)
    store.copied(f"{url}/{CATALOGUE}", ArtifactError)
    store.get(place, store.look(f"{url}/{BUDGET}"))
    return place.parent


def folder_of(fleet: Fleet, machine: str) -> Path:
    """The folder of a machine's detector, copied from the store where it has to be."""
    folder = machine_folder(fleet.folder, machine)
    store, known = fleet.store, (folder / MANIFEST).exists()
    if store is not None and not known and folder.is_relative_to(store.folder):
        store.sealed(store.url(folder))
    return folder


def fleet_parts(
    fleet: Fleet,
    path: str | os.PathLike[str],
    *,
    entity: str | None = None,
    **reading: Any,
) -> Iterator[Part | str]:
    """The machines of an input, each with its detector and its rows, or its fault.

    Args:
        path: a file of one machine, which has the file's name; a file with an entity
            column; or a folder `COLUMN=MACHINE` of Parquet files.
        entity: the machine of all rows.
        reading: for `read_like`, to read each machine's rows.
    """
    names = catalogue_rows(fleet.folder)
    for machine in _machines(fleet, Path(path), entity, reading):
        name = machine.entity
        try:
            folder_of(fleet, name)
            detector, used = open_machine(fleet.folder, name)
            if fleet.attribution:
                detector = detector._replace(attribution=fleet.attribution)
            given = {k: v for k, v in reading.items() if k not in ("exclude", "entity")}
            series = read_machine(
                machine,
                exclude=reading.get("exclude") or "",
                others=names.keys(),
                dtype=detector.scalers.offset.dtype,
                **options_like(detector, **{**given, "entity_column": ""}),
            )
        except KdjaxError as error:
            text = one_line(error)
            yield text if text.startswith(f"{name}: ") else f"{name}: {text}"
            continue
        yield Part(detector, used, series)


def _machines(
    fleet: Fleet, path: Path, entity: str | None, reading: Mapping[str, Any]
) -> Sequence[Machine]:
    """The machines in a file, or the one of a partition's folder."""
    if path.is_dir():
        parts = _part_files(path)
        return [Machine(entity or partition_of(parts[0]), tuple(map(str, parts)))]
    own = entity or partition_of(path) or name_of(path)
    given = str(reading.get("entity_column") or "")
    if entity or not (column := given or fleet.data["entity_column"]):
        return [Machine(own, (str(path),))]
    table = open_table(path, text_columns={column, *(reading.get("ignore") or ())})
    if column not in table.place.columns and not given:
        return [Machine(own, (str(path),))]
    return frame_machines(table, column)


def _part_files(folder: Path) -> list[Path]:
    """The files of a partition, by name."""
    files = [path for path in folder.iterdir() if partition_of(path)]
    return sorted(path for path in files if path.name[0] != "." and path.is_file())


def detector_digests(
    fleet: Fleet, path: Path, entity: str | None, record: Path
) -> dict[str, Any]:
    """The digests of detectors in an input's record: SHA-256 of their manifests.

    The machines of a table are those in its record.
    """
    known: Mapping[str, str] = {}
    try:
        found = json.loads(record.read_text("utf-8")).get("detectors")
        known = found if isinstance(found, dict) else {}
    except (OSError, ValueError, AttributeError):
        pass
    own = entity or partition_of(path / "part.parquet") or partition_of(path)
    names = [*known] or [own or name_of(path)]
    digests = {}
    for name in names:
        if not refusal(fleet.folder, name):
            digests[name] = manifest_digest(fleet, name)
    return {"detectors": digests}


def manifest_digest(fleet: Fleet, machine: str) -> str:
    """The SHA-256 of the manifest of a machine's detector."""
    return sha256(folder_of(fleet, machine) / MANIFEST)


def input_digest(path: Path) -> str:
    """The SHA-256 of a file, or of those of a partition's files."""
    if not path.is_dir():
        return sha256(path)
    lines = [f"{sha256(part)} {part.name}\n" for part in _part_files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def measured(fleet: Fleet, series: Series, kinds: Sequence[str]) -> tuple[int, float]:
    """Number of events of scores, and the days of a machine's rows; NaN if unknown."""
    time, step = series.time, fleet.data["step_seconds"]
    days = len(series.values) * step / DAY if step else float("nan")
    if time is not None and time.dtype.kind == "M":
        days = float((time[-1] - time[0]) / np.timedelta64(1, "s")) / DAY
    return sum(kind == SCORE for kind in kinds), days


def budget_words(fleet: Fleet, found: Measured, *, causal: bool) -> Iterator[str]:
    """Expected and observed events a day of machines that share a budget."""
    catalogue = read_catalogue(fleet.folder).set_index("entity")["events_a_day"]
    known = {n: own for n, own in found.items() if own[1] > 0}
    rates = catalogue.reindex([*known]).dropna()
    if not fleet.shares_budget or rates.empty:
        return
    try:
        whole = json.loads((fleet.folder / BUDGET).read_text("utf-8"))
        texts = [events_text(whole["expected"][k]) for k in ("number", "low", "high")]
        number, low, high = texts
        yield (
            f"Budget: {whole['budget']:g} events a day for "
            f"{counted(whole['machines'], 'machine')} of the fleet; expect {number} "
            f"({low}–{high})."
        )
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{fleet.folder / BUDGET} can't be read ({error}): run kdjax fleet again."
        ) from error
    observed = sum(known[name][0] / known[name][1] for name in rates.index)
    text = (
        f"The {counted(len(rates), 'machine')} scored: expect "
        f"{events_text(float(rates.sum()))} events a day, observed "
        f"{events_text(observed)}."
    )
    if not causal:
        text += " The expected number is for --causal."
    yield text


class FleetStreams(EntityStreams):
    """Streams of the machines of a fleet, each with its own detector.

    A detector is loaded for the first stream that needs it, and released with the last.

    Args:
        folder: of the fleet.
        options: of `entity_streams`.
    """

    fleet = True

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        self.folder, self._options = Path(folder), options
        # By folder, entity and the detector's time of writing.
        self._detectors: weakref.WeakValueDictionary[Any, EntityStreams]
        self._detectors = weakref.WeakValueDictionary()
        self._stamp: tuple[int, int] = (0, 0)
        self.refresh()
        if (self.folder / STUDENT / MANIFEST).exists():
            usual = STUDENT, POOLED
        else:
            usual = next(
                (
                    (detector, name)
                    for name, (state, _, detector) in sorted(self._rows.items())
                    if state == READY
                ),
                ("", ""),
            )
        if not usual[0]:
            raise ArtifactError(
                f"{folder} has no detector: all of its machines failed, see {CATALOGUE}."
            )
        # It has the rules of the fleet; it compiles what all detectors of its form share.
        self._usual_key = self._key(*usual)
        self._shared = self._opened(self._usual_key, ready=True)
        super().__init__(
            lambda name: self.another(name), self._shared.score, known=(), usual=""
        )

    def another(self, entity: str) -> StreamDetector:
        """A stream of a machine before its first row; DataError if it has no detector.

        The machine `` has the rules of the fleet only.
        """
        if why := self.refusal(entity):
            raise DataError(why)
        key = self._key_of(entity) if entity else self._usual_key
        streams = self._opened(key)
        streams.excluded = self.excluded
        return streams.another(entity)

    def refusal(self, entity: str) -> str:
        """Why a machine has no detector in the catalogue of the last `refresh`."""
        if not entity or self._rows.get(entity, ("",))[0] == READY:
            return ""
        return refusal(self.folder, entity) or (
            f"{entity}: its detector is new: send its rows again."
        )

    def is_listed(self, entity: str) -> bool:
        """Whether a machine is in the catalogue, though it may have failed."""
        return entity in self._rows

    def digest(self, entity: str) -> str:
        """The SHA-256 of the manifest of a machine's detector; empty for none."""
        if self.refusal(entity) or not entity:
            return ""
        return sha256(self.folder / self._rows[entity][2] / MANIFEST)

    def stale(self) -> bool:
        """Whether the catalogue changed since the last `refresh`."""
        return stamp(self.folder / CATALOGUE) not in (self._stamp, (0, 0))

    def refresh(self) -> None:
        """Reads the catalogue again."""
        self._stamp = stamp(self.folder / CATALOGUE)
        self._rows = catalogue_rows(self.folder)

    def is_current(self, stream: StreamDetector) -> bool:
        """Whether a stream's detector is the current one of its machine."""
        if self.refusal(stream.entity):
            return False
        return self._detectors.get(self._key_of(stream.entity)) is stream.source

    def _key_of(self, entity: str) -> tuple[Any, ...]:
        folder = self._rows[entity][2]
        return self._key(folder, POOLED if folder == STUDENT else entity)

    def _key(self, folder: str, entity: str) -> tuple[Any, ...]:
        return folder, entity, stamp(self.folder / folder / MANIFEST)

    def _opened(self, key: tuple[Any, ...], ready: bool = False) -> EntityStreams:
        streams = self._detectors.get(key)
        if streams is None:
            folder, entity, _ = key
            detector = load_detector(self.folder / folder)
            used = entity if entity in detector.entities else POOLED
            # Parts that streams don't need are removed: each of many machines has them.
            card = {
                "settings": {"data": detector.card.get("settings", {}).get("data", {})}
            }
            card["data"] = detector.card.get("data", {})
            streams = entity_streams(
                detector._replace(card=card, reference=None, ranges=None),
                entity=used,
                ready=ready,
                **self._options,
            )
            self._detectors[key] = streams
        return streams
