"""The least work that a measurement needs, and the rates that bound it.

One LSTM layer of inputs I and units H needs (I + H)·4H multiply-adds a step and window;
a multiply-add is two operations. In the decoder `repeat` the first layer reads one and
the same vector at every step, so that its share I·4H is needed once a window only.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

FLOAT_BYTES = 4
MATRIX = 2048  # width of the products that measure the rate
COPY_BYTES = 256 * 2**20


class Rates(NamedTuple):
    """What the device does at its best.

    Attributes:
        flops: operations a second, of large products in float32.
        bandwidth: bytes a second, read and written in a large copy.
    """

    flops: float
    bandwidth: float


def parameter_count(width: int, hidden: Sequence[int]) -> int:
    """Numbers in a network: Σ (I + H + 1)·4H over its layers, (H + 1)·D in its head.

    >>> parameter_count(1, (200, 200)), parameter_count(1, (200,))
    (1124201, 482601)
    """
    layers = sum((i + h + 1) * 4 * h for i, h in _layers(width, hidden))
    return layers + (hidden[0] + 1) * width


def forward_flops(
    width: int, hidden: Sequence[int], *, window: int, projection: str = "once"
) -> int:
    """Operations of one window's reconstruction.

    2·L·(Σ (I + H)·4H + H·D) over all layers, where the first decoder layer's I·4H
    counts once instead of L times if its projection is made once.

    Args:
        width: D.
        hidden: widths of the encoder's layers; the decoder has them reversed.
        window: L.
        projection: `once`, or `each` for a network that projects the repeated vector
            at each step.
    """
    first = hidden[-1] * 4 * hidden[-1]
    each = sum((i + h) * 4 * h for i, h in _layers(width, hidden))
    each += hidden[0] * width
    if projection == "each":
        return 2 * window * each
    return 2 * (window * (each - first) + first)


def training_flops(
    width: int,
    hidden: Sequence[int],
    *,
    window: int,
    batch: int,
    projection: str = "once",
) -> int:
    """Operations of one training step on B windows: 3 forward passes.

    The backward pass has two products (towards inputs and weights) for each one of the
    forward pass. `projection` is as in `forward_flops`.
    """
    forward = forward_flops(width, hidden, window=window, projection=projection)
    return 3 * batch * forward


def scoring_flops(
    width: int, hidden: Sequence[int], *, window: int, projection: str = "once"
) -> int:
    """Operations of scoring one window: its reconstruction, and W(e − μ), 2·L·D²."""
    forward = forward_flops(width, hidden, window=window, projection=projection)
    return forward + 2 * window * width * width


def streamed_bytes(width: int, hidden: Sequence[int], *, window: int) -> int:
    """Bytes of weights that a batch of one window reads: 4·L for each weight.

    Weights that are used once a window (input projections) count as if read at each
    step, so this is what a plain recurrent network reads.
    """
    return FLOAT_BYTES * window * parameter_count(width, hidden)


def measure_rates() -> Rates:
    """Operations and bytes a second on the default device of JAX."""
    return Rates(matrix_rate(), copy_bandwidth())


def matrix_rate() -> float:
    """Operations a second of 2048 × 2048 products in float32: 2·n³ / seconds."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((MATRIX, MATRIX), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    return 2 * MATRIX**3 / _best_seconds(lambda: multiply(matrix, matrix))


def copy_bandwidth() -> float:
    """Bytes a second of x + 1 over 256 MiB, read and written: 2·bytes / seconds."""
    import jax
    import jax.numpy as jnp

    # In place: new memory at each call would measure the operating system.
    increment = jax.jit(lambda values: values + 1, donate_argnums=0)
    held = [jnp.zeros(COPY_BYTES // FLOAT_BYTES, jnp.float32)]

    def run() -> Any:
        held.append(increment(held.pop()))
        return held[0]

    return 2 * COPY_BYTES / _best_seconds(run)


def _best_seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    function().block_until_ready()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function().block_until_ready()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _layers(width: int, hidden: Sequence[int]) -> list[tuple[int, int]]:
    """(I, H) of each LSTM layer, encoder first."""
    decoder = (hidden[-1], *reversed(hidden))
    return [*itertools.pairwise((width, *hidden)), *itertools.pairwise(decoder)]
