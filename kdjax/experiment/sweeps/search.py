"""An adaptive search: each trial's settings are chosen by what others have found.

A config file's `search(trial)` gives the fields that a trial changes, and its values
are Optuna's suggestions:

    SEEDS = (0, 1, 2)

    def search(trial):
        rate = trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True)
        return {"train.learning_rate": rate}

A trial trains its seeds side by side, as one population. Processes that run the same
search in one folder, on one host or several, are workers of one study.

search.json    base settings, seeds and objective; another search's are refused
data.json      digests of the data; other data are refused
journal.log    the study, see kdjax.experiment.sweeps.study
teachers/      networks that trials share, each trained once
trials/NNNN/   a trial's log and, below members/, its seeds (kdjax.experiment.sweeps.members)
and the tables of kdjax.experiment.sweeps.trials.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from kdjax.config import completed, differences
from kdjax.errors import ConfigError
from kdjax.experiment.populations import AUTO
from kdjax.experiment.sweeps.attempt import Worker, run_trial
from kdjax.experiment.sweeps.design import Design
from kdjax.experiment.sweeps.members import EvaluationCache
from kdjax.experiment.sweeps.networks import SweepData, load_sweep_data
from kdjax.experiment.sweeps.plan import data_key
from kdjax.experiment.sweeps.space import Search, members_of
from kdjax.experiment.sweeps.study import (
    load_optuna,
    median_pruner,
    open_study,
    turn,
)
from kdjax.experiment.sweeps.tables import LOSS
from kdjax.experiment.sweeps.trials import Found, tabulate
from kdjax.experiment.workdir import check_data, is_unclaimed, read_json
from kdjax.io.files import clear_leftovers, write_text
from kdjax.training import hosts

SEARCH = "search.json"


def run_search(
    search: Search,
    workdir: Path,
    *,
    trials: int = 10,
    way: str = AUTO,
    console: Console | None = None,
) -> Found:
    """Runs trials, beside those of other workers, and writes the tables of all so far.

    Args:
        search: from `make_search`.
        workdir: shared by all workers.
        trials: how many this process adds; 0 writes the tables only.
        way: `alone` trains seeds one after the other, without pruning.
        console: shows progress; quiet by default.
    """
    console = console or Console(quiet=True)
    load_optuna()
    if hosts.processes() > 1:
        raise ConfigError(
            "a search's workers don't join: leave out --coordinator, and start the "
            "same command in each process."
        )
    if trials < 0:
        raise ConfigError(f"--trials={trials} must be 0 or more.")
    with turn(workdir):
        _check_search(workdir, search)
        clear_leftovers(workdir)
    (first,) = members_of(search, 0, {}, search.seeds[:1])
    sweep_data = load_sweep_data(Design(search.name, search.base, (), (first,)))
    with turn(workdir):
        _claim(workdir, search, sweep_data.digests)
        study = open_study(
            workdir,
            name=search.name,
            direction=search.objective.direction,
            pruner=_pruner(search, sweep_data),
        )
    worker = Worker(
        search, study, workdir, way, console, sweep_data, EvaluationCache({}, {}), {}
    )
    for _ in range(trials):
        run_trial(worker)
    return tabulate(study, workdir, search)


def _pruner(search: Search, sweep_data: SweepData) -> Any:
    """The config file's, or the median's; none for labels, which come at the end."""
    if search.objective.name != LOSS:
        return None
    if search.pruner != AUTO:
        return search.pruner
    training_sets = sweep_data.training_sets[data_key(search.base)].values()
    share = min(training_data.share for training_data in training_sets)
    return median_pruner(int(share * search.base["student"]["epochs"]))


def _check_search(workdir: Path, search: Search) -> None:
    """Refuses a folder of another search, or of something else."""
    if is_unclaimed(workdir, SEARCH, "the work directory of a search"):
        return
    old, new = read_json(workdir / SEARCH), _described(search)
    changed = differences(completed(old.pop("base")), completed(new.pop("base")))
    changed += differences(old, new)
    if changed:
        raise ConfigError(
            f"{workdir} was made with another search ({'; '.join(changed)}): give "
            "another --workdir, or the search it was made with."
        )


def _claim(workdir: Path, search: Search, digests: Mapping[str, str]) -> None:
    # Another worker may have come first.
    _check_search(workdir, search)
    if not (workdir / SEARCH).exists():
        text = json.dumps(_described(search), indent=2, sort_keys=True)
        write_text(workdir / SEARCH, text + "\n")
    check_data(workdir, digests)


def _described(search: Search) -> dict[str, Any]:
    return {
        "name": search.name,
        "base": search.base,
        "seeds": list(search.seeds),
        "objective": search.objective.name,
    }
