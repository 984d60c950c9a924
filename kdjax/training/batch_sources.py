"""Where a phase's batches come from, epoch after epoch, the same whenever asked again.

Data that fit lie on the device, and a batch is an index into them (`memory_batches`). Of
data that don't, `grain` reads the windows from disk while the devices work
(`disk_batches`); each batch is then a small dataset of its own. One step function serves
both.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from kdjax.data.mmap import WindowSource
from kdjax.errors import ConfigError
from kdjax.losses import Objective
from kdjax.models.autoencoder import Params
from kdjax.training.batching import padded_batches
from kdjax.training.sharding import mean_over_batch, place
from kdjax.training.steps import WindowDataset, as_batch

# Threads that read, and batches that wait for their turn.
_READERS = 2
_READ_AHEAD = 4

Batches = Iterator[tuple[WindowDataset, np.ndarray, np.ndarray]]


class BatchSource(NamedTuple):
    """The batches of each epoch.

    Attributes:
        windows: M, of an epoch.
        batch_size: B; the last batch of an epoch is padded with windows of weight 0.
        batches: `(epoch, first) -> (dataset, index [B], weight [B])` one after the
            other: those of an epoch from its batch number `first` on. What they are
            follows from the epoch's number alone, so a phase can go on anywhere.
    """

    windows: int
    batch_size: int
    batches: Callable[[int, int], Batches]

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.windows / self.batch_size)


def memory_batches(
    dataset: WindowDataset, *, key: Array, batch_size: int
) -> BatchSource:
    """Batches of a dataset that lies on the device, in an order drawn from (key, epoch)."""
    windows = len(dataset.starts)

    def batches(epoch: int, first: int) -> Batches:
        remaining = epoch_order(key, epoch, windows)[first * batch_size :]
        for index, weight in padded_batches(remaining, batch_size):
            yield dataset, index, weight

    return BatchSource(windows, batch_size, batches)


def epoch_order(key: Array, epoch: int, windows: int) -> np.ndarray:
    """The order of an epoch's windows, `[M]`."""
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), windows))


def disk_batches(
    source: WindowSource,
    *,
    seed: int | Sequence[int],
    batch_size: int,
    teacher: Params | None = None,
    mesh: Mesh | None = None,
    process: int = 0,
    processes: int = 1,
) -> BatchSource:
    """Batches of windows that are read from disk, in an order drawn from (seed, epoch).

    The windows of an epoch are shuffled as a whole, without a list of them in memory.
    Each of `processes` hosts takes every so-manieth of that order, so that their shards
    are disjoint and together complete; they all have as many batches, for which a host
    with a window less pads one more.

    Args:
        source: the windows.
        seed: decides the order, with the epoch.
        batch_size: B, of each process.
        teacher: its parameters, placed, where a student learns from them: each step then
            computes its own targets.
        mesh: the devices that share a batch.
        process: number of this host, from 0.
        processes: number of hosts.

    Raises:
        ConfigError: grain isn't installed.
    """
    grain = _grain()
    mine = math.ceil(source.windows / processes)

    def batches(epoch: int, first: int) -> Batches:
        order = grain.MapDataset.range(source.windows).shuffle(_mixed(seed, epoch))
        for windows, weight in _read(
            source, order[process::processes], mine, batch_size, first
        ):
            count, length, width = windows.shape
            dataset = WindowDataset(
                jnp.asarray(windows.reshape(count * length, width)),
                jnp.arange(count, dtype=jnp.int32) * length,
                missing=source.missing,
            )
            dataset = place(dataset, mesh).replace(teacher=teacher)
            yield dataset, np.arange(count, dtype=np.int32), weight

    return BatchSource(mine, batch_size, batches)


def make_source_validate(
    loss: Objective,
    source: WindowSource,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Callable[[Params], float]:
    """`kdjax.training.steps.make_validate` for windows that are read from disk."""

    def mean_loss(params: Params, windows: Array, weight: Array) -> Array:
        return loss(params, as_batch(windows, weight, missing=source.missing))

    batch_loss = jax.jit(mean_over_batch(mean_loss, mesh))
    order = _grain().MapDataset.range(source.windows)

    def validate(params: Params) -> float:
        total = sum(
            float(batch_loss(params, windows, weight)) * float(weight.sum())
            for windows, weight in _read(source, order, source.windows, batch_size, 0)
        )
        return total / source.windows

    return validate


def _read(
    source: WindowSource, order: Any, count: int, batch_size: int, first: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of windows `[B, L, D]` with a weight `[B]`, read ahead.

    Args:
        source: the windows.
        order: a grain data set of their places.
        count: places to come to by padding, if there are less.
        batch_size: B.
        first: the batch to begin with; those before it are not read.
    """
    grain = _grain()

    def read(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = np.zeros(batch_size, np.float32)
        weight[: len(places)] = 1
        # Padding repeats a real window: its arithmetic is as harmless as that of others.
        padded = np.pad(places, (0, batch_size - len(places)), mode="edge")
        return source.read(padded), weight

    batches = order.batch(batch_size, batch_fn=np.array)
    if first < len(batches):
        options = grain.ReadOptions(
            num_threads=_READERS, prefetch_buffer_size=_READ_AHEAD
        )
        reader = iter(batches[first:].map(read).to_iter_dataset(options))
        try:
            yield from reader
        finally:
            reader.close()
    for _ in range(max(len(batches), first), math.ceil(count / batch_size)):
        yield source.read(np.zeros(batch_size, int)), np.zeros(batch_size, np.float32)


def _mixed(seed: int | Sequence[int], epoch: int) -> int:
    """One seed of 32 bits, another for each epoch."""
    numbers = [seed] if isinstance(seed, int) else list(seed)
    return int(np.random.SeedSequence([*numbers, epoch]).generate_state(1)[0])


def _grain() -> Any:
    try:
        import grain
    except ImportError:
        raise ConfigError(
            "the training rows are larger than data.memory_bytes, and reading them from "
            "disk needs grain: pip install 'kdjax[large]', or raise data.memory_bytes."
        ) from None
    return grain
