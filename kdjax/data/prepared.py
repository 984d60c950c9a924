"""A data set made ready: spans without gaps, split in time, and a scaler each.

Rows that the user excludes (`Series.excluded`) are in no span. Values may be missing (NaN).
Values may also be memory maps of files larger than the memory: nothing here holds them
whole but `training_windows`, which is for data that fit (`is_large`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.channels import (
    Ranges,
    dead_channels,
    duplicate_channels,
    ranges_of,
)
from kdjax.data.mmap import WindowSource, on_disk, span_pieces
from kdjax.data.scaler import Scaler, apply_scaler, fit_scaler
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import (
    Split,
    intersect,
    kept,
    segments,
    split_rows,
    unfold,
    window_starts,
)
from kdjax.data.windowing import has_missing
from kdjax.errors import DataError

# An entity's own Gaussian has D means and D (D + 1) / 2 covariances to estimate.
ROWS_PER_CHANNEL = 5


class Entity(NamedTuple):
    """One entity's series and what each row serves for.

    Attributes:
        train: rows to learn and to calibrate on.
        test: rows to judge on, or None.
        split: spans of `train`, cut at gaps in time and at excluded rows.
        test_spans: spans of `test`, cut likewise.
        scaler: fitted on its own fit rows, or the pooled one.
        pooled: whether its complete validation rows are too few for a Gaussian of its own,
            or its fit rows lack a channel, so that it uses the pooled scaler, Gaussian and
            threshold.
        ranges: of `train` in the units of the file, `[D]`; excluded rows don't count.
        missing: whether a value of these rows is missing.
    """

    train: Series
    test: Series | None
    split: Split
    test_spans: np.ndarray
    scaler: Scaler
    pooled: bool
    ranges: Ranges
    missing: bool

    @property
    def name(self) -> str:
        """The entity's name."""
        return self.train.entity


class Prepared(NamedTuple):
    """A data set ready for training, calibration and evaluation."""

    name: str
    channels: tuple[str, ...]
    entities: tuple[Entity, ...]
    pooled_scaler: Scaler
    window: int
    stride: int


def prepare(
    dataset: Dataset,
    *,
    window: int,
    stride: int,
    max_gap: float,
    validation: float,
    calibration: float,
    scaler: str,
) -> Prepared:
    """Splits and scales a data set.

    Args:
        dataset: raw series.
        window: L.
        stride: of the windows that validate, calibrate and test.
        max_gap: in median steps; no window crosses a longer step in time.
        validation: share of the rows before calibration, without the excluded ones.
        calibration: share of all train rows but the excluded ones.
        scaler: method of `fit_scaler`.

    Raises:
        DataError: a test series is shorter than the window, there are fewer than two
            windows to fit on or none to validate on, or a channel has no value in any
            fit row.
    """
    splits = [
        _split(series, window, max_gap, validation, calibration)
        for series in dataset.train
    ]
    fit_rows = [
        span_pieces(series.values, split.fit)
        for series, split in zip(dataset.train, splits, strict=True)
    ]
    _check_seen(fit_rows, dataset)
    everything = [piece for rows in fit_rows for piece in rows]
    if not any(on_disk(series.values) for series in dataset.train):
        everything = [np.concatenate(everything)]
    pooled_scaler = fit_scaler(everything, method=scaler)
    tests: list[Series | None] = [*dataset.test] or [None] * len(splits)
    entities = []
    for train, test, split, rows in zip(
        dataset.train, tests, splits, fit_rows, strict=True
    ):
        # Without fit rows, or a value in each channel, there is no scaler either.
        pooled = _too_little(train, split, window, stride) or not _seen(rows).all()
        known = _training_rows(train)
        entities.append(
            Entity(
                train=train,
                test=test,
                split=split,
                test_spans=_test_spans(test, window, max_gap),
                scaler=pooled_scaler if pooled else fit_scaler(rows, method=scaler),
                pooled=pooled,
                ranges=ranges_of(known),
                missing=any(has_missing(piece) for piece in known),
            )
        )
    prepared = Prepared(
        dataset.name,
        dataset.train[0].channels,
        tuple(entities),
        pooled_scaler,
        window,
        stride,
    )
    _check_windows(prepared)
    return prepared


def training_windows(
    prepared: Prepared, part: str, *, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """All entities' scaled train rows and the starts of the windows of one part.

    Args:
        prepared: the data set.
        part: `fit`, `validation` or `calibration`.
        stride: of the windows.

    Returns:
        rows `[N, D]` float32, one entity after the other, and starts `[M]` int32.
    """
    rows, starts, offset = [], [], 0
    for entity in prepared.entities:
        spans = getattr(entity.split, part)
        own = window_starts(spans, window=prepared.window, stride=stride)
        starts.append(own + offset)
        rows.append(apply_scaler(entity.scaler, entity.train.values))
        offset += len(entity.train.values)
    return np.concatenate(rows), np.concatenate(starts).astype(np.int32)


def is_large(prepared: Prepared, memory_bytes: float) -> bool:
    """Whether all train rows together, as float32, are more than so many bytes."""
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    return 4 * rows * len(prepared.channels) > memory_bytes


def windows_source(prepared: Prepared, part: str, *, stride: int) -> WindowSource:
    """The windows of `training_windows`, in its order, read from where the rows are."""
    entities = prepared.entities
    return WindowSource(
        values=tuple(entity.train.values for entity in entities),
        scalers=tuple(entity.scaler for entity in entities),
        starts=tuple(
            window_starts(
                getattr(entity.split, part), window=prepared.window, stride=stride
            )
            for entity in entities
        ),
        window=prepared.window,
        missing=any(entity.missing for entity in entities),
    )


def fit_rows(prepared: Prepared) -> Iterator[np.ndarray]:
    """The scaled fit rows of all entities that miss no value, in pieces `[n, D]`.

    In one piece, unless some of them lie on disk.
    """
    pieces = (
        _complete(apply_scaler(entity.scaler, piece))
        for entity in prepared.entities
        for piece in span_pieces(entity.train.values, entity.split.fit)
    )
    if any(on_disk(entity.train.values) for entity in prepared.entities):
        yield from pieces
    else:
        yield np.concatenate(list(pieces))


def training_ranges(prepared: Prepared) -> Ranges:
    """Ranges of all train rows in the units of the file, `[E + 1, D]`.

    One row an entity and a last one pooled over them; excluded rows don't count.
    """
    own = [entity.ranges for entity in prepared.entities]
    low, high = (np.stack(side) for side in zip(*own, strict=True))
    return Ranges(
        np.concatenate([low, np.fmin.reduce(low)[None]]),
        np.concatenate([high, np.fmax.reduce(high)[None]]),
    )


def channel_notes(prepared: Prepared) -> list[str]:
    """Sentences on channels that say nothing, or nothing new, in the train rows."""
    notes = []
    for entity in prepared.entities:
        rows = _training_rows(entity.train)
        dead = dead_channels(np.stack(entity.ranges), prepared.channels)
        copies = duplicate_channels(rows, prepared.channels)
        if dead:
            names = ", ".join(dead)
            notes.append(f"{entity.name}: constant in the training rows: {names}")
        if copies:
            names = ", ".join(f"{copy} (of {first})" for copy, first in copies)
            notes.append(f"{entity.name}: copies of another channel: {names}")
    return notes


def _split(
    series: Series, window: int, max_gap: float, validation: float, calibration: float
) -> Split:
    remaining = kept(len(series.values), series.excluded)
    split = split_rows(
        int((remaining[:, 1] - remaining[:, 0]).sum()),
        window=window, validation=validation, calibration=calibration,
    )  # fmt: skip
    whole = _stretches(series, max_gap)
    return Split(*(intersect(unfold(spans, remaining), whole) for spans in split))


def _stretches(series: Series, max_gap: float) -> np.ndarray:
    """Spans of rows without a gap in time or an excluded row."""
    rows = len(series.values)
    whole = segments(series.time, rows, max_gap=max_gap)
    return intersect(kept(rows, series.excluded), whole)


def _check_seen(fit_rows: Sequence[list[np.ndarray]], dataset: Dataset) -> None:
    """Refuses a channel that is empty wherever a scaler could learn it."""
    seen = np.any([_seen(rows) for rows in fit_rows], axis=0)
    if any(len(piece) for rows in fit_rows for piece in rows) and not seen.all():
        first = dataset.train[0]
        channels = ", ".join(first.channels[i] for i in np.flatnonzero(~seen))
        entities = ", ".join(series.entity for series in dataset.train)
        raise DataError(
            f"no value of {channels} in the rows that fit ({entities}): remove the "
            "channel, or give train rows with values of it."
        )


def _seen(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Which channels have a value in rows `[n, D]`, `[D]` bool."""
    seen: np.ndarray = np.any(
        [(~np.isnan(rows)).any(axis=0) for rows in pieces], axis=0
    )
    return seen


def _too_little(train: Series, split: Split, window: int, stride: int) -> bool:
    pieces = span_pieces(train.values, split.validation)
    complete = sum(int((~np.isnan(rows).any(axis=1)).sum()) for rows in pieces)
    starts = window_starts(split.validation, window=window, stride=stride)
    return complete < ROWS_PER_CHANNEL * len(train.channels) or len(starts) == 0


def _test_spans(test: Series | None, window: int, max_gap: float) -> np.ndarray:
    if test is None:
        return np.empty((0, 2), np.int64)
    spans = _stretches(test, max_gap)
    if not _has_window(spans, window):
        raise DataError(
            f"test series {test.entity!r} has {len(test.values)} rows and no stretch "
            f"of data.window={window} rows without a gap: give more rows, exclude fewer "
            "or set a smaller data.window."
        )
    return spans


def _check_windows(prepared: Prepared) -> None:
    longest = max(len(entity.train.values) for entity in prepared.entities)
    for part, least in (("fit", 2), ("validation", 1)):
        found = sum(
            _count_windows(getattr(entity.split, part), prepared.window)
            for entity in prepared.entities
        )
        if found < least:
            # What is common to all windows can't be told from one alone.
            lack = f"there is a single {part} window" if found else ""
            raise DataError(
                f"{lack or f'no entity has a {part} window'}: the longest train series "
                f"has {longest} rows, data.window={prepared.window}. Give more rows, "
                "fewer gaps or excluded rows, a larger share (data.validation), or a "
                "smaller data.window."
            )


def _complete(rows: np.ndarray) -> np.ndarray:
    """The rows `[N, D]` that miss no value."""
    complete = ~np.isnan(rows).any(axis=1)
    return rows if complete.all() else rows[complete]


def _has_window(spans: np.ndarray, window: int) -> bool:
    return _count_windows(spans, window) > 0


def _count_windows(spans: np.ndarray, window: int) -> int:
    """Windows of stride 1 inside the spans."""
    return int(np.maximum(spans[:, 1] - spans[:, 0] - window + 1, 0).sum())


def _training_rows(series: Series) -> list[np.ndarray]:
    """The rows that aren't excluded, in pieces `[n, D]`."""
    if series.excluded is None and not on_disk(series.values):
        return [series.values]
    return span_pieces(series.values, kept(len(series.values), series.excluded))
