"""Training jobs: what a network trains on, what it minimises, and one job's training.

`teacher_training` and `student_training` turn settings into a `Training`. `train_alone`
trains one; `kdjax.experiment.populations` trains many side by side. Both use the same
windows in the same order.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from rich.console import Console

from kdjax.data.augment import augment_rows
from kdjax.data.prepared import Prepared, is_large, training_windows, windows_source
from kdjax.data.windowing import WindowSource, has_missing
from kdjax.errors import ConfigError
from kdjax.experiment.workdir import append_line, cut_lines
from kdjax.io.progress import progress_bar
from kdjax.io.signals import signals_held
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.model import Params
from kdjax.models.residual import NETWORK, ResidualModel, component, components_of
from kdjax.training import hosts
from kdjax.training.batching import (
    BatchSource,
    WindowDataset,
    disk_batches,
    memory_batches,
)
from kdjax.training.loop import Fitted, Hooks, Start, TrainingProgress, fit, resume
from kdjax.training.sharding import place, training_mesh
from kdjax.training.steps import (
    LossFunction,
    TrainState,
    init_state,
    make_optimizer,
    make_source_validate,
    make_step,
    make_validate,
    student_loss,
    teacher_loss,
    validation_loss,
)
from kdjax.training.targets import (
    Distillation,
    ScoreFunction,
    TargetCache,
    check_cacheable,
    compute_targets,
    target_shape,
)

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]

# Augmented training data by the identity of the original and the number of copies.
AugmentedCache = dict[tuple[int, int], "TrainingData"]

# Each random stream of a run is the seed's key folded with one of these.
TEACHER_INIT, STUDENT_INIT, TEACHER_ORDER, STUDENT_ORDER = range(4)

# α and T of Eq. 2 at the first step and after the last.
SCHEDULE = ("alpha", "alpha_end", "temperature", "temperature_end")


class TrainingData(NamedTuple):
    """Rows and windows that networks train on.

    Windows that are read from disk are in `sources`, for training and validation; then
    `rows` is empty, and `fit` and `validation` number the windows.
    """

    rows: np.ndarray  # [N, D] float32, scaled
    fit: np.ndarray  # [M] first rows of the windows to train on
    validation: np.ndarray  # [V] first rows of the windows to validate on
    window: int  # L
    share: float  # of the config's epochs, for the steps that `data.stride` gives
    missing: bool  # whether rows have NaN cells
    sources: tuple[WindowSource, WindowSource] | None = None
    recorded: int | None = None  # first windows that are not augmented; None: all


class Training(NamedTuple):
    """One training job: everything that decides the network's parameters."""

    name: str  # in the log and below `checkpoints/`
    architecture: Architecture
    training_data: TrainingData
    seed: int
    init: int  # random stream of the initial parameters
    order: int  # random stream of the order of windows
    epochs: int  # maximum
    patience: int | None  # of early stopping; None to use all epochs
    settings: Mapping[str, Any]  # the config's `train`
    distillation: Distillation | None = None  # None without a teacher
    first: Params | None = None  # parameters to start from instead of random ones

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        batches = math.ceil(len(self.training_data.fit) / self.settings["batch_size"])
        return int(self.epochs * batches)


# From settings to jobs.


def architecture(settings: Settings, name: str, *, width: int) -> Architecture:
    """The architecture of `teacher` or `student` for D = `width` channels."""
    hidden = tuple(settings[name]["hidden"])
    return Architecture(width, hidden, **settings["model"])


def has_network(settings: Settings, name: str) -> bool:
    """Whether `teacher` or `student` has a network to train."""
    return NETWORK in settings[name]["components"]


def is_distilled(distill: Settings) -> bool:
    """Whether α is above 0 at any step."""
    return bool(distill["alpha"] > 0 or (distill["alpha_end"] or 0) > 0)


def teacher_seed(settings: Settings) -> int:
    """The teacher's own seed, or the run's."""
    seed = settings["teacher"]["seed"]
    return int(settings["seed"] if seed is None else seed)


def training_stride(prepared: Prepared, data: Settings) -> tuple[int, float]:
    """Stride of the training windows, and the share of epochs (see `TrainingData`).

    With few rows the stride is 1, for as many steps as with `data.stride`.
    """
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    if data["train_stride"] or rows >= data["dense_below"]:
        return int(data["train_stride"] or data["stride"]), 1.0
    return 1, 1 / data["stride"]


def make_training_data(prepared: Prepared, data: Settings) -> TrainingData:
    """Training and validation windows of a data set by the `data` settings."""
    stride, share = training_stride(prepared, data)
    if is_large(prepared, data["memory_bytes"]):
        source = windows_source(prepared, "fit", stride=stride)
        held_out = windows_source(prepared, "validation", stride=data["stride"])
        return TrainingData(
            rows=np.empty((0, len(prepared.channels)), np.float32),
            fit=np.arange(source.windows),
            validation=np.arange(held_out.windows),
            window=prepared.window,
            share=share,
            missing=source.missing,
            sources=(source, held_out),
        )
    rows, starts = training_windows(prepared, "fit", stride=stride)
    _, validation = training_windows(prepared, "validation", stride=data["stride"])
    return TrainingData(
        rows, starts, validation, prepared.window, share, has_missing(rows)
    )


def augmented_data(
    training_data: TrainingData, copies: int, known: AugmentedCache | None = None
) -> TrainingData:
    """Training data with augmented copies of its rows, for as many steps.

    The copies don't depend on the seed, so that targets are computed once for all
    students. `known` caches the result.
    """
    if not copies:
        return training_data
    known = {} if known is None else known
    key = (id(training_data), copies)
    if key in known:
        return known[key]
    if training_data.sources is not None:
        raise ConfigError(
            f"distill.augmented_copies={copies} copies rows in memory, and these stay on "
            "disk: set it to 0, or raise data.memory_bytes."
        )
    rows, starts = training_data.rows, training_data.fit
    pieces = [
        augment_rows(rows, window=training_data.window, seed=i) for i in range(copies)
    ]
    shifted = [starts + i * len(rows) for i in range(copies + 1)]
    known[key] = training_data._replace(
        rows=np.concatenate([rows, *pieces]),
        fit=np.concatenate(shifted).astype(starts.dtype),
        share=training_data.share / (copies + 1),
        recorded=len(starts),
    )
    return known[key]


def make_distillation(
    settings: Settings,
    teacher: ResidualModel | None,
    scorers: tuple[ScoreFunction, ...] = (),
    weights: tuple[float, ...] | None = None,
) -> Distillation:
    """The distillation of the settings.

    Without `distill.weights` the teacher's first component is distilled. `scorers` are
    the teachers if the target is `scores`; `weights` replaces the config's for them.
    """
    distill = settings["distill"]
    if weights is None:
        weights = tuple(distill["weights"])
    if teacher is not None and not weights:
        teacher = component(teacher, components_of(teacher.kind)[0])
    fields = (*SCHEDULE, "temperature_mode", "target", "cache_bytes")
    return Distillation(
        teacher=teacher,
        weights=weights,
        scorers=scorers,
        batch_size=settings["detection"]["batch_size"],
        **{field: distill[field] for field in fields},
    )


def teacher_training(
    training_data: TrainingData,
    settings: Settings,
    *,
    name: str = "teacher",
    first: Params | None = None,
) -> Training:
    """The teacher's job, which stops early."""
    teacher = settings["teacher"]
    return Training(
        name,
        architecture(settings, "teacher", width=training_data.rows.shape[1]),
        training_data,
        seed=teacher_seed(settings),
        init=TEACHER_INIT,
        order=TEACHER_ORDER,
        epochs=math.ceil(training_data.share * teacher["epochs"]),
        patience=teacher["patience"],
        settings=settings["train"],
        first=first,
    )


def student_training(
    training_data: TrainingData,
    settings: Settings,
    *,
    name: str,
    teacher: ResidualModel | None,
    scorers: tuple[ScoreFunction, ...] = (),
    weights: tuple[float, ...] | None = None,
    first: Params | None = None,
    known: AugmentedCache | None = None,
) -> Training:
    """A student's job, which uses all its epochs.

    Without teacher and scorers, or with α = 0, the student is trained on the data alone.
    `scorers` and `weights` as in `make_distillation`; `known` caches augmented data.
    """
    distill = settings["distill"]
    distillation = None
    if (teacher is not None or scorers) and is_distilled(distill):
        distillation = make_distillation(settings, teacher, scorers, weights)
        training_data = augmented_data(
            training_data, distill["augmented_copies"], known
        )
    return Training(
        name,
        architecture(settings, "student", width=training_data.rows.shape[1]),
        training_data,
        seed=settings["seed"],
        init=STUDENT_INIT,
        order=STUDENT_ORDER,
        epochs=math.ceil(training_data.share * settings["student"]["epochs"]),
        patience=None,
        settings=settings["train"],
        distillation=distillation,
        first=first,
    )


# Parts of a job.


def first_state(training: Training) -> TrainState:
    """The state before the first step."""
    key = jax.random.key(training.seed)
    net = network(training.architecture)
    params = training.first or net.init(jax.random.fold_in(key, training.init))
    return init_state(params, make_job_optimizer(training))


def order_key(training: Training) -> Array:
    """The key of the order of windows in each epoch."""
    return jax.random.fold_in(jax.random.key(training.seed), training.order)


def make_objective(training: Training, **schedule: Any) -> LossFunction:
    """The job's loss; `schedule` replaces α and T, for traced numbers."""
    net, distillation = network(training.architecture), training.distillation
    if distillation is None:
        return teacher_loss(net)
    fields = {name: getattr(distillation, name) for name in SCHEDULE} | schedule
    return student_loss(
        net,
        distillation.model,
        temperature_mode=distillation.temperature_mode,
        target=distillation.target,
        **fields,
    )


def make_job_optimizer(training: Training, **rates: Any) -> Any:
    """The job's optimizer; `rates` replaces its numbers, for traced ones."""
    train = training.settings
    fields = ("learning_rate", "schedule", "warmup_steps", "clip_norm")
    own = {"steps": training.steps, **{field: train[field] for field in fields}}
    return make_optimizer(**(own | rates))


def recorded_mask(training_data: TrainingData) -> np.ndarray:
    """`[M]`, 1 for windows as recorded, 0 for augmented ones."""
    windows, recorded = len(training_data.fit), training_data.recorded
    limit = windows if recorded is None else recorded
    return (np.arange(windows) < limit).astype(np.float32)


def target_bytes(training: Training) -> int:
    """Size of the targets of all windows to train on; 0 without distillation."""
    distillation, data = training.distillation, training.training_data
    if distillation is None:
        return 0
    shape = target_shape(distillation, training.architecture, data.window)
    return len(data.fit) * math.prod(shape) * 4


def job_targets(training: Training, outputs: TargetCache) -> np.ndarray:
    """Targets of all windows to train on, `[M, …]`; `outputs` caches them."""
    distillation, data = training.distillation, training.training_data
    assert distillation is not None
    shape = target_shape(distillation, training.architecture, data.window)
    key = (*distillation.source, shape, id(data))
    if key not in outputs:
        dataset = WindowDataset(
            jnp.asarray(data.rows), jnp.asarray(data.fit), missing=data.missing
        )
        outputs[key] = compute_targets(
            distillation,
            dataset,
            window=data.window,
            student=training.architecture,
            recorded=len(data.fit) if data.recorded is None else data.recorded,
        )
    return outputs[key]


# One job's training.


def checkpoint_folder(workdir: Path, name: str) -> Path:
    """The folder of a job's checkpoints."""
    return workdir / "checkpoints" / name


def resume_job(training: Training, workdir: Path) -> Start:
    """The job's newest checkpoint, or its start."""
    return resume(checkpoint_folder(workdir, training.name), first_state(training))


def train_alone(
    training: Training,
    workdir: Path,
    console: Console,
    *,
    outputs: TargetCache | None = None,
) -> Fitted:
    """The parameters of lowest validation loss, as numpy arrays, and the progress.

    Resumes from the newest checkpoint. The devices of all hosts share each batch.

    Raises:
        TrainingError: a loss was not finite.
        ConfigError: the hosts' shares of a batch can't be equal.
    """
    name, train = training.name, training.settings
    start = resume_job(training, workdir)
    cut_lines(workdir, name, start.progress.step)
    if start.progress.done:
        console.print(f"{name}: trained already, {progress_text(start.progress)}")
        return Fitted(on_host(start.best), start.progress)
    if start.progress.step:
        console.print(f"{name}: goes on after step {start.progress.step}")
    windows, distillation = len(training.training_data.fit), training.distillation
    mesh = training_mesh(train["batch_size"])
    batch_source, validate = _make_sources(training, mesh, outputs)
    # A device has only its own windows, so such losses take one device.
    is_whole = distillation is not None and distillation.needs_whole_batches
    total = windows * training.epochs - start.progress.step * train["batch_size"]
    # Of several processes one alone can't save.
    alone = hosts.processes() == 1
    with signals_held(alone), progress_bar(console, name, total) as advance:
        fitted = fit(
            start._replace(
                state=place(start.state, mesh), best=place(start.best, mesh)
            ),
            make_step(
                make_objective(training),
                make_job_optimizer(training),
                window=training.training_data.window,
                teacher=distillation.model if distillation else None,
                steps=training.steps,
                mesh=None if is_whole else mesh,
            ),
            batch_source,
            validate,
            epochs=training.epochs,
            patience=training.patience,
            directory=checkpoint_folder(workdir, name),
            checkpoint_seconds=train["checkpoint_seconds"],
            log_every=train["log_every"],
            hooks=Hooks(
                log=lambda line: append_line(workdir, {"phase": name, **line}),
                advance=advance,
            ),
        )
    console.print(f"{name}: {progress_text(fitted.progress)}")
    return fitted._replace(params=on_host(fitted.params))


def progress_text(progress: TrainingProgress) -> str:
    """The progress in words."""
    if progress.bad_step:
        return f"its loss was not finite at step {progress.bad_step:,}"
    return (
        f"{progress.step:,} steps, lowest validation loss {progress.best_loss:.6f} after "
        f"epoch {progress.best_epoch}"
    )


def on_host(params: Params) -> Params:
    """Parameters as numpy arrays."""
    found: Params = jax.device_get(params)
    return found


def _make_sources(
    training: Training, mesh: Mesh | None, outputs: TargetCache | None
) -> tuple[BatchSource, Callable[[Params], float]]:
    """The batches to train on and the validation function."""
    data, distillation = training.training_data, training.distillation
    batch_size = training.settings["batch_size"]
    loss = validation_loss(network(training.architecture))
    if data.sources is not None:
        source, held_out = data.sources
        if distillation is not None:
            check_cacheable(distillation, target_bytes(training))
        batches = disk_batches(
            source,
            seed=(training.seed, training.order),
            batch_size=batch_size,
            teacher=_placed_teacher(distillation, mesh) if distillation else None,
            mesh=mesh,
        )
        return batches, make_source_validate(
            loss, held_out, batch_size=batch_size, mesh=mesh
        )
    rows = jnp.asarray(data.rows)
    dataset, validation = (
        place(WindowDataset(rows, jnp.asarray(starts), missing=data.missing), mesh)
        for starts in (data.fit, data.validation)
    )
    if data.recorded is not None:
        recorded = place(jnp.asarray(recorded_mask(data)), mesh)
        dataset = dataset.replace(recorded=recorded)
    if distillation is not None:
        size = (mesh.size if mesh else 1) * target_bytes(training)
        if size > distillation.cache_bytes:
            check_cacheable(distillation, size)
            logger.warning(
                "the teacher's targets would take %.1f GB, more than "
                "distill.cache_bytes: each step computes its own",
                size / 1e9,
            )
            dataset = dataset.replace(teacher=_placed_teacher(distillation, mesh))
        else:
            targets = job_targets(training, {} if outputs is None else outputs)
            dataset = dataset.replace(targets=place(jnp.asarray(targets), mesh))
    return memory_batches(
        dataset, key=order_key(training), batch_size=batch_size
    ), make_validate(
        loss, validation, window=data.window, batch_size=batch_size, mesh=mesh
    )


def _placed_teacher(distillation: Distillation, mesh: Mesh | None) -> Params:
    """The teacher's parameters, for targets that are computed in each step."""
    assert distillation.teacher is not None
    placed: Params = place(distillation.teacher.params, mesh)
    return placed
