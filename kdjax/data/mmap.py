"""Series that stay on disk: their rows in chunks, and windows read where they lie.

A `.npy` file of float32 is mapped as it is; a Parquet file, and other `.npy` files, are
copied chunk by chunk into a temporary file that is mapped (`to_mapped_series`). Both are
`np.memmap` arrays, which nothing here ever holds whole. What is kept of a series in
memory is a few numbers a row: times, labels, scores.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.cells import Place, to_float32
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.schema import (
    Recording,
    Roles,
    Rules,
    channel_names,
    check_alive,
    check_roles,
    entity_rows,
    gap_error,
    lay_out,
    parsed_numbers,
    read_labels,
)
from kdjax.data.series import Series
from kdjax.data.tables import OpenTable, Table
from kdjax.data.times import find_time, has_zone
from kdjax.data.windowing import gather
from kdjax.errors import ConfigError

logger = logging.getLogger(__name__)

# What is taken into memory at once of rows on disk. Below it a file is read whole.
CHUNK_BYTES = 16_000_000

# Rows that are looked at to find the time column, and read at once of it.
_HEAD = 65_536


class Piece(NamedTuple):
    """Some rows of a series, and the windows inside them.

    Attributes:
        rows: `[n, D]` float32, scaled.
        starts: `[m]` first rows of the windows in `rows`.
        at: `[m]` the same in the whole series.
    """

    rows: np.ndarray
    starts: np.ndarray
    at: np.ndarray


class WindowSource(NamedTuple):
    """The windows of one part of a data set, scaled when they are read.

    Attributes:
        values: E arrays `[N, D]` of raw rows, most often memory maps.
        scalers: E of them.
        starts: E arrays, first rows of the windows in these.
        window: L.
        missing: whether values may be NaN.
    """

    values: tuple[np.ndarray, ...]
    scalers: tuple[Scaler, ...]
    starts: tuple[np.ndarray, ...]
    window: int
    missing: bool = False

    @property
    def windows(self) -> int:
        """M, of all entities together."""
        return sum(map(len, self.starts))

    def read(self, places: np.ndarray) -> np.ndarray:
        """The windows at places `[B]` among the M, `[B, L, D]` float32."""
        places = np.asarray(places)
        stops = np.cumsum([len(starts) for starts in self.starts])
        owners = np.searchsorted(stops, places, side="right")
        shape = (len(places), self.window, self.values[0].shape[1])
        found = np.empty(shape, np.float32)
        for owner in np.unique(owners):
            mine = owners == owner
            first = stops[owner] - len(self.starts[owner])
            starts = self.starts[owner][places[mine] - first]
            raw = gather(self.values[owner], starts, self.window)
            found[mine] = apply_scaler(self.scalers[owner], raw)
        return found


def on_disk(values: np.ndarray) -> bool:
    """Whether rows are mapped from a file that is more than a chunk."""
    return isinstance(values, np.memmap) and values.nbytes > CHUNK_BYTES


def chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Rows `[N, D]` one chunk after the other, without a copy.

    >>> [len(chunk) for chunk in chunks(np.zeros((5, 2)))]
    [5]
    """
    size = chunk_rows(values)
    for first in range(0, len(values), size):
        yield values[first : first + size]


def chunk_rows(values: np.ndarray) -> int:
    """Rows of a chunk."""
    row = values.itemsize * int(np.prod(values.shape[1:]))
    return max(1, CHUNK_BYTES // max(row, 1))


def span_pieces(values: np.ndarray, spans: np.ndarray) -> list[np.ndarray]:
    """The rows of spans `[S, 2]`: one array, or, of rows on disk, chunks of them."""
    if on_disk(values):
        return [part for a, b in spans for part in chunks(values[a:b])]
    return [
        np.concatenate(
            [np.empty((0, values.shape[1]), values.dtype)]
            + [values[start:stop] for start, stop in spans]
        )
    ]


def scaled_pieces(
    values: np.ndarray, scaler: Scaler, starts: np.ndarray, *, window: int
) -> Iterator[Piece]:
    """The windows of raw rows in scaled pieces, in their order.

    Rows in memory make one piece. Of rows on disk one has about a chunk, and as much of
    the scores of its windows; what lies between windows far apart is not read.

    Args:
        values: `[N, D]` raw rows.
        scaler: to apply.
        starts: `[M]` first rows of the windows.
        window: L.
    """
    if not on_disk(values):
        yield Piece(apply_scaler(scaler, values), starts, starts)
        return
    rows = max(chunk_rows(values), window)
    apart = len(starts) > 1 and np.median(np.diff(starts)) >= window
    most = min(rows, CHUNK_BYTES // 4) if apart else CHUNK_BYTES // 4
    done = 0
    while done < len(starts):
        at = starts[done : done + max(1, most // window)]
        if apart:
            found = gather(values, at, window).reshape(-1, values.shape[1])
            inside = np.arange(len(at)) * window
        else:
            beyond = (at < at[0]) | (at - at[0] + window > rows)
            at = at[: np.argmax(beyond)] if beyond.any() else at
            found, inside = values[at[0] : at[-1] + window], at - at[0]
        yield Piece(apply_scaler(scaler, found), inside, at)
        done += len(at)


def to_mapped_series(
    table: OpenTable, *, roles: Roles, rules: Rules, name: str
) -> Recording:
    """`kdjax.data.schema.to_series` for a table that is too large to hold.

    Times, labels and entities are read whole, then the channels chunk by chunk, each row
    to its place in a temporary file. It lies where `TMPDIR` says and goes with the last
    series that uses it.

    Args:
        table: the file.
        roles: which of its columns are no channels.
        rules: how faults of its rows are dealt with.
        name: the entity where there is no column of entities.
    """
    place = table.place
    check_roles(roles, place)
    frame = _known_columns(table, roles)
    rest = frame.drop(columns=[one for one in (roles.entity, roles.label) if one])
    clock = roles.time or find_time(rest, place)
    channels = channel_names(
        [c for c in place.columns if c not in (*roles, clock)], place
    )
    groups = entity_rows(frame, roles.entity, name, place)
    (frame, place), groups, time, notes = lay_out(
        Table(frame, place), groups, clock, rules
    )
    labels = read_labels(frame, roles.label, place)
    found = _Target(
        mapped_rows(sum(map(len, groups.values())), len(channels)),
        np.concatenate(list(groups.values())),
        np.cumsum([len(rows) for rows in groups.values()]),
        place,
    )
    missing = _copy(table, channels, found, rules.missing)
    if missing.any() and rules.missing == "ffill":
        _fill(found, channels)
    what = "filled with the last one before" if rules.missing == "ffill" else "missing"
    series = []
    bounds = [0, *found.stops]
    for place_, (entity, rows) in enumerate(groups.items()):
        values = found.values[bounds[place_] : bounds[place_ + 1]]
        if missing[place_]:
            notes[entity].append(
                f"{missing[place_]:,} of {values.size:,} values {what}"
            )
        series.append(
            Series(
                entity,
                values,
                channels,
                time=None if time is None else time[rows],
                labels=None if labels is None else labels[rows],
                notes=tuple(f"{entity}: {note}" for note in notes[entity]),
            )
        )
    return Recording(tuple(series), zoned=bool(clock) and has_zone(frame[clock]))


def mapped_rows(rows: int, width: int) -> np.memmap:
    """Room for float32 rows `[N, D]` in a temporary file that goes with the array.

    Raises:
        ConfigError: the disk has no room for it.
    """
    size, folder = 4 * rows * width, tempfile.gettempdir()
    text = f"{size / 1e9:.1f} GB in {folder}"
    logger.info("rows larger than data.memory_bytes are copied to a file: %s", text)
    try:
        if shutil.disk_usage(folder).free < size:
            raise OSError("the disk is full")
        with tempfile.TemporaryFile(prefix="kdjax-") as file:
            # Written to where there is no room, a mapped file would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "w+", shape=(rows, width))
    except OSError as error:
        raise ConfigError(
            f"rows larger than data.memory_bytes need {text} ({error}): set TMPDIR to a "
            "folder with more room, or raise data.memory_bytes."
        ) from None


def reordered(values: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Rows with their channels in another order; those on disk stay there."""
    if not on_disk(values):
        return values[:, order]
    found = mapped_rows(len(values), len(order))
    for source, target in zip(chunks(values), chunks(found), strict=True):
        target[:] = source[:, order]
    return found


class _Target(NamedTuple):
    """Where the rows of a file go.

    Attributes:
        values: `[N, D]`, one entity after the other.
        rows: `[N]` the table's row of each.
        stops: `[E]` where each entity ends.
        place: of the table, whose rows may be others than the file's.
    """

    values: np.memmap
    rows: np.ndarray
    stops: np.ndarray
    place: Place


def _known_columns(table: OpenTable, roles: Roles) -> pd.DataFrame:
    """The columns that may be no channels, whole.

    Those with a role, those called as times are, and those that begin like datetimes.
    """
    columns = table.place.columns
    open_ = [name for name in columns if name not in roles]
    wanted = [name for name in columns if name in roles]
    if not roles.time:
        head = next(table.chunks(open_, _HEAD), pd.DataFrame())
        wanted += [name for name in open_ if _may_be_time(head, name, table)]
    if not wanted:
        return pd.DataFrame(index=pd.RangeIndex(table.rows))
    ordered = [name for name in columns if name in wanted]
    return pd.concat(table.chunks(ordered, _HEAD), ignore_index=True)


def _may_be_time(head: pd.DataFrame, name: str, table: OpenTable) -> bool:
    return bool(find_time(head[[name]], table.place))


def _copy(
    table: OpenTable, channels: tuple[str, ...], target: _Target, missing: str
) -> np.ndarray:
    """Writes the channels to their places; missing values of each entity, `[E]`."""
    place, gaps = target.place, np.zeros(len(target.stops), np.int64)
    file_rows = target.rows if place.rows is None else place.rows[target.rows]
    places = np.full(table.rows, -1)
    places[file_rows] = np.arange(len(file_rows))
    seen, done = np.zeros(len(channels), bool), 0
    for frame in table.chunks(channels, chunk_rows(target.values)):
        to = places[done : done + len(frame)]
        kept = np.flatnonzero(to >= 0)  # The others have times that are repeated.
        here = place._replace(rows=done + kept)
        done += len(frame)
        frame, to = frame.iloc[kept], to[kept]
        rows = np.stack(
            [parsed_numbers(frame[name], here) for name in channels], axis=1
        )
        rows = _checked(rows, channels, missing, here)
        absent = np.isnan(rows)
        seen |= ~absent.all(axis=0)
        owners = np.searchsorted(target.stops, to, side="right")
        np.add.at(gaps, owners, absent.sum(axis=1))
        target.values[to] = rows
    if missing == "mask":
        check_alive(np.where(seen, 0.0, np.nan)[None], channels, place)
    return gaps


def _checked(
    rows: np.ndarray, channels: tuple[str, ...], missing: str, place: Place
) -> np.ndarray:
    """A chunk as float32, with NaN only where the policy knows what to do with it."""
    if missing == "ffill":
        rows = np.where(np.isfinite(rows), rows, np.nan)
    bad = ~np.isfinite(rows) if missing == "error" else np.isinf(rows)
    if bad.any():
        raise gap_error(rows, _first_of(bad), channels, missing, place)
    policy = "error" if missing == "error" else "mask"
    return to_float32(rows, place, channels, missing=policy)


def _first_of(bad: np.ndarray) -> np.ndarray:
    """The first bad cell alone: how many the whole file has isn't known."""
    first = np.zeros_like(bad)
    first[tuple(np.argwhere(bad)[0])] = True
    return first


def _fill(target: _Target, channels: tuple[str, ...]) -> None:
    """Repeats the last value of each entity where one is missing."""
    size, first = chunk_rows(target.values), 0
    for stop in target.stops:
        last = np.full((1, len(channels)), np.nan, np.float32)
        for start in range(first, stop, size):
            rows = target.values[start : min(start + size, stop)]
            filled = pd.DataFrame(np.concatenate([last, rows])).ffill().to_numpy()[1:]
            bad = np.isnan(filled)
            if bad.any():
                numbers = target.rows[start : start + len(rows)]
                known = target.place.rows
                numbers = numbers if known is None else known[numbers]
                here = target.place._replace(rows=numbers)
                raise gap_error(filled, _first_of(bad), channels, "ffill", here)
            rows[:] = filled
            last = filled[-1:]
        first = stop
