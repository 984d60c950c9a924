"""Synthetic disturbances in copies of windows and of rows; labels are not used.

A disturbance changes consecutive rows of some channels. Ten kinds, in copies of windows, are
synthetic anomalies for models, as in NCAD (Carmona et al., 2022) and CutAddPaste (Wang
et al., 2024). Five kinds, in copies of rows, augment a student's data: on clean rows the
teacher's reconstruction nearly equals the data, so that the distillation term of Eq. 2
adds nothing.
"""

from typing import Any, NamedTuple

import numpy as np

LOWEST, HIGHEST = -4.0, 5.0  # limits of disturbed values, in ranges of the channel
_SIZES = (0.1, 3.0)  # in ranges or deviations of the channel
_SIZES_OF_ROWS = (1.0, 30.0)  # in standard deviations of the channel
_WHOLE = 0.3  # share of disturbances over the whole window
_FIRST = 0.4  # share that includes the first channel, usually the main sensor
_SHORTEST = 3  # rows


class Stretch(NamedTuple):
    """The values that a disturbance changes: n rows of C channels of a window."""

    values: np.ndarray  # [n, C]
    strength: np.ndarray  # [C], signed
    unit: np.ndarray  # [C], size of a strength of 1
    other: np.ndarray  # [n, C], the same stretch of another window


KINDS = (
    "level", "noise", "freeze", "exchange", "reverse", "ramp", "amplitude", "spike",
    "speed", "constant",
)  # fmt: skip


def disturbed(kind: str, part: Stretch, rng: np.random.Generator) -> Any:
    """A stretch `[n, C]` after a disturbance of a kind of `KINDS`."""
    values, rows = part.values, np.arange(len(part.values))[:, None]
    move = part.strength * part.unit
    match kind:
        case "level":
            return values + move
        case "noise":
            return values + move * rng.normal(size=values.shape)
        case "freeze":
            return np.broadcast_to(values[:1], values.shape)
        case "exchange":
            return part.other
        case "reverse":
            return values[::-1]
        case "ramp":
            return values + move * (rows + 1) / len(rows)
        case "amplitude":
            mean = values.mean(axis=0)
            return mean + (values - mean) * np.exp(part.strength)
        case "spike":
            return values + move * (rows == rng.integers(len(rows)))
        case "speed":  # doubled or halved
            places = 2 * rows % len(rows) if rng.random() < 0.5 else rows // 2
            return values[places[:, 0]]
    return np.broadcast_to(rng.uniform(-0.5, 1.5, values.shape[1]), values.shape)


def disturb_windows(
    windows: np.ndarray, *, copies: int, seed: int = 0, context: tuple[int, ...] = ()
) -> np.ndarray:
    """Disturbed copies of windows, `[M, L, D] -> [M·copies, L, D]` float32.

    Each copy has one disturbance: a kind of `KINDS`, in one channel, two, or a quarter of
    them plus one, over the whole window or at least 3 rows. Sizes are log-uniform from
    0.1 to 3, in ranges of the data or deviations of the channel.

    Args:
        windows: normal windows, each channel scaled to about [0, 1]; no missing values.
        copies: of each window, one after the other.
        seed: of the random choices.
        context: indices of channels that are never disturbed.

    >>> disturb_windows(np.zeros((2, 8, 3)), copies=4).shape
    (8, 8, 3)
    """
    rng = np.random.default_rng(seed)
    count, length, every = windows.shape
    scored = np.delete(np.arange(every), context)
    width = len(scored)
    deviations = windows.std(axis=(0, 1), dtype=np.float64)
    copied = np.repeat(np.asarray(windows, np.float32), copies, axis=0)
    for window in copied:
        number = min((1, 2, width // 4 + 1)[rng.integers(3)], width)
        channels = rng.permutation(width)
        if rng.random() < _FIRST:
            channels = np.concatenate([[0], channels[channels != 0]])
        channels = scored[channels[:number]]
        rows = length
        if length > _SHORTEST and rng.random() >= _WHOLE:
            rows = int(rng.integers(_SHORTEST, length + 1))
        start = int(rng.integers(length - rows + 1))
        strength = _strength(rng, _SIZES, number)
        unit = deviations[channels] if rng.random() < 0.5 else np.ones(number)
        place = np.ix_(np.arange(start, start + rows), channels)
        other = windows[rng.integers(count)][place]
        part = Stretch(window[place], strength, unit, other)
        kind = KINDS[rng.integers(len(KINDS))]
        window[place] = np.clip(disturbed(kind, part, rng), LOWEST, HIGHEST)
    return copied


def augment_rows(rows: np.ndarray, *, window: int, seed: int) -> np.ndarray:
    """A copy of scaled rows `[N, D]` with about one disturbance per `window` rows.

    Each covers up to L rows of some channels and is of one kind: noise, a spike, a level
    shift, exchanged channels, or a stuck sensor. Sizes are log-uniform. Missing values
    stay missing. Rows of several entities may follow each other.

    >>> augment_rows(np.zeros((40, 2)), window=10, seed=0).shape
    (40, 2)
    """
    rng = np.random.default_rng(seed)
    copy = np.array(rows, np.float32)
    deviations = np.nanstd(copy, axis=0, dtype=np.float64)
    moving = deviations > 0
    usual = float(np.median(deviations[moving])) if moving.any() else 1.0
    scale = np.where(moving, deviations, usual).astype(np.float32)
    first = int(rng.integers(window))
    while first < len(copy):
        length = int(rng.integers(2, window + 1))
        most = max(copy.shape[1] // 2, 1)
        number = int(rng.integers(1, most + 1))
        channels = rng.choice(copy.shape[1], number, replace=False)
        kind = ("noise", "spike", "level", "exchange", "freeze")[int(rng.integers(5))]
        stretch = copy[first : first + length]
        values = stretch[:, channels]
        strength = _strength(rng, _SIZES_OF_ROWS, number).astype(np.float32)
        if kind == "noise":  # in float32
            noise = rng.standard_normal(values.shape, np.float32)
            values = values + strength * scale[channels] * noise
        elif kind == "exchange":  # of channels among themselves
            values = values[:, rng.permutation(number)]
        else:
            part = Stretch(values, strength, scale[channels], values)
            values = disturbed(kind, part, rng)
        stretch[:, channels] = values
        first += length + int(rng.integers(2 * window))
    return copy


def _strength(
    rng: np.random.Generator, sizes: tuple[float, float], number: int
) -> np.ndarray:
    """A log-uniform size with a sign for each channel."""
    size = np.exp(rng.uniform(*np.log(sizes)))
    return np.asarray(size * rng.choice([-1.0, 1.0], number))
