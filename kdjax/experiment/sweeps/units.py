"""A sweep on workers: networks of one shape are a unit, and then each member is one.

A unit of networks trains in the folder `unit-DIGEST` of the names of its networks, where
later runs find them. Teachers come first, then their students, then the evaluations of
members. On accelerators a population is a unit as a whole. On CPUs, where each core
trains its own members one after the other, it is cut into parts.
"""

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
from rich.console import Console

from kdjax.errors import DataError, counted
from kdjax.experiment import train
from kdjax.experiment.jobs import TrainingJob, names_digest
from kdjax.experiment.populations import (
    ALONE,
    AUTO,
    TOGETHER,
    fits_in_memory,
    group_jobs,
    train_all,
    way_of,
)
from kdjax.experiment.sweeps import members
from kdjax.experiment.sweeps.design import Member
from kdjax.experiment.train import Task
from kdjax.io.executors import Unit, run_units
from kdjax.training.loop import Fitted

# Members of a part of a population, for each core.
PART = 2


class Workers(NamedTuple):
    """Common data of the units of a sweep, and their failures."""

    workdir: Path
    way: str
    console: Console
    execution: Mapping[str, Any]  # arguments of `run_units`
    digests: Mapping[str, str]  # of the data
    lost: set[str]  # networks whose units failed
    faults: list[str]  # reasons of failed units


def train_and_evaluate(
    waiting: Sequence[Member], sweep_data: members.SweepData, workers: Workers
) -> None:
    """Writes the folders of members; DataError at the end if units failed."""
    console = workers.console
    tasks = members.tasks_of(waiting, sweep_data)
    owners: dict[str, Member] = {}
    for member in waiting:
        for task in members.tasks_of([member], sweep_data):
            for network in (task.teacher, task.student):
                owners.setdefault(network or "", member)
    train_share = functools.partial(_train, workers, owners)
    trained = train.train_tasks(tasks, train_share, train_share)
    units = []
    for number, member in enumerate(waiting, start=1):
        which = f"member {member.name} ({number} of {len(waiting)})"
        own = members.tasks_of([member], sweep_data)
        if workers.lost & {
            name for task in own for name in (task.teacher, task.student)
        }:
            continue
        if reasons := members.failures(member, sweep_data, trained):
            members.fail_member(workers.workdir, member, sweep_data, reasons)
            console.print(f"{which}: failed, {reasons[0]}", highlight=False)
            continue
        units.append(Unit(which, _data(workers, [member])))
    for name, _ in _run(workers, evaluate_unit, units):
        console.print(f"{name}: calibrating and scoring", highlight=False)
    if workers.faults:
        raise DataError(
            f"{counted(len(workers.faults), 'unit')} failed; the first is {workers.faults[0]} "
            "Rerun the command to repeat them."
        )


def _train(
    workers: Workers, owners: Mapping[str, Member], wanted: Sequence[TrainingJob]
) -> dict[str, Fitted]:
    """The networks that are in any folder, after units have trained those that were not."""
    trained = members.finished_in(wanted, members.process_folders(workers.workdir))
    waiting = [job for job in wanted if job.name not in trained]
    units = []
    for part, way in _parts(waiting, workers):
        names = [job.name for job in part]
        of_part = {owners[name].name: owners[name] for name in names}
        data = _data(workers, [*of_part.values()], jobs=names, way=way)
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        cost = sum(len(job.data.fit) * job.epochs for job in part)
        units.append(Unit(f"{', '.join(names[:2])}{more}", data, float(cost)))
    jobs_of = {unit.name: unit.data["jobs"] for unit in units}
    done = set[str]()
    for name, lines in _run(workers, train_unit, units):
        done.update(jobs_of[name])
        for line in lines:
            workers.console.print(line, highlight=False)
    workers.lost.update(job.name for job in waiting if job.name not in done)
    found = members.finished_in(waiting, members.process_folders(workers.workdir))
    return trained | found


def _parts(
    waiting: Sequence[TrainingJob], workers: Workers
) -> list[tuple[list[TrainingJob], str]]:
    """The jobs of each unit, and how it trains them."""
    cpus, gpus = workers.execution["resources"]
    parts = []
    for group in group_jobs(waiting):
        way = way_of(group, workers.workdir, workers.way)
        if gpus and workers.way == AUTO and not group[0].data.sources:
            way = TOGETHER if len(group) > 1 and fits_in_memory(group) else ALONE
        count = len(group)
        if way == TOGETHER:
            # Each part begins with one that has a teacher, where the whole does.
            taught = sum(job.distillation is not None for job in group) or count
            count = 1 if gpus else min(-(-len(group) // (PART * cpus)), taught)
        parts += [(group[place::count], way) for place in range(count)]
    return parts


def _run(
    workers: Workers, work: Callable[[Any], Any], units: Sequence[Unit]
) -> Iterator[tuple[str, Any]]:
    """Names and values of units when they end; reports those that fail."""
    for outcome in run_units(work, units, **workers.execution):
        if outcome.error:
            workers.faults.append(f"{outcome.name}: {outcome.error}")
            workers.console.print(f"failed: {workers.faults[-1]}", highlight=False)
        else:
            yield outcome.name, outcome.value


def _data(workers: Workers, own: Sequence[Member], **more: Any) -> dict[str, Any]:
    """The plain data of a unit."""
    return {
        "workdir": str(workers.workdir.absolute()),
        "members": [tuple(member) for member in own],
        "digests": dict(workers.digests),
        **more,
    }


# On a worker.


def train_unit(data: Mapping[str, Any]) -> list[str]:
    """Trains the networks `jobs` of some members; the lines for the terminal."""
    workdir, names = Path(data["workdir"]), data["jobs"]
    _, tasks = _loaded(data)
    folder = workdir / f"unit-{names_digest(names)}"
    text = io.StringIO()
    console = Console(file=text, width=10_000, force_terminal=False)

    def train_own(wanted: Sequence[TrainingJob]) -> dict[str, Fitted]:
        own = [job for job in wanted if job.name in names]
        folder.mkdir(parents=True, exist_ok=True)
        # A worker that lost its driver may still be training.
        with filelock.FileLock(folder / ".lock"):
            return train_all(own, folder, console, way=data["way"])

    found = functools.partial(_found, workdir)
    if any(task.teacher in names for task in tasks):
        tasks = [task._replace(student=None) for task in tasks]
        train.train_tasks(tasks, train_own, found)
    else:
        train.train_tasks(tasks, found, train_own)
    return text.getvalue().splitlines()


def evaluate_unit(data: Mapping[str, Any]) -> None:
    """Writes the folders of members whose networks are trained."""
    workdir = Path(data["workdir"])
    sweep_data, tasks = _loaded(data)
    found = functools.partial(_found, workdir)
    trained = train.train_tasks(tasks, found, found)
    for member in (Member(*fields) for fields in data["members"]):
        members.evaluate_member(workdir, member, sweep_data, trained)


def _loaded(data: Mapping[str, Any]) -> tuple[members.SweepData, list[Task]]:
    own = [Member(*fields) for fields in data["members"]]
    name, digests = Path(data["workdir"]).name, data["digests"]
    known = _known(data["workdir"], json.dumps(digests, sort_keys=True))
    sweep_data = members.load_sweep_data(name, own, known)
    for series, digest in sweep_data.digests.items():
        if digests.get(series) != digest:
            raise DataError(
                f"{series} changed while the sweep ran: restore the original data."
            )
    return sweep_data, members.tasks_of(own, sweep_data)


@functools.lru_cache(maxsize=1)
def _known(workdir: str, digests: str) -> members.SweepData:
    """Data that this process keeps for its next unit; filled as units need it."""
    return members.SweepData({}, {}, {}, {})


def _found(workdir: Path, wanted: Sequence[TrainingJob]) -> dict[str, Fitted]:
    return members.finished_in(wanted, members.process_folders(workdir))
