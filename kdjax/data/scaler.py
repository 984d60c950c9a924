"""Scalers: one offset and one scale a channel, learnt from the fit rows only.

`values -> (values - offset) / scale`, in float32 throughout, so that an exported model
does the same two operations on the same bits. The paper says only that the data are
normalised; `minmax` is the default of the program.

Rows may come in pieces, where they are too many to hold. `minmax` is then the same to
the bit, `zscore` merges the moments of the pieces in float64, and `robust` still sorts
whole channels, as many at once as `COLUMN_BYTES` holds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError

METHODS = ("minmax", "zscore", "robust", "none")

# Channels of rows in pieces that are sorted at once, as float64.
COLUMN_BYTES = 1_000_000_000


class Scaler(NamedTuple):
    """An affine map a channel.

    Attributes:
        offset: `[D]` float32, subtracted first.
        scale: `[D]` float32, positive, divided by.
    """

    offset: np.ndarray  # [D]
    scale: np.ndarray  # [D]


def fit_scaler(values: np.ndarray | Sequence[np.ndarray], *, method: str) -> Scaler:
    """The scaler of `values` `[N, D]`; a channel without spread keeps scale 1.

    Args:
        values: `[N, D]` rows to learn from, or pieces of them; NaN counts as missing.
        method: `minmax` maps to [0, 1]; `zscore` to mean 0 and deviation 1; `robust` to
            median 0 and interquartile range 1; `none` changes nothing.

    Raises:
        ConfigError: the method is unknown, or `robust` would have to sort channels that
            are larger than `COLUMN_BYTES`.
        DataError: there are no rows, or a channel has no value in them, or values
            further apart than float32 reaches.

    >>> fit_scaler(np.array([[0.0, 7.0], [4.0, 7.0]]), method="minmax").scale
    array([4., 1.], dtype=float32)
    """
    if method not in METHODS:
        raise ConfigError(
            f"data.scaler={method!r} is unknown: use one of {', '.join(METHODS)}."
        )
    pieces = [values] if isinstance(values, np.ndarray) else list(values)
    filled = [piece for piece in pieces if piece.ndim == 2 and piece.size]
    if not filled:
        shape = pieces[0].shape if pieces else (0,)
        raise DataError(
            f"A scaler needs rows [N, D], got shape {shape}: "
            "give more rows or a smaller data.validation and data.calibration."
        )
    low, high = _bounds(filled)
    unseen = np.flatnonzero(np.isnan(low))
    if len(unseen):
        raise DataError(
            f"Channel {unseen[0] + 1} of {len(low)} has no value in the "
            f"{sum(map(len, filled))} rows that fit its scaler: remove it or give rows "
            "with values."
        )
    offset, scale = _moments(filled, low, high, method)
    _check_spread(scale)
    scale = scale.astype(np.float32)
    # Asked after the cast: a range that underflows would divide by zero.
    scale[scale == 0] = 1
    return Scaler(offset.astype(np.float32), scale)


def apply_scaler(scaler: Scaler, values: np.ndarray) -> np.ndarray:
    """`(values - offset) / scale` in float32, `[..., D] -> [..., D]`; NaN stays NaN.

    What overflows becomes infinite, and so do the scores made of it.

    >>> apply_scaler(Scaler(np.float32([1]), np.float32([2])), np.array([[5.0]]))
    array([[2.]], dtype=float32)
    """
    rows = np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        scaled: np.ndarray = (rows - scaler.offset) / scaler.scale
    return scaled


def _check_spread(scale: np.ndarray) -> None:
    """Refuses a scale that is infinite in float32: all values would become 0 or NaN."""
    wide = np.flatnonzero(scale > np.finfo(np.float32).max)
    if len(wide):
        raise DataError(
            f"Channel {wide[0] + 1} of {len(scale)} spreads over {scale[wide[0]]:.1e} in "
            "the rows that fit its scaler, more than float32 holds (3.4e38): correct "
            "its values."
        )


def _bounds(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each channel in float64, NaN where it has none."""
    low = np.fmin.reduce([np.fmin.reduce(piece, axis=0) for piece in pieces])
    high = np.fmax.reduce([np.fmax.reduce(piece, axis=0) for piece in pieces])
    return np.asarray(low, np.float64), np.asarray(high, np.float64)


def _moments(
    pieces: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Offset and spread of each channel in float64, `[D], [D]`."""
    if method == "minmax":
        return low, high - low
    if method == "zscore":
        mean, deviation = _mean_and_deviation(pieces)
        # The mean of equal numbers can be off by a bit; their spread is 0 all the same.
        return mean, np.where(high > low, deviation, 0.0)
    if method == "robust":
        quarter, median, three = _quartiles(pieces)
        return median, three - quarter
    return np.zeros(len(low)), np.ones(len(low))


def _mean_and_deviation(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel's values, merged as in `kdjax.detection.gaussian`."""
    count, mean, variance = _column_moments(pieces[0])
    for piece in pieces[1:]:
        further, other, spread = _column_moments(piece)
        total = np.maximum(count + further, 1)
        share, shift = further / total, other - mean
        mean = mean + shift * share
        variance = variance + (spread - variance) * share
        variance = variance + shift * shift * share * (1 - share)
        count = count + further
    return mean, np.sqrt(variance)


def _column_moments(
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean and variance of each channel's values; 0 where there are none."""
    rows = np.asarray(rows, np.float64)
    seen = ~np.isnan(rows)
    count = seen.sum(axis=0)
    some = np.maximum(count, 1)
    mean = np.where(seen, rows, 0.0).sum(axis=0) / some
    centred = np.where(seen, rows - mean, 0.0)
    return count, mean, (centred * centred).sum(axis=0) / some


def _quartiles(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """`[3, D]`: the quartiles of each channel's values."""
    rows, width = sum(map(len, pieces)), pieces[0].shape[1]
    at_once = width if len(pieces) == 1 else COLUMN_BYTES // (8 * rows)
    if not at_once:
        raise ConfigError(
            f"data.scaler='robust' sorts each channel whole, and one of {rows:,} rows "
            f"takes more than {COLUMN_BYTES / 1e9:g} GB: use minmax or zscore."
        )
    found = [
        np.nanquantile(
            np.concatenate(
                [np.asarray(p[:, first : first + at_once], np.float64) for p in pieces]
            ),
            [0.25, 0.5, 0.75],
            axis=0,
        )
        for first in range(0, width, at_once)
    ]
    return np.concatenate(found, axis=1)
