"""Batches of windows: from memory, from a device, or from disk.

`batches` yields batches of arrays `[M, L, D]`. A training job keeps scaled rows on the
device and gives a batch as the indices of its windows (`memory_batches`). Rows that do not
fit are read by grain while the devices work (`disk_batches`). Batches have few sizes, so
that a jitted function is traced once or twice.
"""

import collections
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from kdjax.data.raw import as_array
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.windowing import WindowSource, gather
from kdjax.errors import ConfigError, DataError
from kdjax.io.processes import check_not_forked
from kdjax.models.model import Params, Places, fill_missing
from kdjax.training.sharding import batch_mesh, map_over_batch, place

# `(common, windows [B, L, D]) -> [B, …]`, or a tuple of such arrays.
WindowFunction = Callable[[Any, Array], Any]

# Batches in preparation while the devices work on another one.
_UNDER_WAY = 2


class Batch(NamedTuple):
    """The batch of one training step."""

    windows: Array  # X, [B, L, D]
    weight: Array  # [B], 1, or 0 for a window that only pads the batch
    # Distillation targets: the teacher's head outputs before activation or its residuals,
    # [B, L, D], its codes, [B, K], or its scores, [B, L]; None without a teacher.
    targets: Array | None = None
    observed: Array | None = None
    recorded: Array | None = None  # [B], 1, or 0 for an augmented window; None: all 1


class WindowDataset(struct.PyTreeNode):  # type: ignore[no-untyped-call]
    """The windows that a job trains on."""

    rows: Array  # [N, D] float32, scaled rows of all entities, one after the other
    starts: Array  # [M] int32, first rows of the windows; none crosses an entity
    targets: Array | None = None  # [M, …], distillation targets, computed once
    # The teacher's parameters, if each step computes its own targets.
    teacher: Any = None
    recorded: Array | None = None  # [M], 1, or 0 for augmented windows; None: all 1
    # Whether rows may have NaN cells; indices of channels; losses leave out both.
    missing: bool = struct.field(pytree_node=False, default=False)  # type: ignore[no-untyped-call]
    context: Places = struct.field(pytree_node=False, default=())  # type: ignore[no-untyped-call]


class IndexedBatch(NamedTuple):
    """A batch as indices in a dataset on the device: windows `dataset.starts[positions]`.

    `weight` `[B]` is 1, or 0 for a window that only pads the batch.
    """

    dataset: WindowDataset
    positions: Array | np.ndarray  # [B]
    weight: Array | np.ndarray


def take_windows(rows: Array, starts: Array, window: int) -> Array:
    """Windows `[B, L, D]` of rows `[N, D]` at starts `[B]`, on the device."""
    return rows[starts[:, None] + jnp.arange(window)[None]]


def padded(batch: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of `[batch_size]` with its weight: 1, or 0 where padded."""
    weight = np.zeros(batch_size, np.float32)
    weight[: len(batch)] = 1
    # Padding repeats a real item, so that no other values can occur.
    return np.pad(batch, (0, batch_size - len(batch)), mode="edge"), weight


def padded_batches(
    items: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches `[B]` of items `[M]` with a weight `[B]`: 1, or 0 where padded.

    >>> [(b.tolist(), w.tolist()) for b, w in padded_batches(np.array([4, 5, 6]), 2)]
    [([4, 5], [1.0, 1.0]), ([6, 6], [1.0, 0.0])]
    """
    for first in range(0, len(items), batch_size):
        yield padded(items[first : first + batch_size], batch_size)


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

    `function(common, windows [B, L, D]) -> [B, …]` is jitted once for each object;
    `common` is a pytree of arrays that all windows share. `rows` may be a memory map, of
    which only stretches are read; they are scaled already where `scaler` is None.
    `starts` `[M]` are first rows of the windows. A batch has up to `batch_size` windows,
    a short series less. The devices receive the stretch of rows that a batch covers and
    cut it into windows. Sizes of stretches and batches are powers of two, so that series of
    other lengths seldom compile again.
    """
    check_not_forked()
    batch_size = min(batch_size, _power_of_two(len(starts)))
    mesh = batch_mesh(batch_size)
    compiled = _windowed(function, window, mesh)
    common = place(common, mesh)
    # A stretch has as many rows as the widest batch needs; windows that are far apart are
    # sent one by one.
    spans = [int(np.ptp(batch)) for batch, _ in padded_batches(starts, batch_size)]
    widest = max(spans, default=0) + window
    size = _power_of_two(min(widest, batch_size * window))
    under_way: collections.deque[tuple[Any, int]] = collections.deque()
    for batch, weight in padded_batches(starts, batch_size):
        first = int(batch.min())
        if int(batch.max()) - first + window <= size:
            found, places = rows[first : first + size], batch - first
        else:
            found = gather(rows, batch, window).reshape(-1, rows.shape[1])
            places = np.arange(len(batch)) * window
        stretch = np.zeros((size, rows.shape[1]), rows.dtype)
        stretch[: len(found)] = found
        if scaler is not None:
            stretch = apply_scaler(scaler, stretch)
        stretch = stretch.astype(np.float32, copy=False)
        result = compiled((common, stretch), places.astype(np.int32))
        under_way.append((result, int(weight.sum())))
        if len(under_way) == _UNDER_WAY:
            yield _finished(*under_way.popleft())
    yield from itertools.starmap(_finished, under_way)


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


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number."""
    return 1 << max(number - 1, 0).bit_length()


def take_batch(
    dataset: WindowDataset, starts: Array, weight: Array, window: int
) -> Batch:
    """The windows of a dataset at `starts` `[B]`, without their targets."""
    windows = take_windows(dataset.rows, starts, window)
    batch = as_batch(windows, weight, missing=dataset.missing)
    if not dataset.context:
        return batch
    seen = jnp.ones(windows.shape, bool) if batch.observed is None else batch.observed
    return batch._replace(observed=seen.at[..., np.array(dataset.context)].set(False))


def as_batch(windows: Array, weight: Array, *, missing: bool) -> Batch:
    """Windows `[B, L, D]` as a batch without targets, with missing cells filled if any."""
    if not missing:
        return Batch(windows, weight)
    filled, observed = fill_missing(windows)
    return Batch(filled, weight, observed=observed)


def batches(
    windows: ArrayLike, batch_size: int, *, epochs: int = 1, key: Array
) -> Iterator[Batch]:
    """Shuffled batches of windows `[M, L, D]`, epoch after epoch.

    The last batch of an epoch repeats a window with weight 0 until it is full, so that
    a jitted step is traced once. Missing cells (NaN) are filled and marked.

    Args:
        windows: X, `[M, L, D]`, scaled.
        batch_size: B.
        epochs: number of passes over the windows.
        key: determines the order, together with the epoch's number.

    >>> x = np.zeros((5, 4, 1), np.float32)
    >>> [int(b.weight.sum()) for b in batches(x, 3, key=jax.random.key(0))]
    [3, 2]
    """
    values = as_array(windows).astype(np.float32, copy=False)
    if values.ndim != 3 or not len(values):
        raise DataError(
            f"windows of shape {values.shape}: expected one or more, [M, L, D], such as "
            "from kdjax.windows."
        )
    missing = bool(np.isnan(values).any())
    for epoch in range(epochs):
        order = epoch_order(key, epoch, len(values))
        for index, weight in padded_batches(order, batch_size):
            yield as_batch(
                jnp.asarray(values[index]), jnp.asarray(weight), missing=missing
            )


# Threads that read, and batches in their queue.
_READERS = 2
_READ_AHEAD = 4

Batches = Iterator[IndexedBatch]


class BatchSource(NamedTuple):
    """The batches of each epoch, `batches(epoch, first)` from number `first` on.

    They depend on the epoch's number only, so a job can resume at any batch. The last one
    of an epoch is padded with windows of weight 0.
    """

    windows: int  # M, of an epoch
    batch_size: int
    batches: Callable[[int, int], Batches]

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.windows / self.batch_size)


def memory_batches(
    dataset: WindowDataset, *, key: Array | None, batch_size: int
) -> BatchSource:
    """Batches of a dataset on the device, in an order drawn from (key, epoch).

    Without a key the windows keep their order.
    """
    windows = len(dataset.starts)

    def batches(epoch: int, first: int) -> Batches:
        order = np.arange(windows)
        if key is not None:
            order = epoch_order(key, epoch, windows)
        for index, weight in padded_batches(order[first * batch_size :], batch_size):
            yield IndexedBatch(dataset, index, weight)

    return BatchSource(windows, batch_size, batches)


def epoch_order(key: Array, epoch: int, windows: int) -> np.ndarray:
    """The order of an epoch's windows, `[M]`."""
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), windows))


def disk_batches(
    source: WindowSource,
    *,
    seed: Sequence[int] | None,
    batch_size: int,
    teacher: Params | None = None,
    mesh: Mesh | None = None,
) -> BatchSource:
    """Batches of windows that are read from disk, in an order drawn from (seed, epoch).

    The windows of an epoch are shuffled as a whole, without a list of them in memory;
    without a seed they keep their order. With a `teacher`, its parameters, placed, each
    step computes its own targets. The devices of `mesh` share a batch. ConfigError if
    grain is not installed.
    """
    try:
        import grain
    except ImportError:
        raise ConfigError(
            "the training rows exceed data.memory_bytes, and reading them from disk "
            "needs grain: pip install 'kdjax[large]', or raise data.memory_bytes."
        ) from None

    def read(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch, weight = padded(places, batch_size)
        return source.read(batch), weight

    def batches(epoch: int, first: int) -> Batches:
        order = grain.MapDataset.range(source.windows)
        if seed is not None:
            (drawn,) = np.random.SeedSequence([*seed, epoch]).generate_state(1)
            order = order.shuffle(int(drawn))
        found = order.batch(batch_size, batch_fn=np.array)
        if first >= len(found):
            return
        options = grain.ReadOptions(
            num_threads=_READERS, prefetch_buffer_size=_READ_AHEAD
        )
        reader = iter(found[first:].map(read).to_iter_dataset(options))
        with contextlib.closing(reader):
            for windows, weight in reader:
                count, length, width = windows.shape
                dataset = WindowDataset(
                    jnp.asarray(windows.reshape(count * length, width)),
                    jnp.arange(count, dtype=jnp.int32) * length,
                    missing=source.missing,
                    context=source.context,
                )
                dataset = place(dataset, mesh).replace(teacher=teacher)
                yield IndexedBatch(dataset, np.arange(count, dtype=np.int32), weight)

    return BatchSource(source.windows, batch_size, batches)
