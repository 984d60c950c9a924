"""Scalers: one offset and one scale a channel, learnt from the fit rows only.

`values -> (values - offset) / scale` in float32; an exported model does the same two
operations on the same bits. The paper only says that the data are normalised.

Rows on disk come in pieces: `minmax` is then the same to the bit, `zscore` merges moments
in float64, `robust` sorts as many whole channels at once as `COLUMN_BYTES` holds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.raw import as_array
from kdjax.errors import ConfigError, DataError, check_choice

METHODS = ("minmax", "zscore", "robust", "none")

COLUMN_BYTES = 1_000_000_000  # of rows in pieces whose channels are sorted at once


class Scaler(NamedTuple):
    """An affine map a channel.

    Attributes:
        offset: `[D]` float32, subtracted first.
        scale: `[D]` float32, positive, divided by.
    """

    offset: np.ndarray
    scale: np.ndarray


def fit_scaler(values: Any, *, method: str) -> Scaler:
    """The scaler of rows `[N, D]`; a channel without spread keeps scale 1.

    Args:
        values: `[N, D]` rows to learn from, or a list of pieces of them; NaN is missing, as
            are masked cells.
        method: `minmax` maps to [0, 1]; `zscore` to mean 0 and deviation 1; `robust` to
            median 0 and interquartile range 1; `none` changes nothing.

    Raises:
        ConfigError: the method is unknown, or `robust` would have to sort channels that
            are larger than `COLUMN_BYTES`.
        DataError: there are no rows, a channel has no value, or values are further apart
            than float32 reaches.

    >>> fit_scaler(np.array([[0.0, 7.0], [4.0, 7.0]]), method="minmax").scale
    array([4., 1.], dtype=float32)
    """
    check_choice("data.scaler", method, METHODS)
    pieces = values if isinstance(values, (list, tuple)) else [values]
    pieces = [as_array(piece) for piece in pieces]
    filled = [piece for piece in pieces if piece.ndim == 2 and piece.size]
    if not filled:
        shape = pieces[0].shape if pieces else (0,)
        raise DataError(
            f"A scaler needs rows [N, D], got shape {shape}: "
            "give more rows or a smaller data.validation and data.calibration."
        )
    low, high = (
        limit.reduce([limit.reduce(piece, axis=0) for piece in filled]).astype(float)
        for limit in (np.fmin, np.fmax)
    )
    unseen = np.flatnonzero(np.isnan(low))
    if len(unseen):
        raise DataError(
            f"Channel {unseen[0] + 1} of {len(low)} has no value in the "
            f"{sum(map(len, filled))} rows that fit its scaler: remove it or give rows "
            "with values."
        )
    offset, scale = _moments(filled, low, high, method)
    # An infinite scale would map all values to 0 or NaN.
    wide = np.flatnonzero(scale > np.finfo(np.float32).max)
    if len(wide):
        raise DataError(
            f"Channel {wide[0] + 1} of {len(scale)} spreads over {scale[wide[0]]:.1e} in "
            "the rows that fit its scaler, more than float32 holds (3.4e38): correct "
            "its values."
        )
    scale = scale.astype(np.float32)
    # After the cast: a range that underflows would divide by zero.
    scale[scale == 0] = 1
    return Scaler(offset.astype(np.float32), scale)


def apply_scaler(scaler: Scaler, values: Any) -> Any:
    """`(values - offset) / scale` in float32, `[..., D] -> [..., D]`; NaN stays NaN.

    Values that overflow become infinite. A JAX array gives a JAX array, also under `jit`,
    `vmap` and `grad`; any other array-like gives a numpy array.

    >>> apply_scaler(Scaler(np.float32([1]), np.float32([2])), np.array([[5.0]]))
    array([[2.]], dtype=float32)
    """
    if isinstance(values, np.ndarray) or not hasattr(values, "__array_namespace__"):
        values = as_array(values)
    with np.errstate(over="ignore"):
        rows = values.astype(np.float32, copy=False)
        return (rows - along(scaler.offset, rows)) / along(scaler.scale, rows)


def along(numbers: Any, values: Any) -> Any:
    """`[D]` with the axes of values `[…, D]`, as JAX's strictest rank promotion asks.

    >>> along(np.zeros(3), np.zeros((5, 2, 3))).shape
    (1, 1, 3)
    """
    return numbers[(None,) * (values.ndim - 1)]


def _moments(
    pieces: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Offset and spread of each channel in float64, `[D], [D]`."""
    if method == "minmax":
        return low, high - low
    if method == "zscore":
        mean, deviation = _mean_and_deviation(pieces)
        # The mean of equal numbers can be off by a bit.
        return mean, np.where(high > low, deviation, 0.0)
    if method == "robust":
        quarter, median, three = _quartiles(pieces)
        return median, three - quarter
    return np.zeros(len(low)), np.ones(len(low))


def _mean_and_deviation(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel's values, with moments of pieces merged in float64."""
    count, mean, variance = np.zeros((3, pieces[0].shape[1]))
    for piece in pieces:
        rows = np.asarray(piece, np.float64)
        seen = ~np.isnan(rows)
        further = seen.sum(axis=0)
        some = np.maximum(further, 1)
        other = np.where(seen, rows, 0.0).sum(axis=0) / some
        centred = np.where(seen, rows - other, 0.0)
        spread = (centred * centred).sum(axis=0) / some
        share, shift = further / np.maximum(count + further, 1), other - mean
        mean = mean + shift * share
        variance = variance + (spread - variance) * share
        variance = variance + shift * shift * share * (1 - share)
        count = count + further
    return mean, np.sqrt(variance)


def _quartiles(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """`[3, D]`: the quartiles of each channel's values."""
    rows, width = sum(map(len, pieces)), pieces[0].shape[1]
    at_once = width if len(pieces) == 1 else COLUMN_BYTES // (8 * rows)
    if not at_once:
        raise ConfigError(
            f"data.scaler='robust' sorts each channel whole, and one of {rows:,} rows "
            f"takes more than {COLUMN_BYTES / 1e9:g} GB: use minmax or zscore."
        )
    found = []
    for first in range(0, width, at_once):
        part = slice(first, first + at_once)
        columns = np.concatenate([np.asarray(p[:, part], np.float64) for p in pieces])
        found.append(np.nanquantile(columns, [0.25, 0.5, 0.75], axis=0))
    return np.concatenate(found, axis=1)
