"""One network's training: what it needs, what it minimises and where it starts.

`teacher_training` and `student_training` say what a config asks for; a run trains them
one after the other (`kdjax.experiment.jobs`), a sweep many side by side (`kdjax.populations`). Both see the same windows in the same order.

A training by itself: its batches, its checkpoints, and one fit of the loop.
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
from kdjax.data.prepared import (
    Prepared,
    is_large,
    training_windows,
    windows_source,
)
from kdjax.data.windowing import WindowSource, has_missing
from kdjax.errors import ConfigError
from kdjax.experiment.workdir import append_line, cut_lines
from kdjax.io.progress import progress_bar
from kdjax.io.signals import signals_held
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.model import Params
from kdjax.models.residual import NETWORK, ResidualModel
from kdjax.training import hosts
from kdjax.training.batching import (
    BatchSource,
    WindowDataset,
    disk_batches,
    memory_batches,
)
from kdjax.training.loop import (
    Fitted,
    Hooks,
    Start,
    TrainingProgress,
    fit,
    resume,
)
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
    is_distilled,
    make_distillation,
    target_shape,
)

Settings = Mapping[str, Any]

# Grounds with disturbed copies, by the identity of their ground and the number of copies,
# for as long as the ground is held.
AugmentedCache = dict[tuple[int, int], "TrainingData"]

# Each random stream of a run is the seed's key folded with one of these.
TEACHER_INIT, STUDENT_INIT, TEACHER_ORDER, STUDENT_ORDER = range(4)


class TrainingData(NamedTuple):
    """The rows that a data set's networks learn from, the same for all of them.

    Attributes:
        rows: `[N, D]` float32, scaled.
        fit: `[M]` first rows of the windows to train on.
        validation: `[V]` first rows of the windows to validate on.
        window: L.
        share: of the config's epochs that come to as many steps as at `data.stride`.
        missing: whether rows have NaN cells.
        sound: how many of the windows to train on, the first ones, are as they were
            recorded; the others were disturbed on purpose. None: all.
        sources: of the windows to train and to validate on, where the rows are too many
            for the memory: `rows` then has none, and starts number the windows.
    """

    rows: np.ndarray
    fit: np.ndarray
    validation: np.ndarray
    window: int
    share: float
    missing: bool
    sources: tuple[WindowSource, WindowSource] | None = None
    recorded: int | None = None


class Training(NamedTuple):
    """All that decides what a network becomes.

    Attributes:
        name: in the log and below `checkpoints/`.
        architecture: of the network.
        ground: rows and windows.
        seed: decides first parameters and the order of windows.
        init: random stream of the first parameters.
        order: random stream of the order of windows.
        epochs: the most epochs.
        patience: of early stopping; None to use all epochs.
        settings: the config's `train`.
        lesson: of a taught student; None for a network that learns from data alone.
        first: parameters to start from instead of drawn ones.
    """

    name: str
    architecture: Architecture
    training_data: TrainingData
    seed: int
    init: int
    order: int
    epochs: int
    patience: int | None
    settings: Mapping[str, Any]
    distillation: Distillation | None = None
    first: Params | None = None

    @property
    def steps(self) -> int:
        """Steps if no epoch is saved."""
        batches = math.ceil(len(self.training_data.fit) / self.settings["batch_size"])
        return int(self.epochs * batches)


class TrainingStride(NamedTuple):
    """How often training looks at a row.

    Attributes:
        stride: of the training windows.
        share: of the config's epochs that come to as many steps as at `data.stride`.
    """

    stride: int
    share: float


def architecture(settings: Settings, name: str, *, width: int) -> Architecture:
    """The shape of `teacher` or `student` for D = `width` channels."""
    hidden = tuple(settings[name]["hidden"])
    return Architecture(width, hidden, **settings["model"])


def has_network(settings: Settings, name: str) -> bool:
    """Whether `teacher` or `student` has a network to train."""
    return NETWORK in settings[name]["components"]


def training_stride(prepared: Prepared, data: Mapping[str, Any]) -> TrainingStride:
    """The config's own stride; where rows are few 1, for as many steps as without."""
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    if data["train_stride"] or rows >= data["dense_below"]:
        return TrainingStride(int(data["train_stride"] or data["stride"]), 1.0)
    return TrainingStride(1, 1 / data["stride"])


def make_training_data(prepared: Prepared, data: Mapping[str, Any]) -> TrainingData:
    """The windows that `data` settings choose from a data set."""
    pace = training_stride(prepared, data)
    if is_large(prepared, data["memory_bytes"]):
        fit_source = windows_source(prepared, "fit", stride=pace.stride)
        held_out = windows_source(prepared, "validation", stride=data["stride"])
        return TrainingData(
            np.empty((0, len(prepared.channels)), np.float32),
            np.arange(fit_source.windows),
            np.arange(held_out.windows),
            prepared.window,
            pace.share,
            fit_source.missing,
            (fit_source, held_out),
        )
    rows, fit_starts = training_windows(prepared, "fit", stride=pace.stride)
    _, validation = training_windows(prepared, "validation", stride=data["stride"])
    return TrainingData(
        rows, fit_starts, validation, prepared.window, pace.share, has_missing(rows)
    )


def augmented_data(
    training_data: TrainingData, copies: int, known: AugmentedCache | None = None
) -> TrainingData:
    """The ground with so many disturbed copies of its rows, for as many steps.

    The copies are the same whatever the seed, so that a teacher answers once for all
    students. Taken from `known` where it is there, and left there.
    """
    if not copies:
        return training_data
    known = {} if known is None else known
    key = (id(training_data), copies)
    if key not in known:
        known[key] = _augmented_data(training_data, copies)
    return known[key]


def _augmented_data(training_data: TrainingData, copies: int) -> TrainingData:
    if training_data.sources is not None:
        raise ConfigError(
            f"distill.augmented_copies={copies} copies rows in memory, and these stay on "
            "disk: set it to 0, or raise data.memory_bytes."
        )
    rows = [training_data.rows]
    rows += [
        augment_rows(training_data.rows, window=training_data.window, seed=number)
        for number in range(copies)
    ]
    fit = [
        training_data.fit + number * len(training_data.rows)
        for number in range(copies + 1)
    ]
    return training_data._replace(
        rows=np.concatenate(rows),
        fit=np.concatenate(fit).astype(training_data.fit.dtype),
        share=training_data.share / (copies + 1),
        recorded=len(training_data.fit),
    )


def teacher_seed(settings: Settings) -> int:
    """The teacher's own seed, or the run's."""
    seed = settings["teacher"]["seed"]
    return int(settings["seed"] if seed is None else seed)


def teacher_training(
    training_data: TrainingData,
    settings: Settings,
    *,
    name: str = "teacher",
    first: Params | None = None,
) -> Training:
    """The teacher's training, which stops early."""
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
    """A student's training, which uses all its epochs.

    Args:
        ground: rows and windows.
        settings: of its run.
        name: of the training.
        teacher: that it learns from. Without one, and without scorers, it is a student
            of the data alone, which an α of 0 makes of any.
        scorers: that it learns from where the target is `scores`.
        weights: of the scorers, instead of the config's.
        first: parameters to start from.
        known: disturbed grounds that several students may share.
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


def first_state(training: Training) -> TrainState:
    """The state before the first step."""
    key = jax.random.key(training.seed)
    net = network(training.architecture)
    params = training.first or net.init(jax.random.fold_in(key, training.init))
    return init_state(params, optimizer_of(training))


def order_key(training: Training) -> Array:
    """Decides the order of the windows in each epoch."""
    return jax.random.fold_in(jax.random.key(training.seed), training.order)


def objective(training: Training) -> LossFunction:
    """What the training minimises."""
    net, distillation = network(training.architecture), training.distillation
    if distillation is None:
        return teacher_loss(net)
    return student_loss(
        net,
        distillation.model,
        alpha=distillation.alpha,
        temperature=distillation.temperature,
        temperature_mode=distillation.temperature_mode,
        target=distillation.target,
        alpha_end=distillation.alpha_end,
        temperature_end=distillation.temperature_end,
    )


def recorded_mask(training_data: TrainingData) -> np.ndarray:
    """1 for windows to train on that are as recorded, 0 for disturbed ones; `[M]`."""
    numbers = np.arange(len(training_data.fit))
    recorded = (
        len(numbers) if training_data.recorded is None else training_data.recorded
    )
    return (numbers < recorded).astype(np.float32)


def target_bytes(training: Training) -> int:
    """Size of the teachers' answers for all windows to train on; 0 without a lesson."""
    distillation, training_data = training.distillation, training.training_data
    if distillation is None:
        return 0
    shape = target_shape(distillation, training.architecture, training_data.window)
    return len(training_data.fit) * math.prod(shape) * 4


def job_targets(training: Training, outputs: TargetCache) -> np.ndarray:
    """The teachers' answers for all windows to train on, `[M, …]`.

    Taken from `outputs` where they are known, and left there.
    """
    distillation, training_data = training.distillation, training.training_data
    assert distillation is not None
    shape = target_shape(distillation, training.architecture, training_data.window)
    key = (*distillation.source, shape, id(training_data))
    if key not in outputs:
        dataset = WindowDataset(
            jnp.asarray(training_data.rows),
            jnp.asarray(training_data.fit),
            missing=training_data.missing,
        )
        outputs[key] = compute_targets(
            distillation,
            dataset,
            window=training_data.window,
            student=training.architecture,
            recorded=len(training_data.fit)
            if training_data.recorded is None
            else training_data.recorded,
        )
    return outputs[key]


def optimizer_of(training: Training) -> Any:
    """The optimizer of all its steps."""
    train = training.settings
    fields = ("learning_rate", "schedule", "warmup_steps", "clip_norm")
    return make_optimizer(
        steps=training.steps, **{field: train[field] for field in fields}
    )


logger = logging.getLogger(__name__)


def checkpoints(workdir: Path, name: str) -> Path:
    """Where a training's checkpoints are."""
    return workdir / "checkpoints" / name


def resume_job(training: Training, workdir: Path) -> Start:
    """Where a training stands: at its newest checkpoint, or at the start."""
    return resume(checkpoints(workdir, training.name), first_state(training))


def train_alone(
    training: Training,
    workdir: Path,
    console: Console,
    *,
    outputs: TargetCache | None = None,
) -> Fitted:
    """The parameters of lowest validation loss, as numpy arrays, and the course.

    Goes on where a killed process stopped. The devices of all hosts share each batch.

    Raises:
        TrainingError: a loss was not finite.
        ConfigError: the hosts' shares of a batch can't be equal.
    """
    start = resume_job(training, workdir)
    cut_lines(workdir, training.name, start.progress.step)
    if start.progress.done:
        said = progress_text(start.progress)
        console.print(f"{training.name}: trained already, {said}")
        return Fitted(on_host(start.best), start.progress)
    if start.progress.step:
        console.print(f"{training.name}: goes on after step {start.progress.step}")
    train, training_data = training.settings, training.training_data
    batch_size = train["batch_size"]
    outputs = {} if outputs is None else outputs
    mesh = training_mesh(batch_size)
    batch_source, validate = _feeding(training, mesh, outputs)
    # Devices that divide a batch know the others' sums only, not their windows.
    is_whole = (
        training.distillation is not None and training.distillation.needs_whole_batches
    )
    total = len(training_data.fit) * training.epochs - start.progress.step * batch_size
    # Of several processes one alone can't save.
    alone = hosts.processes() == 1
    with signals_held(alone), progress_bar(console, training.name, total) as advance:
        fitted = fit(
            start._replace(
                state=place(start.state, mesh), best=place(start.best, mesh)
            ),
            make_step(
                objective(training),
                optimizer_of(training),
                window=training_data.window,
                teacher=training.distillation.model if training.distillation else None,
                steps=training.steps,
                mesh=None if is_whole else mesh,
            ),
            batch_source,
            validate,
            epochs=training.epochs,
            patience=training.patience,
            directory=checkpoints(workdir, training.name),
            checkpoint_seconds=train["checkpoint_seconds"],
            log_every=train["log_every"],
            hooks=Hooks(
                log=lambda line: append_line(workdir, {"phase": training.name, **line}),
                advance=advance,
            ),
        )
    console.print(f"{training.name}: {progress_text(fitted.progress)}")
    return fitted._replace(params=on_host(fitted.params))


def progress_text(progress: TrainingProgress) -> str:
    """How far a training came, in words."""
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


def _feeding(
    training: Training, mesh: Mesh | None, outputs: TargetCache
) -> tuple[BatchSource, Callable[[Params], float]]:
    """The batches to train on, and the validation."""
    training_data, batch_size = training.training_data, training.settings["batch_size"]
    loss = validation_loss(network(training.architecture))
    if training_data.sources is not None:
        source, held_out = training_data.sources
        distillation = training.distillation
        if distillation is not None:
            check_cacheable(distillation, target_bytes(training))
        batch_source = disk_batches(
            source,
            seed=(training.seed, training.order),
            batch_size=batch_size,
            teacher=place(_params(distillation), mesh) if distillation else None,
            mesh=mesh,
        )
        return batch_source, make_source_validate(
            loss, held_out, batch_size=batch_size, mesh=mesh
        )
    dataset, validation = _corpora(training, mesh, outputs)
    batch_source = memory_batches(
        dataset, key=order_key(training), batch_size=batch_size
    )
    return batch_source, make_validate(
        loss, validation, window=training_data.window, batch_size=batch_size, mesh=mesh
    )


def _corpora(
    training: Training, mesh: Mesh | None, outputs: TargetCache
) -> tuple[WindowDataset, WindowDataset]:
    """The windows to train on, with what a teacher says of them, and to validate on."""
    training_data, distillation = training.training_data, training.distillation
    rows = jnp.asarray(training_data.rows)
    dataset, validation = (
        place(
            WindowDataset(rows, jnp.asarray(starts), missing=training_data.missing),
            mesh,
        )
        for starts in (training_data.fit, training_data.validation)
    )
    if training_data.recorded is not None:
        dataset = dataset.replace(
            recorded=place(jnp.asarray(recorded_mask(training_data)), mesh)
        )
    if distillation is None:
        return dataset, validation
    size = (mesh.size if mesh else 1) * target_bytes(training)
    if size > distillation.cache_bytes:
        check_cacheable(distillation, size)
        logger.warning(
            "the teacher's answers would take %.1f GB, more than distill.cache_bytes: "
            "each step computes its own",
            size / 1e9,
        )
        return dataset.replace(teacher=place(_params(distillation), mesh)), validation
    targets = job_targets(training, outputs)
    return dataset.replace(targets=place(jnp.asarray(targets), mesh)), validation


def _params(distillation: Distillation) -> Params:
    """Of the teacher that each step asks anew."""
    assert distillation.teacher is not None
    return distillation.teacher.params
