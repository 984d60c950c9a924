"""Disturbed copies of normal windows, for models that learn what normal is not.

Ten kinds of disturbance take a stretch of some channels of a window. They stand for
faults of sensors and plants in the way of NCAD (Carmona et al., 2022) and CutAddPaste
(Wang et al., 2024); nothing is learnt from labels.
"""

from typing import Any, NamedTuple

import numpy as np

LOWEST, HIGHEST = -4.0, 5.0  # of disturbed values, in ranges of the channel
_SMALLEST, _LARGEST = 0.1, 3.0  # sizes, in ranges or deviations of the channel
_WHOLE = 0.3  # share of disturbances that take the whole window
_FIRST = 0.4  # share that takes the first channel, by custom the main sensor
_SHORTEST = 3  # rows


class Stretch(NamedTuple):
    """What a disturbance takes: n rows of C channels of a window."""

    values: np.ndarray  # [n, C]
    strength: np.ndarray  # [C], signed
    unit: np.ndarray  # [C], what a strength of 1 means
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
    them and one more, over the whole window or a stretch of 3 rows or more. Sizes are
    log-uniform from 0.1 to 3, in ranges of the data or deviations of the channel.

    Args:
        windows: normal windows, each channel scaled to about [0, 1]; nothing missing.
        copies: of each window, one after the other.
        seed: of the random choices.
        context: places of channels that are never disturbed.

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
        strength = np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST)))
        signs = rng.choice([-1.0, 1.0], number)
        unit = deviations[channels] if rng.random() < 0.5 else np.ones(number)
        place = np.ix_(np.arange(start, start + rows), channels)
        other = windows[rng.integers(count)][place]
        part = Stretch(window[place], strength * signs, unit, other)
        kind = KINDS[rng.integers(len(KINDS))]
        window[place] = np.clip(disturbed(kind, part, rng), LOWEST, HIGHEST)
    return copied
