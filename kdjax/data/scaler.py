"""Scalers: one offset and one scale a channel, learnt from the fit rows only.

`values -> (values - offset) / scale`, in float32 throughout, so that an exported model
does the same two operations on the same bits. The paper says only that the data are
normalised; `minmax` is the default of the program.
"""

from typing import NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError

METHODS = ("minmax", "zscore", "robust", "none")


class Scaler(NamedTuple):
    """An affine map a channel.

    Attributes:
        offset: `[D]` float32, subtracted first.
        scale: `[D]` float32, positive, divided by.
    """

    offset: np.ndarray  # [D]
    scale: np.ndarray  # [D]


def fit_scaler(values: np.ndarray, *, method: str) -> Scaler:
    """The scaler of `values` `[N, D]`; a channel without spread keeps scale 1.

    Args:
        values: `[N, D]` rows to learn from; NaN counts as missing.
        method: `minmax` maps to [0, 1]; `zscore` to mean 0 and deviation 1; `robust` to
            median 0 and interquartile range 1; `none` changes nothing.

    >>> fit_scaler(np.array([[0.0, 7.0], [4.0, 7.0]]), method="minmax").scale
    array([4., 1.], dtype=float32)
    """
    if method not in METHODS:
        raise ConfigError(
            f"data.scaler={method!r} is unknown: use one of {', '.join(METHODS)}."
        )
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"A scaler needs rows [N, D], got shape {values.shape}: "
            "give more rows or a smaller data.validation and data.calibration."
        )
    unseen = np.flatnonzero(np.isnan(values).all(axis=0))
    if len(unseen):
        raise DataError(
            f"Channel {unseen[0] + 1} of {values.shape[1]} has no value in the "
            f"{len(values)} rows that fit its scaler: remove it or give rows with values."
        )
    offset, scale = _moments(np.asarray(values, np.float64), method)
    scale = scale.astype(np.float32)
    # Asked after the cast: a range that underflows would divide by zero.
    scale[scale == 0] = 1
    return Scaler(offset.astype(np.float32), scale)


def apply_scaler(scaler: Scaler, values: np.ndarray) -> np.ndarray:
    """`(values - offset) / scale` in float32, `[..., D] -> [..., D]`; NaN stays NaN.

    >>> apply_scaler(Scaler(np.float32([1]), np.float32([2])), np.array([[5.0]]))
    array([[2.]], dtype=float32)
    """
    rows = np.asarray(values, np.float32)
    scaled: np.ndarray = (rows - scaler.offset) / scaler.scale
    return scaled


def _moments(values: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Offset and spread of each column in float64, `[N, D] -> [D], [D]`."""
    low = np.nanmin(values, axis=0)
    high = np.nanmax(values, axis=0)
    if method == "minmax":
        return low, high - low
    if method == "zscore":
        # The mean of equal numbers can be off by a bit; their spread is 0 all the same.
        return np.nanmean(values, axis=0), np.where(
            high > low, np.nanstd(values, axis=0), 0.0
        )
    if method == "robust":
        quarter, median, three = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
        return median, three - quarter
    return np.zeros(values.shape[1]), np.ones(values.shape[1])
