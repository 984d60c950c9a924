"""Windows in batches of one size, so that a jitted function is traced once."""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.windows import gather


def take_windows(rows: Array, starts: Array, window: int) -> Array:
    """Windows `[B, L, D]` of rows `[N, D]` at starts `[B]`, on the device."""
    return rows[starts[:, None] + jnp.arange(window)]


def padded_batches(
    items: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches `[B]` of items `[M]` with a weight `[B]`: 1, or 0 where padded.

    >>> [(b.tolist(), w.tolist()) for b, w in padded_batches(np.array([4, 5, 6]), 2)]
    [([4, 5], [1.0, 1.0]), ([6, 6], [1.0, 0.0])]
    """
    for first in range(0, len(items), batch_size):
        batch = items[first : first + batch_size]
        weight = np.zeros(batch_size, np.float32)
        weight[: len(batch)] = 1
        # Padding repeats a real item: its arithmetic is as harmless as that of others.
        yield np.pad(batch, (0, batch_size - len(batch)), mode="edge"), weight


def map_windows(
    function: Callable[[Array], Array],
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """`function` of all windows of rows `[N, D]`, batch by batch, without the padding.

    Args:
        function: a jitted function of windows `[B, L, D]`; its result's first axis is B.
        rows: `[N, D]` float32, scaled.
        starts: `[M]` first rows of the windows.
        window: L.
        batch_size: B.
    """
    for batch, weight in padded_batches(starts, batch_size):
        result = np.asarray(function(jnp.asarray(gather(rows, batch, window))))
        yield result[: int(weight.sum())]
