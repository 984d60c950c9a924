"""kdjax's side of each comparison, through the functions that a run uses."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.bench import work
from kdjax.bench.work import (
    Data,
    Size,
    Unit,
    Work,
)
from kdjax.data.scaler import Scaler
from kdjax.detection.detector import (
    BATCH_SIZE,
    Detector,
    point_scorer,
    score_scaled,
)
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import save_detector
from kdjax.detection.thresholds import Threshold
from kdjax.losses import Objective, student_objective, teacher_objective
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel
from kdjax.scoring.streams import open_stream
from kdjax.training.batching import padded_batches
from kdjax.training.populations import make_population_step, stack_members
from kdjax.training.sharding import (
    batch_mesh,
    divide,
    place,
    start_program,
)
from kdjax.training.steps import (
    Step,
    TrainState,
    WindowDataset,
    head_outputs,
    init_state,
    make_optimizer,
    make_step,
)


def build(name: str, *, quick: bool) -> Unit:
    """The measurement of a work's name for kdjax."""
    start_program()
    item, size = work.find_work(name), work.choose_size(quick=quick)
    unit = {
        "step": _step,
        "epoch": _epoch,
        "series": _series,
        "window": _window,
        "stream": _stream,
        "population": _population,
    }[item.kind](item, size)
    return unit._replace(facts=_facts() | unit.facts)


def build_serial(name: str, *, quick: bool) -> Unit:
    """The members of a population trained one after the other, as single runs are."""
    start_program()
    item, size = work.find_work(name), work.choose_size(quick=quick)
    return _one_after_the_other(item, size)._replace(facts=_facts())


def _facts() -> dict[str, Any]:
    device = jax.local_devices()[0]
    own = device.platform == "cpu"
    return {
        "library": f"jax {jax.__version__}",
        "device": "cpu" if own else f"gpu ({device.device_kind})",
        "devices": jax.local_device_count(),
    }


def _optimizer() -> Any:
    return make_optimizer(
        learning_rate=work.LEARNING_RATE,
        schedule="constant",
        steps=1,
        warmup_steps=0,
        # Clipping is part of every step of a run; peers do without.
        clip_norm=1.0,
    )


def _first_state(item: Work, seed: int = work.SEED) -> TrainState:
    params = jax.tree.map(jax.numpy.asarray, work.make_params(item.hidden, seed=seed))
    return init_state(params, _optimizer())


def _step(item: Work, size: Size) -> Unit:
    mesh = batch_mesh(work.BATCH)
    objective = teacher_objective(network(Architecture(work.WIDTH, item.hidden)))
    step = make_step(objective, _optimizer(), window=work.WINDOW, mesh=mesh)
    dataset = place(_corpus(work.make_data(work.BATCH)), mesh)
    order = np.tile(np.arange(work.BATCH, dtype=np.int32), size.steps)
    run = _training(step, place(_first_state(item), mesh), lambda: dataset, order)
    return Unit(run, None, {})


def _epoch(item: Work, size: Size) -> Unit:
    mesh = batch_mesh(work.BATCH)
    step = make_step(_distillation(item), _optimizer(), window=work.WINDOW, mesh=mesh)
    dataset = place(_corpus(work.make_data(size.windows)), mesh)
    teacher = work.make_params(work.TEACHER)
    distilled = [dataset]

    def make_targets() -> None:
        targets = head_outputs(
            network(Architecture(work.WIDTH, work.TEACHER)),
            teacher,
            dataset,
            window=work.WINDOW,
            batch_size=BATCH_SIZE,
        )
        distilled[0] = dataset.replace(targets=place(jax.numpy.asarray(targets), mesh))

    order = np.random.default_rng(work.SEED).permutation(size.windows)
    state = place(_first_state(item), mesh)
    run = _training(step, state, lambda: distilled[0], order.astype(np.int32))
    return Unit(run, make_targets, {})


def _training(
    step: Step,
    state: TrainState,
    dataset: Callable[[], WindowDataset],
    order: np.ndarray,
    batch: int | None = None,
) -> Callable[[], None]:
    """An epoch over windows in this order, each call going on where the last ended."""
    states = [state]

    def run() -> None:
        for index, weight in padded_batches(order, batch or work.BATCH):
            states[0] = step(states[0], dataset(), index, weight)
        jax.block_until_ready(states[0])

    return run


def _series(item: Work, size: Size) -> Unit:
    data, gaussian = work.make_data(size.series), Gaussian(*work.make_whitening())
    model = _model(item)

    def run() -> np.ndarray:
        return score_scaled(
            model,
            gaussian,
            data.rows,
            data.starts,
            window=work.WINDOW,
            batch_size=BATCH_SIZE,
        )

    return Unit(run, None, {})


def _window(item: Work, size: Size) -> Unit:
    """One window from numpy to numpy, with the parameters on the device."""
    data, model = work.make_data(1), _model(item)
    scores = jax.jit(point_scorer(model.kind, model.architecture))
    common = jax.device_put((model.params, Gaussian(*work.make_whitening())))
    window = data.rows[None, : work.WINDOW]

    def run() -> np.ndarray:
        for _ in range(size.calls):
            found = np.asarray(scores(common, window))
        return found

    return Unit(run, None, {})


def _stream(item: Work, size: Size) -> Unit:
    """Rows through a `StreamDetector`, on the backend that is faster here."""
    rows = work.make_stream(size.calls)
    backends = ["jax"]
    if importlib.util.find_spec("onnxruntime"):
        backends.append("onnxruntime")
    runs = [_following(item, backend, rows) for backend in backends]
    best = work.fastest(runs)
    return Unit(runs[best], None, {"backend": backends[best]})


def _following(item: Work, backend: str, rows: np.ndarray) -> Callable[[], float]:
    with tempfile.TemporaryDirectory() as folder:
        save_detector(Path(folder) / "detector", _detector(item))
        stream = open_stream(Path(folder) / "detector", backend=backend)

    def run() -> float:
        # Once the first window is full each row costs one.
        for row in rows[work.WINDOW - 1 :]:
            found = stream.update(row)
        return found.score

    for row in rows[: work.WINDOW - 1]:
        stream.update(row)
    return run


def _detector(item: Work) -> Detector:
    """A detector of one entity whose scores never reach τ, as in quiet operation."""
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
    step = make_step(_distillation(item), _optimizer(), window=work.WINDOW)
    together = make_population_step(lambda hyper: step, mesh)
    everyone = np.ones(item.members, bool)
    dataset = place(_taught(size), mesh)
    members = [_first_state(item, seed) for seed in range(item.members)]
    states = [divide(stack_members(members), mesh)]
    batches = [
        list(padded_batches(order, item.batch or work.BATCH))
        for order in _orders(item, size)
    ]

    def run() -> None:
        for batch in zip(*batches, strict=True):
            index, weight = (np.stack(parts) for parts in zip(*batch, strict=True))
            states[0] = together(states[0], (), dataset, index, weight, everyone)
        jax.block_until_ready(states[0])

    return Unit(run, None, {})


def _one_after_the_other(item: Work, size: Size) -> Unit:
    mesh = batch_mesh(item.batch or work.BATCH)
    step = make_step(_distillation(item), _optimizer(), window=work.WINDOW, mesh=mesh)
    dataset = place(_taught(size), mesh)
    runs = [
        _training(
            step,
            place(_first_state(item, seed), mesh),
            lambda: dataset,
            order,
            item.batch,
        )
        for seed, order in enumerate(_orders(item, size))
    ]

    def run() -> None:
        for member in runs:
            member()

    return Unit(run, None, {})


def _orders(item: Work, size: Size) -> list[np.ndarray]:
    """Each member's own order of the windows."""
    return [
        np.random.default_rng(seed).permutation(size.windows).astype(np.int32)
        for seed in range(item.members)
    ]


def _distillation(item: Work) -> Objective:
    """Eq. 2 at T = 1."""
    return student_objective(
        network(Architecture(work.WIDTH, item.hidden)),
        network(Architecture(work.WIDTH, work.TEACHER)),
        alpha=work.ALPHA,
        temperature=1.0,
        temperature_mode="output",
    )


def _corpus(data: Data) -> WindowDataset:
    rows, starts = jax.numpy.asarray(data.rows), data.starts.astype(np.int32)
    return WindowDataset(rows, jax.numpy.asarray(starts))


def _taught(size: Size) -> WindowDataset:
    """A corpus with targets whose values don't matter to the time."""
    shape = (size.windows, work.WINDOW, work.WIDTH)
    targets = np.random.default_rng(work.SEED).random(shape, np.float32)
    dataset: WindowDataset = _corpus(work.make_data(size.windows))
    distilled: WindowDataset = dataset.replace(targets=jax.numpy.asarray(targets))
    return distilled


def _model(item: Work) -> ResidualModel:
    shape = Architecture(work.WIDTH, item.hidden)
    return ResidualModel("autoencoder", work.make_params(item.hidden), shape)
