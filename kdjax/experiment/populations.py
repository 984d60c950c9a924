"""A group of trainings made into one population: dataset, members, step.

Which way a group trains faster here: side by side, or one after the other.

Many trainings at once: those of one shape side by side, where that is faster.

Trainings that share network, window and batch size are one population
(`kdjax.training.populations`): seed, rows, windows, learning rate, epochs, α and T may
differ. On an accelerator side by side always pays. On a CPU, where a population is bound
by its arithmetic, a few steps of both ways are timed and the faster is taken; the choice
is kept in the work directory, so that a restart goes the same way.

Each training that ends leaves a checkpoint of its own, as if it had run alone.
"""

import contextlib
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from kdjax.errors import ConfigError, TrainingError
from kdjax.experiment.jobs import (
    Training,
    checkpoints,
    first_state,
    job_targets,
    objective,
    on_host,
    optimizer_of,
    order_key,
    progress_text,
    recorded_mask,
    resume_job,
    target_bytes,
    train_alone,
)
from kdjax.experiment.workdir import append_line, cut_lines, read_json
from kdjax.io.files import write_text
from kdjax.io.progress import progress_bar
from kdjax.io.signals import signals_held
from kdjax.models.autoencoder import network
from kdjax.models.model import Params
from kdjax.training.batching import IndexedBatch, WindowDataset
from kdjax.training.checkpoints import save_checkpoint
from kdjax.training.loop import Fitted, TrainingProgress
from kdjax.training.populations import (
    Hyper,
    Member,
    Population,
    PopulationStep,
    Watch,
    fit_together,
    make_population_step,
    make_population_validate,
    resume_together,
)
from kdjax.training.sharding import batch_mesh, member_mesh, place
from kdjax.training.steps import (
    Step,
    init_state,
    make_optimizer,
    make_step,
    student_loss,
    teacher_loss,
    validation_loss,
)
from kdjax.training.targets import Distillation, TargetCache, target_shape


class Job(NamedTuple):
    """A population ready to train.

    Attributes:
        group: the trainings, P of them.
        mesh: the devices that share them.
        dataset: the windows of all members.
        members: what tells one from the other, apart from arrays.
        hyper: fields `[P]`.
        step: the population's.
    """

    group: Sequence[Training]
    mesh: Mesh | None
    dataset: WindowDataset
    members: list[Member]
    hyper: Hyper
    step: PopulationStep


def start_of(job: Job, folder: Path | None) -> Population:
    """Where a population starts: its newest checkpoint in `folder`, or the beginning."""
    states = [first_state(training) for training in job.group]
    return resume_together(folder, states, job.mesh)


def title_of(group: Sequence[Training]) -> str:
    """Such as `8 × 16` for eight networks of 16 units."""
    hidden = "+".join(map(str, group[0].architecture.hidden))
    return f"{len(group)} × {hidden}"


def groups(trainings: Sequence[Training]) -> list[list[Training]]:
    """The trainings that can be one population, in order of their first members.

    Students of the data alone join those that are taught on the same windows: with an
    α of 0 the teacher's outputs, which are there anyway, count for nothing.
    """
    found: dict[tuple[Hashable, ...], list[Training]] = {}
    for training in trainings:
        found.setdefault(shape_of(training), []).append(training)
    for shape in [*found]:
        *common, distillation = shape
        distilled = [
            other
            for other in found
            if other[:-1] == tuple(common) and other[-1] is not None
        ]
        if (
            distillation is None
            and distilled
            and _grounds(found[distilled[0]]) >= _grounds(found[shape])
        ):
            found[distilled[0]] += found.pop(shape)
    return list(found.values())


def _grounds(group: Sequence[Training]) -> set[int]:
    return {id(training.training_data) for training in group}


def shape_of(training: Training) -> tuple[Hashable, ...]:
    """What members of a population must share; the last tells of its lesson."""
    distillation, training_data, train = (
        training.distillation,
        training.training_data,
        training.settings,
    )
    return (
        training.architecture,
        training_data.window,
        training_data.missing,
        training_data.sources is None,
        # Apart from those of recorded windows, whose teachers have less to say.
        training_data.recorded is None,
        train["batch_size"],
        train["schedule"],
        distillation
        and (
            distillation.teacher
            and (distillation.teacher.kind, distillation.teacher.architecture),
            distillation.temperature_mode,
            distillation.target,
            distillation.weights,
        ),
    )


def prepare_job(group: Sequence[Training], outputs: TargetCache) -> Job:
    """The population of trainings that `groups` put together."""
    mesh = member_mesh(len(group))
    dataset, firsts = _joined_corpus(group, outputs)
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
        for training, (first, offset) in zip(group, firsts, strict=True)
    ]
    distilled = [training for training in group if training.distillation]
    step = make_population_step(_step_of((distilled or group)[0]), mesh)
    return Job(group, mesh, place(dataset, mesh), members, hyper, step)


class _Taught(NamedTuple):
    """The windows of one lesson in a joined dataset.

    Attributes:
        first: number of its first window.
        starts: `[M]`, in the dataset' rows.
        targets: `[M, L, D]`; None where nobody teaches.
        sound: `[M]`, see `WindowDataset`.
    """

    first: int
    starts: np.ndarray
    targets: np.ndarray | None
    recorded: np.ndarray


def _joined_corpus(
    group: Sequence[Training], outputs: TargetCache
) -> tuple[WindowDataset, list[tuple[int, int]]]:
    """One dataset of all members, each member's first window and first row in it.

    Rows that members share are there once, and so are a teacher's outputs.
    """
    rows: dict[int, tuple[int, np.ndarray]] = {}  # by identity
    lessons: dict[tuple[int, Any], _Taught] = {}
    distilled = next((training for training in group if training.distillation), None)
    firsts, row_count, window_count = [], 0, 0
    for training in group:
        training_data, distillation = training.training_data, training.distillation
        if id(training_data.rows) not in rows:
            rows[id(training_data.rows)] = (row_count, training_data.rows)
            row_count += len(training_data.rows)
        offset = rows[id(training_data.rows)][0]
        key = (id(training_data), distillation and distillation.source)
        if distillation is None:
            # Of a group that is taught, any teacher's outputs do.
            key = next(
                (other for other in lessons if other[0] == id(training_data)), key
            )
        if key not in lessons:
            said = _targets(training, distilled, outputs)
            lessons[key] = _Taught(
                window_count,
                training_data.fit + offset,
                said,
                recorded_mask(training_data),
            )
            window_count += len(training_data.fit)
        firsts.append((lessons[key].first, offset))
    starts = np.concatenate([distillation.starts for distillation in lessons.values()])
    kept = [one.targets for one in lessons.values() if one.targets is not None]
    recorded = np.concatenate(
        [distillation.recorded for distillation in lessons.values()]
    )
    dataset = WindowDataset(
        jnp.asarray(np.concatenate([own for _, own in rows.values()])),
        jnp.asarray(starts.astype(np.int32)),
        targets=jnp.asarray(np.concatenate(kept)) if kept else None,
        recorded=None if recorded.all() else jnp.asarray(recorded),
        missing=group[0].training_data.missing,
    )
    return dataset, firsts


def _targets(
    training: Training, distilled: Training | None, outputs: TargetCache
) -> np.ndarray | None:
    """What a teacher says of the training's windows, `[M, …]`.

    Zeros for a student of the data alone whose population has one that is taught: it
    needs some.
    """
    if training.distillation is not None:
        return job_targets(training, outputs)
    if distilled is None:
        return None
    assert distilled.distillation is not None
    training_data = training.training_data
    shape = target_shape(
        distilled.distillation, training.architecture, training_data.window
    )
    return np.zeros((len(training_data.fit), *shape), np.float32)


def _hyper(training: Training) -> Hyper:
    train, distillation = training.settings, training.distillation
    return Hyper(
        learning_rate=np.float32(train["learning_rate"]),
        steps=np.int32(training.steps),
        warmup_steps=np.int32(train["warmup_steps"]),
        clip_norm=np.float32(train["clip_norm"]),
        alpha=np.float32(distillation.alpha if distillation else 0),
        temperature=np.float32(distillation.temperature if distillation else 1),
        alpha_end=np.float32(_end(distillation, "alpha") if distillation else 0),
        temperature_end=np.float32(
            _end(distillation, "temperature") if distillation else 1
        ),
    )


def _end(distillation: Distillation, name: str) -> float:
    """The number after the last step; that of the first where it doesn't change."""
    end = getattr(distillation, f"{name}_end")
    return float(getattr(distillation, name) if end is None else end)


def _step_of(one: Training) -> Callable[[Hyper], Step]:
    """The step of a member of the population that `one` belongs to."""
    net, distillation = network(one.architecture), one.distillation

    def step_of(hyper: Hyper) -> Step:
        minimised = teacher_loss(net)
        if distillation is not None:
            minimised = student_loss(
                net,
                distillation.model,
                alpha=jnp.asarray(hyper.alpha),
                temperature=hyper.temperature,
                temperature_mode=distillation.temperature_mode,
                target=distillation.target,
                alpha_end=hyper.alpha_end,
                temperature_end=hyper.temperature_end,
            )
        optimizer = make_optimizer(
            learning_rate=hyper.learning_rate,
            schedule=one.settings["schedule"],
            steps=hyper.steps,
            warmup_steps=hyper.warmup_steps,
            clip_norm=hyper.clip_norm,
        )
        return make_step(
            minimised, optimizer, window=one.training_data.window, steps=hyper.steps
        )

    return step_of


def fits_in_memory(group: Sequence[Training]) -> bool:
    """Whether the rows, and the teachers' outputs, can be kept on each device."""
    if any(training.training_data.sources for training in group):
        return False
    distilled = {
        (id(t.training_data), t.distillation.source): t for t in group if t.distillation
    }
    limits = [t.distillation.cache_bytes for t in group if t.distillation]
    mesh = member_mesh(len(group))
    size = (mesh.size if mesh else 1) * sum(target_bytes(t) for t in distilled.values())
    return not limits or size <= min(limits)


TOGETHER, ALONE = "together", "alone"

# A trial of both ways compiles both, which a training of fewer steps doesn't pay back.
LEAST_STEPS = 200
TRIAL_ROUNDS, TRIAL_STEPS = 3, 2


def faster_way(
    group: Sequence[Training], job: Callable[[], Job], console: Console
) -> str:
    """The faster way for this group, found by trying both where that may tell.

    `job` makes the group's population, or gives the one that is made already.
    """
    if len(group) == 1 or not fits_in_memory(group):
        return ALONE
    if jax.default_backend() != "cpu" or max(t.steps for t in group) < LEAST_STEPS:
        return TOGETHER
    together, alone = _trial(job())
    way = TOGETHER if together <= alone else ALONE
    console.print(
        f"{title_of(group)}: a step of all takes {1e3 * together:.0f} ms side by side, "
        f"{1e3 * alone:.0f} ms one after the other: trained {way}"
    )
    return way


def _trial(job: Job) -> tuple[float, float]:
    """Seconds of a step of all members side by side, and one after the other.

    The median of interleaved rounds, after one of each that compiles.
    """
    one = job.group[0]
    batch_size = one.settings["batch_size"]
    mesh = batch_mesh(batch_size)
    step = make_step(
        objective(one), optimizer_of(one),
        window=one.training_data.window, steps=one.steps, mesh=mesh,
    )  # fmt: skip
    states = [start_of(job, None).states]
    size = len(states[0].step)
    state, dataset = (
        [place(first_state(one), mesh)],
        place(jax.device_get(job.dataset), mesh),
    )
    hyper = jax.tree.map(lambda v: np.resize(v, size), job.hyper)
    index = np.zeros((size, batch_size), np.int32)
    weight = np.ones((size, batch_size), np.float32)

    def together() -> None:
        turn = np.ones(size, bool)
        states[0] = job.step(states[0], hyper, job.dataset, index, weight, turn)

    def alone() -> None:
        state[0], _ = step(state[0], IndexedBatch(dataset, index[0], weight[0]))

    ways: tuple[Any, ...] = ((together, states), (alone, state))
    for run, result in ways:
        _seconds(run, result)
    rounds = [[_seconds(*way) for way in ways] for _ in range(TRIAL_ROUNDS)]
    side_by_side, single = np.median(rounds, axis=0)
    return float(side_by_side), float(single) * len(job.group)


def _seconds(run: Callable[[], None], result: list[Any]) -> float:
    started = time.monotonic()
    for _ in range(TRIAL_STEPS):
        run()
    jax.block_until_ready(result[0])
    return (time.monotonic() - started) / TRIAL_STEPS


AUTO = "auto"
WAYS = (AUTO, TOGETHER, ALONE)
CHOSEN = "ways.json"

Judge = Callable[[Mapping[str, TrainingProgress]], None]


class Trained(NamedTuple):
    """What became of a training.

    Attributes:
        params: of lowest validation loss; None where a loss was not finite.
        course: where it ended.
    """

    params: Params | None
    progress: TrainingProgress


def train_all(
    trainings: Sequence[Training],
    workdir: Path,
    console: Console,
    *,
    way: str = "auto",
    evaluate_models: Judge = lambda courses: None,
) -> dict[str, Trained]:
    """All trainings by name; those that are finished in `workdir` are not run again.

    Args:
        trainings: of different names.
        workdir: where checkpoints and the log are.
        console: shows progress.
        way: `together`, `alone`, or `auto` for the faster.
        judge: called with a population's courses by name after epochs ended; what it
            raises ends training.
    """
    if way not in WAYS:
        raise ConfigError(f"way={way!r} must be one of {', '.join(WAYS)}.")
    found: dict[str, Trained] = {}
    outputs: TargetCache = {}  # what teachers say, once for all groups
    for group in groups(trainings):
        found |= _train_group(group, workdir, console, way, evaluate_models, outputs)
    return {training.name: found[training.name] for training in trainings}


def _train_group(
    group: Sequence[Training],
    workdir: Path,
    console: Console,
    way: str,
    evaluate_models: Judge,
    outputs: TargetCache,
) -> dict[str, Trained]:
    name = _group_name(group)
    folder = checkpoints(workdir, name)
    found = {t.name: finished(t, workdir) for t in group}
    waiting = [t for t in group if found[t.name] is None]
    if waiting:
        # A population that was cut off goes on as a whole.
        members = list(group) if folder.exists() else waiting
        # What a trial prepares and compiles is what trains then.
        job = functools.cache(lambda: prepare_job(members, outputs))
        if _together(name, members, job, workdir, console, way):
            fresh = _train_together(job(), workdir, console, folder, evaluate_models)
            for training in waiting:
                _keep(training, *fresh[training.name], workdir)
        else:
            fresh = {
                t.name: _train_alone(t, workdir, console, outputs) for t in waiting
            }
        found |= {name: _trained(*fitted) for name, fitted in fresh.items()}
    shutil.rmtree(folder, ignore_errors=True)
    return {name: trained for name, trained in found.items() if trained is not None}


def _group_name(group: Sequence[Training]) -> str:
    names = json.dumps(sorted(training.name for training in group))
    return f"together-{hashlib.sha256(names.encode()).hexdigest()[:12]}"


def finished(training: Training, workdir: Path) -> Trained | None:
    """What became of a training that has ended in this folder; None for any other."""
    if not checkpoints(workdir, training.name).is_dir():
        return None
    start = resume_job(training, workdir)
    return (
        _trained(on_host(start.best), start.progress) if start.progress.done else None
    )


def _trained(params: Params, progress: TrainingProgress) -> Trained:
    return Trained(None if progress.bad_step else params, progress)


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
    """Leaves the checkpoint of a finished training; its optimizer is past use."""
    state = init_state(params, optimizer_of(training))
    folder = checkpoints(workdir, training.name)
    meta = json.dumps(progress._asdict())
    save_checkpoint(folder, progress.step, {"state": state, "best": params}, meta)


def _train_together(
    job: Job, workdir: Path, console: Console, folder: Path, evaluate_models: Judge
) -> dict[str, Fitted]:
    group, start = job.group, start_of(job, folder)
    for training, progress in zip(group, start.courses, strict=True):
        cut_lines(workdir, training.name, progress.step)
    if any(progress.step for progress in start.courses):
        console.print(f"{title_of(group)}: goes on after step {_most(start.courses):,}")
    training_data, train = group[0].training_data, group[0].settings
    with (
        signals_held(),
        _watched(job, start, workdir, console, evaluate_models) as watch,
    ):
        fitted = fit_together(
            start,
            job.step,
            job.hyper,
            job.dataset,
            make_population_validate(
                validation_loss(network(group[0].architecture)),
                job.dataset,
                window=training_data.window,
                batch_size=train["batch_size"],
                mesh=job.mesh,
            ),
            job.members,
            batch_size=train["batch_size"],
            directory=folder,
            checkpoint_seconds=train["checkpoint_seconds"],
            watch=watch,
        )
    found = {t.name: own for t, own in zip(group, fitted, strict=True)}
    for name, own in found.items():
        console.print(f"{name}: {progress_text(own.progress)}")
    return found


@contextlib.contextmanager
def _watched(
    job: Job, start: Population, workdir: Path, console: Console, evaluate_models: Judge
) -> Iterator[Watch]:
    """Log and progress: members done, spread of their losses, time left."""
    names = [training.name for training in job.group]
    latest: dict[str, float] = {}

    def log(name: str, line: dict[str, Any]) -> None:
        append_line(workdir, {"phase": name, **line})
        if line["validation_loss"] is not None:
            latest[name] = line["validation_loss"]

    seen = sum(progress.step for progress in start.courses)
    batch_size = job.group[0].settings["batch_size"]
    total = (
        sum(len(t.training_data.fit) * t.epochs for t in job.group) - seen * batch_size
    )
    with progress_bar(console, title_of(job.group), total) as advance:

        def tell(windows: int, courses: Sequence[TrainingProgress]) -> None:
            done = sum(progress.done for progress in courses)
            text = f"{done} of {len(courses)} done"
            if latest:
                low, high = min(latest.values()), max(latest.values())
                text += f", loss {low:.4g}–{high:.4g}"
            advance(windows, text)

        yield Watch(
            log=log,
            advance=tell,
            evaluate_models=lambda courses: evaluate_models(
                dict(zip(names, courses, strict=True))
            ),
        )


def _most(courses: Sequence[TrainingProgress]) -> int:
    return max(progress.step for progress in courses)


def _together(
    name: str,
    group: Sequence[Training],
    job: Callable[[], Job],
    workdir: Path,
    console: Console,
    way: str,
) -> bool:
    """Whether a group trains side by side: as asked, as before, or as is faster."""
    chosen = read_json(workdir / CHOSEN) if (workdir / CHOSEN).exists() else {}
    if name not in chosen:
        large = any(training.training_data.sources for training in group)
        given = ALONE if large else way
        chosen[name] = given if given != AUTO else faster_way(group, job, console)
        write_text(workdir / CHOSEN, json.dumps(chosen, indent=2) + "\n")
    return bool(chosen[name] == TOGETHER)
