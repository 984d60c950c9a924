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
from kdjax.experiment.jobs import Training, progress_text
from kdjax.experiment.populations import (
    AUTO,
    TOGETHER,
    Judge,
    Trained,
    train_all,
)
from kdjax.experiment.sweeps.design import Design, Member
from kdjax.experiment.sweeps.members import (
    EvaluationCache,
    evaluate_member,
    read_member,
)
from kdjax.experiment.sweeps.networks import (
    SweepData,
    TrainTeachers,
    failures,
    load_sweep_data,
    networks_of,
    train_members,
)
from kdjax.experiment.sweeps.plan import data_key, need
from kdjax.experiment.sweeps.space import (
    Objective,
    Search,
    members_of,
    suggested,
)
from kdjax.experiment.sweeps.study import (
    SEEDS_DONE,
    STEPS,
    Claimed,
    claim_trial,
    end_trial,
    load_optuna,
    trial_folder,
)
from kdjax.experiment.sweeps.tables import LOSS
from kdjax.experiment.sweeps.trials import trial_text
from kdjax.training.loop import TrainingProgress

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
    sweep_data: SweepData
    bench: EvaluationCache
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
    sweep_data = load_sweep_data(design, worker.sweep_data)
    students, latest = _students(members, sweep_data), dict[str, TrainingProgress]()
    try:
        trained = train_members(
            members,
            sweep_data,
            folder,
            way=TOGETHER if worker.way == AUTO else worker.way,
            console=worker.console,
            evaluate_models=_watch(trial, students, search.objective, latest),
            train_teachers=_shared_teachers(worker),
        )
        latest |= {name: trained[name].progress for name in students if name in trained}
    finally:
        trial.set_user_attr(STEPS, sum(progress.step for progress in latest.values()))
    why = [reason for m in members for reason in _failures(m, sweep_data, trained)]
    if why:
        raise _Bad("; ".join(why))
    _judge_all(members, sweep_data, trained, folder, worker.bench)
    trial.set_user_attr(SEEDS_DONE, len(members))
    return statistics.mean(_value(folder, m, search.objective) for m in members)


def _students(members: Sequence[Member], sweep_data: SweepData) -> dict[str, int]:
    """The seeds of all students by the names of their trainings."""
    return {
        need(member.settings, part).student: member.settings["seed"]
        for member in members
        for part in sweep_data.parts[data_key(member.settings)]
    }


def _failures(
    member: Member, sweep_data: SweepData, trained: Mapping[str, Trained]
) -> list[str]:
    seed = member.settings["seed"]
    return [f"seed {seed}: {why}" for why in failures(member, sweep_data, trained)]


def _judge_all(
    members: Sequence[Member],
    sweep_data: SweepData,
    trained: Mapping[str, Trained],
    folder: Path,
    bench: EvaluationCache,
) -> None:
    for member in members:
        evaluate_member(
            folder,
            member,
            sweep_data.parts[data_key(member.settings)],
            networks_of(member, sweep_data, trained),
            bench=bench,
            digests=sweep_data.digests,
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
    latest: dict[str, TrainingProgress],
) -> Judge:
    """Tells the study of each epoch; ends what failed or is not worth its time.

    Where a trial's networks are of several shapes, they train in turn: no loss is that
    of all until the end, and none is told.
    """
    told = [0]

    def evaluate_models(courses: Mapping[str, TrainingProgress]) -> None:
        latest.update(courses)
        for name, progress in courses.items():
            if progress.bad_step:
                raise _Bad(f"seed {students[name]}: {progress_text(progress)}")
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

    return evaluate_models


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
