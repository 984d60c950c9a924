"""Streams of many entities, whose rows are scored together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.detection.streaming import StreamDetector, StreamRow, Taken, WindowResult
from kdjax.detection.timestamps import Timestamp
from kdjax.errors import DataError

# Scores windows `[B, L, D]`, each for the entity of its stream's plan.
BatchScorer = Callable[[Sequence[str], np.ndarray], list[WindowResult]]


def answer_together(
    rows: Sequence[tuple[StreamDetector, Taken]], score: BatchScorer | None
) -> list[StreamRow]:
    """Answers one row of each of several streams; all windows are scored in one call.

    Without `score` each stream's own scorer is used.
    """
    if score is None:
        return [stream.answer(taken, stream.score(taken)) for stream, taken in rows]
    whole = [(stream, taken.window) for stream, taken in rows if taken.whole]
    found = iter(score_together(whole, score))
    return [
        stream.answer(taken, next(found) if taken.whole else None)
        for stream, taken in rows
    ]


def score_together(
    windows: Sequence[tuple[StreamDetector, np.ndarray]], score: BatchScorer
) -> list[WindowResult]:
    """Scores windows `[1, L, D]` of streams, in one call per detector.

    `score` is for streams outside `EntityStreams`.
    """
    groups: dict[int, list[int]] = {}
    for place, (stream, _) in enumerate(windows):
        groups.setdefault(id(stream.source), []).append(place)
    found: dict[int, WindowResult] = {}
    for places in groups.values():
        own = [windows[place] for place in places]
        source = own[0][0].source
        names = [stream.plan.entity for stream, _ in own]
        batch = np.concatenate([window for _, window in own])
        results = (source.score if source else score)(names, batch)
        found |= zip(places, results, strict=True)
    return [found[place] for place in range(len(windows))]


class Unchanging:
    """What detectors that stay as they are have of a fleet's, see `FleetStreams`."""

    fleet = False

    def refusal(self, entity: str) -> str:
        """Why an entity has no detector; empty where it has one."""
        return ""

    def is_listed(self, entity: str) -> bool:
        """Whether an entity is in the catalogue of a fleet, though it may have failed."""
        return False

    def digest(self, entity: str) -> str:
        """The SHA-256 of the manifest of an entity's own detector; empty for none."""
        return ""

    def stale(self) -> bool:
        """Whether detectors may have changed since the last `refresh`."""
        return False

    def refresh(self) -> None:
        """Takes detectors as they are now, for streams that are opened from here on."""

    def is_current(self, stream: StreamDetector) -> bool:
        """Whether a stream's detector is the one that its entity has now."""
        return True


class EntityStreams(Unchanging):
    """Streams of many entities, whose rows are scored together.

    Args:
        open_entity: returns a stream for an entity's scaler, Gaussian and threshold.
        score: scores windows of several entities.
        known: entities with their own.
        usual: entity whose are used for the others.

    >>> streams = kdjax.open_streams("detectors/student")  # doctest: +SKIP
    >>> found = streams.update({"pump": [0.5, 21.0], "saw": [0.1, 20.0]})  # doctest: +SKIP
    >>> found["pump"].state  # doctest: +SKIP
    'unknown'
    """

    def __init__(
        self,
        open_entity: Callable[[str], StreamDetector],
        score: BatchScorer,
        *,
        known: Collection[str],
        usual: str,
    ) -> None:
        self.score, self.known, self._usual = score, known, usual
        self.excluded: Callable[[str, Timestamp], bool] = lambda entity, instant: False
        self._open_entity = open_entity
        self._streams: dict[str, StreamDetector] = {}

    def another(self, entity: str) -> StreamDetector:
        """A stream of an entity before its first row, which `update` doesn't know."""
        whose = entity if entity in self.known else self._usual
        stream = self._open_entity(whose).another(entity)
        stream.excluded, stream.source = self.excluded, self
        return stream

    def __getitem__(self, entity: str) -> StreamDetector:
        """The stream of an entity; `state` and `restore` are those of each stream."""
        if entity not in self._streams:
            self._streams[entity] = self.another(entity)
        return self._streams[entity]

    def update(
        self,
        rows: Mapping[str, Sequence[float] | np.ndarray | Mapping[str, float]],
        time: Any = None,
    ) -> dict[str, StreamRow | DataError]:
        """Scores the next row of each entity, as `StreamDetector.update` does.

        `time` is that of all rows, or a mapping from entities to times. In place of the
        answer to a row that is refused is its error.
        """
        faults, taken = dict[str, DataError](), list[tuple[StreamDetector, Taken]]()
        for entity, row in rows.items():
            own = time.get(entity) if isinstance(time, Mapping) else time
            try:
                stream = self[entity]
                taken.append((stream, stream.take(row, own)))
            except DataError as error:
                faults[entity] = error
        found = iter(answer_together(taken, self.score))
        return {entity: faults.get(entity) or next(found) for entity in rows}
