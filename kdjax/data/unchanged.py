"""Runs of rows in which channels keep their values.

Missing cells neither count nor end a run.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.windowing import chunks, has_missing

# A run is frozen when it is longer than so many times the longest in training, and a
# window; docs/stream.md explains this choice.
FACTOR = 2


class Unchanged(NamedTuple):
    """The state of D channels after a row."""

    last: np.ndarray  # [D] their last known values, NaN for none
    # [D + 1] known rows since the value came; the last counts rows without any change.
    runs: np.ndarray


def start_unchanged(width: int, dtype: Any) -> Unchanged:
    """The state before the first row."""
    return Unchanged(np.full(width, np.nan, dtype), np.zeros(width + 1, np.int64))


def next_unchanged(before: Unchanged, row: np.ndarray) -> Unchanged:
    """The state after a row `[D]`."""
    same = row == before.last
    seen = ~np.isnan(row)
    if seen.all() and not same.any():  # the usual case of sensors
        return Unchanged(row, np.ones(len(row) + 1, np.int64))
    changed = seen & ~same
    known = before.runs + np.append(seen, seen.any())
    counts = np.where(np.append(changed, changed.any()), 1, known)
    return Unchanged(np.where(seen, row, before.last), counts)


def unchanged_runs(before: Unchanged, rows: np.ndarray) -> tuple[np.ndarray, Unchanged]:
    """`next_unchanged` for each row: runs `[N, D + 1]` of rows `[N, D]`, last state.

    >>> rows = np.array([[1.0, 5.0], [1.0, 6.0], [np.nan, 6.0], [1.0, 6.0]])
    >>> unchanged_runs(start_unchanged(2, float), rows)[0]
    array([[1, 1, 1],
           [2, 1, 1],
           [2, 2, 2],
           [3, 3, 3]])
    """
    values = np.concatenate([before.last[None], rows])
    if has_missing(values):
        values = pd.DataFrame(values).ffill().to_numpy()
    seen = ~np.isnan(rows)
    changed = seen & (rows != values[:-1])
    known = np.c_[seen, seen.any(axis=1)]
    changed = np.c_[changed, changed.any(axis=1)]
    counted = before.runs + known.cumsum(axis=0)
    # Rows that were counted before the run began.
    earlier = np.maximum.accumulate(np.where(changed, counted - 1, 0), axis=0)
    counts = counted - earlier
    return counts, Unchanged(values[-1], counts[-1])


def longest_unchanged(
    values: np.ndarray, spans: np.ndarray, context: tuple[int, ...]
) -> np.ndarray:
    """The longest runs `[D + 1]` in spans of rows `[S, 2]`.

    0 for channels that never change there, whose normal length is not known, and for
    those of the context.
    """
    scored = np.append(~np.isin(np.arange(values.shape[1]), context), True)
    longest = np.zeros(scored.sum(), np.int64)
    low, high = np.full((2, len(longest) - 1), np.nan)
    for start, stop in spans:
        state = start_unchanged(len(low), values.dtype)
        for chunk in chunks(values[start:stop]):
            rows = chunk[:, scored[:-1]]
            counts, state = unchanged_runs(state, rows)
            longest = np.maximum(longest, counts.max(axis=0))
            low = np.fmin(low, np.fmin.reduce(rows))
            high = np.fmax(high, np.fmax.reduce(rows))
    moves = low < high
    found = np.zeros(len(scored), np.int64)
    found[scored] = np.where(np.append(moves, moves.any()), longest, 0)
    return found


def runs_within(values: np.ndarray, spans: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The longest runs `[D + 1]` up to one of the `rows`, `[N]` bool, from their start.

    No run extends across the spans of rows `[S, 2]`.
    """
    longest = np.zeros(values.shape[1] + 1, np.int64)
    for start, stop in spans:
        state, done = start_unchanged(values.shape[1], values.dtype), int(start)
        for chunk in chunks(values[start:stop]):
            counts, state = unchanged_runs(state, chunk)
            own = counts[rows[done : done + len(chunk)]]
            longest = np.maximum(longest, own.max(axis=0, initial=0))
            done += len(chunk)
    return longest


def frozen_limits(longest: np.ndarray, *, window: int) -> np.ndarray:
    """Runs `[D + 1]` above which rows are frozen; infinite where `longest` is 0."""
    return np.where(longest > 0, FACTOR * longest + float(window), np.inf)


def frozen_rows(
    values: np.ndarray,
    spans: np.ndarray,
    longest: np.ndarray,
    *,
    window: int,
    channels: Sequence[str],
) -> tuple[np.ndarray, list[str]]:
    """Rows `[N]` of `frozen_events` by the longest runs, and a text on each event.

    The rows count from the first one with the unchanged values.
    """
    rows, texts = np.zeros(len(values), bool), []
    limits, names = frozen_limits(longest, window=window), (*channels, "all channels")
    for column, start, stop in frozen_events(values, spans, limits):
        first = max(0, start - int(limits[column]))
        rows[first:stop] = True
        texts.append(
            f"{names[column]} unchanged from row {first} to {stop - 1} (from 0), at most "
            f"{longest[column]} in training"
        )
    return rows, texts


def frozen_events(
    values: np.ndarray, spans: np.ndarray, limits: np.ndarray
) -> list[tuple[int, int, int]]:
    """Frozen rows as events: column of `limits`, first row, row after the last.

    A channel's event begins only while not all channels are frozen, and ends when the
    channel changes. Only channels with a limit count.
    """
    (watched,) = np.isfinite(limits[:-1]).nonzero()
    own_limits, every = limits[[*watched, -1]], len(limits) - 1
    found: list[tuple[int, int, int]] = []
    for start, stop in spans if len(watched) else ():
        state, done = start_unchanged(len(watched), values.dtype), int(start)
        over: list[np.ndarray] = [np.empty((0, 2), np.int64)]  # rows and columns
        for rows in chunks(values[start:stop]):
            counts, state = unchanged_runs(state, rows[:, watched])
            over.append(np.argwhere(counts > own_limits) + [done, 0])
            done += len(rows)
        places, columns = np.concatenate(over).T
        columns = np.append(watched, every)[columns]
        together = places[columns == every]
        for column in np.unique(columns).tolist():
            own = places[columns == column]
            for block in np.split(own, np.flatnonzero(np.diff(own) > 1) + 1):
                alone = ~np.isin(block, together) | (column == every)
                if alone.any():
                    first = int(block[np.argmax(alone)])
                    found.append((column, first, int(block[-1]) + 1))
    return found
