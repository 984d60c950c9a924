"""Streams of saved detectors, on jax or on onnxruntime.

JAX is imported only where a detector's folder is opened.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax.detection.stream_batches import EntityStreams
from kdjax.detection.stream_rules import plan_by
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.errors import ConfigError, check_choice
from kdjax.io.files import is_fleet

if TYPE_CHECKING:
    from kdjax.detection.detector import Detector
    from kdjax.export.container import Scorer

BACKENDS = ("auto", "jax", "onnxruntime")
ONNX_BATCH = 32  # windows in one call of onnxruntime; see docs/serve.md
SESSIONS = 64  # most entities whose ONNX models are in memory at once
NOTHING: Mapping[str, Any] = MappingProxyType({})


def open_stream(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    entity: str | None = None,
    adaptive_step: float = 0.0,
    rolling: float = 0.0,
    reading: Mapping[str, Any] = NOTHING,
) -> StreamDetector:
    """The stream of a saved detector, ready for its first row.

    Args:
        path: a detector's folder, or an ONNX file of one.
        backend: one of `BACKENDS`; `auto` is `onnxruntime` for a file, else `jax`.
        entity: of the scaler, Gaussian and threshold; by default the only entity, else the
            pooled ones, or those in the file.
        adaptive_step, rolling: see `StreamDetector`.
        reading: how rows are read, if not as in training: options of
            `kdjax.data.readers.read_table`.

    >>> stream = open_stream("runs/plant/detectors/classifier")  # doctest: +SKIP
    >>> stream.update([0.5, 21.0, 3.2]).state  # doctest: +SKIP
    'unknown'
    """
    moving = {"adaptive_step": adaptive_step, "rolling": rolling}
    return opener(path, backend, reading, **moving)[1](entity)


def open_streams(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    entity: str | None = None,
    reading: Mapping[str, Any] = NOTHING,
    **moving: Any,
) -> EntityStreams:
    """The streams of many entities with a saved detector, scored in batches.

    Each entity has its own scaler, Gaussian and threshold if the detector knows it. An
    ONNX file has those of one entity, for all. In the folder of a fleet each machine has
    its own detector; others are refused. Arguments are those of `open_stream`.

    >>> streams = open_streams("runs/plant/detectors/classifier")  # doctest: +SKIP
    >>> found = streams.update({"saw": [0.2, 20, 3], "press": [0.5, 21, 3]})  # doctest: +SKIP
    >>> found["saw"].state  # doctest: +SKIP
    'unknown'
    """
    if is_fleet(path):
        if _backend(path, backend) != "jax" or entity:
            raise ConfigError(
                f"{path} is the folder of a fleet: for backend=onnxruntime, or for one "
                f"entity, give {path}/detectors/MACHINE."
            )
        from kdjax.scoring.fleets import FleetStreams

        return FleetStreams(path, reading=reading, **moving)
    if _backend(path, backend) == "jax":
        from kdjax.detection.detector import entity_streams

        return entity_streams(
            _loaded(Path(path)), entity=entity, reading=reading, **moving
        )
    entities, make = _onnx_scorers(Path(path))
    first = make(entity)
    scorer_of = functools.lru_cache(SESSIONS)(make)

    def score(names: Sequence[str], windows: np.ndarray) -> list[WindowResult]:
        if {*names} == {first.plan.entity}:
            return _onnx_scores(first, windows)
        found: dict[int, WindowResult] = {}
        for name in dict.fromkeys(names):
            own = [place for place, other in enumerate(names) if other == name]
            scorer = first if name == first.plan.entity else scorer_of(name)
            found |= zip(own, _onnx_scores(scorer, windows[own]), strict=True)
        return [found[place] for place in range(len(names))]

    @functools.lru_cache(SESSIONS)
    def own_stream(name: str) -> StreamDetector:
        scorer = first if name == first.plan.entity else scorer_of(name)
        return _onnx_stream(scorer, reading, moving)

    known = () if entity else entities
    return EntityStreams(own_stream, score, known=known, usual=first.plan.entity)


def opener(
    path: str | os.PathLike[str],
    backend: str = "auto",
    reading: Mapping[str, Any] = NOTHING,
    **moving: float,
) -> tuple[Sequence[str], Callable[[str | None], StreamDetector]]:
    """A detector's entities, and a function that opens the stream of one of them.

    For None it opens that of the usual entity. A file has only its own entity.
    """
    if _backend(path, backend) == "onnxruntime":
        entities, make = _onnx_scorers(Path(path))
        return entities, lambda entity: _onnx_stream(make(entity), reading, moving)
    loaded = _loaded(Path(path))
    from kdjax.detection.detector import stream_detector, usual_entity

    def open_entity(entity: str | None) -> StreamDetector:
        used = entity or usual_entity(loaded)
        stream = stream_detector(loaded, entity=used, reading=reading, **moving)
        stream.drift()  # imports are done here, not between two rows
        return stream

    return loaded.entities, open_entity


def _backend(path: str | os.PathLike[str], backend: str) -> str:
    check_choice("backend", backend, BACKENDS)
    if backend != "auto":
        return backend
    return "onnxruntime" if Path(path).is_file() else "jax"


def _loaded(path: Path) -> "Detector":
    from kdjax.detection.storage import load_detector

    if path.is_file():
        raise ConfigError(
            f"{path} is a file: give the detector's folder, or backend=onnxruntime for "
            "an ONNX file."
        )
    return load_detector(path)


def _onnx_scorers(path: Path) -> tuple[Sequence[str], Callable[[str | None], "Scorer"]]:
    """A detector's entities, none for a file, and a function that makes scorers."""
    from kdjax.export.container import load_onnx

    if path.is_dir():
        from kdjax.detection.detector import entity_index, usual_entity
        from kdjax.export.onnx import onnx_file

        loaded = _loaded(path)

        def make(entity: str | None) -> "Scorer":
            index = entity_index(loaded, entity or usual_entity(loaded))
            return load_onnx(onnx_file(loaded, index))

        return loaded.entities, make
    scorer = load_onnx(path)

    def checked(entity: str | None) -> "Scorer":
        if entity not in (None, scorer.plan.entity):
            raise ConfigError(
                f"{path} was exported for entity {scorer.plan.entity!r}, not "
                f"{entity!r}: remove the entity, or export the detector for it."
            )
        return scorer

    return (), checked


def _onnx_scores(scorer: "Scorer", windows: np.ndarray) -> list[WindowResult]:
    results = list[WindowResult]()
    for first in range(0, len(windows), ONNX_BATCH):
        points, found, _, parts = scorer.run(windows[first : first + ONNX_BATCH])
        results += map(WindowResult, points, found.tolist(), parts)
    return results


def _onnx_stream(
    scorer: "Scorer", reading: Mapping[str, Any], moving: Mapping[str, Any]
) -> StreamDetector:
    def score(windows: np.ndarray) -> WindowResult:
        return _onnx_scores(scorer, windows)[0]

    return StreamDetector(plan_by(scorer.plan, reading), score, **moving)
