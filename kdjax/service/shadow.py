"""A shadow: a second detector that scores the same rows without announcing events."""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdjax.data.lines import Line
from kdjax.detection.streaming import StreamRow
from kdjax.errors import ConfigError, KdjaxError
from kdjax.scoring.machines import Machines, Store
from kdjax.service.answers import answer_rows
from kdjax.service.loading import Loaded

COMPARED = 10_000  # pairs of scores that a comparison keeps


class Shadow:
    """A second detector that scores the same rows, and its comparison with the first.

    ConfigError if it has other channels than the `first` one, or another grid.
    """

    def __init__(self, loaded: Loaded, first: Loaded, most_open: int) -> None:
        forms = [(p.channels, p.reading.step) for p in (first.plan, loaded.plan)]
        if forms[0] != forms[1]:
            raise ConfigError(
                f"{loaded.path} can't be a shadow of {first.path}: it has other channels, or "
                "another data.step."
            )
        self.loaded, self.rows, self.error = loaded, 0, ""
        self.machines = Machines(
            loaded.streams,
            {},
            store=Store(None),
            most=most_open,
            log=lambda text: None,
        )
        self.both = self.own = self.other = self.events = 0
        self._scores: collections.deque[tuple[float, float]]
        self._scores = collections.deque(maxlen=COMPARED)

    def take(self, lines: Sequence[Line], rows: Sequence[StreamRow | None]) -> None:
        """Scores lines, whose rows the first detector answered.

        An error is stored in `error`.
        """
        try:
            self._take([(n, row) for n, row in zip(lines, rows, strict=True) if row])
        except (KdjaxError, OSError) as error:
            self.error = str(error)

    def _take(self, pairs: Sequence[tuple[Line, StreamRow]]) -> None:
        found = answer_rows(self.machines, [line for line, _ in pairs], lambda _: None)
        for (_, row), (_, second) in zip(pairs, found, strict=True):
            if second is None:
                continue
            self.rows += 1
            self.both += row.alarm and second.alarm
            self.own += second.alarm and not row.alarm
            self.other += row.alarm and not second.alarm
            begun = [e for e in second.events if e["end"] is None]
            self.events += len(begun)
            self._scores.append((_severity(row), _severity(second)))
        self.machines.shrink()

    def compared(self) -> dict[str, Any]:
        """The comparison as JSON values; severities are window scores in units of τ."""
        pairs = np.array(self._scores).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        shares = (0.5, 0.9, 0.99, 1.0)
        quantiles = {
            name: [round(float(q), 6) for q in np.quantile(column, shares)]
            for name, column in zip(("first", "shadow"), pairs.T, strict=True)
            if len(column)
        }
        return {
            "detector": str(self.loaded.path.name),
            "digest": self.loaded.digest,
            "rows": self.rows,
            "alarms": {
                "both": self.both,
                "first_only": self.other,
                "shadow_only": self.own,
            },
            "events": self.events,
            "severity": {"rows": len(pairs), "shares": shares, **quantiles},
            "error": self.error or None,
        }


def _severity(row: StreamRow) -> float:
    return row.window_score / row.tau if row.tau > 0 else math.nan
