"""Rows disturbed on purpose, where a teacher's answer says what the data can't.

On clean rows a good reconstruction of the teacher is the data themselves, and Eq. 2
teaches nothing new. What a detector should do with abnormal rows only a teacher can tell.
"""

import numpy as np

# Sizes of a disturbance, in standard deviations of its channel.
_SMALLEST, _LARGEST = 1.0, 30.0


def augment(rows: np.ndarray, *, window: int, seed: int) -> np.ndarray:
    """A copy of scaled rows `[N, D]` with a disturbance about every `window` rows.

    Each is a stretch of up to L rows in some of the channels, of one kind: noise, a
    spike, a shift of level, channels that change places, or a sensor that sticks. Sizes
    are spread evenly over magnitudes. Missing values stay missing.

    Args:
        rows: `[N, D]`; those of several entities may follow one another.
        window: L.
        seed: decides all.
    """
    rng = np.random.default_rng(seed)
    copy = np.array(rows, np.float32)
    scale = _scales(copy)
    kinds = (_noise, _spike, _shift, _swap, _stick)
    first = int(rng.integers(window))
    while first < len(copy):
        length = int(rng.integers(2, window + 1))
        channels = _some(rng, copy.shape[1])
        kind = kinds[int(rng.integers(len(kinds)))]
        stretch = copy[first : first + length]
        size = scale[channels] * _magnitude(rng, len(channels))
        stretch[:, channels] = kind(rng, stretch[:, channels], size)
        first += length + int(rng.integers(2 * window))
    return copy


def _scales(rows: np.ndarray) -> np.ndarray:
    """Standard deviations `[D]`; the median one for channels that never move."""
    deviations: np.ndarray = np.nanstd(rows, axis=0, dtype=np.float64)
    moving = deviations > 0
    usual = float(np.median(deviations[moving])) if moving.any() else 1.0
    return np.where(moving, deviations, usual).astype(np.float32)


def _some(rng: np.random.Generator, width: int) -> np.ndarray:
    """Between one and half of the channels."""
    number = int(rng.integers(1, max(width // 2, 1) + 1))
    return rng.choice(width, number, replace=False)


def _magnitude(rng: np.random.Generator, number: int) -> np.ndarray:
    sizes = np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST)))
    signs = rng.choice(np.array([-1.0, 1.0]), number)
    signed: np.ndarray = (sizes * signs).astype(np.float32)
    return signed


def _noise(rng: np.random.Generator, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
    noisy: np.ndarray = rows + size * rng.standard_normal(rows.shape, np.float32)
    return noisy


def _spike(rng: np.random.Generator, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
    at = np.arange(len(rows)) == rng.integers(len(rows))
    spiked: np.ndarray = rows + size * at[:, None]
    return spiked


def _shift(rng: np.random.Generator, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = rows + size
    return shifted


def _swap(rng: np.random.Generator, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
    return rows[:, rng.permutation(rows.shape[1])]


def _stick(rng: np.random.Generator, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.broadcast_to(rows[:1], rows.shape)
