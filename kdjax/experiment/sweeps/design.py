"""The members of a sweep and the space of a search, as a config file defines them.

A sweep lists its members; scikit-learn's `ParameterGrid` and `ParameterSampler` make
grids and random designs:

    def sweep(add):
        for changes in ParameterGrid({"student.hidden": [(8,), (16,)], "seed": [0, 1]}):
            add(changes)

A search returns the fields that a trial changes, their values suggested by Optuna:

    SEEDS = (0, 1, 2)

    def search(trial):
        rate = trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True)
        return {"train.learning_rate": rate}
"""

import functools
import inspect
import json
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from kdjax.config import Settings, current_name, leaves, override, resolve, to_json
from kdjax.errors import ConfigError, KdjaxError, check_choice
from kdjax.io.lazy import library

if TYPE_CHECKING:
    from optuna import Trial

Add = Callable[..., None]

LOSS = "validation_loss"
DONE, FAILED = "done", "failed"  # the status of a member
SEED = "seed"  # members that differ only in it are repetitions
# Objectives of a search, with their columns of members.csv. The loss is minimized, the
# others are maximized; `oracle` marks those that use the test labels.
OBJECTIVES = {
    LOSS: LOSS,
    "oracle_f1": "pooled_f1_oracle",
    "oracle_average_precision": "average_precision",
}
MEDIAN = "auto"  # the default pruner
# Fields that change the scale of the validation loss, and fields that don't affect it.
_SCALE = ("data.", "model.head", "entity_mode")
_LATER = ("alarm.", "detection.", "threshold.", "baselines")


class Member(NamedTuple):
    """One run of a sweep."""

    name: str  # its number, such as `007`
    changes: dict[str, Any]  # value of each swept field, also where it is the base's
    settings: Settings  # all, after all checks


class Design(NamedTuple):
    """A sweep."""

    name: str  # of the config file
    base: Settings  # that members start from
    fields: tuple[str, ...]  # that are swept, in order of first appearance
    members: tuple[Member, ...]  # at least one


class Search(NamedTuple):
    """A search."""

    name: str  # of the config file
    config: Any  # the base, a `ConfigDict`
    base: Settings  # its settings after all checks
    suggest: Callable[["Trial"], Mapping[str, Any]]  # `search(trial)`
    seeds: tuple[int, ...]  # of each trial's members
    objective: str  # one of `OBJECTIVES`
    pruner: Any  # one of Optuna's, None, or `MEDIAN`
    path: str = ""  # of the config file, which workers read again
    argument: tuple[str, ...] = ()  # that the file takes


def read_file(path: str, argument: Sequence[str]) -> dict[str, Any]:
    """The names that a config file defines; its argument is passed to its functions."""
    defined = runpy.run_path(path)
    for kind in {"sweep", "search"} & defined.keys():
        function = defined[kind]
        if len(inspect.signature(function).parameters) > 1:
            defined[kind] = functools.partial(_with_argument, function, argument)
    return defined


def _with_argument(function: Callable[..., Any], argument: Any, first: Any) -> Any:
    return function(first, *argument)


def make_design(name: str, config: Any, sweep: Callable[[Add], None]) -> Design:
    """The members that `sweep` adds to a config.

    Args:
        name: of the sweep.
        config: the base, a `ConfigDict`.
        sweep: calls `add({"distill.alpha": 0.5, "seed": 1})` for each member; fields
            without a dot may be keywords, `add(seed=1)`.

    Raises:
        ConfigError: no member, two alike, or one with faulty settings.
    """
    listed: list[dict[str, Any]] = []

    def add(
        changes: Mapping[str, Any] = MappingProxyType({}), /, **fields: Any
    ) -> None:
        given = {**changes, **fields}
        listed.append({current_name(field): value for field, value in given.items()})

    sweep(add)
    if not listed:
        raise ConfigError(
            f"{name}: sweep(add) added no member: call add at least once."
        )
    fields = tuple(dict.fromkeys(field for changes in listed for field in changes))
    width = max(3, len(str(len(listed) - 1)))
    members, known = [], dict[str, str]()
    for number, changes in enumerate(listed):
        settings = _member_settings(config, changes, f"{name}: member {number}")
        member = Member(f"{number:0{width}d}", swept_values(settings, fields), settings)
        other = known.setdefault(to_json(settings), member.name)
        if other != member.name:
            raise ConfigError(
                f"{name}: members {other} and {member.name} have the same settings "
                f"({_listed(member.changes)}): add each once, or give them other seeds."
            )
        members.append(member)
    return Design(name, resolve(config), fields, tuple(members))


def make_search(name: str, config: Any, defined: Mapping[str, Any]) -> Search:
    """The search of a config file that has the names `defined`, around a base config.

    They are `search`, and optionally `SEEDS` (default: the base's seed), `OBJECTIVE`
    (default: `validation_loss`) and `PRUNER`.
    """
    base = resolve(config)
    seeds = defined.get("SEEDS", (base["seed"],))
    whole = isinstance(seeds, (tuple, list)) and all(type(s) is int for s in seeds)
    if not (whole and seeds and len(set(seeds)) == len(seeds)):
        raise ConfigError(
            f"{name}: SEEDS={seeds!r} must be a tuple of different whole numbers, such "
            "as (0, 1, 2)."
        )
    objective = defined.get("OBJECTIVE", LOSS)
    check_choice(f"{name}: OBJECTIVE", objective, OBJECTIVES)
    suggest, pruner = defined["search"], defined.get("PRUNER", MEDIAN)
    return Search(name, config, base, suggest, tuple(seeds), objective, pruner)


def load_optuna() -> Any:
    """The library; ConfigError where it is not installed."""
    return library("optuna", "a search needs Optuna", "sweep")


def suggested_changes(search: Search, trial: "Trial") -> dict[str, Any]:
    """The fields that `search(trial)` changes, checked."""
    optuna, where = load_optuna(), f"{search.name}: search(trial)"
    try:
        given = search.suggest(trial)
    except (KdjaxError, optuna.TrialPruned):
        raise
    except Exception as error:  # a config file is a program: any error is possible
        raise ConfigError(f"{where} raised {type(error).__name__}: {error}") from error
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where} returned {given!r}: return a dict of changes, such as "
            '{"train.learning_rate": rate}.'
        )
    changes = {current_name(field): value for field, value in given.items()}
    if "seed" in changes:
        raise ConfigError(f"{where} changes seed: list the seeds of a trial in SEEDS.")
    for field in changes if search.objective == LOSS else ():
        if field.startswith(_SCALE):
            raise ConfigError(
                f"{where} changes {field}, but validation losses of different values can't "
                "be compared: search with one value, or with an OBJECTIVE that uses labels "
                f"({', '.join([*OBJECTIVES][1:])})."
            )
        if field.startswith(_LATER):
            raise ConfigError(
                f"{where} changes {field}, which has no effect on the validation loss: set "
                "it in get_config."
            )
    member = trial_members(search, trial.number, changes)[0]
    kinds = member.settings["student"]["components"]
    if search.objective == LOSS and "autoencoder" not in kinds:
        raise ConfigError(
            f"{where}: student.components={tuple(kinds)} has no autoencoder, so no {LOSS}: "
            f"add it, or use an OBJECTIVE of {', '.join([*OBJECTIVES][1:])}."
        )
    return swept_values(member.settings, changes)


def trial_members(
    search: Search, number: int, changes: Mapping[str, Any]
) -> list[Member]:
    """A trial's members, one a seed."""
    where, members = f"{search.name}: trial {number:04d}", []
    for seed in search.seeds:
        own = {**changes, "seed": seed}
        settings = _member_settings(search.config, own, where)
        values = swept_values(settings, own)
        members.append(Member(f"{number:04d}-{seed}", values, settings))
    return members


def swept_values(settings: Settings, fields: Iterable[str]) -> dict[str, Any]:
    """The values of dotted fields."""
    values = dict(leaves(settings))
    return {field: values[field] for field in fields}


def value_text(value: Any) -> float | str:
    """A field's value in a table: a number, or a text such as `64,64`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def _member_settings(config: Any, changes: Mapping[str, Any], where: str) -> Settings:
    try:
        return resolve(override(config, dict(changes)))
    except ConfigError as error:
        raise ConfigError(f"{where} ({_listed(changes)}): {error}") from error


def _listed(changes: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{field}={json.dumps(v, default=str)}" for field, v in changes.items()
    )
