"""A search: each trial's settings are chosen by the results of other trials.

A trial trains its seeds side by side. Processes that run the same search in one folder,
on one host or several, are workers of one Optuna study.

search.json    base settings, seeds and objective; another search's are refused
data.json      digests of the data; other data are refused
journal.log    the study: Optuna's journal, which suits shared file systems
teachers/      networks that trials share, each trained once
trials/NNNN/   a trial's log and the folders of its members
trials.csv     a line a trial: its state, value and parameters
best.json      the best trial, with the commands that run it again
and members.csv and report.html of the trials that are done, as of a sweep.

Optuna's heartbeat needs a database server. Here each worker locks its trial's folder; the
operating system releases the lock when the worker ends in any way. If the journal has a
trial as running but its lock is free, its worker was lost: the trial fails, and its values
are queued again. Locks must reach all hosts: NFS 4, or NFS 3 with its lock service.
"""

import contextlib
import functools
import io
import json
import logging
import math
import os
import shlex
import shutil
import socket
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import filelock
import numpy as np
import optuna
import pandas as pd
from optuna import Study, Trial, TrialPruned
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from kdjax.config import RENAMED, get_config, leaves, override, to_json
from kdjax.errors import ArtifactError, ConfigError, DataError, KdjaxError, counted
from kdjax.experiment.jobs import TrainingJob, names_digest, progress_text
from kdjax.experiment.populations import AUTO, TOGETHER, train_all
from kdjax.experiment.sweeps import design, members, report, sweep
from kdjax.experiment.sweeps.design import DONE, FAILED, LOSS, OBJECTIVES, SEED, Search
from kdjax.experiment.workdir import check_data, read_lines
from kdjax.io.executors import LOCAL, ONE_CORE, Resources, Unit, run_units
from kdjax.io.files import clear_leftovers, write_text
from kdjax.training import hosts
from kdjax.training.loop import Fitted, TrainingProgress

logger = logging.getLogger(__name__)

SEARCH, JOURNAL, TRIALS, BEST = "search.json", "journal.log", "trials.csv", "best.json"
# A trial that ends its workers, such as by memory, must not be repeated for ever.
MOST_RETRIES = 2
LOST = "its worker ended before it"
LEAST_COMPLETE = 5  # trials before any is pruned: a median of fewer is unreliable


class SearchResult(NamedTuple):
    """trials.csv, members.csv and best.json so far; None where no trial is done."""

    trials: pd.DataFrame
    members: pd.DataFrame | None
    best: dict[str, Any] | None


class Worker(NamedTuple):
    """This process and what its trials share."""

    search: Search
    study: Study
    workdir: Path
    way: str
    console: Console
    sweep_data: members.SweepData
    teachers: dict[str, Fitted]


class _FailedSeed(Exception):
    """A seed's loss was not finite."""


def run_search(
    search: Search,
    workdir: Path,
    *,
    trials: int = 10,
    way: str = AUTO,
    console: Console | None = None,
    executor: str = LOCAL,
    address: str = "",
    resources: Resources = ONE_CORE,
) -> SearchResult:
    """Runs `trials` beside those of other workers and writes the tables of all so far.

    All workers share `workdir`. The way `alone` trains seeds one after the other, without
    pruning. With the executor `ray` (see `kdjax.io.executors.run_units`) each trial is a
    unit. ConfigError if `search(trial)` is faulty or `workdir` is of another search;
    DataError after all others if trials of workers failed.
    """
    console = console or Console(quiet=True)
    if hosts.processes() > 1:
        raise ConfigError(
            "workers of a search are independent: remove --coordinator, and start the "
            "same command in each process."
        )
    if trials < 0:
        raise ConfigError(f"--trials={trials} must be 0 or more.")
    worker = _start(search, workdir, way, console)
    faults: list[str] = []
    if executor == LOCAL:
        for _ in range(trials):
            _run_trial(worker)
    else:
        faults = _run_on_workers(
            worker, trials, executor=executor, address=address, resources=resources
        )
    result = _tabulate(worker.study, workdir, search)
    if faults:
        raise DataError(
            f"{len(faults)} of {counted(trials, 'trial')} failed; the first is {faults[0]}"
        )
    return result


def _run_on_workers(worker: Worker, trials: int, **execution: Any) -> list[str]:
    """Adds trials, each a unit; why any could not be run."""
    search = worker.search
    if not search.path:
        raise ConfigError(
            "--executor=ray needs the search's config file: set its path."
        )
    data = {
        "path": search.path,
        "argument": search.argument,
        "name": search.name,
        "base": search.base,
        "workdir": str(worker.workdir.absolute()),
        "way": worker.way,
    }
    units = [Unit(f"trial {i} of {trials}", data) for i in range(1, trials + 1)]
    faults = []
    for outcome in run_units(add_trial, units, **execution):
        for line in outcome.value or []:
            worker.console.print(line, highlight=False)
        if outcome.error:
            faults.append(f"{outcome.name}: {outcome.error}")
            worker.console.print(f"failed: {faults[-1]}", highlight=False)
    return faults


def add_trial(data: Mapping[str, Any]) -> list[str]:
    """Adds a trial to the study of another process; the lines for the terminal."""
    text = io.StringIO()
    worker = _known(json.dumps(data, sort_keys=True))
    _run_trial(worker._replace(console=Console(file=text, width=10_000)))
    return text.getvalue().splitlines()


@functools.lru_cache(maxsize=1)
def _known(text: str) -> Worker:
    """The worker that this process keeps for its next trial."""
    data = json.loads(text)
    defined = design.read_file(data["path"], data["argument"])
    config = override(get_config(), dict(leaves(data["base"])))
    search = design.make_search(data["name"], config, defined)
    return _start(search, Path(data["workdir"]), data["way"], Console(quiet=True))


def _start(search: Search, workdir: Path, way: str, console: Console) -> Worker:
    """A worker of the search in this folder, which is made if it isn't there."""
    described = {
        "name": search.name,
        "base": search.base,
        "seeds": list(search.seeds),
        "objective": search.objective,
    }
    with turn(workdir):
        sweep.check_record(workdir / SEARCH, "search", described)
        clear_leftovers(workdir)
    first = design.trial_members(search, 0, {})[:1]
    sweep_data = members.load_sweep_data(search.name, first)
    # Labels are used at the end of a trial only.
    pruner = search.pruner if search.objective == LOSS else None
    if pruner == design.MEDIAN:
        groups = sweep_data.groups[members.data_key(search.base)]
        share = min(group.data.share for group in groups)
        pruner = median_pruner(int(share * search.base["student"]["epochs"]))
    with turn(workdir):
        sweep.check_record(workdir / SEARCH, "search", described)  # of a faster worker
        sweep.write_record(workdir / SEARCH, described)
        check_data(workdir, sweep_data.digests)
        study = open_study(
            workdir,
            search.name,
            direction="minimize" if search.objective == LOSS else "maximize",
            pruner=pruner,
        )
    return Worker(search, study, workdir, way, console, sweep_data, {})


def best_lines(result: SearchResult) -> list[str]:
    """The best trial for a terminal, and the command that runs it again."""
    if result.best is None:
        return ["No trial is done: trials.csv has the reasons."]
    best = result.best
    changes = ", ".join(f"{k}={json.dumps(v)}" for k, v in best["changes"].items())
    value = f"{best['objective']} {report.measure_text(best['value'])} ({changes})"
    return [
        f"Best of {counted(len(result.trials), 'trial')}: {best['trial']:04d} with {value}",
        f"Run it again: {best['runs'][0]['command']}",
    ]


def turn(workdir: Path) -> filelock.BaseFileLock:
    """Locks out other workers between a check and an action."""
    workdir.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(workdir / ".turn.lock")


def open_study(
    workdir: Path,
    name: str,
    *,
    direction: Literal["minimize", "maximize"],
    pruner: optuna.pruners.BasePruner | None,
) -> Study:
    """The study in the folder's journal; a new one where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = str(workdir / JOURNAL)
    try:
        backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=name,
            direction=direction,
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} can't be read as Optuna's journal ({error}): restore it from a "
            "copy, or start again in another --workdir."
        ) from error


def median_pruner(epochs: int) -> optuna.pruners.MedianPruner:
    """Prunes trials worse than the others' median after a quarter of the epochs."""
    return optuna.pruners.MedianPruner(
        LEAST_COMPLETE, n_warmup_steps=max(1, epochs // 4)
    )


def retry_dead(study: Study, workdir: Path) -> None:
    """Fails the trials whose worker has ended, and queues their values again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = _folder(workdir, trial.number)
        try:
            with _lock(folder):
                _clear(folder)
                study.tell(trial.number, state=TrialState.FAIL)
        except filelock.Timeout:
            continue
        retries = trial.user_attrs.get("retries", 0)
        again = bool(trial.params) and retries < MOST_RETRIES
        if again:
            attributes = {"retries": retries + 1, "retry_of": trial.number}
            study.enqueue_trial(trial.params, user_attrs=attributes)
        fate = "tried again" if again else "given up"
        logger.warning("trial %04d: %s; its values are %s", trial.number, LOST, fate)


def _run_trial(worker: Worker) -> None:
    """Runs the next trial until it is done, pruned or failed."""
    search, study, workdir = worker.search, worker.study, worker.workdir
    with contextlib.ExitStack() as held:
        own_turn = held.enter_context(turn(workdir))
        retry_dead(study, workdir)
        # One sampler for the whole search would draw the same values again after a
        # restart, or in a second worker.
        words = [search.base["seed"], len(study.get_trials())]
        (seed,) = np.random.SeedSequence(words).generate_state(1)
        with warnings.catch_warnings():
            # Optuna 4 warns of options that are the defaults of 5.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.TPESampler(
                seed=int(seed), multivariate=True, constant_liar=True
            )
        trial = study.ask()
        folder = _folder(workdir, trial.number)
        held.enter_context(_lock(folder))
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        try:
            changes = design.suggested_changes(search, trial)
            trial.set_user_attr("changes", json.loads(json.dumps(changes)))
            own_turn.release()  # The next worker that asks knows these values.
            value = _train_and_evaluate(worker, trial, changes)
        except (TrialPruned, _FailedSeed, KdjaxError) as error:
            trial.set_user_attr("reason", str(error) or "search(trial) gave it up")
            _clear(folder)
            pruned = isinstance(error, TrialPruned)
            state = TrialState.PRUNED if pruned else TrialState.FAIL
            study.tell(trial, state=state)
            if isinstance(error, KdjaxError):
                raise
        else:
            shutil.rmtree(folder / "checkpoints")
            study.tell(trial, value)
    worker.console.print(_trial_text(study, trial.number), highlight=False)


def _train_and_evaluate(
    worker: Worker, trial: Trial, changes: Mapping[str, Any]
) -> float:
    """The objective of a trial, the mean over its seeds."""
    search, folder = worker.search, _folder(worker.workdir, trial.number)
    seeds = design.trial_members(search, trial.number, changes)
    sweep_data = members.load_sweep_data(search.name, seeds, worker.sweep_data)
    tasks = members.tasks_of(seeds, sweep_data)
    seed_of = {task.student or "": task.settings[SEED] for task in tasks}
    latest: dict[str, TrainingProgress] = {}
    reported = 0

    def report_epoch(progress: Mapping[str, TrainingProgress]) -> None:
        """Reports the mean loss after each epoch that all networks have reached."""
        nonlocal reported
        latest.update(progress)
        for name, own in progress.items():
            if own.bad_step:
                raise _FailedSeed(f"seed {seed_of[name]}: {progress_text(own)}")
        losses = [p.best_loss for p in progress.values() if p.best_loss is not None]
        if search.objective != LOSS or len(losses) < len(seed_of):
            return
        running = [own for own in progress.values() if not own.done]
        epoch = min(p.best_epoch + p.stale for p in running or progress.values())
        if epoch <= reported:
            return
        reported = epoch
        mean = statistics.mean(losses)
        trial.report(mean, epoch - 1)  # pruners count from 0
        if running and trial.should_prune():
            raise TrialPruned(f"validation loss {mean:.6g} after epoch {epoch}")

    try:
        trained = members.train_members(
            tasks,
            folder,
            way=TOGETHER if worker.way == AUTO else worker.way,
            console=worker.console,
            on_epoch=report_epoch,
            train_teachers=lambda jobs: _shared_teachers(worker, jobs),
        )
        latest |= {name: trained[name].progress for name in seed_of if name in trained}
    finally:
        trial.set_user_attr("steps", sum(progress.step for progress in latest.values()))
    reasons = [
        f"seed {member.settings[SEED]}: {reason}"
        for member in seeds
        for reason in members.failures(member, sweep_data, trained)
    ]
    if reasons:
        raise _FailedSeed("; ".join(reasons))
    measures = [
        members.evaluate_member(folder, member, sweep_data, trained) for member in seeds
    ]
    trial.set_user_attr("seeds_done", len(seeds))
    return statistics.mean(_value(own, search.objective) for own in measures)


def _value(measures: Mapping[str, Mapping[str, Any]], objective: str) -> float:
    """The mean of the objective's measure over the entities of a member that have one."""
    found = [own.get(OBJECTIVES[objective]) for own in measures.values()]
    numbers = [float(number) for number in found if number is not None]
    if not numbers:
        raise ConfigError(
            f"OBJECTIVE={objective!r} needs test rows with labels of both kinds: "
            f"give some, or use {LOSS}."
        )
    return statistics.mean(numbers)


def _shared_teachers(worker: Worker, jobs: Sequence[TrainingJob]) -> dict[str, Fitted]:
    """Trains teachers in a folder of all workers, or waits for the worker that does."""
    names = {job.name for job in jobs}
    if not worker.teachers.keys() >= names:
        folder = worker.workdir / "teachers" / names_digest(names)
        lock = _lock(folder)
        try:
            held = lock.acquire()
        except filelock.Timeout:
            worker.console.print("waiting for teachers that another worker trains")
            held = lock.acquire(timeout=-1)
        with held:
            found = train_all(jobs, folder, worker.console, way=worker.way)
        worker.teachers.update(found)
    return {name: worker.teachers[name] for name in names}


def _folder(workdir: Path, number: int) -> Path:
    return workdir / "trials" / f"{number:04d}"


def _lock(folder: Path) -> filelock.BaseFileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".lock", timeout=0)


def _clear(folder: Path) -> None:
    """Removes the files that only a finished trial has."""
    for path in (folder / "checkpoints", folder / "members"):
        shutil.rmtree(path, ignore_errors=True)


def _tabulate(study: Study, workdir: Path, search: Search) -> SearchResult:
    """Writes all tables; those of the worker that ends last have all trials."""
    with filelock.FileLock(workdir / ".tables.lock"):
        trials = study.get_trials(deepcopy=False)
        # Parameters that a trial doesn't have are NaN.
        table = pd.DataFrame(map(_trial_row, trials))
        report.write_table(workdir / TRIALS, table)
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if not done:
            return SearchResult(table, None, None)
        best, lines, runs = study.best_trial, list[dict[str, Any]](), []
        changed = [field for trial in done for field in _changes(trial)]
        fields = tuple(dict.fromkeys([*changed, SEED]))
        for trial in done:
            folder = _folder(workdir, trial.number)
            for member in design.trial_members(search, trial.number, _changes(trial)):
                results = members.read_member(folder, member)
                if results is None:
                    raise ArtifactError(
                        f"{folder} lacks member {member.name}, but the journal has "
                        "the trial as done: restore it from a copy, or start again in "
                        "another --workdir."
                    )
                values = design.swept_values(member.settings, fields)
                lines += members.table_lines(member._replace(changes=values), results)
                if trial.number == best.number:
                    runs.append(_run_again(search, member, results))
        described = {
            "trial": best.number,
            "objective": search.objective,
            "value": best.value,
            "params": best.params,
            "changes": _changes(best),
            "runs": runs,
            "optuna": optuna.__version__,
        }
        write_text(workdir / BEST, json.dumps(described, indent=2) + "\n")
        folders = [_folder(workdir, trial.number) for trial in trials]
        folders += sorted((workdir / "teachers").glob("*"))
        history = [
            # The same student may be in several trials.
            {**line, "phase": f"{folder.name}/{line['phase']}"}
            for folder in folders
            for line in read_lines(folder)
        ]
        by_member = report.members_table(lines, fields)
        sweep.write_tables(
            workdir,
            by_member,
            fields,
            name=search.name,
            measure=OBJECTIVES[search.objective],
            settings=search.base,
            history=history,
            notes=_notes(search, table),
        )
        return SearchResult(table, by_member, described)


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    state = trial.state.name
    status = {"COMPLETE": DONE, "FAIL": FAILED}.get(state, state.lower())
    facts, taken = trial.user_attrs, trial.duration
    return {
        "trial": trial.number,
        "status": status,
        "value": trial.value if status == DONE else math.nan,
        "reason": str(facts.get("reason", LOST if status == FAILED else "")),
        "seeds_done": facts.get("seeds_done", 0),
        "steps": facts.get("steps", 0),
        "seconds": taken.total_seconds() if taken else math.nan,
        "worker": facts.get("worker", ""),
        "retry_of": facts.get("retry_of", math.nan),
        **{f"param:{n}": design.value_text(v) for n, v in trial.params.items()},
    }


def _trial_text(study: Study, number: int) -> str:
    trial = study.get_trials(deepcopy=False)[number]
    row = _trial_row(trial)
    state = f"{row['status']}: {row['reason']}"
    if row["status"] == DONE:
        best = ", the best so far" if study.best_trial.number == number else ""
        state = f"{trial.value:.6g}{best}"
    params = ", ".join(
        f"{name}={report.field_text(design.value_text(value))}"
        for name, value in trial.params.items()
    )
    return f"trial {number:04d} ({params}): {state}; {row['seconds']:.1f} s"


def _changes(trial: FrozenTrial) -> dict[str, Any]:
    """The fields that a trial changes, under the names of today."""
    return {RENAMED.get(k, k): v for k, v in trial.user_attrs["changes"].items()}


def _notes(search: Search, table: pd.DataFrame) -> list[str]:
    counts = table["status"].value_counts()
    states = ", ".join(f"{count} {status}" for status, count in counts.items())
    labels = sweep.ORACLE_NOTE
    if search.objective != LOSS:
        labels = (
            f"The search chose by {search.objective}, with the test labels: its best value "
            "is not what to expect on other data."
        )
    trials = (
        f"{counted(len(table), 'trial')}, {states}; the members below are of those that are done. "
        f"A trial's value is the mean {OBJECTIVES[search.objective]} of its "
        f"{counted(len(search.seeds), 'seed')}."
    )
    return [trials, sweep.LOSS_NOTE, labels]


def _run_again(
    search: Search, member: design.Member, results: Mapping[str, Any]
) -> dict[str, Any]:
    """A member of the best trial: its loss, its detectors and the command of its run."""
    losses = [own[LOSS] for own in results["measures"].values()]
    usual = dict(leaves(json.loads(to_json(get_config()))))
    changed = {k: v for k, v in leaves(member.settings) if v != usual[k]}
    flags = [f"--config.{field}={design.value_text(v)}" for field, v in changed.items()]
    workdir = f"--workdir=runs/{search.name}_{member.name}"
    trial = member.name.split("-")[0]
    return {
        "seed": member.settings[SEED],
        LOSS: None if None in losses else statistics.mean(losses),
        "detectors": f"trials/{trial}/members/{member.name}/detectors",
        "command": shlex.join(["kdjax", "run", *flags, workdir]),
    }
