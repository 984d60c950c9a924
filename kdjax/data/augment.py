"""Augmentation: disturbed rows, on which teacher and student outputs differ from the data.

On clean rows a good reconstruction of the teacher equals the data, so that the
distillation term of Eq. 2 adds nothing new.
"""

from collections.abc import Callable

import numpy as np

_SMALLEST, _LARGEST = 1.0, 30.0  # sizes, in standard deviations of the channel


def augment_rows(rows: np.ndarray, *, window: int, seed: int) -> np.ndarray:
    """A copy of scaled rows `[N, D]` with a disturbance about every `window` rows.

    Each covers up to L rows of some channels and is of one kind: noise, a spike, a shift
    of level, exchanged channels, or a stuck sensor. Sizes are log-uniform. Missing values
    stay missing. The rows can be of several entities one after the other.

    >>> augment_rows(np.zeros((40, 2)), window=10, seed=0).shape
    (40, 2)
    """
    rng = np.random.default_rng(seed)
    copy = np.array(rows, np.float32)
    deviations = np.nanstd(copy, axis=0, dtype=np.float64)
    moving = deviations > 0
    usual = float(np.median(deviations[moving])) if moving.any() else 1.0
    scale = np.where(moving, deviations, usual).astype(np.float32)
    # Rows [n, C] and sizes [C] to noise, a spike, a shift, a swap and a stuck sensor.
    kinds: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
        lambda part, size: part + size * rng.standard_normal(part.shape, np.float32),
        lambda part, size: (
            part + size * (np.arange(len(part)) == rng.integers(len(part)))[:, None]
        ),
        lambda part, size: part + size,
        lambda part, size: part[:, rng.permutation(part.shape[1])],
        lambda part, size: part[:1],
    )
    first = int(rng.integers(window))
    while first < len(copy):
        length = int(rng.integers(2, window + 1))
        most = max(copy.shape[1] // 2, 1)
        channels = rng.choice(
            copy.shape[1], int(rng.integers(1, most + 1)), replace=False
        )
        kind = kinds[int(rng.integers(len(kinds)))]
        stretch = copy[first : first + length]
        strength = np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST)))
        signs = rng.choice(np.array([-1.0, 1.0]), len(channels))
        size = scale[channels] * np.asarray(strength * signs, np.float32)
        stretch[:, channels] = kind(stretch[:, channels], size)
        first += length + int(rng.integers(2 * window))
    return copy
