"""One trial of a search: its seeds trained side by side, watched, and judged."""

import contextlib
import hashlib
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock
from rich.console import Console

from kdjax.errors import ConfigError, KdjaxError
from kdjax.fitting import course_text
from kdjax.populations.run import AUTO, Judge, Trained, train_all
from kdjax.populations.trial import TOGETHER
from kdjax.sweep.design import Design, Member
from kdjax.sweep.members import Bench, judge_member, read_member
from kdjax.sweep.networks import (
    Shelf,
    TrainTeachers,
    failures,
    load_shelf,
    networks_of,
    train_members,
)
from kdjax.sweep.plan import data_key, need
from kdjax.sweep.space import Objective, Search, members_of, suggested
from kdjax.sweep.study import (
    SEEDS_DONE,
    STEPS,
    Claimed,
    claim_trial,
    end_trial,
    load_optuna,
    trial_folder,
)
from kdjax.sweep.tables import LOSS
from kdjax.sweep.trials import trial_text
from kdjax.training.loop import Course
from kdjax.trainings import Training

if TYPE_CHECKING:
    from optuna import Study, Trial


class _Pruned(Exception):
    """The trial is not worth its remaining epochs; the text says why."""


class _Bad(Exception):
    """A seed's loss was not finite."""


class Worker(NamedTuple):
    """This process: what its trials share."""

    search: Search
    study: "Study"
    workdir: Path
    way: str
    console: Console
    shelf: Shelf
    bench: Bench
    teachers: dict[str, Trained]


def run_trial(worker: Worker) -> None:
    """Runs the next trial to its end, whatever that is."""
    search, study, workdir = worker.search, worker.study, worker.workdir
    claimed = claim_trial(
        study,
        workdir,
        seed=search.base["seed"],
        suggest=lambda trial: suggested(search, trial),
    )
    if claimed is None:
        return
    trial, states = claimed.trial, load_optuna().trial.TrialState
    try:
        value = _train_and_judge(worker, claimed)
    except (_Pruned, _Bad) as error:
        state = states.PRUNED if isinstance(error, _Pruned) else states.FAIL
        end_trial(study, trial, workdir, state, str(error))
    except KdjaxError as error:
        end_trial(study, trial, workdir, states.FAIL, str(error))
        raise
    else:
        # Detectors and results stay.
        shutil.rmtree(trial_folder(workdir, trial.number) / "checkpoints")
        study.tell(trial, value)
    finally:
        claimed.lock.release()
    worker.console.print(trial_text(study, trial.number), highlight=False)


def _train_and_judge(worker: Worker, claimed: Claimed) -> float:
    """The objective's value, once all seeds are trained and judged."""
    search, trial = worker.search, claimed.trial
    folder = trial_folder(worker.workdir, trial.number)
    members = members_of(search, trial.number, claimed.changes, search.seeds)
    fields = tuple(members[0].changes)
    design = Design(search.name, search.base, fields, tuple(members))
    shelf = load_shelf(design, worker.shelf)
    students, latest = _students(members, shelf), dict[str, Course]()
    try:
        trained = train_members(
            members,
            shelf,
            folder,
            way=TOGETHER if worker.way == AUTO else worker.way,
            console=worker.console,
            judge=_watch(trial, students, search.objective, latest),
            train_teachers=_shared_teachers(worker),
        )
        latest |= {name: trained[name].course for name in students if name in trained}
    finally:
        trial.set_user_attr(STEPS, sum(course.step for course in latest.values()))
    why = [reason for m in members for reason in _failures(m, shelf, trained)]
    if why:
        raise _Bad("; ".join(why))
    _judge_all(members, shelf, trained, folder, worker.bench)
    trial.set_user_attr(SEEDS_DONE, len(members))
    return statistics.mean(_value(folder, m, search.objective) for m in members)


def _students(members: Sequence[Member], shelf: Shelf) -> dict[str, int]:
    """The seeds of all students by the names of their trainings."""
    return {
        need(member.settings, part).student: member.settings["seed"]
        for member in members
        for part in shelf.parts[data_key(member.settings)]
    }


def _failures(
    member: Member, shelf: Shelf, trained: Mapping[str, Trained]
) -> list[str]:
    seed = member.settings["seed"]
    return [f"seed {seed}: {why}" for why in failures(member, shelf, trained)]


def _judge_all(
    members: Sequence[Member],
    shelf: Shelf,
    trained: Mapping[str, Trained],
    folder: Path,
    bench: Bench,
) -> None:
    for member in members:
        judge_member(
            folder,
            member,
            shelf.parts[data_key(member.settings)],
            networks_of(member, shelf, trained),
            bench=bench,
            digests=shelf.digests,
        )


def _value(folder: Path, member: Member, objective: Objective) -> float:
    """A member's: the mean of the objective's measure over entities that have one."""
    results = read_member(folder, member)
    assert results is not None
    found = [own.get(objective.measure) for own in results["measures"].values()]
    numbers = [float(number) for number in found if number is not None]
    if not numbers:
        raise ConfigError(
            f"OBJECTIVE={objective.name!r} needs test rows with labels of both kinds: "
            f"give some, or use {LOSS}."
        )
    return statistics.mean(numbers)


def _watch(
    trial: "Trial",
    students: Mapping[str, int],
    objective: Objective,
    latest: dict[str, Course],
) -> Judge:
    """Tells the study of each epoch; ends what failed or is not worth its time.

    Where a trial's networks are of several shapes, they train in turn: no loss is that
    of all until the end, and none is told.
    """
    told = [0]

    def judge(courses: Mapping[str, Course]) -> None:
        latest.update(courses)
        for name, course in courses.items():
            if course.bad_step:
                raise _Bad(f"seed {students[name]}: {course_text(course)}")
        losses = [c.best_loss for c in courses.values() if c.best_loss is not None]
        running = [c for c in courses.values() if not c.done]
        if objective.name != LOSS or len(losses) < len(students):
            return
        epoch = min(c.best_epoch + c.stale for c in running or courses.values())
        if epoch <= told[0]:
            return
        told[0] = epoch
        mean = statistics.mean(losses)
        trial.report(mean, epoch - 1)  # pruners count from 0
        if running and trial.should_prune():
            raise _Pruned(f"validation loss {mean:.6g} after epoch {epoch}")

    return judge


def _shared_teachers(worker: Worker) -> TrainTeachers:
    """Trains teachers where all workers find them, or waits for who trains them."""

    def train(trainings: Sequence[Training]) -> dict[str, Trained]:
        names = sorted(training.name for training in trainings)
        if not worker.teachers.keys() >= set(names):
            digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
            folder = worker.workdir / "teachers" / digest
            with _held(folder, worker.console):
                found = train_all(trainings, folder, worker.console, way=worker.way)
            worker.teachers.update(found)
        return {name: worker.teachers[name] for name in names}

    return train


@contextlib.contextmanager
def _held(folder: Path, console: Console) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        console.print("waits for teachers that another worker trains")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
