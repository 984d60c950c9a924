"""Where a phase's batches come from, epoch after epoch, the same whenever asked again."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from kdjax.models.batches import padded_batches
from kdjax.training.steps import Corpus

Batches = Iterator[tuple[Corpus, np.ndarray, np.ndarray]]


class Feed(NamedTuple):
    """The batches of each epoch.

    Attributes:
        windows: M, of an epoch.
        batch_size: B; the last batch of an epoch is padded with windows of weight 0.
        batches: `(epoch, first) -> (corpus, index [B], weight [B])` one after the
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


def corpus_feed(corpus: Corpus, *, key: Array, batch_size: int) -> Feed:
    """Batches of a corpus that lies on the device, in an order drawn from (key, epoch)."""
    windows = len(corpus.starts)

    def batches(epoch: int, first: int) -> Batches:
        remaining = epoch_order(key, epoch, windows)[first * batch_size :]
        for index, weight in padded_batches(remaining, batch_size):
            yield corpus, index, weight

    return Feed(windows, batch_size, batches)


def epoch_order(key: Array, epoch: int, windows: int) -> np.ndarray:
    """The order of an epoch's windows, `[M]`."""
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), windows))
