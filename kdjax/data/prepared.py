"""A data set made ready: spans without gaps, split in time, and a scaler each."""

from typing import NamedTuple

import numpy as np

from kdjax.data.scaler import Scaler, apply_scaler, fit_scaler
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import Split, intersect, segments, split_rows, window_starts
from kdjax.errors import DataError

# An entity's own Normal has D means and D (D + 1) / 2 covariances to estimate.
ROWS_PER_CHANNEL = 5


class Entity(NamedTuple):
    """One entity's series and what each row serves for.

    Attributes:
        train: rows to learn and to calibrate on.
        test: rows to judge on, or None.
        split: spans of `train`, cut at gaps in time.
        test_spans: spans of `test` without a gap.
        scaler: fitted on its own fit rows, or the pooled one.
        pooled: whether its validation rows are too few for a Normal of its own, so
            that it uses the pooled scaler, Normal and threshold.
    """

    train: Series
    test: Series | None
    split: Split
    test_spans: np.ndarray
    scaler: Scaler
    pooled: bool

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
        validation: share of the rows before calibration.
        calibration: share of all train rows.
        scaler: method of `fit_scaler`.

    Raises:
        DataError: a test series is shorter than the window, or no entity has a window
            to fit or to validate on.
    """
    splits = [
        _split(series, window, max_gap, validation, calibration)
        for series in dataset.train
    ]
    fit_rows = [
        _take(series.values, split.fit)
        for series, split in zip(dataset.train, splits, strict=True)
    ]
    pooled_scaler = fit_scaler(np.concatenate(fit_rows), method=scaler)
    tests: list[Series | None] = [*dataset.test] or [None] * len(splits)
    entities = []
    for train, test, split, rows in zip(
        dataset.train, tests, splits, fit_rows, strict=True
    ):
        too_little = _too_little(split, len(train.channels), window, stride)
        # An entity without fit rows has nothing to fit a scaler on either.
        pooled = too_little or len(rows) == 0
        entities.append(
            Entity(
                train=train,
                test=test,
                split=split,
                test_spans=_test_spans(test, window, max_gap),
                scaler=pooled_scaler if pooled else fit_scaler(rows, method=scaler),
                pooled=pooled,
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


def fit_rows(prepared: Prepared) -> np.ndarray:
    """The scaled fit rows of all entities, `[N, D]`."""
    return np.concatenate(
        [
            _take(apply_scaler(entity.scaler, entity.train.values), entity.split.fit)
            for entity in prepared.entities
        ]
    )


def _split(
    series: Series, window: int, max_gap: float, validation: float, calibration: float
) -> Split:
    rows = len(series.values)
    whole = segments(series.time, rows, max_gap=max_gap)
    split = split_rows(
        rows, window=window, validation=validation, calibration=calibration
    )
    return Split(*(intersect(spans, whole) for spans in split))


def _too_little(split: Split, channels: int, window: int, stride: int) -> bool:
    rows = int((split.validation[:, 1] - split.validation[:, 0]).sum())
    starts = window_starts(split.validation, window=window, stride=stride)
    return rows < ROWS_PER_CHANNEL * channels or len(starts) == 0


def _test_spans(test: Series | None, window: int, max_gap: float) -> np.ndarray:
    if test is None:
        return np.empty((0, 2), np.int64)
    spans = segments(test.time, len(test.values), max_gap=max_gap)
    if len(window_starts(spans, window=window, stride=1)) == 0:
        raise DataError(
            f"test series {test.entity!r} has {len(test.values)} rows and no stretch "
            f"of data.window={window} rows without a gap: give more rows or set a "
            "smaller data.window."
        )
    return spans


def _check_windows(prepared: Prepared) -> None:
    longest = max(len(entity.train.values) for entity in prepared.entities)
    for part in ("fit", "validation"):
        starts = [
            window_starts(getattr(entity.split, part), window=prepared.window, stride=1)
            for entity in prepared.entities
        ]
        if not any(map(len, starts)):
            raise DataError(
                f"no entity has a {part} window: the longest train series has "
                f"{longest} rows, data.window={prepared.window}. Give more rows, fewer "
                "gaps, a larger share (data.validation), or a smaller data.window."
            )


def _take(values: np.ndarray, spans: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.empty((0, values.shape[1]), values.dtype)]
        + [values[start:stop] for start, stop in spans]
    )
