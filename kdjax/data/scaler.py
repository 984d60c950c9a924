"""Scalers: one offset and one scale per channel, fitted on the fit rows only.

`values -> (values - offset) / scale` in float32; an exported model does the same two
operations on the same bits. The paper only says that the data are normalised.

Where float32 would cost a channel more than a hundredth of its noise (`needs_float64`),
such as 1.7e9 + signal, offset and scale are float64: rows are then centred in float64, and
the result is float32. Rows enter a detector in the dtype of its scaler.

Rows on disk are read in chunks: `quantile` and `minmax` are bit-identical, `zscore` merges
moments in float64, and `robust` sorts as many whole channels at once as fit into
`COLUMN_BYTES`.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.raw import as_array
from kdjax.errors import ConfigError, DataError, check_choice

METHODS = ("quantile", "minmax", "zscore", "robust", "none")

COLUMN_BYTES = 1_000_000_000  # most bytes of channels on disk that are sorted at once
SAMPLED = 50_000  # most evenly spaced rows to estimate quantiles and noise
_TAIL = 0.01  # share of the rows on either side that `quantile` leaves out
_LOSS = 0.01  # most rounding to float32, as a share of a channel's noise
_COARSE = 2  # noise of a channel that moves by single roundings, in their size
_FAR = 10  # distances beyond the outer quantiles
_RARE = 0.002  # share of rows that differ from the row before, if only outliers do
_ROUNDING = 8 * np.finfo(np.float64).eps
_SAMPLED_CELLS = 10_000_000


class Scaler(NamedTuple):
    """An affine map per channel.

    Attributes:
        offset: `[D]` float32 or float64, subtracted first, in this dtype.
        scale: `[D]` of the same dtype, positive, divided by.
    """

    offset: np.ndarray
    scale: np.ndarray


def fit_scaler(values: Any, *, method: str, dtype: Any = None) -> Scaler:
    """The scaler of rows `[N, D]`; rare outliers don't change `quantile` and `robust`.

    A channel without spread is divided by its noise (`noise_of`). A constant channel is
    divided by its magnitude up to 1: then doubling 7e-6 has the effect of doubling 0.7.

    Args:
        values: `[N, D]` rows to fit, or a list of chunks of them; NaN and masked cells are
            missing.
        method: `minmax` maps to [0, 1]; `zscore` to mean 0 and deviation 1; `robust` to
            median 0 and interquartile range 1; `quantile` as `robust`, but divided by at
            least the noise and a tenth of the range between the first and the last
            percentile; `none` changes nothing.
        dtype: of the scaler, float32 or float64; by default float64 only where the rows
            need it, see `needs_float64`.

    Raises:
        ConfigError: the method is unknown, or `robust` would sort channels larger than
            `COLUMN_BYTES`.
        DataError: there are no rows, a channel has no value, or its range exceeds
            float32.

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
            f"a scaler needs rows [N, D], got shape {shape}: "
            "give more rows or a smaller data.validation and data.calibration."
        )
    low, high = limits(filled)
    unseen = np.flatnonzero(np.isnan(low))
    if len(unseen):
        raise DataError(
            f"channel {unseen[0] + 1} of {len(low)} has no value in the "
            f"{sum(map(len, filled))} rows that fit its scaler: remove it or give rows "
            "with values."
        )
    if dtype is None:
        dtype = np.float64 if needs_float64(filled).any() else np.float32
    offset, scale = _moments(filled, low, high, method)
    # An infinite scale would map all values to 0 or NaN.
    wide = np.flatnonzero(scale > np.finfo(np.float32).max)
    if len(wide):
        raise DataError(
            f"channel {wide[0] + 1} of {len(scale)} has a range of {scale[wide[0]]:.1e} in "
            "the rows that fit its scaler, beyond float32 (3.4e38): correct its "
            "values."
        )
    scale = scale.astype(dtype)
    # After the cast: a range that underflows would divide by zero.
    scale[scale == 0] = 1
    return Scaler(offset.astype(dtype), scale)


def apply_scaler(scaler: Scaler, values: Any) -> Any:
    """`(values - offset) / scale` in float32, `[..., D] -> [..., D]`; NaN stays NaN.

    Computed in the scaler's dtype. Values that overflow become infinite. A JAX array gives
    a JAX array, also under `jit`, `vmap` and `grad`; any other array-like gives a numpy
    array.

    >>> apply_scaler(Scaler(np.float32([1]), np.float32([2])), np.array([[5.0]]))
    array([[2.]], dtype=float32)
    """
    if isinstance(values, np.ndarray) or not hasattr(values, "__array_namespace__"):
        values = as_array(values)
    elif values.dtype != scaler.offset.dtype == np.float64:
        raise DataError(
            f"this scaler needs rows in float64, but the JAX array is {values.dtype}: "
            "scale numpy rows instead, or use jax.enable_x64."
        )
    with np.errstate(over="ignore"):
        rows = values.astype(scaler.offset.dtype, copy=False)
        scaled = (rows - along(scaler.offset, rows)) / along(scaler.scale, rows)
        return scaled.astype(np.float32, copy=False)


def limits(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each channel, `[D]` float64; NaN for none."""
    low, high = (
        limit.reduce([limit.reduce(piece, axis=0) for piece in pieces]).astype(float)
        for limit in (np.fmin, np.fmax)
    )
    return low, high


def is_constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether channels of these limits `[D]` are constant, but for rounding in float64.

    >>> is_constant(np.array([0.3, 1e-30]), np.array([0.1 + 0.2, 2e-30]))
    array([ True, False])
    """
    return ~(high - low > _ROUNDING * np.maximum(np.abs(low), np.abs(high)))


def noise_of(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Noise of each channel `[D]`, the robust deviation of its steps; 0 without steps.

    It is 1.4826·median|Δ| / √2 over successive rows that differ. Where at most one row in
    500 differs from the row before, these steps count as outliers.

    >>> noise_of([np.array([[5.0, 1], [5, 3], [7, 1], [7, 3], [5, 3], [7, 3]])]).round(3)
    array([2.097, 2.097])
    """
    places = _spaced(pieces, reach=1)
    steps = np.abs(_taken(pieces, places + 1) - _taken(pieces, places))
    steps[~(steps > 0)] = np.nan
    count = (~np.isnan(steps)).sum(axis=0)
    moving = count > np.maximum(2, _RARE * len(steps))
    moving &= ~is_constant(*limits(pieces))
    found = np.zeros(len(moving))
    if moving.any():
        found[moving] = np.nanmedian(steps[:, moving], axis=0)
    return 1.4826 / np.sqrt(2) * found


def needs_float64(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Channels `[D]` for which float32 costs more than a hundredth of their noise.

    The cost is the spacing of float32 numbers at the channel's largest magnitude. A
    channel without noise needs float64 if a change by its scale would be lost.

    >>> signal = np.sin(np.arange(9.0))[:, None]
    >>> needs_float64([signal + [0, 1.7e9]])
    array([False,  True])
    """
    if all(piece.dtype == np.float32 for piece in pieces):
        return np.zeros(pieces[0].shape[1], bool)
    # JAX rounds numbers below `tiny` to 0.
    cost = np.maximum(_spacing(pieces, np.float32), np.finfo(np.float32).tiny)
    noise, (low, high) = noise_of(pieces), limits(pieces)
    still = _magnitude(np.fmax(np.abs(low), np.abs(high)))
    return cost >= np.where(noise > 0, _LOSS * noise, still)


def is_coarse(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the dtype of the rows rounded away small changes of channels `[D]`.

    Such channels change by the spacing of numbers in that dtype. Beyond 2**53, where whole
    numbers are rounded, a hundredth of the noise (or of the range) is enough.

    >>> is_coarse([2.0**54 + np.arange(99.0)[:, None]])
    array([ True])
    """
    noise, (low, high) = noise_of(pieces), limits(pieces)
    huge = np.fmax(np.abs(low), np.abs(high)) >= 2.0**53
    moves = np.where((noise > 0) | ~huge, noise, high - low)
    most = np.where(huge, 1 / _LOSS, _COARSE) * _spacing(pieces, pieces[0].dtype)
    return (huge | (noise > 0)) & (moves <= most)


def outliers(rows: np.ndarray) -> np.ndarray:
    """Cells of rows `[N, D]` far from the others, in at most one row of 1,000.

    Far means beyond the first or last percentile by ten times their distance, or by ten
    times the scale of `quantile`.

    >>> outliers(np.array([[0.0], [1], [900], [0], [2], [1]])).ravel()
    array([False, False,  True, False, False, False])
    """
    low, *_, high = _quantiles([rows])
    _, scale = _quantile_scale([rows])
    beyond = _FAR * np.maximum(high - low, scale)
    with np.errstate(over="ignore"):
        far = (rows < low - beyond) | (rows > high + beyond)
    return far & (far.sum(axis=0) <= max(1, len(rows) // 1000))


def along(numbers: Any, values: Any) -> Any:
    """`[D]` with the axes of values `[…, D]`, for JAX's strict rank promotion.

    >>> along(np.zeros(3), np.zeros((5, 2, 3))).shape
    (1, 1, 3)
    """
    return numbers[(None,) * (values.ndim - 1)]


def _magnitude(constant: np.ndarray) -> np.ndarray:
    """The scale of constant channels `[D]`: |constant| up to 1, and 1 for 0."""
    size = np.abs(constant)
    return np.where(size > 0, np.minimum(size, 1), 1.0)


def _moments(
    pieces: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Offset and scale of each channel in float64, `[D], [D]`."""
    if method == "none":
        return np.zeros(len(low)), np.ones(len(low))
    if method == "minmax":
        offset, spread = low, high - low
    elif method == "zscore":
        offset, deviation = _mean_and_deviation(pieces)
        # The mean of equal numbers can be off by a bit.
        spread = np.where(high > low, deviation, 0.0)
    elif method == "robust":
        quarter, offset, three = _quartiles(pieces)
        spread = three - quarter
    else:
        return _quantile_scale(pieces)
    spread = np.where(is_constant(low, high), 0, spread)
    return offset, np.where(spread > 0, spread, _still(pieces, offset))


def _quantile_scale(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Offset and scale of `quantile`; the scale is not below the noise."""
    low, quarter, median, three, high = _quantiles(pieces)
    spread = np.maximum(three - quarter, (high - low) / 10)
    spread = np.where(spread > 0, np.maximum(spread, noise_of(pieces)), 0)
    spread = np.where(is_constant(*limits(pieces)), 0, spread)
    return median, np.where(spread > 0, spread, _still(pieces, median))


def _quantiles(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """First percentile, quartiles and last percentile of channels, `[5, D]`; NaN for none.

    At least the lowest and the highest row lie outside, even of few rows.
    """
    rows = _taken(pieces, _spaced(pieces))
    tail = min(max(_TAIL, 1.5 / len(rows)), 0.5)
    ends = [tail, 0.25, 0.5, 0.75, 1 - tail]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found: np.ndarray = np.nanquantile(rows, ends, axis=0, method="inverted_cdf")
    return found


def _still(pieces: Sequence[np.ndarray], offset: np.ndarray) -> np.ndarray:
    """Scales for channels without spread: their noise, else the magnitude of `offset`."""
    noise = noise_of(pieces)
    return np.where(noise > 0, noise, _magnitude(offset))


def _spacing(pieces: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    """Spacing of numbers of a dtype at each channel's largest magnitude, `[D]`."""
    low, high = limits(pieces)
    largest = np.nan_to_num(np.fmax(np.abs(low), np.abs(high)))
    with np.errstate(over="ignore", invalid="ignore"):
        found: np.ndarray = np.nan_to_num(np.spacing(largest.astype(dtype)))
    return found


def _spaced(pieces: Sequence[np.ndarray], *, reach: int = 0) -> np.ndarray:
    """Evenly spaced indices in all pieces together, at most `reach` before the last."""
    count = sum(map(len, pieces)) - reach
    most = max(min(SAMPLED, _SAMPLED_CELLS // max(pieces[0].shape[1], 1)), 1)
    return np.arange(0, count, max(-(-count // most), 1))


def _taken(pieces: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """The rows at ascending indices in all pieces together, `[n, D]` float64."""
    stops = np.cumsum([len(piece) for piece in pieces])
    owners = np.searchsorted(stops, places, side="right")
    parts = [
        np.asarray(piece[places[owners == owner] - (stop - len(piece))], np.float64)
        for owner, (piece, stop) in enumerate(zip(pieces, stops, strict=True))
    ]
    return np.concatenate(parts)


def _mean_and_deviation(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, with moments of pieces merged in float64."""
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
            f"data.scaler='robust' sorts whole channels, and one of {rows:,} rows needs "
            f"more than {COLUMN_BYTES / 1e9:g} GB: use minmax or zscore."
        )
    found = []
    for first in range(0, width, at_once):
        part = slice(first, first + at_once)
        columns = np.concatenate([np.asarray(p[:, part], np.float64) for p in pieces])
        found.append(np.nanquantile(columns, [0.25, 0.5, 0.75], axis=0))
    return np.concatenate(found, axis=1)
