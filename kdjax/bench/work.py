"""What `bench` times: names, sizes, peers and the ratios that they should reach.

Every peer gets the same data, the same windows and the same parameters, so that all
compute one function and only their speed differs. All work is float32 on a network with
decoder `repeat`, of the paper's sizes (Table 1) at D = 38 channels.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
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
SCORING_BATCHES = (BATCH, 2 * BATCH)  # a peer scores with the one that suits it
TEN = 10  # epochs over which a one-off cost is spread
SEED = 0


class Work(NamedTuple):
    """One thing to time.

    Attributes:
        name: as in the results.
        kind: `step`, `epoch`, `series`, `window`, `stream` or `population`; see `Size`.
        hidden: widths of the encoder of the network that is trained or scores.
        targets: for each peer the ratio (its time / kdjax's) to reach; None where the
            ratio is only reported.
        members: `population`: networks trained.
        batch: `population`: windows of a member's step; B where None.
    """

    name: str
    kind: str
    hidden: tuple[int, ...]
    targets: dict[str, float | None]
    members: int = 1
    batch: int | None = None


class Size(NamedTuple):
    """How much one measurement holds; a measurement is one call of `Unit.run`.

    Attributes:
        steps: `step`: training steps on batches of B windows.
        windows: `epoch`, `population`: M, windows of the epoch, a multiple of B.
        series: `series`: M, windows of the series that is scored.
        calls: `window`, `stream`: single windows, or rows, one after the other.
    """

    steps: int
    windows: int
    series: int
    calls: int


class Data(NamedTuple):
    """Rows and the windows in them.

    Attributes:
        rows: `[N, D]` float32 in [0, 1].
        starts: `[M]` first rows of the windows.
    """

    rows: np.ndarray
    starts: np.ndarray


class Unit(NamedTuple):
    """A measurement that is ready to run.

    Attributes:
        run: does the work once, and returns when it is done.
        one_off: makes what `run` reuses (the teacher's outputs for all windows of the
            epoch); called before `run`. None where there is no such cost.
        facts: library, device and whatever else tells how it runs; JSON-able.
    """

    run: Callable[[], Any]
    one_off: Callable[[], Any] | None
    facts: dict[str, Any]


FULL = Size(steps=2, windows=20 * BATCH, series=2816, calls=200)
QUICK = Size(steps=1, windows=2 * BATCH, series=256, calls=50)

WORKS = {
    work.name: work
    for work in (
        Work("teacher_step", "step", TEACHER, {"torch": 1.3}),
        Work("student_epoch", "epoch", (200,), {"torch": 2.0, "torch_cached": 1.3}),
        Work("student_32_epoch", "epoch", (32,), {"torch": 8.0, "torch_cached": 1.5}),
        Work(
            "score_series_teacher",
            "series",
            TEACHER,
            {"torch": 1.3, "onnxruntime": 1.3},
        ),
        Work(
            "score_series_student",
            "series",
            (200,),
            {"torch": 1.3, "onnxruntime": 1.3},
        ),
        Work(
            "one_window_student_200",
            "window",
            (200,),
            {"onnxruntime": 1.0, "torch": 1.5},
        ),
        Work(
            "one_window_student_16",
            "window",
            (16,),
            {"torch": 2.0, "onnxruntime": None},
        ),
        Work("stream_row_200", "stream", (200,), {"onnxruntime": None, "torch": None}),
        Work("stream_row_16", "stream", (16,), {"onnxruntime": None, "torch": None}),
        Work("population_8", "population", (32,), {"serial": 1.6}, members=8),
        # A student for each machine of SMD, at the batch size of a run.
        Work(
            "per_entity_28",
            "population",
            (32,),
            {"serial": None},
            members=28,
            batch=32,
        ),
    )
}


def find_work(name: str) -> Work:
    """The work of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in WORKS:
        raise ConfigError(
            f"nothing to measure is called {name!r}: choose from {', '.join(WORKS)}."
        )
    return WORKS[name]


def choose_size(*, quick: bool) -> Size:
    """How much a measurement holds, `QUICK` or `FULL`."""
    return QUICK if quick else FULL


def make_data(windows: int) -> Data:
    """Smooth waves with noise: M `windows` of L rows at stride 10; always the same."""
    rng = np.random.default_rng(SEED)
    rows = (windows - 1) * STRIDE + WINDOW
    time_axis = np.arange(rows)[:, None]
    period = rng.uniform(20, 200, WIDTH)
    phase = rng.uniform(0, 2 * np.pi, WIDTH)
    waves = 0.5 + 0.35 * np.sin(2 * np.pi * time_axis / period + phase)
    values = np.clip(waves + 0.05 * rng.normal(size=waves.shape), 0, 1)
    return Data(values.astype(np.float32), np.arange(windows) * STRIDE)


def make_stream(calls: int) -> np.ndarray:
    """L − 1 rows to begin with and `calls` that follow, `[N, D]`."""
    return make_data(2 + calls // STRIDE).rows[: WINDOW - 1 + calls]


def follow(
    score: Callable[[np.ndarray], np.ndarray], rows: np.ndarray
) -> Callable[[], np.ndarray]:
    """A stream as one writes it by hand: the window moves up by a row, and is scored.

    Args:
        score: `[1, L, D] -> [1, L]`.
        rows: from `make_stream`.
    """
    window = np.zeros((1, WINDOW, rows.shape[1]), np.float32)

    def run() -> np.ndarray:
        window[0, 1:] = rows[: WINDOW - 1]
        for row in rows[WINDOW - 1 :]:
            window[0, :-1] = window[0, 1:]
            window[0, -1] = row
            scores = score(window)
        return scores

    return run


def make_whitening() -> tuple[np.ndarray, np.ndarray]:
    """μ `[D]` and W `[D, D]` of a normal distribution of errors, float32."""
    rng = np.random.default_rng(SEED + 1)
    mean = rng.uniform(0.05, 0.2, WIDTH)
    whiten = np.tril(rng.normal(size=(WIDTH, WIDTH)), -1) * 0.3 + 3 * np.eye(WIDTH)
    return mean.astype(np.float32), whiten.astype(np.float32)


def make_params(hidden: Sequence[int], *, seed: int = SEED) -> Any:
    """Parameters of a network of these widths, uniform in ±1/√H as in torch.

    Numpy alone, so that the processes of peers need no JAX.
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

    params: dict[str, Any] = {}
    for name, widths in (
        ("encoder", (WIDTH, *hidden)),
        ("decoder_layers", (hidden[-1], *reversed(hidden))),
    ):
        for number, pair in enumerate(itertools.pairwise(widths)):
            params[f"{name}_{number}"] = layer(*pair)
    bound = 1 / math.sqrt(hidden[0])
    kernel, bias = uniform(bound, hidden[0], WIDTH), uniform(bound, WIDTH)
    return params | {"head": {"kernel": kernel, "bias": bias}}


def fastest(candidates: Sequence[Callable[[], Any]]) -> int:
    """Number of the candidate whose second call took least time."""
    return int(np.argmin([_second_call(candidate) for candidate in candidates]))


def _second_call(function: Callable[[], Any]) -> float:
    function()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
