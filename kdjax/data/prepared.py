"""A data set ready for training: spans without gaps, split in time, and scalers.

Excluded rows (`Series.excluded`) are in no span. Values may be missing (NaN). They may
be memory maps, which only `training_windows` reads whole.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.scaler import Scaler, apply_scaler, fit_scaler, is_coarse, outliers
from kdjax.data.series import (
    Dataset,
    Ranges,
    Series,
    dead_channels,
    duplicate_channels,
    monotonic_channels,
    ranges_of,
)
from kdjax.data.splits import (
    Split,
    intersect,
    kept,
    segments,
    split_rows,
    unfold,
    window_starts,
)
from kdjax.data.unchanged import frozen_rows, longest_unchanged
from kdjax.data.windowing import WindowSource, has_missing, on_disk, span_pieces
from kdjax.errors import ConfigError, DataError, counted
from kdjax.metrics.checks import runs

# An entity's own Gaussian has D means and D (D + 1) / 2 covariances to estimate.
ROWS_PER_CHANNEL = 5
MOST_NAMED = 3  # channels with outliers that a note names


class Entity(NamedTuple):
    """One entity's series and the use of its rows.

    A pooled entity uses the pooled scaler, Gaussian and threshold, because it has too few
    complete validation rows for its own Gaussian, or a channel without fit rows.
    """

    train: Series  # rows to train and calibrate on, `without_outliers`
    test: Series | None  # rows to evaluate
    split: Split  # of `train`, cut at gaps in time and at excluded rows
    train_spans: np.ndarray  # [S, 2] of `train`, cut likewise
    test_spans: np.ndarray  # [S, 2] of `test`, cut likewise
    scaler: Scaler  # fitted on its own fit rows, or the pooled one
    pooled: bool
    ranges: Ranges  # [D] of `train` in the units of the file, without excluded rows
    missing: bool  # whether a value of these rows is missing
    notes: tuple[str, ...] = ()  # on outliers and frozen stretches in `train`
    # [D + 1] longest unchanged runs of the rows before calibration.
    unchanged: np.ndarray = np.empty(0, np.int64)

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
    context: tuple[int, ...] = ()  # indices of channels that are read, but not scored


def prepare(
    dataset: Dataset,
    *,
    window: int,
    stride: int,
    max_gap: float,
    validation: float,
    calibration: float,
    scaler: str,
    context: Sequence[str] = (),
    todo: Callable[[], str] = lambda: "Give more rows, fewer gaps or excluded rows",
) -> Prepared:
    """Splits and scales a data set.

    Args:
        dataset: raw series.
        window: L.
        stride: of the windows for validation, calibration and test.
        max_gap: in median steps; no window crosses a longer step in time.
        validation: share of the rows before calibration, without the excluded ones.
        calibration: share of all train rows except the excluded ones.
        scaler: method of `fit_scaler`.
        context: names of channels that are read, but not scored.
        todo: returns the remedy for too few windows.

    Raises:
        ConfigError: `context` must name some of the channels, each once.
        DataError: a test series is shorter than the window, there are fewer than two fit
            windows or no validation window, or a channel has no value in any fit row.
    """
    notes: list[tuple[str, ...]] = [()] * len(dataset.train)
    if scaler == "quantile":
        train, notes = zip(*map(without_outliers, dataset.train), strict=True)
        dataset = dataset._replace(train=train)
    channels = dataset.train[0].channels
    if not {*context} < {*channels} or len({*context}) < len(context):
        raise ConfigError(
            f"data.context={tuple(context)!r} must name channels of {dataset.name}, each "
            f"once, and not all: {', '.join(channels)}. Remove names that are not channels "
            "(or are in data.ignore), and leave at least one channel to score."
        )
    places = tuple(sorted(map(channels.index, context)))
    splits = [
        _split(series, window, max_gap, validation, calibration)
        for series in dataset.train
    ]
    fit = [
        span_pieces(series.values, split.fit)
        for series, split in zip(dataset.train, splits, strict=True)
    ]
    seen = np.zeros((len(fit), len(channels)), bool)  # in the fit rows of each entity
    for index, pieces in enumerate(fit):
        for rows in pieces:
            seen[index] |= (~np.isnan(rows)).any(axis=0)
    pooled_pieces = [piece for pieces in fit for piece in pieces]
    absent = np.flatnonzero(~seen.any(axis=0))
    if any(map(len, pooled_pieces)) and len(absent):
        names = ", ".join(series.entity for series in dataset.train)
        raise DataError(
            f"no value of {', '.join(channels[i] for i in absent)} in the fit rows "
            f"({names}): give rows with values of it, or train without the channel."
        )
    if not any(on_disk(series.values) for series in dataset.train):
        pooled_pieces = [np.concatenate(pooled_pieces)]
    dtype = np.result_type(*(series.values.dtype for series in dataset.train))
    pooled_scaler = fit_scaler(pooled_pieces, method=scaler, dtype=dtype)
    tests: list[Series | None] = [*dataset.test] or [None] * len(splits)
    entities = []
    for index, (train, split) in enumerate(zip(dataset.train, splits, strict=True)):
        pooled = _too_little(train, split, window, stride) or not seen[index].all()
        own = pooled_scaler
        if not pooled:
            own = fit_scaler(fit[index], method=scaler, dtype=dtype)
        used, whole = _training_rows(train), _stretches(train, max_gap)
        # Frozen calibration rows would change τ; the limits come from the rows before.
        before = intersect(whole, kept(len(train.values), split.calibration))
        longest = longest_unchanged(train.values, before, places)
        frozen, texts = frozen_rows(
            train.values, split.calibration, longest, window=window, channels=channels
        )
        still = (f"{train.entity}: left out of calibration: {text}" for text in texts)
        moving = kept(len(train.values), np.stack(runs(frozen), axis=1))
        split = split._replace(calibration=intersect(split.calibration, moving))
        entities.append(
            Entity(
                train=train,
                test=tests[index],
                split=split,
                train_spans=intersect(whole, moving),
                test_spans=_test_spans(tests[index], window, max_gap),
                scaler=own,
                pooled=pooled,
                ranges=ranges_of(used),
                missing=any(has_missing(piece) for piece in used),
                notes=(*notes[index], *still),
                unchanged=longest,
            )
        )
    _check_windows(entities, window, todo)
    return Prepared(
        dataset.name, channels, tuple(entities), pooled_scaler, window, stride, places
    )


def training_windows(
    prepared: Prepared, part: str, *, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """All entities' scaled train rows and the starts of the windows of one part.

    The part is `fit`, `validation` or `calibration`; rows are `[N, D]` float32, one
    entity after the other, and starts `[M]` int32.
    """
    source = windows_source(prepared, part, stride=stride)
    lengths = [len(values) for values in source.values]
    offsets = np.cumsum([0, *lengths[:-1]])
    starts = [own + offset for own, offset in zip(source.starts, offsets, strict=True)]
    rows = map(apply_scaler, source.scalers, source.values)
    return np.concatenate([*rows]), np.concatenate(starts).astype(np.int32)


def is_large(prepared: Prepared, memory_bytes: float) -> bool:
    """Whether all train rows together, as float32, need more than `memory_bytes`."""
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    return 4 * rows * len(prepared.channels) > memory_bytes


def windows_source(prepared: Prepared, part: str, *, stride: int) -> WindowSource:
    """The windows of `training_windows`, in its order, read on request."""
    spans = [getattr(entity.split, part) for entity in prepared.entities]
    return spans_source(prepared, spans, stride=stride)


def spans_source(
    prepared: Prepared, spans: Sequence[np.ndarray], *, stride: int
) -> WindowSource:
    """The windows inside each entity's spans `[S, 2]` of train rows."""
    entities, window = prepared.entities, prepared.window
    return WindowSource(
        values=tuple(entity.train.values for entity in entities),
        scalers=tuple(entity.scaler for entity in entities),
        starts=tuple(window_starts(own, window=window, stride=stride) for own in spans),
        window=window,
        missing=any(entity.missing for entity in entities),
        context=prepared.context,
    )


def fit_rows(prepared: Prepared) -> Iterator[np.ndarray]:
    """The scaled complete fit rows of all entities `[n, D]`; chunks for rows on disk."""
    pieces = (
        _complete(apply_scaler(entity.scaler, piece))
        for entity in prepared.entities
        for piece in span_pieces(entity.train.values, entity.split.fit)
    )
    lying = any(on_disk(entity.train.values) for entity in prepared.entities)
    yield from pieces if lying else [np.concatenate(list(pieces))]


def training_ranges(prepared: Prepared) -> Ranges:
    """Ranges of train rows in the units of the file, `[E + 1, D]`.

    One row per entity, and a last one of all; excluded rows don't count.
    """
    own = [entity.ranges for entity in prepared.entities]
    low, high = (np.stack(side) for side in zip(*own, strict=True))
    return Ranges(
        np.concatenate([low, np.fmin.reduce(low)[None]]),
        np.concatenate([high, np.fmax.reduce(high)[None]]),
    )


def channel_notes(prepared: Prepared) -> list[str]:
    """Notes on channels that are constant or copies of others in the train rows."""
    notes, channels = [], prepared.channels
    for entity in prepared.entities:
        dead = dead_channels(np.stack(entity.ranges), channels)
        copies = duplicate_channels(_training_rows(entity.train), channels)
        if dead:
            names = ", ".join(dead)
            notes.append(f"{entity.name}: constant in the training rows: {names}")
        if copies:
            names = ", ".join(f"{copy} (of {first})" for copy, first in copies)
            notes.append(f"{entity.name}: copies of another channel: {names}")
    return notes + value_notes(prepared)


def value_notes(prepared: Prepared) -> list[str]:
    """Notes on train values that need conversion: counters, rounding, outliers."""
    notes, channels = [], prepared.channels
    for entity in prepared.entities:
        rows = _training_rows(entity.train)
        one_way = monotonic_channels(rows, channels)
        coarse = [channels[i] for i in np.flatnonzero(is_coarse(rows))]
        if one_way:
            notes.append(
                f"{entity.name}: only rising or only falling in the training rows: "
                f"{', '.join(one_way)}; later values lie outside the training range: put "
                "such counters, ids and times in data.ignore, or use their differences"
            )
        if coarse:
            kind = entity.train.values.dtype
            notes.append(
                f"{entity.name}: {', '.join(coarse)}: the values are so large that {kind} "
                "rounds away small changes, so that small faults are invisible: subtract a "
                "constant before writing them, or put such columns in data.ignore"
            )
        notes += entity.notes
    return notes


def without_outliers(series: Series) -> tuple[Series, tuple[str, ...]]:
    """The series with its outliers interpolated, and notes on them; not for rows on disk.

    In the train rows one outlier would hide all smaller changes of its channel, through
    the deviation of the residuals or τ. `scaler.outliers` defines outliers.
    """
    if on_disk(series.values):
        return series, ()
    spans = kept(len(series.values), series.excluded)
    places = np.concatenate([np.empty(0, int), *(np.arange(a, b) for a, b in spans)])
    if not len(places):
        return series, ()
    rows, found = series.values[places], []
    cells = outliers(rows)
    values = series.values.copy() if cells.any() else series.values
    for column in np.flatnonzero(cells.any(axis=0)):
        far, known = cells[:, column], ~(cells | np.isnan(rows))[:, column]
        own = places[far]
        values[own, column] = np.interp(own, places[known], rows[known, column])
        at = "" if series.time is None else f", {series.time[own[0]]}"
        at = at.removesuffix(".000000000")  # nanoseconds
        more = f" and {counted(len(own) - 1, 'other')}" if len(own) > 1 else ""
        name, value = series.channels[column], series.values[own[0], column]
        found.append((-len(own), f"{name} {value:g} in row {own[0]}{at}{more}"))
    if not found:
        return series, ()
    found.sort(key=lambda one: one[0])
    named = "; ".join(text for _, text in found[:MOST_NAMED])
    others = counted(len(found) - MOST_NAMED, "other channel")
    note = (
        f"{series.entity}: far from all other values of the channel, so interpolated in "
        f"training: {named}{f'; and {others}' * (len(found) > MOST_NAMED)} (rows from 0). "
        "Correct them, or exclude the rows"
    )
    return series._replace(values=values), (note,)


def _split(
    series: Series, window: int, max_gap: float, validation: float, calibration: float
) -> Split:
    remaining = kept(len(series.values), series.excluded)
    rows = int((remaining[:, 1] - remaining[:, 0]).sum())
    split = split_rows(
        rows, window=window, validation=validation, calibration=calibration
    )
    whole = _stretches(series, max_gap)
    return Split(*(intersect(unfold(spans, remaining), whole) for spans in split))


def _stretches(series: Series, max_gap: float) -> np.ndarray:
    """Spans of rows without a gap in time or an excluded row."""
    rows = len(series.values)
    whole = segments(series.time, rows, max_gap=max_gap)
    return intersect(kept(rows, series.excluded), whole)


def spans_of_its_own(
    train: Series,
    *,
    window: int,
    stride: int,
    max_gap: float,
    validation: float,
    calibration: float,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Spans of the calibration rows, and of all rows incl. frozen ones, of one series.

    None if `prepare` can't fit a scaler and a Gaussian to this series alone.
    """
    split = _split(train, window, max_gap, validation, calibration)
    pieces = [rows for rows in span_pieces(train.values, split.fit) if len(rows)]
    known = [(~np.isnan(rows)).any(axis=0) for rows in pieces]
    enough = (
        _count_windows(split.fit, window) > 1
        and not _too_little(train, split, window, stride)
        and np.any(known, axis=0).all()
    )
    return (split.calibration, _stretches(train, max_gap)) if enough else None


def _too_little(train: Series, split: Split, window: int, stride: int) -> bool:
    pieces = span_pieces(train.values, split.validation)
    complete = sum(len(_complete(rows)) for rows in pieces)
    starts = window_starts(split.validation, window=window, stride=stride)
    return complete < ROWS_PER_CHANNEL * len(train.channels) or len(starts) == 0


def _test_spans(test: Series | None, window: int, max_gap: float) -> np.ndarray:
    if test is None:
        return np.empty((0, 2), np.int64)
    spans = _stretches(test, max_gap)
    if not _count_windows(spans, window):
        raise DataError(
            f"test series {test.entity!r} has {counted(len(test.values), 'row')}, but not "
            f"data.window={window} rows without a gap: give more rows, exclude fewer "
            "or set a smaller data.window."
        )
    return spans


def _check_windows(
    entities: Sequence[Entity], window: int, todo: Callable[[], str]
) -> None:
    splits = [entity.split for entity in entities]
    for part, least in (("fit", 2), ("validation", 1)):
        found = sum(_count_windows(getattr(split, part), window) for split in splits)
        if found < least:
            problem = "there is only one" if found else "no entity has a"
            longest = max(len(entity.train.values) for entity in entities)
            raise DataError(
                f"{problem} {part} window: the longest train series "
                f"has {counted(longest, 'row')}, data.window={window}. {todo()}."
            )


def _complete(rows: np.ndarray) -> np.ndarray:
    """The rows `[N, D]` without a missing value."""
    complete = ~np.isnan(rows).any(axis=1)
    return rows if complete.all() else rows[complete]


def _count_windows(spans: np.ndarray, window: int) -> int:
    """Windows of stride 1 inside the spans."""
    return int(np.maximum(spans[:, 1] - spans[:, 0] - window + 1, 0).sum())


def _training_rows(series: Series) -> list[np.ndarray]:
    """The rows that aren't excluded, in pieces `[n, D]`."""
    if series.excluded is None and not on_disk(series.values):
        return [series.values]
    return span_pieces(series.values, kept(len(series.values), series.excluded))
