"""Many trainings at once: those of one shape side by side, where that is faster.

Trainings that share network, window and batch size are one population
(`kdjax.training.together`): seed, rows, windows, learning rate, epochs, α and T may
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from kdjax.artifacts import write_text
from kdjax.errors import ConfigError, TrainingError
from kdjax.fitting import checkpoints, course_of, course_text, on_host, train_alone
from kdjax.lessons import Outputs
from kdjax.models.autoencoder import Params, network
from kdjax.populations.job import Job, groups, prepare_job, start_of, title_of
from kdjax.populations.trial import ALONE, TOGETHER, faster_way
from kdjax.progress import progress_bar
from kdjax.stopping import held
from kdjax.training.checkpoints import save_checkpoint
from kdjax.training.loop import Course, Fitted
from kdjax.training.objectives import validation_loss
from kdjax.training.population import make_population_validate
from kdjax.training.steps import init_state
from kdjax.training.together import Population, Watch, fit_together
from kdjax.trainings import Training, first_state, optimizer_of
from kdjax.workdir import append_line, cut_lines, read_json

AUTO = "auto"
WAYS = (AUTO, TOGETHER, ALONE)
CHOSEN = "ways.json"

Judge = Callable[[Mapping[str, Course]], None]


class Trained(NamedTuple):
    """What became of a training.

    Attributes:
        params: of lowest validation loss; None where a loss was not finite.
        course: where it ended.
    """

    params: Params | None
    course: Course


def train_all(
    trainings: Sequence[Training],
    workdir: Path,
    console: Console,
    *,
    way: str = "auto",
    judge: Judge = lambda courses: None,
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
    outputs: Outputs = {}  # what teachers say, once for all groups
    for group in groups(trainings):
        found |= _train_group(group, workdir, console, way, judge, outputs)
    return {training.name: found[training.name] for training in trainings}


def _train_group(
    group: Sequence[Training],
    workdir: Path,
    console: Console,
    way: str,
    judge: Judge,
    outputs: Outputs,
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
            fresh = _train_together(job(), workdir, console, folder, judge)
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
    start = course_of(training, workdir)
    return _trained(on_host(start.best), start.course) if start.course.done else None


def _trained(params: Params, course: Course) -> Trained:
    return Trained(None if course.bad_step else params, course)


def _train_alone(
    training: Training, workdir: Path, console: Console, outputs: Outputs
) -> Fitted:
    try:
        return train_alone(training, workdir, console, outputs=outputs)
    except TrainingError as error:
        console.print(f"{training.name}: {error}")
        course = course_of(training, workdir).course
        failed = course._replace(step=error.step, done=True, bad_step=error.step)
        params = on_host(first_state(training).params)
        _keep(training, params, failed, workdir)
        return Fitted(params, failed)


def _keep(training: Training, params: Params, course: Course, workdir: Path) -> None:
    """Leaves the checkpoint of a finished training; its optimizer is past use."""
    state = init_state(params, optimizer_of(training))
    folder = checkpoints(workdir, training.name)
    meta = json.dumps(course._asdict())
    save_checkpoint(folder, course.step, {"state": state, "best": params}, meta)


def _train_together(
    job: Job, workdir: Path, console: Console, folder: Path, judge: Judge
) -> dict[str, Fitted]:
    group, start = job.group, start_of(job, folder)
    for training, course in zip(group, start.courses, strict=True):
        cut_lines(workdir, training.name, course.step)
    if any(course.step for course in start.courses):
        console.print(f"{title_of(group)}: goes on after step {_most(start.courses):,}")
    ground, train = group[0].ground, group[0].settings
    with held(), _watched(job, start, workdir, console, judge) as watch:
        fitted = fit_together(
            start,
            job.step,
            job.hyper,
            job.corpus,
            make_population_validate(
                validation_loss(network(group[0].architecture)),
                job.corpus,
                window=ground.window,
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
        console.print(f"{name}: {course_text(own.course)}")
    return found


@contextlib.contextmanager
def _watched(
    job: Job, start: Population, workdir: Path, console: Console, judge: Judge
) -> Iterator[Watch]:
    """Log and progress: members done, spread of their losses, time left."""
    names = [training.name for training in job.group]
    latest: dict[str, float] = {}

    def log(name: str, line: dict[str, Any]) -> None:
        append_line(workdir, {"phase": name, **line})
        if line["validation_loss"] is not None:
            latest[name] = line["validation_loss"]

    seen = sum(course.step for course in start.courses)
    batch_size = job.group[0].settings["batch_size"]
    total = sum(len(t.ground.fit) * t.epochs for t in job.group) - seen * batch_size
    with progress_bar(console, title_of(job.group), total) as advance:

        def tell(windows: int, courses: Sequence[Course]) -> None:
            done = sum(course.done for course in courses)
            text = f"{done} of {len(courses)} done"
            if latest:
                low, high = min(latest.values()), max(latest.values())
                text += f", loss {low:.4g}–{high:.4g}"
            advance(windows, text)

        yield Watch(
            log=log,
            advance=tell,
            judge=lambda courses: judge(dict(zip(names, courses, strict=True))),
        )


def _most(courses: Sequence[Course]) -> int:
    return max(course.step for course in courses)


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
        large = any(training.ground.sources for training in group)
        given = ALONE if large else way
        chosen[name] = given if given != AUTO else faster_way(group, job, console)
        write_text(workdir / CHOSEN, json.dumps(chosen, indent=2) + "\n")
    return bool(chosen[name] == TOGETHER)
