"""What a search asks for: its config file's names, and the settings of one trial."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kdjax.config import resolve
from kdjax.errors import ConfigError, KdjaxError
from kdjax.experiment.populations import AUTO
from kdjax.experiment.sweeps.design import (
    Member,
    Settings,
    member_settings,
    swept_values,
)
from kdjax.experiment.sweeps.study import load_optuna
from kdjax.experiment.sweeps.tables import LOSS

if TYPE_CHECKING:
    from optuna import Trial


class Objective(NamedTuple):
    """What a search improves.

    Attributes:
        name: what uses the test labels says so by an `oracle` in front.
        direction: `minimize` or `maximize`.
        measure: its column in members.csv; a trial's value is the mean over seeds.
    """

    name: str
    direction: str
    measure: str


OBJECTIVES = {
    LOSS: Objective(LOSS, "minimize", LOSS),
    "oracle_f1": Objective("oracle_f1", "maximize", "pooled_f1_oracle"),
    "oracle_average_precision": Objective(
        "oracle_average_precision", "maximize", "average_precision"
    ),
}
# Fields that change what the validation loss measures, and those that don't touch it.
_SCALE = ("data.", "model.head", "entity_mode")
_LATER = ("detection.", "threshold.", "baselines")


class Search(NamedTuple):
    """What a config file asks for.

    Attributes:
        name: of the config file.
        config: the base, a `ConfigDict`.
        base: its settings after all checks.
        suggest: `search(trial)`.
        seeds: of each trial's members.
        objective: see there.
        pruner: one of Optuna's; AUTO for the median's, None for none.
    """

    name: str
    config: Any
    base: Settings
    suggest: Callable[["Trial"], Mapping[str, Any]]
    seeds: tuple[int, ...]
    objective: Objective
    pruner: Any


def make_search(name: str, config: Any, defined: Mapping[str, Any]) -> Search:
    """The search that a config file defines.

    Args:
        name: of the search.
        config: the base, a `ConfigDict`.
        defined: the file's names: `search`, and if they are there `SEEDS` (default: the
            base's seed), `OBJECTIVE` (default: `validation_loss`) and `PRUNER`.

    Raises:
        ConfigError: one of them is faulty.
    """
    base = resolve(config)
    seeds = defined.get("SEEDS", (base["seed"],))
    whole = isinstance(seeds, (tuple, list)) and all(type(s) is int for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{name}: SEEDS={seeds!r} must be a tuple of different whole numbers, such "
            "as (0, 1, 2)."
        )
    objective = defined.get("OBJECTIVE", LOSS)
    if objective not in OBJECTIVES:
        raise ConfigError(
            f"{name}: OBJECTIVE={objective!r} must be one of {', '.join(OBJECTIVES)}."
        )
    return Search(
        name,
        config,
        base,
        defined["search"],
        tuple(seeds),
        OBJECTIVES[objective],
        defined.get("PRUNER", AUTO),
    )


def suggested(search: Search, trial: "Trial") -> dict[str, Any]:
    """The fields that a trial changes, found fit for the objective."""
    optuna, who = load_optuna(), f"{search.name}: search(trial)"
    try:
        given = search.suggest(trial)
    except (KdjaxError, optuna.TrialPruned):
        raise
    except Exception as error:  # a config file is a program and may raise anything
        raise ConfigError(f"{who} raised {type(error).__name__}: {error}") from error
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{who} gave {given!r}: return a dict of changes, such as "
            '{"train.learning_rate": rate}.'
        )
    changes = dict(given)
    _check_changes(who, changes, search.objective)
    number = trial.number
    (member, *_) = members_of(search, number, changes, search.seeds)
    return swept_values(member.settings, changes)


def members_of(
    search: Search, number: int, changes: Mapping[str, Any], seeds: Sequence[int]
) -> list[Member]:
    """A trial's members, one a seed."""
    found = []
    for seed in seeds:
        own = {**changes, "seed": seed}
        settings = member_settings(
            search.config, own, f"{search.name}: trial {number:04d}"
        )
        values = swept_values(settings, own)
        found.append(Member(f"{number:04d}-{seed}", values, settings))
    return found


def _check_changes(who: str, changes: Mapping[str, Any], objective: Objective) -> None:
    if "seed" in changes:
        raise ConfigError(f"{who} changes seed: list the seeds of a trial in SEEDS.")
    if objective.name != LOSS:
        return
    for field in changes:
        if field.startswith(_SCALE):
            raise ConfigError(
                f"{who} changes {field}, and validation losses under different values "
                "of it can't be compared: search one value at a time, or by an "
                f"OBJECTIVE that uses labels ({', '.join([*OBJECTIVES][1:])})."
            )
        if field.startswith(_LATER):
            raise ConfigError(
                f"{who} changes {field}, on which no validation loss depends: set it "
                "in get_config."
            )
