"""kdjax's side of each comparison, through the functions that a run uses."""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.data.scaler import Scaler
from kdjax.detection.detector import BATCH_SIZE, Detector, point_scorer, score_scaled
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import save_detector
from kdjax.detection.thresholds import Threshold
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.model import Model
from kdjax.models.residual import ResidualModel
from kdjax.scoring.opening import open_stream
from kdjax.training.batching import IndexedBatch, WindowDataset, padded_batches
from kdjax.training.populations import make_population_step, stack_members
from kdjax.training.sharding import batch_mesh, divide, place, start_program
from kdjax.training.steps import (
    LossFunction,
    Step,
    TrainState,
    dataset_outputs,
    init_state,
    make_optimizer,
    make_step,
    student_loss,
    teacher_loss,
)
from timing import work
from timing.work import Size, Unit, Work


def build(item: Work, size: Size, side: str = "kdjax") -> Unit:
    """The measurement of one work.

    On the side `serial` the members of a population are trained one after the other.
    """
    start_program()
    unit = {
        "step": _step,
        "epoch": _epoch,
        "series": _series,
        "window": _window,
        "stream": _stream,
        "population": _one_after_the_other if side == "serial" else _population,
    }[item.kind](item, size)
    device = jax.local_devices()[0]
    facts = {
        "library": f"jax {jax.__version__}",
        "device": "cpu" if device.platform == "cpu" else f"gpu ({device.device_kind})",
        "devices": jax.local_device_count(),
    }
    return unit._replace(facts=facts | unit.facts)


def _step(item: Work, size: Size) -> Unit:
    mesh = batch_mesh(item.batch)
    step = _make_step(teacher_loss(_network(item.hidden)), mesh)
    order = np.tile(np.arange(item.batch, dtype=np.int32), size.steps)
    datasets = [place(_dataset(item.batch), mesh)]
    return Unit(_training(step, item, mesh, datasets, order), {})


def _epoch(item: Work, size: Size) -> Unit:
    mesh = batch_mesh(item.batch)
    datasets = [place(_dataset(size.windows), mesh)]
    teacher = work.make_params(work.TEACHER)

    def make_targets() -> None:
        targets = dataset_outputs(
            _network(work.TEACHER),
            teacher,
            datasets[0],
            window=work.WINDOW,
            batch_size=BATCH_SIZE,
        )
        targets = place(jax.numpy.asarray(targets), mesh)
        datasets[0] = datasets[0].replace(targets=targets)

    step, order = _make_step(_distillation(item), mesh), _order(work.SEED, size)
    return Unit(_training(step, item, mesh, datasets, order), {}, make_targets)


def _training(
    step: Step,
    item: Work,
    mesh: Any,
    datasets: Sequence[WindowDataset],
    order: np.ndarray,
    seed: int = work.SEED,
) -> Callable[[], None]:
    """An epoch over windows in this order; each call continues from the last state."""
    states = [place(_first_state(item, seed), mesh)]

    def run() -> None:
        for index, weight in padded_batches(order, item.batch):
            states[0], _ = step(states[0], IndexedBatch(datasets[0], index, weight))
        jax.block_until_ready(states[0])

    return run


def _series(item: Work, size: Size) -> Unit:
    rows, gaussian = work.make_rows(size.series), Gaussian(*work.make_whitening())
    model, starts = _model(item), work.window_starts(rows)

    def run() -> np.ndarray:
        return score_scaled(
            model,
            gaussian,
            rows,
            starts,
            window=work.WINDOW,
            batch_size=BATCH_SIZE,
        )

    return Unit(run, {})


def _window(item: Work, size: Size) -> Unit:
    """One window from numpy to numpy, with the parameters on the device."""
    model = _model(item)
    scores = jax.jit(point_scorer(model.form))
    common = jax.device_put((model.params, Gaussian(*work.make_whitening())))

    def score(windows: np.ndarray) -> np.ndarray:
        return np.asarray(scores(common, windows))

    return Unit(work.single_windows(score, size.calls, "window"), {})


def _stream(item: Work, size: Size) -> Unit:
    """Rows through a `StreamDetector`, on the faster backend."""
    rows = work.make_stream(size.calls)
    backends = ["jax"]
    if importlib.util.find_spec("onnxruntime"):
        backends.append("onnxruntime")
    runs = [_update_rows(item, backend, rows) for backend in backends]
    best = work.fastest(runs)
    return Unit(runs[best], {"backend": backends[best]})


def _update_rows(item: Work, backend: str, rows: np.ndarray) -> Callable[[], float]:
    with tempfile.TemporaryDirectory() as folder:
        save_detector(Path(folder) / "detector", _detector(item))
        stream = open_stream(Path(folder) / "detector", backend=backend)
    for row in rows[: work.WINDOW - 1]:
        stream.update(row)

    def run() -> float:
        for row in rows[work.WINDOW - 1 :]:
            found = stream.update(row)
        return found.score

    return run


def _detector(item: Work) -> Detector:
    """A detector of one entity whose scores never reach τ, as in normal operation."""
    mean, whiten = work.make_whitening()
    zeros = np.zeros((2, work.WIDTH), np.float32)
    quiet = Threshold(1e30, "fixed", 0.0, 0, 0, "own")
    return Detector(
        model=_model(item),
        channels=tuple(f"channel_{i}" for i in range(work.WIDTH)),
        window=work.WINDOW,
        stride=work.STRIDE,
        allowed_points=0,
        max_gap=5.0,
        entities=("machine",),
        scalers=Scaler(zeros, zeros + 1),
        gaussians=Gaussian(np.stack([mean] * 2), np.stack([whiten] * 2)),
        thresholds=(quiet, quiet),
        card={},
    )


def _population(item: Work, size: Size) -> Unit:
    mesh = batch_mesh(item.members, least_share=1)
    step = _make_step(_distillation(item))
    together = make_population_step(lambda hyper: step, mesh)
    everyone = np.ones(item.members, bool)
    dataset = place(_dataset_with_targets(size), mesh)
    members = [_first_state(item, seed) for seed in range(item.members)]
    states = [divide(stack_members(members), mesh)]
    batches = [
        list(padded_batches(_order(seed, size), item.batch))
        for seed in range(item.members)
    ]

    def run() -> None:
        for batch in zip(*batches, strict=True):
            index, weight = (np.stack(parts) for parts in zip(*batch, strict=True))
            states[0] = together(states[0], (), dataset, index, weight, everyone)
        jax.block_until_ready(states[0])

    return Unit(run, {})


def _one_after_the_other(item: Work, size: Size) -> Unit:
    mesh = batch_mesh(item.batch)
    step = _make_step(_distillation(item), mesh)
    datasets = [place(_dataset_with_targets(size), mesh)]
    runs = [
        _training(step, item, mesh, datasets, _order(seed, size), seed)
        for seed in range(item.members)
    ]

    def run() -> None:
        for member in runs:
            member()

    return Unit(run, {})


def _order(seed: int, size: Size) -> np.ndarray:
    """The windows of an epoch in random order."""
    return np.random.default_rng(seed).permutation(size.windows).astype(np.int32)


def _make_step(loss: LossFunction, mesh: Any = None) -> Step:
    return make_step(loss, _optimizer(), window=work.WINDOW, mesh=mesh)


def _optimizer() -> Any:
    return make_optimizer(
        learning_rate=work.LEARNING_RATE,
        schedule="constant",
        steps=1,
        warmup_steps=0,
        # Every step of a run clips; peers do not.
        clip_norm=1.0,
    )


def _first_state(item: Work, seed: int) -> TrainState:
    params = jax.tree.map(jax.numpy.asarray, work.make_params(item.hidden, seed=seed))
    return init_state(params, _optimizer())


def _distillation(item: Work) -> LossFunction:
    """Eq. 2 at T = 1."""
    return student_loss(
        _network(item.hidden),
        _network(work.TEACHER),
        alpha=work.ALPHA,
        temperature=1.0,
        temperature_mode="output",
    )


def _dataset(windows: int) -> WindowDataset:
    rows = work.make_rows(windows)
    starts = work.window_starts(rows).astype(np.int32)
    return WindowDataset(jax.numpy.asarray(rows), jax.numpy.asarray(starts))


def _dataset_with_targets(size: Size) -> WindowDataset:
    """Random targets: their values don't change the time."""
    shape = (size.windows, work.WINDOW, work.WIDTH)
    targets = np.random.default_rng(work.SEED).random(shape, np.float32)
    dataset: WindowDataset = _dataset(size.windows).replace(
        targets=jax.numpy.asarray(targets)
    )
    return dataset


def _network(hidden: tuple[int, ...]) -> Model:
    return network(Architecture(work.WIDTH, hidden))


def _model(item: Work) -> ResidualModel:
    shape = Architecture(work.WIDTH, item.hidden)
    return ResidualModel("autoencoder", work.make_params(item.hidden), shape)
