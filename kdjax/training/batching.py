"""Windows in batches of few sizes, so that a jitted function is traced once or twice."""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.windowing import gather
from kdjax.training.sharding import batch_mesh, map_over_batch, place

# `(common, windows [B, L, D]) -> [B, …]`, or a tuple of such arrays.
WindowFunction = Callable[[Any, Array], Any]

# Batches under way: the next one is prepared while the devices work on this one.
_UNDER_WAY = 2


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
    function: WindowFunction,
    common: Any,
    rows: np.ndarray,
    starts: np.ndarray,
    *,
    window: int,
    batch_size: int,
    scaler: Scaler | None = None,
) -> Iterator[Any]:
    """`function` of all windows of rows `[N, D]`, batch by batch, without the padding.

    A batch travels to the devices as the stretch of rows that it covers, and is cut
    into windows there. Stretches and batches come in powers of two, so that another
    length of series is no reason to compile again.

    Args:
        function: `(common, windows [B, L, D]) -> [B, …]`, the same object for the same
            function: it is jitted once.
        common: a pytree of arrays that all windows share.
        rows: `[N, D]`; may be a memory map, of which only stretches are read.
        starts: `[M]` first rows of the windows.
        window: L.
        batch_size: B at most; a series of fewer windows takes a smaller one.
        scaler: applied to the rows, which are scaled already where it is None.
    """
    batch_size = min(batch_size, _power_of_two(len(starts)))
    mesh = batch_mesh(batch_size)
    compiled = _windowed(function, window, mesh)
    common = place(common, mesh)
    size = _stretch(starts, window, batch_size)
    under_way: collections.deque[tuple[Any, int]] = collections.deque()
    for batch, weight in padded_batches(starts, batch_size):
        stretch, places = _cut(rows, batch, window, size)
        if scaler is not None:
            stretch = apply_scaler(scaler, stretch)
        under_way.append((compiled((common, stretch), places), int(weight.sum())))
        if len(under_way) == _UNDER_WAY:
            yield _finished(*under_way.popleft())
    for result, count in under_way:
        yield _finished(result, count)


@functools.lru_cache
def _windowed(
    function: WindowFunction, window: int, mesh: Mesh | None
) -> Callable[[Any, np.ndarray], Any]:
    """The jitted function of (common, stretch) and the windows' places in it."""

    def windowed(common: tuple[Any, Array], places: Array) -> Any:
        shared, stretch = common
        return function(shared, take_windows(stretch, places, window))

    return jax.jit(map_over_batch(windowed, mesh))


def _finished(result: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], result)


def _stretch(starts: np.ndarray, window: int, batch_size: int) -> int:
    """Rows that travel with a batch: as many as the widest needs, to a power of two."""
    widest = max(
        (
            int(batch.max()) - int(batch.min()) + window
            for batch, _ in padded_batches(starts, batch_size)
        ),
        default=window,
    )
    # Windows far apart travel one by one.
    return _power_of_two(min(widest, batch_size * window))


def _cut(
    rows: np.ndarray, batch: np.ndarray, window: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """A stretch `[size, D]` float32 that has the batch's windows, and their places."""
    first = int(batch.min())
    if int(batch.max()) - first + window <= size:
        found, places = rows[first : first + size], batch - first
    else:
        found = gather(rows, batch, window).reshape(-1, rows.shape[1])
        places = np.arange(len(batch)) * window
    stretch = np.zeros((size, rows.shape[1]), np.float32)
    stretch[: len(found)] = found
    return stretch, places.astype(np.int32)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number."""
    return 1 << max(number - 1, 0).bit_length()
