"""How the time of training and scoring grows with rows, channels, units and batch.

    python benchmarks/scaling.py --output=docs/performance/scaling.json

About four minutes on 2 CPU cores; `docs/performance.md` shows the figure that is drawn
beside the JSON file. Each point is the median of several measurements in turns, all of
one process. Scoring of 10⁷ rows reads a memory-mapped file and watches how much
anonymous memory the process holds.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.data.readers import read_table
from kdjax.data.scaler import Scaler
from kdjax.detection.detector import Detector, score_windows
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.tables import score_table
from kdjax.detection.thresholds import Threshold
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel
from kdjax.training.batching import IndexedBatch, WindowDataset
from kdjax.training.sharding import batch_mesh, place, use_all_cores
from kdjax.training.steps import init_state, make_optimizer, make_step, teacher_loss

WINDOW, STRIDE = 100, 10
BASE = {"rows": 20_000, "channels": 38, "hidden": 16, "batch": 128}
ROWS = (10**4, 10**5, 10**6, 10**7)
CHANNELS = (8, 16, 32, 64, 128, 256, 512)
HIDDEN = (8, 16, 32, 64, 128, 256)
BATCH = (32, 64, 128, 256, 512)
STEPS = 4
FILE_CHANNELS = 8  # of the series of up to 10⁷ rows
SEED = 0


def main() -> None:
    """Measures, then writes the JSON file and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="docs/performance/scaling.json", type=Path)
    parser.add_argument("--rows", type=int, help="score a file of so many rows only")
    given = parser.parse_args()
    output: Path = given.output
    use_all_cores()
    if given.rows:
        print(json.dumps(_scoring_of_file(given.rows)))
        return
    found: dict[str, Any] = {"base": BASE, "seed": SEED, "steps": STEPS}
    for name, values in (("channels", CHANNELS), ("hidden", HIDDEN), ("batch", BATCH)):
        found[f"training_{name}"] = _curve(_training, name, values)
        if name != "batch":
            found[f"scoring_{name}"] = _curve(_scoring, name, values)
    found["scoring_rows"] = [_in_new_process(rows) for rows in ROWS]
    found["environment"] = describe_environment()
    write_text(output, json.dumps(found, indent=1) + "\n")
    draw(found, output.with_suffix(".png"))


def _curve(
    make: Callable[..., Callable[[], Any]], name: str, values: Sequence[int]
) -> list[dict[str, float]]:
    """Median seconds at each value of one field, the others as in `BASE`."""
    runs = [make(**BASE | {name: value}) for value in values]
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(3):
        for run, own in zip(runs, seconds, strict=True):
            own.append(_seconds(run))
    points = [
        {name: value, "seconds": float(np.median(own))}
        for value, own in zip(values, seconds, strict=True)
    ]
    print(name, make.__name__, points, flush=True)
    return points


def _training(*, rows: int, channels: int, hidden: int, batch: int) -> Any:
    """`STEPS` steps on batches of one size."""
    net = network(Architecture(channels, (hidden,)))
    mesh = batch_mesh(batch)
    optimizer = make_optimizer(
        learning_rate=1e-3,
        schedule="constant",
        steps=1,
        warmup_steps=0,
        clip_norm=1.0,
    )
    step = make_step(teacher_loss(net), optimizer, window=WINDOW, mesh=mesh)
    state = [place(init_state(net.init(jax.random.key(SEED)), optimizer), mesh)]
    starts = np.arange(0, rows - WINDOW, STRIDE, dtype=np.int32)
    dataset = place(
        WindowDataset(*map(jax.numpy.asarray, (_rows(rows, channels), starts))), mesh
    )
    index, weight = np.arange(batch, dtype=np.int32), np.ones(batch, np.float32)

    def run() -> None:
        for _ in range(STEPS):
            state[0], _ = step(state[0], IndexedBatch(dataset, index, weight))
        jax.block_until_ready(state[0])

    return run


def _scoring(*, rows: int, channels: int, hidden: int, batch: int) -> Any:
    detector, values = _detector(channels, hidden), _rows(rows, channels)
    starts = np.arange(0, rows - WINDOW + 1, STRIDE)
    return lambda: score_windows(detector, 0, values, starts, batch_size=batch)


def _in_new_process(rows: int) -> dict[str, float]:
    """`_scoring_of_file` in a process that holds nothing else."""
    done = subprocess.run(
        [sys.executable, __file__, f"--rows={rows}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout, end="", flush=True)
    point: dict[str, float] = json.loads(done.stdout)
    return point


def _scoring_of_file(rows: int) -> dict[str, float]:
    """A score table of a `.npy` file, with the most anonymous memory seen."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        _write(path, rows)
        detector = _detector(FILE_CHANNELS, BASE["hidden"])
        (series,) = read_table(path)
        score_table(
            detector, series._replace(values=series.values[:5000]), entity="pooled"
        )
        with _watched_memory() as most:
            began = time.perf_counter()
            score_table(detector, series, entity="pooled")
            seconds = time.perf_counter() - began
    return {"rows": rows, "seconds": seconds, "anonymous_mb": most[0] / 1024}


@contextlib.contextmanager
def _watched_memory() -> Iterator[list[int]]:
    """A list whose only item is the most anonymous memory, kB, seen in the block."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            status = Path("/proc/self/status").read_text()
            (line,) = (x for x in status.splitlines() if x.startswith("RssAnon"))
            most[0] = max(most[0], int(line.split()[1]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def _write(path: Path, rows: int) -> None:
    """Uniform noise, a million rows at a time."""
    shape = (rows, FILE_CHANNELS)
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    rng = np.random.default_rng(SEED)
    for first in range(0, rows, 10**6):
        part = array[first : first + 10**6]
        part[:] = rng.random(part.shape, np.float32)
    array.flush()


def _rows(rows: int, channels: int) -> np.ndarray:
    return np.random.default_rng(SEED).random((rows, channels), np.float32)


def _detector(channels: int, hidden: int) -> Detector:
    """A student as it comes from initialisation: time doesn't depend on its values."""
    shape = Architecture(channels, (hidden,))
    params = jax.device_get(network(shape).init(jax.random.key(SEED)))
    ones = np.ones((1, channels), np.float32)
    return Detector(
        model=ResidualModel("autoencoder", params, shape),
        channels=tuple(f"channel_{i}" for i in range(1, channels + 1)),
        window=WINDOW,
        stride=STRIDE,
        allowed_points=0,
        max_gap=5.0,
        entities=(),
        scalers=Scaler(0 * ones, ones),
        gaussians=Gaussian(0 * ones, np.eye(channels, dtype=np.float32)[None]),
        thresholds=(Threshold(1.0, "fixed", 0.01, 1, 1, "pooled"),),
        card={},
    )


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def draw(found: dict[str, Any], path: Path) -> None:
    """Time over each field, doubly logarithmic, with a line of slope 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    panels = ("rows", "channels", "hidden", "batch")
    for axis, name in zip(axes, panels, strict=True):
        for kind, marker in (("training", "o"), ("scoring", "s")):
            points = found.get(f"{kind}_{name}")
            if points:
                x, y = ([point[key] for point in points] for key in (name, "seconds"))
                axis.loglog(x, y, marker=marker, label=kind)
        axis.loglog(x, y[-1] * np.array(x) / x[-1], ":", color="grey", label="slope 1")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(name)
        axis.legend(fontsize="small")
    axes[0].set_ylabel("seconds")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
