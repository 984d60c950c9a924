"""Detectors in service: loaded from a folder on JAX, or from an ONNX file without it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.detection.stream_batches import EntityStreams
from kdjax.detection.stream_rules import Plan
from kdjax.errors import ArtifactError
from kdjax.io.files import FLEET, MANIFEST, is_fleet, sha256
from kdjax.scoring.managed import Spans
from kdjax.scoring.opening import ONNX_BATCH, open_streams
from kdjax.service.bodies import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdjax.export.container import Scored


class Loaded(NamedTuple):
    """A detector from a folder or an ONNX file."""

    path: Path
    digest: str
    backend: str  # `jax` or `onnxruntime`
    streams: EntityStreams
    plan: Plan  # of the usual entity
    entities: tuple[str, ...]
    card: Mapping[str, Any] | None
    scored: "Callable[[np.ndarray, str], Scored]"  # for windows [B, L, D] of an entity

    @property
    def fleet(self) -> bool:
        """Whether it is a fleet, whose machines have detectors of their own."""
        return self.streams.fleet

    def digest_of(self, entity: str | None) -> str:
        """The digest of an entity's own detector in a fleet, else the detector's."""
        return self.streams.digest(entity) if self.fleet and entity else self.digest


def load(
    path: Path, excluded: Spans | None = None, *, entity: str | None = None
) -> Loaded:
    """A saved detector, verified and ready: on JAX, or an ONNX file on onnxruntime only.

    `excluded` are spans of rows that its streams leave out; with an `entity` all rows have
    its values. Detectors of a fleet are loaded with the first rows of their machines.

    Raises:
        ArtifactError: it is damaged or of another kind.
    """
    from kdjax.export.container import Scored, load_onnx

    digest = stamp(path)[1]
    card: Mapping[str, Any] | None = None
    entities: tuple[str, ...] = ()
    if is_fleet(path):
        streams, backend = open_streams(path), "jax"
        plan = streams.another("").plan

        def scored(windows: np.ndarray, entity: str) -> Scored:
            raise RequestError(
                400, "give the entity: each machine has its own detector."
            )

    elif path.is_dir():
        from kdjax.detection.detector import entity_streams
        from kdjax.detection.storage import load_detector

        detector = load_detector(path)
        options: dict[str, Any] = {"entity": entity, "ready": entity is None}
        streams = entity_streams(detector, exact=True, **options)
        backend = "jax"
        card, entities = detector.card, detector.entities
        plan = streams.another("").plan

        def scored(windows: np.ndarray, entity: str) -> Scored:
            own = streams.another(entity)
            found = streams.score([own.plan.entity] * len(windows), windows)
            points = np.stack([one.points for one in found])
            scores = np.array([one.window_score for one in found], np.float32)
            parts = np.stack([own.explained(window[None]) for window in windows])
            alarms = (scores > own.plan.tau).astype(np.int64)
            return Scored(points, scores, alarms, parts)

    else:
        streams, backend = open_streams(path), "onnxruntime"
        run = load_onnx(path).run
        plan = streams.another("").plan

        def scored(windows: np.ndarray, entity: str) -> Scored:
            starts = range(0, len(windows), ONNX_BATCH)
            pieces = [run(windows[first : first + ONNX_BATCH]) for first in starts]
            return Scored(*map(np.concatenate, zip(*pieces, strict=True)))

    streams.excluded = excluded or streams.excluded
    # Imports are done here, not between two rows.
    streams.another("").drift()
    return Loaded(path, digest, backend, streams, plan, entities, card, scored)


def sealing(path: Path) -> Path:
    """The file that changes with a detector or with the settings of a fleet."""
    if is_fleet(path):
        return path / FLEET
    return path / MANIFEST if path.is_dir() else path


def stamp(path: Path) -> tuple[int, str]:
    """When a detector's manifest, or its file, was written (ns), and its SHA-256."""
    file = sealing(path)
    try:
        return file.stat().st_mtime_ns, sha256(file)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror}).") from None
