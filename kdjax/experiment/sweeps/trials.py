"""What a search found so far: its tables, its report, and its best trial.

trials.csv    a line a trial: how it ended, its value and its parameters
members.csv   a line a member and entity of the trials that are done
report.html   tables and figures of these members
best.json     the best trial, with the commands that run it again

Each worker writes them at its end, from the journal and the trials' folders.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import filelock
import pandas as pd

from kdjax.config import get_config, leaves, to_json
from kdjax.errors import ArtifactError
from kdjax.experiment.sweeps.design import (
    Member,
    Settings,
    swept_values,
    value_text,
)
from kdjax.experiment.sweeps.members import read_member, table_lines
from kdjax.experiment.sweeps.report import write_sweep_report
from kdjax.experiment.sweeps.run import (
    LOSS_NOTE,
    MEMBERS,
    ORACLE_NOTE,
    REPORT,
)
from kdjax.experiment.sweeps.space import Search, members_of
from kdjax.experiment.sweeps.study import (
    CHANGES,
    REASON,
    RETRY_OF,
    SEEDS_DONE,
    STEPS,
    WORKER,
    load_optuna,
    trial_folder,
)
from kdjax.experiment.sweeps.tables import (
    DONE,
    FAILED,
    LOSS,
    field_text,
    measure_names,
    measure_text,
    members_table,
    write_members,
)
from kdjax.experiment.workdir import read_lines
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

TRIALS, BEST = "trials.csv", "best.json"
STATUS = {
    "COMPLETE": DONE,
    "FAIL": FAILED,
    "PRUNED": "pruned",
    "RUNNING": "running",
    "WAITING": "waiting",
}
DEAD = "its worker ended before it"


class Found(NamedTuple):
    """What a search found so far.

    Attributes:
        trials: a row a trial, as in trials.csv.
        members: the tidy table of the trials that are done; None without any.
        best: as in best.json; None without any.
    """

    trials: pd.DataFrame
    members: pd.DataFrame | None
    best: dict[str, Any] | None


def tabulate(study: "Study", workdir: Path, search: Search) -> Found:
    """Writes all files; the last worker to come has seen the most."""
    with filelock.FileLock(workdir / ".tables.lock"):
        trials = study.get_trials(deepcopy=False)
        table = trials_table(trials)
        write_members(workdir / TRIALS, table)
        done = [trial for trial in trials if _status(trial) == DONE]
        if not done:
            return Found(table, None, None)
        members = _write_members(workdir, search, done, table)
        best = _best(study, workdir, search)
        write_text(workdir / BEST, json.dumps(best, indent=2) + "\n")
        return Found(table, members, best)


def trials_table(trials: Sequence["FrozenTrial"]) -> pd.DataFrame:
    """A row a trial; parameters that it does not have are NaN."""
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "status": _status(trial),
                "value": trial.value if _status(trial) == DONE else math.nan,
                "reason": _reason(trial),
                "seeds_done": trial.user_attrs.get(SEEDS_DONE, 0),
                "steps": trial.user_attrs.get(STEPS, 0),
                "seconds": _seconds(trial),
                "worker": trial.user_attrs.get(WORKER, ""),
                "retry_of": trial.user_attrs.get(RETRY_OF, math.nan),
                **{
                    f"param:{name}": value_text(trial.params[name])
                    if name in trial.params
                    else math.nan
                    for name in names
                },
            }
            for trial in trials
        ],
    )


def trial_text(study: "Study", number: int) -> str:
    """A trial in a line."""
    trial = study.get_trials(deepcopy=False)[number]
    told = {DONE: f"{trial.value:.6g}" if _status(trial) == DONE else ""}
    state = told.get(_status(trial)) or f"{_status(trial)}: {_reason(trial)}"
    if _status(trial) == DONE and study.best_trial.number == number:
        state += ", the best so far"
    params = ", ".join(
        f"{name}={field_text(value_text(value))}"
        for name, value in trial.params.items()
    )
    return f"trial {number:04d} ({params}): {state}; {_seconds(trial):.1f} s"


def best_lines(found: Found) -> list[str]:
    """The best trial for a terminal, and how to run it again."""
    if found.best is None:
        return ["No trial is done: trials.csv has the reasons."]
    best = found.best
    changes = ", ".join(f"{k}={json.dumps(v)}" for k, v in best["changes"].items())
    said = f"Best of {len(found.trials)} trials: {best['trial']:04d} with "
    said += f"{best['objective']} {measure_text(best['value'])} ({changes})"
    return [said, f"Run it again: {best['runs'][0]['command']}"]


def run_command(settings: Settings, workdir: str) -> str:
    """The command of a run with these settings: every field that is not the default."""
    usual = dict(leaves(json.loads(to_json(get_config()))))
    flags = [
        f"--config.{field}={_flag_text(value)}"
        for field, value in leaves(settings)
        if value != usual[field]
    ]
    return shlex.join(["kdjax", "run", *flags, f"--workdir={workdir}"])


def _flag_text(value: Any) -> str:
    text = value_text(value)
    return text if isinstance(text, str) else repr(text)


def _status(trial: "FrozenTrial") -> str:
    return STATUS[trial.state.name]


def _reason(trial: "FrozenTrial") -> str:
    dead = DEAD if _status(trial) == FAILED else ""
    return str(trial.user_attrs.get(REASON, dead))


def _seconds(trial: "FrozenTrial") -> float:
    return trial.duration.total_seconds() if trial.duration else math.nan


def _write_members(
    workdir: Path, search: Search, done: Sequence["FrozenTrial"], table: pd.DataFrame
) -> pd.DataFrame:
    changed = [field for trial in done for field in trial.user_attrs[CHANGES]]
    fields = tuple(dict.fromkeys([*changed, "seed"]))
    lines: list[dict[str, Any]] = []
    for trial in done:
        for member in _members_of(search, trial, fields):
            lines += table_lines(member, _results(workdir, trial.number, member))
    measures = measure_names(lines, fields)
    members = members_table(lines, fields=fields, measures=measures)
    write_members(workdir / MEMBERS, members)
    write_sweep_report(
        workdir / REPORT,
        name=search.name,
        members=members,
        fields=fields,
        measures=measures,
        measure=search.objective.measure,
        settings=search.base,
        history=_history(workdir, table),
        notes=_notes(search, table),
        environment=describe_environment(),
    )
    return members


def _members_of(
    search: Search, trial: "FrozenTrial", fields: Sequence[str]
) -> list[Member]:
    """A trial's members with a value for each field that any trial changes."""
    members = members_of(search, trial.number, trial.user_attrs[CHANGES], search.seeds)
    return [
        member._replace(changes=swept_values(member.settings, fields))
        for member in members
    ]


def _results(workdir: Path, number: int, member: Member) -> dict[str, Any]:
    """What a member of a done trial found."""
    folder = trial_folder(workdir, number)
    results = read_member(folder, member)
    if results is None:
        raise ArtifactError(
            f"{folder} lacks member {member.name}, though the journal has the trial as "
            "done: restore it from a copy, or start anew in another --workdir."
        )
    return results


def _history(workdir: Path, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of all logs; the same student may be in several trials."""
    folders = {f"{n:04d}": trial_folder(workdir, n) for n in table["trial"]}
    folders |= {f.name: f for f in sorted((workdir / "teachers").glob("*"))}
    return [
        {**line, "phase": f"{name}/{line['phase']}"}
        for name, folder in folders.items()
        for line in read_lines(folder)
    ]


def _notes(search: Search, table: pd.DataFrame) -> list[str]:
    counts = table["status"].value_counts()
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    objective = search.objective
    trials = (
        f"{len(table)} trials, {told}; the members below are of those that are done. "
        f"A trial's value is the mean {objective.measure} of its {len(search.seeds)} "
        "seeds."
    )
    labels = (
        f"The search chose by {objective.name}, with the test labels: its best value is "
        "not what to expect on other data."
    )
    return [trials, LOSS_NOTE, ORACLE_NOTE if objective.name == LOSS else labels]


def _best(study: "Study", workdir: Path, search: Search) -> dict[str, Any]:
    best = study.best_trial
    changes: Mapping[str, Any] = best.user_attrs[CHANGES]
    runs = []
    for member in members_of(search, best.number, changes, search.seeds):
        results = _results(workdir, best.number, member)
        losses = [own[LOSS] for own in results["measures"].values()]
        runs.append(
            {
                "seed": member.settings["seed"],
                LOSS: sum(losses) / len(losses),
                "detectors": f"trials/{best.number:04d}/members/{member.name}/detectors",
                "command": run_command(
                    member.settings, f"runs/{search.name}_{member.name}"
                ),
            }
        )
    return {
        "trial": best.number,
        "objective": search.objective.name,
        "value": best.value,
        "params": best.params,
        "changes": changes,
        "runs": runs,
        "optuna": load_optuna().__version__,
    }
