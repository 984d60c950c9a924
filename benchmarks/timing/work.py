"""What `speed.py` times: names, sizes, data, parameters, operation counts.

All sides get the same data, windows and parameters (float32, decoder `repeat`, the
paper's sizes of Table 1 at D = 38 channels), so that all compute the same function.
One LSTM layer of inputs I and units H needs (I + H)·4H multiply-adds a step and window;
a multiply-add counts as two operations.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import ConfigError

WIDTH = 38  # D, as in the Server Machine Dataset
WINDOW = 100  # L
BATCH = 128  # B
STRIDE = 10
TEACHER = (200, 200)
ALPHA = 0.5
LEARNING_RATE = 1e-3
SCORING_BATCHES = (BATCH, 2 * BATCH)  # a peer scores with the faster one
SEED = 0


class Work(NamedTuple):
    """One thing to time."""

    name: str
    kind: str  # step, epoch, series, window, stream or population
    hidden: tuple[int, ...]  # widths of the encoder
    targets: dict[str, float | None]  # ratio to reach for each peer, or None
    members: int = 1  # population: number of networks trained
    batch: int = BATCH  # windows of a training step


class Size(NamedTuple):
    """Amount of work in one measurement."""

    steps: int  # step: training steps
    windows: int  # epoch, population: M, a multiple of B
    series: int  # series: M
    calls: int  # window, stream: single windows, or rows


class Unit(NamedTuple):
    """A measurement that is ready to run."""

    run: Callable[[], Any]  # does the work once and returns when it is done
    facts: dict[str, Any]  # library, device, threads and so on; JSON-able
    # Called before `run`: makes what it reuses (the teacher's outputs of an epoch).
    one_off: Callable[[], Any] | None = None


FULL = Size(steps=2, windows=20 * BATCH, series=2816, calls=200)
QUICK = Size(steps=1, windows=2 * BATCH, series=256, calls=50)

SERIES = {"torch": 1.3, "onnxruntime": 1.3}
NO_TARGET = {"onnxruntime": None, "torch": None}
WORKS = {
    work.name: work
    for work in (
        Work("teacher_step", "step", TEACHER, {"torch": 1.3}),
        Work("student_epoch", "epoch", (200,), {"torch": 2.0, "torch_cached": 1.3}),
        Work("student_32_epoch", "epoch", (32,), {"torch": 8.0, "torch_cached": 1.5}),
        Work("score_series_teacher", "series", TEACHER, SERIES),
        Work("score_series_student", "series", (200,), SERIES),
        Work(
            "one_window_student_200", "window", (200,), {"onnxruntime": 1, "torch": 1.5}
        ),
        Work("one_window_student_16", "window", (16,), NO_TARGET | {"torch": 2.0}),
        Work("stream_row_200", "stream", (200,), NO_TARGET),
        Work("stream_row_16", "stream", (16,), NO_TARGET),
        Work("population_8", "population", (32,), {"serial": 1.6}, members=8),
        # One student for each machine of SMD, at the default batch size of a run.
        Work("per_entity_28", "population", (32,), {"serial": None}, 28, 32),
    )
}


def find_work(name: str) -> Work:
    """Returns the work of that name; raises ConfigError if there is none."""
    if name not in WORKS:
        raise ConfigError(
            f"nothing to measure is called {name!r}: choose from {', '.join(WORKS)}."
        )
    return WORKS[name]


def make_rows(windows: int) -> np.ndarray:
    """Rows `[N, D]` float32 in [0, 1] with M `windows` of L rows at stride 10."""
    rng = np.random.default_rng(SEED)
    rows = (windows - 1) * STRIDE + WINDOW
    time_axis = np.arange(rows)[:, None]
    period = rng.uniform(20, 200, WIDTH)
    phase = rng.uniform(0, 2 * np.pi, WIDTH)
    waves = 0.5 + 0.35 * np.sin(2 * np.pi * time_axis / period + phase)
    values = np.clip(waves + 0.05 * rng.normal(size=waves.shape), 0, 1)
    return values.astype(np.float32)


def window_starts(rows: np.ndarray) -> np.ndarray:
    """First rows `[M]` of the windows in rows."""
    return np.arange(0, len(rows) - WINDOW + 1, STRIDE)


def cut_windows(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The windows `[M, L, D]` at `starts`."""
    windows: np.ndarray = rows[starts[:, None] + np.arange(WINDOW)]
    return windows


def make_stream(calls: int) -> np.ndarray:
    """L − 1 rows to begin with and `calls` that follow, `[N, D]`."""
    return make_rows(2 + calls // STRIDE)[: WINDOW - 1 + calls]


def single_windows(
    score: Callable[[np.ndarray], np.ndarray], calls: int, kind: str
) -> Callable[[], np.ndarray]:
    """A peer's `window`: one window `calls` times; or `stream`: moved by a row each time.

    `score` maps `[1, L, D]` to `[1, L]`.
    """
    rows = make_stream(calls)
    window = rows[None, :WINDOW].copy()

    def repeat() -> np.ndarray:
        for _ in range(calls):
            scores = score(window)
        return scores

    def follow() -> np.ndarray:
        window[0, 1:] = rows[: WINDOW - 1]
        for row in rows[WINDOW - 1 :]:
            window[0, :-1] = window[0, 1:]
            window[0, -1] = row
            scores = score(window)
        return scores

    return repeat if kind == "window" else follow


def series_unit(score: Callable[[np.ndarray, int], np.ndarray], windows: int) -> Unit:
    """A peer's `series`: `score(rows, batch)` with the faster of two batch sizes."""
    trial = make_rows(max(SCORING_BATCHES))
    best = fastest([partial(score, trial, batch) for batch in SCORING_BATCHES])
    batch = SCORING_BATCHES[best]
    return Unit(partial(score, make_rows(windows), batch), {"batch": batch})


def make_whitening() -> tuple[np.ndarray, np.ndarray]:
    """μ `[D]` and W `[D, D]` of a Gaussian of residuals, float32."""
    rng = np.random.default_rng(SEED + 1)
    mean = rng.uniform(0.05, 0.2, WIDTH)
    whiten = np.tril(rng.normal(size=(WIDTH, WIDTH)), -1) * 0.3 + 3 * np.eye(WIDTH)
    return mean.astype(np.float32), whiten.astype(np.float32)


def make_params(hidden: Sequence[int], *, seed: int = SEED) -> Any:
    """Parameters of a network of these widths, uniform in ±1/√H as in torch.

    Uses numpy only, so that the processes of peers need no JAX.
    """
    rng = np.random.default_rng(seed)

    def uniform(bound: float, *shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    def layer(width: int, size: int) -> dict[str, np.ndarray]:
        bound = 1 / math.sqrt(size)
        return {
            "input_kernel": uniform(bound, width, 4 * size),
            "recurrent_kernel": uniform(bound, size, 4 * size),
            "bias": uniform(bound, 4 * size),
        }

    encoder, decoder = _layers(WIDTH, hidden)
    params: dict[str, Any] = {}
    for name, pairs in (("encoder", encoder), ("decoder_layers", decoder)):
        params |= {f"{name}_{i}": layer(*pair) for i, pair in enumerate(pairs)}
    bound = 1 / math.sqrt(hidden[0])
    kernel, bias = uniform(bound, hidden[0], WIDTH), uniform(bound, WIDTH)
    return params | {"head": {"kernel": kernel, "bias": bias}}


def fastest(candidates: Sequence[Callable[[], Any]]) -> int:
    """Number of the candidate whose second call took least time."""
    seconds = []
    for candidate in candidates:
        candidate()
        started = time.perf_counter()
        candidate()
        seconds.append(time.perf_counter() - started)
    return int(np.argmin(seconds))


def parameter_count(width: int, hidden: Sequence[int]) -> int:
    """Parameters of a network: Σ (I + H + 1)·4H over its layers, (H + 1)·D in its head.

    >>> parameter_count(1, (200, 200)), parameter_count(1, (200,))
    (1124201, 482601)
    """
    layers = itertools.chain(*_layers(width, hidden))
    return sum((i + h + 1) * 4 * h for i, h in layers) + (hidden[0] + 1) * width


def forward_flops(width: int, hidden: Sequence[int], *, window: int) -> int:
    """Operations of one window's reconstruction.

    2·L·(Σ (I + H)·4H + H·D) over all layers, but the first decoder layer reads the same
    vector at every step, so that its I·4H counts once instead of L times.
    """
    once = hidden[-1] * 4 * hidden[-1]
    layers = itertools.chain(*_layers(width, hidden))
    each = sum((i + h) * 4 * h for i, h in layers) + hidden[0] * width
    return 2 * (window * (each - once) + once)


def training_flops(
    width: int, hidden: Sequence[int], *, window: int, batch: int
) -> int:
    """Operations of one training step on B windows: 3 forward passes.

    The backward pass has two products (for inputs and for weights) for each one of the
    forward pass.
    """
    return 3 * batch * forward_flops(width, hidden, window=window)


def scoring_flops(width: int, hidden: Sequence[int], *, window: int) -> int:
    """Operations of scoring one window: its reconstruction, and W(e − μ), 2·L·D²."""
    return forward_flops(width, hidden, window=window) + 2 * window * width * width


def unit_flops(item: Work, size: Size) -> int:
    """Operations of one measurement of kdjax; distillation targets are not counted."""
    if item.kind in ("series", "window", "stream"):
        windows = size.series if item.kind == "series" else size.calls
        return windows * scoring_flops(WIDTH, item.hidden, window=WINDOW)
    step = training_flops(WIDTH, item.hidden, window=WINDOW, batch=BATCH)
    if item.kind == "step":
        return size.steps * step
    return item.members * size.windows // BATCH * step


def streamed_bytes(width: int, hidden: Sequence[int], *, window: int) -> int:
    """Bytes of weights that a batch of one window reads: 4·L for each parameter."""
    return 4 * window * parameter_count(width, hidden)


def _layers(
    width: int, hidden: Sequence[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(I, H) of each LSTM layer, of the encoder and of the decoder."""
    encoder = (width, *hidden)
    decoder = (hidden[-1], *reversed(hidden))
    return [*itertools.pairwise(encoder)], [*itertools.pairwise(decoder)]
