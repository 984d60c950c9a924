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
from kdjax.experiment import jobs
from kdjax.experiment.jobs import Training
from kdjax.experiment.workdir import append_line, cut_lines
from kdjax.io.progress import progress_bar
from kdjax.io.signals import signals_held
from kdjax.models.autoencoder import network
from kdjax.models.model import Params
from kdjax.training.batching import WindowDataset
from kdjax.training.checkpoints import save_checkpoint
from kdjax.training.loop import Fitted, TrainingProgress
from kdjax.training.populations import (
    Member,
    PopulationStep,
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
    groups = group_jobs(trainings)
    while groups:
        group = groups.pop(0)
        names = json.dumps(sorted(training.name for training in group))
        digest = hashlib.sha256(names.encode()).hexdigest()[:12]
        folder = jobs.checkpoint_folder(workdir, f"together-{digest}")
        ended = {t.name: own for t in group if (own := finished(t, workdir))}
        waiting = [training for training in group if training.name not in ended]
        # A population that was interrupted continues as a whole.
        started = folder.exists()
        if ended and waiting and not started:
            groups = group_jobs(waiting) + groups
        elif waiting and (started or _way_of(group, workdir, way) == TOGETHER):
            fresh = _train_together(
                group, workdir, console, folder, evaluate_models, outputs
            )
            for training in waiting:
                _keep(training, *fresh[training.name], workdir)
            ended |= {name: _trained(*fitted) for name, fitted in fresh.items()}
        else:
            for training in waiting:
                fitted = _train_alone(training, workdir, console, outputs)
                ended[training.name] = _trained(*fitted)
        found |= ended
        shutil.rmtree(folder, ignore_errors=True)
    return {training.name: found[training.name] for training in trainings}


def finished(training: Training, workdir: Path) -> Trained | None:
    """Result of a job that has ended in this folder; None for any other."""
    if not jobs.checkpoint_folder(workdir, training.name).is_dir():
        return None
    start = jobs.resume_job(training, workdir)
    done = start.progress.done
    return _trained(jobs.on_host(start.best), start.progress) if done else None


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
    data = {
        shape: {id(training.training_data) for training in group}
        for shape, group in found.items()
    }
    for shape in [*found]:
        distilled = next((s for s in found if s[:-1] == shape[:-1] and s[-1]), None)
        if shape[-1] is None and distilled and data[distilled] >= data[shape]:
            found[distilled] += found.pop(shape)
    return list(found.values())


def _shape_of(training: Training) -> tuple[Hashable, ...]:
    """What members of a population share; the last entry is that of distillation."""
    one, data, train = training.distillation, training.training_data, training.settings
    teacher = one and one.teacher
    kind = teacher and (teacher.kind, teacher.architecture)
    windows = (data.window, data.missing, data.sources is None, data.recorded is None)
    steps = (training.architecture, train["batch_size"], train["schedule"])
    lesson = one and (kind, one.temperature_mode, one.target, one.weights)
    return windows, steps, lesson


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
    sizes = {
        (id(t.training_data), t.distillation.source): jobs.target_bytes(t)
        for t in group
        if t.distillation
    }
    mesh = member_mesh(len(group))
    size = (mesh.size if mesh else 1) * sum(sizes.values())
    return all(size <= t.distillation.cache_bytes for t in group if t.distillation)


def _way_of(group: Sequence[Training], workdir: Path, way: str) -> str:
    """Jobs that read from disk, or were interrupted in training alone, train alone."""
    if any(
        t.training_data.sources or jobs.checkpoint_folder(workdir, t.name).exists()
        for t in group
    ):
        return ALONE
    return faster_way(group) if way == AUTO else way


def _train_alone(
    training: Training, workdir: Path, console: Console, outputs: TargetCache
) -> Fitted:
    try:
        return jobs.train_alone(training, workdir, console, outputs=outputs)
    except TrainingError as error:
        console.print(f"{training.name}: {error}")
        progress = jobs.resume_job(training, workdir).progress
        failed = progress._replace(step=error.step, done=True, bad_step=error.step)
        params = jobs.on_host(jobs.first_state(training).params)
        _keep(training, params, failed, workdir)
        return Fitted(params, failed)


def _keep(
    training: Training, params: Params, progress: TrainingProgress, workdir: Path
) -> None:
    """Writes the checkpoint of a finished job; its optimizer's state is not needed."""
    state = init_state(params, jobs.make_job_optimizer(training))
    folder = jobs.checkpoint_folder(workdir, training.name)
    meta = json.dumps(progress._asdict())
    save_checkpoint(folder, progress.step, {"state": state, "best": params}, meta)


def _make_population_step(
    group: Sequence[Training], mesh: Mesh | None
) -> tuple[PopulationStep, dict[str, np.ndarray]]:
    """The step of jobs that `group_jobs` put together, and the numbers that differ."""
    one = group[0]  # a distilled member, if there is any
    numbers = [_numbers(training) for training in group]
    hyper = {name: np.array([own[name] for own in numbers]) for name in numbers[0]}

    def step_of(hyper: Mapping[str, Any]) -> Step:
        rates = dict(hyper)
        schedule = {name: rates.pop(name) for name in jobs.SCHEDULE}
        return make_step(
            jobs.make_objective(one, **schedule),
            jobs.make_job_optimizer(one, **rates),
            window=one.training_data.window,
            steps=hyper["steps"],
        )

    return make_population_step(step_of, mesh), hyper


def _numbers(training: Training) -> dict[str, float]:
    """What may differ between members: those of the optimizer, and `SCHEDULE`."""
    one, rates = training.distillation, ("learning_rate", "warmup_steps", "clip_norm")
    found = {name: training.settings[name] for name in rates}
    found["steps"] = training.steps
    for name, unused in (("alpha", 0.0), ("temperature", 1.0)):
        first = getattr(one, name, unused)
        last = getattr(one, f"{name}_end", None)
        found |= {name: first, f"{name}_end": first if last is None else last}
    return found


def join_datasets(
    group: Sequence[Training], outputs: TargetCache
) -> tuple[WindowDataset, list[Member]]:
    """One dataset of all members, and the members with their places in it.

    Rows and targets that members share are in it once.
    """
    offsets: dict[int, int] = {}  # first row by the identity of rows
    firsts: dict[tuple[int, Any], int] = {}  # first window by data and teacher
    rows: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    recorded, targets, members = [], [], []
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
            recorded.append(jobs.recorded_mask(data))
            if one is not None:
                targets.append(jobs.job_targets(training, outputs))
        members.append(
            Member(
                training.name,
                jobs.order_key(training),
                first=firsts[key],
                windows=len(data.fit),
                validation=data.validation + offset,
                epochs=training.epochs,
                patience=training.patience,
            )
        )
    mask = np.concatenate(recorded)
    dataset = WindowDataset(
        jnp.asarray(np.concatenate(rows)),
        jnp.asarray(np.concatenate(starts).astype(np.int32)),
        targets=jnp.asarray(np.concatenate(targets)) if targets else None,
        recorded=None if mask.all() else jnp.asarray(mask),
        missing=group[0].training_data.missing,
    )
    return dataset, members


def _train_together(
    group: Sequence[Training],
    workdir: Path,
    console: Console,
    folder: Path,
    evaluate_models: Judge,
    outputs: TargetCache,
) -> dict[str, Fitted]:
    """Trains the jobs that `group_jobs` put together; the results by name."""
    one, train, mesh = group[0], group[0].settings, member_mesh(len(group))
    dataset, members = join_datasets(group, outputs)
    dataset = place(dataset, mesh)
    step, hyper = _make_population_step(group, mesh)
    start = resume_together(folder, [jobs.first_state(t) for t in group], mesh)
    names = [training.name for training in group]
    for name, progress in zip(names, start.progress, strict=True):
        cut_lines(workdir, name, progress.step)
    title = f"{len(group)} × {'+'.join(map(str, one.architecture.hidden))}"
    done = [progress.step for progress in start.progress]
    before = f"goes on after step {max(done):,}" if any(done) else "trained together"
    console.print(f"{title}: {before}")
    total = sum(len(t.training_data.fit) * t.epochs for t in group)
    total -= sum(done) * train["batch_size"]
    with signals_held(), progress_bar(console, title, total) as advance:
        fitted = fit_together(
            start,
            step,
            hyper,
            dataset,
            make_population_validate(
                validation_loss(network(one.architecture)),
                dataset,
                window=one.training_data.window,
                batch_size=train["batch_size"],
                mesh=mesh,
            ),
            members,
            batch_size=train["batch_size"],
            directory=folder,
            checkpoint_seconds=train["checkpoint_seconds"],
            log=lambda name, line: append_line(workdir, {"phase": name, **line}),
            advance=advance,
            on_epoch=lambda own: evaluate_models(dict(zip(names, own, strict=True))),
        )
    for name, own in zip(names, fitted, strict=True):
        console.print(f"{name}: {jobs.progress_text(own.progress)}")
    return dict(zip(names, fitted, strict=True))
