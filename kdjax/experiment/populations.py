"""Many training jobs at once: those of one shape in one population, if that is faster.

Jobs that share network, window and batch size form one population
(`kdjax.training.populations`); seed, rows, windows, learning rate, epochs, α and T may
differ. Each job that ends leaves its own checkpoint, as if it had been trained alone.
"""

import json
import math
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.console import Console

from kdjax.errors import TrainingError, check_choice
from kdjax.experiment import jobs
from kdjax.experiment.jobs import TrainingJob, checkpoint_folder
from kdjax.experiment.workdir import append_line, cut_lines
from kdjax.io.messages import progress_bar
from kdjax.io.signals import signals_held
from kdjax.models.autoencoder import network
from kdjax.training import populations, steps
from kdjax.training.batching import WindowDataset
from kdjax.training.checkpoints import save_checkpoint
from kdjax.training.loop import Fitted, LogLine, TrainingProgress
from kdjax.training.sharding import batch_mesh, member_mesh, place
from kdjax.training.targets import TargetCache

AUTO, TOGETHER, ALONE = "auto", "together", "alone"
WAYS = (AUTO, TOGETHER, ALONE)

# Speed of a core with members of its own, relative to one that shares batches. Measured on
# 2 cores (D 38, L 100, 8 to 200 units, 2 to 8 members): with 16 windows a core 1.1 to 2.6,
# with 64 mostly 0.7 to 1.1, whatever the width.
SMALL_SHARE = 64
SMALL_GAIN, LARGE_GAIN = 1.4, 0.9

# Receives the progress of a population's members by name.
OnEpoch = Callable[[Mapping[str, TrainingProgress]], None]


def train_all(
    wanted: Sequence[TrainingJob],
    workdir: Path,
    console: Console,
    *,
    way: str = AUTO,
    on_epoch: OnEpoch = lambda progress: None,
) -> dict[str, Fitted]:
    """All jobs by name; those that are finished in `workdir` are not run again.

    A job whose loss was not finite has `progress.bad_step`. `way` is `together`, `alone`,
    or `auto` for the `faster_way`. `on_epoch` is called after epochs of a population
    ended; its exception ends training.
    """
    check_choice("way", way, WAYS)
    fitted: dict[str, Fitted] = {}
    outputs: TargetCache = {}  # for all groups
    groups = group_jobs(wanted)
    while groups:
        group = groups.pop(0)
        folder = checkpoint_folder(
            workdir, f"together-{jobs.names_digest(job.name for job in group)}"
        )
        ended = {job.name: own for job in group if (own := finished(job, workdir))}
        waiting = [job for job in group if job.name not in ended]
        # A population that was interrupted continues as a whole.
        started = folder.exists()
        if ended and waiting and not started:
            groups = group_jobs(waiting) + groups
        elif waiting and (started or way_of(group, workdir, way) == TOGETHER):
            ended = _train_together(
                group, outputs, workdir=workdir, folder=folder, console=console,
                on_epoch=on_epoch,
            )  # fmt: skip
            for job in waiting:
                _keep(job, ended[job.name], workdir)
        else:
            for job in waiting:
                ended[job.name] = _train_one(job, workdir, console, outputs)
        fitted |= ended
        shutil.rmtree(folder, ignore_errors=True)
    return {job.name: fitted[job.name] for job in wanted}


def train_in_memory(wanted: Sequence[TrainingJob]) -> dict[str, Fitted]:
    """All jobs by name, those of one shape in one population, without files and progress.

    For short jobs that are repeated as a whole. A job whose loss was not finite has
    `progress.bad_step`.
    """
    fitted: dict[str, Fitted] = {}
    outputs: TargetCache = {}
    for group in group_jobs(wanted):
        fitted |= _train_together(group, outputs)
    return {job.name: fitted[job.name] for job in wanted}


def finished(job: TrainingJob, workdir: Path) -> Fitted | None:
    """Result of a job that has ended in this folder; else None."""
    if not checkpoint_folder(workdir, job.name).is_dir():
        return None
    start = jobs.resume_job(job, workdir)
    if not start.progress.done:
        return None
    return Fitted(jax.device_get(start.best), start.progress)


def group_jobs(waiting: Sequence[TrainingJob]) -> list[list[TrainingJob]]:
    """The jobs that can be one population, in order of their first members.

    Students without a teacher join distilled ones on the same windows, as their last
    members: with α = 0 the targets have no effect.
    """
    groups: dict[tuple[Hashable, ...], list[TrainingJob]] = {}
    for job in waiting:
        groups.setdefault(_shape_of(job), []).append(job)
    data = {shape: {id(job.data) for job in group} for shape, group in groups.items()}
    for shape in [*groups]:
        distilled = next((s for s in groups if s[:-1] == shape[:-1] and s[-1]), None)
        if shape[-1] is None and distilled and data[distilled] >= data[shape]:
            groups[distilled] += groups.pop(shape)
    return list(groups.values())


def _shape_of(job: TrainingJob) -> tuple[Hashable, ...]:
    """What members of a population share; the last entry describes distillation."""
    data, distill = job.data, None
    windows = (data.window, data.missing, data.sources is None, data.recorded is None)
    training = (job.architecture, job.train["batch_size"], job.train["schedule"])
    if (distillation := job.distillation) is not None:
        teacher = distillation.teacher
        kind = teacher and (teacher.kind, teacher.architecture)
        mode, target = distillation.temperature_mode, distillation.target
        distill = (kind, mode, target, distillation.weights)
    return windows, data.context, training, distill


def faster_way(group: Sequence[TrainingJob]) -> str:
    """Whether a group trains faster `together` or one after the other.

    On accelerators together. On CPUs it depends on the number of cores at work in both
    ways, and on the gain of a core from its own members, which is largest for small batches.
    """
    if len(group) == 1 or not fits_in_memory(group):
        return ALONE
    if jax.default_backend() != "cpu":
        return TOGETHER
    batch_size = group[0].train["batch_size"]
    mesh = batch_mesh(batch_size)
    alone = mesh.size if mesh else 1
    together = len(group) / math.ceil(len(group) / jax.local_device_count())
    gain = SMALL_GAIN if batch_size / alone < SMALL_SHARE else LARGE_GAIN
    return TOGETHER if gain * together >= alone else ALONE


def fits_in_memory(group: Sequence[TrainingJob]) -> bool:
    """Whether rows and targets of all members fit on each device."""
    taught = [(job, job.distillation) for job in group if job.distillation]
    sizes = {(id(job.data), d.source): jobs.target_bytes(job) for job, d in taught}
    mesh = member_mesh(len(group))
    size = (mesh.size if mesh else 1) * sum(sizes.values())
    return all(size <= distillation.cache_bytes for _, distillation in taught)


def way_of(group: Sequence[TrainingJob], workdir: Path, way: str) -> str:
    """The way; jobs that read from disk, or were interrupted alone, train alone."""
    folders = [checkpoint_folder(workdir, job.name) for job in group]
    if any(job.data.sources for job in group) or any(f.exists() for f in folders):
        return ALONE
    return faster_way(group) if way == AUTO else way


def _train_one(
    job: TrainingJob, workdir: Path, console: Console, outputs: TargetCache
) -> Fitted:
    try:
        return jobs.train_job(job, workdir, console, outputs=outputs)
    except TrainingError as error:
        console.print(f"{job.name}: {error}")
        progress = jobs.resume_job(job, workdir).progress
        progress = progress._replace(step=error.step, done=True, bad_step=error.step)
        failed = Fitted(jax.device_get(jobs.first_state(job).params), progress)
        _keep(job, failed, workdir)
        return failed


def _keep(job: TrainingJob, fitted: Fitted, workdir: Path) -> None:
    """Writes the checkpoint of a finished job; its optimizer's state is not needed."""
    params, progress = fitted
    state = steps.init_state(params, jobs.make_job_optimizer(job))
    meta, arrays = json.dumps(progress._asdict()), {"state": state, "best": params}
    save_checkpoint(checkpoint_folder(workdir, job.name), progress.step, arrays, meta)


def _numbers(job: TrainingJob) -> dict[str, float]:
    """The numbers that may differ between members: of the optimizer, α and T."""
    rates = ("learning_rate", "warmup_steps", "clip_norm")
    return {
        **{name: job.train[name] for name in rates},
        "steps": job.steps,
        "alpha": job.distillation.alpha if job.distillation else 0.0,
        "temperature": job.distillation.temperature if job.distillation else 1.0,
    }


def join_datasets(
    group: Sequence[TrainingJob], outputs: TargetCache
) -> tuple[WindowDataset, list[populations.Member]]:
    """One dataset of all members, and the members with their indices in it.

    Rows and targets that members share are in it once.
    """
    offsets: dict[int, int] = {}  # first row by the identity of rows
    firsts: dict[tuple[int, Any], int] = {}  # first window by data and teacher
    rows: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    recorded, targets, members = [], [], []
    for job in group:
        data, distillation = job.data, job.distillation
        if id(data.rows) not in offsets:
            offsets[id(data.rows)] = sum(map(len, rows))
            rows.append(data.rows)
        offset = offsets[id(data.rows)]
        key = (id(data), distillation and distillation.source)
        if distillation is None:  # the targets of the same windows have no effect
            key = next((other for other in firsts if other[0] == id(data)), key)
        if key not in firsts:
            firsts[key] = sum(map(len, starts))
            starts.append(data.fit + offset)
            recorded.append(jobs.recorded_mask(data))
            if distillation is not None:
                targets.append(jobs.job_targets(job, outputs))
        members.append(
            populations.Member(
                job.name,
                jobs.order_key(job),
                first=firsts[key],
                windows=len(data.fit),
                validation=data.validation + offset,
                epochs=job.epochs,
                patience=job.patience,
            )
        )
    mask = np.concatenate(recorded)
    dataset = WindowDataset(
        jnp.asarray(np.concatenate(rows)),
        jnp.asarray(np.concatenate(starts).astype(np.int32)),
        targets=jnp.asarray(np.concatenate(targets)) if targets else None,
        recorded=None if mask.all() else jnp.asarray(mask),
        missing=group[0].data.missing,
        context=group[0].data.context,
    )
    return dataset, members


def _train_together(
    group: Sequence[TrainingJob],
    outputs: TargetCache,
    *,
    workdir: Path | None = None,
    folder: Path | None = None,
    console: Console | None = None,
    on_epoch: OnEpoch = lambda progress: None,
) -> dict[str, Fitted]:
    """Trains the jobs that `group_jobs` put together; the results by name.

    Without a work directory it writes no log, without a folder no checkpoint.
    """
    console = console or Console(quiet=True)
    first, mesh = group[0], member_mesh(len(group))  # distilled, if there is one
    names, batch_size = [job.name for job in group], first.train["batch_size"]
    dataset, members = join_datasets(group, outputs)
    dataset = place(dataset, mesh)
    numbers = pd.DataFrame(map(_numbers, group))

    step_of = jobs.member_step(
        first.architecture,
        jobs.distill_form(first),
        first.train["schedule"],
        first.data.window,
    )

    def log(name: str, line: LogLine) -> None:
        if workdir is not None:
            append_line(workdir, {"phase": name, **line})

    states = jobs.first_states(group)
    start = populations.resume_together(folder, states, mesh)
    done = [progress.step for progress in start.progress]
    if workdir is not None:
        for name, steps_done in zip(names, done, strict=True):
            cut_lines(workdir, name, steps_done)
    title = f"{len(group)} × {'+'.join(map(str, first.architecture.hidden))}"
    before = f"resuming after step {max(done):,}" if any(done) else "trained together"
    console.print(f"{title}: {before}")
    total = sum(len(job.data.fit) * job.epochs for job in group)
    total -= sum(done) * batch_size
    with signals_held(), progress_bar(console, title, total) as advance:
        fitted = populations.fit_together(
            start,
            populations.make_population_step(step_of, mesh),
            {name: numbers[name].to_numpy() for name in numbers},
            dataset,
            populations.make_population_validate(
                steps.validation_loss(network(first.architecture)),
                dataset,
                window=first.data.window,
                batch_size=batch_size,
                mesh=mesh,
            ),
            members,
            batch_size=batch_size,
            directory=folder,
            checkpoint_seconds=first.train["checkpoint_seconds"],
            log=log,
            advance=advance,
            on_epoch=lambda progress: on_epoch(dict(zip(names, progress, strict=True))),
        )
    for name, (_, progress) in zip(names, fitted, strict=True):
        console.print(f"{name}: {jobs.progress_text(progress)}")
    return dict(zip(names, fitted, strict=True))
