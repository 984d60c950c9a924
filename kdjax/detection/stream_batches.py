"""Streams of many entities, whose rows are scored together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.detection.streaming import StreamDetector, StreamRow, Taken, WindowResult
from kdjax.detection.timestamps import Timestamp
from kdjax.errors import DataError

# Scores windows `[B, L, D]`, each of the entity that the plan of its stream names.
BatchScorer = Callable[[Sequence[str], np.ndarray], list[WindowResult]]


def answer_together(
    rows: Sequence[tuple[StreamDetector, Taken]], score: BatchScorer | None
) -> list[StreamRow]:
    """Answers a row of each of several streams; all windows are scored in one call.

    Without `score` each is scored by the stream's own scorer.
    """
    if score is None:
        return [stream.answer(taken, stream.score(taken)) for stream, taken in rows]
    names = [stream.plan.entity for stream, taken in rows if taken.whole]
    windows = [taken.window for _, taken in rows if taken.whole]
    found = iter(score(names, np.concatenate(windows)) if windows else ())
    return [
        stream.answer(taken, next(found) if taken.whole else None)
        for stream, taken in rows
    ]


class EntityStreams:
    """Streams of many entities, whose rows are scored together.

    Args:
        open_entity: gives a stream by an entity's scaler, Gaussian and threshold.
        score: scores windows of several entities.
        known: entities that have their own.
        usual: whose others have.

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
        stream.excluded = self.excluded
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
            stream = self[entity]
            own = time.get(entity) if isinstance(time, Mapping) else time
            try:
                taken.append((stream, stream.take(row, own)))
            except DataError as error:
                faults[entity] = error
        found = iter(answer_together(taken, self.score))
        return {entity: faults.get(entity) or next(found) for entity in rows}
