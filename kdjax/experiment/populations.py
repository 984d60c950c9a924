"""Many training jobs at once: those of one shape side by side, if that is faster.

Jobs that share network, window and batch size form one population
(`kdjax.training.populations`); seed, rows, windows, learning rate, epochs, α and T may
differ. Each job that ends leaves its own checkpoint, as if it had been trained alone.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from kdjax.errors import ConfigError, TrainingError
from kdjax.experiment.jobs import (
    SCHEDULE,
    Training,
    checkpoint_folder,
    first_state,
    job_targets,
    make_job_optimizer,
    make_objective,
    on_host,
    order_key,
    progress_text,
    recorded_mask,
    resume_job,
    target_bytes,
    train_alone,
)
from kdjax.experiment.workdir import append_line, cut_lines
from kdjax.io.progress import progress_bar
from kdjax.io.signals import signals_held
from kdjax.models.autoencoder import network
from kdjax.models.model import Params
from kdjax.training.batching import WindowDataset
from kdjax.training.checkpoints import save_checkpoint
from kdjax.training.loop import Fitted, TrainingProgress
from kdjax.training.populations import (
    Hyper,
    Member,
    PopulationStep,
    Watch,
    fit_together,
    make_population_step,
    make_population_validate,
    resume_together,
)
from kdjax.training.sharding import batch_mesh, member_mesh, place
from kdjax.training.steps import Step, init_state, make_step, validation_loss
from kdjax.training.targets import TargetCache

AUTO, TOGETHER, ALONE = "auto", "together", "alone"
WAYS = (AUTO, TOGETHER, ALONE)

# Speed of a core with members of its own, relative to one that shares batches. Measured on
# 2 cores (D 38, L 100, 8 to 200 units, 2 to 8 members): with 16 windows a core 1.1 to 2.6,
# with 64 mostly 0.7 to 1.1, whatever the width.
SMALL_SHARE = 64
SMALL_GAIN, LARGE_GAIN = 1.4, 0.9

Judge = Callable[[Mapping[str, TrainingProgress]], None]


class Trained(NamedTuple):
    """Result of a job: parameters (None if a loss was not finite) and progress."""

    params: Params | None
    progress: TrainingProgress


class Job(NamedTuple):
    """A population of P members, ready to train."""

    group: Sequence[Training]
    mesh: Mesh | None  # the devices that share the members
    dataset: WindowDataset  # the windows of all members
    members: list[Member]
    hyper: Hyper  # fields [P]
    step: PopulationStep


def train_all(
    trainings: Sequence[Training],
    workdir: Path,
    console: Console,
    *,
    way: str = AUTO,
    evaluate_models: Judge = lambda progress: None,
) -> dict[str, Trained]:
    """All jobs by name; those that are finished in `workdir` are not run again.

    `way` is `together`, `alone`, or `auto` for the `faster_way`. `evaluate_models` is
    called with a population's progress by name after epochs ended; its exception ends
    training.
    """
    if way not in WAYS:
        raise ConfigError(f"way={way!r} must be one of {', '.join(WAYS)}.")
    found: dict[str, Trained] = {}
    outputs: TargetCache = {}  # for all groups
    for group in group_jobs(trainings):
        found |= _train_group(group, workdir, console, way, evaluate_models, outputs)
    return {training.name: found[training.name] for training in trainings}


def finished(training: Training, workdir: Path) -> Trained | None:
    """Result of a job that has ended in this folder; None for any other."""
    if not checkpoint_folder(workdir, training.name).is_dir():
        return None
    start = resume_job(training, workdir)
    return (
        _trained(on_host(start.best), start.progress) if start.progress.done else None
    )


def _trained(params: Params, progress: TrainingProgress) -> Trained:
    return Trained(None if progress.bad_step else params, progress)


def group_jobs(trainings: Sequence[Training]) -> list[list[Training]]:
    """The jobs that can be one population, in order of their first members.

    Students without a teacher join distilled ones on the same windows, as their last
    members: with α = 0 the targets have no effect.
    """
    found: dict[tuple[Hashable, ...], list[Training]] = {}
    for training in trainings:
        found.setdefault(_shape_of(training), []).append(training)
    for shape in [*found]:
        if shape[-1] is not None:
            continue
        distilled = next((s for s in found if s[:-1] == shape[:-1] and s[-1]), None)
        if distilled and _data_ids(found[distilled]) >= _data_ids(found[shape]):
            found[distilled] += found.pop(shape)
    return list(found.values())


def _data_ids(group: Sequence[Training]) -> set[int]:
    return {id(training.training_data) for training in group}


def _shape_of(training: Training) -> tuple[Hashable, ...]:
    """What members of a population share; the last entry is that of distillation."""
    one, data, train = training.distillation, training.training_data, training.settings
    teacher = one and one.teacher
    return (
        training.architecture,
        data.window,
        data.missing,
        data.sources is None,
        data.recorded is None,
        train["batch_size"],
        train["schedule"],
        one
        and (
            teacher and (teacher.kind, teacher.architecture),
            one.temperature_mode,
            one.target,
            one.weights,
        ),
    )


def faster_way(group: Sequence[Training]) -> str:
    """Whether a group trains faster side by side or one after the other.

    On accelerators side by side. On CPUs by the number of cores at work either way, and
    by what a core gains from members of its own, which is most where batches are small.
    """
    if len(group) == 1 or not fits_in_memory(group):
        return ALONE
    if jax.default_backend() != "cpu":
        return TOGETHER
    batch_size = group[0].settings["batch_size"]
    mesh = batch_mesh(batch_size)
    alone = mesh.size if mesh else 1
    together = len(group) / math.ceil(len(group) / jax.local_device_count())
    gain = SMALL_GAIN if batch_size / alone < SMALL_SHARE else LARGE_GAIN
    return TOGETHER if gain * together >= alone else ALONE


def fits_in_memory(group: Sequence[Training]) -> bool:
    """Whether rows and targets of all members fit on each device."""
    if any(training.training_data.sources for training in group):
        return False
    distilled = {
        (id(t.training_data), t.distillation.source): t for t in group if t.distillation
    }
    limits = [t.distillation.cache_bytes for t in group if t.distillation]
    mesh = member_mesh(len(group))
    size = (mesh.size if mesh else 1) * sum(target_bytes(t) for t in distilled.values())
    return not limits or size <= min(limits)


def _train_group(
    group: Sequence[Training],
    workdir: Path,
    console: Console,
    way: str,
    evaluate_models: Judge,
    outputs: TargetCache,
) -> dict[str, Trained]:
    names = json.dumps(sorted(training.name for training in group))
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    folder = checkpoint_folder(workdir, f"together-{digest}")
    found = {t.name: own for t in group if (own := finished(t, workdir)) is not None}
    waiting = [training for training in group if training.name not in found]
    started = folder.exists()  # a population that was interrupted continues as a whole
    if waiting and found and not started:
        for rest in group_jobs(waiting):
            found |= _train_group(rest, workdir, console, way, evaluate_models, outputs)
    elif waiting:
        if started or _way_of(group, workdir, way) == TOGETHER:
            job = prepare_job(group, outputs)
            fresh = _train_together(job, workdir, console, folder, evaluate_models)
            for training in waiting:
                _keep(training, *fresh[training.name], workdir)
        else:
            fresh = {
                t.name: _train_alone(t, workdir, console, outputs) for t in waiting
            }
        found |= {name: _trained(*fitted) for name, fitted in fresh.items()}
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _way_of(group: Sequence[Training], workdir: Path, way: str) -> str:
    """Jobs that read from disk, or were interrupted in training alone, train alone."""
    if any(
        t.training_data.sources or checkpoint_folder(workdir, t.name).exists()
        for t in group
    ):
        return ALONE
    return faster_way(group) if way == AUTO else way


def _train_alone(
    training: Training, workdir: Path, console: Console, outputs: TargetCache
) -> Fitted:
    try:
        return train_alone(training, workdir, console, outputs=outputs)
    except TrainingError as error:
        console.print(f"{training.name}: {error}")
        progress = resume_job(training, workdir).progress
        failed = progress._replace(step=error.step, done=True, bad_step=error.step)
        params = on_host(first_state(training).params)
        _keep(training, params, failed, workdir)
        return Fitted(params, failed)


def _keep(
    training: Training, params: Params, progress: TrainingProgress, workdir: Path
) -> None:
    """Writes the checkpoint of a finished job; its optimizer's state is not needed."""
    state = init_state(params, make_job_optimizer(training))
    folder = checkpoint_folder(workdir, training.name)
    meta = json.dumps(progress._asdict())
    save_checkpoint(folder, progress.step, {"state": state, "best": params}, meta)


def prepare_job(group: Sequence[Training], outputs: TargetCache) -> Job:
    """The population of jobs that `group_jobs` put together."""
    mesh = member_mesh(len(group))
    dataset, places = _join_datasets(group, outputs)
    hyper = Hyper(*map(np.array, zip(*map(_hyper, group), strict=True)))
    members = [
        Member(
            training.name,
            order_key(training),
            first=first,
            windows=len(training.training_data.fit),
            validation=training.training_data.validation + offset,
            epochs=training.epochs,
            patience=training.patience,
        )
        for training, (first, offset) in zip(group, places, strict=True)
    ]
    one = group[0]  # a distilled member, if there is any

    def step_of(hyper: Hyper) -> Step:
        rates = hyper._asdict()
        schedule = {name: jnp.asarray(rates.pop(name)) for name in SCHEDULE}
        return make_step(
            make_objective(one, **schedule),
            make_job_optimizer(one, **rates),
            window=one.training_data.window,
            steps=hyper.steps,
        )

    step = make_population_step(step_of, mesh)
    return Job(group, mesh, place(dataset, mesh), members, hyper, step)


def _join_datasets(
    group: Sequence[Training], outputs: TargetCache
) -> tuple[WindowDataset, list[tuple[int, int]]]:
    """One dataset of all members, each member's first window and first row in it.

    Rows and targets that members share are in it once.
    """
    offsets: dict[int, int] = {}  # first row by the identity of rows
    firsts: dict[tuple[int, Any], int] = {}  # first window by data and teacher
    rows: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    recorded, targets, places = [], [], []
    for training in group:
        data, one = training.training_data, training.distillation
        if id(data.rows) not in offsets:
            offsets[id(data.rows)] = sum(map(len, rows))
            rows.append(data.rows)
        offset = offsets[id(data.rows)]
        key = (id(data), one and one.source)
        if one is None:  # any targets of the same windows will do
            key = next((other for other in firsts if other[0] == id(data)), key)
        if key not in firsts:
            firsts[key] = sum(map(len, starts))
            starts.append(data.fit + offset)
            recorded.append(recorded_mask(data))
            if one is not None:
                targets.append(job_targets(training, outputs))
        places.append((firsts[key], offset))
    mask = np.concatenate(recorded)
    dataset = WindowDataset(
        jnp.asarray(np.concatenate(rows)),
        jnp.asarray(np.concatenate(starts).astype(np.int32)),
        targets=jnp.asarray(np.concatenate(targets)) if targets else None,
        recorded=None if mask.all() else jnp.asarray(mask),
        missing=group[0].training_data.missing,
    )
    return dataset, places


def _hyper(training: Training) -> Hyper:
    train, one = training.settings, training.distillation
    alpha, temperature = (one.alpha, one.temperature) if one else (0, 1)
    ends = (one.alpha_end, one.temperature_end) if one else (None, None)
    return Hyper(
        learning_rate=np.float32(train["learning_rate"]),
        steps=np.int32(training.steps),
        warmup_steps=np.int32(train["warmup_steps"]),
        clip_norm=np.float32(train["clip_norm"]),
        alpha=np.float32(alpha),
        temperature=np.float32(temperature),
        alpha_end=np.float32(alpha if ends[0] is None else ends[0]),
        temperature_end=np.float32(temperature if ends[1] is None else ends[1]),
    )


def _train_together(
    job: Job, workdir: Path, console: Console, folder: Path, evaluate_models: Judge
) -> dict[str, Fitted]:
    group, one, train = job.group, job.group[0], job.group[0].settings
    start = resume_together(folder, [first_state(t) for t in group], job.mesh)
    names = [training.name for training in group]
    for name, progress in zip(names, start.progress, strict=True):
        cut_lines(workdir, name, progress.step)
    title = f"{len(group)} × {'+'.join(map(str, one.architecture.hidden))}"
    done = [progress.step for progress in start.progress]
    if any(done):
        console.print(f"{title}: goes on after step {max(done):,}")
    else:
        console.print(f"{title}: trained {TOGETHER}")
    total = sum(len(t.training_data.fit) * t.epochs for t in group)
    total -= sum(done) * train["batch_size"]
    with signals_held(), progress_bar(console, title, total) as advance:
        fitted = fit_together(
            start,
            job.step,
            job.hyper,
            job.dataset,
            make_population_validate(
                validation_loss(network(one.architecture)),
                job.dataset,
                window=one.training_data.window,
                batch_size=train["batch_size"],
                mesh=job.mesh,
            ),
            job.members,
            batch_size=train["batch_size"],
            directory=folder,
            checkpoint_seconds=train["checkpoint_seconds"],
            watch=Watch(
                log=lambda name, line: append_line(workdir, {"phase": name, **line}),
                advance=advance,
                on_epoch=lambda members: evaluate_models(
                    dict(zip(names, members, strict=True))
                ),
            ),
        )
    found = dict(zip(names, fitted, strict=True))
    for name, own in found.items():
        console.print(f"{name}: {progress_text(own.progress)}")
    return found
