"""Training jobs: the data of a network, its objective, and the training of one job.

`teacher_job` and `student_job` turn settings into a `TrainingJob`. `train_job` trains
one; `kdjax.experiment.populations` trains many at once. Both use the same windows in
the same order.
"""

import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from rich.console import Console

from kdjax.config import Settings
from kdjax.data.disturb import augment_rows
from kdjax.data.prepared import Prepared, is_large, training_windows, windows_source
from kdjax.data.windowing import WindowSource, has_missing
from kdjax.errors import ConfigError, counted
from kdjax.experiment.workdir import append_line, cut_lines
from kdjax.io.messages import progress_bar
from kdjax.io.signals import signals_held
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.model import Model, Params, Places
from kdjax.models.residual import NETWORK, ResidualModel, component, components_of
from kdjax.training import hosts, steps, targets
from kdjax.training.batching import (
    BatchSource,
    WindowDataset,
    disk_batches,
    memory_batches,
)
from kdjax.training.loop import Fitted, Start, TrainingProgress, fit, resume
from kdjax.training.sharding import place, training_mesh
from kdjax.training.targets import Distillation, ScoreFunction, TargetCache

logger = logging.getLogger(__name__)


# Augmented training data by the identity of the original and the number of copies.
AugmentedCache = dict[tuple[int, int], "TrainingData"]

# Each random stream of a run is the seed's key folded with one of these.
TEACHER_INIT, STUDENT_INIT, TEACHER_ORDER, STUDENT_ORDER = range(4)


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
    context: Places = ()  # indices of channels that losses leave out
    sources: tuple[WindowSource, WindowSource] | None = None
    recorded: int | None = None  # first windows that are not augmented; None: all


class DistillForm(NamedTuple):
    """The arguments of `student_loss` that decide its form."""

    teacher: Model
    temperature_mode: str
    target: str


class TrainingJob(NamedTuple):
    """All data and settings that determine a network's parameters."""

    name: str  # in the log and below `checkpoints/`
    architecture: Architecture
    data: TrainingData
    seed: int
    init: int  # random stream of the initial parameters
    order: int  # random stream of the order of windows
    epochs: int  # maximum
    patience: int | None  # of early stopping; None to use all epochs
    train: Settings  # the config's `train`
    distillation: Distillation | None = None  # None without a teacher
    first: Params | None = None  # parameters to start from instead of random ones

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        batches = math.ceil(len(self.data.fit) / self.train["batch_size"])
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
    """Whether α is above 0."""
    return bool(distill["alpha"] > 0)


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
    window, context = prepared.window, prepared.context
    rows, sources = np.empty((0, len(prepared.channels)), np.float32), None
    if is_large(prepared, data["memory_bytes"]):
        source = windows_source(prepared, "fit", stride=stride)
        held_out = windows_source(prepared, "validation", stride=data["stride"])
        fit, validation = np.arange(source.windows), np.arange(held_out.windows)
        missing, sources = source.missing, (source, held_out)
    else:
        rows, fit = training_windows(prepared, "fit", stride=stride)
        _, validation = training_windows(prepared, "validation", stride=data["stride"])
        missing = has_missing(rows)
    return TrainingData(rows, fit, validation, window, share, missing, context, sources)


def _augmented(data: TrainingData, copies: int, known: AugmentedCache) -> TrainingData:
    """Training data with augmented copies of its rows, for as many steps.

    The copies don't depend on the seed, so that targets are computed once for all
    students.
    """
    key = (id(data), copies)
    if not copies:
        return data
    if key in known:
        return known[key]
    if data.sources is not None:
        raise ConfigError(
            f"distill.augmented_copies={copies} copies rows in memory, but these stay on "
            "disk: set it to 0, or raise data.memory_bytes."
        )
    pieces = [
        augment_rows(data.rows, window=data.window, seed=i) for i in range(copies)
    ]
    shifted = [data.fit + i * len(data.rows) for i in range(copies + 1)]
    known[key] = data._replace(
        rows=np.concatenate([data.rows, *pieces]),
        fit=np.concatenate(shifted).astype(data.fit.dtype),
        share=data.share / (copies + 1),
        recorded=len(data.fit),
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
    fields = ("alpha", "temperature", "temperature_mode", "target", "cache_bytes")
    return Distillation(
        teacher=teacher,
        weights=weights,
        scorers=scorers,
        batch_size=settings["detection"]["batch_size"],
        **{field: distill[field] for field in fields},
    )


def teacher_job(
    data: TrainingData,
    settings: Settings,
    *,
    name: str = "teacher",
    first: Params | None = None,
) -> TrainingJob:
    """The teacher's job, which stops early."""
    teacher = settings["teacher"]
    return TrainingJob(
        name,
        architecture(settings, "teacher", width=data.rows.shape[1]),
        data,
        seed=teacher_seed(settings),
        init=TEACHER_INIT,
        order=TEACHER_ORDER,
        epochs=math.ceil(data.share * teacher["epochs"]),
        patience=teacher["patience"],
        train=settings["train"],
        first=first,
    )


def student_job(
    data: TrainingData,
    settings: Settings,
    *,
    name: str,
    teacher: ResidualModel | None,
    scorers: tuple[ScoreFunction, ...] = (),
    weights: tuple[float, ...] | None = None,
    first: Params | None = None,
    known: AugmentedCache | None = None,
) -> TrainingJob:
    """A student's job, which uses all its epochs.

    Without teacher and scorers, or with α = 0, the student is trained on the data only.
    `scorers` and `weights` as in `make_distillation`; `known` caches augmented data.
    """
    distill, distillation = settings["distill"], None
    if (teacher is not None or scorers) and is_distilled(distill):
        distillation = make_distillation(settings, teacher, scorers, weights)
        known = {} if known is None else known
        data = _augmented(data, distill["augmented_copies"], known)
    return TrainingJob(
        name,
        architecture(settings, "student", width=data.rows.shape[1]),
        data,
        seed=settings["seed"],
        init=STUDENT_INIT,
        order=STUDENT_ORDER,
        epochs=math.ceil(data.share * settings["student"]["epochs"]),
        patience=None,
        train=settings["train"],
        distillation=distillation,
        first=first,
    )


# What a job consists of.


def first_state(job: TrainingJob) -> steps.TrainState:
    """The state before the first step."""
    key = jax.random.fold_in(jax.random.key(job.seed), job.init)
    params = job.first or network(job.architecture).init(key)
    return steps.init_state(params, make_job_optimizer(job))


def first_states(group: Sequence[TrainingJob]) -> list[steps.TrainState]:
    """`first_state` of each job; those of the same parameters are drawn once."""
    drawn: dict[Any, Params] = {}
    states = []
    for job in group:
        key = (job.architecture, job.seed, job.init, id(job.first))
        state = first_state(job._replace(first=drawn.get(key, job.first)))
        drawn[key] = state.params
        states.append(state)
    return states


def order_key(job: TrainingJob) -> Array:
    """The key of the order of windows in each epoch."""
    return jax.random.fold_in(jax.random.key(job.seed), job.order)


def make_objective(job: TrainingJob) -> steps.LossFunction:
    """The job's loss."""
    own = job.distillation
    numbers = {"alpha": own.alpha, "temperature": own.temperature} if own else {}
    return _objective(job.architecture, distill_form(job), numbers)


def distill_form(job: TrainingJob) -> DistillForm | None:
    """What of a distillation decides the form of the loss; None without one."""
    own = job.distillation
    return DistillForm(own.model, own.temperature_mode, own.target) if own else None


def _objective(
    architecture: Architecture, distill: DistillForm | None, numbers: Mapping[str, Any]
) -> steps.LossFunction:
    net = network(architecture)
    if distill is None:
        return steps.teacher_loss(net)
    return steps.student_loss(net, **distill._asdict(), **numbers)


def make_job_optimizer(job: TrainingJob) -> Any:
    """The job's optimizer."""
    fields = ("learning_rate", "schedule", "warmup_steps", "clip_norm")
    rates = {field: job.train[field] for field in fields}
    return steps.make_optimizer(steps=job.steps, **rates)


@functools.lru_cache(maxsize=8)
def member_step(
    architecture: Architecture, distill: DistillForm | None, schedule: str, window: int
) -> Callable[[Mapping[str, Any]], steps.Step]:
    """Makes a member's step of its numbers, which may be traced; the same for equal
    arguments, so that populations of one form are compiled once.
    """

    def step_of(hyper: Mapping[str, Any]) -> steps.Step:
        rates = dict(hyper)
        numbers = {name: rates.pop(name) for name in ("alpha", "temperature")}
        return steps.make_step(
            _objective(architecture, distill, numbers),
            steps.make_optimizer(schedule=schedule, **rates),
            window=window,
        )

    return step_of


def recorded_mask(data: TrainingData) -> np.ndarray:
    """`[M]`, 1 for windows as recorded, 0 for augmented ones."""
    limit = len(data.fit) if data.recorded is None else data.recorded
    return (np.arange(len(data.fit)) < limit).astype(np.float32)


def target_bytes(job: TrainingJob) -> int:
    """Size of the targets of all windows to train on; 0 without distillation."""
    if job.distillation is None:
        return 0
    shape = targets.target_shape(job.distillation, job.architecture, job.data.window)
    return len(job.data.fit) * math.prod(shape) * 4


def job_targets(job: TrainingJob, outputs: TargetCache) -> np.ndarray:
    """Targets of all windows to train on, `[M, …]`; `outputs` caches them."""
    distillation, data = job.distillation, job.data
    assert distillation is not None
    shape = targets.target_shape(distillation, job.architecture, data.window)
    key = (*distillation.source, shape, id(data))
    if key not in outputs:
        rows, starts = jnp.asarray(data.rows), jnp.asarray(data.fit)
        outputs[key] = targets.compute_targets(
            distillation,
            WindowDataset(rows, starts, missing=data.missing, context=data.context),
            window=data.window,
            student=job.architecture,
            recorded=len(data.fit) if data.recorded is None else data.recorded,
        )
    return outputs[key]


# One job's training.


def checkpoint_folder(workdir: Path, name: str) -> Path:
    """The folder of a job's checkpoints."""
    return workdir / "checkpoints" / name


def names_digest(names: Iterable[str]) -> str:
    """Equal for jobs of the same names, for the name of a folder."""
    text = json.dumps(sorted(names))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def resume_job(job: TrainingJob, workdir: Path) -> Start:
    """The job's newest checkpoint, or its start."""
    return resume(checkpoint_folder(workdir, job.name), first_state(job))


def train_job(
    job: TrainingJob,
    workdir: Path,
    console: Console,
    *,
    outputs: TargetCache | None = None,
) -> Fitted:
    """The parameters of lowest validation loss, as numpy arrays, and the progress.

    Resumes from the newest checkpoint. The devices of all hosts share each batch.
    TrainingError if a loss was not finite, ConfigError if the hosts' shares can't be
    equal.
    """
    name, train, distillation = job.name, job.train, job.distillation
    start = resume_job(job, workdir)
    cut_lines(workdir, name, start.progress.step)
    if start.progress.done:
        console.print(f"{name}: already trained, {progress_text(start.progress)}")
        return Fitted(jax.device_get(start.best), start.progress)
    if start.progress.step:
        console.print(f"{name}: resuming after step {start.progress.step}")
    mesh = training_mesh(train["batch_size"])
    batch_source, held_out = _make_sources(job, mesh, outputs)
    # Then a window's loss depends on the others of its batch: one device needs all.
    is_whole = distillation is not None and distillation.target == "scores"
    total = len(job.data.fit) * job.epochs - start.progress.step * train["batch_size"]
    # One of several processes can't save without the others.
    alone = hosts.processes() == 1
    with signals_held(alone), progress_bar(console, name, total) as advance:
        fitted = fit(
            start._replace(
                state=place(start.state, mesh), best=place(start.best, mesh)
            ),
            steps.make_step(
                make_objective(job),
                make_job_optimizer(job),
                window=job.data.window,
                teacher=distillation.model if distillation else None,
                mesh=None if is_whole else mesh,
            ),
            batch_source,
            steps.make_validate(
                steps.validation_loss(network(job.architecture)),
                held_out,
                window=job.data.window,
                mesh=mesh,
            ),
            epochs=job.epochs,
            patience=job.patience,
            directory=checkpoint_folder(workdir, name),
            checkpoint_seconds=train["checkpoint_seconds"],
            log_every=train["log_every"],
            log=lambda line: append_line(workdir, {"phase": name, **line}),
            advance=advance,
        )
    console.print(f"{name}: {progress_text(fitted.progress)}")
    return fitted._replace(params=jax.device_get(fitted.params))


def progress_text(progress: TrainingProgress) -> str:
    """The progress as text."""
    if progress.bad_step:
        return f"its loss was not finite at step {progress.bad_step:,}"
    return (
        f"{counted(progress.step, 'step')}, lowest validation loss {progress.best_loss:.6f} after "
        f"epoch {progress.best_epoch}"
    )


def _make_sources(
    job: TrainingJob, mesh: Mesh | None, outputs: TargetCache | None
) -> tuple[BatchSource, BatchSource]:
    """The batches to train on and those to validate on."""
    data, distillation = job.data, job.distillation
    batch_size = job.train["batch_size"]
    size = target_bytes(job) * (mesh.size if mesh and data.sources is None else 1)
    teacher: Params | None = None  # placed, if each step computes its own targets
    if distillation and (data.sources or size > distillation.cache_bytes):
        if distillation.target not in ("reconstruction", "errors"):
            # A step can't compute these targets itself.
            raise ConfigError(
                f"distill.target={distillation.target!r} computes the targets of all "
                f"windows once. They need {size / 1e6:,.0f} MB, more than "
                "distill.cache_bytes allows, or their rows stay on disk: raise "
                "distill.cache_bytes or data.memory_bytes, or use fewer windows with "
                "data.train_stride."
            )
        assert distillation.teacher is not None
        teacher = place(distillation.teacher.params, mesh)
    if data.sources is not None:
        source, held_out = data.sources
        on_disk = functools.partial(disk_batches, batch_size=batch_size, mesh=mesh)
        seed = (job.seed, job.order)
        return on_disk(source, seed=seed, teacher=teacher), on_disk(held_out, seed=None)
    rows = jnp.asarray(data.rows)
    fields: dict[str, Any] = {"missing": data.missing, "context": data.context}
    dataset, validation = (
        place(WindowDataset(rows, jnp.asarray(starts), **fields), mesh)
        for starts in (data.fit, data.validation)
    )
    if data.recorded is not None:
        recorded = place(jnp.asarray(recorded_mask(data)), mesh)
        dataset = dataset.replace(recorded=recorded)
    if teacher is not None:
        logger.warning(
            "the teacher's targets would need %.1f GB, more than distill.cache_bytes: "
            "each step computes its own",
            size / 1e9,
        )
        dataset = dataset.replace(teacher=teacher)
    elif distillation is not None:
        values = job_targets(job, {} if outputs is None else outputs)
        dataset = dataset.replace(targets=place(jnp.asarray(values), mesh))
    return (
        memory_batches(dataset, key=order_key(job), batch_size=batch_size),
        memory_batches(validation, key=None, batch_size=batch_size),
    )
